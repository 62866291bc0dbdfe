//! The block device.

use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::ring::{check, eventfd, memory};
use super::{Input, RamDisk, plant};
use crate::block::{Block, Finished, Geometry, QUEUE_SIZE};
use crate::chain::Chain;
use crate::memory::Memory;
use crate::vring::{Placement, RingAddresses, Vring};

const SECTORS: u64 = 64;
const DEPTH: u32 = 8;
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

/// A request that is well-formed but for what the input makes of it: header, up to two pieces of data, status.
fn request(input: &mut Input<'_>, memory: &Memory, head: u16) {
    let kind = input.u8();
    let sector = input.number();
    let length = input.number() as u32;
    let shape = input.u8();
    let number = [0u32, 1, 4, 8, 11, 13].get(usize::from(kind)).copied();
    let header = 0x4000 + u64::from(head) * 64;
    let _ = memory.write_obj(number.unwrap_or(kind.into()), GuestAddress(header));
    let _ = memory.write_obj(sector, GuestAddress(header + 8));
    // A range to zero stands behind the header.
    let _ = memory.write_obj(sector, GuestAddress(header + 16));
    let _ = memory.write_obj(length, GuestAddress(header + 24));
    let _ = memory.write_obj(u32::from(shape & 3), GuestAddress(header + 28));
    let zeroing = matches!(number, Some(11 | 13));
    let to_device = if matches!(number, Some(1)) { 0 } else { 2u16 };
    let data = if zeroing { 0 } else { length.wrapping_mul(512) };
    let rows = [
        (header, if zeroing { 32 } else { 16 }, 0),
        (0x8000, data, to_device),
        (
            0xc000 + u64::from(head),
            if shape & 4 != 0 { shape.into() } else { 1 },
            2,
        ),
    ];
    let mut index = head;
    for (at, (address, length, flags)) in rows.into_iter().enumerate() {
        if at == 1 && length == 0 {
            continue;
        }
        let (flags, next) = if at == 2 {
            (flags, 0)
        } else {
            (flags | 1, index + 1)
        };
        let descriptor = virtio_queue::desc::split::Descriptor::new(address, length, flags, next);
        let _ = memory.write_obj(descriptor, GuestAddress(TABLE + u64::from(index) * 16));
        index += 1;
    }
}

/// Requests, most of them plausible, over a disk of 32 KiB that fails at times.
///
/// # Panics
/// If the backend is asked for what it has not, or a request is answered twice or never.
pub fn block(data: &[u8]) {
    let memory = Arc::new(memory());
    let mut input = Input::new(data);
    let flags = input.u8();
    let bytes = Arc::new(Mutex::new(vec![0x11; (SECTORS * 512) as usize]));
    let Ok(mut disk) = RamDisk::new(bytes) else { return };
    disk.set_chaos(u64::from(flags >> 4));
    let geometry = Geometry {
        sectors: SECTORS,
        read_only: flags & 1 != 0,
        queues: 1,
        serial: [7; 20],
    };
    let mut device = Block::new(geometry, disk, DEPTH);
    device.set_write_through(flags & 2 != 0);
    let Ok(mut ring) = Vring::new(QUEUE_SIZE) else {
        return;
    };
    let placement = Placement {
        size: 64,
        at: RingAddresses {
            descriptors: TABLE,
            available: AVAILABLE,
            used: USED,
        },
        event_idx: flags & 4 != 0,
        next: 0,
    };
    if ring
        .start_at(&memory, placement, eventfd(), Some(eventfd()))
        .is_err()
    {
        return;
    }
    let mut chain = Chain::new();
    let mut offered = 0u16;
    // Of which some are with the device.
    let (mut started, mut answered) = (0usize, 0usize);
    let mut finished: Vec<Finished> = Vec::new();
    while !input.is_empty() {
        match input.u8() % 8 {
            kind @ 0..4 => {
                let head = u16::from(input.u8() & 63);
                if kind == 3 {
                    plant(&mut input, &memory, TABLE);
                } else {
                    request(&mut input, &memory, head);
                }
                let slot = AVAILABLE + 4 + u64::from(offered % 64) * 2;
                let _ = memory.write_obj(head, GuestAddress(slot));
                offered = offered.wrapping_add(1);
                let _ = memory.write_obj(offered, GuestAddress(AVAILABLE + 2));
            }
            4 => {
                while device.has_room() && matches!(ring.pop(&memory, &mut chain), Ok(true)) {
                    check(&chain, &memory);
                    device.start(0, &mut chain, &memory, &mut finished);
                    started += 1;
                }
                device.kick();
            }
            5 => device.reap(&mut finished),
            6 => device.retry(),
            _ => device.resize(SECTORS.min(u64::from(input.u8()))),
        }
        for done in finished.drain(..) {
            answered += 1;
            let _ = ring.push_used(&memory, done.head, done.written);
        }
        ring.notify(&memory);
        assert_eq!(started - answered, device.running() + device.parked());
    }
    device.drain(None, &mut finished);
    answered += finished.len() + device.give_up_parked().len();
    assert_eq!((started, device.running()), (answered, 0));
}
