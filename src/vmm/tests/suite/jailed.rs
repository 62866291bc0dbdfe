//! A machine in its jailed process, by the engine. Needs root.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::disk::{DiskLimits, DiskSpec, DiskStatus, DiskTransport};
use model::machine::StopMode;
use process::child::{Isolation, Launcher, Runtime};
use tempfile::TempDir;
use uuid::Uuid;
use vmm::kvm::KvmEngine;
use vmm::kvm::engine::{Options, child};
use vmm::{Embedded, Engine, EngineError, Plan, PlannedBoot, PlannedDisk, console};

use super::storage;
use super::way::{In, LONG, Shape, image};

const ID: Uuid = Uuid::from_u128(7);

struct Jailed {
    runtime: tokio::runtime::Runtime,
    engine: KvmEngine,
    disk: File,
    folder: TempDir,
}

fn disk(name: &str, bytes: u64, queues: u16, read_only: bool) -> (PlannedDisk, File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    let disk = PlannedDisk {
        socket: name.into(),
        queues,
        serial: name.into(),
        embedded: Some(Embedded {
            spec: DiskSpec {
                id: ID,
                size: bytes,
                read_only,
                queues,
                direct: false,
                transport: DiskTransport::Embedded,
                key: None,
                limits: DiskLimits::default(),
            },
            file: Arc::new(file.try_clone().unwrap()),
        }),
    };
    (disk, file)
}

/// In a process of its own.
pub fn jailed(shape: Shape) -> Box<dyn In> {
    let folder = tempfile::tempdir().unwrap();
    let machine = folder.path().join("machine");
    std::fs::create_dir(&machine).unwrap();
    let launcher = {
        let runtime = Runtime::open(&folder.path().join("run")).unwrap();
        let mut launcher = Launcher::new(Isolation::Process, runtime);
        launcher.program = env!("CARGO_BIN_EXE_vmm-probe").into();
        launcher.logs = Some(folder.path().join("log"));
        launcher.first_uid = 740_000 + std::process::id() % 1000 * 10;
        launcher
    };
    let main = |start| child::run(start, storage::open);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let engine = runtime.block_on(async { KvmEngine::new(Arc::new(launcher), main, Options::default()) });
    let (first, file) = disk("disk", shape.disk_bytes as u64, 4, false);
    let (second, _) = disk("other", 1 << 20, 1, true);
    let plan = Plan {
        id: ID,
        name: "suite".into(),
        vcpus: shape.vcpus,
        memory_mib: shape.memory_mib,
        boot: PlannedBoot::Kernel {
            image: Arc::new(image()),
            initrd: None,
            command_line: shape.command,
        },
        disks: vec![first, second],
        nics: Vec::new(),
        folder: machine,
    };
    runtime.block_on(engine.start(&plan)).unwrap();
    Box::new(Jailed {
        runtime,
        engine,
        disk: file,
        folder,
    })
}

impl Jailed {
    fn ask(&self, what: impl Future<Output = Result<(), EngineError>>) {
        let answer = self.runtime.block_on(what);
        // It may have ended meanwhile, which the engine learns a little later.
        let start = Instant::now();
        while answer.is_err() && !self.ended() {
            assert!(start.elapsed() < LONG, "{answer:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl In for Jailed {
    fn text(&self) -> String {
        let bytes = console::tail(&self.folder.path().join("machine"), 1 << 20).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn ended(&self) -> bool {
        self.engine.list().is_empty()
    }

    fn resize(&self, disk: &str, bytes: u64) {
        self.disk.set_len(bytes).unwrap();
        self.ask(self.engine.resize(ID, disk, bytes));
    }

    fn pause_and_resume(&self) {
        self.ask(self.engine.pause(ID));
        self.ask(self.engine.resume(ID));
    }

    fn reset(&self) {
        self.ask(self.engine.reset(ID));
    }

    fn stop(&self) {
        self.ask(self.engine.stop(ID, StopMode::Hard));
    }

    fn disk(&self, _: &str) -> Option<DiskStatus> {
        None
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        self.stop();
    }
}
