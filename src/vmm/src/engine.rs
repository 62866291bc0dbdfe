//! What an engine does.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use model::disk::{DiskLimits, DiskSpec, DiskTransport};
use model::machine::{MachineEvent, PowerState, StopMode};
use model::net::MacAddr;
use tokio::sync::broadcast;
use uuid::Uuid;

/// A machine with all that leads to its disks and networks.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The server's id.
    pub id: Uuid,
    /// For people; any text.
    pub name: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// What it starts with.
    pub boot: PlannedBoot,
    /// Disks in boot order.
    pub disks: Vec<PlannedDisk>,
    /// Network interfaces in order.
    pub nics: Vec<PlannedNic>,
    /// The machine's folder: console log, exit record, QMP socket. Private to the daemon.
    pub folder: PathBuf,
}

impl Plan {
    /// The folder with the vhost-user sockets. It and they can be entered by any user who can see it: in its
    /// jail, the guest's engine can, and nobody else, since the machine's folder is private.
    pub fn sockets(&self) -> PathBuf {
        self.folder.join("sockets")
    }
}

/// What a machine starts with.
#[derive(Debug, Clone, Default)]
pub enum PlannedBoot {
    /// A PC's firmware.
    #[default]
    Bios,
    /// UEFI firmware.
    Uefi,
    /// A kernel.
    Kernel {
        /// The kernel's file.
        image: Arc<File>,
        /// The initial RAM disk's file.
        initrd: Option<Arc<File>>,
        /// The command line.
        command_line: String,
    },
}

/// A disk, reached as [`Engine::disk_transport`] says: at the socket of its owner in [`Plan::sockets`], or, where the engine
/// is the owner, by its file.
#[derive(Debug, Clone)]
pub struct PlannedDisk {
    /// The socket's file name, by which the disk is known even where there is no socket.
    pub socket: String,
    /// Request queues.
    pub queues: u16,
    /// What the guest reads as the disk's serial number: at most 20 characters.
    pub serial: String,
    /// The volume, where the engine is its owner.
    pub embedded: Option<Embedded>,
}

/// A volume for an engine that is its owner.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// What is to be served.
    pub spec: DiskSpec,
    /// The volume's file.
    pub file: Arc<File>,
}

/// A network interface: a vhost-user-net socket in [`Plan::sockets`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedNic {
    /// The socket's file name.
    pub socket: String,
    /// Its address.
    pub mac: MacAddr,
    /// The network's MTU.
    pub mtu: u16,
}

/// A device that comes at run time.
#[derive(Debug, Clone)]
pub enum PlannedDevice {
    /// A disk.
    Disk(Box<PlannedDisk>),
    /// A network interface.
    Nic(PlannedNic),
}

impl PlannedDevice {
    /// Its socket's file name, by which it is known.
    pub fn socket(&self) -> &str {
        match self {
            PlannedDevice::Disk(disk) => &disk.socket,
            PlannedDevice::Nic(nic) => &nic.socket,
        }
    }
}

/// Why an engine could not do it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The machine's process did not start.
    #[error("the guest's process did not start: {0}")]
    Start(#[from] process::child::LaunchError),
    /// The machine ended while it was being started.
    #[error("the guest ended at its start: {0}")]
    EndedAtStart(String),
    /// There is no such machine, or it ended meanwhile.
    #[error("the guest does not run")]
    NotRunning,
    /// The monitor's connection failed.
    #[error("the guest's monitor: {0}")]
    Monitor(#[from] crate::qemu::QmpError),
    /// Its process cannot be watched.
    #[error(
        "the guest runs, and cannot be looked after: restart the daemon, which then has more open files to spare"
    )]
    Unattended,
    /// The machine's control socket.
    #[error("the guest's monitor: {0}")]
    Control(#[from] process::control::Error),
    /// This engine has no such ability.
    #[error("the {engine} engine cannot {what}")]
    Unsupported {
        /// The engine's name.
        engine: &'static str,
        /// What was asked for, and what to do instead.
        what: &'static str,
    },
    /// The guest keeps a device that is to be taken from it.
    #[error("the guest does not let go of the device {0}: its system may still be starting, or use it")]
    Kept(String),
    /// There is no place for one more device.
    #[error("the guest has no free slot for one more device")]
    NoSlot,
    /// It does not end, although it was killed.
    #[error("the guest's process does not end within {0:?}; the host's kernel may be stuck")]
    Immortal(Duration),
    /// The system's answer.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The answer.
        source: std::io::Error,
    },
}

/// Runs machines. Every machine is owned by one task of the engine; calls for one machine are obeyed in order.
#[async_trait]
pub trait Engine: Send + Sync {
    /// `kvm` or `qemu`.
    fn name(&self) -> &'static str;
    /// How a guest reaches its disks: the one of this id if it runs, and one that is to be started.
    fn disk_transport(&self, id: Uuid) -> DiskTransport;
    /// Start a machine and wait until its vCPUs run. Running already: nothing happens.
    async fn start(&self, plan: &Plan) -> Result<(), EngineError>;
    /// Stop a machine and wait until its processes are gone. Not running: nothing happens.
    async fn stop(&self, id: Uuid, mode: StopMode) -> Result<(), EngineError>;
    /// The reset button.
    async fn reset(&self, id: Uuid) -> Result<(), EngineError>;
    /// Freeze the vCPUs.
    async fn pause(&self, id: Uuid) -> Result<(), EngineError>;
    /// Let them run again.
    async fn resume(&self, id: Uuid) -> Result<(), EngineError>;
    /// Give a running machine one more device. It has it already: nothing happens.
    async fn plug(&self, id: Uuid, device: &PlannedDevice) -> Result<(), EngineError>;
    /// Take a device from a running machine, by its socket's file name, and wait until its guest has let go of it. It does not
    /// have it, or does not run: nothing happens.
    async fn unplug(&self, id: Uuid, socket: &str) -> Result<(), EngineError>;
    /// A disk's owner serves this many bytes from now on: tell the guest.
    async fn resize(&self, id: Uuid, socket: &str, bytes: u64) -> Result<(), EngineError>;
    /// A disk that the engine owns may be used this much from now on.
    async fn limit(&self, id: Uuid, socket: &str, limits: &DiskLimits) -> Result<(), EngineError>;
    /// Take over all machines that an earlier daemon started. One that ended meanwhile is reported as an event.
    async fn adopt(&self) -> Result<(), EngineError>;
    /// Machines that have a process.
    fn list(&self) -> Vec<(Uuid, PowerState)>;
    /// Machines that ended by themselves, or paused.
    fn events(&self) -> broadcast::Receiver<MachineEvent>;
}
