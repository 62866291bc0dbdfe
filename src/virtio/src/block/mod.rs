//! The block device (virtio 1.2 §5.2).
//!
//! [`Block`] reads requests from descriptor chains, hands them to a [`BlockBackend`], and turns what the backend reports into
//! used buffers. It knows neither where rings come from nor where bytes go. A request's life:
//!
//! ```text
//!             chain                Operation                  Completion
//!  owner ──────────────▶ Block ─────────────────▶ backend ─────────────────▶ Block ──▶ Finished ──▶ owner: used ring
//!                          │ malformed, refused, or answered at once                       ▲  ▲
//!                          └───────────────────────────────────────────────────────────────┘  │
//!                                 no space, or recalled: parked ── retry ─▶ backend ──────────┘
//! ```

mod config;
mod device;
mod request;

use std::{os::fd::BorrowedFd, sync::Arc};

use model::disk::DiskLimits;

pub use config::{Geometry, QUEUE_SIZE, SECTOR, SEGMENTS};
pub use device::{Block, Counters, Finished};
pub use request::Operation;

use crate::{chain::Buffer, memory::Memory};

/// Feature bits of block devices (§5.2.3).
pub mod feature {
    /// `VIRTIO_BLK_F_SEG_MAX`
    pub const SEG_MAX: u64 = 1 << 2;
    /// `VIRTIO_BLK_F_RO`
    pub const RO: u64 = 1 << 5;
    /// `VIRTIO_BLK_F_BLK_SIZE`
    pub const BLK_SIZE: u64 = 1 << 6;
    /// `VIRTIO_BLK_F_FLUSH`
    pub const FLUSH: u64 = 1 << 9;
    /// `VIRTIO_BLK_F_TOPOLOGY`
    pub const TOPOLOGY: u64 = 1 << 10;
    /// `VIRTIO_BLK_F_MQ`
    pub const MQ: u64 = 1 << 12;
    /// `VIRTIO_BLK_F_DISCARD`
    pub const DISCARD: u64 = 1 << 13;
    /// `VIRTIO_BLK_F_WRITE_ZEROES`
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All of it was carried out.
    Done,
    /// It failed with this `errno`.
    Failed(i32),
    /// There was no space. The device keeps the request and tries again later.
    Full,
}

/// An operation that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The token of [`BlockBackend::submit`].
    pub token: u32,
    /// How it ended.
    pub outcome: Outcome,
}

/// Where the bytes of a block device are kept. Operations may run at the same time and end in any order.
pub trait BlockBackend {
    /// Takes an operation on these buffers of guest memory. It may start now or at the next [`BlockBackend::kick`]. The backend
    /// keeps `memory` alive until the operation has ended. `token` is not in use, and small.
    ///
    /// `durable` asks that a write is on stable storage before it is reported as done.
    fn submit(
        &mut self,
        token: u32,
        operation: Operation,
        buffers: &[Buffer],
        memory: &Arc<Memory>,
        durable: bool,
    );

    /// Starts what was submitted.
    fn kick(&mut self);

    /// Appends what has ended to `done`, without waiting.
    fn reap(&mut self, done: &mut Vec<Completion>);

    /// Waits until something has ended that [`BlockBackend::reap`] has not reported. Something must be running.
    fn wait(&mut self);

    /// What may be used from now on. False: this backend knows no limits.
    fn limit(&mut self, _limits: &DiskLimits) -> bool {
        false
    }

    /// What may be used.
    fn limits(&self) -> DiskLimits {
        DiskLimits::default()
    }

    /// Operations that have not begun, since they wait for their turn in the limits.
    fn waiting(&self) -> usize {
        0
    }

    /// Gives back those of the waiting operations that are wanted, as if they had never been submitted: their tokens are appended to
    /// `back`.
    fn recall(&mut self, _wanted: &dyn Fn(u32) -> bool, _back: &mut Vec<u32>) {}

    /// A descriptor that can be read (level-triggered) when waiting operations may begin; [`BlockBackend::reap`] lets them.
    fn timer(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
