//! Volumes: reads and writes by a guest's driver over vhost-user-blk, in the clear and encrypted, before and after a snapshot, beside
//! io_uring on the same file and `qemu-storage-daemon`; and how long a snapshot and a clone take.
//!
//! The driver is the one of the tests: it has its own thread, sleeps until it is interrupted, and rings where it is asked to. The
//! pool is a loop-backed XFS, for all alike.

mod clones;
#[path = "../../../src/disk/tests/driver/mod.rs"]
mod driver;
mod jobs;
mod owner;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use disk::pool::{Pool, PoolOptions};
use model::disk::DiskKey;
use uuid::Uuid;

use crate::figure::Figure;
use crate::measure::{least, median, most};
use jobs::{JOBS, Job};
use owner::Owner;

const TURNS: usize = 3;
/// The volume's size: more than any cache between, and written, so that no read is one of a hole.
const SIZE: u64 = 1 << 30;
const POOL: u64 = 8 << 30;
/// Blocks of 4 KiB that are written at random places after the snapshot.
const SCATTERED: u64 = 16384;

/// A volume, and what is in front of it.
struct Volume {
    id: Uuid,
    key: Option<DiskKey>,
}

/// All figures.
///
/// # Errors
/// If the pool, a volume or a peer cannot be made, or a request fails.
pub fn run() -> Result<()> {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let pool = Pool::open_or_create(&PoolOptions {
        path: folder.path().join("pool"),
        file_size: Some(POOL),
        preallocate: true,
    })?;
    let measured = figures(&pool, folder.path());
    pool.close()?;
    measured
}

fn figures(pool: &Pool, folder: &Path) -> Result<()> {
    let plain = Volume {
        id: Uuid::from_u128(1),
        key: None,
    };
    let mut secret = [0; 64];
    File::open("/dev/urandom")?.read_exact(&mut secret)?;
    let key = DiskKey {
        lineage: Uuid::from_u128(3),
        data: *secret.first_chunk().context("a key")?,
        tweak: *secret.last_chunk().context("a key")?,
    };
    let sealed = Volume {
        id: Uuid::from_u128(2),
        key: Some(key),
    };
    for volume in [&plain, &sealed] {
        let lineage = volume.key.as_ref().map(|key| key.lineage);
        pool.create_volume(volume.id, SIZE, lineage)?;
        fill(&pool.open_volume(volume.id, false, false)?)?;
    }
    for state in [State::Fresh, State::Snapshot] {
        for job in &JOBS {
            compare(pool, folder, state, job, &plain, &sealed)?;
        }
    }
    clones::run(pool)
}

/// What a volume has behind it.
#[derive(Clone, Copy)]
enum State {
    Fresh,
    /// A snapshot shares its blocks, but for some that were overwritten since.
    Snapshot,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Fresh => "fresh",
            State::Snapshot => "snapshot",
        }
    }

    /// Before each measurement, for whoever writes to a shared block first pays for all.
    fn prepare(self, pool: &Pool, volume: Uuid) -> Result<()> {
        if let State::Snapshot = self {
            let snapshot = Uuid::from_u128(volume.as_u128() + 10);
            pool.delete_snapshot(snapshot)?;
            pool.snapshot_volume(volume, snapshot)?;
            scatter(&pool.open_volume(volume, false, false)?)?;
        }
        Ok(())
    }
}

/// One job, turn by turn.
fn compare(
    pool: &Pool,
    folder: &Path,
    state: State,
    job: &Job,
    plain: &Volume,
    sealed: &Volume,
) -> Result<()> {
    let (mut ours, mut encrypted, mut file, mut peer) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        state.prepare(pool, plain.id)?;
        file.push(jobs::fio(job, &pool.volume_path(plain.id))?);
        state.prepare(pool, plain.id)?;
        ours.push(by_owner(pool, folder, job, plain)?);
        state.prepare(pool, sealed.id)?;
        encrypted.push(by_owner(pool, folder, job, sealed)?);
        state.prepare(pool, plain.id)?;
        peer.push(owner::storage_daemon(
            folder,
            &pool.volume_path(plain.id),
            |socket| jobs::drive(job, socket, SIZE),
        )?);
    }
    let name = format!("disk.{}.{}", state.name(), job.name);
    let figure = |name: &str, rates: &[f64]| Figure::new(name, median(rates.to_vec()), job.unit);
    let raw = median(file);
    figure(&name, &ours).versus("io_uring", raw).report()?;
    for (end, of) in [("least", least as fn(&[f64]) -> f64), ("most", most)] {
        Figure::new(&format!("{name}.{end}"), of(&ours), job.unit).report()?;
    }
    figure(&format!("{name}.encrypted"), &encrypted)
        .versus("io_uring, not encrypted", raw)
        .report()?;
    figure(&format!("{name}.qemu-storage-daemon"), &peer)
        .versus("io_uring", raw)
        .report()
}

fn by_owner(pool: &Pool, folder: &Path, job: &Job, volume: &Volume) -> Result<f64> {
    let owner = Owner::start(pool, folder, volume.id, volume.key.clone())?;
    let rate = jobs::drive(job, owner.socket(), SIZE);
    owner.stop()?;
    rate
}

fn fill(file: &File) -> Result<()> {
    let mut block = vec![0; 1 << 20];
    File::open("/dev/urandom")?.read_exact(&mut block)?;
    for at in 0..SIZE >> 20 {
        file.write_all_at(&block, at << 20)?;
    }
    Ok(file.sync_all()?)
}

/// Overwrites blocks here and there, which a snapshot shares: each becomes an extent of its own.
fn scatter(file: &File) -> Result<()> {
    let mut block = [0; 4096];
    File::open("/dev/urandom")?.read_exact(&mut block)?;
    let mut state = 88172645463325252u64;
    for _ in 0..SCATTERED {
        file.write_all_at(&block, (jobs::random(&mut state) % (SIZE >> 12)) << 12)?;
    }
    ensure!(file.metadata()?.len() == SIZE, "the volume has another size");
    Ok(file.sync_all()?)
}

/// A socket is there, too.
fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}
