//! The embedded monitor keeps limits of its disks, measured by its guest and beside it. Without a usable KVM these say that they were
//! skipped.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use model::disk::{DiskLimits, DiskSpec, DiskStatus, DiskTransport, Rate};
use model::machine::StopMode;
use process::child::{Isolation, Launcher, Runtime};
use uuid::Uuid;
use vmm::kvm::{Boot, Control, CpuModel, Disk, Kernel, KvmEngine, Machine, Spec, probe};
use vmm::{Embedded, Engine, Plan, PlannedBoot, PlannedDisk};

use crate::drivers::children;
use crate::guest;

const ID: Uuid = Uuid::from_u128(0x51);
const BYTES: u64 = 4 << 20;
const WINDOW: Duration = Duration::from_secs(10);

fn usable() -> bool {
    let usable = probe().is_ok_and(|offer| offer.lacks().is_empty());
    if !usable {
        println!("skipped: there is no usable KVM");
    }
    usable
}

fn image(folder: &Path) -> File {
    let elf = folder.join("suite");
    guest::build(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmm"), &elf);
    File::open(elf).unwrap()
}

fn iops(rate: u64) -> DiskLimits {
    DiskLimits {
        total_iops: Some(Rate::steady(rate)),
        ..DiskLimits::default()
    }
}

fn spec(limits: DiskLimits) -> DiskSpec {
    DiskSpec {
        id: ID,
        size: BYTES,
        read_only: false,
        queues: 1,
        direct: false,
        transport: DiskTransport::Embedded,
        limits,
        key: None,
    }
}

fn volume() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(BYTES).unwrap();
    file
}

fn within(measured: f64, right: f64, what: &str) {
    println!(
        "{what}: {measured:.0} of {right:.0}, {:+.2} %",
        (measured / right - 1.0) * 100.0
    );
    assert!(
        (0.95 * right..=1.05 * right).contains(&measured),
        "{what}: {measured} of {right}"
    );
}

/// In this process, where the device can be looked at.
pub fn a_guest_of_the_embedded_monitor_gets_what_its_limits_say() {
    if !usable() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (geometry, storage) = children::open_disk(&spec(iops(500)), volume().into()).unwrap();
    let spec = Spec {
        kvm: None,
        vcpus: 1,
        memory_mib: 48,
        huge_pages: false,
        cpu: CpuModel::Host,
        boot: Boot::Kernel(Kernel {
            image: image(folder.path()),
            initrd: None,
            command_line: "iops 64 600s".into(),
        }),
        disks: vec![Disk {
            name: "disk".into(),
            geometry,
            storage,
        }],
        nics: Vec::new(),
        balloon: false,
        console: None,
        vsock: None,
    };
    let printed = Arc::new(Mutex::new(Vec::new()));
    let there = printed.clone();
    let machine = Machine::new(spec, move |bytes: &[u8]| {
        there.lock().unwrap().extend_from_slice(bytes)
    })
    .unwrap();
    machine.control(Control::Start).unwrap();
    let status = || -> DiskStatus { machine.disk("disk").unwrap() };
    let started = Instant::now();
    while status().waiting == 0 {
        let text = String::from_utf8_lossy(&printed.lock().unwrap()).into_owned();
        assert!(started.elapsed() < Duration::from_secs(60), "{text}");
        std::thread::sleep(Duration::from_millis(1));
    }
    let measure = |rate: u64| {
        let (before, start) = (status().reads, Instant::now());
        std::thread::sleep(WINDOW);
        let ended = status().reads - before;
        let right = rate as f64 * start.elapsed().as_secs_f64();
        within(ended as f64, right, &format!("{rate} IOPS, embedded"));
    };
    let limit = |limits| {
        let disk = "disk".to_owned();
        let limits = Box::new(limits);
        machine.control(Control::Limit { disk, limits }).unwrap();
    };
    measure(500);
    // No more than an emulated processor on a busy machine can ask for.
    limit(iops(200));
    measure(200);
    // With requests that wait for many seconds, nobody else does.
    limit(iops(1));
    assert!(status().waiting > 10 && status().limits == iops(1));
    let start = Instant::now();
    machine.control(Control::Pause).unwrap();
    assert_eq!(status().waiting, 0);
    let paused = status().reads;
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(status().reads, paused);
    machine.control(Control::Resume).unwrap();
    // Its thread begins them again.
    while status().waiting <= 10 {
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(1));
    }
    limit(DiskLimits::default());
    let (resumed, unlimited) = (status().reads, Instant::now());
    while status().reads < resumed + 1000 {
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("1000 reads without limits: {:?}", unlimited.elapsed());
    limit(iops(1));
    let start = Instant::now();
    assert_eq!(status().errors, 0);
    machine.control(Control::Reset).unwrap();
    machine.control(Control::Stop(StopMode::Hard)).unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let nobody = Control::Limit {
        disk: "other".into(),
        limits: Box::default(),
    };
    assert!(machine.control(nobody).is_err());
}

/// In a process of its own, by its engine.
pub fn so_does_one_in_its_jail() {
    if !usable() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("machine");
    std::fs::create_dir(&state).unwrap();
    let mut launcher = Launcher::new(
        Isolation::Process,
        Runtime::open(&folder.path().join("run")).unwrap(),
    );
    launcher.logs = Some(folder.path().join("log"));
    let plan = Plan {
        id: ID,
        name: "limited".into(),
        vcpus: 1,
        memory_mib: 48,
        boot: PlannedBoot::Kernel {
            image: Arc::new(image(folder.path())),
            initrd: None,
            command_line: "iops 64 10s".into(),
        },
        disks: vec![PlannedDisk {
            socket: "disk".into(),
            queues: 1,
            serial: "limited".into(),
            embedded: Some(Embedded {
                spec: spec(iops(1)),
                file: Arc::new(volume()),
            }),
        }],
        nics: Vec::new(),
        folder: state,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let engine = KvmEngine::new(
            Arc::new(launcher),
            children::guest,
            vmm::kvm::engine::Options::default(),
        );
        engine.start(&plan).await.unwrap();
        engine.limit(ID, "disk", &iops(300)).await.unwrap();
        assert!(engine.limit(ID, "other", &iops(1000)).await.is_err());
        let start = Instant::now();
        while engine.list().iter().any(|(id, _)| *id == ID) {
            assert!(start.elapsed() < Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let printed = vmm::console::tail(&plan.folder, 1 << 20).unwrap();
    let text = String::from_utf8_lossy(&printed);
    let figure = |name: &str| -> f64 {
        let mut words = text.split_whitespace().skip_while(|word| *word != name);
        let figure = words.nth(1).unwrap_or_else(|| panic!("{name}: {text}"));
        figure.parse().unwrap()
    };
    let seconds = figure("cycles") / figure("khz") / 1000.0;
    assert_eq!(figure("errors"), 0.0);
    within(
        figure("requests"),
        300.0 * seconds,
        "300 IOPS, as the guest counts them",
    );
}
