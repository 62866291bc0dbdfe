//! From the start of a monitor to Linux's first process.

use std::path::Path;
use std::time::Duration;

use allod_tests::kvm::Kvm;
use allod_tests::paths;
use anyhow::Result;

use super::guests::{self, HELLO};
use super::monitors::{Kind, MEMORY_MIB, Machine, found};
use super::running::Running;
use super::versus_best;
use crate::measure::{cpu_seconds, median};

const TURNS: usize = 3;
/// A kernel whose ring 0 is emulated takes seconds, and longer on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// The same kernel, RAM disk and command line on each.
pub fn run(folder: &Path) -> Result<()> {
    let Some(host) = Kvm::of_host() else { return Ok(()) };
    let kernel = paths::kvm_linux();
    if !kernel.exists() {
        println!("linux: there is no {}; cargo xtask kvm-linux", kernel.display());
        return Ok(());
    }
    let machine = Machine {
        kernel,
        initrd: Some(guests::initramfs(folder)?),
        line: format!("{} quiet", host.command_line()),
        memory_mib: MEMORY_MIB,
        ..Machine::default()
    };
    let monitors = found(&[
        Kind::CloudHypervisor,
        Kind::QemuPci,
        Kind::FirecrackerPci,
        Kind::Firecracker,
    ]);
    let (mut times, mut used) = (vec![Vec::new(); monitors.len()], vec![Vec::new(); monitors.len()]);
    for _ in 0..TURNS {
        for (index, monitor) in monitors.iter().enumerate() {
            let mut running = Running::start(monitor.command(&machine, folder)?)?;
            let hello = running.says(HELLO, LIMIT)?;
            used[index].push(cpu_seconds(running.pid())?);
            times[index].push(hello.duration_since(running.began()).as_secs_f64());
        }
    }
    let kinds: Vec<_> = monitors.iter().map(|monitor| monitor.kind).collect();
    // Virtio over MMIO, where no bus is searched, stands apart.
    let on_pci = kinds.len() - usize::from(kinds.last() == Some(&Kind::Firecracker));
    // Processor time is what a busy machine leaves comparable.
    for (name, values) in [("vmm.linux", times), ("vmm.linux.cpu", used)] {
        let medians: Vec<_> = values.into_iter().map(median).collect();
        versus_best(name, &kinds[..on_pci], &medians[..on_pci], "s")?;
        if on_pci < kinds.len() {
            let both = ([Kind::Allod, Kind::Firecracker], [medians[0], medians[on_pci]]);
            versus_best(&format!("{name}.mmio"), &both.0, &both.1, "s")?;
        }
    }
    Ok(())
}
