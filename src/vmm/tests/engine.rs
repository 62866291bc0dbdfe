//! The engine of the embedded monitor, with real guests in their jails. Needs root; without a usable KVM every test says that
//! it was skipped.

#[path = "guests/mod.rs"]
#[allow(dead_code)]
mod guests;
#[path = "probe/storage.rs"]
mod storage;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use model::disk::{DiskLimits, DiskSpec, DiskTransport};
use model::machine::{MachineEvent, PowerState, StopMode};
use process::child::{Isolation, Launcher, Runtime};
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;
use vmm::kvm::KvmEngine;
use vmm::kvm::engine::{Options, child};
use vmm::{
    Embedded, Engine, EngineError, Plan, PlannedBoot, PlannedDevice, PlannedDisk, PlannedNic, console,
};

const PATIENCE: Duration = Duration::from_secs(60);
const ID: Uuid = Uuid::from_u128(1);

struct Bench {
    folder: tempfile::TempDir,
    engine: KvmEngine,
    events: broadcast::Receiver<MachineEvent>,
}

fn usable() -> bool {
    let usable = vmm::kvm::probe().is_ok_and(|offer| offer.lacks().is_empty());
    if !usable {
        println!("skipped: there is no usable KVM");
    }
    usable
}

fn engine(folder: &Path, isolation: Isolation) -> KvmEngine {
    let mut launcher = Launcher::new(isolation, Runtime::open(&folder.join("run")).unwrap());
    launcher.program = env!("CARGO_BIN_EXE_vmm-probe").into();
    launcher.logs = Some(folder.join("log"));
    // Several of these tests run at a time, each with guests of its own.
    launcher.first_uid = 720_000 + std::process::id() % 1000 * 10;
    let main = |start| child::run(start, storage::open);
    KvmEngine::new(Arc::new(launcher), main, Options::default())
}

fn bench(isolation: Isolation) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("machine")).unwrap();
    let engine = engine(folder.path(), isolation);
    Bench {
        events: engine.events(),
        engine,
        folder,
    }
}

async fn until(condition: impl Fn() -> bool) {
    timeout(PATIENCE, async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it happens in time");
}

impl Bench {
    fn plan(&self, command: &str) -> Plan {
        Plan {
            id: ID,
            name: "test".into(),
            vcpus: 1,
            memory_mib: 16,
            boot: PlannedBoot::Kernel {
                image: Arc::new(guests::elf()),
                initrd: None,
                command_line: command.into(),
            },
            disks: Vec::new(),
            nics: Vec::new(),
            folder: self.folder.path().join("machine"),
        }
    }

    async fn start(&self, command: &str) {
        self.engine.start(&self.plan(command)).await.unwrap();
    }

    fn text(&self) -> String {
        let bytes = console::tail(&self.folder.path().join("machine"), 1 << 20).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    async fn prints(&self, wanted: &str) {
        timeout(PATIENCE, async {
            while !self.text().contains(wanted) {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("no {wanted:?} in {:?}", self.text()));
    }

    async fn event(&mut self) -> PowerState {
        timeout(PATIENCE, self.events.recv())
            .await
            .unwrap()
            .unwrap()
            .state
    }

    fn pid(&self) -> i32 {
        let runtime = Runtime::open(&self.folder.path().join("run")).unwrap();
        runtime.list().unwrap()[&vmm::child_name(ID)].pid
    }

    fn assert_gone(&self) {
        assert!(self.engine.list().is_empty());
        let runtime = Runtime::open(&self.folder.path().join("run")).unwrap();
        assert!(runtime.list().unwrap().is_empty());
    }
}

async fn a_guest_lives_and_stops(isolation: Isolation) {
    let bench = bench(isolation);
    bench.start("press me").await;
    bench.start("press me").await;
    bench.prints("ready\n").await;
    assert_eq!(bench.engine.list(), [(ID, PowerState::Running)]);
    bench.engine.pause(ID).await.unwrap();
    assert_eq!(bench.engine.list(), [(ID, PowerState::Paused)]);
    bench.engine.resume(ID).await.unwrap();
    bench.engine.reset(ID).await.unwrap();
    bench.prints("ready\nready\n").await;
    bench.engine.stop(ID, StopMode::Graceful(PATIENCE)).await.unwrap();
    assert_eq!(bench.text(), "ready\nready\npressed\n");
    bench.assert_gone();
    bench.engine.stop(ID, StopMode::Hard).await.unwrap();
    assert!(matches!(
        bench.engine.reset(ID).await,
        Err(EngineError::NotRunning)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_in_its_jail_starts_pauses_resets_and_stops() {
    if usable() {
        a_guest_lives_and_stops(Isolation::Process).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_on_a_thread_does_as_well() {
    if usable() {
        a_guest_lives_and_stops(Isolation::Thread).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn firmware_starts_in_its_jail_and_again_after_a_reset() {
    if !usable() {
        return;
    }
    let bench = bench(Isolation::Process);
    let mut plan = bench.plan("");
    plan.boot = PlannedBoot::Bios;
    if !Options::default().bios.exists() {
        println!("skipped: {:?} is not installed", Options::default().bios);
        let refused = bench.engine.start(&plan).await;
        assert!(matches!(refused, Err(EngineError::Io { .. })), "{refused:?}");
        return;
    }
    bench.engine.start(&plan).await.unwrap();
    bench.prints(&format!("Machine UUID {ID}")).await;
    bench.engine.reset(ID).await.unwrap();
    let twice = || bench.text().matches("SeaBIOS (version ").count() >= 2;
    until(twice).await;
    bench.engine.stop(ID, StopMode::Hard).await.unwrap();
    bench.assert_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deaf_guest_is_stopped_in_time_and_at_once_when_that_is_asked() {
    if !usable() {
        return;
    }
    let bench = bench(Isolation::Process);
    bench.start("no").await;
    bench.prints("ready\n").await;
    let start = Instant::now();
    let patience = Duration::from_millis(500);
    bench.engine.stop(ID, StopMode::Graceful(patience)).await.unwrap();
    assert!(start.elapsed() >= patience);
    bench.assert_gone();

    bench.start("no").await;
    let patient = bench.engine.stop(ID, StopMode::Graceful(PATIENCE * 10));
    let hasty = async {
        sleep(Duration::from_millis(100)).await;
        bench.engine.stop(ID, StopMode::Hard).await
    };
    let (first, second) = tokio::join!(patient, hasty);
    first.unwrap();
    second.unwrap();
    bench.assert_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_is_deaf_is_killed() {
    if !usable() {
        return;
    }
    let bench = bench(Isolation::Process);
    bench.start("spin").await;
    let pid = nix::unistd::Pid::from_raw(bench.pid());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let start = Instant::now();
    bench.engine.stop(ID, StopMode::Hard).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    bench.assert_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_of_a_running_guest_stay_and_what_it_does_not_have_is_gone() {
    if !usable() {
        return;
    }
    let bench = bench(Isolation::Process);
    let mut plan = bench.plan("spin");
    let nic = |socket: &str| PlannedNic {
        socket: socket.into(),
        mac: model::net::MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
    };
    plan.nics.push(nic("net-1"));
    bench.engine.start(&plan).await.unwrap();
    let unsupported = |result| matches!(result, Err(EngineError::Unsupported { engine: "kvm", .. }));
    let plugged = bench.engine.plug(ID, &PlannedDevice::Nic(nic("net-2"))).await;
    assert!(unsupported(plugged));
    // What was begun with the refused one can be cleared.
    bench.engine.unplug(ID, "net-2").await.unwrap();
    assert!(unsupported(bench.engine.unplug(ID, "net-1").await));
    bench.engine.stop(ID, StopMode::Hard).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_powers_off_and_one_that_is_killed_are_told_apart() {
    if !usable() {
        return;
    }
    let mut bench = bench(Isolation::Process);
    bench.start("hello").await;
    assert_eq!(bench.event().await, PowerState::Shutdown);
    bench.assert_gone();
    bench.start("spin").await;
    let pid = nix::unistd::Pid::from_raw(bench.pid());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(bench.event().await, PowerState::Crashed);
    bench.assert_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_cannot_be_says_why() {
    if !usable() {
        return;
    }
    let bench = bench(Isolation::Process);
    let mut plan = bench.plan("no");
    plan.vcpus = 129;
    let error = bench.engine.start(&plan).await.unwrap_err().to_string();
    assert!(error.contains("virtual processors"), "{error}");
    let mut plan = bench.plan("no");
    plan.boot = PlannedBoot::Kernel {
        image: Arc::new(tempfile::tempfile().unwrap()),
        initrd: None,
        command_line: String::new(),
    };
    let error = bench.engine.start(&plan).await.unwrap_err().to_string();
    assert!(error.contains("kernel"), "{error}");
    bench.assert_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_outlive_their_daemon_and_the_next_one_adopts_them() {
    if !usable() {
        return;
    }
    let mut bench = bench(Isolation::Process);
    let elf = bench.folder.path().join("kernel");
    std::io::copy(&mut guests::elf(), &mut File::create(&elf).unwrap()).unwrap();
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_vmm-probe"))
        .args(["kvm-daemon", bench.folder.path().to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    let pid = bench.pid();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let before = bench.text().len();
    until(|| bench.text().len() > before).await;

    bench.engine.adopt().await.unwrap();
    assert_eq!(bench.engine.list(), [(ID, PowerState::Running)]);
    assert_eq!(bench.pid(), pid);
    bench.engine.pause(ID).await.unwrap();
    let next = engine(bench.folder.path(), Isolation::Process);
    next.adopt().await.unwrap();
    assert_eq!(next.list(), [(ID, PowerState::Paused)]);
    next.resume(ID).await.unwrap();
    let before = bench.text().len();
    until(|| bench.text().len() > before).await;
    next.stop(ID, StopMode::Hard).await.unwrap();
    assert!(next.list().is_empty());
    assert_eq!(
        bench.event().await,
        PowerState::Shutdown,
        "the record says that it was stopped"
    );
}

/// What a child shows of itself in `/proc`.
fn status(pid: i32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap_or_else(|| panic!("no {field} in {status}"))
        .trim()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_monitor_is_locked_in() {
    if !usable() {
        return;
    }
    let bench = bench(Isolation::Process);
    let volume = tempfile::NamedTempFile::new().unwrap();
    volume.as_file().set_len(1 << 20).unwrap();
    let mut plan = bench.plan("spin");
    plan.disks.push(PlannedDisk {
        socket: "disk-1".into(),
        queues: 1,
        serial: "1".into(),
        embedded: Some(Embedded {
            spec: DiskSpec {
                id: ID,
                size: 1 << 20,
                read_only: false,
                queues: 1,
                direct: false,
                transport: DiskTransport::Embedded,
                key: None,
                limits: DiskLimits::default(),
            },
            file: Arc::new(volume.reopen().unwrap()),
        }),
    });
    bench.engine.start(&plan).await.unwrap();
    let pid = bench.pid();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(pid, "NoNewPrivs:"), "1");
    assert_eq!(status(pid, "Seccomp:"), "2");
    let uid = status(pid, "Uid:");
    let uids: Vec<u32> = uid.split_whitespace().map(|uid| uid.parse().unwrap()).collect();
    assert!(uids.iter().all(|uid| *uid >= 720_000), "{uid}");
    for namespace in ["mnt", "net", "ipc", "uts", "pid"] {
        let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    // Its whole world: the folder of sockets.
    let root: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/root/"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(root, ["guest"]);
    // The filter of the process, and for the vCPU one of its own on top.
    let mut filters = std::collections::BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let task: i32 = task.unwrap().file_name().to_str().unwrap().parse().unwrap();
        assert_eq!(status(task, "Seccomp:"), "2");
        let count: u32 = status(task, "Seccomp_filters:").parse().unwrap();
        filters.insert(status(task, "Name:"), count);
    }
    assert_eq!(filters["vcpu0"], filters["machine"] + 1, "{filters:?}");
    bench.engine.stop(ID, StopMode::Hard).await.unwrap();
}
