//! Volumes and disks of servers.

use std::collections::BTreeMap;

use super::*;
use crate::compute::attach::{self, NewVolume};
use crate::compute::change::Rebuild;
use crate::compute::disks::DiskState;
use crate::compute::servers::{BlockDevice, BlockSource, Create, Networks};
use crate::error::Kind;
use crate::volume::actions::{Hand, Reset};
use crate::volume::{self, Origin, Volume, attachments};

impl World {
    /// A volume of one GiB whose bytes are there.
    async fn volume(&self) -> Uuid {
        let new = volume::NewVolume {
            size: Some(1),
            ..Default::default()
        };
        let made = volume::create(&self.test.cloud, &self.admin, new).await.unwrap();
        self.until_volume(made.id, Some("available")).await;
        made.id
    }

    async fn row(&self, volume: Uuid) -> Volume {
        let store = &self.test.cloud.store;
        let found = store.read(move |conn| volume::get(conn, volume)).await;
        found.unwrap().unwrap()
    }

    async fn by_hand(&self, ctx: &Context, volume: Uuid, hand: Hand) -> crate::Result<()> {
        volume::actions::by_hand(&self.test.cloud, ctx, &volume.to_string(), hand).await
    }

    /// Waits until the volume is in this state; `None`: until it is gone.
    pub(super) async fn until_volume(&self, id: Uuid, wanted: Option<&str>) {
        let mut events = self.test.cloud.store.subscribe();
        let wait = async {
            loop {
                let found = self
                    .test
                    .cloud
                    .store
                    .read(move |conn| volume::get(conn, id))
                    .await
                    .unwrap();
                if found.map(|v| v.status.name()) == wanted {
                    return;
                }
                events.recv().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .unwrap_or_else(|_| panic!("the volume never is {wanted:?}"));
    }

    async fn disks(&self, id: Uuid) -> Vec<(Uuid, DiskState)> {
        attach::volumes_of(&self.test.cloud, &self.admin, &id.to_string())
            .await
            .unwrap()
            .into_iter()
            .map(|d| (d.volume, d.state))
            .collect()
    }

    pub(super) async fn attach(&self, id: Uuid, volume: Uuid) -> crate::Result<()> {
        let new = NewVolume {
            volume,
            ..Default::default()
        };
        attach::attach_volume(&self.test.cloud, &self.admin, &id.to_string(), new)
            .await
            .map(drop)
    }

    async fn detach(&self, id: Uuid, volume: Uuid) -> crate::Result<()> {
        attach::detach_volume(
            &self.test.cloud,
            &self.admin,
            &id.to_string(),
            &volume.to_string(),
        )
        .await
    }

    fn has(&self, id: Uuid, volume: Uuid) -> bool {
        let state = self.test.drivers.state();
        let machine = state.machines.get(&id);
        machine.is_some_and(|(machine, _)| machine.disks.iter().any(|disk| disk.volume == volume))
    }

    async fn with_volumes() -> World {
        let mut world = World::furnished().await;
        world.start();
        volume::spawn(world.test.cloud.clone());
        world
    }
}

#[tokio::test]
async fn a_volume_comes_to_a_machine_and_leaves_it() {
    let world = World::with_volumes().await;
    let (id, volume) = (world.active().await, world.volume().await);
    world.attach(id, volume).await.unwrap();
    world.until_volume(volume, Some("in-use")).await;
    assert!(world.has(id, volume));
    assert_eq!(world.disks(id).await, [(volume, DiskState::Attached)]);
    assert!(matches!(
        world.attach(id, volume).await,
        Err(Error::BadRequest(_))
    ));
    // It stays across a restart of the machine.
    world.act(id, Action::Reboot { hard: true }).await;
    world.rests(id, VmState::Active).await;
    assert!(world.has(id, volume));
    world.detach(id, volume).await.unwrap();
    world.until_volume(volume, Some("available")).await;
    assert!(!world.has(id, volume) && world.disks(id).await.is_empty());
    assert!(world.detach(id, volume).await.is_err());
}

#[tokio::test]
async fn a_volume_that_a_server_has_is_let_go_of_by_compute_alone() {
    let mut world = World::with_volumes().await;
    let (id, volume) = (world.active().await, world.volume().await);
    world.attach(id, volume).await.unwrap();
    world.until_volume(volume, Some("in-use")).await;
    let (cloud, text) = (world.test.cloud.clone(), volume.to_string());
    let own = cloud.store.read(move |conn| attachments::of_volume(conn, volume));
    let own = own.await.unwrap()[0].id;
    let detach = |attachment, force| Hand::Detach { attachment, force };
    let hands = [
        Hand::BeginDetaching,
        Hand::RollDetaching,
        Hand::Unreserve,
        detach(None, false),
        detach(Some(own), false),
        detach(None, true),
        detach(Some(own), true),
    ];
    for hand in &hands {
        let refused = world.by_hand(&world.admin, volume, hand.clone()).await;
        assert!(
            matches!(refused, Err(Error::Conflict(_))),
            "{hand:?}: {refused:?}"
        );
    }
    let available = Some(volume::status::Status::Available);
    for (status, attached) in [(None, Some(false)), (available, None)] {
        let freed = Reset { status, attached };
        let refused = volume::actions::reset_status(&cloud, &world.admin, &text, freed).await;
        assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");
    }
    let refused = volume::volumes::delete(&cloud, &world.admin, &text, false, true).await;
    assert!(matches!(refused, Err(Error::BadRequest(_))), "{refused:?}");
    // Whatever its state is said to be.
    for status in [volume::status::Status::Detaching, volume::status::Status::InUse] {
        let said = Reset {
            status: Some(status),
            attached: None,
        };
        volume::actions::reset_status(&cloud, &world.admin, &text, said)
            .await
            .unwrap();
        let refused = volume::attach::delete(&cloud, &world.admin, &own.to_string()).await;
        assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");
    }
    assert!(world.has(id, volume));
    world.detach(id, volume).await.unwrap();
    world.until_volume(volume, Some("available")).await;

    // The same while it is coming.
    world.kill().await;
    world.attach(id, volume).await.unwrap();
    let refused = world.by_hand(&world.admin, volume, Hand::Unreserve).await;
    assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");
    world.start();
    world.until_volume(volume, Some("in-use")).await;
    world.detach(id, volume).await.unwrap();
    world.until_volume(volume, Some("available")).await;

    // What no server has is kept and let go of by hand.
    let mountpoint = Hand::Attach {
        server: Some(id),
        host: None,
        device: "/dev/vdb".into(),
        read_only: false,
    };
    let by_hand = [
        (Hand::Reserve, "attaching"),
        (Hand::Unreserve, "available"),
        (mountpoint, "in-use"),
        (Hand::BeginDetaching, "detaching"),
        (Hand::RollDetaching, "in-use"),
        (detach(None, false), "available"),
    ];
    for (hand, status) in by_hand {
        world.by_hand(&world.admin, volume, hand).await.unwrap();
        assert_eq!(world.row(volume).await.status.name(), status);
    }
}

#[tokio::test]
async fn a_server_takes_no_volume_with_it_but_its_own() {
    let world = World::with_volumes().await;
    let id = world.active().await;
    let (own, given, others) = (world.volume().await, world.volume().await, world.volume().await);
    for volume in [own, given, others] {
        let new = NewVolume {
            volume,
            delete_on_termination: true,
            ..Default::default()
        };
        attach::attach_volume(&world.test.cloud, &world.admin, &id.to_string(), new)
            .await
            .unwrap();
        world.until_volume(volume, Some("in-use")).await;
    }
    let change = world.test.cloud.store.write("test", move |conn| {
        attachments::detached(conn, given, id)?;
        let sql = "UPDATE volume_volumes SET project_id = 'other' WHERE id = ?1";
        conn.execute(sql, [others.to_string()])?;
        Ok::<_, Error>(())
    });
    change.await.unwrap();
    world.act(id, Action::Delete).await;
    world.until(id, |s| s.deleted).await;
    world.until_volume(own, None).await;
    for kept in [given, others] {
        assert_eq!(world.row(kept).await.status.name(), "available");
    }
}

#[tokio::test]
async fn volumes_are_attached_by_hand_to_ones_own_servers_alone() {
    let world = World::with_volumes().await;
    let (id, cloud) = (world.active().await, &world.test.cloud);
    let eve = world.test.context("eve", "elsewhere", "member").await;
    let new = volume::NewVolume {
        size: Some(1),
        ..Default::default()
    };
    let theirs = volume::create(cloud, &eve, new).await.unwrap().id;
    world.until_volume(theirs, Some("available")).await;
    let to = |server| Hand::Attach {
        server: Some(server),
        host: None,
        device: "/dev/vdb".into(),
        read_only: false,
    };
    for server in [id, Uuid::new_v4()] {
        let refused = volume::attach::create(cloud, &eve, &theirs.to_string(), Some(server), None, None)
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), Some(Kind::NotFound), "{refused:?}");
        let refused = world.by_hand(&eve, theirs, to(server)).await.unwrap_err();
        assert_eq!(refused.kind(), Some(Kind::NotFound), "{refused:?}");
    }
    assert_eq!(world.row(theirs).await.status.name(), "available");

    // One that a server is only said to have leaves no trace in its history when it grows.
    let extended = async |volume: Uuid| {
        let ctx = &world.admin;
        volume::actions::extend(cloud, ctx, &volume.to_string(), 2, true)
            .await
            .unwrap();
        world.until_volume(volume, Some("in-use")).await;
        let page = crate::compute::actions::Page {
            limit: 100,
            ..Default::default()
        };
        let history = crate::compute::actions::history(cloud, ctx, &id.to_string(), true, page)
            .await
            .unwrap();
        history.iter().filter(|e| e.action == "extend_volume").count()
    };
    let (said, had) = (world.volume().await, world.volume().await);
    world.by_hand(&world.admin, said, to(id)).await.unwrap();
    assert_eq!(extended(said).await, 0);
    world.attach(id, had).await.unwrap();
    world.until_volume(had, Some("in-use")).await;
    assert_eq!(extended(had).await, 1);
}

#[tokio::test]
async fn a_volume_says_which_image_was_written_over_it() {
    let world = World::with_volumes().await;
    let devices = vec![device(BlockSource::Image(Uuid::from_u128(7)), Some(3), true)];
    let made = servers::create(&world.test.cloud, &world.admin, create(None, devices))
        .await
        .unwrap();
    let id = made.servers[0];
    let root = world.rests(id, VmState::Active).await.root_volume;
    let rebuild = |image: u128, reimage| {
        Action::Rebuild(Box::new(Rebuild {
            image: Uuid::from_u128(image),
            reimage,
            ..Rebuild::default()
        }))
    };
    world.act(id, rebuild(8, true)).await;
    world.rests(id, VmState::Active).await;
    let row = world.row(root).await;
    assert_eq!(row.image_metadata["image_id"], Uuid::from_u128(8).to_string());
    assert_eq!(
        (row.bootable, row.origin),
        (true, Origin::Image(Uuid::from_u128(7)))
    );
    // Older clients may name the image that is there, and no other.
    let ctx = &world.admin;
    let refused = act(&world.test.cloud, ctx, &id.to_string(), rebuild(7, false)).await;
    assert!(matches!(refused, Err(Error::BadRequest(_))), "{refused:?}");
    world.act(id, rebuild(8, false)).await;
    world.rests(id, VmState::Active).await;
}

#[tokio::test]
async fn a_volume_of_a_server_that_is_off_comes_with_its_start_and_stays_after_its_end() {
    let world = World::with_volumes().await;
    let (id, volume) = (world.active().await, world.volume().await);
    world.act(id, Action::Stop).await;
    world.rests(id, VmState::Stopped).await;
    world.attach(id, volume).await.unwrap();
    world.until_volume(volume, Some("in-use")).await;
    world.act(id, Action::Start).await;
    world.rests(id, VmState::Active).await;
    assert!(world.has(id, volume));
    world.act(id, Action::Delete).await;
    world.until(id, |s| s.deleted).await;
    world.until_volume(volume, Some("available")).await;
}

#[tokio::test]
async fn what_a_node_cannot_plug_is_taken_back() {
    let world = World::with_volumes().await;
    let (id, volume) = (world.active().await, world.volume().await);
    let no = || DriverError::Failed("no".into());
    world.test.drivers.fail_next("attach_disk", no());
    world.attach(id, volume).await.unwrap();
    world.until_volume(volume, Some("available")).await;
    assert!(world.disks(id).await.is_empty());
    world.attach(id, volume).await.unwrap();
    world.until_volume(volume, Some("in-use")).await;
    world.test.drivers.fail_next("detach_disk", no());
    let mut events = world.test.cloud.store.subscribe();
    world.detach(id, volume).await.unwrap();
    while world.disks(id).await != [(volume, DiskState::Attached)] {
        events.recv().await.unwrap();
    }
    world.until_volume(volume, Some("in-use")).await;
    assert!(world.get(id).await.fault.is_none());
}

#[tokio::test]
async fn a_volume_that_a_machine_may_have_is_not_given_away() {
    let world = World::with_volumes().await;
    let (id, volume) = (world.active().await, world.volume().await);
    let no = || DriverError::Failed("the monitor does not answer".into());
    world.calls();
    world.test.drivers.fail_next("attach_disk", no());
    world.test.drivers.fail_next("detach_disk", no());
    world.attach(id, volume).await.unwrap();
    world.until_volume(volume, Some("available")).await;
    assert_eq!(world.calls(), ["attach_disk", "detach_disk", "detach_disk"]);
    assert!(world.disks(id).await.is_empty());
    let page = crate::compute::actions::Page {
        limit: 1,
        ..Default::default()
    };
    let id = id.to_string();
    let history = crate::compute::actions::history(&world.test.cloud, &world.admin, &id, false, page);
    assert_eq!(history.await.unwrap()[0].result.as_deref(), Some("Error"));
}

#[tokio::test]
async fn a_daemon_that_dies_in_between_ends_what_was_asked() {
    let mut world = World::with_volumes().await;
    let (id, volume) = (world.active().await, world.volume().await);
    world.kill().await;
    world.attach(id, volume).await.unwrap();
    assert_eq!(world.disks(id).await, [(volume, DiskState::Attaching)]);
    world.start();
    world.until_volume(volume, Some("in-use")).await;
    assert!(world.has(id, volume));
}

fn create(image: Option<Uuid>, devices: Vec<BlockDevice>) -> Create {
    Create {
        name: "vm".into(),
        description: None,
        hostname: None,
        image,
        devices,
        flavor: "g".into(),
        networks: Networks::None,
        security_groups: Vec::new(),
        key_name: None,
        user_data: None,
        config_drive: false,
        metadata: BTreeMap::new(),
        tags: Vec::new(),
        min_count: 1,
        max_count: 1,
        availability_zone: None,
        host: None,
        access_ip_v4: None,
        access_ip_v6: None,
        disk_config: "MANUAL".into(),
        server_group: None,
    }
}

fn device(source: BlockSource, size: Option<u32>, boot: bool) -> BlockDevice {
    BlockDevice {
        source,
        volume: true,
        size_gib: size,
        boot,
        swap: false,
        delete_on_termination: boot,
        tag: None,
        volume_type: None,
    }
}

#[tokio::test]
async fn a_server_boots_from_a_volume_that_goes_with_it() {
    let world = World::with_volumes().await;
    let devices = vec![
        device(BlockSource::Image(Uuid::from_u128(7)), Some(3), true),
        device(BlockSource::Blank, Some(1), false),
    ];
    let made = servers::create(&world.test.cloud, &world.admin, create(None, devices))
        .await
        .unwrap();
    let id = made.servers[0];
    let server = world.rests(id, VmState::Active).await;
    assert!(server.volume_backed && server.image_id.is_none());
    assert_eq!(server.root_bytes, 3 << 30);
    let disks = world.disks(id).await;
    assert_eq!(disks.len(), 2);
    assert_eq!(disks[0], (server.root_volume, DiskState::Attached));
    let order: Vec<Uuid> = world.test.drivers.state().machines[&id]
        .0
        .disks
        .iter()
        .map(|disk| disk.volume)
        .collect();
    assert_eq!(order, [disks[0].0, disks[1].0]);
    // Its own root cannot leave it.
    assert!(matches!(
        world.detach(id, server.root_volume).await,
        Err(Error::Forbidden(_))
    ));
    world.act(id, Action::Delete).await;
    world.until(id, |s| s.deleted).await;
    world.until_volume(server.root_volume, None).await;
    world.until_volume(disks[1].0, Some("available")).await;
}

#[tokio::test]
async fn a_volume_that_cannot_be_made_is_the_servers_fault() {
    let world = World::with_volumes().await;
    world
        .test
        .drivers
        .fail_next("create_volume", DriverError::Failed("no".into()));
    let devices = vec![device(BlockSource::Image(Uuid::from_u128(7)), Some(3), true)];
    let made = servers::create(&world.test.cloud, &world.admin, create(None, devices))
        .await
        .unwrap();
    let server = world.rests(made.servers[0], VmState::Error).await;
    assert!(
        server
            .fault
            .unwrap()
            .message
            .contains("did not finish being created")
    );
}

#[tokio::test]
async fn a_server_has_one_disk_to_boot_from() {
    let world = World::with_volumes().await;
    let volume = world.volume().await;
    let image = Some(Uuid::from_u128(7));
    for (image, devices, word) in [
        (
            image,
            vec![device(BlockSource::Volume(volume), None, true)],
            "Boot sequence",
        ),
        (
            None,
            vec![device(BlockSource::Volume(volume), None, false)],
            "Boot sequence",
        ),
        (
            None,
            vec![device(BlockSource::Volume(volume), None, true)],
            "not bootable",
        ),
        (
            None,
            vec![device(BlockSource::Volume(Uuid::nil()), None, true)],
            "could not be found",
        ),
    ] {
        let error = servers::create(&world.test.cloud, &world.admin, create(image, devices))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::BadRequest(_)), "{error:?}");
        assert!(error.to_string().contains(word), "{error}");
    }
    world.until_volume(volume, Some("available")).await;
}
