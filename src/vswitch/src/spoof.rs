//! Anti-spoofing: a secured port sends only as itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::counters::Drop;
use crate::frame::Frame;
use crate::parse::{Ip, Net, Packet, Transport, link_local, protocol};
use crate::tables::{METADATA, PortLayout};

/// May the port send this frame as far as its sender's addresses go?
pub fn check(port: &PortLayout, frame: &Frame, packet: &Packet) -> Result<(), Drop> {
    if !port.owns_mac(packet.src) {
        return Err(Drop::SpoofedMac);
    }
    match &packet.net {
        Net::Other => Err(Drop::EtherType),
        Net::Arp(arp) => {
            let sender = IpAddr::V4(arp.sender);
            let probe = arp.sender == Ipv4Addr::UNSPECIFIED; // RFC 5227 §1.1
            let on_link = arp.sender.is_link_local() && arp.sender != METADATA && arp.target == METADATA;
            if arp.sender_mac == packet.src && (probe || on_link || port.owns(packet.src, sender)) {
                Ok(())
            } else {
                Err(Drop::SpoofedArp)
            }
        }
        Net::Ip(ip) if ip.src.is_ipv4() => check_v4(port, packet, ip),
        Net::Ip(ip) => check_v6(port, frame, packet, ip),
    }
}

fn check_v4(port: &PortLayout, packet: &Packet, ip: &Ip) -> Result<(), Drop> {
    let IpAddr::V4(src) = ip.src else {
        return Err(Drop::SpoofedIp);
    };
    let udp = match ip.transport {
        Transport::Ports { src, dst, .. } if ip.protocol == protocol::UDP => Some((src, dst)),
        _ => None,
    };
    if udp.is_some_and(|(from, to)| from == 67 && to == 68) {
        return Err(Drop::DhcpServer);
    }
    if port.owns(packet.src, ip.src) {
        return Ok(());
    }
    // A DHCP client that has no address yet, or believes in an old one that we shall refuse.
    if src == Ipv4Addr::UNSPECIFIED && udp == Some((68, 67)) {
        return Ok(());
    }
    // The metadata service's answer goes to this port whatever the address.
    if src.is_link_local() && src != METADATA && ip.dst == IpAddr::V4(METADATA) {
        return Ok(());
    }
    Err(Drop::SpoofedIp)
}

fn check_v6(port: &PortLayout, frame: &Frame, packet: &Packet, ip: &Ip) -> Result<(), Drop> {
    let owns = |address: Ipv6Addr| {
        port.owns(packet.src, IpAddr::V6(address))
            || port.owns_mac(packet.src) && address == link_local(packet.src)
    };
    let IpAddr::V6(src) = ip.src else {
        return Err(Drop::SpoofedIp);
    };
    match ip.transport {
        Transport::Icmp { kind, .. } if ip.protocol == protocol::ICMPV6 => match kind {
            134 | 137 => return Err(Drop::RouterAdvertisement), // Redirects are a router's as well.
            133 | 135 | 136 => {
                check_nd(port, frame, packet, ip, kind, &owns)?;
                if src.is_unspecified() && kind != 136 {
                    return Ok(()); // Duplicate address detection (RFC 4862 §5.4.2).
                }
            }
            131 | 132 | 143 if src.is_unspecified() => return Ok(()), // RFC 3810 §5.2.13
            _ => {}
        },
        Transport::Ports {
            src: 547, dst: 546, ..
        } if ip.protocol == protocol::UDP => return Err(Drop::DhcpServer),
        _ => {}
    }
    if owns(src) { Ok(()) } else { Err(Drop::SpoofedIp) }
}

/// Neighbour discovery (RFC 4861 §4.1, 4.3, 4.4): the target and the link-layer option must be the port's own.
fn check_nd(
    port: &PortLayout,
    frame: &Frame,
    packet: &Packet,
    ip: &Ip,
    kind: u8,
    owns: &dyn Fn(Ipv6Addr) -> bool,
) -> Result<(), Drop> {
    let body = frame.bytes.get(ip.l4..ip.end).ok_or(Drop::Malformed)?;
    if ip.ttl != 255 {
        return Err(Drop::Malformed); // RFC 4861 §6.1.1: it has crossed a router.
    }
    let mut at = 8;
    if kind != 133 {
        let target: [u8; 16] = body
            .get(8..24)
            .and_then(|b| b.try_into().ok())
            .ok_or(Drop::Malformed)?;
        let IpAddr::V6(src) = ip.src else {
            return Err(Drop::Malformed);
        };
        let own_target = kind == 136 || src.is_unspecified();
        if own_target && !owns(target.into()) {
            return Err(Drop::SpoofedNd);
        }
        at = 24;
    }
    while at < body.len() {
        let (option, units) = (body[at], usize::from(*body.get(at + 1).ok_or(Drop::Malformed)?));
        if units == 0 || at + units * 8 > body.len() {
            return Err(Drop::Malformed);
        }
        // Source (1) and target (2) link-layer address.
        if matches!(option, 1 | 2) && (body[at + 2..at + 8] != packet.src.0 || !port.owns_mac(packet.src)) {
            return Err(Drop::SpoofedNd);
        }
        at += units * 8;
    }
    Ok(())
}
