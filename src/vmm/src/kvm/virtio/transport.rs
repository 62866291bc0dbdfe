//! A virtio device as a PCI function (virtio 1.2 §4.1): one window of memory with all its structures, MSI-X, and an
//! eventfd behind each doorbell.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio::feature;
use virtio::memory::Memory;
use virtio::vring::{Placement, RingAddresses};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::registers::{Effect, NEEDS_RESET, Queue, Registers};
use super::{Alarm, Device, Session, SessionQueue, StartError};
use crate::kvm::event::descriptor;
use crate::kvm::lifecycle::{Lifecycle, Saved, StateError};
use crate::kvm::pci::Function;
use crate::kvm::pci::config::{ConfigSpace, Identity};
use crate::kvm::pci::msix::{self, Msix, Routes};

/// The window: a page for each structure.
pub(in crate::kvm) const WINDOW: u32 = 0x8000;
const COMMON: u32 = 0x0000;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const NOTIFY: u32 = 0x3000;
const TABLE: u32 = 0x4000;
const PENDING: u32 = 0x5000;
const PAGE: u32 = 0x1000;
/// Bytes from one queue's doorbell to the next.
const DOORBELL: u32 = 4;
/// Bytes of the common configuration.
const COMMON_SIZE: u32 = 56;
/// The most queues: their doorbells fill a page.
const MAX_QUEUES: usize = (PAGE / DOORBELL) as usize;
/// Vendor capability, and virtio's kinds of it (§4.1.4).
const VENDOR: u8 = 9;
const MSIX: u8 = 0x11;
/// The capability that reaches the window by configuration space (§4.1.4.9): where its fields are.
const ACCESS_OFFSET: usize = 8;
const ACCESS_LENGTH: usize = 12;
const ACCESS_DATA: usize = 16;
/// The common configuration's generation.
const GENERATION: u64 = 21;
/// The layout of the saved state.
const VERSION: u32 = 1;

/// What lets KVM ring an eventfd when the guest writes to an address.
pub(in crate::kvm) trait Doorbells: Send + Sync {
    /// From now on.
    fn bind(&self, address: u64, bell: &EventFd) -> Result<(), StateError>;
    /// No longer.
    fn unbind(&self, address: u64, bell: &EventFd);
}

struct Inner {
    config: ConfigSpace,
    msix: Msix,
    registers: Registers,
    /// Where the window was when the doorbells were bound, and which of them are.
    bound: Vec<(u64, usize)>,
    bound_at: Option<u32>,
    /// The configuration when its generation was last asked for.
    seen: Vec<u8>,
    /// The configuration when the device last was made to stand still.
    before: Vec<u8>,
    /// The device has a session.
    running: bool,
    /// It will have one when the machine goes on.
    waiting: bool,
    paused: bool,
}

#[derive(Serialize, Deserialize)]
struct State {
    config: Saved,
    msix: msix::State,
    registers: Registers,
    needs_reset: bool,
    device: Value,
}

/// The function.
pub(in crate::kvm) struct VirtioPci {
    device: Arc<dyn Device>,
    memory: Arc<Memory>,
    needs_reset: Arc<AtomicBool>,
    kicks: Vec<EventFd>,
    doorbells: Arc<dyn Doorbells>,
    msix_at: usize,
    access_at: usize,
    inner: Mutex<Inner>,
}

impl VirtioPci {
    /// A function for this device, with its window at `base`.
    ///
    /// # Errors
    /// If there are no eventfds or interrupts left.
    pub(in crate::kvm) fn new(
        device: Arc<dyn Device>,
        memory: Arc<Memory>,
        base: u32,
        routes: Arc<dyn Routes>,
        doorbells: Arc<dyn Doorbells>,
    ) -> Result<Self, StateError> {
        let queues = device.queues();
        if queues.is_empty() || queues.len() > MAX_QUEUES {
            return Err(StateError::Malformed(format!("{} queues", queues.len())));
        }
        // One for each queue, and one for changes of the configuration.
        let vectors = queues.len() as u16 + 1;
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1040 + device.id(),
            class: device.class(),
            revision: 1,
        });
        config.add_window(base, WINDOW);
        let notify = DOORBELL * u32::from(vectors - 1);
        let length = (device.config().len() as u32).max(4);
        for (kind, offset, size, more) in [
            (1u8, COMMON, COMMON_SIZE, None),
            (2, NOTIFY, notify, Some(DOORBELL)),
            (3, ISR, 1, None),
            (4, DEVICE, length, None),
        ] {
            let body = capability(kind, offset, size, more);
            config.add_capability(VENDOR, &body, &vec![0; body.len()]);
        }
        let body = capability(5, 0, 0, Some(0));
        let mut writable = vec![0; body.len()];
        // Which BAR stays 0; offset, length and data are the guest's.
        writable[ACCESS_OFFSET - 2..].fill(0xff);
        let access_at = config.add_capability(VENDOR, &body, &writable);
        let mut body = Vec::from((vectors - 1).to_le_bytes());
        body.extend(TABLE.to_le_bytes());
        body.extend(PENDING.to_le_bytes());
        let mut writable = [0; 10];
        writable[..2].copy_from_slice(&(msix::ENABLE | msix::FUNCTION_MASK).to_le_bytes());
        let msix_at = config.add_capability(MSIX, &body, &writable);

        let kicks = queues
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK).map_err(|error| StateError::Os(error.to_string())))
            .collect::<Result<_, _>>()?;
        Ok(VirtioPci {
            memory,
            needs_reset: Arc::default(),
            kicks,
            doorbells,
            msix_at,
            access_at,
            inner: Mutex::new(Inner {
                config,
                msix: Msix::new(vectors, routes)?,
                registers: Registers::new(offered(&*device), &queues, vectors),
                bound: Vec::new(),
                bound_at: None,
                seen: device.config(),
                before: device.config(),
                running: false,
                waiting: false,
                paused: false,
            }),
            device,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Registers, each of which is changed whole; a worker's thread takes no part.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a change of configuration space: interrupts and doorbells follow.
    fn follow(&self, inner: &mut Inner) {
        let control = (inner.config.word(self.msix_at) >> 16) as u16;
        inner.msix.set_control(control);
        let window = inner.config.window();
        if window == inner.bound_at {
            return;
        }
        self.unbind(inner);
        inner.bound_at = window;
        let Some(base) = window else { return };
        for (index, kick) in self.kicks.iter().enumerate() {
            let address = u64::from(base) + u64::from(NOTIFY) + u64::from(DOORBELL) * index as u64;
            match self.doorbells.bind(address, kick) {
                Ok(()) => inner.bound.push((address, index)),
                // Another device's doorbell is there. The write will come to us, or to that one, by an exit.
                Err(error) => tracing::debug!(%error, "a doorbell without an eventfd"),
            }
        }
    }

    fn unbind(&self, inner: &mut Inner) {
        for (address, index) in inner.bound.drain(..) {
            self.doorbells.unbind(address, &self.kicks[index]);
        }
        inner.bound_at = None;
    }

    /// Give the device what the driver has set up.
    fn start_device(&self, inner: &mut Inner) {
        let clone = |event: &EventFd| descriptor(event).try_clone_to_owned().map(File::from);
        let registers = &inner.registers;
        let event_idx = registers.accepted & feature::EVENT_IDX != 0;
        let queue = |(queue, kick): (&Queue, &EventFd)| {
            Ok(SessionQueue {
                max: queue.max,
                placement: queue.enabled.then_some(Placement {
                    size: queue.size,
                    at: RingAddresses {
                        descriptors: queue.descriptors,
                        available: queue.driver,
                        used: queue.device,
                    },
                    event_idx,
                    next: queue.next,
                }),
                kick: clone(kick)?,
                call: inner.msix.signal(queue.vector).map(clone).transpose()?,
                taken: queue.taken.clone(),
            })
        };
        let interrupt = inner.msix.signal(registers.config_vector);
        let started = registers
            .queues
            .iter()
            .zip(&self.kicks)
            .map(queue)
            .collect::<Result<_, std::io::Error>>()
            .map_err(StartError::Io)
            .and_then(|queues| {
                self.device.start(Session {
                    memory: self.memory.clone(),
                    queues,
                    features: registers.accepted,
                    alarm: Alarm {
                        raised: self.needs_reset.clone(),
                        interrupt: interrupt.and_then(|event| event.try_clone().ok()),
                    },
                })
            });
        if let Err(error) = started {
            match error {
                // The guest's fault, which it may repeat as often as it likes.
                StartError::Ring(_) => {
                    tracing::debug!(device = self.device.name(), %error, "a device does not start")
                }
                StartError::Io(_) => {
                    tracing::warn!(device = self.device.name(), %error, "a device does not start")
                }
            }
            self.needs_reset.store(true, Ordering::SeqCst);
            if let Some(interrupt) = inner.msix.signal(registers.config_vector) {
                let _ = interrupt.write(1);
            }
            return;
        }
        inner.running = true;
    }

    fn stop_device(&self, inner: &mut Inner) {
        if std::mem::take(&mut inner.running) {
            for (queue, left) in inner.registers.queues.iter_mut().zip(self.device.stop()) {
                queue.next = left.next;
                queue.taken = left.taken;
            }
        }
    }

    fn reset_device(&self, inner: &mut Inner) {
        self.stop_device(inner);
        self.device.reset();
        inner.waiting = false;
        inner.registers.reset(offered(&*self.device));
        self.needs_reset.store(false, Ordering::SeqCst);
        for kick in &self.kicks {
            // Empty is what it shall be.
            let _ = kick.read();
        }
    }

    /// A driver that reads the configuration in pieces looks at its generation before and after (§4.1.4.3.1): it is another
    /// one if the configuration is.
    fn count_generation(&self, inner: &mut Inner) {
        let now = self.device.config();
        if now != inner.seen {
            inner.seen = now;
            inner.registers.generation = inner.registers.generation.wrapping_add(1);
        }
    }

    fn read_window(&self, inner: &mut Inner, offset: u32, data: &mut [u8]) {
        data.fill(0);
        let within = u64::from(offset % PAGE);
        match offset - offset % PAGE {
            COMMON => {
                if within == GENERATION {
                    self.count_generation(inner);
                }
                let mut value = inner.registers.read(within, data.len());
                if within == 20 && self.needs_reset.load(Ordering::SeqCst) {
                    value |= u64::from(NEEDS_RESET);
                }
                let bytes = value.to_le_bytes();
                let length = data.len().min(bytes.len());
                data[..length].copy_from_slice(&bytes[..length]);
            }
            DEVICE => {
                let config = self.device.config();
                for (at, byte) in (offset % PAGE..).zip(data) {
                    *byte = config.get(at as usize).copied().unwrap_or(0);
                }
            }
            TABLE => inner.msix.read_table(within, data),
            PENDING => inner.msix.read_pending(within, data),
            // The ISR: without INTx it says nothing (§4.1.4.5.1).
            _ => {}
        }
    }

    fn write_window(&self, inner: &mut Inner, offset: u32, data: &[u8]) {
        let within = offset % PAGE;
        match offset - within {
            COMMON => {
                let mut bytes = [0; 8];
                let Some(place) = bytes.get_mut(..data.len()) else {
                    return;
                };
                place.copy_from_slice(data);
                let value = u64::from_le_bytes(bytes);
                match inner.registers.write(within.into(), data.len(), value) {
                    Effect::None => {}
                    Effect::Start if inner.paused => inner.waiting = true,
                    Effect::Start => self.start_device(inner),
                    Effect::Reset => self.reset_device(inner),
                }
            }
            NOTIFY => {
                if let Some(kick) = self.kicks.get((within / DOORBELL) as usize) {
                    // A full counter is a kick that is yet to be seen.
                    let _ = kick.write(1);
                }
            }
            DEVICE if data.len() <= 8 => self.device.write_config(within as usize, data),
            TABLE => inner.msix.write_table(within.into(), data),
            _ => {}
        }
    }

    /// Where the access capability leads, if `register` and `length` are what it is used with.
    fn access(&self, inner: &Inner, register: usize, length: usize) -> Option<u32> {
        let word = |field| inner.config.word(self.access_at + field);
        let (offset, wanted) = (word(ACCESS_OFFSET), word(ACCESS_LENGTH));
        let fits = matches!(length, 1 | 2 | 4) && wanted as usize == length && offset.is_multiple_of(wanted);
        (register == self.access_at + ACCESS_DATA && fits && offset < WINDOW).then_some(offset)
    }
}

/// What the driver is offered.
fn offered(device: &dyn Device) -> u64 {
    device.features() | feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC
}

/// A capability's bytes from its length on (§4.1.4): structures are in BAR 0.
fn capability(kind: u8, offset: u32, length: u32, more: Option<u32>) -> Vec<u8> {
    let size = if more.is_some() { 20 } else { 16 };
    let mut body = vec![size, kind, 0, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(more.into_iter().flat_map(u32::to_le_bytes));
    body
}

impl Function for VirtioPci {
    fn read_config(&self, register: usize, data: &mut [u8]) {
        let mut inner = self.lock();
        match self.access(&inner, register, data.len()) {
            Some(offset) => self.read_window(&mut inner, offset, data),
            None => inner.config.read(register, data),
        }
    }

    fn write_config(&self, register: usize, data: &[u8]) {
        let mut inner = self.lock();
        inner.config.write(register, data);
        if let Some(offset) = self.access(&inner, register, data.len()) {
            self.write_window(&mut inner, offset, data);
        }
        self.follow(&mut inner);
    }

    fn window(&self) -> Option<u32> {
        self.lock().config.window()
    }

    fn window_size(&self) -> u32 {
        WINDOW
    }

    fn read(&self, offset: u32, data: &mut [u8]) {
        self.read_window(&mut self.lock(), offset, data);
    }

    fn write(&self, offset: u32, data: &[u8]) {
        self.write_window(&mut self.lock(), offset, data);
    }
}

impl Lifecycle for VirtioPci {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn pause(&self) {
        let mut inner = self.lock();
        inner.paused = true;
        inner.before = self.device.config();
        inner.waiting = inner.running;
        self.stop_device(&mut inner);
    }

    fn resume(&self) {
        let mut inner = self.lock();
        inner.paused = false;
        if std::mem::take(&mut inner.waiting) {
            self.start_device(&mut inner);
            // Nobody could tell the driver while the device stood still.
            if self.device.config() != inner.before
                && let Some(interrupt) = inner.msix.signal(inner.registers.config_vector)
            {
                let _ = interrupt.write(1);
            }
        }
    }

    fn reset(&self) {
        let mut inner = self.lock();
        self.reset_device(&mut inner);
        inner.config.reset();
        inner.msix.reset();
        self.follow(&mut inner);
    }

    fn halt(&self) {
        let mut inner = self.lock();
        self.reset_device(&mut inner);
        self.unbind(&mut inner);
        inner.msix.reset();
    }

    fn save(&self) -> Result<Saved, StateError> {
        let inner = self.lock();
        let state = State {
            config: inner.config.save()?,
            msix: inner.msix.save(),
            registers: inner.registers.clone(),
            needs_reset: self.needs_reset.load(Ordering::SeqCst),
            device: self.device.save(),
        };
        Saved::new(VERSION, &state)
    }

    /// The device begins with `resume`, as the machine that is restored is paused.
    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let state: State = saved.read(VERSION)?;
        let mut inner = self.lock();
        if !inner.registers.is_like(&state.registers) {
            return Err(StateError::Malformed("another device's registers".into()));
        }
        self.reset_device(&mut inner);
        inner.config.restore(&state.config)?;
        inner.msix.restore(&state.msix)?;
        self.device.restore(&state.device)?;
        let served = super::registers::DRIVER_OK;
        inner.waiting = state.registers.status & served != 0 && !state.needs_reset;
        inner.paused = true;
        inner.registers.restore(state.registers);
        self.needs_reset.store(state.needs_reset, Ordering::SeqCst);
        self.follow(&mut inner);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
