//! The QEMU engine with real guests: boot sectors of some ten bytes, in software. Needs root and QEMU.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use model::machine::{MachineEvent, PowerState, StopMode};
use process::child::{Isolation, Launcher, Runtime};
use tokio::sync::broadcast;
use tokio::time::{sleep, timeout};
use uuid::Uuid;
use vmm::qemu::QemuEngine;
use vmm::{Accelerator, Engine, EngineError, Plan, PlannedBoot, PlannedDevice, PlannedDisk, console};

const PATIENCE: Duration = Duration::from_secs(60);

/// x86 code that prints its message on the first serial port, then does `after`.
fn boot_sector(message: &str, after: &[u8]) -> Vec<u8> {
    let mut code = vec![
        0xfa, // cli
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0xfc, // cld
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xbe, 0, 0,    // mov si, message
        0xac, // next: lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x03, // jz done
        0xee, // out dx, al
        0xeb, 0xf8, // jmp next
    ];
    code.extend(after);
    let address = u16::try_from(0x7c00 + code.len()).unwrap();
    code[10..12].copy_from_slice(&address.to_le_bytes());
    code.extend(message.bytes());
    code.push(0);
    assert!(code.len() <= 510);
    code.resize(510, 0);
    code.extend([0x55, 0xaa]);
    code
}

/// hlt; jmp
const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];
/// Power off by ACPI: mov dx, 0x604; mov ax, 0x2000; out dx, ax
const POWER_OFF: &[u8] = &[0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef];
/// Let the power button count (PM1_EN), wait until it is pressed (PM1_STS), power off.
const OBEY_BUTTON: &[u8] = &[
    0xba, 0x02, 0x06, 0xb8, 0x00, 0x01, 0xef, // mov dx, 0x602; mov ax, 0x100; out dx, ax
    0xba, 0x00, 0x06, // mov dx, 0x600
    0xed, // wait: in ax, dx
    0xf6, 0xc4, 0x01, // test ah, 1
    0x74, 0xfa, // jz wait
    0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, // power off
];
/// Without interrupts: stop the clock, change the memory map, then compute for ever, so that nothing makes the vCPU pause.
const COMPUTE: &[u8] = &[
    0xb0, 0x30, 0xe6, 0x43, // mov al, 0x30; out 0x43, al: the timer counts once
    0xba, 0xf8, 0x0c, 0x66, 0xb8, 0x90, 0x00, 0x00, 0x80, 0x66,
    0xef, // mov dx, 0xcf8; mov eax, 0x80000090; out dx, eax
    0xba, 0xfd, 0x0c, // mov dx, 0xcfd: PAM1 of the Q35 host bridge, what is at 0xc0000
    0x30, 0xc0, 0xee, // xor al, al; out dx, al: ROM
    0xb0, 0x33, 0xee, // mov al, 0x33; out dx, al: RAM
    0xeb, 0xfe, // jmp $
];
/// Print again, and again.
const AGAIN: &[u8] = &[0xeb, 0xea];

struct Bench {
    folder: tempfile::TempDir,
    engine: QemuEngine,
    events: broadcast::Receiver<MachineEvent>,
    disk: Option<Child>,
}

/// An engine, and a disk with this boot sector behind a vhost-user-blk socket.
async fn bench(isolation: Isolation, sector: &[u8]) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(folder.path(), isolation);
    let events = engine.events();
    let disk = serve_disk(folder.path(), sector).await;
    Bench {
        folder,
        engine,
        events,
        disk: Some(disk),
    }
}

fn engine(folder: &Path, isolation: Isolation) -> QemuEngine {
    let mut launcher = Launcher::new(isolation, Runtime::open(&folder.join("run")).unwrap());
    launcher.program = env!("CARGO_BIN_EXE_vmm-probe").into();
    // Several of these tests run at a time, each with guests of its own.
    launcher.first_uid = 700_000 + std::process::id() % 1000 * 10;
    QemuEngine::new(
        Arc::new(launcher),
        "/usr/bin/qemu-system-x86_64".into(),
        Accelerator::Tcg,
    )
}

async fn serve_disk(folder: &Path, sector: &[u8]) -> Child {
    let image = folder.join("disk.raw");
    std::fs::write(&image, sector).unwrap();
    std::fs::File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let sockets = folder.join("machine/sockets");
    std::fs::create_dir_all(&sockets).unwrap();
    let socket = sockets.join("disk0");
    let child = Command::new("qemu-storage-daemon")
        .args([
            "--blockdev",
            &format!("driver=file,node-name=disk,filename={}", image.display()),
        ])
        .args([
            "--nbd-server",
            &format!("addr.type=unix,addr.path={}", socket.display()),
        ])
        .args(["--export", "type=nbd,id=disk,node-name=disk,name="])
        .spawn()
        .unwrap();
    until(|| socket.exists()).await;
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    child
}

async fn until(condition: impl Fn() -> bool) {
    timeout(PATIENCE, async {
        while !condition() {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it happens in time");
}

impl Bench {
    fn plan(&self) -> Plan {
        Plan {
            id: Uuid::from_u128(1),
            name: "test".into(),
            vcpus: 1,
            memory_mib: 64,
            boot: PlannedBoot::Bios,
            disks: vec![PlannedDisk {
                socket: "disk0".into(),
                queues: 1,
                serial: "disk-1".into(),
                embedded: None,
            }],
            nics: Vec::new(),
            folder: self.folder.path().join("machine"),
        }
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&console::tail(&self.plan().folder, 1 << 20).unwrap()).into_owned()
    }

    async fn printed(&self, text: &str) {
        until(|| self.console().contains(text)).await;
    }

    async fn event(&mut self) -> PowerState {
        timeout(PATIENCE, self.events.recv())
            .await
            .unwrap()
            .unwrap()
            .state
    }

    /// The number of QEMU's supervisor.
    fn supervisor(&self) -> i32 {
        let runtime = Runtime::open(&self.folder.path().join("run")).unwrap();
        runtime
            .list()
            .unwrap()
            .values()
            .next()
            .expect("a child is written down")
            .pid
    }

    fn leftovers(&self) -> usize {
        Runtime::open(&self.folder.path().join("run"))
            .unwrap()
            .list()
            .unwrap()
            .len()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let runtime = Runtime::open(&self.folder.path().join("run")).unwrap();
        for record in runtime.list().unwrap().values() {
            if let Some(process) = runtime.find(record).unwrap() {
                process.kill().unwrap();
            }
        }
        if let Some(disk) = &mut self.disk {
            disk.kill().unwrap();
            disk.wait().unwrap();
        }
    }
}

#[tokio::test]
async fn a_guest_boots_pauses_resets_and_stops() {
    let bench = bench(Isolation::Process, &boot_sector("booted\r\n", HALT)).await;
    let (engine, plan) = (&bench.engine, bench.plan());
    engine.start(&plan).await.unwrap();
    engine.start(&plan).await.unwrap();
    bench.printed("booted").await;
    assert_eq!(engine.list(), [(plan.id, PowerState::Running)]);
    engine.pause(plan.id).await.unwrap();
    engine.pause(plan.id).await.unwrap();
    assert_eq!(engine.list(), [(plan.id, PowerState::Paused)]);
    engine.resume(plan.id).await.unwrap();
    assert_eq!(engine.list(), [(plan.id, PowerState::Running)]);
    engine.reset(plan.id).await.unwrap();
    until(|| bench.console().matches("booted").count() == 2).await;
    engine.stop(plan.id, StopMode::Hard).await.unwrap();
    engine.stop(plan.id, StopMode::Hard).await.unwrap();
    assert!(engine.list().is_empty());
    assert_eq!(bench.leftovers(), 0);
    assert!(matches!(
        engine.reset(plan.id).await,
        Err(EngineError::NotRunning)
    ));
    // The log stays.
    bench.printed("booted").await;
}

#[tokio::test]
async fn a_guest_that_powers_off_and_one_that_is_killed_are_told_apart() {
    let mut bench = bench(Isolation::Process, &boot_sector("bye", POWER_OFF)).await;
    bench.engine.start(&bench.plan()).await.unwrap();
    assert_eq!(bench.event().await, PowerState::Shutdown);
    assert!(bench.engine.list().is_empty());

    std::fs::write(bench.folder.path().join("disk.raw"), boot_sector("again", HALT)).unwrap();
    bench.engine.start(&bench.plan()).await.unwrap();
    bench.printed("again").await;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(bench.supervisor()),
        nix::sys::signal::SIGKILL,
    )
    .unwrap();
    assert_eq!(bench.event().await, PowerState::Crashed);
    assert_eq!(bench.leftovers(), 0);
}

#[tokio::test]
async fn the_power_button_is_obeyed_or_the_plug_is_pulled() {
    let mut bench = bench(Isolation::Process, &boot_sector("ready", OBEY_BUTTON)).await;
    let plan = bench.plan();
    bench.engine.start(&plan).await.unwrap();
    bench.printed("ready").await;
    bench
        .engine
        .stop(plan.id, StopMode::Graceful(PATIENCE))
        .await
        .unwrap();
    let exit = std::fs::read_to_string(plan.folder.join("exit.json")).unwrap();
    assert!(exit.contains("\"status\":0"), "it shut itself down: {exit}");

    std::fs::write(bench.folder.path().join("disk.raw"), boot_sector("deaf", HALT)).unwrap();
    bench.engine.start(&plan).await.unwrap();
    bench.printed("deaf").await;
    bench
        .engine
        .stop(plan.id, StopMode::Graceful(Duration::from_millis(50)))
        .await
        .unwrap();
    assert!(bench.engine.list().is_empty());
    assert!(
        bench.events.try_recv().is_err(),
        "a stop that was asked for is no event"
    );
}

/// QEMU frees memory when all vCPUs have paused, which this one does not; and whoever waits for that is not heard of again.
#[tokio::test]
async fn a_guest_that_never_rests_is_given_devices() {
    let bench = bench(Isolation::Process, &boot_sector("computing", COMPUTE)).await;
    let plan = bench.plan();
    bench.engine.start(&plan).await.unwrap();
    bench.printed("computing").await;
    // QEMU waits for some 50 ms until it begins to wait for vCPUs.
    sleep(Duration::from_millis(500)).await;
    for socket in ["disk1", "disk2"] {
        // The same disk by another name.
        std::os::unix::fs::symlink("disk0", plan.sockets().join(socket)).unwrap();
        let disk = PlannedDevice::Disk(Box::new(PlannedDisk {
            socket: socket.into(),
            queues: 1,
            serial: socket.into(),
            embedded: None,
        }));
        for _ in 0..2 {
            bench.engine.plug(plan.id, &disk).await.unwrap();
        }
    }
    bench.engine.stop(plan.id, StopMode::Hard).await.unwrap();
}

#[tokio::test]
async fn a_flood_on_the_console_is_bounded() {
    let bench = bench(Isolation::Process, &boot_sector("0123456789abcdef", AGAIN)).await;
    let plan = bench.plan();
    bench.engine.start(&plan).await.unwrap();
    let lengths = || console::paths(&plan.folder).map(|path| path.metadata().map_or(0, |m| m.len()));
    // The second file is full, and the first was begun again: more was printed than is kept.
    until(|| {
        let [first, second] = lengths();
        assert!(first <= console::TURN && second <= console::TURN);
        first < console::TURN && second == console::TURN
    })
    .await;
    let kept = console::tail(&plan.folder, usize::MAX).unwrap().len() as u64;
    assert!((console::TURN..=2 * console::TURN).contains(&kept));
    bench.engine.stop(plan.id, StopMode::Hard).await.unwrap();
}

#[tokio::test]
async fn qemu_is_locked_in() {
    let bench = bench(Isolation::Process, &boot_sector("booted", HALT)).await;
    let plan = bench.plan();
    bench.engine.start(&plan).await.unwrap();
    let supervisor = bench.supervisor();
    let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap();
    let qemu: i32 = children.trim().parse().expect("QEMU is its only child");
    let status = std::fs::read_to_string(format!("/proc/{qemu}/status")).unwrap();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap()
            .trim_start_matches(':')
            .trim()
            .to_owned()
    };
    assert_eq!(field("CapEff"), "0000000000000000");
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    assert_ne!(field("Uid").split_whitespace().next(), Some("0"));
    for namespace in ["mnt", "net", "ipc", "uts", "pid"] {
        let link = |pid: String| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(link(qemu.to_string()), link("self".into()), "{namespace}");
    }
    let root: Vec<_> = std::fs::read_dir(format!("/proc/{qemu}/root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["bin", "lib", "lib64", "sbin"].contains(&name.as_str()))
        .collect();
    assert_eq!(
        std::collections::BTreeSet::from_iter(root),
        ["dev", "etc", "guest", "usr"].map(String::from).into()
    );
    bench.engine.stop(plan.id, StopMode::Hard).await.unwrap();
    assert!(!Path::new(&format!("/proc/{qemu}")).exists() || status_is_dead(qemu));
}

fn status_is_dead(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .map_or(true, |s| s.contains("State:\tZ") || s.contains("State:\tX"))
}

#[tokio::test]
async fn what_an_image_names_and_this_engine_cannot_start_is_refused() {
    let bench = bench(Isolation::Process, &boot_sector("", HALT)).await;
    for boot in [
        PlannedBoot::Uefi,
        PlannedBoot::Kernel {
            image: Arc::new(tempfile::tempfile().unwrap()),
            initrd: None,
            command_line: String::new(),
        },
    ] {
        let plan = Plan { boot, ..bench.plan() };
        let refused = bench.engine.start(&plan).await;
        assert!(matches!(
            refused,
            Err(EngineError::Unsupported { engine: "qemu", .. })
        ));
    }
}

#[tokio::test]
async fn a_qemu_that_cannot_start_says_why() {
    let bench = bench(Isolation::Process, &boot_sector("", HALT)).await;
    let plan = Plan {
        memory_mib: 0,
        boot: PlannedBoot::Bios,
        ..bench.plan()
    };
    let error = bench.engine.start(&plan).await.unwrap_err().to_string();
    assert!(
        error.contains("exit status 1") && error.contains("memory"),
        "{error}"
    );
    assert!(bench.engine.list().is_empty());
    assert_eq!(bench.leftovers(), 0);
}

#[tokio::test]
async fn a_guest_on_a_thread_runs_and_stops_as_well() {
    let mut bench = bench(Isolation::Thread, &boot_sector("booted", HALT)).await;
    let plan = bench.plan();
    bench.engine.start(&plan).await.unwrap();
    bench.printed("booted").await;
    bench.engine.stop(plan.id, StopMode::Hard).await.unwrap();
    assert!(bench.engine.list().is_empty());
    std::fs::write(
        bench.folder.path().join("disk.raw"),
        boot_sector("off", POWER_OFF),
    )
    .unwrap();
    bench.engine.start(&plan).await.unwrap();
    assert_eq!(bench.event().await, PowerState::Shutdown);
}

#[tokio::test]
async fn guests_outlive_their_daemon_and_the_next_one_adopts_them() {
    let mut bench = bench(Isolation::Process, &boot_sector("booted", OBEY_BUTTON)).await;
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_vmm-probe"))
        .arg("daemon")
        .arg(bench.folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let before = bench.supervisor();
    bench.printed("booted").await;

    bench.engine.adopt().await.unwrap();
    let id = bench.plan().id;
    assert_eq!(bench.engine.list(), [(id, PowerState::Running)]);
    assert_eq!(bench.supervisor(), before, "the same process");
    bench.engine.pause(id).await.unwrap();

    // A third daemon finds it paused; the second one's connection is gone.
    bench.engine = engine(bench.folder.path(), Isolation::Process);
    bench.events = bench.engine.events();
    bench.engine.adopt().await.unwrap();
    assert_eq!(bench.engine.list(), [(id, PowerState::Paused)]);
    bench.engine.resume(id).await.unwrap();
    bench.engine.stop(id, StopMode::Graceful(PATIENCE)).await.unwrap();
    assert_eq!(bench.leftovers(), 0);
}

#[tokio::test]
async fn a_guest_that_ended_while_no_daemon_ran_is_reported() {
    let mut bench = bench(Isolation::Process, &boot_sector("booted", HALT)).await;
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_vmm-probe"))
        .arg("daemon")
        .arg(bench.folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let runtime = Runtime::open(&bench.folder.path().join("run")).unwrap();
    let record = runtime.list().unwrap().into_values().next().unwrap();
    let process = runtime.find(&record).unwrap().unwrap();
    process.kill().unwrap();
    assert!(process.wait(Some(PATIENCE)).unwrap().is_some());

    bench.engine.adopt().await.unwrap();
    assert_eq!(bench.event().await, PowerState::Crashed);
    assert_eq!(bench.leftovers(), 0);
}
