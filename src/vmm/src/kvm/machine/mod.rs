//! One machine, and the one way to tell it something.
//!
//! A driver thread owns the machine's state. It takes [`Control`]s from outside and requests from the guest, one at a
//! time, so that there is one place to reason about:
//!
//! ```text
//!              Start              Pause
//!   Created ───────────▶ Running ──────────▶ Paused
//!      │                  │ │ ▲ ◀──────────   │ │
//!      │       Reset, or  │ └─┘    Resume     │ │ Reset: anew, and still paused
//!      │    the guest's   │                   │ └──▶ Paused
//!      │                  ▼                   │
//!      └──────────────▶ Ended(reason) ◀───────┘
//!   Stop(Hard) from anywhere; the guest's power off or failure; Stop(Graceful) presses the power button of a running
//!   machine (a paused one runs on for that) and ends it when its time is up.
//! ```
//!
//! A reset clears the guest's memory and loads its kernel or firmware again: it is the same machine with the same devices.

mod build;
mod driver;
mod routes;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use model::disk::{DiskLimits, DiskStatus};
use model::machine::StopMode;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::boot::{Boot, BootError};
use super::bus::Overlap;
use super::cpu::model::CpuModel;
use super::event::descriptor;
use super::legacy::output::Sink;
use super::memory::{Gauge, MemoryError};
use super::request::Asked;
use super::virtio::Device;
use super::virtio::balloon::{Balloon, BalloonStatus};
use super::virtio::block::{BlockDevice, Disk};
use super::virtio::console::{Console, ConsoleDevice};
use super::virtio::net::{NetDevice, Nic, NicStatus};
use super::virtio::vsock::Vsock;

/// The most vCPUs of a machine. Their APIC ids fit into eight bits.
pub const MAX_VCPUS: u32 = 128;

/// The most devices on the bus: all numbers but the host bridge's. With firmware one less, for the bridge to ISA.
pub const MAX_DEVICES: usize = 31;

/// What a machine is made of.
#[derive(Debug)]
pub struct Spec {
    /// `/dev/kvm`, for a process that cannot open it.
    pub kvm: Option<OwnedFd>,
    /// Virtual CPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Its memory consists of huge pages.
    pub huge_pages: bool,
    /// The processor that the guest sees.
    pub cpu: CpuModel,
    /// What it boots.
    pub boot: Boot,
    /// Disks, in the guest's order.
    pub disks: Vec<Disk>,
    /// A memory balloon, which reports free pages, too. Not with huge pages: these cannot be given back.
    pub balloon: bool,
    /// A second console, beside the serial line.
    pub console: Option<Console>,
    /// Sockets between the guest and programs on the host.
    pub vsock: Option<Vsock>,
    /// Network interfaces, in the guest's order.
    pub nics: Vec<Nic>,
}

/// Everything that a machine can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// Boot a machine that was made.
    Start,
    /// Let all vCPUs stand still. Paused already: nothing happens.
    Pause,
    /// Let them go on. Running already: nothing happens.
    Resume,
    /// The reset button.
    Reset,
    /// A disk's storage has grown to this many bytes: tell the guest.
    Resize {
        /// The disk's name.
        disk: String,
        /// Its size.
        bytes: u64,
    },
    /// A disk may be used this much from now on.
    Limit {
        /// The disk's name.
        disk: String,
        /// How much.
        limits: Box<DiskLimits>,
    },
    /// Let the guest give up so much memory.
    Balloon {
        /// How much, in MiB.
        mib: u64,
    },
    /// End it. Ended already: nothing happens.
    Stop(StopMode),
}

/// What a machine is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Made, and not started.
    Created,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still.
    Paused,
    /// Its vCPUs are gone.
    Ended(Ending),
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// The guest switched off, by itself or because it was asked to.
    PoweredOff,
    /// It was stopped.
    Stopped,
    /// It could not go on.
    Failed(String),
}

/// A machine's state, and how often it was reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The state.
    pub state: State,
    /// Resets since its start, the guest's own among them.
    pub resets: u64,
}

/// Why a machine was not made, or did not do what it was told.
#[derive(Debug, Error)]
pub enum MachineError {
    /// No, or too many vCPUs.
    #[error("a machine has 1 to {most} virtual processors here, not {wanted}")]
    Vcpus {
        /// What was wanted.
        wanted: u32,
        /// The most that it can have.
        most: u32,
    },
    /// Something else, or another age's.
    #[error("what stands for /dev/kvm is no KVM of a version that is known here")]
    NotKvm,
    /// The host's processor is not the one that the guest is to see.
    #[error("this host's processor does not have all of the CPU model: it lacks {0}")]
    CpuModel(String),
    /// KVM's answer.
    #[error("{what}: {source}")]
    Kvm {
        /// What was being done.
        what: &'static str,
        /// The answer.
        source: kvm_ioctls::Error,
    },
    /// The system's answer.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The answer.
        source: std::io::Error,
    },
    /// The guest's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The guest's kernel or firmware.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A device cannot be made.
    #[error("a device cannot be made: {0}")]
    Device(super::lifecycle::StateError),
    /// More devices than there are places on the bus, or two of one name.
    #[error("a machine has at most {MAX_DEVICES} devices, each with a name of its own")]
    Devices,
    /// A network interface that there cannot be.
    #[error("the network interface {0} has no or too many queues, or too small an MTU")]
    Nic(String),
    /// There is no such disk, or it cannot have this size.
    #[error("the disk {disk} cannot become {bytes} bytes")]
    Resize {
        /// The name.
        disk: String,
        /// The size.
        bytes: u64,
    },
    /// There is no such disk, or its storage knows no limits.
    #[error("the disk {disk} cannot be limited")]
    Limit {
        /// The name.
        disk: String,
    },
    /// There is no balloon, or it cannot have this size.
    #[error("this machine cannot give up {mib} MiB of memory")]
    Balloon {
        /// The size in MiB.
        mib: u64,
    },
    /// A balloon, and huge pages.
    #[error("memory in huge pages cannot be given back: a machine with it has no balloon")]
    HugeBalloon,
    /// An address that no guest can have.
    #[error("a guest's socket address cannot be {0}")]
    Cid(u32),
    /// Two devices at one address: a fault of this program.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// The control makes no sense in this state.
    #[error("a machine that is {0:?} cannot do that")]
    State(State),
    /// The driver's thread is gone.
    #[error("the machine is gone")]
    Gone,
}

/// What the driver hears.
pub(super) enum Message {
    /// From outside, with the way for the answer.
    Control(Control, Sender<Result<(), MachineError>>),
    /// From the guest.
    Guest(Asked),
}

/// The status, for all who wait for it.
struct Board {
    status: Mutex<Status>,
    changed: Condvar,
    /// Readable when the machine has ended.
    ended: EventFd,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Status> {
        // A status is exchanged whole.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Status)) {
        let mut status = self.lock();
        change(&mut status);
        if matches!(status.state, State::Ended(_)) {
            // It is written to once.
            let _ = self.ended.write(1);
        }
        drop(status);
        self.changed.notify_all();
    }
}

/// A machine. When dropped, it is stopped hard.
pub struct Machine {
    send: Sender<Message>,
    board: Arc<Board>,
    disks: Vec<Arc<BlockDevice>>,
    balloon: Option<Arc<Balloon>>,
    console: Option<Arc<ConsoleDevice>>,
    memory: Gauge,
    nics: Vec<Arc<NetDevice>>,
    driver: Option<JoinHandle<()>>,
}

impl Machine {
    /// Make a machine; it waits for [`Control::Start`]. What it prints on its serial line goes to `serial`.
    ///
    /// # Errors
    /// If the host cannot have such a machine.
    pub fn new(spec: Spec, serial: impl Sink) -> Result<Self, MachineError> {
        let (send, receive) = channel();
        let board = Arc::new(Board {
            status: Mutex::new(Status {
                state: State::Created,
                resets: 0,
            }),
            changed: Condvar::new(),
            ended: EventFd::new(EFD_NONBLOCK).map_err(|source| MachineError::Io {
                what: "cannot make an eventfd",
                source,
            })?,
        });
        let parts = build::build(spec, serial, &send)?;
        let disks = parts.disks.clone();
        let (balloon, console) = (parts.balloon.clone(), parts.console.clone());
        let memory = parts.ram.gauge();
        let nics = parts.nics.clone();
        let driver = driver::Driver::new(parts, board.clone());
        let driver = std::thread::Builder::new()
            .name("machine".into())
            .spawn(move || driver.run(&receive))
            .map_err(|source| MachineError::Io {
                what: "cannot start the machine's thread",
                source,
            })?;
        Ok(Machine {
            send,
            board,
            disks,
            balloon,
            console,
            memory,
            nics,
            driver: Some(driver),
        })
    }

    /// Tell the machine something and wait until it is done. A graceful stop is done when the button is pressed: wait for
    /// the [`State::Ended`] that follows.
    ///
    /// # Errors
    /// If it cannot be done in this state, or fails. A machine whose start or reset fails has ended.
    pub fn control(&self, control: Control) -> Result<(), MachineError> {
        let (answer, answered) = channel();
        self.send
            .send(Message::Control(control, answer))
            .map_err(|_| MachineError::Gone)?;
        answered.recv().map_err(|_| MachineError::Gone)?
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        self.board.lock().clone()
    }

    /// What a disk did so far, by its name.
    pub fn disk(&self, name: &str) -> Option<DiskStatus> {
        let disk = self.disks.iter().find(|disk| disk.name() == name);
        disk.map(|disk| disk.status())
    }

    /// How far the guest has come with its balloon, if it has one.
    pub fn balloon(&self) -> Option<BalloonStatus> {
        self.balloon.as_ref().map(|balloon| balloon.status())
    }

    /// Type on the second console. How many of these bytes had room; none if there is no such console.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        let console = self.console.as_ref();
        console.map_or(0, |console| console.type_in(bytes))
    }

    /// Bytes of the host's memory that the guest's takes; none when it has ended.
    pub fn resident(&self) -> u64 {
        self.memory.resident().unwrap_or(0)
    }

    /// How a network interface is, by its name.
    pub fn nic(&self, name: &str) -> Option<NicStatus> {
        let nic = self.nics.iter().find(|nic| nic.name() == name);
        nic.map(|nic| nic.status())
    }

    /// Wait until the status is as wanted, but no longer than this. The status then.
    pub fn wait(&self, timeout: Duration, wanted: impl Fn(&Status) -> bool) -> Status {
        let until = Instant::now() + timeout;
        let mut status = self.board.lock();
        while !wanted(&status) {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                break;
            };
            status = self
                .board
                .changed
                .wait_timeout(status, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
        }
        status.clone()
    }
}

/// Readable when the machine has ended.
impl AsFd for Machine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        descriptor(&self.board.ended)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.control(Control::Stop(StopMode::Hard));
        // The devices' ways to the driver are gone with the devices; without this one its thread ends.
        drop(std::mem::replace(&mut self.send, channel().0));
        if let Some(driver) = self.driver.take() {
            let _ = driver.join();
        }
    }
}
