//! A vhost-user backend that answers what it likes.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::ftruncate;
use vm_memory::{FileOffset, GuestAddress};

use super::Input;
use super::ring::eventfd;
use crate::feature;
use crate::memory::Memory;
use crate::vhost_user::frontend::Frontend;
use crate::vring::{Placement, RingAddresses};

/// Requests: their numbers in the protocol.
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const GET_VRING_BASE: u32 = 11;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;
/// Those that start a ring.
const START: [u32; 6] = [8, 9, 10, 14, 13, 12];
/// Protocol features: a number of rings, acknowledgements.
const MQ: u64 = 1;
const REPLY_ACK: u64 = 1 << 3;
/// The longest message of a frontend: a memory table of 32 regions.
const LONGEST: usize = 8 + 32 * 32;

struct Backend {
    stream: UnixStream,
    acknowledges: bool,
}

impl Backend {
    fn say(&mut self, bytes: &[u8]) {
        // A frontend that hung up hears no more.
        let _ = self.stream.write(bytes);
    }

    fn reply(&mut self, code: u32, payload: u64) {
        let mut message = [code, 5, 8].map(u32::to_ne_bytes).concat();
        message.extend(payload.to_ne_bytes());
        self.say(&message);
    }

    /// Replies to requests like these, each of which is what was wanted or what the input says.
    fn answer(&mut self, input: &mut Input<'_>, codes: &[u32], payload: u64) {
        let wrong = input.u8();
        for (index, code) in codes.iter().enumerate() {
            if wrong >> index & 1 == 0 {
                self.reply(*code, payload);
                continue;
            }
            let how = input.u8();
            match how & 3 {
                0 => {}
                1 => self.reply(*code, input.number()),
                2 => self.say(input.bytes(usize::from(how >> 2))),
                _ => {
                    let mut words = [*code, 5, 8, input.u32(), input.u32()];
                    words[usize::from(how >> 2) % 3] = input.number() as u32;
                    self.say(words.map(u32::to_ne_bytes).as_flattened());
                }
            }
        }
    }

    /// What the frontend said so far: whole messages.
    fn hear(&self) {
        let mut buffer = [0; 8192];
        let mut said = Vec::new();
        while let Ok(count @ 1..) = recv(self.stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            said.extend(&buffer[..count]);
        }
        let mut rest = &said[..];
        while let Some((head, body)) = rest.split_first_chunk::<12>() {
            let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let length = word(8) as usize;
            assert!((1..=40).contains(&word(0)) && word(4) & !8 == 1 && length <= LONGEST);
            rest = &body[length..];
        }
        assert!(rest.is_empty(), "half a message");
    }
}

/// The guest's memory, of which a frontend hands on the files alone.
fn memory(shared: bool) -> Option<Memory> {
    let ranges = [(GuestAddress(0), 0x1000usize), (GuestAddress(1 << 32), 0x1000)];
    if !shared {
        return Memory::from_ranges(&ranges).ok();
    }
    let file: OwnedFd = memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).ok()?;
    ftruncate(&file, 0x2000).ok()?;
    let file = File::from(file);
    let part = |(index, (start, size)): (u64, (GuestAddress, usize))| {
        let share = FileOffset::new(file.try_clone().ok()?, index * 0x1000);
        Some((start, size, Some(share)))
    };
    let parts: Option<Vec<_>> = (0..).zip(ranges).map(part).collect();
    Memory::from_ranges_with_files(parts?).ok()
}

/// Replies to all that a frontend asks for. What they lead to is an answer or an error, and at once: the time is up.
///
/// # Panics
/// If the frontend takes on what cannot be, or what it says is no message.
pub fn frontend(data: &[u8]) {
    thread_local! {
        static MEMORIES: Option<[Memory; 2]> = memory(false).zip(memory(true)).map(<[Memory; 2]>::from);
        static EVENT: File = eventfd();
    }
    let Some(memories) = MEMORIES.with(Clone::clone) else {
        return;
    };
    let Some(event) = EVENT.with(|event| event.try_clone().ok()) else {
        return;
    };
    let mut input = Input::new(data);
    let Ok((ours, theirs)) = UnixStream::pair() else {
        return;
    };
    let _ = theirs.set_nonblocking(true);
    let (flags, protocol) = (input.u8(), u64::from(input.u8()));
    let mut backend = Backend {
        stream: theirs,
        acknowledges: protocol & REPLY_ACK != 0,
    };
    if flags & 1 == 0 {
        backend.reply(GET_FEATURES, feature::PROTOCOL_FEATURES | input.number());
        backend.reply(GET_PROTOCOL_FEATURES, protocol);
        if protocol & MQ != 0 {
            backend.reply(GET_QUEUE_NUM, input.number());
        }
    } else {
        let codes = [GET_FEATURES, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM];
        backend.answer(&mut input, &codes, feature::PROTOCOL_FEATURES | protocol);
    }
    // What has not been said by now comes too late.
    let greeted = Frontend::greet(ours, Instant::now());
    backend.hear();
    let Ok(mut frontend) = greeted else { return };
    assert!(frontend.rings() <= 256 && frontend.features() & feature::PROTOCOL_FEATURES != 0);
    while !input.is_empty() {
        let kind = input.u8();
        let ring = u16::from(kind >> 4);
        let acknowledged = |codes: &'static [u32]| if backend.acknowledges { codes } else { &[] };
        let result = match kind & 7 {
            0 => {
                let codes = acknowledged(&[SET_FEATURES]);
                backend.answer(&mut input, codes, 0);
                frontend.set_features(input.number())
            }
            1 => {
                let codes = acknowledged(&[SET_MEM_TABLE]);
                backend.answer(&mut input, codes, 0);
                frontend.set_memory(&memories[usize::from(kind & 0x30 != 0)])
            }
            2 | 3 => {
                let codes = acknowledged(&START);
                backend.answer(&mut input, codes, 0);
                let placement = Placement {
                    size: 16,
                    at: RingAddresses {
                        descriptors: input.number(),
                        available: 0x100,
                        used: 0x200,
                    },
                    event_idx: false,
                    next: u16::from(kind),
                };
                let call = (kind & 8 != 0).then(|| event.as_fd());
                frontend.start_ring(ring, &placement, event.as_fd(), call, event.as_fd())
            }
            4 => {
                let codes = acknowledged(&[SET_VRING_ENABLE]);
                backend.answer(&mut input, codes, 0);
                frontend.enable_ring(ring, kind & 8 != 0)
            }
            5 => {
                let next = u64::from(input.u16());
                let payload = u64::from(ring) | next << 32;
                backend.answer(&mut input, &[GET_VRING_BASE], payload);
                frontend.stop_ring(ring).map(drop)
            }
            6 => {
                if !backend.acknowledges {
                    backend.answer(&mut input, &[GET_FEATURES], 0);
                }
                frontend.settle()
            }
            _ => {
                if kind & 8 != 0 {
                    let _ = backend.stream.shutdown(std::net::Shutdown::Write);
                }
                frontend.look()
            }
        };
        backend.hear();
        if result.is_err() && kind & 0x80 != 0 {
            // As whoever uses it does. Else on, for what it is worth.
            return;
        }
    }
}
