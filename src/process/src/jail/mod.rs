//! The jail that a child enters by itself, after exec and before it reads anything hostile.
//!
//! Six walls, each of which holds alone: a user of its own without capabilities; empty namespaces (files, network,
//! IPC, names, processes); resource limits; Landlock; a system-call filter; and a cgroup, which the daemon
//! sets up from outside (`cgroup`).

mod mounts;
mod privileges;
mod syscalls;

use std::path::PathBuf;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

pub use syscalls::{Profile, Thread};

/// What a child is locked into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jail {
    /// Its user and group, which nothing else on the machine has.
    pub uid: u32,
    /// What it sees of the file system; nothing by default.
    pub files: Files,
    /// Resource limits.
    pub limits: Limits,
    /// The system calls that it needs.
    pub profile: Profile,
    /// What happens at any other system call.
    pub enforcement: Enforcement,
}

/// What a child sees of the file system: a read-only tmpfs with these in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// Paths that are shown at the same place, read-only. What does not exist is left out; a symbolic link stays one.
    pub read_only: Vec<PathBuf>,
    /// A folder of the host that is shown, read-only, under another path: (host's, child's).
    /// Sockets in it can be connected to.
    pub folder: Option<(PathBuf, PathBuf)>,
    /// Character devices, made anew for the child's user, such as `/dev/null`.
    pub devices: Vec<PathBuf>,
}

impl Files {
    /// There is nothing at all to see.
    fn is_empty(&self) -> bool {
        *self == Files::default()
    }
}

/// Resource limits (setrlimit(2)). There are never core dumps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Open descriptors.
    pub open_files: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Address space in bytes.
    pub address_space: Option<u64>,
    /// CPU time in seconds.
    pub cpu_seconds: Option<u64>,
    /// The largest file that it can make, in bytes.
    pub file_size: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            open_files: 1024,
            processes: 64,
            address_space: None,
            cpu_seconds: None,
            file_size: None,
        }
    }
}

/// What happens at a system call that the profile does not hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// The kernel ends the process.
    #[default]
    Kill,
    /// The kernel's log names it, and it goes ahead: for development only.
    Log,
}

/// A wall that could not be built. The child ends then: there is no half jail.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A system call of the jail failed.
    #[error("jail: {step}: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Landlock's rules could not be made.
    #[error("jail: Landlock: {0}")]
    Landlock(String),
    /// The system-call filter could not be made.
    #[error("jail: seccomp: {0}")]
    Seccomp(String),
    /// A jail takes root's rights to build.
    #[error("jail: only root can build one; run the daemon as root, or with isolation = \"thread\"")]
    NotRoot,
}

/// Names the step that failed.
trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, JailError>;
}

impl<T, E: Into<std::io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, JailError> {
        self.map_err(|error| JailError::System {
            step,
            source: error.into(),
        })
    }
}

impl Jail {
    /// Lock this process in. It must have one thread. There is no way back; after an error the process must end.
    ///
    /// The PID namespace is not made here: it takes effect on children only, so whoever spawns makes it.
    pub fn enter(&self) -> Result<(), JailError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(JailError::NotRoot);
        }
        // A session of its own: no terminal, and no signal meant for the daemon's group.
        match nix::unistd::setsid() {
            Ok(_) | Err(nix::errno::Errno::EPERM) => {}
            Err(errno) => return Err(errno).step("setsid"),
        }
        mounts::enter(&self.files)?;
        privileges::set_limits(&self.limits)?;
        privileges::drop_all(self.uid)?;
        privileges::landlock(&self.files)?;
        syscalls::filter(self.profile, self.enforcement)?;
        // Set once: there is no way into a second jail.
        let _ = ENTERED.set((self.profile, self.enforcement));
        Ok(())
    }
}

/// The jail that this process is in.
static ENTERED: OnceLock<(Profile, Enforcement)> = OnceLock::new();

/// Lock this thread further in: it needs less than its process. Outside the jail of [`Profile::Vmm`] nothing happens.
///
/// # Errors
/// If the filter cannot be had; the thread must not run then.
pub fn narrow(thread: Thread) -> Result<(), JailError> {
    match ENTERED.get() {
        Some((Profile::Vmm, enforcement)) => syscalls::narrow(thread, *enforcement),
        _ => Ok(()),
    }
}
