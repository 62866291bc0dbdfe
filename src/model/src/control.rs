//! The messages between the daemon and its jailed children.
//!
//! A control socket is a Unix socket of type `SOCK_STREAM`: every message is one JSON
//! value behind its length (`process::control` has the code). A request carries an `id` that its reply repeats;
//! descriptors travel beside the message that names them, in the order in which it names them.

use serde::{Deserialize, Serialize};

/// The largest message that either side accepts, in bytes. Switch tables of a full node stay well below it.
pub const MAX_MESSAGE: usize = 64 << 20;

/// A request with the number that its reply repeats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request<T> {
    /// Chosen by the daemon, unique per connection.
    pub id: u64,
    /// What is asked.
    pub body: T,
}

/// The reply to the request of the same `id`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply<T> {
    /// The request's number.
    pub id: u64,
    /// The answer, or what went wrong, where, and what to do, in one sentence.
    pub body: Result<T, String>,
}
