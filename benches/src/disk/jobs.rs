//! What is read and written, by a guest's driver and by a program on the host.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::driver::{Driver, Options, T_IN, T_OUT};
use crate::fio::{self, Access};

const SECONDS: u64 = 2;

/// A kind of access.
pub(super) struct Job {
    pub(super) name: &'static str,
    /// fio's word.
    pattern: &'static str,
    bytes: usize,
    depth: usize,
    kind: u32,
    random: bool,
    /// Rates are in it.
    pub(super) unit: &'static str,
}

pub(super) const JOBS: [Job; 4] = [
    Job {
        name: "read.4k",
        pattern: "randread",
        bytes: 4096,
        depth: 32,
        kind: T_IN,
        random: true,
        unit: "/s",
    },
    Job {
        name: "write.4k",
        pattern: "randwrite",
        bytes: 4096,
        depth: 32,
        kind: T_OUT,
        random: true,
        unit: "/s",
    },
    Job {
        name: "read.8m",
        pattern: "read",
        bytes: 8 << 20,
        depth: 4,
        kind: T_IN,
        random: false,
        unit: "MB/s",
    },
    Job {
        name: "write.8m",
        pattern: "write",
        bytes: 8 << 20,
        depth: 4,
        kind: T_OUT,
        random: false,
        unit: "MB/s",
    },
];

impl Job {
    /// In the job's unit: requests, or 10^6 bytes, per second.
    fn rate(&self, requests: f64, seconds: f64) -> f64 {
        match self.unit {
            "/s" => requests / seconds,
            _ => requests * self.bytes as f64 / 1e6 / seconds,
        }
    }
}

/// Xorshift: the next number.
pub(super) fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A guest's driver at this socket, for a while.
pub(super) fn drive(job: &Job, socket: &Path, size: u64) -> Result<f64> {
    let mut driver = Driver::new(
        socket,
        Options {
            inflight: false,
            data: job.bytes,
            ..Options::default()
        },
    );
    let places = size / job.bytes as u64;
    let (mut state, mut next) = (0x9e3779b97f4a7c15, 0);
    let start = Instant::now();
    let end = start + Duration::from_secs(SECONDS);
    let mut ended = 0u64;
    loop {
        let mut added = 0;
        while driver.in_flight() < job.depth
            && Instant::now() < end
            && let Some(slot) = driver.free_slot(0)
        {
            let place = if job.random {
                random(&mut state) % places
            } else {
                next = (next + 1) % places;
                next
            };
            let sector = place * (job.bytes as u64 / 512);
            driver.submit(0, slot, job.kind, sector, u32::try_from(job.bytes)?);
            added += 1;
        }
        if added > 0 {
            driver.kick(0, added);
        }
        if driver.in_flight() == 0 {
            break;
        }
        let done = driver.next();
        ensure!(done.status == 0, "a request failed: {done:?}");
        ended += 1;
        while let Some(done) = driver.poll(0) {
            ensure!(done.status == 0, "a request failed: {done:?}");
            ended += 1;
        }
    }
    Ok(job.rate(ended as f64, start.elapsed().as_secs_f64()))
}

/// The same by a program on the host.
pub(super) fn fio(job: &Job, file: &Path) -> Result<f64> {
    let access = Access {
        pattern: job.pattern,
        bytes: job.bytes as u64,
        depth: u32::try_from(job.depth)?,
        seconds: SECONDS,
    };
    Ok(job.rate(fio::rate(access, file)?, 1.0))
}
