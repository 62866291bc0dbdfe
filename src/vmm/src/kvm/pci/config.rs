//! A function's configuration space (PCI Local Bus 3.0 §6.1): bytes, and which of their bits a guest may change.

use serde::{Deserialize, Serialize};

use crate::kvm::lifecycle::{Saved, StateError};

/// Bytes of a function's configuration space. The extended space behind it reads as zeroes: there are no extended
/// capabilities.
const SIZE: usize = 256;
/// The command register.
const COMMAND: usize = 0x04;
/// Command: decode ports, decode memory, bus master, no INTx.
const COMMAND_BITS: u16 = 1 | 1 << 1 | 1 << 2 | 1 << 10;
/// The interrupt line register, in which firmware leaves notes.
const INTERRUPT_LINE: usize = 0x3c;
/// Command: decode memory.
const MEMORY: u8 = 1 << 1;
/// The status register, and its bit for a list of capabilities.
const STATUS: usize = 0x06;
const HAS_CAPABILITIES: u8 = 1 << 4;
/// The first base address register.
const BAR0: usize = 0x10;
/// The link to the first capability, and where capabilities begin.
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;
/// The layout of the saved state.
const VERSION: u32 = 1;

/// What a function says of itself.
#[derive(Debug, Clone, Copy)]
pub(in crate::kvm) struct Identity {
    pub(in crate::kvm) vendor: u16,
    pub(in crate::kvm) device: u16,
    /// Class, subclass and programming interface, as `0xccssii`.
    pub(in crate::kvm) class: u32,
    pub(in crate::kvm) revision: u8,
}

/// A function's configuration space.
#[derive(Debug, Clone)]
pub(in crate::kvm) struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    initial: [u8; SIZE],
    /// The register of the last link, and the one where the next capability goes.
    last_link: usize,
    next_capability: usize,
}

#[derive(Serialize, Deserialize)]
struct State {
    bytes: Vec<u8>,
}

impl ConfigSpace {
    /// Of a function with a header of type 0, without BARs and capabilities.
    pub(in crate::kvm) fn new(identity: Identity) -> Self {
        let mut bytes = [0; SIZE];
        bytes[0..2].copy_from_slice(&identity.vendor.to_le_bytes());
        bytes[2..4].copy_from_slice(&identity.device.to_le_bytes());
        bytes[8] = identity.revision;
        bytes[9..12].copy_from_slice(&identity.class.to_le_bytes()[..3]);
        bytes[0x2c..0x2e].copy_from_slice(&identity.vendor.to_le_bytes());
        bytes[0x2e..0x30].copy_from_slice(&identity.device.to_le_bytes());
        let mut writable = [0; SIZE];
        writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_BITS.to_le_bytes());
        writable[INTERRUPT_LINE] = 0xff;
        ConfigSpace {
            bytes,
            writable,
            initial: bytes,
            last_link: CAPABILITIES,
            next_capability: FIRST_CAPABILITY,
        }
    }

    /// Give the function a window of 32-bit memory (BAR 0) of `size` bytes, a power of two from 16 on, where firmware has put
    /// it. The guest may move it.
    pub(in crate::kvm) fn add_window(&mut self, base: u32, size: u32) {
        debug_assert!(size >= 16 && size.is_power_of_two() && base.is_multiple_of(size));
        self.bytes[BAR0..BAR0 + 4].copy_from_slice(&base.to_le_bytes());
        self.writable[BAR0..BAR0 + 4].copy_from_slice(&(!(size - 1)).to_le_bytes());
        self.initial = self.bytes;
    }

    /// Registers of this function alone: their bytes, and the bits of them that the guest may change.
    pub(in crate::kvm) fn add_registers(&mut self, at: usize, bytes: &[u8], writable: &[u8]) {
        debug_assert!(at >= FIRST_CAPABILITY && at + bytes.len() <= SIZE && bytes.len() == writable.len());
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.writable[at..at + bytes.len()].copy_from_slice(writable);
        self.initial = self.bytes;
    }

    /// Append a capability (§6.7): its bytes from the one after the link on, and the bits of them that the guest may
    /// change. The register where it begins.
    pub(in crate::kvm) fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_capability;
        debug_assert!(at + 2 + body.len() <= SIZE && body.len() == writable.len());
        self.bytes[at] = id;
        self.bytes[at + 2..at + 2 + body.len()].copy_from_slice(body);
        self.writable[at + 2..at + 2 + body.len()].copy_from_slice(writable);
        // The link of the one before, or the first link, which says that there are any.
        self.bytes[self.last_link] = at as u8;
        self.bytes[STATUS] |= HAS_CAPABILITIES;
        self.last_link = at + 1;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        self.initial = self.bytes;
        at
    }

    /// Where the window is, if memory is decoded.
    pub(in crate::kvm) fn window(&self) -> Option<u32> {
        let base = self.word(BAR0);
        (self.bytes[COMMAND] & MEMORY != 0 && base != 0).then_some(base)
    }

    /// The 32 bits at this register.
    pub(in crate::kvm) fn word(&self, register: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Read from this register on. `data` is zeroed where there is none.
    pub(in crate::kvm) fn read(&self, register: usize, data: &mut [u8]) {
        for (at, byte) in (register..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Write from this register on; bits that cannot be changed stay.
    pub(in crate::kvm) fn write(&mut self, register: usize, data: &[u8]) {
        for (at, value) in (register..SIZE).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = (self.bytes[at] & !mask) | (value & mask);
        }
    }

    /// As after the making.
    pub(in crate::kvm) fn reset(&mut self) {
        self.bytes = self.initial;
    }

    /// The bytes.
    pub(in crate::kvm) fn save(&self) -> Result<Saved, StateError> {
        let state = State {
            bytes: self.bytes.to_vec(),
        };
        Saved::new(VERSION, &state)
    }

    /// Take on bytes that differ from this function's in what a guest can change, and in nothing else.
    pub(in crate::kvm) fn restore(&mut self, saved: &Saved) -> Result<(), StateError> {
        let state: State = saved.read(VERSION)?;
        let bytes = <[u8; SIZE]>::try_from(state.bytes).map_err(|bytes| {
            StateError::Malformed(format!("{} bytes of configuration space", bytes.len()))
        })?;
        for (at, byte) in bytes.iter().enumerate() {
            if (byte ^ self.initial[at]) & !self.writable[at] != 0 {
                return Err(StateError::Malformed(format!("another function: byte {at:#x}")));
            }
        }
        self.bytes = bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            class: 0x01_8000,
            revision: 1,
        })
    }

    #[test]
    fn fields_stand_where_the_standard_says() {
        let mut data = [0; 12];
        space().read(0, &mut data);
        assert_eq!(data, [0xf4, 0x1a, 0x42, 0x10, 0, 0, 0, 0, 1, 0, 0x80, 1]);
    }

    proptest! {
        /// Whatever is written: only the bits that may change do, and what is saved can be restored, and nothing else.
        #[test]
        fn read_only_bits_stay(
            writes in prop::collection::vec((0usize..5000, prop::collection::vec(any::<u8>(), 0..9)), 0..30),
            at in 0usize..SIZE,
            flip in 1u8..,
        ) {
            let mut space = space();
            for (register, data) in writes {
                space.write(register, &data);
                let mut read = data;
                space.read(register, &mut read);
            }
            for index in 0..SIZE {
                prop_assert_eq!((space.bytes[index] ^ space.initial[index]) & !space.writable[index], 0);
            }
            let saved = space.save().unwrap();
            space.reset();
            prop_assert_eq!(space.bytes, space.initial);
            space.restore(&saved).unwrap();
            prop_assert_eq!(space.save().unwrap(), saved.clone());
            let mut forged = saved;
            let byte = space.bytes[at] ^ flip;
            forged.state["bytes"][at] = byte.into();
            prop_assert_eq!(space.restore(&forged).is_ok(), flip & !space.writable[at] == 0);
        }
    }
}
