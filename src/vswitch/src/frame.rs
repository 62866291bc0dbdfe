//! A frame with the work on it that its sender left to others.

use model::net::MacAddr;

use crate::checksum;

/// The longest frame that the switch takes: 64 KiB of IP, an Ethernet header and a tag.
pub const MAX_FRAME: usize = 65_535 + 18;

/// Length of an Ethernet header without a tag.
pub const ETHERNET: usize = 14;

/// An Ethernet frame without its check sequence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    /// From the destination address on.
    pub bytes: Vec<u8>,
    /// What is still to be done before the frame could go over a wire.
    pub offload: Offload,
}

/// Work that a sender left to whoever comes last (virtio 1.2 §5.1.6.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// A checksum field holds only the sum of the pseudo-header.
    pub checksum: Option<Checksum>,
    /// One long TCP segment stands for many.
    pub segments: Option<Segments>,
}

/// Where a checksum is to be finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum {
    /// First byte that it covers.
    pub start: u16,
    /// Where it is stored, counted from `start`.
    pub offset: u16,
}

/// How a long TCP segment is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// TCP over IPv6, not IPv4.
    pub v6: bool,
    /// Payload bytes of each piece.
    pub size: u16,
}

/// Length of `struct virtio_net_hdr_v1` (virtio 1.2 §5.1.6).
pub const VNET_HEADER: usize = 12;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

impl Offload {
    /// Reads a virtio-net header; `None`: it asks for something that was not negotiated.
    pub fn from_virtio(header: &[u8; VNET_HEADER]) -> Option<Self> {
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let checksum = (header[0] & NEEDS_CSUM != 0).then(|| Checksum {
            start: word(6),
            offset: word(8),
        });
        let segments = match header[1] {
            GSO_NONE => None,
            kind @ (GSO_TCPV4 | GSO_TCPV6) => {
                // Segmentation without a checksum to finish makes no sense (virtio 1.2 §5.1.6.2.1).
                checksum?;
                Some(Segments {
                    v6: kind == GSO_TCPV6,
                    size: word(4),
                })
            }
            _ => return None,
        };
        Some(Self { checksum, segments })
    }

    /// The virtio-net header that says the same; `headers` is the length of all headers, a hint for the reader.
    pub fn to_virtio(self, headers: u16) -> [u8; VNET_HEADER] {
        let mut header = [0; VNET_HEADER];
        if let Some(checksum) = self.checksum {
            header[0] = NEEDS_CSUM;
            header[6..8].copy_from_slice(&checksum.start.to_le_bytes());
            header[8..10].copy_from_slice(&checksum.offset.to_le_bytes());
        }
        if let Some(segments) = self.segments {
            header[1] = if segments.v6 { GSO_TCPV6 } else { GSO_TCPV4 };
            header[2..4].copy_from_slice(&headers.to_le_bytes());
            header[4..6].copy_from_slice(&segments.size.to_le_bytes());
        }
        header[10] = 1;
        header
    }
}

/// What the receiver of a frame can finish by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Checksums.
    pub checksum: bool,
    /// Cutting TCP over IPv4.
    pub tcp4: bool,
    /// Cutting TCP over IPv6.
    pub tcp6: bool,
}

impl Frame {
    /// A finished frame.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            offload: Offload::default(),
        }
    }

    /// The destination address; the frame must have been parsed.
    pub fn set_macs(&mut self, dst: MacAddr, src: MacAddr) {
        if let Some(header) = self.bytes.get_mut(..12) {
            header[..6].copy_from_slice(&dst.0);
            header[6..].copy_from_slice(&src.0);
        }
    }

    /// Finishes the checksum in software. A field outside the frame is left alone.
    pub fn finish_checksum(&mut self) {
        let Some(Checksum { start, offset }) = self.offload.checksum.take() else {
            return;
        };
        let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
        if start >= self.bytes.len() || field + 2 > self.bytes.len() {
            return;
        }
        let mut value = checksum::of(&self.bytes[start..]);
        if value == 0 {
            // For UDP zero means "none"; for the others both zeros are equal (RFC 768).
            value = 0xffff;
        }
        self.bytes[field..field + 2].copy_from_slice(&value.to_be_bytes());
    }

    /// Hands out what the receiver can take: the frame itself, or what it becomes after the work that the receiver
    /// cannot do.
    pub fn fit(mut self, abilities: Abilities, mut out: impl FnMut(Frame)) {
        match self.offload.segments {
            Some(Segments { v6, size })
                if !(abilities.checksum && if v6 { abilities.tcp6 } else { abilities.tcp4 }) =>
            {
                self.segment(v6, usize::from(size), out);
            }
            _ => {
                if !abilities.checksum {
                    self.finish_checksum();
                }
                out(self);
            }
        }
    }

    /// Cuts a long TCP segment (RFC 9293 §3.1 fields; IPv4 identification counts up).
    fn segment(self, v6: bool, size: usize, mut out: impl FnMut(Frame)) {
        let Some(checksum) = self.offload.checksum else {
            return;
        };
        let tcp = usize::from(checksum.start);
        let Some(offset) = self.bytes.get(tcp + 12) else {
            return;
        };
        let headers = tcp + usize::from(offset >> 4) * 4;
        if size == 0
            || headers < tcp + 20
            || headers > self.bytes.len()
            || tcp < ETHERNET + if v6 { 40 } else { 20 }
        {
            return;
        }
        let (head, payload) = self.bytes.split_at(headers);
        let be16 = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let sequence = u32::from_be_bytes([head[tcp + 4], head[tcp + 5], head[tcp + 6], head[tcp + 7]]);
        let ident = be16(ETHERNET + 4);
        let pieces = payload.len().div_ceil(size).max(1);
        for piece in 0..pieces {
            let from = piece * size;
            let data = &payload[from..payload.len().min(from + size)];
            let mut bytes = Vec::with_capacity(headers + data.len());
            bytes.extend_from_slice(head);
            bytes.extend_from_slice(data);
            let ip_length = bytes.len() - ETHERNET;
            let addresses = if v6 {
                bytes[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&((ip_length - 40) as u16).to_be_bytes());
                ETHERNET + 8..ETHERNET + 40
            } else {
                bytes[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&(ip_length as u16).to_be_bytes());
                bytes[ETHERNET + 4..ETHERNET + 6]
                    .copy_from_slice(&ident.wrapping_add(piece as u16).to_be_bytes());
                bytes[ETHERNET + 10..ETHERNET + 12].fill(0);
                let sum = checksum::of(&bytes[ETHERNET..tcp]);
                bytes[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
                ETHERNET + 12..ETHERNET + 20
            };
            bytes[tcp + 4..tcp + 8].copy_from_slice(&sequence.wrapping_add(from as u32).to_be_bytes());
            if piece + 1 < pieces {
                bytes[tcp + 13] &= !0x09; // FIN and PSH belong to the last piece.
            }
            if piece > 0 {
                bytes[tcp + 13] &= !0x80; // CWR belongs to the first (RFC 3168 §6.1.2).
            }
            let pseudo = checksum::pseudo(&bytes[addresses], 6, bytes.len() - tcp);
            bytes[tcp + 16..tcp + 18].fill(0);
            let sum = !checksum::sum(&bytes[tcp..], u32::from(pseudo));
            bytes[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
            out(Frame::new(bytes));
        }
    }
}
