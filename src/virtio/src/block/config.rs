//! Configuration space (virtio 1.2 §5.2.4).

use super::feature;

/// The unit of addresses and sizes, whatever the block size (§5.2.4).
pub const SECTOR: u64 = 512;
/// Descriptors of a ring.
pub const QUEUE_SIZE: u16 = 256;
/// The most data segments of a request: a ring full of descriptors without header and status.
pub const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// The most sectors of one discard or write-zeroes request: 1 GiB, so that one request cannot keep the backend for long.
const MAX_ZERO_SECTORS: u32 = 1 << 21;
/// Requests with the backend at once.
const MAX_DEPTH: u32 = 1024;
/// Discards are worth their while in multiples of this.
const DISCARD_SECTORS: u32 = 4096 / SECTOR as u32;

/// What a block device is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Rings.
    pub queues: u16,
    /// The serial number that the guest reads (§5.2.6, `VIRTIO_BLK_T_GET_ID`).
    pub serial: [u8; 20],
}

impl Geometry {
    /// The device's feature bits.
    pub fn features(&self) -> u64 {
        let mut bits =
            feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH | feature::TOPOLOGY | feature::MQ;
        if self.read_only {
            bits |= feature::RO;
        } else {
            bits |= feature::DISCARD | feature::WRITE_ZEROES;
        }
        bits
    }

    /// How many requests a device of these rings has with its backend at once, at most.
    pub fn depth(&self) -> u32 {
        (u32::from(self.queues) * u32::from(QUEUE_SIZE)).min(MAX_DEPTH)
    }

    /// The configuration space: `struct virtio_blk_config`, little-endian.
    pub fn config(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(60);
        out.extend(self.sectors.to_le_bytes()); // capacity
        out.extend(0u32.to_le_bytes()); // size_max
        out.extend(SEGMENTS.to_le_bytes()); // seg_max
        out.extend([0; 4]); // geometry: cylinders, heads, sectors
        out.extend((SECTOR as u32).to_le_bytes()); // blk_size
        // Topology: physical blocks of 2^3 sectors, aligned at 0, at least 4 KiB, best in 64 KiB.
        out.extend([3, 0]);
        out.extend(8u16.to_le_bytes());
        out.extend(128u32.to_le_bytes());
        out.extend([1, 0]); // writeback, unused
        out.extend(self.queues.to_le_bytes());
        out.extend(MAX_ZERO_SECTORS.to_le_bytes()); // max_discard_sectors
        out.extend(1u32.to_le_bytes()); // max_discard_seg
        out.extend(DISCARD_SECTORS.to_le_bytes()); // discard_sector_alignment
        out.extend(MAX_ZERO_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
        out.extend(1u32.to_le_bytes()); // max_write_zeroes_seg
        out.extend([1, 0, 0, 0]); // write_zeroes_may_unmap
        out
    }

    /// The most sectors of one discard or write-zeroes request.
    pub(super) fn max_zero_sectors(&self) -> u32 {
        MAX_ZERO_SECTORS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_standard_says() {
        let geometry = Geometry {
            sectors: 0x1122_3344_5566,
            read_only: false,
            queues: 4,
            serial: [0; 20],
        };
        let config = geometry.config();
        assert_eq!(config.len(), 60);
        assert_eq!(config[..8], 0x1122_3344_5566u64.to_le_bytes());
        assert_eq!(config[12..16], 254u32.to_le_bytes());
        assert_eq!(config[20..24], 512u32.to_le_bytes());
        assert_eq!(config[32], 1, "writeback");
        assert_eq!(config[34..36], 4u16.to_le_bytes());
        assert_eq!(config[36..40], (1u32 << 21).to_le_bytes());
        assert_eq!(config[56], 1, "write_zeroes_may_unmap");
        assert_eq!(
            Geometry {
                read_only: true,
                ..geometry
            }
            .features()
                & feature::DISCARD,
            0
        );
    }
}
