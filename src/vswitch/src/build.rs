//! Frames that the switch itself sends.

use std::net::Ipv4Addr;

use model::net::MacAddr;

use crate::checksum;
use crate::frame::{ETHERNET, Frame};
use crate::parse::{ethertype, protocol};

/// Operation numbers of ARP.
pub const ARP_REQUEST: u16 = 1;
/// Operation numbers of ARP.
pub const ARP_REPLY: u16 = 2;

fn ethernet(dst: MacAddr, src: MacAddr, kind: u16, payload: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ETHERNET + payload);
    bytes.extend_from_slice(&dst.0);
    bytes.extend_from_slice(&src.0);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes
}

/// An ARP packet (RFC 826).
pub fn arp(operation: u16, sender: (MacAddr, Ipv4Addr), target: (MacAddr, Ipv4Addr), dst: MacAddr) -> Frame {
    let mut bytes = ethernet(dst, sender.0, ethertype::ARP, 28);
    bytes.extend_from_slice(&[0, 1, 8, 0, 6, 4]);
    bytes.extend_from_slice(&operation.to_be_bytes());
    bytes.extend_from_slice(&sender.0.0);
    bytes.extend_from_slice(&sender.1.octets());
    bytes.extend_from_slice(&target.0.0);
    bytes.extend_from_slice(&target.1.octets());
    Frame::new(bytes)
}

/// An IPv4 packet with this payload.
pub fn ipv4(
    macs: (MacAddr, MacAddr),
    addresses: (Ipv4Addr, Ipv4Addr),
    protocol: u8,
    payload: &[u8],
) -> Frame {
    let (dst, src) = macs;
    let mut bytes = ethernet(dst, src, ethertype::IPV4, 20 + payload.len());
    let length = (20 + payload.len()) as u16;
    bytes.extend_from_slice(&[0x45, 0]);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
    bytes.extend_from_slice(&addresses.0.octets());
    bytes.extend_from_slice(&addresses.1.octets());
    let sum = checksum::of(&bytes[ETHERNET..]);
    bytes[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend_from_slice(payload);
    Frame::new(bytes)
}

/// A UDP datagram; addresses are (source, destination), Ethernet addresses (destination, source).
pub fn udp(
    macs: (MacAddr, MacAddr),
    addresses: (Ipv4Addr, Ipv4Addr),
    ports: (u16, u16),
    payload: &[u8],
) -> Frame {
    let length = (8 + payload.len()) as u16;
    let mut datagram = Vec::with_capacity(usize::from(length));
    datagram.extend_from_slice(&ports.0.to_be_bytes());
    datagram.extend_from_slice(&ports.1.to_be_bytes());
    datagram.extend_from_slice(&length.to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    let mut pseudo = [0; 8];
    pseudo[..4].copy_from_slice(&addresses.0.octets());
    pseudo[4..].copy_from_slice(&addresses.1.octets());
    let start = checksum::pseudo(&pseudo, protocol::UDP, datagram.len());
    let sum = match !checksum::sum(&datagram, u32::from(start)) {
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    ipv4(macs, addresses, protocol::UDP, &datagram)
}
