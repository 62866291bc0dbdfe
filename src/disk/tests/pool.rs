//! Pools on real filesystems: the loop-mounted XFS that `Pool` makes itself.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use disk::pool::{Pool, PoolError, PoolOptions};
use model::disk::VolumeSource;
use uuid::Uuid;

const FILE_SIZE: u64 = 320 << 20;

/// A pool in a directory of its own, unmounted at the end of the test whatever happens.
struct Fixture {
    dir: tempfile::TempDir,
    pool: Option<Pool>,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open_or_create(&options(dir.path())).unwrap();
        Self {
            dir,
            pool: Some(pool),
        }
    }

    fn pool(&self) -> &Pool {
        self.pool.as_ref().unwrap()
    }

    fn image(&self, bytes: &[u8]) -> Uuid {
        let id = Uuid::new_v4();
        let draft = self.pool().draft_image(id).unwrap();
        draft.file().write_all_at(bytes, 0).unwrap();
        draft.keep().unwrap();
        id
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.close().unwrap();
        }
    }
}

fn options(dir: &Path) -> PoolOptions {
    PoolOptions {
        path: dir.join("pool"),
        file_size: Some(FILE_SIZE),
        preallocate: false,
    }
}

#[test]
fn volumes_live_from_clone_to_delete_and_survive_restarts() {
    let mut fixture = Fixture::new();
    let content: Vec<u8> = (0..8 << 20).map(|i: u32| (i / 4096) as u8 | 1).collect();
    let image = fixture.image(&content);
    let before = fixture.pool().usage().unwrap();
    assert!(before.total > FILE_SIZE / 2 && before.free <= before.total && before.reflinks);

    let id = Uuid::new_v4();
    fixture
        .pool()
        .clone_volume(id, VolumeSource::Image(image), 64 << 20, None)
        .unwrap();
    fixture
        .pool()
        .clone_volume(id, VolumeSource::Image(image), 64 << 20, None)
        .unwrap();
    let used = before.free - fixture.pool().usage().unwrap().free;
    assert!(used < 1 << 20, "a clone shares its blocks: {used} bytes used");

    // The clone is the image followed by zeros, and writing to it leaves the image alone.
    let volume = fixture.pool().open_volume(id, false, false).unwrap();
    let mut read = vec![0; 9 << 20];
    volume.read_exact_at(&mut read, 0).unwrap();
    assert!(read[..content.len()] == content[..] && read[content.len()..].iter().all(|b| *b == 0));
    volume.write_all_at(&[0; 4096], 0).unwrap();
    drop(volume);
    assert!(fs::read(fixture.pool().image_path(image)).unwrap() == content);

    // A mounted pool is taken over; an unmounted one is mounted again.
    fs::write(fixture.pool().path().join("tmp/left"), b"over").unwrap();
    let again = Pool::open_or_create(&options(fixture.dir.path())).unwrap();
    assert_eq!(again.list_volumes().unwrap(), [id]);
    assert_eq!(
        fs::read_dir(again.path().join("tmp")).unwrap().count(),
        0,
        "leftovers go"
    );
    fixture.pool.take().unwrap().close().unwrap();
    assert!(!again.path().join("volumes").exists(), "unmounted");
    fixture.pool = Some(Pool::open_or_create(&options(fixture.dir.path())).unwrap());
    assert_eq!(fixture.pool().volume_size(id).unwrap(), Some(64 << 20));

    fixture.pool().grow_volume(id, 80 << 20).unwrap();
    assert_eq!(fixture.pool().volume_size(id).unwrap(), Some(80 << 20));
    fixture.pool().delete_image(image).unwrap();
    assert!(fixture.pool().list_images().unwrap().is_empty());
    fixture.pool().delete_volume(id).unwrap();
    fixture.pool().delete_volume(id).unwrap();
    assert!(fixture.pool().list_volumes().unwrap().is_empty());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let fixture = Fixture::new();
    let pool = fixture.pool();
    let image = fixture.image(&[1; 1000]);
    assert_eq!(
        fs::metadata(pool.image_path(image)).unwrap().len(),
        1024,
        "images have whole sectors"
    );
    let id = Uuid::new_v4();
    assert!(matches!(
        pool.create_volume(id, 1000, None),
        Err(PoolError::Unaligned(1000))
    ));
    assert!(matches!(
        pool.clone_volume(id, VolumeSource::Image(image), 512, None),
        Err(PoolError::TooSmall { least: 1024, .. })
    ));
    assert!(matches!(
        pool.clone_volume(id, VolumeSource::Image(id), 512, None),
        Err(PoolError::NoImage(_))
    ));
    assert!(matches!(
        pool.open_volume(id, false, false),
        Err(PoolError::NoVolume(_))
    ));
    assert!(matches!(pool.grow_volume(id, 512), Err(PoolError::NoVolume(_))));
    pool.create_volume(id, 1 << 20, None).unwrap();
    assert!(matches!(
        pool.create_volume(id, 2 << 20, None),
        Err(PoolError::Differs { .. })
    ));
    assert!(matches!(
        pool.grow_volume(id, 512),
        Err(PoolError::TooSmall { .. })
    ));
    drop(pool.draft_image(Uuid::new_v4()).unwrap());
    assert_eq!(
        fs::read_dir(pool.path().join("tmp")).unwrap().count(),
        0,
        "an abandoned draft goes"
    );
}

#[test]
fn a_new_volume_never_shows_old_data() {
    let fixture = Fixture::new();
    let pool = fixture.pool();
    let secret = vec![0x5e; 200 << 20];
    let old = Uuid::new_v4();
    pool.create_volume(old, secret.len() as u64, None).unwrap();
    pool.open_volume(old, false, false)
        .unwrap()
        .write_all_at(&secret, 0)
        .unwrap();
    File::open(pool.path()).unwrap().sync_all().unwrap();
    pool.delete_volume(old).unwrap();

    let new = Uuid::new_v4();
    pool.create_volume(new, secret.len() as u64, None).unwrap();
    let file = pool.open_volume(new, false, false).unwrap();
    rustix::fs::fallocate(
        &file,
        rustix::fs::FallocateFlags::empty(),
        0,
        secret.len() as u64 / 2,
    )
    .unwrap();
    let mut read = secret;
    file.read_exact_at(&mut read, 0).unwrap();
    assert!(read.iter().all(|byte| *byte == 0));
}

#[test]
fn a_full_pool_says_so() {
    let fixture = Fixture::new();
    let pool = fixture.pool();
    let draft = pool.draft_image(Uuid::new_v4()).unwrap();
    let full = rustix::fs::fallocate(draft.file(), rustix::fs::FallocateFlags::empty(), 0, FILE_SIZE);
    assert_eq!(full, Err(rustix::io::Errno::NOSPC));
    assert!(pool.usage().unwrap().free > 0);
}

#[test]
fn without_reflinks_and_without_leave_for_a_pool_file_there_is_no_pool() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let none = PoolOptions {
        file_size: None,
        ..options(dir.path())
    };
    assert!(matches!(
        Pool::open_or_create(&none),
        Err(PoolError::NoReflinks(_))
    ));
    assert_eq!(
        fs::metadata(dir.path().join("pool")).unwrap().dev(),
        fs::metadata(dir.path()).unwrap().dev()
    );
}

#[test]
fn nobody_else_reads_a_pool() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new();
    let mode = |name: &str| {
        fs::metadata(fixture.dir.path().join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o077
    };
    assert_eq!((mode("pool"), mode("pool.xfs")), (0, 0));
}

#[test]
fn a_preallocated_pool_file_holds_its_space() {
    let dir = tempfile::tempdir().unwrap();
    let options = PoolOptions {
        preallocate: true,
        ..options(dir.path())
    };
    let pool = Pool::open_or_create(&options).unwrap();
    let blocks = fs::metadata(dir.path().join("pool.xfs")).unwrap().blocks();
    pool.close().unwrap();
    assert!(blocks * 512 >= FILE_SIZE, "{blocks}");
}
