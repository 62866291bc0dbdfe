//! Which key is there, for how long, and for whom.

use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::driver::{DiskKeys, VolumeSource};
use crate::testing::{TestCloud, cloud};
use crate::{Cloud, Error};

const GIB: u64 = 1 << 30;

/// A cloud with two projects.
async fn world() -> (TestCloud, String, String) {
    let test = cloud().await;
    test.token("a", "first", "member").await;
    test.token("b", "second", "member").await;
    let id = |name: &'static str| {
        test.cloud.store.read(move |conn| {
            Ok::<String, Error>(
                conn.query_row("SELECT id FROM projects WHERE name = ?1", [name], |row| {
                    row.get(0)
                })?,
            )
        })
    };
    let (first, second) = (id("first").await.unwrap(), id("second").await.unwrap());
    (test, first, second)
}

fn keyring(cloud: &Cloud) -> Keyring {
    Keyring::new(cloud.store.clone(), cloud.identity.clone())
}

impl TestCloud {
    fn lineage(&self, file: Uuid) -> Option<Uuid> {
        self.drivers.state().lineages.get(&file).copied()
    }

    async fn volume(&self, project: &str, source: VolumeSource) -> Uuid {
        let id = Uuid::new_v4();
        create_volume(&self.cloud, project, id, GIB, source)
            .await
            .unwrap();
        id
    }

    async fn key(&self, lineage: Uuid) -> Option<[u8; 32]> {
        let key = keyring(&self.cloud).disk_key(lineage, "test").await.ok()?;
        assert_eq!(key.lineage, lineage);
        assert_ne!(key.data, key.tweak);
        Some(key.data)
    }

    async fn encrypted(&self, file: Uuid) -> bool {
        self.cloud
            .store
            .read(move |conn| is_encrypted(conn, file))
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn what_shares_blocks_shares_a_key_and_nothing_else_does() {
    let (test, first, second) = world().await;
    let image = Uuid::new_v4();
    let a = test.volume(&first, VolumeSource::Image(image)).await;
    let b = test.volume(&first, VolumeSource::Image(image)).await;
    let theirs = test.volume(&second, VolumeSource::Image(image)).await;
    let empty = test.volume(&first, VolumeSource::Empty).await;
    let other = test.volume(&first, VolumeSource::Empty).await;
    let clone = test.volume(&first, VolumeSource::Volume(empty)).await;
    let lineage = |file| test.lineage(file).unwrap();
    assert_eq!(lineage(a), lineage(b));
    assert_eq!(lineage(clone), lineage(empty));
    let mut all = vec![lineage(a), lineage(theirs), lineage(empty), lineage(other)];
    let mut keys = Vec::new();
    for lineage in &all {
        keys.push(test.key(*lineage).await.unwrap());
    }
    all.sort_unstable();
    all.dedup();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!((all.len(), keys.len()), (4, 4));
    // The same again, as after a crash.
    create_volume(&test.cloud, &first, a, GIB, VolumeSource::Image(image))
        .await
        .unwrap();
    create_volume(&test.cloud, &first, empty, GIB, VolumeSource::Empty)
        .await
        .unwrap();
    assert_eq!(test.lineage(empty), Some(lineage(clone)));
}

#[tokio::test]
async fn a_key_goes_with_the_last_that_needs_it_and_not_before() {
    let (test, first, _) = world().await;
    let cloud = &test.cloud;
    let volume = test.volume(&first, VolumeSource::Empty).await;
    let lineage = test.lineage(volume).unwrap();
    let (snapshot, backup) = (Uuid::new_v4(), Uuid::new_v4());
    snapshot_volume(cloud, volume, snapshot).await.unwrap();
    back_up(cloud, VolumeSource::Snapshot(snapshot), backup)
        .await
        .unwrap();
    delete_volume(cloud, volume).await.unwrap();
    assert!(test.key(lineage).await.is_some() && !test.encrypted(volume).await);
    delete_snapshot(cloud, snapshot).await.unwrap();
    assert!(test.key(lineage).await.is_some() && test.encrypted(backup).await);
    // The bytes go first: as long as they are there, so is the key.
    let failure = crate::driver::DriverError::Failed("a disk".into());
    test.drivers.state().fail.push(("delete_backup", failure));
    delete_backup(cloud, backup).await.unwrap_err();
    assert!(test.key(lineage).await.is_some());
    delete_backup(cloud, backup).await.unwrap();
    assert!(test.key(lineage).await.is_none());
    let calls = test.drivers.state().calls.clone();
    assert_eq!(calls.last().unwrap(), &format!("delete_lineage {lineage}"));
}

#[tokio::test]
async fn restoring_and_reverting_take_the_key_of_what_was_kept() {
    let (test, first, _) = world().await;
    let cloud = &test.cloud;
    let old = test.volume(&first, VolumeSource::Empty).await;
    let (snapshot, backup) = (Uuid::new_v4(), Uuid::new_v4());
    snapshot_volume(cloud, old, snapshot).await.unwrap();
    back_up(cloud, VolumeSource::Volume(old), backup).await.unwrap();
    let volume = test.volume(&first, VolumeSource::Empty).await;
    let own = test.lineage(volume).unwrap();
    restore_backup(cloud, backup, volume).await.unwrap();
    assert_eq!(test.lineage(volume), test.lineage(old));
    assert!(test.key(own).await.is_none(), "nothing of its own is left");
    // One that fails leaves both keys: which bytes are there is not known.
    let third = test.volume(&first, VolumeSource::Empty).await;
    let failure = crate::driver::DriverError::Failed("a disk".into());
    test.drivers.state().fail.push(("revert_volume", failure));
    revert_volume(cloud, third, snapshot).await.unwrap_err();
    for lineage in [test.lineage(third).unwrap(), test.lineage(old).unwrap()] {
        assert!(test.key(lineage).await.is_some());
    }
    revert_volume(cloud, third, snapshot).await.unwrap();
    assert_eq!(test.lineage(third), test.lineage(old));
    // The kept key goes only with all of them.
    for volume in [old, volume, third] {
        delete_volume(cloud, volume).await.unwrap();
    }
    let lineage = test.lineage(snapshot).unwrap();
    delete_snapshot(cloud, snapshot).await.unwrap();
    assert!(test.key(lineage).await.is_some());
    delete_backup(cloud, backup).await.unwrap();
    assert!(test.key(lineage).await.is_none());
}

#[tokio::test]
async fn keys_above_data_keys_are_exchanged_and_data_keys_stay() {
    let (test, first, second) = world().await;
    let cloud = &test.cloud;
    let mut lineages = Vec::new();
    for project in [&first, &first, &second] {
        let volume = test.volume(project, VolumeSource::Empty).await;
        lineages.push(test.lineage(volume).unwrap());
    }
    let rows = || {
        cloud.store.read(|conn| {
            let mut all = Vec::new();
            for sql in [
                "SELECT wrapped FROM encryption_domains",
                "SELECT wrapped FROM encryption_projects ORDER BY project_id",
                "SELECT wrapped FROM encryption_lineages ORDER BY lineage",
            ] {
                let mut sql = conn.prepare(sql)?;
                let rows = sql.query_map([], |row| row.get::<_, Vec<u8>>(0))?;
                all.push(rows.collect::<std::result::Result<Vec<_>, _>>()?);
            }
            Ok::<_, Error>(all)
        })
    };
    let mut keys = Vec::new();
    for lineage in &lineages {
        keys.push(test.key(*lineage).await.unwrap());
    }
    let before = rows().await.unwrap();
    assert_eq!(before.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 3]);
    rotate_project(cloud, &first).await.unwrap();
    let after = rows().await.unwrap();
    let differ = |a: &[Vec<u8>], b: &[Vec<u8>]| a.iter().zip(b).filter(|(a, b)| a != b).count();
    assert_eq!(
        [0, 1, 2].map(|level| differ(&before[level], &after[level])),
        [0, 1, 2]
    );
    rotate_domain(cloud, "default").await.unwrap();
    let last = rows().await.unwrap();
    assert_eq!(
        [0, 1, 2].map(|level| differ(&after[level], &last[level])),
        [1, 2, 0]
    );
    for (lineage, key) in lineages.iter().zip(keys) {
        assert_eq!(test.key(*lineage).await.unwrap(), key);
    }
    for unknown in ["nobody", ""] {
        rotate_project(cloud, unknown).await.unwrap_err();
        rotate_domain(cloud, unknown).await.unwrap_err();
    }
}

#[tokio::test]
async fn old_keys_are_exchanged_by_themselves() {
    let (mut test, first, _) = world().await;
    let volume = test.volume(&first, VolumeSource::Empty).await;
    let store = test.cloud.store.clone();
    let versions = || {
        store.read(|conn| {
            let sql =
                "SELECT (SELECT max(version) FROM encryption_domains), max(version) FROM encryption_projects";
            Ok::<(i64, i64), Error>(conn.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?)
        })
    };
    super::upkeep::exchange_old(&test.cloud).await.unwrap();
    assert_eq!(versions().await.unwrap(), (1, 1));
    test.cloud = std::sync::Arc::new(Cloud {
        store: test.cloud.store.clone(),
        config: crate::Config {
            key_lifetime: Duration::ZERO,
            ..test.cloud.config.clone()
        },
        drivers: test.cloud.drivers.clone(),
        identity: test.cloud.identity.clone(),
        workers: Default::default(),
    });
    super::upkeep::exchange_old(&test.cloud).await.unwrap();
    assert_eq!(versions().await.unwrap(), (2, 2));
    assert!(test.key(test.lineage(volume).unwrap()).await.is_some());
}

#[tokio::test]
async fn a_volume_that_goes_to_another_project_takes_its_key_along() {
    let (test, first, second) = world().await;
    let cloud = &test.cloud;
    let image = Uuid::new_v4();
    let moves = test.volume(&first, VolumeSource::Image(image)).await;
    let stays = test.volume(&first, VolumeSource::Image(image)).await;
    let lineage = test.lineage(moves).unwrap();
    let (identity, to) = (cloud.identity.clone(), second.clone());
    cloud
        .store
        .write("test", move |conn| transfer(conn, &identity, moves, &to))
        .await
        .unwrap();
    // The old project goes, with its keys: what it has left cannot be read by its key, what moved can.
    let gone = first.clone();
    cloud
        .store
        .write("test", move |conn| remove_of_project(conn, &gone))
        .await
        .unwrap();
    assert!(test.key(lineage).await.is_some() && test.encrypted(moves).await);
    assert!(!test.encrypted(stays).await);
    delete_volume(cloud, moves).await.unwrap();
    assert!(test.key(lineage).await.is_none());
}

#[tokio::test]
async fn an_images_key_stays_for_a_while_for_what_comes_next_of_it() {
    let (test, first, _) = world().await;
    let cloud = &test.cloud;
    let image = Uuid::new_v4();
    let volume = test.volume(&first, VolumeSource::Image(image)).await;
    let lineage = test.lineage(volume).unwrap();
    delete_volume(cloud, volume).await.unwrap();
    assert!(test.key(lineage).await.is_some());
    let begin = crate::identity::now() - 1_000_000;
    super::upkeep::sweep(cloud, begin).await.unwrap();
    let next = test.volume(&first, VolumeSource::Image(image)).await;
    assert_eq!(test.lineage(next), Some(lineage), "the same");
    // As long as it is needed it stays, however old it is; then it goes, and the node's image with it.
    let end = crate::identity::now() + 1_000_000;
    super::upkeep::sweep(cloud, end).await.unwrap();
    assert!(test.key(lineage).await.is_some());
    delete_volume(cloud, next).await.unwrap();
    assert!(test.drivers.state().sealed.contains(&lineage));
    super::upkeep::sweep(cloud, end).await.unwrap();
    assert!(test.key(lineage).await.is_none());
    assert!(test.drivers.state().sealed.is_empty());
}

#[tokio::test]
async fn what_a_removed_project_had_on_a_node_goes() {
    let (test, first, _) = world().await;
    let volume = test.volume(&first, VolumeSource::Image(Uuid::new_v4())).await;
    let gone = first.clone();
    test.cloud
        .store
        .write("test", move |conn| remove_of_project(conn, &gone))
        .await
        .unwrap();
    super::upkeep::sweep(&test.cloud, 0).await.unwrap();
    assert!(test.drivers.state().sealed.is_empty());
    delete_volume(&test.cloud, volume).await.unwrap();
}

#[tokio::test]
async fn a_project_without_keys_can_read_nothing_of_what_it_had() {
    let (test, first, second) = world().await;
    let volume = test.volume(&first, VolumeSource::Empty).await;
    let theirs = test.volume(&second, VolumeSource::Empty).await;
    let gone = first.clone();
    test.cloud
        .store
        .write("test", move |conn| remove_of_project(conn, &gone))
        .await
        .unwrap();
    assert!(test.key(test.lineage(volume).unwrap()).await.is_none());
    assert!(test.key(test.lineage(theirs).unwrap()).await.is_some());
    // Its bytes can still be removed.
    delete_volume(&test.cloud, volume).await.unwrap();
}

#[tokio::test]
async fn an_operator_may_do_without() {
    let (mut test, first, _) = world().await;
    let encrypted = test.volume(&first, VolumeSource::Empty).await;
    test.cloud = std::sync::Arc::new(Cloud {
        store: test.cloud.store.clone(),
        config: crate::Config {
            encrypt_volumes: false,
            ..test.cloud.config.clone()
        },
        drivers: test.cloud.drivers.clone(),
        identity: test.cloud.identity.clone(),
        workers: Default::default(),
    });
    let plain = test.volume(&first, VolumeSource::Empty).await;
    let clone = test.volume(&first, VolumeSource::Volume(encrypted)).await;
    let copy = test.volume(&first, VolumeSource::Volume(plain)).await;
    assert_eq!(test.lineage(plain), None);
    assert_eq!(test.lineage(copy), None);
    assert_eq!(test.lineage(clone), test.lineage(encrypted));
    assert!(!test.encrypted(plain).await && test.encrypted(clone).await);
}
