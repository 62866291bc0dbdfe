//! Changes of addresses, ports and time to live in place, with every checksum that covers them.

use std::net::{IpAddr, Ipv4Addr};

use crate::checksum::{self, Field};
use crate::frame::{ETHERNET, Frame};
use crate::parse::{Fragment, Inner, InnerFlow, Ip, Transport, protocol};

/// Which end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

fn patch(bytes: &mut [u8], sum_at: usize, field: Field, at: usize, new: &[u8]) {
    let Some(before) = bytes.get(at..at + new.len()) else {
        return;
    };
    if let Some(&[high, low]) = bytes.get(sum_at..sum_at + 2) {
        let sum = checksum::updated(u16::from_be_bytes([high, low]), field, before, new);
        bytes[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    bytes[at..at + new.len()].copy_from_slice(new);
}

/// Where the transport's checksum stands, and how it is kept, if it covers what stands at the given place.
fn transport_sum(frame: &Frame, ip: &Ip) -> Option<(usize, Field)> {
    if matches!(ip.fragment, Fragment::Later(_)) {
        return None;
    }
    let at = ip.l4
        + match ip.protocol {
            protocol::TCP => 16,
            protocol::UDP | protocol::UDPLITE => 6,
            _ => return None,
        };
    let value = frame.bytes.get(at..at + 2)?;
    let partial = frame.offload.checksum.is_some();
    if ip.protocol == protocol::UDP && value == [0, 0] && !partial {
        return None; // The sender made none (RFC 768).
    }
    Some((at, if partial { Field::Partial } else { Field::Whole }))
}

/// A UDP checksum that came out as zero would mean that there is none.
fn mend_udp(frame: &mut Frame, ip: &Ip, at: usize, field: Field) {
    if ip.protocol == protocol::UDP && field == Field::Whole && frame.bytes.get(at..at + 2) == Some(&[0, 0]) {
        frame.bytes[at..at + 2].fill(0xff);
    }
}

/// Changes an IPv4 address.
pub fn address(frame: &mut Frame, ip: &mut Ip, end: End, new: Ipv4Addr) {
    let at = ETHERNET + if end == End::Source { 12 } else { 16 };
    let Some(before) = frame
        .bytes
        .get(at..at + 4)
        .and_then(|b| <[u8; 4]>::try_from(b).ok())
    else {
        return;
    };
    if let Some((sum_at, field)) = transport_sum(frame, ip)
        && let Some(&[high, low]) = frame.bytes.get(sum_at..sum_at + 2)
    {
        let sum = checksum::updated(u16::from_be_bytes([high, low]), field, &before, &new.octets());
        frame.bytes[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
        mend_udp(frame, ip, sum_at, field);
    }
    patch(&mut frame.bytes, ETHERNET + 10, Field::Whole, at, &new.octets());
    match end {
        End::Source => ip.src = IpAddr::V4(new),
        End::Destination => ip.dst = IpAddr::V4(new),
    }
}

/// Changes a port, or the identifier of an echo.
pub fn port(frame: &mut Frame, ip: &mut Ip, end: End, new: u16) {
    let later = matches!(ip.fragment, Fragment::Later(_));
    match &mut ip.transport {
        Transport::Ports { src, dst, .. } => {
            match end {
                End::Source => *src = new,
                End::Destination => *dst = new,
            }
            if later {
                return;
            }
            let at = ip.l4 + if end == End::Source { 0 } else { 2 };
            match transport_sum(frame, ip) {
                // The sum of the pseudo-header does not cover ports.
                Some((_, Field::Partial)) | None => {
                    if let Some(bytes) = frame.bytes.get_mut(at..at + 2) {
                        bytes.copy_from_slice(&new.to_be_bytes());
                    }
                }
                Some((sum_at, field)) => {
                    patch(&mut frame.bytes, sum_at, field, at, &new.to_be_bytes());
                    mend_udp(frame, ip, sum_at, field);
                }
            }
        }
        Transport::Echo { id, .. } => {
            *id = new;
            if !later {
                patch(
                    &mut frame.bytes,
                    ip.l4 + 2,
                    Field::Whole,
                    ip.l4 + 4,
                    &new.to_be_bytes(),
                );
            }
        }
        _ => {}
    }
}

/// Counts the time to live down.
pub fn hop(frame: &mut Frame, ip: &mut Ip) {
    let Some(&[_, protocol]) = frame.bytes.get(ETHERNET + 8..ETHERNET + 10) else {
        return;
    };
    ip.ttl = ip.ttl.saturating_sub(1);
    patch(
        &mut frame.bytes,
        ETHERNET + 10,
        Field::Whole,
        ETHERNET + 8,
        &[ip.ttl, protocol],
    );
}

/// Changes an address (and port or echo identifier) of the packet inside an ICMP error, and the error's checksum.
pub fn inner(frame: &mut Frame, ip: &mut Ip, end: End, new: Ipv4Addr, new_port: Option<u16>) {
    let Transport::Error {
        inner:
            Inner {
                src,
                dst,
                protocol,
                l3,
                l4,
                flow,
            },
        ..
    } = &mut ip.transport
    else {
        return;
    };
    let (address_at, port_at) = match end {
        End::Source => (*l3 + 12, *l4),
        End::Destination => (*l3 + 16, *l4 + 2),
    };
    let sum_at = match *protocol {
        protocol::TCP => Some(*l4 + 16),
        protocol::UDP => Some(*l4 + 6),
        _ => None,
    };
    // The inner checksum may be cut off, or be no finished one: it is kept right where it was right.
    if let Some(at) = sum_at.filter(|at| at + 2 <= ip.end)
        && let Some(before) = frame.bytes.get(address_at..address_at + 4).map(<[u8]>::to_vec)
        && let Some(&[high, low]) = frame.bytes.get(at..at + 2)
        && !(*protocol == protocol::UDP && high == 0 && low == 0)
    {
        let sum = checksum::updated(
            u16::from_be_bytes([high, low]),
            Field::Whole,
            &before,
            &new.octets(),
        );
        frame.bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    patch(
        &mut frame.bytes,
        *l3 + 10,
        Field::Whole,
        address_at,
        &new.octets(),
    );
    match end {
        End::Source => *src = IpAddr::V4(new),
        End::Destination => *dst = IpAddr::V4(new),
    }
    if let Some(value) = new_port {
        match flow {
            InnerFlow::Ports(from, to) => {
                match end {
                    End::Source => *from = value,
                    End::Destination => *to = value,
                }
                match sum_at.filter(|at| at + 2 <= ip.end) {
                    Some(at) => patch(&mut frame.bytes, at, Field::Whole, port_at, &value.to_be_bytes()),
                    None => frame.bytes[port_at..port_at + 2].copy_from_slice(&value.to_be_bytes()),
                }
            }
            InnerFlow::Echo(_, id) => {
                *id = value;
                patch(
                    &mut frame.bytes,
                    *l4 + 2,
                    Field::Whole,
                    *l4 + 4,
                    &value.to_be_bytes(),
                );
            }
            InnerFlow::None => {}
        }
    }
    let (start, end) = (ip.l4, ip.end);
    if let Some(body) = frame.bytes.get_mut(start..end) {
        body[2..4].fill(0);
        let sum = checksum::of(body);
        body[2..4].copy_from_slice(&sum.to_be_bytes());
    }
}
