//! Frames in and out, and the control socket.
//!
//! One thread, the [`worker`], owns the switch and all its descriptors; the calling thread answers the control socket,
//! so that reading large tables never makes a packet wait.

mod control;
mod steering;
mod tap;
mod vhost;
mod worker;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Why the switch ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The control socket cannot be used.
    #[error("the switch's control socket: {0}")]
    Control(#[from] process::control::Error),
    /// A system call that cannot fail on a healthy machine did.
    #[error("the switch's event loop: {0}")]
    Io(#[from] std::io::Error),
    /// The worker ended by itself.
    #[error("the switch's worker ended")]
    Worker,
}

impl From<nix::Error> for Error {
    fn from(error: nix::Error) -> Self {
        Error::Io(error.into())
    }
}

/// Runs a switch until its control socket says `Stop`.
///
/// `control` is a listening Unix socket. A client may go away and another one come: the switch goes on with what it
/// was told. The answer to `Status` is `Some(SwitchStatus)`, to all else `None`.
pub fn run(control: OwnedFd) -> Result<(), Error> {
    let listener = UnixListener::from(control);
    let wake = Arc::new(EventFd::from_value_and_flags(
        0,
        EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC,
    )?);
    let (commands, received) = std::sync::mpsc::sync_channel(1);
    let worker = worker::Worker::new(Arc::clone(&wake), received)?;
    let thread = std::thread::Builder::new()
        .name("packets".into())
        .spawn(move || worker.run())?;
    let served = control::serve(&listener, &commands, &wake);
    // The worker ends when nobody can command it any more.
    drop(commands);
    wake.write(1)?;
    let worked = thread.join().map_err(|_| Error::Worker)?;
    served?;
    worked
}
