//! PCI: one root bus of one segment, its configuration space, and the two ways to it.

use std::sync::Arc;

use super::lifecycle::Lifecycle;

pub(super) mod config;
mod isa;
pub(super) mod msix;
mod root;

/// A function on the bus, with one window of device memory.
pub(super) trait Function: Lifecycle {
    /// Read configuration space from this register on.
    fn read_config(&self, register: usize, data: &mut [u8]);
    /// Write it.
    fn write_config(&self, register: usize, data: &[u8]);
    /// Where its window is, if it is open.
    fn window(&self) -> Option<u32>;
    /// Bytes of the window.
    fn window_size(&self) -> u32;
    /// Read the window from this offset on, which is below its size.
    fn read(&self, offset: u32, data: &mut [u8]);
    /// Write it.
    fn write(&self, offset: u32, data: &[u8]);
}

/// The functions of a bus: devices 1 and following, function 0. Device 31 may be the bridge to ISA.
pub(super) type Functions = Vec<Arc<dyn Function>>;

pub(super) use isa::IsaBridge;
pub(super) use root::{CONFIG_PORTS, ConfigPorts, Root, Window};
