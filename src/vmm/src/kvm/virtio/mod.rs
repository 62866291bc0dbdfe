//! Virtio devices on PCI (virtio 1.2 §4.1). The devices' logic is the room `virtio`'s; here is what carries it: the
//! registers, the notifications, and threads.

pub(super) mod registers;
pub(super) mod rng;
pub(super) mod transport;
pub(super) mod worker;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio::memory::Memory;
use virtio::vring::Vring;
use vmm_sys_util::eventfd::EventFd;

/// What the driver has set up, from `DRIVER_OK` on.
pub(super) struct Session {
    pub(super) memory: Arc<Memory>,
    /// A ring for each queue, running if the driver has enabled it; and its kick.
    pub(super) rings: Vec<(Vring, File)>,
    pub(super) alarm: Alarm,
}

/// How a device tells that the driver broke a rule (§2.1.2, `DEVICE_NEEDS_RESET`).
pub(super) struct Alarm {
    pub(super) raised: Arc<AtomicBool>,
    pub(super) interrupt: Option<EventFd>,
}

impl Alarm {
    /// Tell it.
    pub(super) fn raise(&self) {
        self.raised.store(true, Ordering::SeqCst);
        if let Some(interrupt) = &self.interrupt {
            // A full counter is an interrupt that is yet to be taken.
            let _ = interrupt.write(1);
        }
    }
}

/// A device behind the transport.
pub(super) trait Device: Send + Sync {
    /// Its name in the machine.
    fn name(&self) -> &str;
    /// Its type (§5).
    fn id(&self) -> u16;
    /// Its class on PCI, as `0xccssii`.
    fn class(&self) -> u32;
    /// Its features, but for those of the transport.
    fn features(&self) -> u64;
    /// The most descriptors of each of its queues.
    fn queues(&self) -> Vec<u16>;
    /// Its configuration.
    fn config(&self) -> Vec<u8>;
    /// Begin to serve. Not called again before `stop`.
    fn start(&self, session: Session);
    /// Stop; when it returns the device touches the guest's memory no more. The index of each ring's next available
    /// chain. Not started: nothing.
    fn stop(&self) -> Vec<u16>;
}
