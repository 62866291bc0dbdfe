//! Reads by a guest, beside those of a program on the host from the same file, past the host's page cache on both sides. The
//! guest polls from ring 3, which runs on the processor everywhere.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::guests;
use super::monitors::{Machine, ours};
use super::running::Running;
use crate::figure::Figure;
use crate::fio::{self, Access};
use crate::measure::{least, median, most};

const TURNS: usize = 7;
const SECONDS: u64 = 3;
/// The file. It is written, not only sized: what was never written is read without the disk.
const FILE: u64 = 1 << 30;
const LIMIT: Duration = Duration::from_secs(60);

/// What is read, and how.
struct Job {
    name: &'static str,
    /// For the guest, and for fio.
    command: &'static str,
    pattern: &'static str,
    bytes: u64,
    depth: u32,
    /// A figure's unit: a request is one of it.
    unit: &'static str,
}

const JOBS: [Job; 2] = [
    Job {
        name: "vmm.block.iops",
        command: "iops",
        pattern: "randread",
        bytes: 4096,
        depth: 32,
        unit: "/s",
    },
    Job {
        name: "vmm.block.mbps",
        command: "mbps",
        pattern: "read",
        bytes: 1 << 20,
        depth: 8,
        unit: "MiB/s",
    },
];

/// Both jobs, turn by turn.
pub fn run(folder: &Path) -> Result<()> {
    let file = folder.join("disk.raw");
    fill(&file)?;
    let kernel = guests::driver(folder);
    for job in &JOBS {
        let machine = Machine {
            kernel: kernel.clone(),
            line: format!("{} {} {SECONDS}s", job.command, job.depth),
            // 32 MiB and a buffer for each request.
            memory_mib: 64,
            disk: Some(file.clone()),
            ..Machine::default()
        };
        let (mut guest, mut host) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            host.push(by_host(job, &file)?);
            guest.push(by_guest(job, &machine, folder)?);
        }
        let figure = |name: &str, of: fn(&[f64]) -> f64| {
            Figure::new(&format!("{}{name}", job.name), of(&guest), job.unit)
                .versus("io_uring", of(&host))
                .report()
        };
        figure("", |rates| median(rates.to_vec()))?;
        // How far the turns are apart.
        figure(".least", least)?;
        figure(".most", most)?;
    }
    fs::remove_file(file)?;
    Ok(())
}

fn fill(path: &Path) -> Result<()> {
    let mut block = vec![0; 1 << 20];
    File::open("/dev/urandom")?.read_exact(&mut block)?;
    let mut file = File::create(path)?;
    for _ in 0..FILE >> 20 {
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}

/// Requests per second of a program on the host.
fn by_host(job: &Job, file: &Path) -> Result<f64> {
    let access = Access {
        pattern: job.pattern,
        bytes: job.bytes,
        depth: job.depth,
        seconds: SECONDS,
    };
    fio::rate(access, file)
}

/// The guest's requests per second.
fn by_guest(job: &Job, machine: &Machine, folder: &Path) -> Result<f64> {
    let mut running = Running::start(ours().command(machine, folder)?)?;
    running.says("errors ", LIMIT)?;
    if !running.said().ends_with('\n') {
        running.says("\n", LIMIT)?;
    }
    let said = running.said();
    let line = said.lines().find_map(|line| line.strip_prefix(job.command));
    let rate = rate(line.with_context(|| format!("the guest says {said:?}"))?)?;
    Ok(rate)
}

/// Requests per second, from ` requests N bytes N cycles N khz N bells N errors N`.
fn rate(line: &str) -> Result<f64> {
    let words: Vec<_> = line.split_whitespace().collect();
    let figures: BTreeMap<_, _> = words.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    let figure = |name| -> Result<f64> {
        let value = figures
            .get(name)
            .with_context(|| format!("no {name} in {line}"))?;
        Ok(value.parse()?)
    };
    ensure!(figure("errors")? == 0.0 && figure("requests")? > 0.0, "{line}");
    Ok(figure("requests")? * figure("khz")? * 1e3 / figure("cycles")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_requests_by_time() {
        let line = " requests 3000 bytes 4096 cycles 2000000 khz 2000 bells 7 errors 0";
        assert_eq!(rate(line).unwrap(), 3000.0);
        assert!(rate(&line.replace("errors 0", "errors 1")).is_err());
        assert!(rate(" requests 0").is_err());
    }
}
