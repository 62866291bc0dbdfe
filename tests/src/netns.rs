//! Network namespaces: a test's cloud gets one of its own, so that tests run side by side and touch nothing of the host.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::run::run;

/// A named network namespace, removed when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes one, with loopback up.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "allod-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        run("ip", &["netns", "add", &name]).context("cannot make a network namespace; tests run as root")?;
        let this = Self { name };
        run("ip", &["-n", &this.name, "link", "set", "lo", "up"])?;
        Ok(this)
    }

    /// Its name, for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command that will run inside. `ip netns exec` would give it a mount namespace of its own, and what one
    /// daemon mounts there the next one would not see; `nsenter` does not.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs a function on a thread inside.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = self.path();
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                join(&path)?;
                work()
            });
            inside
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a thread inside the network namespace panicked")))
        })
    }
}

/// Moves this thread into the namespace that a file stands for.
pub fn join(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = run("ip", &["netns", "del", &self.name]) {
            eprintln!("network namespace {} stays: {error:#}", self.name);
        }
    }
}
