//! The binary behind the tests: the guests' supervisor and monitor, and a daemon that starts one guest and waits to be killed.

mod attempt;
mod storage;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use process::child::{Isolation, Launcher, Runtime};
use uuid::Uuid;
use vmm::kvm::KvmEngine;
use vmm::kvm::engine::child;
use vmm::qemu::QemuEngine;
use vmm::{Accelerator, Engine, Plan, PlannedBoot, PlannedDisk};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, vmm::qemu::KIND] => process::child::run(vmm::qemu::supervise),
        [_, child::KIND] => process::child::run(|start| child::run(start, storage::open)),
        [_, "try"] => process::child::run(attempt::run),
        [_, "daemon", folder] => daemon(Path::new(folder), qemu),
        [_, "kvm-daemon", folder] => daemon(Path::new(folder), kvm),
        _ => ExitCode::FAILURE,
    }
}

fn qemu(launcher: Launcher, folder: &Path) -> (Box<dyn Engine>, Plan) {
    let engine = QemuEngine::new(
        Arc::new(launcher),
        "/usr/bin/qemu-system-x86_64".into(),
        Accelerator::Tcg,
    );
    let mut plan = plan(folder);
    plan.disks.push(PlannedDisk {
        socket: "disk0".into(),
        queues: 1,
        serial: "disk-1".into(),
        embedded: None,
    });
    (Box::new(engine), plan)
}

/// Boots `<folder>/kernel`.
fn kvm(launcher: Launcher, folder: &Path) -> (Box<dyn Engine>, Plan) {
    let engine = KvmEngine::new(
        Arc::new(launcher),
        |start| child::run(start, storage::open),
        vmm::kvm::engine::Options::default(),
    );
    let mut plan = plan(folder);
    plan.boot = PlannedBoot::Kernel {
        image: Arc::new(File::open(folder.join("kernel")).expect("the test has put it there")),
        initrd: None,
        command_line: "spin".into(),
    };
    (Box::new(engine), plan)
}

fn plan(folder: &Path) -> Plan {
    Plan {
        id: Uuid::from_u128(1),
        name: "adopted".into(),
        vcpus: 1,
        memory_mib: 64,
        boot: PlannedBoot::Bios,
        disks: Vec::new(),
        nics: Vec::new(),
        folder: folder.join("machine"),
    }
}

/// Starts one machine, whose disks, if it has any, someone else serves.
#[tokio::main]
async fn daemon(folder: &Path, make: fn(Launcher, &Path) -> (Box<dyn Engine>, Plan)) -> ExitCode {
    let Ok(runtime) = Runtime::open(&folder.join("run")) else {
        return ExitCode::FAILURE;
    };
    let (engine, plan) = make(Launcher::new(Isolation::Process, runtime), folder);
    match engine.start(&plan).await {
        Ok(()) => println!("ready"),
        Err(error) => println!("{error}"),
    }
    let _ = std::io::stdout().flush();
    std::future::pending().await
}
