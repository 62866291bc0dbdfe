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

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use model::disk::DiskTransport;
use model::machine::{MachineEvent, PowerState, StopMode};
use model::units::MIB;
use process::child::{CgroupLimits, Isolation, Launch, Launcher, Process};
use process::jail::{Files, Limits, Profile};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tracing::{info, warn};
use uuid::Uuid;

pub use qmp::{Event, Qmp, QmpError};
pub use supervisor::{KIND, run as supervise};

use crate::{Accelerator, Engine, EngineError, Plan, PlannedDevice, console};
use owner::{Command, Life, Owner, Running};
use supervisor::{DESCRIPTORS, ExitRecord, Spec};

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
    launcher: Arc<Launcher>,
    program: PathBuf,
    accelerator: Accelerator,
    machines: Mutex<HashMap<Uuid, Handle>>,
    events: broadcast::Sender<MachineEvent>,
}

/// The way to a machine's owner.
#[derive(Clone)]
struct Handle {
    commands: mpsc::Sender<Command>,
    life: watch::Receiver<Life>,
}

/// What is written down of a guest, for the next daemon.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    id: Uuid,
    folder: PathBuf,
}

impl QemuEngine {
    /// Run this program. Guests are started by `launcher`, as children of the kind [`KIND`].
    pub fn new(launcher: Arc<Launcher>, program: PathBuf, accelerator: Accelerator) -> Self {
        let (events, _) = broadcast::channel(1024);
        let machines = Mutex::default();
        QemuEngine {
            shared: Arc::new(Shared {
                launcher,
                program,
                accelerator,
                machines,
                events,
            }),
        }
    }

    fn handle(&self, id: Uuid) -> Option<Handle> {
        self.shared.machines().get(&id).cloned()
    }

    async fn ask(&self, id: Uuid, command: impl FnOnce(owner::Answer) -> Command) -> Result<(), EngineError> {
        let handle = self.handle(id).ok_or(EngineError::NotRunning)?;
        let (answer, result) = oneshot::channel();
        handle
            .commands
            .send(command(answer))
            .await
            .map_err(|_| EngineError::NotRunning)?;
        result.await.map_err(|_| EngineError::NotRunning)?
    }
}

/// The owners let go of their guests, which run on.
impl Drop for QemuEngine {
    fn drop(&mut self) {
        self.shared.machines().clear();
    }
}

#[async_trait]
impl Engine for QemuEngine {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn disk_transport(&self) -> DiskTransport {
        command::disk_transport(self.shared.accelerator)
    }

    async fn start(&self, plan: &Plan) -> Result<(), EngineError> {
        let (started, result) = oneshot::channel();
        let other = {
            let mut machines = self.shared.machines();
            match machines.get(&plan.id) {
                Some(handle) => Some(handle.life.clone()),
                None => {
                    let (owner, handle) = Owner::new(self.shared.clone(), plan.id, plan.folder.clone());
                    machines.insert(plan.id, handle);
                    tokio::spawn(owner.start(plan.clone(), started));
                    None
                }
            }
        };
        if let Some(mut life) = other {
            // Someone else is starting it, or has.
            let life = life
                .wait_for(|life| *life != Life::Starting)
                .await
                .map(|life| *life);
            return if matches!(life, Ok(Life::Running | Life::Paused | Life::Stopping)) {
                Ok(())
            } else {
                Err(EngineError::NotRunning)
            };
        }
        result.await.map_err(|_| EngineError::NotRunning)?
    }

    async fn stop(&self, id: Uuid, mode: StopMode) -> Result<(), EngineError> {
        match self.ask(id, |answer| Command::Stop(mode, answer)).await {
            Err(EngineError::NotRunning) => Ok(()),
            other => other,
        }
    }

    async fn reset(&self, id: Uuid) -> Result<(), EngineError> {
        self.ask(id, Command::Reset).await
    }

    async fn pause(&self, id: Uuid) -> Result<(), EngineError> {
        self.ask(id, Command::Pause).await
    }

    async fn resume(&self, id: Uuid) -> Result<(), EngineError> {
        self.ask(id, Command::Resume).await
    }

    async fn plug(&self, id: Uuid, device: &PlannedDevice) -> Result<(), EngineError> {
        self.ask(id, |answer| Command::Plug(device.clone(), answer)).await
    }

    async fn unplug(&self, id: Uuid, socket: &str) -> Result<(), EngineError> {
        match self
            .ask(id, |answer| Command::Unplug(socket.to_owned(), answer))
            .await
        {
            Err(EngineError::NotRunning) => Ok(()),
            other => other,
        }
    }

    async fn resize(&self, id: Uuid, socket: &str, bytes: u64) -> Result<(), EngineError> {
        self.ask(id, |answer| Command::Resize(socket.to_owned(), bytes, answer))
            .await
    }

    async fn adopt(&self) -> Result<(), EngineError> {
        let launcher = &self.shared.launcher;
        let io = |what| move |source| EngineError::Io { what, source };
        for (name, record) in launcher.runtime.list().map_err(io("runtime files"))? {
            if record.kind != KIND {
                continue;
            }
            let Ok(note) = Note::deserialize(&record.note) else {
                warn!(child = name, "a guest's runtime file does not say whose it is");
                continue;
            };
            match launcher.runtime.find(&record).map_err(io("a guest's process"))? {
                Some(process) => {
                    info!(server = %note.id, pid = process.pid(), "guest adopted");
                    let (owner, handle) = Owner::new(self.shared.clone(), note.id, note.folder);
                    let mut life = handle.life.clone();
                    self.shared.machines().insert(note.id, handle);
                    tokio::spawn(owner.adopt(process));
                    // Known from now on, in whatever state.
                    let _ = life.wait_for(|life| *life != Life::Starting).await;
                }
                None => {
                    launcher.forget(&name).map_err(io("a guest's runtime file"))?;
                    let state = how_it_ended(&note.folder, false);
                    info!(server = %note.id, ?state, "guest ended while no daemon ran");
                    let _ = self.shared.events.send(MachineEvent { id: note.id, state });
                }
            }
        }
        Ok(())
    }

    fn list(&self) -> Vec<(Uuid, PowerState)> {
        self.shared
            .machines()
            .iter()
            .filter_map(|(id, handle)| {
                let state = match *handle.life.borrow() {
                    Life::Starting | Life::Running | Life::Stopping => PowerState::Running,
                    Life::Paused => PowerState::Paused,
                    Life::Ended => return None,
                };
                Some((*id, state))
            })
            .collect()
    }

    fn events(&self) -> broadcast::Receiver<MachineEvent> {
        self.shared.events.subscribe()
    }
}

impl Shared {
    fn machines(&self) -> MutexGuard<'_, HashMap<Uuid, Handle>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where QEMU sees the folder of a machine's sockets.
    fn sockets_seen(&self, folder: &Path) -> PathBuf {
        if self.launcher.isolation == Isolation::Process {
            SOCKETS.into()
        } else {
            folder.join("sockets")
        }
    }

    /// Start the supervisor, and QEMU by it. Blocks.
    fn launch(&self, plan: &Plan) -> Result<Running, EngineError> {
        let io = |what| move |source| EngineError::Io { what, source };
        let jailed = self.launcher.isolation == Isolation::Process;
        let sockets = plan.sockets();
        fs::create_dir_all(&sockets).map_err(io("the folder of the guest's sockets"))?;
        let seen = if jailed { Path::new(SOCKETS) } else { &sockets };
        let spec = Spec {
            program: self.program.clone(),
            arguments: command::arguments(plan, self.accelerator, seen),
        };
        let qmp = process::control::bind(&qmp_path(&plan.folder)).map_err(io("the monitor's socket"))?;
        let open = |path: PathBuf| {
            File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(path)
                .map_err(io("the console's log"))
        };
        let [console0, console1] = console::paths(&plan.folder);
        let (console0, console1) = (open(console0)?, open(console1)?);
        let exit = File::create(exit_path(&plan.folder)).map_err(io("the exit record"))?;
        let mut devices: Vec<PathBuf> = ["/dev/null", "/dev/urandom"].map(PathBuf::from).into();
        if self.accelerator == Accelerator::Kvm {
            devices.push("/dev/kvm".into());
        }
        let memory = (plan.memory_mib * MIB).saturating_add(OVERHEAD);
        let mut launched = self.launcher.launch(&Launch {
            kind: KIND,
            main: supervisor::run,
            name: child_name(plan.id),
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
            note: serde_json::to_value(Note {
                id: plan.id,
                folder: plan.folder.clone(),
            })
            .unwrap_or_default(),
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

/// The name of a guest's supervisor among the children.
pub fn child_name(id: Uuid) -> String {
    format!("guest-{id}")
}

fn qmp_path(folder: &Path) -> PathBuf {
    folder.join("qmp.sock")
}

fn exit_path(folder: &Path) -> PathBuf {
    folder.join("exit.json")
}

/// From the exit record; without one QEMU was killed together with its supervisor.
fn exit_record(folder: &Path) -> Option<ExitRecord> {
    serde_json::from_slice(&fs::read(exit_path(folder)).ok()?).ok()
}

/// What the end means. `asked`: somebody asked for it.
fn how_it_ended(folder: &Path, asked: bool) -> PowerState {
    let clean = exit_record(folder).is_some_and(|record| record.status == Some(0));
    if clean || asked {
        PowerState::Shutdown
    } else {
        PowerState::Crashed
    }
}
