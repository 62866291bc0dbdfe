//! How long a snapshot and a clone take.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use anyhow::Result;
use disk::pool::Pool;
use model::disk::VolumeSource;
use uuid::Uuid;

use super::jobs;
use crate::figure::Figure;
use crate::measure::{least, median, most};

const TURNS: usize = 9;
const SIZE: u64 = 10 << 30;
/// Pieces of 64 KiB that are written here and there: each is an extent, which the clone has to name.
const PIECES: u64 = 16384;

pub(super) fn run(pool: &Pool) -> Result<()> {
    let volume = Uuid::from_u128(100);
    pool.create_volume(volume, SIZE, None)?;
    let file = pool.open_volume(volume, false, false)?;
    let mut piece = vec![0; 64 << 10];
    File::open("/dev/urandom")?.read_exact(&mut piece)?;
    let mut state = 88172645463325252;
    for _ in 0..PIECES {
        file.write_all_at(&piece, (jobs::random(&mut state) % (SIZE >> 16)) << 16)?;
    }
    file.sync_all()?;
    let (mut snapshots, mut clones) = (Vec::new(), Vec::new());
    for turn in 0..TURNS as u128 {
        let (snapshot, clone) = (Uuid::from_u128(200 + turn), Uuid::from_u128(300 + turn));
        let start = Instant::now();
        pool.snapshot_volume(volume, snapshot)?;
        snapshots.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        pool.clone_volume(clone, VolumeSource::Snapshot(snapshot), SIZE, None)?;
        clones.push(start.elapsed().as_secs_f64() * 1e3);
    }
    for (name, times) in [("disk.snapshot.10g", snapshots), ("disk.clone.10g", clones)] {
        Figure::new(name, median(times.clone()), "ms").report()?;
        Figure::new(&format!("{name}.least"), least(&times), "ms").report()?;
        Figure::new(&format!("{name}.most"), most(&times), "ms").report()?;
    }
    Ok(())
}
