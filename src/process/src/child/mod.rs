//! Children: the same binary, re-executed and jailed, that outlives the daemon.
//!
//! ```text
//! daemon                                             child
//!   spawn /proc/self/exe KIND, stdin = socket pair ──▶ closes all other descriptors, waits
//!   write the runtime file (pid, start time)
//!   Start { spec, jail } and descriptors ───────────▶ enters its jail, takes its descriptors
//!   ◀───────────────────────────────────────────────── Ok, or why not
//!   …                                                 serves its own control socket
//! ```
//! A daemon that dies before `Start` leaves no orphan (the child reads the end of the stream and ends); one that dies
//! later has left a runtime file, by which its successor finds the child again ([`Runtime`]).

mod cgroup;
mod launch;
mod runtime;
mod start;
mod task;

pub use cgroup::CgroupLimits;
pub use launch::{Isolation, Launch, LaunchError, Launched, Launcher, Main};
pub use runtime::{Record, Runtime};
pub use start::{Start, StartError, run};
pub use task::{Exit, Process, Task};
