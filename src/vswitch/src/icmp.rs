//! ICMP that routers send: errors about packets, and replies to echo requests.

use std::net::{IpAddr, Ipv4Addr};

use crate::build;
use crate::checksum;
use crate::frame::{ETHERNET, Frame};
use crate::parse::{Fragment, Ip, Packet, Transport, protocol};

/// What is wrong with a packet (RFC 792, RFC 1191).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Complaint {
    /// No route.
    NetUnreachable,
    /// Nothing listens.
    PortUnreachable,
    /// Larger than this, and must not be cut.
    TooBig(u16),
    /// Time to live ran out.
    TimeExceeded,
}

/// How much of the offending packet an error carries (RFC 1812 §4.3.2.3).
const QUOTE: usize = 548;

/// The ICMP error about a packet, back to where it came from, or `None` where there must be none (RFC 1812 §4.3.2.7).
pub fn error(frame: &Frame, packet: &Packet, ip: &Ip, from: Ipv4Addr, complaint: Complaint) -> Option<Frame> {
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (ip.src, ip.dst) else {
        return None;
    };
    let about_error = matches!(ip.transport, Transport::Error { .. })
        || ip.protocol == protocol::ICMP && matches!(ip.transport, Transport::Icmp { kind: 5, .. });
    let single =
        |ip: Ipv4Addr| !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() || ip.is_loopback());
    if about_error
        || matches!(ip.fragment, Fragment::Later(_))
        || packet.dst.is_multicast()
        || !single(src)
        || dst.is_multicast()
        || dst.is_broadcast()
    {
        return None;
    }
    let (kind, code, rest) = match complaint {
        Complaint::NetUnreachable => (3, 0, 0),
        Complaint::PortUnreachable => (3, 3, 0),
        Complaint::TooBig(mtu) => (3, 4, mtu),
        Complaint::TimeExceeded => (11, 0, 0),
    };
    let quoted = frame.bytes.get(ETHERNET..ip.end.min(ETHERNET + QUOTE))?;
    let mut body = Vec::with_capacity(8 + quoted.len());
    body.extend_from_slice(&[kind, code, 0, 0, 0, 0]);
    body.extend_from_slice(&rest.to_be_bytes());
    body.extend_from_slice(quoted);
    let sum = checksum::of(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(build::ipv4(
        (packet.src, packet.dst),
        (from, src),
        protocol::ICMP,
        &body,
    ))
}

/// The reply to an echo request (RFC 792), or `None` when it is none, or a fragment.
pub fn echo_reply(frame: &Frame, packet: &Packet, ip: &Ip) -> Option<Frame> {
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (ip.src, ip.dst) else {
        return None;
    };
    if !matches!(ip.transport, Transport::Echo { request: true, .. }) || ip.fragment != Fragment::No {
        return None;
    }
    let mut body = frame.bytes.get(ip.l4..ip.end)?.to_vec();
    body[0] = 0;
    body[2..4].fill(0);
    let sum = checksum::of(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(build::ipv4(
        (packet.src, packet.dst),
        (dst, src),
        protocol::ICMP,
        &body,
    ))
}
