//! Control messages over Unix stream sockets: a little-endian `u32` length, then one JSON value, with
//! descriptors beside it (`SCM_RIGHTS`, unix(7)).
//!
//! [`Client`] is the daemon's side: blocking, with one deadline per call. A child answers through [`serve`] if
//! control is all that a thread of it does, or through a [`Channel`] inside an event loop of its own.

mod channel;
mod client;
mod frame;
mod listen;

pub use channel::Channel;
pub use client::{Client, Connection};
pub use frame::{Frame, Reader, Writer};
pub use listen::{Next, accept, bind, check_peer, connect, serve, serve_until};

use std::io;
use std::time::Duration;

/// The most descriptors that travel with one message.
pub const MAX_DESCRIPTORS: usize = 64;

/// Why a control message did not get through.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other side closed the connection, or died.
    #[error("the other side of the control socket closed it")]
    Closed,
    /// Nothing came, or nothing was taken, for this long.
    #[error("no answer on the control socket within {0:?}")]
    TimedOut(Duration),
    /// A message exceeds `model::control::MAX_MESSAGE`.
    #[error("a control message of {0} bytes is larger than {max} bytes", max = model::control::MAX_MESSAGE)]
    TooLarge(usize),
    /// More than [`MAX_DESCRIPTORS`].
    #[error("more than {MAX_DESCRIPTORS} descriptors beside one control message")]
    TooManyDescriptors,
    /// The message is not what was expected at this place.
    #[error("a control message that cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A reply to a question that was not asked.
    #[error("a reply to request {got} where {expected} was asked")]
    OutOfStep {
        /// The request's number.
        expected: u64,
        /// The reply's.
        got: u64,
    },
    /// Someone else's process.
    #[error("the peer runs as user {0}, not as this process's user or root")]
    Stranger(u32),
    /// The child says that it could not do it.
    #[error("{0}")]
    Refused(String),
    /// The system's answer.
    #[error("control socket: {0}")]
    Io(#[from] io::Error),
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        match errno {
            rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET => Error::Closed,
            other => Error::Io(other.into()),
        }
    }
}

#[cfg(test)]
mod tests;
