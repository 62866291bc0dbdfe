//! SQLite, replicated by Raft as changesets: the one place where the cloud's state lives.
//!
//! [`Store::write`] runs an ordinary transaction on the leader, records what it changed, and proposes that; every node,
//! the leader too, applies the entry through one path. Only Raft's log is synced per write. [`Store::read`] sees one
//! state, and everything that was acknowledged. The applied changeset is the event stream.
//!
//! ```text
//!  write ─▶ writer (run, record, roll back) ─▶ Raft ─▶ log (synced) ─▶ machine (apply) ─▶ projections, events, answer
//!  read  ─▶ reader pool ─▶ SQLite
//! ```
//! Invariant: this room knows no resource of the cloud, and opens no socket.

mod command;
mod error;
mod event;
mod log;
mod machine;
mod raft;
mod reader;
pub mod schema;
mod snapshot;
mod store;
mod writer;

#[cfg(test)]
mod tests;

pub use rusqlite;

pub use self::command::{Command, Hash, MAX_ENTRY, Response};
pub use self::error::Error;
pub use self::event::{Change, Event, Operation, Projection};
pub use self::raft::{
    AppendRequest, AppendResponse, Node, NodeId, Raft, Reply, SnapshotRequest, SnapshotResponse, Solo,
    Transport, TransportError, Types, VoteRequest, VoteResponse,
};
pub use self::schema::Step;
pub use self::store::{Member, Options, Status, Store};
