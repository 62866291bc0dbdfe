//! What a monitor itself needs of the host's memory, with one disk and one network interface.

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use allod_tests::host;
use allod_tests::netns::Netns;
use anyhow::{Context, Result, ensure};

use super::monitors::{Kind, MEMORY_MIB, Machine, Monitor, found};
use super::running::Running;
use super::{guests, versus_best};
use crate::measure::{Smaps, median};

const TURNS: usize = 3;
/// How long it may go on with its start after the guest's first word.
const REST: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(20);

/// Ours in its jail; the others as they are, in a network namespace of their own.
pub fn run(folder: &Path) -> Result<()> {
    let disk = folder.join("small.raw");
    File::create(&disk)?.set_len(64 << 20)?;
    let machine = Machine {
        kernel: guests::first(folder)?,
        line: "quiet".into(),
        memory_mib: MEMORY_MIB,
        disk: Some(disk),
        tap: Some("bench0".into()),
        ..Machine::default()
    };
    let monitors = found(&[Kind::Firecracker, Kind::CloudHypervisor, Kind::Qemu]);
    let network = Netns::new()?;
    let (mut pss, mut rss) = (vec![Vec::new(); monitors.len()], vec![Vec::new(); monitors.len()]);
    for turn in 0..TURNS {
        for (index, monitor) in monitors.iter().enumerate() {
            let own = folder.join(format!("memory-{turn}-{index}"));
            fs::create_dir(&own)?;
            let beside = beside_guest(monitor, &machine, &own, &network)
                .with_context(|| format!("{}", monitor.kind))?;
            pss[index].push(beside.pss);
            rss[index].push(beside.rss);
        }
    }
    let kinds: Vec<_> = monitors.iter().map(|monitor| monitor.kind).collect();
    let pss: Vec<_> = pss.into_iter().map(median).collect();
    let rss: Vec<_> = rss.into_iter().map(median).collect();
    versus_best("vmm.memory.pss", &kinds, &pss, "MiB")?;
    // What shares pages with other processes of the same program counts in full here.
    versus_best("vmm.memory.rss", &kinds, &rss, "MiB")
}

struct Beside {
    pss: f64,
    rss: f64,
}

/// In MiB, without the guest's memory.
fn beside_guest(monitor: &Monitor, machine: &Machine, folder: &Path, network: &Netns) -> Result<Beside> {
    let start = |command| network.enter(move || Running::start(command));
    let mut running;
    let pid = if monitor.kind == Kind::Allod {
        running = start(monitor.jailed(machine, folder))?;
        let log = folder.join("machine/console.0.log");
        let began = Instant::now();
        while !fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
            ensure!(began.elapsed() < LIMIT, "it says nothing");
            thread::sleep(Duration::from_millis(5));
        }
        let children = host::descendants(running.pid(), &[]);
        let child = children.iter().find(|child| child.command.ends_with(" vmm"));
        child.context("there is no jailed child")?.pid
    } else {
        let mut other = start(monitor.command(machine, folder)?)?;
        other.says("ready", LIMIT)?;
        running = other;
        running.pid()
    };
    thread::sleep(REST);
    let maps = Smaps::of(pid)?;
    let guest = maps
        .guest(machine.memory_mib << 10)
        .context("its memory cannot be told from the guest's")?;
    if std::env::var_os("ALLOD_BENCH_MAPS").is_some() {
        println!("{}:\n{}", monitor.kind, maps.table());
    }
    running.interrupt()?;
    Ok(Beside {
        pss: (maps.sum(|map| map.pss) - guest.pss) as f64 / 1024.0,
        rss: (maps.sum(|map| map.rss) - guest.rss) as f64 / 1024.0,
    })
}
