//! Membership, join, node RPC, leases, regions.
//!
//! One node is a Raft of one: what this room has so far is who this node is.

mod identity;

pub use identity::{NodeError, NodeId};
