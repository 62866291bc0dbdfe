//! The loop and its steps, against drivers that remember.

use std::collections::BTreeMap;
use std::time::Duration;

use model::disk::VolumeSource;
use model::units::GIB;
use uuid::Uuid;

use super::{Item, steps};
use crate::driver::DriverError;
use crate::testing::{self, TestCloud};
use crate::volume::actions::{self, Upload};
use crate::volume::backups::{self, Backup, NewBackup};
use crate::volume::row::{self, Volume};
use crate::volume::snapshots::{self, Metadata, Snapshot};
use crate::volume::status::{AttachStatus, BackupStatus, SnapshotStatus, Status, Task};
use crate::volume::volumes::{self, Of};
use crate::volume::{
    NewVolume, Origin, Pairs, Place, attachments, create, create_for_server, messages, quotas, transfers,
    types,
};
use crate::{Context, Error};

struct World {
    test: TestCloud,
    ctx: Context,
}

impl World {
    /// Without the loop: steps are done by hand.
    async fn new() -> World {
        let test = testing::cloud().await;
        let ctx = test.context("mia", "shop", "member").await;
        World { test, ctx }
    }

    async fn make(&self, origin: Origin, size: Option<u32>) -> Volume {
        let new = NewVolume {
            origin,
            size,
            ..NewVolume::default()
        };
        let made = create(&self.test.cloud, &self.ctx, new).await.unwrap();
        self.settle().await;
        self.volume(made.id).await.unwrap()
    }

    async fn volume(&self, id: Uuid) -> Option<Volume> {
        self.test
            .cloud
            .store
            .read(move |c| row::get(c, id))
            .await
            .unwrap()
    }

    async fn snapshot(&self, id: Uuid) -> Option<Snapshot> {
        self.test
            .cloud
            .store
            .read(move |c| snapshots::get(c, id))
            .await
            .unwrap()
    }

    async fn backup(&self, id: Uuid) -> Option<Backup> {
        self.test
            .cloud
            .store
            .read(move |c| backups::get(c, id))
            .await
            .unwrap()
    }

    async fn snap(&self, volume: Uuid) -> Snapshot {
        let (cloud, id) = (&self.test.cloud, volume.to_string());
        let made = snapshots::create(cloud, &self.ctx, &id, None, None, Pairs::new(), false);
        let made = made.await.unwrap();
        self.settle().await;
        self.snapshot(made.id).await.unwrap()
    }

    async fn back_up(&self, volume: Uuid) -> Backup {
        let new = NewBackup {
            volume: volume.to_string(),
            ..NewBackup::default()
        };
        let made = backups::create(&self.test.cloud, &self.ctx, new).await.unwrap();
        self.settle().await;
        self.backup(made.id).await.unwrap()
    }

    /// Does all that there is to do. Each step is done as if the daemon had been killed after the driver's call: the row is put
    /// back, and the step done once more.
    async fn settle(&self) {
        let cloud = &self.test.cloud;
        loop {
            let jobs = steps::waiting(cloud).await.unwrap();
            let Some(item) = jobs.first().map(|job| job.item) else {
                return;
            };
            let before = (
                self.volume(item.id()).await,
                self.snapshot(item.id()).await,
                self.backup(item.id()).await,
            );
            let failing = !self.test.drivers.state().fail.is_empty();
            steps::perform(cloud, item).await.unwrap();
            if failing {
                continue;
            }
            let after = self.states(item).await;
            let put_back = cloud.store.write("test", move |conn| {
                if let Some(row) = &before.0 {
                    row.save(conn)?;
                }
                if let Some(row) = &before.1 {
                    row.save(conn)?;
                }
                if let Some(row) = &before.2 {
                    row.save(conn)?;
                }
                Ok::<_, Error>(())
            });
            put_back.await.unwrap();
            steps::perform(cloud, item).await.unwrap();
            assert_eq!(self.states(item).await, after, "{item:?} done twice");
            // Without a task nothing happens any more.
            steps::perform(cloud, item).await.unwrap();
            assert_eq!(self.states(item).await, after, "{item:?} done without need");
        }
    }

    async fn states(&self, item: Item) -> Option<(&'static str, Option<Task>)> {
        let id = item.id();
        match item {
            Item::Volume(_) => self.volume(id).await.map(|v| (v.status.name(), v.task)),
            Item::Snapshot(_) => self.snapshot(id).await.map(|s| (s.status.name(), s.task)),
            Item::Backup(_) => self.backup(id).await.map(|b| (b.status.name(), b.task)),
        }
    }

    async fn messages(&self) -> Vec<String> {
        let found = messages::list(&self.test.cloud, &self.ctx).await.unwrap();
        found.into_iter().map(|message| message.event_id()).collect()
    }

    fn fail(&self, call: &'static str, error: DriverError) {
        self.test.drivers.fail_next(call, error);
    }
}

fn full() -> DriverError {
    DriverError::Full("the pool is full".into())
}

#[tokio::test]
async fn volumes_of_every_origin_are_made_and_go() {
    let world = World::new().await;
    let first = world.make(Origin::Empty, Some(1)).await;
    assert_eq!((first.status, first.task), (Status::Available, None));
    assert!(first.launched_at.is_some());
    let snapshot = world.snap(first.id).await;
    assert_eq!(snapshot.status, SnapshotStatus::Available);
    let backup = world.back_up(first.id).await;
    assert_eq!(backup.status, BackupStatus::Available);
    assert_eq!(world.volume(first.id).await.unwrap().status, Status::Available);
    for (origin, source) in [
        (Origin::Volume(first.id), VolumeSource::Volume(first.id)),
        (Origin::Snapshot(snapshot.id), VolumeSource::Snapshot(snapshot.id)),
        (Origin::Backup(backup.id), VolumeSource::Empty),
    ] {
        let made = world.make(origin, None).await;
        assert_eq!((made.status, made.size), (Status::Available, 1), "{origin:?}");
        assert_eq!(world.test.drivers.state().volumes[&made.id], (GIB, source));
    }
    // Smaller than what it is made of.
    let small = NewVolume {
        origin: Origin::Snapshot(snapshot.id),
        size: Some(0),
        ..NewVolume::default()
    };
    let refused = create(&world.test.cloud, &world.ctx, small).await;
    assert!(matches!(refused, Err(Error::BadRequest(_))));

    let (cloud, ctx) = (&world.test.cloud, &world.ctx);
    backups::delete(cloud, ctx, &backup.id.to_string(), false)
        .await
        .unwrap();
    let with_snapshots = volumes::delete(cloud, ctx, &first.id.to_string(), false, false).await;
    assert!(matches!(with_snapshots, Err(Error::BadRequest(_))));
    volumes::delete(cloud, ctx, &first.id.to_string(), true, false)
        .await
        .unwrap();
    world.settle().await;
    assert!(world.volume(first.id).await.is_none());
    assert!(world.snapshot(snapshot.id).await.is_none());
    assert!(world.backup(backup.id).await.is_none());
    let state = world.test.drivers.state();
    assert!(state.snapshots.is_empty() && state.backups.is_empty());
    assert_eq!(state.volumes.len(), 3);
}

#[tokio::test]
async fn what_fails_is_told_and_leaves_nothing_half_made() {
    let world = World::new().await;
    let (cloud, ctx) = (&world.test.cloud, &world.ctx);
    world.fail("create_volume", full());
    let failed = world.make(Origin::Empty, Some(1)).await;
    assert_eq!(failed.status, Status::Error);
    assert_eq!(world.messages().await, ["VOLUME_VOLUME_008_007"]);
    assert!(world.test.drivers.state().volumes.is_empty());
    volumes::delete(cloud, ctx, &failed.id.to_string(), false, false)
        .await
        .unwrap();
    world.settle().await;
    assert!(world.volume(failed.id).await.is_none());

    let volume = world.make(Origin::Empty, Some(1)).await;
    let id = volume.id.to_string();
    world.fail("snapshot_volume", full());
    assert_eq!(world.snap(volume.id).await.status, SnapshotStatus::Error);
    world.fail("back_up", full());
    let backup = world.back_up(volume.id).await;
    assert_eq!(backup.status, BackupStatus::Error);
    assert!(backup.fail_reason.is_some());
    assert_eq!(world.volume(volume.id).await.unwrap().status, Status::Available);

    let backup = world.back_up(volume.id).await.id;
    world.fail("restore_backup", DriverError::Failed("damaged".into()));
    backups::restore(cloud, ctx, &backup.to_string(), Some(id.clone()), None)
        .await
        .unwrap();
    world.settle().await;
    assert_eq!(
        world.volume(volume.id).await.unwrap().status,
        Status::ErrorRestoring
    );
    assert_eq!(
        world.backup(backup).await.unwrap().status,
        BackupStatus::Available
    );

    let volume = world.make(Origin::Empty, Some(1)).await;
    world.fail("grow_volume", full());
    actions::extend(cloud, ctx, &volume.id.to_string(), 2, false)
        .await
        .unwrap();
    world.settle().await;
    let row = world.volume(volume.id).await.unwrap();
    assert_eq!(
        (row.status, row.size, row.new_size),
        (Status::ErrorExtending, 1, None)
    );
    world.fail("delete_volume", DriverError::Failed("busy".into()));
    volumes::delete(cloud, ctx, &volume.id.to_string(), false, false)
        .await
        .unwrap();
    world.settle().await;
    assert_eq!(
        world.volume(volume.id).await.unwrap().status,
        Status::ErrorDeleting
    );
    volumes::delete(cloud, ctx, &volume.id.to_string(), false, false)
        .await
        .unwrap();
    world.settle().await;
    assert!(world.volume(volume.id).await.is_none());
}

#[tokio::test]
async fn volumes_grow_are_reverted_restored_and_uploaded() {
    let world = World::new().await;
    let (cloud, ctx) = (&world.test.cloud, &world.ctx);
    let volume = world.make(Origin::Empty, Some(1)).await.id;
    let id = volume.to_string();
    let snapshot = world.snap(volume).await.id;
    actions::revert(cloud, ctx, &id, &snapshot.to_string())
        .await
        .unwrap();
    assert_eq!(world.volume(volume).await.unwrap().status, Status::Reverting);
    world.settle().await;
    assert_eq!(world.volume(volume).await.unwrap().status, Status::Available);
    assert_eq!(
        world.snapshot(snapshot).await.unwrap().status,
        SnapshotStatus::Available
    );

    let backup = world.back_up(volume).await.id.to_string();
    backups::restore(cloud, ctx, &backup, Some(id.clone()), None)
        .await
        .unwrap();
    world.settle().await;
    assert_eq!(world.volume(volume).await.unwrap().status, Status::Available);
    let (_, other) = backups::restore(cloud, ctx, &backup, None, Some("again".into()))
        .await
        .unwrap();
    world.settle().await;
    let other = world.volume(other.id).await.unwrap();
    assert_eq!(
        (other.status, other.name.as_deref()),
        (Status::Available, Some("again"))
    );

    actions::extend(cloud, ctx, &id, 3, false).await.unwrap();
    world.settle().await;
    let row = world.volume(volume).await.unwrap();
    assert_eq!((row.status, row.size), (Status::Available, 3));
    assert_eq!(world.test.drivers.state().volumes[&volume].0, 3 * GIB);

    // A volume of its own, for the sums of its image are made byte by byte.
    let pairs = Pairs::from([("os_distro".to_owned(), "debian".to_owned())]);
    let set = volumes::set_metadata(cloud, ctx, &id, Of::Image, Metadata::Merge(pairs));
    set.await.unwrap();
    let upload = Upload {
        image_name: "from volume".into(),
        force: false,
        visibility: crate::image::Visibility::Private,
        protected: false,
    };
    let (_, image) = actions::upload(cloud, ctx, &other.id.to_string(), upload.clone())
        .await
        .unwrap();
    world.fail("image_from_volume", full());
    world.settle().await;
    assert!(
        crate::image::show(cloud, ctx, image.id).await.is_err(),
        "it is gone"
    );
    assert_eq!(world.volume(other.id).await.unwrap().status, Status::Available);
}

#[tokio::test]
async fn what_is_needed_for_something_else_goes_later() {
    let world = World::new().await;
    let (cloud, ctx) = (&world.test.cloud, &world.ctx);
    let volume = world.make(Origin::Empty, Some(1)).await.id;
    let snapshot = world.snap(volume).await.id;
    let new = NewVolume {
        origin: Origin::Snapshot(snapshot),
        ..NewVolume::default()
    };
    let clone = create(cloud, ctx, new).await.unwrap().id;
    snapshots::delete(cloud, ctx, &snapshot.to_string(), false)
        .await
        .unwrap();
    let waiting = steps::waiting(cloud).await.unwrap();
    let waiting: Vec<Item> = waiting.iter().map(|job| job.item).collect();
    assert_eq!(waiting, [Item::Volume(clone)]);
    world.settle().await;
    assert!(world.snapshot(snapshot).await.is_none());
    assert_eq!(world.volume(clone).await.unwrap().status, Status::Available);
}

#[tokio::test]
async fn a_volume_and_its_snapshots_are_taken_over_within_the_quota() {
    let world = World::new().await;
    let (cloud, ctx, admin) = (&world.test.cloud, &world.ctx, Context::system());
    let eve = world.test.context("eve", "elsewhere", "member").await;
    let volume = world.make(Origin::Empty, Some(2)).await.id;
    world.snap(volume).await;
    let (transfer, key) = transfers::create(cloud, ctx, &volume.to_string(), None, false)
        .await
        .unwrap();
    let id = transfer.id.to_string();
    let limit = async |gigabytes| {
        let limits = BTreeMap::from([("gigabytes".to_owned(), gigabytes)]);
        quotas::update(cloud, &admin, eve.project().unwrap(), limits)
            .await
            .unwrap();
    };
    limit(3).await;
    let refused = transfers::accept(cloud, &eve, &id, &key).await;
    assert!(matches!(refused, Err(Error::QuotaExceeded(_))), "{refused:?}");
    let row = world.volume(volume).await.unwrap();
    assert_eq!(
        (row.project_id.as_str(), row.status),
        (ctx.project().unwrap(), Status::AwaitingTransfer)
    );
    limit(4).await;
    transfers::accept(cloud, &eve, &id, &key).await.unwrap();
    let row = world.volume(volume).await.unwrap();
    assert_eq!(row.project_id, eve.project().unwrap());
}

#[tokio::test]
async fn a_volume_gets_a_type_that_its_project_has_room_for() {
    let world = World::new().await;
    let (cloud, ctx, admin) = (&world.test.cloud, &world.ctx, Context::system());
    types::create(cloud, &admin, "gold".into(), None, true, Pairs::new())
        .await
        .unwrap();
    let volume = world.make(Origin::Empty, Some(2)).await.id.to_string();
    // The project has as many volumes as it may have: of this type it has none.
    for (number, gigabytes, fits) in [(0, -1, false), (1, 1, false), (1, 2, true)] {
        let limits = [
            ("volumes", 1),
            ("volumes_gold", number),
            ("gigabytes_gold", gigabytes),
        ];
        let limits = BTreeMap::from(limits.map(|(name, limit)| (name.to_owned(), limit)));
        quotas::update(cloud, &admin, ctx.project().unwrap(), limits)
            .await
            .unwrap();
        let asked = actions::retype(cloud, ctx, &volume, "gold").await;
        if fits {
            asked.unwrap();
        } else {
            assert!(matches!(asked, Err(Error::QuotaExceeded(_))), "{asked:?}");
        }
    }
}

#[tokio::test]
async fn a_backup_is_free_again_when_what_it_is_read_into_goes() {
    let world = World::new().await;
    let (cloud, ctx, admin) = (&world.test.cloud, &world.ctx, Context::system());
    let volume = world.make(Origin::Empty, Some(1)).await.id;
    let backup = world.back_up(volume).await.id;
    for into in [Some(volume.to_string()), None] {
        let (_, target) = backups::restore(cloud, ctx, &backup.to_string(), into, None)
            .await
            .unwrap();
        assert_eq!(
            world.backup(backup).await.unwrap().status,
            BackupStatus::Restoring
        );
        volumes::delete(cloud, &admin, &target.id.to_string(), false, true)
            .await
            .unwrap();
        world.settle().await;
        assert!(world.volume(target.id).await.is_none());
        assert_eq!(
            world.backup(backup).await.unwrap().status,
            BackupStatus::Available
        );
    }
}

#[tokio::test]
async fn no_image_waits_for_a_volume_that_is_removed() {
    let world = World::new().await;
    let (cloud, ctx, admin) = (&world.test.cloud, &world.ctx, Context::system());
    let volume = world.make(Origin::Empty, Some(1)).await.id.to_string();
    let upload = Upload {
        image_name: "from volume".into(),
        force: false,
        visibility: crate::image::Visibility::Private,
        protected: false,
    };
    let (_, image) = actions::upload(cloud, ctx, &volume, upload).await.unwrap();
    volumes::delete(cloud, &admin, &volume, false, true)
        .await
        .unwrap();
    world.settle().await;
    let left = crate::image::show(cloud, ctx, image.id).await;
    assert!(left.is_err(), "{left:?}");
}

#[tokio::test]
async fn a_volume_does_not_grow_while_it_is_read() {
    let world = World::new().await;
    let (cloud, ctx) = (&world.test.cloud, &world.ctx);
    let volume = world.make(Origin::Empty, Some(1)).await.id;
    let id = volume.to_string();
    let new = NewVolume {
        origin: Origin::Volume(volume),
        ..NewVolume::default()
    };
    let clone = create(cloud, ctx, new).await.unwrap().id;
    let refused = actions::extend(cloud, ctx, &id, 2, false).await;
    assert!(matches!(refused, Err(Error::BadRequest(_))), "{refused:?}");
    world.settle().await;
    assert_eq!(world.volume(clone).await.unwrap().status, Status::Available);
    let made = snapshots::create(cloud, ctx, &id, None, None, Pairs::new(), false).await;
    let refused = actions::extend(cloud, ctx, &id, 2, false).await;
    assert!(matches!(refused, Err(Error::BadRequest(_))), "{refused:?}");
    world.settle().await;
    actions::extend(cloud, ctx, &id, 2, false).await.unwrap();
    world.settle().await;
    assert_eq!(world.volume(volume).await.unwrap().size, 2);
    let of_snapshot = world.make(Origin::Snapshot(made.unwrap().id), None).await;
    assert_eq!((of_snapshot.status, of_snapshot.size), (Status::Available, 1));
}

#[tokio::test]
async fn attachments_go_through_their_states() {
    let world = World::new().await;
    let volume = world.make(Origin::Empty, Some(1)).await.id;
    let (server, other) = (Uuid::new_v4(), Uuid::new_v4());
    let (cloud, ctx) = (&world.test.cloud, world.ctx.clone());
    let place = Place::of(cloud);
    let check = cloud.store.write("test", move |conn| {
        let status = |conn| row::get(conn, volume).map(|v| v.map(|v| v.status));
        let reserved = attachments::reserve(conn, &ctx, volume, Some(server))?;
        assert_eq!(status(conn)?, Some(Status::Reserved));
        assert!(attachments::reserve(conn, &ctx, volume, Some(other)).is_err());
        attachments::roll_back(conn, reserved.id)?;
        attachments::roll_back(conn, reserved.id)?;
        assert_eq!(status(conn)?, Some(Status::Available));

        let reserved = attachments::reserve(conn, &ctx, volume, Some(server))?;
        assert!(
            attachments::begin_detach(conn, volume, server).is_err(),
            "not attached yet"
        );
        attachments::attaching(conn, reserved.id, None)?;
        assert_eq!(status(conn)?, Some(Status::Attaching));
        for _ in 0..2 {
            attachments::attached(conn, reserved.id, Some("/dev/vdb"), Some("node1"))?;
        }
        assert_eq!(status(conn)?, Some(Status::InUse));
        let found = attachments::of_server(conn, server)?;
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].device.as_deref(), found[0].bytes),
            (Some("/dev/vdb"), GIB)
        );
        assert_eq!(found[0].volume, volume);
        attachments::begin_detach(conn, volume, server)?;
        assert_eq!(status(conn)?, Some(Status::Detaching));
        attachments::roll_detaching(conn, volume, server)?;
        assert_eq!(status(conn)?, Some(Status::InUse));
        attachments::begin_detach(conn, volume, server)?;
        for _ in 0..2 {
            attachments::detached(conn, volume, server)?;
        }
        assert_eq!(status(conn)?, Some(Status::Available));
        assert!(attachments::of_volume(conn, volume)?.is_empty());

        let new = NewVolume {
            size: Some(1),
            ..NewVolume::default()
        };
        create_for_server(conn, &ctx, &place, &new, server)
    });
    let made = check.await.unwrap();
    assert_eq!(
        (made.status, made.volume_status),
        (AttachStatus::Reserved, Status::Creating)
    );
    world.settle().await;
    assert_eq!(world.volume(made.volume).await.unwrap().status, Status::Reserved);
}

#[tokio::test]
async fn the_loop_wakes_on_writes() {
    let world = World::new().await;
    let mut events = world.test.cloud.store.subscribe();
    let handle = super::spawn(world.test.cloud.clone());
    let new = NewVolume {
        size: Some(1),
        ..NewVolume::default()
    };
    let made = create(&world.test.cloud, &world.ctx, new).await.unwrap();
    while world.volume(made.id).await.unwrap().status != Status::Available {
        events.recv().await.unwrap();
    }
    handle.abort();
}

#[tokio::test]
async fn whoever_has_much_read_does_not_stop_the_others() {
    let world = World::new().await;
    let (cloud, ctx) = (&world.test.cloud, &world.ctx);
    let eve = world.test.context("eve", "elsewhere", "member").await;
    let mut volumes = Vec::new();
    for _ in 0..6 {
        volumes.push(world.make(Origin::Empty, Some(1)).await.id.to_string());
    }
    world.test.drivers.state().hang = true;
    for volume in &volumes[..4] {
        let upload = Upload {
            image_name: "from volume".into(),
            force: false,
            visibility: crate::image::Visibility::Private,
            protected: false,
        };
        actions::upload(cloud, ctx, volume, upload).await.unwrap();
    }
    for volume in &volumes[4..] {
        let new = NewBackup {
            volume: volume.clone(),
            ..NewBackup::default()
        };
        backups::create(cloud, ctx, new).await.unwrap();
    }
    let mut events = cloud.store.subscribe();
    let handle = super::spawn(cloud.clone());
    let new = NewVolume {
        size: Some(1),
        ..NewVolume::default()
    };
    let theirs = create(cloud, &eve, new).await.unwrap().id;
    let wait = async {
        while world.volume(theirs).await.unwrap().status != Status::Available {
            events.recv().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
    let new = NewBackup {
        volume: theirs.to_string(),
        ..NewBackup::default()
    };
    backups::create(cloud, &eve, new).await.unwrap();
    // One at a time of each project.
    let reads = || {
        let state = world.test.drivers.state();
        let long = |call: &&String| call.starts_with("back_up") || call.starts_with("image_from_volume");
        state.calls.iter().filter(long).count()
    };
    let wait = async {
        while reads() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
    assert_eq!(reads(), 2);
    handle.abort();
}
