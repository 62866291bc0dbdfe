//! The engine that runs each machine on the embedded monitor, in a jailed process of its own (`allod vmm`).
//!
//! A machine's states. One task owns each machine (`owner`); only it talks to the process.
//!
//! ```text
//!   start()              the process is ready         pause()
//!  ────────▶ Starting ───────────────────▶ Running ◀────────────▶ Paused
//!               │                            │ ▲      resume()      │
//!               │ it says why not            │ └─ adopt()           │
//!               ▼                            ▼                      ▼
//!             Ended ◀─────────────────── Stopping ◀─────────── stop(Graceful): power button, again every 3 s,
//!               ▲                            │                  the plug at the time-out
//!               └── the process ends; stop(Hard): the machine is told, and the process killed if it does not end
//! ```
//! The machine's own states are drawn in [`super::machine`]; how it ended is in the folder's `exit.json`.

pub mod child;
mod owner;
mod trim;

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use model::disk::{DiskLimits, DiskTransport};
use model::machine::{MachineEvent, PowerState, StopMode};
use model::net::QUEUE_PAIRS;
use model::units::MIB;
use process::child::{CgroupLimits, Isolation, Launch, Launcher, Main, Task};
use process::jail::{Files, Limits, Profile};
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::fleet::{self, Command, Fleet};
use crate::kvm::CpuModel;
use crate::{Engine, EngineError, Plan, PlannedBoot, PlannedDevice, console};
use child::{KIND, Order, OrderedDisk, OrderedNic};
use owner::Owner;

/// Where the monitor sees the folder of the switch's sockets.
const SOCKETS: &str = "/guest";
/// Memory that the monitor may take beyond the guest's own: itself; and for each 4 KiB of the guest's some 24 bytes of page tables (KVM's
/// and the process's) and of the memory's file, twice that where KVM keeps shadows of the guest's own tables.
const OVERHEAD: u64 = 128 * MIB;
const TABLES: u64 = 80;

/// How machines are made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Guests' memory consists of huge pages.
    pub huge_pages: bool,
    /// The processor that guests see.
    pub cpu: CpuModel,
    /// The image of a PC's firmware: SeaBIOS.
    pub bios: PathBuf,
    /// The image of UEFI firmware.
    pub uefi: PathBuf,
}

impl Default for Options {
    /// What Debian's packages `seabios` and `ovmf` install.
    fn default() -> Self {
        Options {
            huge_pages: false,
            cpu: CpuModel::Host,
            bios: "/usr/share/seabios/bios-256k.bin".into(),
            uefi: "/usr/share/ovmf/OVMF.fd".into(),
        }
    }
}

/// Runs guests on the embedded monitor.
pub struct KvmEngine {
    shared: Arc<Shared>,
}

/// What owners share.
struct Shared {
    fleet: Arc<Fleet>,
    main: Main,
    options: Options,
}

impl KvmEngine {
    /// Machines are started by `launcher`, as children of the kind [`child::KIND`], whose function is `main`: [`child::run`] with
    /// a way to open disks.
    pub fn new(launcher: Arc<Launcher>, main: Main, options: Options) -> Self {
        let fleet = Fleet::new(launcher);
        KvmEngine {
            shared: Arc::new(Shared { fleet, main, options }),
        }
    }
}

/// The owners let go of their guests, which run on.
impl Drop for KvmEngine {
    fn drop(&mut self) {
        self.shared.fleet.let_go();
    }
}

#[async_trait]
impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn disk_transport(&self, _: Uuid) -> DiskTransport {
        DiskTransport::Embedded
    }

    async fn start(&self, plan: &Plan) -> Result<(), EngineError> {
        let own = |seat, started| {
            tokio::spawn(Owner::new(seat).start(self.shared.clone(), plan.clone(), started));
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

    async fn limit(&self, id: Uuid, socket: &str, limits: &DiskLimits) -> Result<(), EngineError> {
        let limit = |answer| Command::Limit(socket.to_owned(), *limits, answer);
        self.shared.fleet.ask(id, limit).await
    }

    async fn adopt(&self) -> Result<(), EngineError> {
        let own = |seat, process| {
            tokio::spawn(Owner::new(seat).adopt(process));
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

/// A machine's control socket.
fn control_path(folder: &Path) -> PathBuf {
    folder.join("vmm.sock")
}

fn open_firmware(path: &Path) -> Result<File, EngineError> {
    let file = File::open(path);
    file.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "guests' firmware"))
        .map_err(|source| EngineError::Io {
            what: "the guests' firmware: install Debian's package seabios or ovmf, or name another image",
            source,
        })
}

impl Shared {
    /// Start the process; the machine runs when this returns. Blocks.
    fn launch(&self, plan: &Plan) -> Result<Task, EngineError> {
        let io = |what| move |source| EngineError::Io { what, source };
        let launcher = &self.fleet.launcher;
        let sockets = plan.sockets();
        fs::create_dir_all(&sockets).map_err(io("the folder of the guest's sockets"))?;
        let seen = match launcher.isolation {
            Isolation::Process => Path::new(SOCKETS),
            Isolation::Thread => &sockets,
        };
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        let kvm = kvm.map_err(io(
            "/dev/kvm: load the kernel's module for this processor's virtualisation",
        ))?;
        let control = process::control::bind(&control_path(&plan.folder));
        let control = control.map_err(io("the machine's control socket"))?;
        let exit = File::create(fleet::exit_path(&plan.folder)).map_err(io("the exit record"))?;
        let [console0, console1] = console::paths(&plan.folder)
            .map(|path| fleet::console_file(path).map_err(io("the console's log")));
        let (console0, console1) = (console0?, console1?);
        let firmware = match &plan.boot {
            PlannedBoot::Bios => Some(open_firmware(&self.options.bios)?),
            PlannedBoot::Uefi => Some(open_firmware(&self.options.uefi)?),
            PlannedBoot::Kernel { .. } => None,
        };
        let mut descriptors: Vec<(&str, BorrowedFd<'_>)> = vec![
            (child::KVM, kvm.as_fd()),
            (child::CONTROL, control.as_fd()),
            (child::EXIT, exit.as_fd()),
            (child::CONSOLE[0], console0.as_fd()),
            (child::CONSOLE[1], console1.as_fd()),
        ];
        let boot = match &plan.boot {
            PlannedBoot::Kernel {
                image,
                initrd,
                command_line,
            } => {
                descriptors.push((child::KERNEL, image.as_fd()));
                descriptors.extend(initrd.iter().map(|file| (child::INITRD, file.as_fd())));
                child::Boot::Kernel {
                    initrd: initrd.is_some(),
                    command_line: command_line.clone(),
                }
            }
            PlannedBoot::Bios | PlannedBoot::Uefi => child::Boot::Firmware { id: plan.id },
        };
        descriptors.extend(firmware.iter().map(|file| (child::FIRMWARE, file.as_fd())));
        let mut disks = Vec::new();
        for disk in &plan.disks {
            let embedded = disk.embedded.as_ref().ok_or(EngineError::Unsupported {
                engine: "kvm",
                what: "use a disk that another process owns",
            })?;
            descriptors.push((&disk.socket, embedded.file.as_fd()));
            disks.push(OrderedDisk {
                name: disk.socket.clone(),
                spec: embedded.spec.clone(),
            });
        }
        let nic = |nic: &crate::PlannedNic| OrderedNic {
            name: nic.socket.clone(),
            mac: nic.mac,
            mtu: nic.mtu,
            // One for each processor that could use it, but no more than the switch has: should it be away at the start, the guest
            // must not set up what it will not serve.
            queue_pairs: u16::try_from(plan.vcpus).map_or(QUEUE_PAIRS, |vcpus| vcpus.clamp(1, QUEUE_PAIRS)),
            socket: seen.join(&nic.socket),
        };
        let order = Order {
            vcpus: plan.vcpus,
            memory_mib: plan.memory_mib,
            huge_pages: self.options.huge_pages,
            cpu: self.options.cpu,
            boot,
            disks,
            nics: plan.nics.iter().map(nic).collect(),
        };
        let memory = plan.memory_mib.saturating_mul(MIB);
        let launched = launcher.launch(&Launch {
            kind: KIND,
            main: self.main,
            name: fleet::child_name(plan.id),
            spec: &order,
            descriptors,
            profile: Profile::Vmm,
            files: Files {
                folder: Some((sockets, SOCKETS.into())),
                ..Files::default()
            },
            limits: Limits {
                open_files: 4096,
                processes: u64::from(plan.vcpus) + 256,
                ..Limits::default()
            },
            cgroup: CgroupLimits {
                memory: Some(memory.saturating_add(memory / TABLES).saturating_add(OVERHEAD)),
                processes: Some(u64::from(plan.vcpus) + 256),
            },
            // A guest goes before the daemon and the switch do.
            oom_score_adj: 500,
            control: Some(control_path(&plan.folder)),
            note: fleet::note(plan.id, &plan.folder),
        })?;
        Ok(launched.task)
    }
}
