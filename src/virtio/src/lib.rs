//! Virtio devices over guest memory (OASIS virtio 1.2).
//!
//! Device logic takes guest memory and queues and knows nothing of KVM, PCI or sockets, so that the same code serves a
//! vhost-user child, an embedded machine monitor, tests and fuzzers. Whatever a guest or a vhost-user frontend says is
//! checked here once: rings and chains that break the rules are reported as errors, and nothing panics or grows.
//!
//! - [`memory`]: guest memory that a frontend hands over, with its three kinds of addresses.
//! - [`chain`]: descriptor chains, walked with bounds, indirect tables included.
//! - [`vring`]: one virtqueue with its notifications.
//! - [`inflight`]: the record of unfinished requests that survives the death of a backend.
//! - [`block`]: the block device.
//! - [`entropy`]: the entropy device.
//! - [`console`]: the console device with one port.
//! - [`vsock`]: the socket device, with its connections.
//! - [`balloon`]: the memory balloon, with free page reporting.
//! - [`vhost_user`]: the vhost-user protocol, mostly the backend's side. Start there to write a device's child process.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
pub mod entropy;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod inflight;
pub mod memory;
pub mod vhost_user;
pub mod vring;
pub mod vsock;

/// Feature bits that belong to no device type (virtio 1.2 §6).
pub mod feature {
    /// `VIRTIO_F_INDIRECT_DESC`
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `VIRTIO_F_EVENT_IDX`
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VHOST_USER_F_PROTOCOL_FEATURES`, a bit of vhost-user alone: guests do not see it.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// `VIRTIO_F_VERSION_1`
    pub const VERSION_1: u64 = 1 << 32;
}
