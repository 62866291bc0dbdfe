//! `allod machine`: one machine of the embedded monitor on a terminal, without a cloud around it. For trying a kernel, and for
//! benches that set the monitor beside others.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use model::disk::{DiskLimits, DiskSpec, DiskTransport};
use model::machine::{PowerState, StopMode};
use model::net::MacAddr;
use process::child::{Isolation, Launcher, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;
use vmm::kvm::{Boot, Control, CpuModel, Disk, Ending, Kernel, KvmEngine, Machine, Nic, Spec, State};
use vmm::{Embedded, Engine, Plan, PlannedBoot, PlannedDisk, PlannedNic};

use crate::drivers::children;

/// What the machine is made of.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The kernel: an ELF with a PVH entry, or a bzImage.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// An initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, default_value = "console=ttyS0", value_name = "TEXT")]
    command_line: String,
    /// Virtual processors.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Memory in MiB.
    #[arg(long, default_value_t = 128)]
    memory: u64,
    /// Raw disks.
    #[arg(long = "disk", value_name = "FILE")]
    disks: Vec<PathBuf>,
    /// Read and write the disks around the host's page cache.
    #[arg(long)]
    direct: bool,
    /// Run it as the cloud does, in a jailed process; this folder gets its console's log. `start` on standard output says that
    /// the process is asked for.
    #[arg(long, value_name = "FOLDER")]
    jail: Option<PathBuf>,
    /// Network interfaces, whose switch is not there.
    #[arg(long, default_value_t = 0)]
    nics: u8,
}

/// Run it until it ends.
pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.jail {
        None => here(arguments),
        Some(folder) => jailed(arguments, folder),
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// A disk's file, and what the device shows of it.
fn disk(arguments: &Arguments, index: usize, path: &Path) -> Result<(DiskSpec, File)> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let size = file.metadata()?.len();
    let spec = DiskSpec {
        id: Uuid::from_u128(index as u128 + 1),
        size: size - size % 512,
        read_only: false,
        queues: u16::try_from(arguments.cpus.clamp(1, 4))?,
        direct: arguments.direct,
        transport: DiskTransport::Embedded,
        key: None,
        limits: DiskLimits::default(),
    };
    Ok((spec, file))
}

fn mac(index: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, index])
}

/// In this process, with the console on standard output.
fn here(arguments: &Arguments) -> Result<()> {
    let mut disks = Vec::new();
    for (index, path) in arguments.disks.iter().enumerate() {
        let (spec, file) = disk(arguments, index, path)?;
        let (geometry, storage) = children::open_disk(&spec, file.into()).map_err(anyhow::Error::msg)?;
        disks.push(Disk {
            name: format!("disk{index}"),
            geometry,
            storage,
        });
    }
    let spec = Spec {
        kvm: None,
        vcpus: arguments.cpus,
        memory_mib: arguments.memory,
        huge_pages: false,
        cpu: CpuModel::Host,
        boot: Boot::Kernel(Kernel {
            image: open(&arguments.kernel)?,
            initrd: arguments.initrd.as_deref().map(open).transpose()?,
            command_line: arguments.command_line.clone(),
        }),
        disks,
        nics: (0..arguments.nics)
            .map(|index| Nic {
                name: format!("net-{index}"),
                mac: mac(index),
                mtu: 1500,
                queue_pairs: 1,
                // Nothing listens there.
                connect: Nic::at(format!("/nonexistent/net-{index}").into()),
            })
            .collect(),
        balloon: false,
        console: None,
        vsock: None,
    };
    let machine = Machine::new(spec, |bytes: &[u8]| {
        let mut out = io::stdout().lock();
        // Nobody may be reading any more; the machine runs on.
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    })?;
    machine.control(Control::Start)?;
    loop {
        let status = machine.wait(Duration::from_secs(3600), |status| {
            matches!(status.state, State::Ended(_))
        });
        match status.state {
            State::Ended(Ending::Failed(why)) => bail!("the machine could not go on: {why}"),
            State::Ended(_) => return Ok(()),
            _ => {}
        }
    }
}

/// In a process of its own, as the cloud runs its guests.
#[tokio::main(flavor = "current_thread")]
async fn jailed(arguments: &Arguments, folder: &Path) -> Result<()> {
    let machine = folder.join("machine");
    std::fs::create_dir_all(&machine)?;
    let launcher = Launcher::new(Isolation::Process, Runtime::open(&folder.join("run"))?);
    let engine = KvmEngine::new(
        Arc::new(launcher),
        children::guest,
        vmm::kvm::engine::Options::default(),
    );
    let mut ends = engine.events();
    let mut disks = Vec::new();
    for (index, path) in arguments.disks.iter().enumerate() {
        let (spec, file) = disk(arguments, index, path)?;
        disks.push(PlannedDisk {
            socket: format!("disk-{index}"),
            queues: spec.queues,
            serial: spec.serial(),
            embedded: Some(Embedded {
                spec,
                file: Arc::new(file),
            }),
        });
    }
    let id = Uuid::from_u128(1);
    let nic = |index: u8| PlannedNic {
        socket: format!("net-{index}"),
        mac: mac(index),
        mtu: 1500,
    };
    let plan = Plan {
        id,
        name: "machine".into(),
        vcpus: arguments.cpus,
        memory_mib: arguments.memory,
        boot: PlannedBoot::Kernel {
            image: Arc::new(open(&arguments.kernel)?),
            initrd: arguments.initrd.as_deref().map(open).transpose()?.map(Arc::new),
            command_line: arguments.command_line.clone(),
        },
        disks,
        nics: (0..arguments.nics).map(nic).collect(),
        folder: machine,
    };
    // From before the start on, so that no process is left behind.
    let mut interrupt = signal(SignalKind::interrupt())?;
    println!("start");
    engine.start(&plan).await?;
    tokio::select! {
        end = ends.recv() => match end?.state {
            PowerState::Crashed => bail!("the machine could not go on: its folder's exit.json says why"),
            _ => Ok(()),
        },
        _ = interrupt.recv() => Ok(engine.stop(id, StopMode::Hard).await?),
    }
}
