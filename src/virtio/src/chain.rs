//! Descriptor chains (virtio 1.2 §2.7.5), walked with bounds.
//!
//! A [`Chain`] is a copy of what the guest wrote in its descriptor table: it is read once, so that the guest cannot
//! change a length between the check and the use. It is meant to be kept and reused, so that popping allocates nothing.

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::memory::Memory;

/// The most descriptors of a chain, as in QEMU (`VIRTQUEUE_MAX_SIZE`): some drivers make chains longer than the queue
/// when they use indirect tables.
pub const MAX_DESCRIPTORS: usize = 1024;

/// How a chain breaks the rules. The ring that holds it is broken, too (§2.1.2, `DEVICE_NEEDS_RESET`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ChainError {
    /// A descriptor index outside the table.
    #[error("a descriptor's index lies outside its table")]
    Index,
    /// A descriptor or buffer that is not in the guest's memory.
    #[error("a descriptor or buffer lies outside the guest's memory")]
    Address,
    /// A loop, or more than [`MAX_DESCRIPTORS`] descriptors.
    #[error("the descriptor chain is too long")]
    TooLong,
    /// More than 2³² bytes (§2.7.5.2).
    #[error("the descriptor chain has too many bytes")]
    TooManyBytes,
    /// An indirect table inside an indirect table, of odd size, or with a successor (§2.7.5.3.1).
    #[error("the indirect descriptor table is malformed")]
    Indirect,
    /// A buffer for the driver before a buffer for the device (§2.7.4.2).
    #[error("a device-readable buffer follows a device-writable one")]
    Order,
}

/// A buffer in guest memory, known to be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest physical address.
    pub addr: GuestAddress,
    /// Length in bytes, at least 1.
    pub len: u32,
}

/// A descriptor chain: first the buffers that the device reads, then those that it writes.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    head: u16,
    buffers: Vec<Buffer>,
    /// How many of `buffers` are for the device to read.
    readable: usize,
    readable_len: u32,
    writable_len: u32,
}

impl Chain {
    /// An empty chain, to be filled by [`Vring::pop`](crate::vring::Vring::pop).
    pub fn new() -> Self {
        Self::default()
    }

    /// Index of the first descriptor: the chain's name in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Buffers for the device to read.
    pub fn readable(&self) -> &[Buffer] {
        &self.buffers[..self.readable]
    }

    /// Buffers for the device to write.
    pub fn writable(&self) -> &[Buffer] {
        &self.buffers[self.readable..]
    }

    /// Bytes for the device to read.
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes for the device to write.
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// Copies the readable bytes from `offset` on into `into`, and returns how many there were.
    pub fn read(&self, memory: &Memory, offset: u32, into: &mut [u8]) -> Result<usize, ChainError> {
        copy(self.readable(), offset, into.len(), |addr, range| {
            memory.read_slice(&mut into[range], addr)
        })
    }

    /// Copies `from` to the writable bytes from `offset` on, and returns how many had room.
    pub fn write(&self, memory: &Memory, offset: u32, from: &[u8]) -> Result<usize, ChainError> {
        copy(self.writable(), offset, from.len(), |addr, range| {
            memory.write_slice(&from[range], addr)
        })
    }

    /// Reads the chain that starts at `head` of the table at `table` with `size` descriptors. On an error the chain is
    /// empty.
    pub fn load(
        &mut self,
        memory: &Memory,
        table: GuestAddress,
        size: u16,
        head: u16,
    ) -> Result<(), ChainError> {
        let result = self.walk(memory, table, size, head);
        if result.is_err() {
            self.clear();
        }
        result
    }

    fn clear(&mut self) {
        self.buffers.clear();
        (self.readable, self.readable_len, self.writable_len) = (0, 0, 0);
    }

    fn walk(&mut self, memory: &Memory, table: GuestAddress, size: u16, head: u16) -> Result<(), ChainError> {
        self.clear();
        self.head = head;
        let (mut table, mut size, mut indirect) = (table, u32::from(size), false);
        let mut index = head;
        // Counts descriptors rather than buffers: empty ones must not loop for ever either.
        for _ in 0..MAX_DESCRIPTORS {
            if u32::from(index) >= size {
                return Err(ChainError::Index);
            }
            let addr = table
                .0
                .checked_add(u64::from(index) * 16)
                .ok_or(ChainError::Address)?;
            let descriptor: Descriptor = memory
                .read_obj(GuestAddress(addr))
                .map_err(|_| ChainError::Address)?;
            if descriptor.refers_to_indirect_table() {
                let bytes = descriptor.len();
                if indirect || descriptor.has_next() || bytes == 0 || !bytes.is_multiple_of(16) {
                    return Err(ChainError::Indirect);
                }
                (table, size, indirect, index) = (descriptor.addr(), bytes / 16, true, 0);
                continue;
            }
            self.push(memory, &descriptor)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
        }
        Err(ChainError::TooLong)
    }

    fn push(&mut self, memory: &Memory, descriptor: &Descriptor) -> Result<(), ChainError> {
        let (addr, len) = (descriptor.addr(), descriptor.len());
        if len == 0 {
            return Ok(());
        }
        if addr.0.checked_add(u64::from(len)).is_none()
            || !GuestMemoryBackend::check_range(memory, addr, len as usize)
        {
            return Err(ChainError::Address);
        }
        let total = if descriptor.is_write_only() {
            &mut self.writable_len
        } else if self.buffers.len() == self.readable {
            self.readable += 1;
            &mut self.readable_len
        } else {
            return Err(ChainError::Order);
        };
        *total = total.checked_add(len).ok_or(ChainError::TooManyBytes)?;
        self.buffers.push(Buffer { addr, len });
        Ok(())
    }
}

/// Walks `buffers` from `offset` on, for at most `len` bytes.
fn copy(
    buffers: &[Buffer],
    offset: u32,
    len: usize,
    mut each: impl FnMut(GuestAddress, std::ops::Range<usize>) -> Result<(), vm_memory::GuestMemoryError>,
) -> Result<usize, ChainError> {
    let (mut skip, mut done) = (offset, 0usize);
    for buffer in buffers {
        if done == len {
            break;
        }
        if skip >= buffer.len {
            skip -= buffer.len;
            continue;
        }
        let n = ((buffer.len - skip) as usize).min(len - done);
        let addr = GuestAddress(buffer.addr.0 + u64::from(skip));
        each(addr, done..done + n).map_err(|_| ChainError::Address)?;
        (skip, done) = (0, done + n);
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;

    fn memory() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
    }

    fn put(memory: &Memory, table: u64, index: u64, descriptor: (u64, u32, u16, u16)) {
        let (addr, len, flags, next) = descriptor;
        memory
            .write_obj(
                Descriptor::new(addr, len, flags, next),
                GuestAddress(table + index * 16),
            )
            .unwrap();
    }

    fn load(descriptors: &[(u64, u32, u16, u16)]) -> Result<Chain, ChainError> {
        let memory = memory();
        for (index, descriptor) in descriptors.iter().enumerate() {
            put(&memory, 0, index as u64, *descriptor);
        }
        let mut chain = Chain::new();
        chain.load(&memory, GuestAddress(0), 8, 0).map(|()| chain)
    }

    #[test]
    fn reads_and_writes_across_buffers() {
        let memory = memory();
        put(&memory, 0, 0, (0x1000, 3, NEXT, 2));
        put(&memory, 0, 2, (0x2000, 0, NEXT, 3));
        put(&memory, 0, 3, (0x3000, 4, NEXT, 1));
        put(&memory, 0, 1, (0x4000, 2, WRITE | NEXT, 4));
        put(&memory, 0, 4, (0x5000, 2, WRITE, 0));
        let mut chain = Chain::new();
        chain.load(&memory, GuestAddress(0), 8, 0).unwrap();
        memory.write_slice(b"abc", GuestAddress(0x1000)).unwrap();
        memory.write_slice(b"defg", GuestAddress(0x3000)).unwrap();
        let mut bytes = [0; 9];
        assert_eq!(chain.read(&memory, 1, &mut bytes).unwrap(), 6);
        assert_eq!(&bytes[..6], b"bcdefg");
        assert_eq!((chain.readable_len(), chain.writable_len()), (7, 4));
        assert_eq!(chain.write(&memory, 1, b"xyzzy").unwrap(), 3);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x4001)).unwrap(), b'x');
        assert_eq!(
            memory.read_obj::<[u8; 3]>(GuestAddress(0x5000)).unwrap(),
            *b"yz\0"
        );
    }

    #[test]
    fn follows_one_indirect_table() {
        let memory = memory();
        put(&memory, 0, 5, (0x8000, 32, INDIRECT, 0));
        put(&memory, 0x8000, 0, (0x1000, 16, NEXT, 1));
        put(&memory, 0x8000, 1, (0x2000, 1, WRITE, 0));
        let mut chain = Chain::new();
        chain.load(&memory, GuestAddress(0), 8, 5).unwrap();
        assert_eq!(
            (chain.head(), chain.readable().len(), chain.writable().len()),
            (5, 1, 1)
        );
        put(&memory, 0x8000, 1, (0x8000, 16, INDIRECT, 0));
        let nested = chain.load(&memory, GuestAddress(0), 8, 5);
        assert_eq!(nested, Err(ChainError::Indirect));
        assert_eq!(chain.readable_len(), 0, "a refused chain is empty");
    }

    #[test]
    fn refuses_broken_chains() {
        assert_eq!(load(&[(0x1000, 1, NEXT, 0)]).unwrap_err(), ChainError::TooLong);
        assert_eq!(load(&[(0x1000, 0, NEXT, 0)]).unwrap_err(), ChainError::TooLong);
        assert_eq!(load(&[(0x1000, 1, NEXT, 8)]).unwrap_err(), ChainError::Index);
        assert_eq!(load(&[(0xffff, 2, 0, 0)]).unwrap_err(), ChainError::Address);
        assert_eq!(load(&[(u64::MAX, 2, 0, 0)]).unwrap_err(), ChainError::Address);
        assert_eq!(
            load(&[(0x1000, 15, INDIRECT, 0)]).unwrap_err(),
            ChainError::Indirect
        );
        assert_eq!(
            load(&[(0x1000, 16, INDIRECT | NEXT, 1)]).unwrap_err(),
            ChainError::Indirect
        );
        assert_eq!(
            load(&[(u64::MAX - 15, 16, INDIRECT, 0)]).unwrap_err(),
            ChainError::Address
        );
        let order = load(&[(0x1000, 1, WRITE | NEXT, 1), (0x1000, 1, 0, 0)]);
        assert_eq!(order.unwrap_err(), ChainError::Order);
    }

    proptest! {
        /// Whatever stands in guest memory, a chain is bounded and points into that memory.
        #[test]
        fn arbitrary_tables_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 512), head in any::<u16>()) {
            let memory = memory();
            memory.write_slice(&bytes, GuestAddress(0)).unwrap();
            let mut chain = Chain::new();
            if chain.load(&memory, GuestAddress(0), 32, head).is_ok() {
                prop_assert!(chain.buffers.len() <= MAX_DESCRIPTORS);
                for buffer in &chain.buffers {
                    prop_assert!(buffer.addr.0 + u64::from(buffer.len) <= 0x10000);
                }
            }
        }

        /// Random flags and links over small, mostly valid numbers reach deeper than random bytes do.
        #[test]
        fn plausible_tables_are_harmless(
            table in proptest::collection::vec((0u64..0x11000, 0u32..64, 0u16..8, 0u16..9), 8),
            offset in 0u32..128,
        ) {
            if let Ok(chain) = load(&table) {
                let memory = memory();
                let mut bytes = [0; 64];
                let n = chain.read(&memory, offset, &mut bytes).unwrap();
                prop_assert_eq!(n, 64.min(chain.readable_len().saturating_sub(offset) as usize));
                let n = chain.write(&memory, offset, &bytes).unwrap();
                prop_assert_eq!(n, 64.min(chain.writable_len().saturating_sub(offset) as usize));
            }
        }
    }
}
