//! vhost-user ports, from the guest's side.

mod common;

use std::os::unix::net::UnixListener;
use std::time::Duration;

use common::driver::{Driver, Memory, feature};
use common::world::World;
use common::{id, mac, two_tenants};
use etherparse::{Ipv4Slice, PacketBuilder, TcpSlice};
use model::net::Attachment;

const SOON: Duration = Duration::from_secs(5);

fn world() -> (World, [std::path::PathBuf; 2]) {
    let mut tables = two_tenants();
    for port in tables.ports.values_mut() {
        port.attachment = Attachment::VhostUser;
    }
    let mut world = World::start(&tables);
    let paths = [1u128, 2].map(|number| {
        let path = world.folder.path().join(format!("port-{number}"));
        world.plug_vhost(id(number), &UnixListener::bind(&path).unwrap());
        path
    });
    (world, paths)
}

/// From guest to guest, with these ports.
fn udp(from: u8, to: u8, ports: (u16, u16)) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(mac(from).0, mac(to).0)
        .ipv4([10, 0, 0, 10 + from], [10, 0, 0, 10 + to], 64)
        .udp(ports.0, ports.1);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"datagram").unwrap();
    frame
}

fn tcp(payload: usize) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(mac(1).0, mac(2).0)
        .ipv4([10, 0, 0, 11], [10, 0, 0, 12], 64)
        .tcp(1000, 2000, 7, 1000)
        .syn();
    let mut frame = Vec::new();
    let payload: Vec<u8> = (0..payload).map(|n| n as u8).collect();
    builder.write(&mut frame, &payload).unwrap();
    frame
}

/// A frame whose checksum, and whose cutting into pieces of 1000 bytes, the sender leaves to others.
fn offloaded(payload: usize) -> ([u8; 12], Vec<u8>) {
    let mut frame = tcp(payload);
    // The sum of the pseudo-header stands where the checksum will be.
    let sum: u32 = [0x0a00u32, 11, 0x0a00, 12, 6, (20 + payload) as u32].iter().sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    frame[50..52].copy_from_slice(&(folded as u16).to_be_bytes());
    let mut header = [0; 12];
    header[0] = 1;
    header[1] = 1;
    header[2..4].copy_from_slice(&54u16.to_le_bytes());
    header[4..6].copy_from_slice(&1000u16.to_le_bytes());
    header[6..8].copy_from_slice(&34u16.to_le_bytes());
    header[8..10].copy_from_slice(&16u16.to_le_bytes());
    (header, frame)
}

fn checked_payload(frame: &[u8]) -> Vec<u8> {
    let ip = Ipv4Slice::from_slice(&frame[14..]).unwrap();
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    let tcp = TcpSlice::from_slice(ip.payload().payload).unwrap();
    let sum = tcp.calc_checksum_ipv4(header.source, header.destination).unwrap();
    assert_eq!(sum, tcp.checksum());
    tcp.payload().to_vec()
}

#[test]
fn frames_pass_between_guests_whole_or_cut_as_the_receiver_can_take_them() {
    let (mut world, [one, two]) = world();
    let (memory, other) = (Memory::new(), Memory::new());
    let mut sender = Driver::connect(&memory, &one, feature::ALL);
    let mut receiver = Driver::connect(&other, &two, feature::ALL);
    assert_eq!(world.status().vhost_user, [(id(1), true), (id(2), true)].into());
    receiver.give_buffers(8);
    sender.send([0; 12], &tcp(100));
    let got = receiver.receive(SOON).unwrap();
    assert_eq!((got.flags, got.buffers, got.bytes), ((0, 0), 1, tcp(100)));

    // Five thousand bytes in buffers of two thousand: three of them, all at once, offload untouched.
    let (header, frame) = offloaded(5000);
    sender.send(header, &frame);
    let got = receiver.receive(SOON).unwrap();
    assert_eq!((got.flags, got.buffers), ((1, 1), 3));
    assert_eq!(got.bytes, frame);

    // No room: dropped, and the next one passes again.
    let full = |world: &mut World| {
        world
            .status()
            .drops
            .get("receiver_full")
            .copied()
            .unwrap_or_default()
    };
    let before = full(&mut world);
    sender.send(header, &offloaded(12_000).1);
    assert!(receiver.receive(Duration::from_millis(300)).is_none());
    sender.send([0; 12], &tcp(7));
    assert_eq!(receiver.receive(SOON).unwrap().bytes, tcp(7));
    assert_eq!(full(&mut world), before + 1);

    // A guest that reconnects with fewer features goes on where its rings are, and gets finished pieces.
    drop(receiver);
    let mut receiver = Driver::connect(&other, &two, 0);
    receiver.give_buffers(5);
    sender.send(header, &offloaded(2500).1);
    let mut whole = Vec::new();
    for _ in 0..3 {
        let got = receiver.receive(SOON).unwrap();
        assert_eq!((got.flags, got.buffers), ((0, 0), 1));
        whole.extend(checked_payload(&got.bytes));
    }
    assert_eq!(whole, offloaded(2500).1[54..]);
}

#[test]
fn a_guest_gets_answers_on_the_pair_of_rings_on_which_it_asked() {
    let (_world, [one, two]) = world();
    let (memory, other) = (Memory::new(), Memory::new());
    let mut asks = Driver::connect_pairs(&memory, &one, feature::ALL, 4);
    assert_eq!(asks.rings_offered(), 8);
    let mut answers = Driver::connect(&other, &two, feature::ALL);
    answers.give_buffers(16);
    for pair in 0..4 {
        asks.give_buffers_on(pair, 8);
    }
    // Each pair asks from a port of its own; and again the other way round.
    for (round, pairs) in [[0, 1, 2, 3], [3, 2, 1, 0]].into_iter().enumerate() {
        for (port, pair) in (5000 + 10 * round as u16..).zip(pairs) {
            asks.send_on(pair, [0; 12], &udp(1, 2, (port, 53)));
            assert_eq!(answers.receive(SOON).unwrap().bytes, udp(1, 2, (port, 53)));
            answers.send([0; 12], &udp(2, 1, (53, port)));
            let got = asks.receive_on(pair, SOON).unwrap();
            assert_eq!(got.bytes, udp(2, 1, (53, port)), "pair {pair}");
        }
    }
    // A pair that is out of use gets nothing and is not read; the flow comes on one of the others.
    let question = udp(1, 2, (6000, 53));
    asks.send_on(3, [0; 12], &question);
    assert_eq!(answers.receive(SOON).unwrap().bytes, question);
    for pair in [1, 2, 3] {
        asks.use_pair(pair, false);
    }
    answers.send([0; 12], &udp(2, 1, (53, 6000)));
    assert_eq!(asks.receive(SOON).unwrap().bytes, udp(2, 1, (53, 6000)));
    asks.use_pair(1, true);
    asks.send_on(1, [0; 12], &question);
    assert_eq!(answers.receive(SOON).unwrap().bytes, question);
    answers.send([0; 12], &udp(2, 1, (53, 6000)));
    assert!(asks.receive_on(1, SOON).is_some());
}

#[test]
fn a_guest_that_breaks_its_ring_or_its_socket_stops_nobody_else() {
    let (mut world, [one, two]) = world();
    let (memory, other) = (Memory::new(), Memory::new());
    let mut sender = Driver::connect(&memory, &one, feature::ALL);
    let receiver = Driver::connect(&other, &two, feature::ALL);
    receiver.give_buffers(4);
    // Half a message, and silence.
    drop(receiver);
    use std::io::Write;
    let mut stuck = std::os::unix::net::UnixStream::connect(&two).unwrap();
    stuck.write_all(&[1, 0, 0]).unwrap();
    sender.send([0; 12], &tcp(1));
    // Offloads that make no sense.
    let (mut header, frame) = offloaded(3000);
    for (at, value) in [(1, 3), (1, 0x81), (4, 0), (6, 0xff), (8, 0xff)] {
        let before = header[at];
        header[at] = value;
        sender.send(header, &frame);
        header[at] = before;
    }
    sender.send(header, &frame[..13]);
    let mut receiver = Driver::connect(&other, &two, feature::ALL);
    sender.send([0; 12], &tcp(2));
    let got = receiver.receive(SOON).unwrap();
    assert!(!got.bytes.is_empty());
    drop(stuck);
    assert!(
        world.status().drops["bad_offload"] >= 4,
        "{:?}",
        world.status().drops
    );
}

#[test]
fn rings_may_be_enabled_before_the_features_are_set_as_qemu_does() {
    use std::io::{Read, Write};
    let (_world, [one, _]) = world();
    let mut stream = std::os::unix::net::UnixStream::connect(one).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    // Request code, flags (version 1; 8: reply wanted), payload.
    let mut ask = |code: u32, flags: u32, payload: &[u8]| {
        let head = [code, flags, payload.len() as u32].map(u32::to_ne_bytes).concat();
        stream.write_all(&[&head, payload].concat()).unwrap();
        let mut answer = [0; 20];
        stream.read_exact(&mut answer).unwrap();
        u64::from_ne_bytes(answer[12..].try_into().unwrap())
    };
    let offered = ask(1, 1, &[]); // GET_FEATURES
    assert_ne!(offered & feature::PROTOCOL, 0);
    assert_ne!(ask(15, 1, &[]) & 8, 0, "REPLY_ACK is offered"); // GET_PROTOCOL_FEATURES
    assert_eq!(ask(16, 9, &8u64.to_ne_bytes()), 0); // SET_PROTOCOL_FEATURES
    let ring = |index: u32| [index, 1].map(u32::to_ne_bytes).concat();
    assert_eq!(ask(18, 9, &ring(0)), 0); // SET_VRING_ENABLE
    assert_eq!(ask(18, 9, &ring(1)), 0);
    assert_ne!(ask(18, 9, &ring(8)), 0, "there is no such ring");
}
