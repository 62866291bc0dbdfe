//! Snapshots, clones and backups on a real pool.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use disk::backup::{BackupError, Backups};
use disk::crypt::Cipher;
use disk::pool::{Pool, PoolError, PoolOptions};
use model::disk::{DiskKey, VolumeSource};
use proptest::prelude::*;
use uuid::Uuid;

const SIZE: u64 = 16 << 20;

struct Fixture {
    dir: tempfile::TempDir,
    pool: Option<Pool>,
    backups: Backups,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open_or_create(&PoolOptions {
            path: dir.path().join("pool"),
            file_size: Some(320 << 20),
            preallocate: false,
        })
        .unwrap();
        let backups = Backups::open(&dir.path().join("backups")).unwrap();
        Self {
            pool: Some(pool),
            backups,
            dir,
        }
    }

    fn pool(&self) -> &Pool {
        self.pool.as_ref().unwrap()
    }

    fn volume(&self, size: u64) -> Uuid {
        let id = Uuid::new_v4();
        self.pool().create_volume(id, size, None).unwrap();
        id
    }

    fn write(&self, volume: Uuid, bytes: &[u8], at: u64) {
        let file = self.pool().open_volume(volume, false, false).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    fn bytes(&self, volume: Uuid) -> Vec<u8> {
        fs::read(self.pool().volume_path(volume)).unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.close().unwrap();
        }
    }
}

#[test]
fn snapshots_keep_the_bytes_of_their_moment() {
    let fixture = Fixture::new();
    let pool = fixture.pool();
    let volume = fixture.volume(SIZE);
    fixture.write(volume, b"before", 4096);
    let snapshot = Uuid::new_v4();
    pool.snapshot_volume(volume, snapshot).unwrap();
    fixture.write(volume, b"after!", 4096);
    // Repeated, it does not take a later moment.
    pool.snapshot_volume(volume, snapshot).unwrap();
    let clone = Uuid::new_v4();
    for _ in 0..2 {
        pool.clone_volume(clone, VolumeSource::Snapshot(snapshot), 2 * SIZE, None)
            .unwrap();
    }
    assert_eq!(&fixture.bytes(clone)[4096..4102], b"before");
    assert_eq!(fixture.bytes(clone).len() as u64, 2 * SIZE);
    let copy = Uuid::new_v4();
    pool.clone_volume(copy, VolumeSource::Volume(volume), SIZE, None)
        .unwrap();
    assert_eq!(&fixture.bytes(copy)[4096..4102], b"after!");
    for _ in 0..2 {
        pool.revert_volume(volume, snapshot).unwrap();
    }
    assert_eq!(&fixture.bytes(volume)[4096..4102], b"before");
    let image = Uuid::new_v4();
    let (size, allocated) = pool.image_from_volume(volume, image, None).unwrap();
    assert_eq!(size, SIZE);
    assert!(allocated < SIZE);
    assert_eq!(&fs::read(pool.image_path(image)).unwrap()[4096..4102], b"before");
    assert_eq!(pool.list_snapshots().unwrap(), [snapshot]);
    for _ in 0..2 {
        pool.delete_snapshot(snapshot).unwrap();
    }
    assert_eq!(
        &fixture.bytes(clone)[4096..4102],
        b"before",
        "clones do not need it"
    );
    assert!(matches!(
        pool.clone_volume(Uuid::new_v4(), VolumeSource::Snapshot(snapshot), SIZE, None),
        Err(PoolError::NoSnapshot(_))
    ));
}

fn key(lineage: u128) -> DiskKey {
    DiskKey {
        lineage: Uuid::from_u128(lineage),
        data: [lineage as u8; 32],
        tweak: [!lineage as u8; 32],
    }
}

/// An encrypted volume's life: of an image, snapshots, clones, backups, an image again; always with its own key, and without it never.
#[test]
fn what_is_encrypted_stays_so_wherever_its_bytes_go() {
    let fixture = Fixture::new();
    let pool = fixture.pool();
    let (mine, other) = (key(1), key(2));
    // Data, a hole, data that end within a sector.
    let mut content = vec![0; (3 << 20) + 1000];
    content[..1 << 20].fill(0x5a);
    content[(2 << 20) + 700..].fill(0x5b);
    let image = Uuid::new_v4();
    let draft = pool.draft_image(image).unwrap();
    draft.file().write_all_at(&content, 0).unwrap();
    draft.keep().unwrap();
    content.resize((3 << 20) + 1024, 0);

    let (first, second, theirs) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    for (volume, key) in [(first, &mine), (second, &mine), (theirs, &other)] {
        pool.clone_volume(volume, VolumeSource::Image(image), SIZE, Some(key))
            .unwrap();
        assert_eq!(
            pool.lineage(VolumeSource::Volume(volume)).unwrap(),
            Some(key.lineage)
        );
    }
    assert_eq!(pool.list_sealed().unwrap(), [mine.lineage, other.lineage]);
    let plain = |bytes: &[u8], key: &DiskKey| {
        let mut bytes = bytes.to_vec();
        Cipher::new(key).open(0, &mut bytes);
        bytes
    };
    let bytes = fixture.bytes(first);
    assert!(
        !bytes
            .windows(32)
            .any(|part| part == [0x5a; 32] || part == [0x5b; 32])
    );
    assert!(plain(&bytes, &mine)[..content.len()] == content);
    assert!(bytes == fixture.bytes(second), "clones share blocks");
    assert!(bytes != fixture.bytes(theirs), "other keys, other bytes");
    assert!(plain(&fixture.bytes(theirs), &other)[..content.len()] == content);
    let blocks = fs::metadata(pool.volume_path(first)).unwrap().blocks();
    assert!(blocks * 512 < 3 << 20, "the hole takes space: {blocks}");

    let (snapshot, clone) = (Uuid::new_v4(), Uuid::new_v4());
    pool.snapshot_volume(first, snapshot).unwrap();
    pool.clone_volume(clone, VolumeSource::Snapshot(snapshot), SIZE, Some(&other))
        .unwrap();
    assert_eq!(
        pool.lineage(VolumeSource::Volume(clone)).unwrap(),
        Some(mine.lineage),
        "the snapshot's"
    );
    let backup = Uuid::new_v4();
    fixture
        .backups
        .create(pool, VolumeSource::Snapshot(snapshot), backup)
        .unwrap();
    assert_eq!(fixture.backups.lineage(backup).unwrap(), Some(mine.lineage));
    let stored = fs::read(fixture.backups.path(backup)).unwrap();
    assert!(!stored.windows(32).any(|part| part == [0x5a; 32]));
    // Into a volume of another key: it is of the backup's from then on.
    fixture.backups.restore(pool, backup, theirs).unwrap();
    let lineage = pool.lineage(VolumeSource::Volume(theirs)).unwrap();
    assert_eq!(lineage, Some(mine.lineage));
    assert!(plain(&fixture.bytes(theirs), &mine)[..content.len()] == content);
    fixture.write(clone, &[1; 512], 0);
    pool.revert_volume(clone, snapshot).unwrap();
    assert!(fixture.bytes(clone) == bytes);

    let made = Uuid::new_v4();
    for wrong in [None, Some(&other)] {
        let error = pool.image_from_volume(first, made, wrong).unwrap_err();
        assert!(
            matches!(error, PoolError::NoKey { lineage, .. } if lineage == mine.lineage),
            "{error}"
        );
        assert!(!pool.image_path(made).exists());
    }
    let (size, allocated) = pool.image_from_volume(first, made, Some(&mine)).unwrap();
    assert_eq!(size, SIZE);
    assert!(allocated < 3 << 20, "{allocated}");
    assert!(fs::read(pool.image_path(made)).unwrap()[..content.len()] == content);

    pool.delete_sealed(mine.lineage).unwrap();
    assert_eq!(pool.list_sealed().unwrap(), [other.lineage]);
    assert!(fixture.bytes(first) == bytes);
}

#[test]
fn backups_of_the_first_kind_are_read() {
    let fixture = Fixture::new();
    let volume = fixture.volume(SIZE);
    fixture.write(volume, b"old", 5 << 20);
    let id = Uuid::new_v4();
    fixture
        .backups
        .create(fixture.pool(), VolumeSource::Volume(volume), id)
        .unwrap();
    let path = fixture.backups.path(id);
    let new = fs::read(&path).unwrap();
    let mut old = b"allodbk1".to_vec();
    old.extend(&new[24..new.len() - 32]);
    let sum = <sha2::Sha256 as sha2::Digest>::digest(&old);
    old.extend(sum);
    fs::write(&path, old).unwrap();
    fixture.write(volume, b"new", 5 << 20);
    fixture.backups.restore(fixture.pool(), id, volume).unwrap();
    assert_eq!(fixture.bytes(volume)[5 << 20..][..3], *b"old");
    assert_eq!(fixture.backups.lineage(id).unwrap(), None);
}

#[test]
fn backups_give_back_what_was_there_and_leave_out_zeros() {
    let fixture = Fixture::new();
    let (pool, backups) = (fixture.pool(), &fixture.backups);
    // A last block that is no whole one.
    let volume = fixture.volume(SIZE + 512);
    fixture.write(volume, &[7; 100_000], 300_000);
    fixture.write(volume, &[0; 200_000], 3 << 20);
    fixture.write(volume, b"end", SIZE + 509);
    let before = fixture.bytes(volume);
    let id = Uuid::new_v4();
    let made = backups.create(pool, VolumeSource::Volume(volume), id).unwrap();
    assert_eq!(made.size, SIZE + 512);
    assert!(made.stored < 400_000, "{made:?}");
    assert_eq!(made.stored, fs::metadata(backups.path(id)).unwrap().len());
    fixture.write(volume, &[9; 500_000], 0);
    assert_eq!(
        backups.create(pool, VolumeSource::Volume(volume), id).unwrap(),
        made,
        "not anew"
    );
    assert_eq!(backups.list().unwrap(), [id]);

    for _ in 0..2 {
        backups.restore(pool, id, volume).unwrap();
        assert!(fixture.bytes(volume) == before);
    }
    // What it held before does not show through in a larger one, and holes stay holes.
    let larger = fixture.volume(2 * SIZE);
    fixture.write(larger, &vec![5; 2 * SIZE as usize], 0);
    backups.restore(pool, id, larger).unwrap();
    let bytes = fixture.bytes(larger);
    assert!(bytes[..before.len()] == before[..] && bytes[before.len()..].iter().all(|b| *b == 0));
    let blocks = fs::metadata(pool.volume_path(larger)).unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks}");
    let smaller = fixture.volume(SIZE);
    assert!(matches!(
        backups.restore(pool, id, smaller),
        Err(BackupError::TooLarge { .. })
    ));
    for _ in 0..2 {
        backups.delete(id).unwrap();
    }
    assert!(matches!(
        backups.restore(pool, id, volume),
        Err(BackupError::Missing(_))
    ));
}

#[test]
fn a_damaged_backup_is_refused_and_the_volume_stays() {
    let fixture = Fixture::new();
    let (pool, backups) = (fixture.pool(), &fixture.backups);
    let volume = fixture.volume(SIZE);
    fixture.write(volume, &[7; 100_000], 0);
    let id = Uuid::new_v4();
    backups.create(pool, VolumeSource::Volume(volume), id).unwrap();
    let good = fs::read(backups.path(id)).unwrap();
    fixture.write(volume, &[8; 100], 0);
    let now = fixture.bytes(volume);
    // Every part of it: magic, size, a block's number, a block, the end, the sum; and each length.
    for at in [0, 9, 17, 40_000, good.len() - 36, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        fs::write(backups.path(id), &bad).unwrap();
        assert!(backups.restore(pool, id, volume).is_err(), "byte {at}");
        assert!(fixture.bytes(volume) == now);
    }
    for length in [0, 5, 16, 24, 40_000, good.len() - 32, good.len() - 1] {
        fs::write(backups.path(id), &good[..length]).unwrap();
        let refused = backups.restore(pool, id, volume);
        assert!(
            matches!(refused, Err(BackupError::Damaged(..))),
            "{length}: {refused:?}"
        );
        assert!(fixture.bytes(volume) == now);
    }
    fs::write(backups.path(id), &good).unwrap();
    backups.restore(pool, id, volume).unwrap();
}

#[test]
fn what_was_half_written_is_never_shown() {
    let fixture = Fixture::new();
    let folder = fixture.dir.path().join("backups");
    let id = Uuid::new_v4();
    let draft = folder.join(format!("{id}.draft"));
    File::create(&draft).unwrap();
    assert!(fixture.backups.list().unwrap().is_empty());
    let again = Backups::open(Path::new(&folder)).unwrap();
    assert!(!draft.exists());
    assert!(again.list().unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_volume_comes_back(sectors in 1u64..600, writes in prop::collection::vec((0u64..300_000, 1usize..90_000, any::<u8>()), 0..8)) {
        let fixture = Fixture::new();
        let size = sectors * 512;
        let volume = fixture.volume(size);
        for (at, length, byte) in writes {
            let at = at % size;
            let length = length.min(usize::try_from(size - at).unwrap());
            fixture.write(volume, &vec![byte; length], at);
        }
        let before = fixture.bytes(volume);
        let id = Uuid::new_v4();
        fixture.backups.create(fixture.pool(), VolumeSource::Volume(volume), id).unwrap();
        let other = fixture.volume(size);
        fixture.backups.restore(fixture.pool(), id, other).unwrap();
        prop_assert!(fixture.bytes(other) == before);
    }
}
