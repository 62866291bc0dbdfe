//! From the start of a monitor to the first byte that a tiny guest says.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::monitors::{Kind, MEMORY_MIB, Machine, Monitor, found, ours};
use super::running::Running;
use super::{guests, versus_best};
use crate::figure::Figure;
use crate::measure::{cpu_seconds, least, median};

/// How often each monitor is started, in turn.
const TURNS: usize = 40;
/// How long a start may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How often the log of a jailed machine is looked at.
const LOOK: Duration = Duration::from_micros(50);

/// The first byte's time of each monitor, and of ours in its jail.
pub fn run(folder: &Path) -> Result<()> {
    let machine = Machine {
        kernel: guests::first(folder)?,
        line: "quiet".into(),
        memory_mib: MEMORY_MIB,
        ..Machine::default()
    };
    let monitors = found(&[Kind::Firecracker, Kind::CloudHypervisor, Kind::Qemu]);
    let (mut times, mut used) = (vec![Vec::new(); monitors.len()], vec![Vec::new(); monitors.len()]);
    let (mut jailed, mut process) = (Vec::new(), Vec::new());
    for turn in 0..=TURNS {
        for (index, monitor) in monitors.iter().enumerate() {
            let (took, cpu) = once(monitor, &machine, folder)?;
            // The first turn brings files into memory.
            if turn > 0 {
                times[index].push(took);
                used[index].push(cpu);
            }
        }
        let (whole, child) = once_jailed(&machine, &folder.join(format!("jail-{turn}")))?;
        if turn > 0 {
            jailed.push(whole);
            process.push(child);
        }
    }
    let kinds: Vec<_> = monitors.iter().map(|monitor| monitor.kind).collect();
    let medians: Vec<_> = times.iter().map(|times| median(times.clone())).collect();
    let leasts: Vec<_> = times.iter().map(|times| least(times)).collect();
    let used: Vec<_> = used.into_iter().map(median).collect();
    versus_best("vmm.start", &kinds, &medians, "ms")?;
    versus_best("vmm.start.min", &kinds, &leasts, "ms")?;
    // Processor time is what a busy machine leaves comparable.
    versus_best("vmm.start.cpu", &kinds, &used, "ms")?;
    Figure::new("vmm.start.jailed", median(process.clone()), "ms").report()?;
    Figure::new("vmm.start.jailed.min", least(&process), "ms").report()?;
    Figure::new("vmm.start.jailed.with-launcher", median(jailed), "ms").report()
}

/// In milliseconds: from before the fork; and the processor time until then.
fn once(monitor: &Monitor, machine: &Machine, folder: &Path) -> Result<(f64, f64)> {
    let mut running = Running::start(monitor.command(machine, folder)?)?;
    let first = running.says("r", LIMIT)?;
    let used = cpu_seconds(running.pid())?;
    let took = first.duration_since(running.began()).as_secs_f64();
    Ok((took * 1e3, used * 1e3))
}

/// In milliseconds: from the start of `allod machine`, and from the moment at which that asks for its child.
fn once_jailed(machine: &Machine, folder: &Path) -> Result<(f64, f64)> {
    fs::create_dir(folder)?;
    let mut running = Running::start(ours().jailed(machine, folder))?;
    let log = folder.join("machine/console.0.log");
    let asked = running.says("start\n", LIMIT)?;
    while !fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        ensure!(asked.elapsed() < LIMIT, "the jailed machine says nothing");
        thread::sleep(LOOK);
    }
    let first = Instant::now();
    running.interrupt()?;
    let since = |start| first.duration_since(start).as_secs_f64() * 1e3;
    Ok((since(running.began()), since(asked)))
}
