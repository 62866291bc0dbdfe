//! The binary behind the tests: the guests' supervisor, and a daemon that starts one guest and waits to be killed.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use process::child::{Isolation, Launcher, Runtime};
use uuid::Uuid;
use vmm::qemu::QemuEngine;
use vmm::{Accelerator, Engine, Plan, PlannedDisk};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, vmm::qemu::KIND] => process::child::run(vmm::qemu::supervise),
        [_, "daemon", folder] => daemon(Path::new(folder)),
        _ => ExitCode::FAILURE,
    }
}

/// Serves `<folder>/machine`, whose disk someone else serves.
#[tokio::main]
async fn daemon(folder: &Path) -> ExitCode {
    let Ok(runtime) = Runtime::open(&folder.join("run")) else {
        return ExitCode::FAILURE;
    };
    let launcher = Launcher::new(Isolation::Process, runtime);
    let engine = QemuEngine::new(
        Arc::new(launcher),
        "/usr/bin/qemu-system-x86_64".into(),
        Accelerator::Tcg,
    );
    let started = engine
        .start(&Plan {
            id: Uuid::from_u128(1),
            name: "adopted".into(),
            vcpus: 1,
            memory_mib: 64,
            disks: vec![PlannedDisk {
                socket: "disk0".into(),
                queues: 1,
                serial: "disk-1".into(),
            }],
            nics: Vec::new(),
            folder: folder.join("machine"),
        })
        .await;
    match started {
        Ok(()) => println!("ready"),
        Err(error) => println!("{error}"),
    }
    let _ = std::io::stdout().flush();
    std::future::pending().await
}
