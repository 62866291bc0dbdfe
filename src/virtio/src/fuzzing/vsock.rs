//! The socket device.

use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

use vm_memory::{Bytes, GuestAddress};

use super::ring::{memory, offer, started};
use super::{Input, plant};
use crate::memory::Memory;
use crate::vsock::packet::{HEADER, Header, STREAM};
use crate::vsock::{HOST_CID, Host, Interest, MAX_CONNECTIONS, QUEUE_SIZE, RECEIVE, Stream, TRANSMIT, Vsock};

const CID: u32 = 9;
/// The rings' descriptor tables.
const TABLES: [u64; 3] = [0x1000, 0x4000, 0x7000];
/// Where packets are.
const PACKETS: u64 = 0xa000;
/// The most that one call moves: its batch, and one packet more.
const MOST: u64 = (256 << 10) + (64 << 10);

/// What the programs on the host do: as the dice say.
#[derive(Default)]
struct World {
    dice: Cell<u64>,
    moved: Cell<u64>,
}

impl World {
    fn roll(&self) -> u64 {
        let mut dice = self.dice.get();
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        self.dice.set(dice);
        dice >> 8
    }

    /// How many of so many bytes pass, or why none does.
    fn pass(&self, most: usize) -> io::Result<usize> {
        let roll = self.roll();
        match roll % 16 {
            0 => Ok(0),
            1 => Err(ErrorKind::BrokenPipe.into()),
            2 => Err(ErrorKind::Interrupted.into()),
            3..6 => Err(ErrorKind::WouldBlock.into()),
            6..10 => Ok(most.min(1 + (roll >> 4) as usize % 64)),
            _ => Ok(most),
        }
        .inspect(|count| self.moved.set(self.moved.get() + *count as u64))
    }
}

struct Fake {
    world: Rc<World>,
    ended: bool,
}

impl Read for Fake {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        assert!(!into.is_empty(), "no bytes are the end");
        self.world.pass(into.len())
    }
}

impl Write for Fake {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!self.ended, "written after the end");
        self.world.pass(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Fake {
    fn end(&mut self) {
        assert!(!std::mem::replace(&mut self.ended, true), "ended twice");
    }
}

struct Dialler(Rc<World>);

impl Dialler {
    fn stream(&self) -> Fake {
        Fake {
            world: self.0.clone(),
            ended: false,
        }
    }
}

impl Host for Dialler {
    type Stream = Fake;

    fn dial(&mut self, port: u32) -> Option<Fake> {
        (port % 8 != 7).then(|| self.stream())
    }
}

/// A packet that is well-formed but for what the input makes of it, offered.
fn packet(input: &mut Input<'_>, memory: &Memory) {
    let kind = input.u8();
    let slot = u16::from(input.u8() & 31);
    // Ports are few, so that packets meet their connections; those that the host chose are from 2³⁰ on.
    let ports = input.u8();
    let host_port = if ports & 8 == 0 { 0 } else { 1 << 30 } + u32::from(ports & 7);
    let length = if kind & 0x20 == 0 {
        0
    } else {
        input.number() as u32
    };
    let lies = kind & 0x40 != 0;
    let header = Header {
        src_cid: if lies { input.number() } else { CID.into() },
        dst_cid: if lies { input.number() } else { HOST_CID },
        src_port: u32::from(ports >> 4),
        dst_port: host_port,
        len: length,
        kind: if lies { input.u8().into() } else { STREAM },
        operation: u16::from(kind & 15).into(),
        flags: u32::from(kind >> 7) * u32::from(input.u8()),
        buf_alloc: if kind & 0x10 == 0 {
            0x1_0000
        } else {
            input.number() as u32
        },
        fwd_cnt: if kind & 0x10 == 0 {
            0
        } else {
            input.number() as u32
        },
    };
    let at = PACKETS + u64::from(slot) * 64;
    let _ = memory.write_slice(&header.bytes(), GuestAddress(at));
    // Its bytes are whatever is there.
    let head = slot * 2;
    let rows = [(at, HEADER as u32, 1, head + 1), (0, length.min(0x1_0000), 0, 0)];
    for (index, (address, length, flags, next)) in (head..).zip(rows) {
        let flags = if rows[1].1 == 0 { 0 } else { flags };
        let descriptor = virtio_queue::desc::split::Descriptor::new(address, length, flags, next);
        let place = TABLES[TRANSMIT] + u64::from(index) * 16;
        let _ = memory.write_obj(descriptor, GuestAddress(place));
    }
    offer(memory, TABLES[TRANSMIT], QUEUE_SIZE, head);
}

/// Packets, most of them plausible, between a guest and programs on its host that come, go, and stand still.
///
/// # Panics
/// If there are more connections than may be, or one call moves more bytes than it may.
pub fn vsock(data: &[u8]) {
    let memory = memory();
    let mut input = Input::new(data);
    let flags = input.u8();
    let world = Rc::new(World::default());
    world.dice.set(u64::from(flags) << 8 | 1);
    let rings = TABLES.map(|table| started(&memory, table, QUEUE_SIZE, flags & 1 != 0));
    let [Some(mut receive), Some(mut transmit), Some(mut events)] = rings else {
        return;
    };
    let mut vsock = Vsock::new(CID, Dialler(world.clone()));
    while !input.is_empty() {
        let kind = input.u8();
        match kind % 16 {
            0..4 => packet(&mut input, &memory),
            4 => plant(&mut input, &memory, TABLES[usize::from(kind >> 4) % 3]),
            5 => offer(
                &memory,
                TABLES[usize::from(kind >> 4) % 3],
                QUEUE_SIZE,
                input.u8().into(),
            ),
            6 => {
                // Room for packets.
                let length = 44 + input.number() as u32 % 0x4000;
                for index in 0..=u16::from(kind >> 4) {
                    let room = virtio_queue::desc::split::Descriptor::new(0xb000, length, 2, 0);
                    let place = TABLES[RECEIVE] + u64::from(index) * 16;
                    let _ = memory.write_obj(room, GuestAddress(place));
                    offer(&memory, TABLES[RECEIVE], QUEUE_SIZE, index);
                }
            }
            7 | 8 => {
                world.moved.set(0);
                let result = vsock.transmit(&mut transmit, &memory);
                assert!(result.is_ok() || transmit.broken());
                assert!(world.moved.get() <= MOST + (64 << 10) * MAX_CONNECTIONS as u64);
            }
            9 | 10 => {
                world.moved.set(0);
                let result = vsock.receive(&mut receive, &memory);
                assert!(result.is_ok() || receive.broken());
                assert!(world.moved.get() <= MOST + (64 << 10) * MAX_CONNECTIONS as u64);
            }
            11 => {
                let stream = Dialler(world.clone()).stream();
                let before = vsock.connections();
                let taken = vsock.accept(stream, u32::from(kind >> 4));
                assert!(taken || before == MAX_CONNECTIONS);
            }
            12 => {
                let what = Interest {
                    read: kind & 0x10 != 0,
                    write: kind & 0x20 != 0,
                };
                vsock.ready(input.u8().into(), what);
            }
            13 => world.dice.set(input.u64() | 1),
            14 => {
                let _ = vsock.tell_events(&mut events, &memory);
            }
            _ => {
                if kind & 0x80 == 0 {
                    vsock.reset();
                } else {
                    vsock.lose();
                }
                let rings = TABLES.map(|table| started(&memory, table, QUEUE_SIZE, kind & 0x10 != 0));
                let [Some(first), Some(second), Some(third)] = rings else {
                    return;
                };
                (receive, transmit, events) = (first, second, third);
                assert!(vsock.connections() == 0 && !vsock.has_something());
            }
        }
        assert!(vsock.connections() <= MAX_CONNECTIONS);
        let there = vsock.interests().flatten().count();
        assert_eq!(there, vsock.connections());
    }
}
