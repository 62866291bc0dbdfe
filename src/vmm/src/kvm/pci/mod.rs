//! PCI: one root bus of one segment, its configuration space, and the two ways to it.

mod config;
mod root;

pub(super) use root::{CONFIG_PORTS, ConfigPorts, Root};
