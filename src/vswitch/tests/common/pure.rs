//! The pipeline without I/O: frames in, frames out.

use std::time::Duration;

use etherparse::{Ethernet2Slice, IpHeaders, Ipv4Slice, PacketBuilder, PacketBuilderStep};
use model::net::{MacAddr, SwitchStatus, Tables};
use vswitch::{Effects, Frame, Place, Switch};

use super::{id, mac, two_tenants, v4};

/// A switch at a moment.
pub struct Pure {
    pub switch: Switch,
    pub now: Duration,
}

impl Pure {
    pub fn new(tables: &Tables) -> Self {
        let mut switch = Switch::new(7);
        let now = Duration::from_secs(1);
        assert!(switch.apply(tables, now));
        let mut pure = Self { switch, now };
        pure.pass(Duration::ZERO); // Announcements.
        pure
    }

    pub fn two_tenants() -> Self {
        Self::new(&two_tenants())
    }

    pub fn port(&self, number: u128) -> Place {
        self.switch.port(id(number)).unwrap()
    }

    pub fn uplink(&self) -> Place {
        self.switch.uplink("ext").unwrap()
    }

    /// A frame in, frames out.
    pub fn input(&mut self, from: Place, frame: Vec<u8>) -> Vec<(Place, Vec<u8>)> {
        let mut out = Effects::default();
        self.switch.input(from, Frame::new(frame), self.now, &mut out);
        bytes(out)
    }

    pub fn guest_sends(&mut self, number: u128, frame: Vec<u8>) -> Vec<(Place, Vec<u8>)> {
        self.input(self.port(number), frame)
    }

    pub fn host_sends(&mut self, frame: Vec<u8>) -> Vec<(Place, Vec<u8>)> {
        self.input(self.uplink(), frame)
    }

    /// Exactly one frame comes out, here.
    pub fn one(&mut self, from: Place, frame: Vec<u8>, to: Place) -> Vec<u8> {
        let mut out = self.input(from, frame);
        assert_eq!(out.len(), 1, "{out:x?}, drops {:?}", self.switch.status().drops);
        let (place, bytes) = out.remove(0);
        assert_eq!(place, to);
        bytes
    }

    /// Nothing comes out, for this reason.
    pub fn dropped(&mut self, from: Place, frame: Vec<u8>, reason: &str) {
        let before = self.drops(reason);
        let out = self.input(from, frame);
        assert_eq!(out, [], "not dropped as {reason}");
        assert_eq!(
            self.drops(reason),
            before + 1,
            "{reason}: {:?}",
            self.switch.status().drops
        );
    }

    pub fn drops(&self, reason: &str) -> u64 {
        self.status().drops.get(reason).copied().unwrap_or_default()
    }

    pub fn status(&self) -> SwitchStatus {
        self.switch.status()
    }

    /// Lets time pass, with all ticks on the way.
    pub fn pass(&mut self, time: Duration) -> Vec<(Place, Vec<u8>)> {
        let until = self.now + time;
        let mut all = Vec::new();
        for _ in 0..10_000 {
            let Some(due) = self.switch.next_tick().filter(|due| *due <= until) else {
                self.now = until;
                return all;
            };
            self.now = self.now.max(due);
            let mut out = Effects::default();
            self.switch.tick(self.now, &mut out);
            all.extend(bytes(out));
        }
        panic!("the switch wants to tick for ever");
    }

    /// The uplink's host answers ARP for 203.0.113.1, so that routers know it.
    pub fn introduce_host(&mut self) {
        let probe = udp((INSIDE, mac(2)), ("10.0.0.12", "203.0.113.1"), (1, 1), b"");
        let asked = self.one(self.port(2), probe, self.uplink());
        assert_eq!(&asked[12..14], &[8, 6]);
        let out = self.host_sends(arp(2, (HOST, "203.0.113.1"), "203.0.113.10", OUTSIDE_LEG));
        assert_eq!(out.len(), 1, "the frame that waited goes");
    }
}

/// The host's Ethernet address.
pub const HOST: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xee]);
/// The tenants' routers, inside and outside.
pub const INSIDE: MacAddr = MacAddr([0xfa, 0x16, 0x3e, 0, 0, 0x50]);
pub const OUTSIDE_LEG: MacAddr = MacAddr([0xfa, 0x16, 0x3e, 0, 0, 0xd0]);

fn bytes(out: Effects) -> Vec<(Place, Vec<u8>)> {
    out.frames
        .into_iter()
        .map(|(place, frame)| (place, frame.bytes))
        .collect()
}

fn builder(macs: (MacAddr, MacAddr), ips: (&str, &str)) -> PacketBuilderStep<IpHeaders> {
    let (dst, src) = macs;
    PacketBuilder::ethernet2(src.0, dst.0).ipv4(v4(ips.0).octets(), v4(ips.1).octets(), 64)
}

/// UDP: Ethernet addresses are (destination, source), IP addresses and ports (source, destination).
pub fn udp(macs: (MacAddr, MacAddr), ips: (&str, &str), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    builder(macs, ips)
        .udp(ports.0, ports.1)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

/// TCP with these flags.
pub fn tcp(macs: (MacAddr, MacAddr), ips: (&str, &str), ports: (u16, u16), flags: &str) -> Vec<u8> {
    let mut step = builder(macs, ips).tcp(ports.0, ports.1, 1, 1000);
    for flag in flags.chars() {
        step = match flag {
            'S' => step.syn(),
            'A' => step.ack(1),
            'F' => step.fin(),
            'R' => step.rst(),
            _ => panic!("{flag}"),
        };
    }
    let mut frame = Vec::new();
    step.write(&mut frame, b"").unwrap();
    frame
}

/// An ICMP echo.
pub fn echo(macs: (MacAddr, MacAddr), ips: (&str, &str), request: bool, id: u16, length: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = builder(macs, ips);
    let step = if request {
        step.icmpv4_echo_request(id, 1)
    } else {
        step.icmpv4_echo_reply(id, 1)
    };
    step.write(&mut frame, &vec![7; length]).unwrap();
    frame
}

/// An ICMP message of this type and code that quotes a packet.
pub fn icmp_error(macs: (MacAddr, MacAddr), ips: (&str, &str), kind: (u8, u8), quoted: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    builder(macs, ips)
        .icmpv4_raw(kind.0, kind.1, [0; 4])
        .write(&mut frame, quoted)
        .unwrap();
    frame
}

/// ARP.
pub fn arp(operation: u8, sender: (MacAddr, &str), target: &str, dst: MacAddr) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(dst.0);
    frame.extend(sender.0.0);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(sender.0.0);
    frame.extend(v4(sender.1).octets());
    frame.extend([0; 6]);
    frame.extend(v4(target).octets());
    frame
}

/// What matters of an IPv4 frame: Ethernet addresses, IP addresses, ports (or ICMP type and code, and id).
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub macs: (MacAddr, MacAddr),
    pub ips: (String, String),
    pub ports: (u16, u16),
    pub ttl: u8,
}

/// Reads a frame and checks all its checksums.
pub fn read(frame: &[u8]) -> Seen {
    let ethernet = Ethernet2Slice::from_slice_without_fcs(frame).unwrap();
    let ip = Ipv4Slice::from_slice(ethernet.payload_slice()).unwrap();
    let header = ip.header().to_header();
    assert_eq!(
        header.calc_header_checksum(),
        header.header_checksum,
        "IP checksum"
    );
    let body = ip.payload().payload;
    let whole = !header.more_fragments && header.fragment_offset.value() == 0;
    let word = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let sum_at = match header.protocol.0 {
        6 => Some(16),
        17 if word(6) != 0 => Some(6),
        1 => Some(2),
        _ => None,
    };
    if whole && sum_at.is_some() {
        let mut all = body.to_vec();
        if header.protocol.0 != 1 {
            all.extend(header.source);
            all.extend(header.destination);
            all.extend([0, header.protocol.0]);
            all.extend((body.len() as u16).to_be_bytes());
            if body.len() % 2 == 1 {
                all.insert(body.len(), 0);
            }
        } else if body.len() % 2 == 1 {
            all.push(0);
        }
        let mut sum: u32 = all
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        assert_eq!(sum, 0xffff, "checksum of protocol {}", header.protocol.0);
    }
    let ports = match header.protocol.0 {
        _ if header.fragment_offset.value() > 0 => (0, 0),
        1 => (word(0), word(4)),
        _ => (word(0), word(2)),
    };
    Seen {
        macs: (MacAddr(ethernet.destination()), MacAddr(ethernet.source())),
        ips: (
            ip.header().source_addr().to_string(),
            ip.header().destination_addr().to_string(),
        ),
        ports,
        ttl: header.time_to_live,
    }
}

impl Seen {
    /// Source and destination, as text.
    pub fn flow(&self) -> String {
        format!(
            "{}:{} > {}:{}",
            self.ips.0, self.ports.0, self.ips.1, self.ports.1
        )
    }
}
