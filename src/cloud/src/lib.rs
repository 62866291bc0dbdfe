//! The cloud's rules: identity, images, compute, networks, secrets. No HTTP, no packets.
//!
//! Each folder is a service. Its functions take the [`Cloud`] and the caller's [`Context`], check rights and rules,
//! and read or write the [`store`]. Reconcilers bring what is to what should be, through the [`driver`] traits that the
//! daemon implements.

pub mod config;
pub mod context;
pub mod driver;
pub mod error;
pub mod policy;
pub mod schema;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod worker;

pub mod compute;
pub mod encryption;
pub mod identity;
pub mod image;
pub mod network;
pub mod placement;
pub mod secret;
pub mod volume;

use std::sync::Arc;

pub use config::Config;
pub use context::Context;
pub use error::{Error, Result};

/// A running cloud: its state, its settings, and the hands that it has on this node.
pub struct Cloud {
    /// All rows.
    pub store: store::Store,
    /// Settings from the operator's file.
    pub config: Config,
    /// Machines, disks, images and the switch of this node.
    pub drivers: driver::Drivers,
    /// Users, roles, catalog and token keys in memory.
    pub identity: Arc<identity::Identity>,
    /// What the background loops of this node are doing; starts empty (`Workers::default()`).
    pub workers: worker::Workers,
}
