//! A driver for tests: memory with one ring in its first 16 KiB, whose chains are offered and whose answers are read.

use std::fs::File;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Placement, RingAddresses, Vring};
use crate::memory::Memory;

/// Descriptors of the ring, and the most that can be offered at all.
pub const SIZE: u16 = 256;

/// A buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Chained {
    addr: u64,
    len: u32,
    write: bool,
}

impl Chained {
    /// For the device to read.
    pub fn read(addr: u64, len: u32) -> Self {
        Chained {
            addr,
            len,
            write: false,
        }
    }

    /// For the device to write.
    pub fn write(addr: u64, len: u32) -> Self {
        Chained {
            addr,
            len,
            write: true,
        }
    }
}

/// The driver.
pub struct Driver {
    pub memory: Memory,
    pub ring: Vring,
    descriptors: u16,
    chains: u16,
}

pub fn eventfd() -> File {
    use std::os::fd::{FromRawFd, IntoRawFd};
    let fd = EventFd::new(EFD_NONBLOCK).unwrap();
    // SAFETY: the descriptor was just given up by its one owner.
    #[allow(unsafe_code)]
    unsafe {
        File::from_raw_fd(fd.into_raw_fd())
    }
}

impl Driver {
    /// With so much memory.
    pub fn new(bytes: usize) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), bytes)]).unwrap();
        let mut ring = Vring::new(SIZE).unwrap();
        let placement = Placement {
            size: SIZE,
            at: RingAddresses {
                descriptors: 0x1000,
                available: 0x2000,
                used: 0x3000,
            },
            event_idx: false,
            next: 0,
        };
        ring.start_at(&memory, placement, eventfd(), Some(eventfd()))
            .unwrap();
        Driver {
            memory,
            ring,
            descriptors: 0,
            chains: 0,
        }
    }

    /// Offer a chain of these buffers; its head.
    pub fn offer(&mut self, chain: &[Chained]) -> u16 {
        let head = self.descriptors;
        for (index, buffer) in chain.iter().enumerate() {
            let next = self.descriptors + 1;
            assert!(next <= SIZE, "the table is full");
            let flags = u16::from(index + 1 < chain.len()) | u16::from(buffer.write) << 1;
            self.memory
                .write_obj(
                    Descriptor::new(buffer.addr, buffer.len, flags, next),
                    GuestAddress(0x1000 + u64::from(self.descriptors) * 16),
                )
                .unwrap();
            self.descriptors = next;
        }
        self.memory
            .write_obj(head, GuestAddress(0x2004 + u64::from(self.chains) * 2))
            .unwrap();
        self.chains += 1;
        self.memory.write_obj(self.chains, GuestAddress(0x2002)).unwrap();
        head
    }

    /// The heads and written bytes of all answers so far.
    pub fn used(&self) -> Vec<(u32, u32)> {
        let count: u16 = self.memory.read_obj(GuestAddress(0x3002)).unwrap();
        (0..u64::from(count))
            .map(|index| {
                let word = |at| {
                    self.memory
                        .read_obj(GuestAddress(0x3004 + index * 8 + at))
                        .unwrap()
                };
                (word(0), word(4))
            })
            .collect()
    }
}
