//! The engine that runs an installed QEMU, jailed, behind a supervisor.
//!
//! A machine's states. One task owns each machine ([`owner`]); only it talks to QEMU's monitor.
//!
//! ```text
//!   start()                 monitor answers            STOP event
//!  ────────▶ Starting ───────────────────▶ Running ◀───────────────▶ Paused
//!               │                            │ ▲      RESUME event      │
//!               │ QEMU ends                  │ └─ adopt()               │
//!               ▼                            ▼                          ▼
//!             Ended ◀─────────────────── Stopping ◀──────────── stop(Graceful):  power button, again every 3 s,
//!               ▲                            │                   plug at the time-out
//!               └── QEMU ends; stop(Hard) or time-out: `kill` ends the PID namespace and all in it
//! ```
//! `Ended` after a stop that was asked for is silent; else it is an event: `Shutdown` if QEMU left with status 0 (the guest
//! powered off), `Crashed` otherwise.

mod command;
mod hotplug;
mod owner;
mod qmp;
mod supervisor;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use model::disk::{DiskLimits, DiskTransport};
use model::machine::{MachineEvent, PowerState, StopMode};
use model::units::MIB;
use process::child::{CgroupLimits, Isolation, Launch, Launcher, Process};
use process::jail::{Files, Limits, Profile};
use tokio::sync::broadcast;
use uuid::Uuid;

pub use qmp::{Event, Qmp, QmpError};
pub use supervisor::{KIND, run as supervise};

use crate::fleet::{self, Command, Fleet};
use crate::{Accelerator, Engine, EngineError, Plan, PlannedBoot, PlannedDevice, console};
use owner::{Owner, Running};
use supervisor::{DESCRIPTORS, Spec};

/// Where QEMU sees the folder of vhost-user sockets.
const SOCKETS: &str = "/guest";
/// Memory that QEMU and its supervisor may take beyond the guest's own: devices, and TCG's translations.
const OVERHEAD: u64 = 768 * MIB;

/// Runs guests in QEMU.
pub struct QemuEngine {
    shared: Arc<Shared>,
}

/// What owners share.
struct Shared {
    fleet: Arc<Fleet>,
    program: PathBuf,
    accelerator: Accelerator,
}

impl QemuEngine {
    /// Run this program. Guests are started by `launcher`, as children of the kind [`KIND`].
    pub fn new(launcher: Arc<Launcher>, program: PathBuf, accelerator: Accelerator) -> Self {
        QemuEngine {
            shared: Arc::new(Shared {
                fleet: Fleet::new(launcher),
                program,
                accelerator,
            }),
        }
    }
}

/// The owners let go of their guests, which run on.
impl Drop for QemuEngine {
    fn drop(&mut self) {
        self.shared.fleet.let_go();
    }
}

/// Why disks are not limited here.
const NO_OWNER: EngineError = EngineError::Unsupported {
    engine: "qemu",
    what: "limit disks: tell their owners",
};

#[async_trait]
impl Engine for QemuEngine {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn disk_transport(&self, _: Uuid) -> DiskTransport {
        command::disk_transport(self.shared.accelerator)
    }

    async fn start(&self, plan: &Plan) -> Result<(), EngineError> {
        if !matches!(plan.boot, PlannedBoot::Bios) {
            return Err(EngineError::Unsupported {
                engine: "qemu",
                what: "start a kernel or UEFI that an image names: such images need compute.engine = \"kvm\"",
            });
        }
        let own = |seat, started| {
            let owner = Owner::new(self.shared.clone(), seat);
            tokio::spawn(owner.start(plan.clone(), started));
        };
        self.shared.fleet.start(plan.id, &plan.folder, own).await
    }

    async fn stop(&self, id: Uuid, mode: StopMode) -> Result<(), EngineError> {
        let stop = |answer| Command::Stop(mode, answer);
        self.shared.fleet.ask_if_there(id, stop).await
    }

    async fn reset(&self, id: Uuid) -> Result<(), EngineError> {
        self.shared.fleet.ask(id, Command::Reset).await
    }

    async fn pause(&self, id: Uuid) -> Result<(), EngineError> {
        self.shared.fleet.ask(id, Command::Pause).await
    }

    async fn resume(&self, id: Uuid) -> Result<(), EngineError> {
        self.shared.fleet.ask(id, Command::Resume).await
    }

    async fn plug(&self, id: Uuid, device: &PlannedDevice) -> Result<(), EngineError> {
        let plug = |answer| Command::Plug(device.clone(), answer);
        self.shared.fleet.ask(id, plug).await
    }

    async fn unplug(&self, id: Uuid, socket: &str) -> Result<(), EngineError> {
        let unplug = |answer| Command::Unplug(socket.to_owned(), answer);
        self.shared.fleet.ask_if_there(id, unplug).await
    }

    async fn resize(&self, id: Uuid, socket: &str, bytes: u64) -> Result<(), EngineError> {
        let resize = |answer| Command::Resize(socket.to_owned(), bytes, answer);
        self.shared.fleet.ask(id, resize).await
    }

    async fn limit(&self, _: Uuid, _: &str, _: &DiskLimits) -> Result<(), EngineError> {
        Err(NO_OWNER)
    }

    async fn adopt(&self) -> Result<(), EngineError> {
        let own = |seat, process| {
            tokio::spawn(Owner::new(self.shared.clone(), seat).adopt(process));
        };
        self.shared.fleet.adopt(KIND, own).await
    }

    fn list(&self) -> Vec<(Uuid, PowerState)> {
        self.shared.fleet.list()
    }

    fn events(&self) -> broadcast::Receiver<MachineEvent> {
        self.shared.fleet.events()
    }
}

impl Shared {
    /// Where QEMU sees the folder of a machine's sockets.
    fn sockets_seen(&self, folder: &Path) -> PathBuf {
        if self.fleet.launcher.isolation == Isolation::Process {
            SOCKETS.into()
        } else {
            folder.join("sockets")
        }
    }

    /// Start the supervisor, and QEMU by it. Blocks.
    fn launch(&self, plan: &Plan) -> Result<Running, EngineError> {
        let io = |what| move |source| EngineError::Io { what, source };
        let jailed = self.fleet.launcher.isolation == Isolation::Process;
        let sockets = plan.sockets();
        fs::create_dir_all(&sockets).map_err(io("the folder of the guest's sockets"))?;
        let seen = if jailed { Path::new(SOCKETS) } else { &sockets };
        let spec = Spec {
            program: self.program.clone(),
            arguments: command::arguments(plan, self.accelerator, seen),
        };
        let qmp = process::control::bind(&qmp_path(&plan.folder)).map_err(io("the monitor's socket"))?;
        let open = |path: PathBuf| fleet::console_file(path).map_err(io("the console's log"));
        let [console0, console1] = console::paths(&plan.folder);
        let (console0, console1) = (open(console0)?, open(console1)?);
        let exit = File::create(fleet::exit_path(&plan.folder)).map_err(io("the exit record"))?;
        let mut devices: Vec<PathBuf> = ["/dev/null", "/dev/urandom"].map(PathBuf::from).into();
        if self.accelerator == Accelerator::Kvm {
            devices.push("/dev/kvm".into());
        }
        let memory = (plan.memory_mib * MIB).saturating_add(OVERHEAD);
        let mut launched = self.fleet.launcher.launch(&Launch {
            kind: KIND,
            main: supervisor::run,
            name: fleet::child_name(plan.id),
            spec: &spec,
            descriptors: DESCRIPTORS
                .into_iter()
                .zip([qmp.as_fd(), console0.as_fd(), console1.as_fd(), exit.as_fd()])
                .collect(),
            profile: Profile::Guest,
            files: Files {
                // The program, its libraries and firmware; on Debian the first four are links into /usr.
                read_only: [
                    "/bin",
                    "/lib",
                    "/lib64",
                    "/sbin",
                    "/usr",
                    "/etc/ld.so.cache",
                    "/etc/qemu",
                ]
                .map(PathBuf::from)
                .into(),
                folder: Some((sockets, SOCKETS.into())),
                devices,
            },
            limits: Limits {
                open_files: 4096,
                processes: 1024,
                ..Limits::default()
            },
            cgroup: CgroupLimits {
                memory: Some(memory),
                processes: Some(1024),
            },
            // A guest goes before the daemon and the switch do.
            oom_score_adj: 500,
            control: None,
            note: fleet::note(plan.id, &plan.folder),
        })?;
        let mut qemu = None;
        if !jailed {
            let (pid, _) = launched
                .connection
                .recv()
                .map_err(|e| EngineError::EndedAtStart(e.to_string()))?;
            qemu = Some(Process::open(pid).map_err(io("QEMU's process"))?);
        }
        Ok(Running {
            task: launched.task,
            qemu,
        })
    }
}

fn qmp_path(folder: &Path) -> PathBuf {
    folder.join("qmp.sock")
}
