//! What firmware is told of the machine: QEMU's firmware configuration device (QEMU `docs/specs/fw_cfg.rst`), which SeaBIOS
//! and EDK II's OVMF read.
//!
//! A selector chooses an item; its bytes then come one after the other from the data port, or into the guest's memory by
//! one transfer. Files are items with a name, listed in a directory. Nothing can be written.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use virtio::memory::Memory;
use vm_memory::{Bytes, GuestAddress};

use crate::kvm::bus::BusDevice;
use crate::kvm::lifecycle::{Lifecycle, Saved, StateError};

/// Ports: selector, data, and the transfer's address in two halves.
pub(in crate::kvm) const PORTS: u64 = 12;
/// The data port.
const DATA: u64 = 1;
/// The transfer's address, the higher half first; the write to the lower one begins the transfer.
const ADDRESS_HIGH: u64 = 4;
const ADDRESS_LOW: u64 = 8;
/// What the address reads as.
const ADDRESS_SIGNATURE: [u8; 8] = *b"QEMU CFG";

/// Items: the device's own signature, its features, the directory, and the first file.
const SIGNATURE: u16 = 0x00;
const FEATURES: u16 = 0x01;
const DIRECTORY: u16 = 0x19;
const FIRST_FILE: u16 = 0x20;
/// Features: the data port, and transfers.
const HAS_TRANSFERS: u32 = 0b11;
/// Bytes of a file's name in the directory, with the zero that ends it.
const NAME: usize = 56;

/// A transfer's control: it failed; read, skip, select, write.
const ERROR: u32 = 1;
const READ: u32 = 1 << 1;
const SKIP: u32 = 1 << 2;
const SELECT: u32 = 1 << 3;
const WRITE: u32 = 1 << 4;
/// The most bytes of one transfer: more than any item has. What lies behind an item's end reads as zeroes, and a guest could
/// ask for 4 GiB of them.
const TRANSFER_MAX: u32 = 1 << 20;
/// The layout of the saved state.
const VERSION: u32 = 1;

/// What is told.
#[derive(Debug, Default)]
pub(in crate::kvm) struct Items {
    items: BTreeMap<u16, Vec<u8>>,
    /// Name and size.
    files: Vec<(&'static str, usize)>,
}

impl Items {
    /// An item with a number of its own.
    pub(in crate::kvm) fn add(&mut self, key: u16, bytes: Vec<u8>) {
        debug_assert!(key < FIRST_FILE);
        self.items.insert(key, bytes);
    }

    /// A file.
    pub(in crate::kvm) fn add_file(&mut self, name: &'static str, bytes: Vec<u8>) {
        debug_assert!(name.len() < NAME && bytes.len() <= TRANSFER_MAX as usize);
        self.items
            .insert(FIRST_FILE + self.files.len() as u16, bytes.clone());
        self.files.push((name, bytes.len()));
    }

    /// With what the device says of itself.
    fn finish(mut self) -> BTreeMap<u16, Vec<u8>> {
        // The directory's numbers are big-endian, all others little-endian.
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for (key, (name, size)) in (FIRST_FILE..).zip(&self.files) {
            directory.extend((*size as u32).to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            let end = directory.len() + NAME;
            directory.extend(name.bytes());
            directory.resize(end, 0);
        }
        self.items.insert(SIGNATURE, b"QEMU".to_vec());
        self.items.insert(FEATURES, HAS_TRANSFERS.to_le_bytes().to_vec());
        self.items.insert(DIRECTORY, directory);
        self.items
    }
}

/// What a transfer is to do: 16 bytes of the guest's memory, big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Transfer {
    control: u32,
    length: u32,
    address: u64,
}

impl Transfer {
    /// Bytes in the guest's memory.
    const SIZE: usize = 16;

    fn parse(bytes: [u8; Self::SIZE]) -> Self {
        let word = u128::from_be_bytes(bytes);
        Transfer {
            control: (word >> 96) as u32,
            length: (word >> 64) as u32,
            address: word as u64,
        }
    }
}

/// What a guest can tell of the device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// The selected item.
    key: u16,
    /// The next byte of it.
    offset: u32,
    /// The higher half of the address.
    high: u32,
}

impl State {
    fn select(&mut self, key: u16) {
        (self.key, self.offset) = (key, 0);
    }

    /// The selected item's next bytes; zeroes where there are none.
    fn next(&mut self, items: &BTreeMap<u16, Vec<u8>>, data: &mut [u8]) {
        data.fill(0);
        let item = items.get(&self.key).map(Vec::as_slice).unwrap_or_default();
        let rest = item.get(self.offset as usize..).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(rest) {
            *to = *from;
        }
        self.skip(u32::try_from(data.len()).unwrap_or(u32::MAX));
    }

    fn skip(&mut self, bytes: u32) {
        self.offset = self.offset.saturating_add(bytes);
    }

    /// Do what the transfer at this address says, and say there that it is done. A transfer that does not lie in memory has no
    /// place for an answer.
    fn transfer(&mut self, items: &BTreeMap<u16, Vec<u8>>, memory: &Memory, at: u64) {
        let mut bytes = [0; Transfer::SIZE];
        if memory.read_slice(&mut bytes, GuestAddress(at)).is_err() {
            return;
        }
        let done = self.obey(items, memory, Transfer::parse(bytes));
        let answer = if done { 0 } else { ERROR };
        // The first bytes, which were just read.
        let _ = memory.write_slice(&answer.to_be_bytes(), GuestAddress(at));
    }

    /// False: it failed.
    fn obey(&mut self, items: &BTreeMap<u16, Vec<u8>>, memory: &Memory, transfer: Transfer) -> bool {
        if transfer.control & SELECT != 0 {
            self.select((transfer.control >> 16) as u16);
        }
        if transfer.control & READ != 0 {
            if transfer.length > TRANSFER_MAX {
                return false;
            }
            let mut data = vec![0; transfer.length as usize];
            self.next(items, &mut data);
            return memory.write_slice(&data, GuestAddress(transfer.address)).is_ok();
        }
        if transfer.control & WRITE != 0 {
            return false;
        }
        if transfer.control & SKIP != 0 {
            self.skip(transfer.length);
        }
        true
    }
}

/// The device.
pub(in crate::kvm) struct FwCfg {
    items: BTreeMap<u16, Vec<u8>>,
    memory: Memory,
    state: Mutex<State>,
}

impl FwCfg {
    /// A device that tells this, into this memory.
    pub(in crate::kvm) fn new(items: Items, memory: Memory) -> Self {
        FwCfg {
            items: items.finish(),
            memory,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Any mixture of selector and offset is one that a guest could have made.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for FwCfg {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset {
            // A row of bytes, for a string instruction.
            DATA => self.lock().next(&self.items, data),
            ADDRESS_HIGH..PORTS => {
                let signature = ADDRESS_SIGNATURE.iter().cycle();
                for (to, from) in data
                    .iter_mut()
                    .zip(signature.skip((offset - ADDRESS_HIGH) as usize))
                {
                    *to = *from;
                }
            }
            _ => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        match (offset, data) {
            (0, &[low, high]) => state.select(u16::from_le_bytes([low, high])),
            (ADDRESS_HIGH, &[a, b, c, d]) => state.high = u32::from_be_bytes([a, b, c, d]),
            (ADDRESS_LOW, &[a, b, c, d]) => {
                let low = u32::from_be_bytes([a, b, c, d]);
                let at = u64::from(std::mem::take(&mut state.high)) << 32 | u64::from(low);
                state.transfer(&self.items, &self.memory, at);
            }
            _ => {}
        }
    }
}

impl Lifecycle for FwCfg {
    fn name(&self) -> &str {
        "fw-cfg"
    }

    fn reset(&self) {
        *self.lock() = State::default();
    }

    fn save(&self) -> Result<Saved, StateError> {
        Saved::new(VERSION, &*self.lock())
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        *self.lock() = saved.read(VERSION)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 64 KiB at 0, and 64 KiB at 4 GiB.
    const SIZE: usize = 1 << 16;
    const HIGH: u64 = 1 << 32;

    fn device() -> FwCfg {
        let mut items = Items::default();
        items.add(0x05, 3u16.to_le_bytes().to_vec());
        items.add_file("etc/one", b"first".to_vec());
        items.add_file("etc/two", (0..=255).collect());
        let ranges = [(GuestAddress(0), SIZE), (GuestAddress(HIGH), SIZE)];
        FwCfg::new(items, Memory::from_ranges(&ranges).unwrap())
    }

    fn take<const N: usize>(device: &FwCfg) -> [u8; N] {
        let mut data = [0xff; N];
        device.read(DATA, &mut data);
        data
    }

    /// Ask for a transfer whose description is at `at`; its answer.
    fn transfer(device: &FwCfg, at: u64, control: u32, length: u32, address: u64) -> u32 {
        let memory = &device.memory;
        memory
            .write_slice(&control.to_be_bytes(), GuestAddress(at))
            .unwrap();
        memory
            .write_slice(&length.to_be_bytes(), GuestAddress(at + 4))
            .unwrap();
        memory
            .write_slice(&address.to_be_bytes(), GuestAddress(at + 8))
            .unwrap();
        device.write(ADDRESS_HIGH, &((at >> 32) as u32).to_be_bytes());
        device.write(ADDRESS_LOW, &(at as u32).to_be_bytes());
        let mut answer = [0; 4];
        memory.read_slice(&mut answer, GuestAddress(at)).unwrap();
        u32::from_be_bytes(answer)
    }

    fn memory<const N: usize>(device: &FwCfg, at: u64) -> [u8; N] {
        let mut data = [0; N];
        device.memory.read_slice(&mut data, GuestAddress(at)).unwrap();
        data
    }

    #[test]
    fn firmware_finds_the_device_and_its_files() {
        let device = device();
        assert_eq!(take(&device), *b"QEMU", "the signature is what is selected first");
        assert_eq!(take(&device), [0; 3], "behind the end");
        device.write(0, &[1, 0]);
        assert_eq!(take(&device), [3, 0, 0, 0]);
        device.write(0, &[0x19, 0]);
        assert_eq!(take(&device), 2u32.to_be_bytes());
        let [one, two] = [take::<64>(&device), take::<64>(&device)];
        assert_eq!(one[..8], [0, 0, 0, 5, 0, 0x20, 0, 0]);
        assert_eq!(&one[8..16], b"etc/one\0");
        assert_eq!(two[..8], [0, 0, 1, 0, 0, 0x21, 0, 0]);
        device.write(0, &[0x20, 0]);
        assert_eq!(take(&device), *b"first\0");
        let mut signature = [0; 8];
        device.read(ADDRESS_HIGH, &mut signature[..4]);
        device.read(ADDRESS_LOW, &mut signature[4..]);
        assert_eq!(signature, *b"QEMU CFG");
    }

    #[test]
    fn transfers_read_select_and_skip() {
        let device = device();
        for at in [0x100, HIGH + 0x100] {
            assert_eq!(transfer(&device, at, 0x21 << 16 | SELECT | SKIP, 250, 0), 0);
            assert_eq!(transfer(&device, at, READ, 8, 0x8000), 0);
            assert_eq!(memory(&device, 0x8000), [250, 251, 252, 253, 254, 255, 0, 0]);
            assert_eq!(transfer(&device, at, 0x20 << 16 | SELECT | READ, 5, HIGH + 3), 0);
            assert_eq!(memory(&device, HIGH + 3), *b"first");
        }
        // From where a file's last byte goes to the last byte of memory.
        assert_eq!(
            transfer(&device, 0, 0x20 << 16 | SELECT | READ, 5, SIZE as u64 - 5),
            0
        );
        assert_eq!(memory(&device, SIZE as u64 - 5), *b"first");
    }

    #[test]
    fn wrong_transfers_fail() {
        let device = device();
        let select = 0x21 << 16 | SELECT;
        for (control, length, address) in [
            (select | READ, TRANSFER_MAX + 1, 0),
            (select | READ, u32::MAX, HIGH),
            (select | READ, 16, SIZE as u64 - 15),
            (select | READ, 16, u64::MAX - 3),
            (select | READ, 16, 1 << 20),
            (select | WRITE, 16, 0x8000),
        ] {
            let answer = transfer(&device, 0x100, control, length, address);
            assert_eq!(answer, ERROR, "{control:#x} {length:#x} {address:#x}");
        }
        assert_eq!(memory(&device, 0x8000), [0; 16], "nothing was written");
        // Descriptions that lie in no memory, or only in part.
        for at in [SIZE as u64 - 15, HIGH - 1, u64::MAX] {
            device.write(ADDRESS_HIGH, &((at >> 32) as u32).to_be_bytes());
            device.write(ADDRESS_LOW, &(at as u32).to_be_bytes());
        }
    }

    #[test]
    fn the_place_survives_a_save_and_not_a_reset() {
        let device = device();
        device.write(0, &[0x21, 0]);
        device.write(ADDRESS_HIGH, &1u32.to_be_bytes());
        assert_eq!(take(&device), [0, 1, 2]);
        let saved = device.save().unwrap();
        device.reset();
        assert_eq!(take(&device), *b"QEMU");
        device.restore(&saved).unwrap();
        assert_eq!(device.save().unwrap(), saved);
        assert_eq!(take(&device), [3, 4]);
    }

    proptest! {
        /// Whatever a guest writes and has in its memory: no panic, what was told stays as it is, and what is saved can be
        /// restored.
        #[test]
        fn any_access_is_harmless(
            accesses in prop::collection::vec((
                prop_oneof![0u64..12, any::<u64>()],
                prop::collection::vec(any::<u8>(), 0..9),
            ), 0..60),
            transfers in prop::collection::vec((
                prop_oneof![0u64..SIZE as u64, any::<u64>()],
                (0u32..64, any::<u16>()).prop_map(|(low, key)| low | u32::from(key % 0x24) << 16),
                prop_oneof![0u32..512, any::<u32>()],
                prop_oneof![0u64..SIZE as u64, HIGH..HIGH + SIZE as u64, any::<u64>()],
            ), 0..20),
        ) {
            let device = device();
            for (offset, mut data) in accesses {
                device.write(offset, &data);
                device.read(offset, &mut data);
            }
            for (at, control, length, address) in transfers {
                let mut bytes = control.to_be_bytes().to_vec();
                bytes.extend(length.to_be_bytes());
                bytes.extend(address.to_be_bytes());
                let there = device.memory.write_slice(&bytes, GuestAddress(at)).is_ok();
                device.write(ADDRESS_HIGH, &((at >> 32) as u32).to_be_bytes());
                device.write(ADDRESS_LOW, &(at as u32).to_be_bytes());
                // The answer is the last that is written.
                if there {
                    prop_assert!(u32::from_be_bytes(memory(&device, at)) <= ERROR);
                }
            }
            let saved = device.save().unwrap();
            device.restore(&saved).unwrap();
            device.write(0, &[0x20, 0]);
            prop_assert_eq!(take(&device), *b"first");
        }
    }
}
