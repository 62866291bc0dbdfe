//! What disks may be used, and what machines are told of it.

use model::disk::{DiskLimits, Rate};

use super::*;
use crate::compute::limits;
use crate::volume::qos::{self, Change};
use crate::volume::{self, Pairs, actions, types};

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Pairs {
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn iops(total: u64) -> DiskLimits {
    DiskLimits {
        total_iops: Some(Rate::steady(total)),
        ..DiskLimits::default()
    }
}

impl World {
    fn limits(&self, id: Uuid, volume: Uuid) -> Option<DiskLimits> {
        let state = self.test.drivers.state();
        let disks = &state.machines.get(&id)?.0.disks;
        disks
            .iter()
            .find(|disk| disk.volume == volume)
            .map(|disk| disk.limits)
    }

    /// Waits until a machine was told this. That it is told at all is what is tested: there is no event for it.
    async fn told(&self, id: Uuid, volume: Uuid, wanted: DiskLimits) {
        let started = std::time::Instant::now();
        while self.limits(id, volume) != Some(wanted) {
            let now = self.limits(id, volume);
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "{now:?}, not {wanted:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn times_told(&self) -> usize {
        let state = self.test.drivers.state();
        state
            .calls
            .iter()
            .filter(|call| call.starts_with("limit_disk"))
            .count()
    }
}

#[tokio::test]
async fn a_machine_is_told_whatever_changes_its_volumes_limits() {
    let mut world = World::furnished().await;
    world.start();
    volume::spawn(world.test.cloud.clone());
    let cloud = world.test.cloud.clone();
    let telling = limits::spawn(cloud.clone());
    let admin = &world.admin;
    let specs = pairs([
        ("total_iops_sec_per_gb", "200.5"),
        ("total_iops_sec_per_gb_min", "300"),
        ("colour", "blue"),
    ]);
    let qos = qos::create(&cloud, admin, "fast".into(), Some("front-end".into()), specs)
        .await
        .unwrap();
    let kind = types::create(&cloud, admin, "fast".into(), None, true, Pairs::new())
        .await
        .unwrap();
    let qos_id = qos.id.to_string();
    let change = |change| qos::change(&cloud, admin, &qos_id, change);
    change(Change::Associate(kind.id.to_string())).await.unwrap();

    // With its disk.
    let new = volume::NewVolume {
        size: Some(1),
        volume_type: Some("fast".into()),
        ..Default::default()
    };
    let volume = volume::create(&cloud, admin, new).await.unwrap().id;
    world.until_volume(volume, Some("available")).await;
    let id = world.active().await;
    world.attach(id, volume).await.unwrap();
    world.until_volume(volume, Some("in-use")).await;
    assert_eq!(world.limits(id, volume), Some(iops(300)));

    // When it grows.
    actions::extend(&cloud, admin, &volume.to_string(), 4, true)
        .await
        .unwrap();
    world.told(id, volume, iops(802)).await;
    // When the figures change.
    qos::update(
        &cloud,
        admin,
        &qos_id,
        Some("back-end".into()),
        pairs([("total_iops_sec_max", "700")]),
    )
    .await
    .unwrap();
    world.told(id, volume, iops(700)).await;
    qos::delete_keys(&cloud, admin, &qos_id, vec!["total_iops_sec_max".into()])
        .await
        .unwrap();
    world.told(id, volume, iops(802)).await;
    // When the type has them no longer, and again.
    change(Change::DisassociateAll).await.unwrap();
    world.told(id, volume, DiskLimits::default()).await;
    change(Change::Associate(kind.id.to_string())).await.unwrap();
    world.told(id, volume, iops(802)).await;
    // When the volume is of another type.
    world.until_volume(volume, Some("in-use")).await;
    actions::retype(&cloud, admin, &volume.to_string(), "iops-15000")
        .await
        .unwrap();
    world.told(id, volume, iops(100)).await;

    // What fails is tried again.
    let failure = DriverError::Failed("the owner does not answer".into());
    world.test.drivers.fail_next("limit_disk", failure);
    world.until_volume(volume, Some("in-use")).await;
    actions::retype(&cloud, admin, &volume.to_string(), "fast")
        .await
        .unwrap();
    world.told(id, volume, iops(802)).await;

    // What did not change is not told, until another daemon comes, which tells all there is.
    let before = world.times_told();
    types::update(
        &cloud,
        admin,
        &kind.id.to_string(),
        types::Update {
            description: Some(Some("fast ones".into())),
            ..Default::default()
        },
    )
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.times_told(), before);
    telling.abort();
    let _ = telling.await;
    let wrong = world
        .test
        .drivers
        .state()
        .machines
        .get_mut(&id)
        .map(|(machine, _)| {
            let disks = machine.disks.iter_mut();
            disks.for_each(|disk| disk.limits = iops(1));
        });
    assert!(wrong.is_some());
    limits::spawn(cloud.clone());
    world.told(id, volume, iops(802)).await;
}

#[tokio::test]
async fn a_servers_own_disk_has_its_flavors_limits() {
    let mut world = World::new().await;
    world.start();
    let mut server = sample("vm");
    server.flavor.extra_specs = pairs([
        ("quota:disk_read_iops_sec", "100"),
        ("quota:disk_total_bytes_sec", "1048576"),
        ("quota:cpu_shares", "7"),
    ]);
    let root = server.root_volume;
    let id = world.insert(server).await;
    world.rests(id, VmState::Active).await;
    let wanted = DiskLimits {
        read_iops: Some(Rate::steady(100)),
        total_bytes: Some(Rate::steady(1 << 20)),
        ..DiskLimits::default()
    };
    assert_eq!(world.limits(id, root), Some(wanted));
    // What an earlier daemon told otherwise is put right.
    let machines = &world.test.cloud.drivers.machines;
    machines.limit_disk(id, root, &iops(1)).await.unwrap();
    limits::spawn(world.test.cloud.clone());
    world.told(id, root, wanted).await;
}

#[tokio::test]
async fn there_are_classes_by_iops_per_tib_and_an_archive() {
    let world = World::new().await;
    let (cloud, admin) = (&world.test.cloud, &world.admin);
    let of = async |name: &str, gib| {
        let kind = types::show(cloud, admin, &id_of(cloud, name).await)
            .await
            .unwrap();
        assert!(kind.is_public && !kind.description.unwrap().starts_with('['));
        let qos = qos::show(cloud, admin, &kind.qos_id.unwrap().to_string())
            .await
            .unwrap();
        volume::limits::of_specs(&qos.specs, "", Some(gib))
    };
    for class in [500, 1500, 3000, 7500, 15_000] {
        let name = format!("iops-{class}");
        assert_eq!(of(&name, 1024).await, iops(class));
        assert_eq!(of(&name, 32 * 1024).await, iops(32 * class));
        assert_eq!(of(&name, 512).await, iops(class / 2));
        assert_eq!(of(&name, 1).await, iops(100));
    }
    let archive = of("archive", 1024).await;
    assert_eq!(archive, of("archive", 1).await);
    assert_eq!(archive.total_bytes, Some(Rate::steady(50 << 20)));
    // An operator who does not want them takes them away.
    types::delete(cloud, admin, &id_of(cloud, "archive").await)
        .await
        .unwrap();
}

async fn id_of(cloud: &Cloud, name: &str) -> String {
    let names = types::names(cloud).await.unwrap();
    let found = names.into_iter().find(|(_, other)| other == name);
    found.unwrap().0
}
