//! The socket device (virtio 1.2 §5.10): streams between ports of the guest's and programs on its host.
//!
//! A guest that connects to a port of the host's reaches whatever [`Host::dial`] finds there; a program on the host that wants
//! a port of the guest's is brought by [`Vsock::accept`]. What a stream gives is read when the guest has both room and a
//! buffer for it, so nothing of it waits here; what the guest sends waits in its connection, as far as its credit reaches.
//!
//! - [`packet`]: the packets.
//! - [`connection`]: one connection, a pure state machine.

pub mod connection;
pub mod packet;

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};

use connection::{Connection, Event};
use packet::{HEADER, Header, Operation, STREAM};

use crate::{
    chain::Chain,
    memory::Memory,
    vring::{RingError, Vring},
};

/// The device's type (§5).
pub const DEVICE_ID: u16 = 19;
/// Its rings: `rx`, `tx`, `event`.
pub const QUEUES: u16 = 3;
/// The ring of packets for the guest.
pub const RECEIVE: usize = 0;
/// The ring of packets from the guest.
pub const TRANSMIT: usize = 1;
/// The ring of events.
pub const EVENT: usize = 2;
/// Descriptors of a ring.
pub const QUEUE_SIZE: u16 = 128;
/// The host's address (`VMADDR_CID_HOST`).
pub const HOST_CID: u64 = 2;
/// The least address of a guest.
pub const MIN_CID: u32 = 3;
/// The most connections of a guest.
pub const MAX_CONNECTIONS: usize = 256;
/// Refusals that wait for the guest to take them. While there are so many, its packets wait.
const MAX_RESETS: usize = 64;
/// Bytes of a packet at most, as Linux sends them.
const MAX_PACKET: u32 = 64 << 10;
/// Bytes after which a ring is left, so that others get their turn.
const BATCH: u32 = 256 << 10;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`
const TRANSPORT_RESET: u32 = 0;
/// The first port of the host's ends of connections that the host asked for; others are for programs that listen.
const FIRST_PORT: u32 = 1 << 30;

/// A stream to a program on the host. Reading and writing wait for nothing ([`ErrorKind::WouldBlock`]).
pub trait Stream: Read + Write {
    /// Nothing more will be written.
    fn end(&mut self);
}

/// Where the guest's connections lead.
pub trait Host {
    /// What they are.
    type Stream: Stream;
    /// A stream to whoever listens on this port, if somebody does; without waiting.
    fn dial(&mut self, port: u32) -> Option<Self::Stream>;
}

/// A connection's name: the guest's port, and the host's.
type Ports = (u32, u32);

struct Entry<S> {
    ports: Ports,
    /// Tells it apart from those that had its slot before.
    serial: u64,
    connection: Connection,
    stream: S,
    /// The stream may have bytes, or room, as far as is known.
    readable: bool,
    writable: bool,
    /// It was told that nothing more will be written.
    ended: bool,
    /// It is in the queue of those who have something for the guest.
    queued: bool,
}

impl<S: Stream> Entry<S> {
    /// Write what there is to be written.
    fn flush(&mut self) {
        while self.writable && !self.connection.writes().is_empty() {
            match self.stream.write(self.connection.writes()) {
                Ok(0) => self.connection.hear(Event::Broken),
                Ok(count) => self.connection.hear(Event::Written(count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(_) => self.connection.hear(Event::Broken),
            }
        }
        if self.connection.is_written() && !std::mem::replace(&mut self.ended, true) {
            self.stream.end();
        }
    }

    /// How many bytes it may give to the guest.
    fn offers(&self) -> u32 {
        if self.readable { self.connection.reads() } else { 0 }
    }

    fn has_something(&self) -> bool {
        self.connection.has_words() || self.offers() > 0
    }
}

/// What a stream is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interest {
    /// Bytes.
    pub read: bool,
    /// Room.
    pub write: bool,
}

/// The device.
pub struct Vsock<H: Host> {
    cid: u64,
    host: H,
    entries: Vec<Option<Entry<H::Stream>>>,
    slots: BTreeMap<Ports, usize>,
    /// Those who have something for the guest, in turn.
    turns: VecDeque<usize>,
    resets: VecDeque<Header>,
    /// The guest is to be told that its connections are lost.
    lost: bool,
    next_port: u32,
    next_serial: u64,
    chain: Chain,
    piece: Vec<u8>,
}

impl<H: Host> Vsock<H> {
    /// For the guest of this address, on this host.
    pub fn new(cid: u32, host: H) -> Self {
        Vsock {
            cid: cid.into(),
            host,
            entries: Vec::new(),
            slots: BTreeMap::new(),
            turns: VecDeque::new(),
            resets: VecDeque::new(),
            lost: false,
            next_port: FIRST_PORT,
            next_serial: 0,
            chain: Chain::new(),
            piece: Vec::new(),
        }
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.slots.len()
    }

    /// A program on the host wants this port of the guest's. False if there are too many already: the stream is closed.
    pub fn accept(&mut self, stream: H::Stream, guest_port: u32) -> bool {
        if self.slots.len() >= MAX_CONNECTIONS {
            return false;
        }
        // There are far more ports than connections.
        while self.slots.contains_key(&(guest_port, self.next_port)) {
            self.next_port = self.next_port.wrapping_add(1).max(FIRST_PORT);
        }
        let port = self.next_port;
        self.next_port = self.next_port.wrapping_add(1).max(FIRST_PORT);
        let preface = format!("OK {port}\n");
        self.insert((guest_port, port), Connection::ask(preface.as_bytes()), stream);
        true
    }

    fn insert(&mut self, ports: Ports, connection: Connection, stream: H::Stream) {
        let entry = Entry {
            ports,
            serial: self.next_serial,
            connection,
            stream,
            readable: true,
            writable: true,
            ended: false,
            queued: false,
        };
        self.next_serial += 1;
        let free = self.entries.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.entries.len());
        if free.is_none() {
            self.entries.push(None);
        }
        self.entries[slot] = Some(entry);
        self.slots.insert(ports, slot);
        self.settle(slot);
    }

    /// After a change: write what can be written, take a turn, or leave.
    fn settle(&mut self, slot: usize) {
        let Some(entry) = self.entries.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        entry.flush();
        if entry.connection.is_over() {
            self.slots.remove(&entry.ports);
            self.entries[slot] = None;
            self.turns.retain(|other| *other != slot);
        } else if entry.has_something() && !std::mem::replace(&mut entry.queued, true) {
            self.turns.push_back(slot);
        }
    }

    /// The stream of this connection has bytes, or room. (It may be another's by now: then it is tried for nothing.)
    pub fn ready(&mut self, slot: usize, what: Interest) {
        if let Some(entry) = self.entries.get_mut(slot).and_then(Option::as_mut) {
            entry.readable |= what.read;
            entry.writable |= what.write;
        }
        self.settle(slot);
    }

    /// For what each connection's stream is waited for, by slot, with a number that no other connection had; `None`: there is no
    /// connection.
    pub fn interests(&self) -> impl Iterator<Item = Option<(&H::Stream, u64, Interest)>> {
        self.entries.iter().map(|entry| {
            entry.as_ref().map(|entry| {
                let interest = Interest {
                    read: !entry.readable && entry.connection.reads() > 0,
                    write: !entry.writable && !entry.connection.writes().is_empty(),
                };
                (&entry.stream, entry.serial, interest)
            })
        })
    }

    /// Packets of the guest's have to wait until it takes some of what there is for it.
    pub fn is_choked(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// There is something for the guest.
    pub fn has_something(&self) -> bool {
        !self.resets.is_empty() || !self.turns.is_empty()
    }

    /// Take the guest's packets. True if there may be more to do at once; false: wait for a kick, or until it is no longer
    /// choked.
    ///
    /// # Errors
    /// If the guest broke a rule; the ring has stopped then.
    pub fn transmit(&mut self, ring: &mut Vring, memory: &Memory) -> Result<bool, RingError> {
        let mut left = BATCH;
        ring.disable_kicks(memory);
        let mut result = Ok(false);
        while !self.is_choked() {
            if left == 0 {
                result = Ok(true);
                break;
            }
            match ring.pop_or_rest(memory, &mut self.chain) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            left = left.saturating_sub(self.chain.readable_len().clamp(64, MAX_PACKET));
            let done = self
                .take(memory)
                .and_then(|()| ring.push_used(memory, self.chain.head(), 0));
            if let Err(error) = done {
                ring.break_ring();
                result = Err(error);
                break;
            }
        }
        ring.notify(memory);
        result
    }

    /// The packet in the chain.
    fn take(&mut self, memory: &Memory) -> Result<(), RingError> {
        let mut header = [0; HEADER];
        if self.chain.read(memory, 0, &mut header)? < HEADER {
            return Ok(());
        }
        let header = Header::parse(&header);
        // Nobody else can be answered (§5.10.6.4.1).
        if header.src_cid != self.cid {
            return Ok(());
        }
        let there = self.chain.readable_len() - HEADER as u32;
        let carried = if header.operation == Operation::Data {
            header.len
        } else {
            0
        };
        let sound = header.dst_cid == HOST_CID && header.kind == STREAM;
        if !sound || carried > there.min(MAX_PACKET) {
            self.refuse(&header);
            return Ok(());
        }
        let mut piece = std::mem::take(&mut self.piece);
        piece.resize(carried as usize, 0);
        let read = self.chain.read(memory, HEADER as u32, &mut piece);
        if read.is_ok() {
            self.hear(&header, &piece);
        }
        self.piece = piece;
        read?;
        Ok(())
    }

    fn hear(&mut self, header: &Header, bytes: &[u8]) {
        let ports = (header.src_port, header.dst_port);
        if let Some(slot) = self.slots.get(&ports).copied() {
            if let Some(entry) = &mut self.entries[slot] {
                entry.connection.hear(Event::Packet(header, bytes));
            }
            return self.settle(slot);
        }
        let wanted = header.operation == Operation::Request && self.slots.len() < MAX_CONNECTIONS;
        match wanted.then(|| self.host.dial(header.dst_port)).flatten() {
            Some(stream) => self.insert(ports, Connection::answer(header), stream),
            None => self.refuse(header),
        }
    }

    /// Say that there is no such connection, or no longer. To a refusal nothing is said.
    fn refuse(&mut self, header: &Header) {
        let ports = (header.src_port, header.dst_port);
        if header.dst_cid == HOST_CID
            && header.kind == STREAM
            && let Some(slot) = self.slots.get(&ports).copied()
        {
            if let Some(entry) = &mut self.entries[slot] {
                entry.connection.hear(Event::Broken);
            }
            return self.settle(slot);
        }
        if header.operation == Operation::Reset {
            return;
        }
        self.resets.push_back(Header {
            src_cid: header.dst_cid,
            dst_cid: header.src_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            len: 0,
            kind: header.kind,
            operation: Operation::Reset,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        });
    }

    /// Give the guest what there is for it. True if there may be more to do at once; false: wait for a kick, or for a stream.
    ///
    /// # Errors
    /// If the guest broke a rule; the ring has stopped then.
    pub fn receive(&mut self, ring: &mut Vring, memory: &Memory) -> Result<bool, RingError> {
        let mut left = BATCH;
        ring.disable_kicks(memory);
        let mut result = Ok(false);
        while self.has_something() {
            if left == 0 {
                result = Ok(true);
                break;
            }
            match ring.pop_or_rest(memory, &mut self.chain) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            let done = self.fill(memory).and_then(|written| {
                left = left.saturating_sub(written.unwrap_or(0).max(64));
                match written {
                    Some(written) => ring.push_used(memory, self.chain.head(), written),
                    None => {
                        // Nobody had anything after all.
                        ring.unpop(1);
                        Ok(())
                    }
                }
            });
            if let Err(error) = done {
                ring.break_ring();
                result = Err(error);
                break;
            }
        }
        ring.notify(memory);
        result
    }

    /// Put one packet into the chain: its bytes, or `None` if there is none.
    fn fill(&mut self, memory: &Memory) -> Result<Option<u32>, RingError> {
        let room = self.chain.writable_len();
        if room <= HEADER as u32 {
            // No packet with bytes fits: the guest gets it back as it is.
            return Ok(Some(0));
        }
        if let Some(reset) = self.resets.pop_front() {
            self.chain.write(memory, 0, &reset.bytes())?;
            return Ok(Some(HEADER as u32));
        }
        while let Some(slot) = self.turns.pop_front() {
            let Some(entry) = self.entries.get_mut(slot).and_then(Option::as_mut) else {
                continue;
            };
            entry.queued = false;
            let packet = compose(entry, self.cid, room - HEADER as u32, &mut self.piece);
            // Whether it is over, or has more: then after all others.
            self.settle(slot);
            if let Some(header) = packet {
                self.chain.write(memory, 0, &header.bytes())?;
                let bytes = &self.piece[..header.len as usize];
                self.chain.write(memory, HEADER as u32, bytes)?;
                return Ok(Some(HEADER as u32 + header.len));
            }
        }
        Ok(None)
    }

    /// Tell the guest of what has happened to all its connections.
    ///
    /// # Errors
    /// If the guest broke a rule; the ring has stopped then.
    pub fn tell_events(&mut self, ring: &mut Vring, memory: &Memory) -> Result<(), RingError> {
        if !self.lost || !ring.pop(memory, &mut self.chain)? {
            return Ok(());
        }
        self.lost = false;
        let written = self.chain.write(memory, 0, &TRANSPORT_RESET.to_le_bytes());
        // The chain was checked when it was popped.
        ring.push_used(memory, self.chain.head(), written.unwrap_or(0) as u32)?;
        ring.notify(memory);
        Ok(())
    }

    /// As after its making.
    pub fn reset(&mut self) {
        self.entries.clear();
        self.slots.clear();
        self.turns.clear();
        self.resets.clear();
        self.lost = false;
    }

    /// The guest is another host's by now: its connections are lost, and it will be told (§5.10.6.7).
    pub fn lose(&mut self) {
        self.reset();
        self.lost = true;
    }
}

/// A packet of this connection's, with at most `room` bytes, which are in `piece`.
fn compose<S: Stream>(entry: &mut Entry<S>, cid: u64, room: u32, piece: &mut Vec<u8>) -> Option<Header> {
    let (operation, flags, len) = if let Some((operation, flags)) = entry.connection.say() {
        (operation, flags, 0)
    } else {
        let wanted = entry.offers().min(room).min(MAX_PACKET);
        if wanted == 0 {
            return None;
        }
        piece.resize(wanted as usize, 0);
        match entry.stream.read(piece) {
            Ok(0) => {
                entry.connection.hear(Event::Ended);
                return None;
            }
            // At most a packet.
            Ok(count) => {
                entry.connection.hear(Event::Read(count as u32));
                (Operation::Data, 0, count as u32)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                entry.readable = false;
                return None;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return None,
            Err(_) => {
                entry.connection.hear(Event::Broken);
                return None;
            }
        }
    };
    let (buf_alloc, fwd_cnt) = entry.connection.tell();
    let (guest_port, host_port) = entry.ports;
    Some(Header {
        src_cid: HOST_CID,
        dst_cid: cid,
        src_port: host_port,
        dst_port: guest_port,
        len,
        kind: STREAM,
        operation,
        flags,
        buf_alloc,
        fwd_cnt,
    })
}

/// What a program on the host says first: `CONNECT <port>`, and the end of the line, in at most [`MAX_GREETING`] bytes.
pub fn greeting(line: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(line).ok()?.strip_prefix("CONNECT ")?;
    let digits = text.trim_end_matches(['\r', '\n']);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// The longest [`greeting`].
pub const MAX_GREETING: usize = 32;

#[cfg(test)]
mod tests;
