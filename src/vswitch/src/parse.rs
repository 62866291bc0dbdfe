//! What the switch needs to know of a frame, checked against the frame's length once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpPacketSlice, Ethernet2HeaderSlice, IpNumber, Ipv4HeaderSlice, Ipv6ExtensionsSlice, Ipv6HeaderSlice,
    TcpHeaderSlice, UdpHeaderSlice,
};
use model::net::MacAddr;

use crate::counters::Drop;
use crate::frame::ETHERNET;

/// EtherTypes (IEEE 802 numbers).
pub mod ethertype {
    /// Internet Protocol version 4.
    pub const IPV4: u16 = 0x0800;
    /// Address Resolution Protocol.
    pub const ARP: u16 = 0x0806;
    /// Internet Protocol version 6.
    pub const IPV6: u16 = 0x86dd;
}

/// IP protocol numbers.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
}

/// TCP flags.
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;
}

/// A parsed frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Destination address.
    pub dst: MacAddr,
    /// Source address.
    pub src: MacAddr,
    /// What the frame carries.
    pub ethertype: u16,
    /// The network layer.
    pub net: Net,
}

/// The network layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Net {
    /// ARP for IPv4 over Ethernet.
    Arp(Arp),
    /// IPv4 or IPv6.
    Ip(Ip),
    /// Something else.
    Other,
}

/// An ARP packet (RFC 826).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// 1: request, 2: reply.
    pub operation: u16,
    /// Sender's Ethernet address.
    pub sender_mac: MacAddr,
    /// Sender's IP address.
    pub sender: Ipv4Addr,
    /// The address asked for.
    pub target: Ipv4Addr,
}

/// An IP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ip {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// The protocol behind all extension headers.
    pub protocol: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Where the protocol's header begins in the frame.
    pub l4: usize,
    /// Where the packet ends in the frame (behind it there may be padding).
    pub end: usize,
    /// A piece of a larger packet?
    pub fragment: Fragment,
    /// Identification, for fragments.
    pub ident: u32,
    /// The protocol's own header; in a later fragment filled in from the first one.
    pub transport: Transport,
}

/// Is a packet a piece of a larger one?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// Whole.
    No,
    /// The first piece.
    First,
    /// A later piece, without the protocol's header; its offset in bytes.
    Later(u16),
}

/// The transport layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP, UDP, SCTP, DCCP, UDP-Lite.
    Ports {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
        /// TCP's flags.
        flags: u8,
    },
    /// ICMP or ICMPv6 echo.
    Echo {
        /// A request, not a reply.
        request: bool,
        /// The identifier.
        id: u16,
    },
    /// An ICMP or ICMPv6 error about another packet.
    Error {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The packet that it is about.
        inner: Inner,
    },
    /// Another ICMP or ICMPv6 message.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// A protocol without ports, or a later fragment whose first one is unknown.
    None,
}

/// The packet inside an ICMP error, as far as it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// Protocol.
    pub protocol: u8,
    /// Where its IP header begins in the frame.
    pub l3: usize,
    /// Where its protocol's header begins in the frame.
    pub l4: usize,
    /// Its ports or echo identifier.
    pub flow: InnerFlow,
}

/// Ports of the packet inside an ICMP error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InnerFlow {
    /// Source and destination port.
    Ports(u16, u16),
    /// Echo: a request?, identifier.
    Echo(bool, u16),
    /// None.
    None,
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

impl Packet {
    /// Parses a frame. An error is the reason to drop it.
    pub fn parse(bytes: &[u8]) -> Result<Packet, Drop> {
        let ethernet = Ethernet2HeaderSlice::from_slice(bytes).map_err(|_| Drop::Malformed)?;
        let ethertype = ethernet.ether_type().0;
        let net = match ethertype {
            ethertype::ARP => Net::Arp(parse_arp(bytes)?),
            ethertype::IPV4 => Net::Ip(parse_v4(bytes)?),
            ethertype::IPV6 => Net::Ip(parse_v6(bytes)?),
            _ => Net::Other,
        };
        Ok(Packet {
            dst: MacAddr(ethernet.destination()),
            src: MacAddr(ethernet.source()),
            ethertype,
            net,
        })
    }
}

fn parse_arp(bytes: &[u8]) -> Result<Arp, Drop> {
    let arp = ArpPacketSlice::from_slice(&bytes[ETHERNET..]).map_err(|_| Drop::Malformed)?;
    if arp.hw_addr_type().0 != 1 || arp.proto_addr_type().0 != ethertype::IPV4 {
        return Err(Drop::Malformed);
    }
    let mac = <[u8; 6]>::try_from(arp.sender_hw_addr()).map_err(|_| Drop::Malformed)?;
    let sender = <[u8; 4]>::try_from(arp.sender_protocol_addr()).map_err(|_| Drop::Malformed)?;
    let target = <[u8; 4]>::try_from(arp.target_protocol_addr()).map_err(|_| Drop::Malformed)?;
    Ok(Arp {
        operation: arp.operation().0,
        sender_mac: MacAddr(mac),
        sender: sender.into(),
        target: target.into(),
    })
}

fn parse_v4(bytes: &[u8]) -> Result<Ip, Drop> {
    let header = Ipv4HeaderSlice::from_slice(&bytes[ETHERNET..]).map_err(|_| Drop::Malformed)?;
    let l4 = ETHERNET + header.slice().len();
    let end = ETHERNET + usize::from(header.total_len());
    if end > bytes.len() || end < l4 {
        return Err(Drop::Malformed);
    }
    let offset = header.fragments_offset().byte_offset();
    let protocol = header.protocol().0;
    let fragment = match (offset, header.more_fragments()) {
        (0, false) => Fragment::No,
        (0, true) => Fragment::First,
        (offset, _) => Fragment::Later(offset),
    };
    let transport = parse_transport(bytes, l4, end, protocol, fragment, false)?;
    Ok(Ip {
        src: IpAddr::V4(header.source_addr()),
        dst: IpAddr::V4(header.destination_addr()),
        protocol,
        ttl: header.ttl(),
        l4,
        end,
        fragment,
        ident: u32::from(header.identification()),
        transport,
    })
}

fn parse_v6(bytes: &[u8]) -> Result<Ip, Drop> {
    let header = Ipv6HeaderSlice::from_slice(&bytes[ETHERNET..]).map_err(|_| Drop::Malformed)?;
    let end = ETHERNET + 40 + usize::from(header.payload_length());
    if end > bytes.len() {
        return Err(Drop::Malformed);
    }
    let (extensions, next, rest) =
        Ipv6ExtensionsSlice::from_slice(header.next_header(), &bytes[ETHERNET + 40..end])
            .map_err(|_| Drop::Malformed)?;
    let l4 = end - rest.len();
    let mut fragment = Fragment::No;
    let mut ident = 0;
    for extension in extensions.clone() {
        if let etherparse::Ipv6ExtensionSlice::Fragment(piece) = extension {
            ident = piece.identification();
            let offset = piece.fragment_offset().byte_offset();
            fragment = match (offset, piece.more_fragments()) {
                (0, false) => Fragment::No, // An atomic fragment (RFC 6946).
                (0, true) => Fragment::First,
                (offset, _) => Fragment::Later(offset),
            };
        }
    }
    let protocol = next.0;
    if IpNumber(protocol).is_ipv6_ext_header_value() && !matches!(fragment, Fragment::Later(_)) {
        return Err(Drop::Malformed); // More extension headers than anyone needs.
    }
    let transport = parse_transport(bytes, l4, end, protocol, fragment, true)?;
    Ok(Ip {
        src: IpAddr::V6(header.source_addr()),
        dst: IpAddr::V6(header.destination_addr()),
        protocol,
        ttl: header.hop_limit(),
        l4,
        end,
        fragment,
        ident,
        transport,
    })
}

fn parse_transport(
    bytes: &[u8],
    l4: usize,
    end: usize,
    protocol: u8,
    fragment: Fragment,
    v6: bool,
) -> Result<Transport, Drop> {
    if let Fragment::Later(offset) = fragment {
        // Nothing may overwrite the header that the first fragment was judged by (RFC 1858, RFC 3128).
        if offset < 64 && matches!(protocol, protocol::TCP) || offset < 8 {
            return Err(Drop::BadFragment);
        }
        return Ok(Transport::None);
    }
    let body = &bytes[l4..end];
    Ok(match protocol {
        protocol::TCP => {
            let tcp = TcpHeaderSlice::from_slice(body).map_err(|_| Drop::Malformed)?;
            Transport::Ports {
                src: tcp.source_port(),
                dst: tcp.destination_port(),
                flags: body[13],
            }
        }
        protocol::UDP => {
            let udp = UdpHeaderSlice::from_slice(body).map_err(|_| Drop::Malformed)?;
            Transport::Ports {
                src: udp.source_port(),
                dst: udp.destination_port(),
                flags: 0,
            }
        }
        protocol::SCTP | protocol::DCCP | protocol::UDPLITE => {
            let ports = be16(body, 0)
                .zip(be16(body, 2))
                .filter(|_| body.len() >= 8)
                .ok_or(Drop::Malformed)?;
            Transport::Ports {
                src: ports.0,
                dst: ports.1,
                flags: 0,
            }
        }
        protocol::ICMP if !v6 => parse_icmp(bytes, l4, end, false)?,
        protocol::ICMPV6 if v6 => parse_icmp(bytes, l4, end, true)?,
        _ => Transport::None,
    })
}

fn parse_icmp(bytes: &[u8], l4: usize, end: usize, v6: bool) -> Result<Transport, Drop> {
    let body = &bytes[l4..end];
    if body.len() < 8 {
        return Err(Drop::Malformed);
    }
    let (kind, code) = (body[0], body[1]);
    let id = u16::from_be_bytes([body[4], body[5]]);
    Ok(match (v6, kind) {
        (false, 8) | (true, 128) => Transport::Echo { request: true, id },
        (false, 0) | (true, 129) => Transport::Echo { request: false, id },
        // Unreachable, source quench, time exceeded, parameter problem (RFC 792); RFC 4443's errors are below 5.
        (false, 3 | 4 | 11 | 12) | (true, 1..=4) => Transport::Error {
            kind,
            code,
            inner: parse_inner(bytes, l4 + 8, end, v6).ok_or(Drop::Malformed)?,
        },
        _ => Transport::Icmp { kind, code },
    })
}

fn parse_inner(bytes: &[u8], l3: usize, end: usize, v6: bool) -> Option<Inner> {
    let body = &bytes[l3..end];
    let (src, dst, protocol, l4, later): (IpAddr, IpAddr, u8, usize, bool) = if v6 {
        let header = Ipv6HeaderSlice::from_slice(body).ok()?;
        let later = header.next_header().is_ipv6_ext_header_value();
        (
            header.source_addr().into(),
            header.destination_addr().into(),
            header.next_header().0,
            l3 + 40,
            later,
        )
    } else {
        let header = Ipv4HeaderSlice::from_slice(body).ok()?;
        let later = header.fragments_offset().value() != 0;
        let l4 = l3 + header.slice().len();
        (
            header.source_addr().into(),
            header.destination_addr().into(),
            header.protocol().0,
            l4,
            later,
        )
    };
    let rest = bytes.get(l4..end)?;
    let flow = match protocol {
        _ if later => InnerFlow::None,
        protocol::TCP | protocol::UDP | protocol::SCTP | protocol::DCCP | protocol::UDPLITE => {
            InnerFlow::Ports(be16(rest, 0)?, be16(rest, 2)?)
        }
        protocol::ICMP if !v6 => match *rest.first()? {
            8 => InnerFlow::Echo(true, be16(rest, 4)?),
            0 => InnerFlow::Echo(false, be16(rest, 4)?),
            _ => InnerFlow::None,
        },
        protocol::ICMPV6 if v6 => match *rest.first()? {
            128 => InnerFlow::Echo(true, be16(rest, 4)?),
            129 => InnerFlow::Echo(false, be16(rest, 4)?),
            _ => InnerFlow::None,
        },
        _ => InnerFlow::None,
    };
    Some(Inner {
        src,
        dst,
        protocol,
        l3,
        l4,
        flow,
    })
}

/// The link-local address that IPv6 derives from an Ethernet address (RFC 4291 appendix A).
pub fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}
