//! MSI-X (PCI Local Bus 3.0 §6.8.2): a table of messages, one for each vector, and which of them wait.
//!
//! A vector is an eventfd that KVM turns into the message (irqfd). While a vector is masked, KVM does not listen to it:
//! what is signalled then stays in the eventfd, which thus is the pending bit, and KVM finds it when it listens again.

use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::kvm::event::descriptor;
use crate::kvm::lifecycle::StateError;

/// Bytes of a table's entry: address, data, control.
const ENTRY: u64 = 16;
/// Vector control: masked.
const MASKED: u32 = 1;
/// Message control: enabled.
pub(in crate::kvm) const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
pub(in crate::kvm) const FUNCTION_MASK: u16 = 1 << 14;

/// Where a message goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::kvm) struct Message {
    pub(in crate::kvm) address: u64,
    pub(in crate::kvm) data: u32,
}

/// What turns signals into messages. An implementation by KVM, and one in tests.
pub(in crate::kvm) trait Routes: Send + Sync {
    /// From now on a signal on `vector` is this message.
    fn connect(&self, vector: &EventFd, number: u32, message: Message) -> Result<(), StateError>;
    /// Signals on `vector` stay where they are.
    fn disconnect(&self, vector: &EventFd, number: u32);
    /// A number for a vector, which is its own for ever. `None`: all are taken.
    fn allocate(&self) -> Option<u32>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    message: Message,
    control: u32,
}

struct Vector {
    event: EventFd,
    number: u32,
    entry: Entry,
    /// The message that KVM was told of.
    connected: Option<Message>,
}

/// What a guest can tell of the table.
#[derive(Serialize, Deserialize)]
pub(in crate::kvm) struct State {
    entries: Vec<Entry>,
    control: u16,
    pending: Vec<bool>,
}

/// A function's vectors.
pub(in crate::kvm) struct Msix {
    vectors: Vec<Vector>,
    control: u16,
    routes: Arc<dyn Routes>,
}

impl Msix {
    /// So many vectors, at least 1 and at most 2048; all masked, and switched off.
    pub(in crate::kvm) fn new(count: u16, routes: Arc<dyn Routes>) -> Result<Self, StateError> {
        let vector = |_| {
            Ok(Vector {
                event: EventFd::new(EFD_NONBLOCK).map_err(|error| StateError::Os(error.to_string()))?,
                number: routes
                    .allocate()
                    .ok_or_else(|| StateError::Os("no interrupt is left".into()))?,
                entry: Entry {
                    message: Message::default(),
                    control: MASKED,
                },
                connected: None,
            })
        };
        Ok(Msix {
            vectors: (0..count).map(vector).collect::<Result<_, StateError>>()?,
            control: 0,
            routes,
        })
    }

    /// What signals this vector; `None` if there is no such vector.
    pub(in crate::kvm) fn signal(&self, vector: u16) -> Option<&EventFd> {
        self.vectors.get(usize::from(vector)).map(|vector| &vector.event)
    }

    /// Message control, but for the table's size.
    pub(in crate::kvm) fn set_control(&mut self, control: u16) {
        self.control = control & (ENABLE | FUNCTION_MASK);
        for index in 0..self.vectors.len() {
            self.update(index);
        }
    }

    /// Tell KVM of a vector, if something changed.
    fn update(&mut self, index: usize) {
        let live = self.control & (ENABLE | FUNCTION_MASK) == ENABLE;
        let Some(vector) = self.vectors.get_mut(index) else {
            return;
        };
        let wanted = (live && vector.entry.control & MASKED == 0).then_some(vector.entry.message);
        if wanted == vector.connected {
            return;
        }
        if vector.connected.take().is_some() {
            self.routes.disconnect(&vector.event, vector.number);
        }
        if let Some(message) = wanted {
            match self.routes.connect(&vector.event, vector.number, message) {
                Ok(()) => vector.connected = wanted,
                Err(error) => tracing::warn!(%error, "an interrupt of the guest is lost"),
            }
        }
    }

    fn is_pending(vector: &Vector) -> bool {
        let mut wait = [PollFd::new(descriptor(&vector.event), PollFlags::POLLIN)];
        vector.connected.is_none() && poll(&mut wait, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    /// Read the table from this offset on, 4 or 8 bytes, aligned (§6.8.2); all else reads as zeroes.
    pub(in crate::kvm) fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let Some(vector) = usize::try_from(offset / ENTRY)
            .ok()
            .and_then(|at| self.vectors.get(at))
        else {
            return;
        };
        let mut bytes = [0; ENTRY as usize];
        bytes[..8].copy_from_slice(&vector.entry.message.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&vector.entry.message.data.to_le_bytes());
        bytes[12..].copy_from_slice(&vector.entry.control.to_le_bytes());
        let at = (offset % ENTRY) as usize;
        data.copy_from_slice(&bytes[at..at + data.len()]);
    }

    /// Write the table likewise.
    pub(in crate::kvm) fn write_table(&mut self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let Ok(index) = usize::try_from(offset / ENTRY) else {
            return;
        };
        let Some(vector) = self.vectors.get_mut(index) else {
            return;
        };
        for (piece, bytes) in (offset % ENTRY / 4..).zip(data.chunks_exact(4)) {
            let Ok(value) = bytes.try_into().map(u32::from_le_bytes) else {
                return;
            };
            let message = &mut vector.entry.message;
            match piece {
                0 => message.address = message.address >> 32 << 32 | u64::from(value & !3),
                1 => message.address = message.address & 0xffff_ffff | u64::from(value) << 32,
                2 => message.data = value,
                _ => vector.entry.control = value & MASKED,
            }
        }
        self.update(index);
    }

    /// Read the pending bits from this offset on.
    pub(in crate::kvm) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = 0;
            let first = usize::try_from(at.saturating_mul(8)).unwrap_or(usize::MAX);
            for (bit, vector) in (0..8).zip(self.vectors.iter().skip(first)) {
                *byte |= u8::from(Self::is_pending(vector)) << bit;
            }
        }
    }

    /// All vectors masked, and nothing pending.
    pub(in crate::kvm) fn reset(&mut self) {
        self.set_control(0);
        for vector in &mut self.vectors {
            vector.entry = Entry {
                message: Message::default(),
                control: MASKED,
            };
            // Empty is what it shall be.
            let _ = vector.event.read();
        }
    }

    pub(in crate::kvm) fn save(&self) -> State {
        State {
            entries: self.vectors.iter().map(|vector| vector.entry).collect(),
            control: self.control,
            pending: self.vectors.iter().map(Self::is_pending).collect(),
        }
    }

    pub(in crate::kvm) fn restore(&mut self, state: &State) -> Result<(), StateError> {
        if state.entries.len() != self.vectors.len() || state.pending.len() != self.vectors.len() {
            return Err(StateError::Malformed(format!("{} vectors", state.entries.len())));
        }
        self.reset();
        for (vector, (entry, pending)) in self
            .vectors
            .iter_mut()
            .zip(state.entries.iter().zip(&state.pending))
        {
            vector.entry = Entry {
                message: entry.message,
                control: entry.control & MASKED,
            };
            if *pending {
                vector
                    .event
                    .write(1)
                    .map_err(|error| StateError::Os(error.to_string()))?;
            }
        }
        self.set_control(state.control);
        Ok(())
    }
}

impl Drop for Msix {
    fn drop(&mut self) {
        self.set_control(0);
    }
}

#[cfg(test)]
pub(in crate::kvm) mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// Remembers what is connected.
    #[derive(Default)]
    pub(in crate::kvm) struct Fake {
        pub(in crate::kvm) connected: Mutex<BTreeMap<u32, Message>>,
        next: AtomicU32,
    }

    impl Routes for Fake {
        fn connect(&self, _: &EventFd, number: u32, message: Message) -> Result<(), StateError> {
            let old = self.connected.lock().unwrap().insert(number, message);
            assert_eq!(old, None, "connected twice");
            Ok(())
        }
        fn disconnect(&self, _: &EventFd, number: u32) {
            assert!(
                self.connected.lock().unwrap().remove(&number).is_some(),
                "was not connected"
            );
        }
        fn allocate(&self) -> Option<u32> {
            Some(self.next.fetch_add(1, Ordering::SeqCst))
        }
    }

    fn msix(count: u16) -> (Arc<Fake>, Msix) {
        let routes = Arc::new(Fake::default());
        (routes.clone(), Msix::new(count, routes).unwrap())
    }

    fn pending(msix: &Msix) -> u8 {
        let mut data = [0xff; 8];
        msix.read_pending(0, &mut data);
        assert_eq!(data[1..], [0; 7]);
        data[0]
    }

    #[test]
    fn a_masked_vector_keeps_its_signal() {
        let (routes, mut msix) = msix(3);
        msix.set_control(ENABLE);
        msix.write_table(16, &0xfee0_1000u64.to_le_bytes());
        msix.write_table(24, &0x41u32.to_le_bytes());
        msix.signal(1).unwrap().write(1).unwrap();
        assert_eq!(
            (pending(&msix), routes.connected.lock().unwrap().len()),
            (0b10, 0)
        );
        msix.write_table(28, &0u32.to_le_bytes());
        let message = Message {
            address: 0xfee0_1000,
            data: 0x41,
        };
        assert_eq!(*routes.connected.lock().unwrap(), BTreeMap::from([(1, message)]));
        assert_eq!(pending(&msix), 0, "it is KVM's now");
        msix.set_control(ENABLE | FUNCTION_MASK);
        assert!(routes.connected.lock().unwrap().is_empty());
        let saved = msix.save();
        msix.reset();
        assert_eq!(pending(&msix), 0);
        msix.restore(&saved).unwrap();
        assert_eq!(pending(&msix), 0b10);
        msix.set_control(ENABLE);
        assert_eq!(*routes.connected.lock().unwrap(), BTreeMap::from([(1, message)]));
        drop(msix);
        assert!(routes.connected.lock().unwrap().is_empty());
    }

    proptest! {
        /// Whatever is written: exactly the vectors that may send are connected, with their messages.
        #[test]
        fn what_is_connected_is_what_the_table_says(
            writes in prop::collection::vec((0u64..80, prop::collection::vec(0u8..3, 0..10), any::<u16>(), any::<bool>()), 0..40),
        ) {
            let (routes, mut msix) = msix(4);
            for (offset, data, control, whole) in writes {
                msix.write_table(offset & if whole { !3 } else { !0 }, &data);
                if whole { msix.set_control(control); }
                let mut read = [0xff; 4];
                let connected = routes.connected.lock().unwrap().clone();
                for index in 0..4u32 {
                    msix.read_table(u64::from(index) * 16 + 12, &mut read);
                    let masked = u32::from_le_bytes(read) & MASKED != 0;
                    let live = !masked && msix.control & (ENABLE | FUNCTION_MASK) == ENABLE;
                    prop_assert_eq!(connected.contains_key(&index), live);
                    if live {
                        prop_assert_eq!(connected[&index], msix.vectors[index as usize].entry.message);
                    }
                }
                let mut any = data;
                msix.read_table(offset, &mut any);
                msix.read_pending(offset, &mut any);
            }
        }
    }
}
