//! Virtio devices on PCI (virtio 1.2 §4.1). The devices' logic is the room `virtio`'s; here is what carries it: the
//! registers, the notifications, and threads.

pub(super) mod balloon;
pub(super) mod block;
pub(super) mod console;
pub(super) mod net;
pub(super) mod registers;
pub(super) mod rng;
pub(super) mod transport;
pub(super) mod vsock;
pub(super) mod worker;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use thiserror::Error;
use virtio::memory::Memory;
use virtio::vring::{Placement, RingError, Vring};
use vmm_sys_util::eventfd::EventFd;

use super::lifecycle::StateError;

/// What the driver has set up, from `DRIVER_OK` on.
pub(super) struct Session {
    pub(super) memory: Arc<Memory>,
    pub(super) queues: Vec<SessionQueue>,
    /// The features that driver and device agreed upon.
    pub(super) features: u64,
    pub(super) alarm: Alarm,
}

/// A queue, as the driver has set it up.
pub(super) struct SessionQueue {
    /// The most descriptors.
    pub(super) max: u16,
    /// `None`: the driver does not use it.
    pub(super) placement: Option<Placement>,
    /// The driver's doorbell. Watched edge-triggered, and never read.
    pub(super) kick: File,
    /// The driver's interrupt, if it has chosen one.
    pub(super) call: Option<File>,
    /// Chains that an earlier session took and did not return, in the order in which they were taken.
    pub(super) taken: Vec<u16>,
}

impl SessionQueue {
    /// Its ring, for a device in this process; it runs if the driver uses the queue.
    ///
    /// # Errors
    /// If the driver's word about the ring cannot be true.
    pub(super) fn ring(&self, memory: &Memory) -> Result<Vring, StartError> {
        let mut ring = Vring::new(self.max)?;
        if let Some(placement) = self.placement {
            let call = self.call.as_ref().map(File::try_clone).transpose()?;
            ring.start_at(memory, placement, self.kick.try_clone()?, call)?;
        }
        Ok(ring)
    }
}

/// How a device leaves a queue when it stops.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// The index of the next available chain.
    pub(super) next: u16,
    /// Chains that were taken and not returned.
    pub(super) taken: Vec<u16>,
}

/// Why a device does not serve.
#[derive(Debug, Error)]
pub(super) enum StartError {
    /// The driver set up nonsense.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The system's answer.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// How a device speaks to its driver beyond its queues.
pub(super) struct Alarm {
    pub(super) raised: Arc<AtomicBool>,
    pub(super) interrupt: Option<EventFd>,
}

impl Alarm {
    /// Another hand on it.
    ///
    /// # Errors
    /// If there are no descriptors left.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Alarm {
            raised: self.raised.clone(),
            interrupt: self.interrupt.as_ref().map(EventFd::try_clone).transpose()?,
        })
    }

    /// The driver broke a rule (§2.1.2, `DEVICE_NEEDS_RESET`).
    pub(super) fn raise(&self) {
        self.raised.store(true, Ordering::SeqCst);
        self.changed();
    }

    /// The configuration is another one now.
    pub(super) fn changed(&self) {
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
    /// Its features, but for those of the transport. The driver is offered what they are when it resets the device.
    fn features(&self) -> u64;
    /// The most descriptors of each of its queues.
    fn queues(&self) -> Vec<u16>;
    /// Its configuration. Always of one length.
    fn config(&self) -> Vec<u8>;
    /// The driver writes to the configuration, from this offset on; at most 8 bytes.
    fn write_config(&self, _offset: usize, _data: &[u8]) {}
    /// Begin to serve. Not called again before `stop`.
    ///
    /// # Errors
    /// If it cannot; it does not serve then.
    fn start(&self, session: Session) -> Result<(), StartError>;
    /// Stop; when it returns the device touches the guest's memory no more. How it leaves its queues. Not started:
    /// nothing.
    fn stop(&self) -> Vec<Left>;
    /// The driver, or the machine, has reset the device, which does not serve.
    fn reset(&self) {}
    /// What it knows beyond its registers and queues.
    fn save(&self) -> Value {
        Value::Null
    }
    /// Take that on; it may have come over a network.
    ///
    /// # Errors
    /// If it cannot be.
    fn restore(&self, _state: &Value) -> Result<(), StateError> {
        Ok(())
    }
}
