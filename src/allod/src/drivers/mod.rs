//! The hands of the cloud on this node: what `cloud::driver` asks for, done with jailed children.
//!
//! Children outlive the daemon. [`Node::open`] finds those of an earlier daemon and takes them over;
//! [`Node::tear_down`] ends them all and leaves nothing behind.

pub mod children;
mod disks;
mod host;
mod log;
mod machines;
mod owners;
mod switch;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cloud::driver::{DiskKeys, DriverError, Drivers, Web};
use disk::pool::PoolOptions;
use model::machine::StopMode;
use process::child::{Isolation, Launcher, Runtime};
use process::jail::Enforcement;
use tracing::{info, warn};
use vmm::kvm::KvmEngine;
use vmm::qemu::QemuEngine;
use vmm::{Accelerator, Engine, EngineKind, Engines};

pub use machines::TEAR_DOWN;

/// How a node is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The state directory: `run`, `machines` and `log` are made below it.
    pub state: PathBuf,
    /// Volumes and images.
    pub pool: PoolOptions,
    /// The folder of backups.
    pub backups: PathBuf,
    /// The largest image, in bytes.
    pub max_image_bytes: u64,
    /// Where children run.
    pub isolation: Isolation,
    /// The engine; `None`: automatic.
    pub engine: Option<EngineKind>,
    /// QEMU's accelerator; `None`: automatic.
    pub accelerator: Option<Accelerator>,
    /// QEMU's program.
    pub qemu: PathBuf,
    /// How the embedded monitor makes machines.
    pub machines: vmm::kvm::engine::Options,
    /// The first user id for jailed children.
    pub first_uid: u32,
    /// What happens at system calls that a jail forbids.
    pub enforcement: Enforcement,
    /// Forward and masquerade what guests send out.
    pub masquerade: bool,
}

/// A node's drivers.
pub struct Node {
    machines: machines::MachinesDriver,
    disks: disks::DisksDriver,
    switch: switch::SwitchDriver,
    trimmer: tokio::task::JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.trimmer.abort();
    }
}

impl Node {
    /// Start what is missing, and take over what runs.
    ///
    /// # Errors
    /// If something of it cannot be made or opened.
    pub async fn open(options: Options, keys: Arc<dyn DiskKeys>) -> Result<Node, DriverError> {
        let run = options.state.join("run");
        let mut launcher = Launcher::new(
            options.isolation,
            Runtime::open(&run.join("children")).map_err(failed)?,
        );
        launcher.first_uid = options.first_uid;
        launcher.enforcement = options.enforcement;
        launcher.logs = Some(options.state.join("log"));
        let launcher = Arc::new(launcher);

        let choice = vmm::choose(options.engine, options.accelerator, &vmm::cpuinfo());
        info!(engine = ?choice.engine, accelerator = ?choice.accelerator, reason = choice.reason, "engine for guests");
        let qemu: Box<dyn Engine> = Box::new(QemuEngine::new(
            launcher.clone(),
            options.qemu,
            choice.accelerator,
        ));
        let kvm: Box<dyn Engine> = Box::new(KvmEngine::new(
            launcher.clone(),
            children::guest,
            options.machines,
        ));
        let engine = Box::new(match choice.engine {
            EngineKind::Qemu => Engines::new(qemu, kvm),
            EngineKind::Kvm => Engines::new(kvm, qemu),
        });
        let disks = disks::DisksDriver::open(
            launcher.clone(),
            options.pool,
            options.backups,
            options.max_image_bytes,
            keys,
        )
        .await?;
        let switch = switch::SwitchDriver::new(launcher.clone(), &run, options.masquerade);
        switch.open().await?;
        let folder = options.state.join("machines");
        let machines =
            machines::MachinesDriver::new(launcher.clone(), engine, switch.clone(), disks.clone(), folder);
        machines.open().await?;
        let trimmer = tokio::spawn(trim_logs(launcher));
        Ok(Node {
            machines,
            disks,
            switch,
            trimmer,
        })
    }

    /// For the rules; what is fetched from the web is no matter of the node's children.
    pub fn drivers(&self, web: Arc<dyn Web>) -> Drivers {
        Drivers {
            machines: Arc::new(self.machines.clone()),
            disks: Arc::new(self.disks.clone()),
            switch: Arc::new(self.switch.clone()),
            web,
        }
    }

    /// Stop all guests and children, and take back what was changed on the host. Volumes and images stay.
    pub async fn tear_down(&self, mode: StopMode) -> Result<(), DriverError> {
        let machines = self.machines.tear_down(mode).await;
        let switch = self.switch.tear_down().await;
        let disks = self.disks.tear_down().await;
        machines.and(switch).and(disks)
    }
}

/// Children's logs are bounded: whatever a guest makes them say.
async fn trim_logs(launcher: Arc<Launcher>) {
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let launcher = launcher.clone();
        let trimmed = tokio::task::spawn_blocking(move || launcher.trim_logs()).await;
        if let Ok(Err(error)) = trimmed {
            warn!(%error, "children's logs");
        }
    }
}

/// A listening socket that any user may connect to who can see it. Its folder decides who can.
fn guest_socket(path: &Path) -> io::Result<UnixListener> {
    let listener = process::control::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

fn failed(error: impl std::fmt::Display) -> DriverError {
    DriverError::Failed(error.to_string())
}
