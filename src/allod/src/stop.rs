//! `allod stop`: ends everything on this node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cloud::driver::{DiskKeys, DriverError};
use model::disk::DiskKey;
use nix::sys::signal::{Signal, kill};

use crate::config::Config;
use crate::drivers::{Node, TEAR_DOWN};
use crate::serve::node_options;
use crate::state::{self, StateDir};

/// How long the daemon may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ends the daemon if it runs, then guests, switch and disks, and takes back what was changed on the host: TAPs, rules, mounts.
/// Volumes, images and the database stay. Nothing there: nothing happens.
pub fn stop(config: &Config) -> anyhow::Result<()> {
    if !config.storage.dir.exists() {
        return Ok(());
    }
    let state = end_daemon(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let node = Node::open(node_options(config), Arc::new(NoKeys)).await?;
        node.tear_down(TEAR_DOWN).await
    })?;
    drop(state);
    Ok(())
}

/// Nothing is opened on the way down.
struct NoKeys;

#[async_trait::async_trait]
impl DiskKeys for NoKeys {
    async fn disk_key(&self, lineage: uuid::Uuid, _: &str) -> Result<DiskKey, DriverError> {
        Err(DriverError::Failed(format!(
            "the node is being stopped: the key of lineage {lineage} is not had any more"
        )))
    }
}

/// The state directory, once no daemon serves it.
fn end_daemon(config: &Config) -> anyhow::Result<StateDir> {
    let deadline = Instant::now() + PATIENCE;
    let mut told = None;
    loop {
        let refused = match StateDir::open(config) {
            Ok(state) => return Ok(state),
            Err(error) => error,
        };
        let Some(pid) = state::holder(config) else {
            return Err(refused);
        };
        if told != Some(pid) {
            kill(pid, Signal::SIGTERM).with_context(|| format!("cannot end the daemon (pid {pid})"))?;
            told = Some(pid);
        }
        if Instant::now() > deadline {
            bail!("the daemon (pid {pid}) does not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
