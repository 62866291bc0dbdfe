//! Chains and rings.

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{Input, plant};
use crate::chain::{Chain, MAX_DESCRIPTORS};
use crate::memory::Memory;
use crate::vring::{Placement, RingAddresses, Vring};

/// Two pieces of memory with a gap.
const PIECES: [(GuestAddress, usize); 2] = [(GuestAddress(0), 0x1_0000), (GuestAddress(0x2_0000), 0x1000)];

/// Those, all zeroes. A thread has but one memory, whose clones share it: to clear it costs far less than to map it, and to
/// fault in each of its pages, for each input.
pub(super) fn memory() -> Memory {
    thread_local! {
        static MEMORY: Memory = Memory::from_ranges(&PIECES)
            .unwrap_or_else(|error| panic!("no memory for the fuzzer: {error}"));
    }
    static ZEROES: [u8; 0x1_0000] = [0; 0x1_0000];
    let memory = MEMORY.with(Memory::clone);
    for (start, size) in PIECES {
        // It is there.
        let _ = memory.write_slice(&ZEROES[..size], start);
    }
    memory
}

/// A ring that serves, of so many descriptors; its descriptors at `at`, and what is available and used a page and two behind them.
pub(super) fn started(memory: &Memory, at: u64, size: u16, event_idx: bool) -> Option<Vring> {
    let mut ring = Vring::new(size).ok()?;
    let placement = Placement {
        size,
        at: RingAddresses {
            descriptors: at,
            available: at + 0x1000,
            used: at + 0x2000,
        },
        event_idx,
        next: 0,
    };
    ring.start_at(memory, placement, eventfd(), Some(eventfd()))
        .ok()?;
    Some(ring)
}

/// Offer the chain that begins with this descriptor, in a ring that was made by [`started`].
pub(super) fn offer(memory: &Memory, at: u64, size: u16, head: u16) {
    let available = at + 0x1000;
    let next: u16 = memory.read_obj(GuestAddress(available + 2)).unwrap_or_default();
    let slot = available + 4 + u64::from(next % size) * 2;
    let _ = memory.write_obj(head, GuestAddress(slot));
    let _ = memory.write_obj(next.wrapping_add(1), GuestAddress(available + 2));
}

pub(super) fn eventfd() -> File {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_or_else(
        |error| panic!("no eventfd for the fuzzer: {error}"),
        |event| File::from(OwnedFd::from(event)),
    )
}

/// What holds for each chain that was not refused.
pub(super) fn check(chain: &Chain, memory: &Memory) {
    let (readable, writable) = (chain.readable(), chain.writable());
    assert!(readable.len() + writable.len() <= MAX_DESCRIPTORS);
    for buffer in readable.iter().chain(writable) {
        assert!(buffer.len > 0 && memory.check_range(buffer.addr, buffer.len as usize));
    }
    let sum = |buffers: &[crate::chain::Buffer]| buffers.iter().map(|b| u64::from(b.len)).sum::<u64>();
    assert_eq!(sum(readable), u64::from(chain.readable_len()));
    assert_eq!(sum(writable), u64::from(chain.writable_len()));
}

/// A descriptor table, indirect tables, and whoever walks them.
///
/// # Panics
/// If a chain is not as its documentation says.
pub fn chain(data: &[u8]) {
    let memory = memory();
    let mut input = Input::new(data);
    let (head, size, table) = (input.u8(), input.u8(), input.number());
    for _ in 0..8 {
        if input.is_empty() {
            break;
        }
        // The table, or where indirect ones may be.
        let at = input.number();
        plant(&mut input, &memory, if at < 0x40 { table } else { at });
    }
    let mut chain = Chain::new();
    let loaded = chain.load(&memory, GuestAddress(table), 1 << (size & 15), head.into());
    if loaded.is_err() {
        assert_eq!(chain.readable_len() | chain.writable_len(), 0);
        assert!(chain.readable().is_empty() && chain.writable().is_empty());
        return;
    }
    check(&chain, &memory);
    let mut bytes = [0x5a; 64];
    let offset = u32::from(size);
    for (total, done) in [
        (chain.readable_len(), chain.read(&memory, offset, &mut bytes)),
        (chain.writable_len(), chain.write(&memory, offset, &bytes)),
    ] {
        let expected = total.saturating_sub(offset).min(bytes.len() as u32);
        assert_eq!(done.ok(), Some(expected as usize));
    }
}

impl Placement {
    /// What the device writes is what it reads.
    fn overlaps(&self) -> bool {
        let size = u64::from(self.size);
        let (available, used) = (self.at.available, self.at.used);
        used < available.saturating_add(6 + 2 * size) && available < used.saturating_add(6 + 8 * size)
    }
}

/// A ring: set up, used, stopped and set up again, while the guest writes what it likes.
///
/// # Panics
/// If more chains come than there can be.
pub fn ring(data: &[u8]) {
    let memory = memory();
    let mut input = Input::new(data);
    let Ok(mut ring) = Vring::new(256) else { return };
    let mut chain = Chain::new();
    let mut place = Placement {
        size: 16,
        at: RingAddresses {
            descriptors: 0x1000,
            available: 0x2000,
            used: 0x3000,
        },
        event_idx: input.u8() & 1 != 0,
        next: 0,
    };
    let start = |ring: &mut Vring, place: Placement| {
        ring.start_at(&memory, place, eventfd(), Some(eventfd())).is_ok()
    };
    start(&mut ring, place);
    while !input.is_empty() {
        match input.u8() % 12 {
            0 => plant(&mut input, &memory, place.at.descriptors),
            1 => {
                let at = input.number();
                plant(&mut input, &memory, at);
            }
            2 => {
                let index = input.number() as u16;
                let _ = memory.write_obj(index, GuestAddress(place.at.available.wrapping_add(2)));
            }
            3 => {
                let slot = u64::from(input.u8());
                let head = input.number() as u16;
                let at = place.at.available.wrapping_add(4 + slot * 2);
                let _ = memory.write_obj(head, GuestAddress(at));
            }
            4 => {
                let (at, value) = (input.number(), input.u16());
                let _ = memory.write_obj(value, GuestAddress(at));
            }
            5 => {
                // As many chains as a guest can offer at once, and no more; but where the device's own answers are offers, there is
                // always one more.
                let waiting = if place.overlaps() {
                    u16::MAX
                } else {
                    ring.waiting(&memory)
                };
                let mut count = 0;
                ring.disable_kicks(&memory);
                while count < ring.size()
                    && let Ok(true) = ring.pop(&memory, &mut chain)
                {
                    check(&chain, &memory);
                    count += 1;
                    assert!(count <= waiting);
                    let _ = ring.push_used(&memory, chain.head(), chain.writable_len());
                }
                ring.notify(&memory);
                ring.enable_kicks(&memory);
            }
            6 => {
                if let Ok(true) = ring.pop(&memory, &mut chain) {
                    ring.unpop(1);
                }
            }
            7 => {
                let _ = ring.push_used(&memory, input.u16(), input.u32());
                ring.notify(&memory);
            }
            8 => {
                place.next = ring.halt();
                start(&mut ring, place);
            }
            9 => {
                place.size = input.number() as u16;
                place.at.descriptors = input.number();
                place.at.available = input.number();
                place.at.used = input.number();
                place.next = input.number() as u16;
                if !start(&mut ring, place) {
                    assert!(!ring.running());
                }
            }
            10 => {
                let _ = ring.load(&memory, input.u16(), &mut chain);
            }
            _ => ring.break_ring(),
        }
    }
}
