//! Waiting for a child's end without a thread.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use process::child::Task;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A child's end, as something that a task can wait for.
#[derive(Debug)]
pub struct End(AsyncFd<OwnedFd>);

impl End {
    /// Of this child. Its pidfd is duplicated.
    pub fn of(task: &Task) -> io::Result<Self> {
        let descriptor = task.as_fd().try_clone_to_owned()?;
        // SAFETY: `OwnedFd` is the one owner of its descriptor, names the same one for all its life, and closes it
        // only when `AsyncFd` drops it, after it has taken it out of the reactor.
        #[allow(unsafe_code)]
        let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        Ok(End(registered?))
    }

    /// Wait until the child has ended. May be called again.
    pub async fn reached(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }
}
