//! `allod vmm`: one machine in a jailed process of its own.
//!
//! It opens nothing by name but the sockets in the one folder that its jail shows: `/dev/kvm`, the volumes, the kernel, the console's
//! log, its control socket and the record of its end are handed to it. It lives as long as the machine does, whether or not a
//! daemon is there.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use model::disk::DiskSpec;
use model::net::MacAddr;
use process::child::Start;
use process::control::{Next, serve_until};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use virtio::block::Geometry;

use crate::console::Log;
use crate::fleet::ExitRecord;
use crate::kvm::machine::{Control, Ending, Machine, Spec, State};
use crate::kvm::virtio::block::{Disk, Storage};
use crate::kvm::{Boot as MachineBoot, CpuModel, Firmware, Kernel, Nic, Status};

/// The child's kind: its argument on the command line.
pub const KIND: &str = "vmm";

/// Makes a storage of a volume's file. The monitor knows nothing of files with volumes in them; whoever runs it does.
pub type OpenDisk = fn(&DiskSpec, OwnedFd) -> Result<(Geometry, Box<dyn Storage>), String>;

/// What the child is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub vcpus: u32,
    pub memory_mib: u64,
    pub huge_pages: bool,
    pub cpu: CpuModel,
    pub boot: Boot,
    pub disks: Vec<OrderedDisk>,
    pub nics: Vec<OrderedNic>,
}

/// What it boots.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Boot {
    Kernel { initrd: bool, command_line: String },
    Firmware { id: Uuid },
}

/// A disk; its file is the descriptor of its name.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OrderedDisk {
    pub name: String,
    pub spec: DiskSpec,
}

/// A network interface, with its switch's socket as the child sees it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OrderedNic {
    pub name: String,
    pub mac: MacAddr,
    pub mtu: u16,
    pub queue_pairs: u16,
    pub socket: PathBuf,
}

/// Names of the descriptors that every child is given.
pub(super) const KVM: &str = "kvm";
pub(super) const CONTROL: &str = "control";
pub(super) const CONSOLE: [&str; 2] = ["console0", "console1"];
pub(super) const EXIT: &str = "exit";
/// And of those that some are given.
pub(super) const KERNEL: &str = "kernel";
pub(super) const INITRD: &str = "initrd";
pub(super) const FIRMWARE: &str = "firmware";

/// What the daemon asks on the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Request {
    /// Only report.
    Report,
    /// Tell the machine this, and report.
    Control(Control),
}

/// What it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    pub status: Status,
    /// The names of disks and network interfaces.
    pub devices: Vec<String>,
}

/// The whole life of the child.
///
/// # Errors
/// If the machine could not be made, or could not go on.
pub fn run(mut start: Start, open: OpenDisk) -> Result<(), String> {
    let exit = start.take::<File>(EXIT).map_err(text)?;
    match prepare(&mut start, open) {
        Ok(prepared) => {
            // The daemon may be gone already; the guest runs on.
            drop(start.ready());
            super::trim::let_go_of_the_program();
            let ended = live(prepared);
            record(exit, &ended);
            ended
        }
        Err(why) => {
            record(exit, &Err(why.clone()));
            start.fail(&why);
            Err(why)
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

struct Prepared {
    machine: Machine,
    control: UnixListener,
    devices: Vec<String>,
}

/// Make the machine and let it run.
fn prepare(start: &mut Start, open: OpenDisk) -> Result<Prepared, String> {
    let order: Order = start.spec().map_err(text)?;
    let control = UnixListener::from(start.take::<OwnedFd>(CONTROL).map_err(text)?);
    let [first, second] = CONSOLE;
    let log = [
        start.take::<File>(first).map_err(text)?,
        start.take::<File>(second).map_err(text)?,
    ];
    let log = Log::new(log).map_err(|error| format!("console log: {error}"))?;
    let boot = match order.boot {
        Boot::Kernel { initrd, command_line } => MachineBoot::Kernel(Kernel {
            image: start.take(KERNEL).map_err(text)?,
            initrd: initrd.then(|| start.take(INITRD)).transpose().map_err(text)?,
            command_line,
        }),
        Boot::Firmware { id } => MachineBoot::Firmware(Firmware {
            image: start.take(FIRMWARE).map_err(text)?,
            id,
        }),
    };
    let mut disks = Vec::with_capacity(order.disks.len());
    for OrderedDisk { name, spec } in order.disks {
        let file = start.take(&name).map_err(text)?;
        let (geometry, storage) = open(&spec, file)?;
        disks.push(Disk {
            name,
            geometry,
            storage,
        });
    }
    let mut devices: Vec<_> = disks.iter().map(|disk| disk.name.clone()).collect();
    devices.extend(order.nics.iter().map(|nic| nic.name.clone()));
    let spec = Spec {
        kvm: Some(start.take(KVM).map_err(text)?),
        vcpus: order.vcpus,
        memory_mib: order.memory_mib,
        huge_pages: order.huge_pages,
        cpu: order.cpu,
        boot,
        disks,
        nics: order
            .nics
            .into_iter()
            .map(|nic| Nic {
                name: nic.name,
                mac: nic.mac,
                mtu: nic.mtu,
                queue_pairs: nic.queue_pairs,
                connect: Nic::at(nic.socket),
            })
            .collect(),
        // Huge pages cannot be given back one by one.
        balloon: !order.huge_pages,
        console: None,
        vsock: None,
    };
    let machine = Machine::new(spec, log).map_err(text)?;
    machine.control(Control::Start).map_err(text)?;
    Ok(Prepared {
        machine,
        control,
        devices,
    })
}

/// Obey until the machine has ended.
fn live(prepared: Prepared) -> Result<(), String> {
    let Prepared {
        machine,
        control,
        devices,
    } = prepared;
    let report = || Report {
        status: machine.status(),
        devices: devices.clone(),
    };
    let served = serve_until(&control, Some(machine.as_fd()), |request, _| {
        let done = match request {
            Request::Report => Ok(()),
            Request::Control(control) => machine.control(control),
        };
        (done.map(|()| report()).map_err(text), Next::Continue)
    });
    match machine.status().state {
        State::Ended(Ending::Failed(why)) => Err(why),
        State::Ended(_) => Ok(()),
        // Nobody could reach the machine any more.
        _ => Err(served.map_or_else(text, |()| "the control socket is gone".into())),
    }
}

/// Write down how it ended, for a daemon that is not there to see it.
fn record(mut file: File, ended: &Result<(), String>) {
    let record = ExitRecord {
        status: Some(i32::from(ended.is_err())),
        signal: None,
        message: ended.clone().err().unwrap_or_default(),
    };
    let written = serde_json::to_vec(&record)
        .map_err(std::io::Error::from)
        .and_then(|bytes| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(&bytes)
        });
    if let Err(error) = written {
        tracing::warn!(%error, "the machine's end cannot be written down");
    }
}
