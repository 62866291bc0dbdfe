//! A guest in test code, and a host of streams in memory.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::connection::BUFFER;
use super::packet::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;
use crate::vring::testing::{Chained, Driver};

const CID: u32 = 9;
/// Where somebody listens.
const OPEN: u32 = 80;

/// A stream, as the program at its other end sees it.
#[derive(Default)]
struct Pipe {
    to_guest: VecDeque<u8>,
    from_guest: Vec<u8>,
    /// How many bytes more it takes.
    room: usize,
    /// It will send no more; it is gone; it was told that nothing more comes.
    finished: bool,
    gone: bool,
    told: bool,
}

#[derive(Clone)]
struct Fake(Rc<RefCell<Pipe>>);

impl Fake {
    fn new(room: usize) -> Self {
        Fake(Rc::new(RefCell::new(Pipe {
            room,
            ..Pipe::default()
        })))
    }
}

impl Read for Fake {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        if pipe.to_guest.is_empty() && !pipe.finished && !pipe.gone {
            return Err(ErrorKind::WouldBlock.into());
        }
        pipe.to_guest.read(into)
    }
}

impl Write for Fake {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        if pipe.gone {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let count = bytes.len().min(pipe.room);
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        pipe.room -= count;
        pipe.from_guest.extend(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Fake {
    fn end(&mut self) {
        let told = &mut self.0.borrow_mut().told;
        assert!(!*told, "once");
        *told = true;
    }
}

#[derive(Default)]
struct Dialler {
    dialled: Vec<Fake>,
    room: usize,
}

impl Host for Dialler {
    type Stream = Fake;

    fn dial(&mut self, port: u32) -> Option<Fake> {
        (port == OPEN).then(|| {
            let fake = Fake::new(self.room);
            self.dialled.push(fake.clone());
            fake
        })
    }
}

/// The guest, with a ring for each direction in memories of their own.
struct Guest {
    vsock: Vsock<Dialler>,
    there: Driver,
    back: Driver,
    buffers: Vec<u64>,
    taken: usize,
}

fn packet(operation: Operation, ports: Ports) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: ports.0,
        dst_port: ports.1,
        len: 0,
        kind: STREAM,
        operation,
        flags: 0,
        buf_alloc: 1000,
        fwd_cnt: 0,
    }
}

impl Guest {
    fn new(room: usize) -> Self {
        let host = Dialler {
            room,
            ..Dialler::default()
        };
        Guest {
            vsock: Vsock::new(CID, host),
            there: Driver::new(1 << 20),
            back: Driver::new(1 << 20),
            buffers: Vec::new(),
            taken: 0,
        }
    }

    /// Offer buffers for so many packets.
    fn offer(&mut self, count: usize) {
        for _ in 0..count {
            let at = 0x8000 + self.buffers.len() as u64 * 0x800;
            self.back
                .offer(&[Chained::write(at, 20), Chained::write(at + 20, 0x7e0)]);
            self.buffers.push(at);
        }
    }

    fn put(&mut self, header: Header, bytes: &[u8]) {
        let header = Header {
            len: bytes.len() as u32,
            ..header
        };
        let all = [&header.bytes()[..], bytes].concat();
        self.there.memory.write_slice(&all, GuestAddress(0x8000)).unwrap();
        self.there.offer(&[Chained::read(0x8000, all.len() as u32)]);
        assert!(
            !self
                .vsock
                .transmit(&mut self.there.ring, &self.there.memory)
                .unwrap()
        );
    }

    /// The packets that came since.
    fn got(&mut self) -> Vec<(Header, Vec<u8>)> {
        assert!(
            !self
                .vsock
                .receive(&mut self.back.ring, &self.back.memory)
                .unwrap()
        );
        let used = self.back.used();
        let new = used[self.taken..].iter().map(|(head, written)| {
            let at = self.buffers[*head as usize / 2];
            let mut bytes = vec![0; *written as usize];
            self.back.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            let header: &[u8; HEADER] = bytes[..HEADER].try_into().unwrap();
            let header = Header::parse(header);
            assert_eq!(bytes.len(), HEADER + header.len as usize);
            (header, bytes[HEADER..].to_vec())
        });
        let new = new.collect();
        self.taken = used.len();
        new
    }

    fn words(&mut self) -> Vec<Operation> {
        self.got().iter().map(|(header, _)| header.operation).collect()
    }

    fn ready(&mut self) {
        for slot in 0..MAX_CONNECTIONS {
            self.vsock.ready(
                slot,
                Interest {
                    read: true,
                    write: true,
                },
            );
        }
    }
}

#[test]
fn a_guest_reaches_who_listens_and_is_refused_elsewhere() {
    let mut guest = Guest::new(3);
    guest.offer(8);
    guest.put(packet(Operation::Request, (1000, OPEN)), &[]);
    guest.put(packet(Operation::Request, (1000, OPEN + 1)), &[]);
    let got = guest.got();
    let expected = Header {
        src_cid: HOST_CID,
        dst_cid: CID.into(),
        operation: Operation::Reset,
        buf_alloc: 0,
        ..packet(Operation::Reset, (OPEN + 1, 1000))
    };
    assert_eq!(got[0].0, expected);
    assert_eq!(
        (got[1].0.operation, got[1].0.buf_alloc),
        (Operation::Response, BUFFER)
    );
    assert_eq!(guest.vsock.connections(), 1);

    let fake = guest.vsock.host.dialled[0].clone();
    guest.put(packet(Operation::Data, (1000, OPEN)), b"hello");
    assert_eq!(fake.0.borrow().from_guest, b"hel");
    let waits = guest.vsock.interests().next().unwrap().unwrap().2;
    assert_eq!(
        waits,
        Interest {
            read: true,
            write: true
        }
    );
    fake.0.borrow_mut().room = 100;
    guest.ready();
    assert_eq!(fake.0.borrow().from_guest, b"hello");

    fake.0.borrow_mut().to_guest.extend(vec![7; 1500]);
    guest.ready();
    let got = guest.got();
    assert_eq!(
        (got[0].0.operation, got[0].0.fwd_cnt, got[0].1.len()),
        (Operation::Data, 5, 1000)
    );
    assert_eq!(got[1].0.operation, Operation::AskCredit);
    let waits = guest.vsock.interests().next().unwrap().unwrap().2;
    assert_eq!(
        waits,
        Interest::default(),
        "nothing is waited for that nobody wants"
    );
    let mut credit = packet(Operation::Credit, (1000, OPEN));
    credit.fwd_cnt = 1000;
    guest.put(credit, &[]);
    let got = guest.got();
    assert_eq!((got.len(), got[0].1.len()), (1, 500));

    fake.0.borrow_mut().finished = true;
    guest.ready();
    let got = guest.got();
    assert_eq!(
        (got[0].0.operation, got[0].0.flags),
        (Operation::Shutdown, SHUTDOWN_SEND)
    );
    let mut shutdown = packet(Operation::Shutdown, (1000, OPEN));
    shutdown.flags = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
    guest.put(shutdown, &[]);
    assert_eq!(guest.words(), [Operation::Reset]);
    assert_eq!(guest.vsock.connections(), 0);
    assert_eq!(
        Rc::strong_count(&fake.0),
        2,
        "the stream is closed: the test and its dialler have the rest"
    );
}

#[test]
fn a_host_reaches_the_guest() {
    let mut guest = Guest::new(0);
    guest.offer(4);
    let fake = Fake::new(100);
    assert!(guest.vsock.accept(fake.clone(), 22));
    let (request, _) = guest.got().remove(0);
    assert_eq!(
        (request.operation, request.dst_port, request.src_port),
        (Operation::Request, 22, FIRST_PORT)
    );
    let ports = (22, request.src_port);
    guest.put(packet(Operation::Response, ports), &[]);
    assert_eq!(
        fake.0.borrow().from_guest,
        format!("OK {FIRST_PORT}\n").as_bytes()
    );
    let mut shutdown = packet(Operation::Shutdown, ports);
    shutdown.flags = SHUTDOWN_SEND;
    guest.put(packet(Operation::Data, ports), b"bye");
    guest.put(shutdown, &[]);
    assert!(fake.0.borrow().told && fake.0.borrow().from_guest.ends_with(b"\nbye"));
    fake.0.borrow_mut().gone = true;
    guest.ready();
    assert_eq!(guest.words(), [Operation::Shutdown]);
    guest.put(packet(Operation::Reset, ports), &[]);
    assert_eq!((guest.vsock.connections(), guest.words()), (0, vec![]));
    assert_eq!(Rc::strong_count(&fake.0), 1);
}

#[test]
fn there_are_only_so_many_connections_and_refusals() {
    let mut guest = Guest::new(0);
    for port in 0..MAX_CONNECTIONS as u32 - 2 {
        guest.put(packet(Operation::Request, (port, OPEN)), &[]);
    }
    assert!(guest.vsock.accept(Fake::new(0), 1) && guest.vsock.accept(Fake::new(0), 1));
    assert!(!guest.vsock.accept(Fake::new(0), 1));
    guest.put(packet(Operation::Request, (5000, OPEN)), &[]);
    guest.offer(1);
    assert_eq!(guest.words(), [Operation::Reset]);

    let mut guest = Guest::new(0);
    for _ in 0..MAX_RESETS + 5 {
        guest.put(packet(Operation::Data, (1, 2)), b"?");
    }
    assert!(guest.vsock.is_choked());
    assert_eq!(guest.there.used().len(), MAX_RESETS, "others wait");
    guest.offer(100);
    assert_eq!(guest.words().len(), MAX_RESETS);
    assert!(
        !guest
            .vsock
            .transmit(&mut guest.there.ring, &guest.there.memory)
            .unwrap()
    );
    assert_eq!(guest.words(), [Operation::Reset; 5]);
}

#[test]
fn what_is_not_for_us_is_refused_or_ignored() {
    let mut guest = Guest::new(10);
    guest.offer(8);
    let request = packet(Operation::Request, (1, OPEN));
    guest.put(
        Header {
            src_cid: 4,
            ..request
        },
        &[],
    );
    guest.put(packet(Operation::Reset, (1, OPEN)), &[]);
    assert_eq!(guest.words(), [], "a stranger, and a reset");
    guest.put(
        Header {
            dst_cid: 77,
            ..request
        },
        &[],
    );
    guest.put(Header { kind: 2, ..request }, &[]);
    let got = guest.got();
    assert_eq!((got[0].0.src_cid, got[1].0.kind), (77, 2));
    assert!(got.iter().all(|(header, _)| header.operation == Operation::Reset));

    // Bytes that are not there.
    guest.put(request, &[]);
    assert_eq!(guest.words(), [Operation::Response]);
    let mut short = packet(Operation::Data, (1, OPEN));
    short.len = 100;
    guest
        .there
        .memory
        .write_slice(&short.bytes(), GuestAddress(0x8000))
        .unwrap();
    for length in [HEADER as u32 + 99, HEADER as u32 - 1] {
        guest.there.offer(&[Chained::read(0x8000, length)]);
    }
    assert!(
        !guest
            .vsock
            .transmit(&mut guest.there.ring, &guest.there.memory)
            .unwrap()
    );
    assert_eq!(guest.words(), [Operation::Reset]);
    assert_eq!(guest.vsock.connections(), 0);
}

#[test]
fn a_guest_whose_connections_are_lost_is_told() {
    let mut guest = Guest::new(10);
    guest.put(packet(Operation::Request, (1, OPEN)), &[]);
    let mut events = Driver::new(1 << 20);
    guest.vsock.tell_events(&mut events.ring, &events.memory).unwrap();
    guest.vsock.lose();
    assert_eq!(guest.vsock.connections(), 0);
    guest.vsock.tell_events(&mut events.ring, &events.memory).unwrap();
    events.memory.write_obj(u64::MAX, GuestAddress(0x8000)).unwrap();
    events.offer(&[Chained::write(0x8000, 4)]);
    events.offer(&[Chained::write(0x9000, 4)]);
    for _ in 0..2 {
        guest.vsock.tell_events(&mut events.ring, &events.memory).unwrap();
        assert_eq!(events.used(), [(0, 4)], "once");
    }
    assert_eq!(
        events.memory.read_obj::<u64>(GuestAddress(0x8000)).unwrap(),
        0xffff_ffff_0000_0000
    );
}

#[test]
fn greetings_are_read() {
    for (line, port) in [
        (&b"CONNECT 22\n"[..], Some(22)),
        (b"CONNECT 4294967295\r\n", Some(u32::MAX)),
        (b"CONNECT 4294967296\n", None),
        (b"CONNECT +1\n", None),
        (b"CONNECT \n", None),
        (b"connect 1\n", None),
        (b"CONNECT 1 2\n", None),
        (b"\xff\n", None),
    ] {
        assert_eq!(greeting(line), port, "{line:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever packets in whatever chains come in whatever order with whatever buffers: bounds are kept, and all chains but those that
    /// wait are answered.
    #[test]
    fn any_packets_are_harmless(
        steps in prop::collection::vec((
            0u32..3, OPEN..OPEN + 2, 0u16..9, 0u32..4, 0u32..3000, 0u32..3000, 0u32..5000, 0u8..10, 0u32..200,
        ), 0..200),
    ) {
        let mut guest = Guest::new(2000);
        let mut offered = 0;
        for (guest_port, host_port, op, flags, alloc, forwarded, len, kind, room) in steps {
            let mut header = packet(op.into(), (guest_port, host_port));
            (header.flags, header.buf_alloc, header.fwd_cnt, header.len) = (flags, alloc, forwarded, len);
            match kind {
                0 => { guest.vsock.accept(Fake::new(9), guest_port); }
                1 => guest.back.ring.running().then(|| guest.back.offer(&[Chained::write(0x8000, room)])).map_or((), |_| ()),
                2 => for fake in &guest.vsock.host.dialled {
                    let mut pipe = fake.0.borrow_mut();
                    if pipe.to_guest.len() < 10_000 {
                        pipe.to_guest.extend(vec![1; len as usize]);
                    }
                    pipe.room += 100;
                    pipe.finished |= room < 5;
                    pipe.gone |= room == 5;
                },
                3 => guest.ready(),
                _ => {
                    guest.there.memory.write_slice(&header.bytes(), GuestAddress(0x8000)).unwrap();
                    guest.there.offer(&[Chained::read(0x8000, if kind == 4 { room } else { HEADER as u32 + len })]);
                    offered += 1;
                }
            }
            guest.vsock.transmit(&mut guest.there.ring, &guest.there.memory).unwrap();
            guest.vsock.receive(&mut guest.back.ring, &guest.back.memory).unwrap();
            // It may be choked no longer.
            guest.vsock.transmit(&mut guest.there.ring, &guest.there.memory).unwrap();
            guest.vsock.receive(&mut guest.back.ring, &guest.back.memory).unwrap();
            prop_assert!(guest.vsock.connections() <= MAX_CONNECTIONS);
            prop_assert!(guest.vsock.turns.len() <= guest.vsock.connections());
            prop_assert!(guest.vsock.resets.len() <= MAX_RESETS);
            prop_assert_eq!(guest.vsock.slots.len(), guest.vsock.entries.iter().flatten().count());
            prop_assert!(guest.vsock.is_choked() || guest.there.used().len() == offered);
            for (slot, entry) in guest.vsock.entries.iter().enumerate() {
                let Some(entry) = entry else { continue };
                prop_assert_eq!(guest.vsock.slots[&entry.ports], slot);
                prop_assert_eq!(entry.queued, guest.vsock.turns.contains(&slot));
                prop_assert!(entry.queued || !entry.has_something());
            }
        }
    }
}
