//! A reader of qcow2 images, versions 2 and 3 (QEMU's `docs/interop/qcow2`), that trusts nothing in them.
//!
//! Every offset is checked against the file's length. A host cluster may be referred to once: then the tables that are read and the data
//! that are copied are no more than the file holds (compressed: than it can be inflated to), however cleverly tables share
//! entries. Backing files, external data files and encryption are refused.

use std::{fs::File, io::Read};

use miniz_oxide::inflate::{
    TINFLStatus,
    core::{DecompressorOxide, decompress, inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF},
};

use super::{ConvertError, Limits, copy::Output, source::Source};

const HEADER_V2: usize = 72;
const HEADER_V3: usize = 104;
/// As in QEMU (`QCOW_MAX_L1_SIZE`): enough for 2 EiB with clusters of 64 KiB.
const MAX_L1_BYTES: u64 = 32 << 20;

const INCOMPATIBLE_DIRTY: u64 = 1;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const COPIED: u64 = 1 << 63;
const ZERO: u64 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Deflate,
    Zstd,
}

/// An image whose header was found good.
#[derive(Debug)]
pub(super) struct Qcow2<'a> {
    source: Source<'a>,
    size: u64,
    version: u32,
    cluster_bits: u32,
    compression: Compression,
    l1: Vec<u64>,
}

impl<'a> Qcow2<'a> {
    pub(super) fn open(file: &'a File, len: u64, limits: &Limits) -> Result<Self, ConvertError> {
        let source = Source::new(file, len);
        let mut header = [0u8; HEADER_V3 + 8];
        let n = header.len().min(usize::try_from(len).unwrap_or(usize::MAX));
        if n < HEADER_V2 {
            return Err(ConvertError::Damaged("its header is cut off"));
        }
        source.read_unspent(&mut header[..n], 0)?;
        let u32_at = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| header[at + i]));
        let u64_at = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| header[at + i]));

        let version = u32_at(4);
        if !(2..=3).contains(&version) {
            return Err(ConvertError::Unsupported(format!(
                "version {version} of the qcow2 format"
            )));
        }
        if u64_at(8) != 0 || u32_at(16) != 0 {
            return Err(ConvertError::Reference("a backing file"));
        }
        if u32_at(32) != 0 {
            return Err(ConvertError::Unsupported("encryption".into()));
        }
        let cluster_bits = u32_at(20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(ConvertError::Damaged("its cluster size is out of range"));
        }
        let mut compression = Compression::Deflate;
        if version == 3 {
            if n < HEADER_V3 || u32_at(100) < HEADER_V3 as u32 {
                return Err(ConvertError::Damaged("its header is cut off"));
            }
            let features = u64_at(72);
            check_features(features)?;
            // The field is there only in headers that are long enough.
            let kind = if u32_at(100) > HEADER_V3 as u32 && n > HEADER_V3 {
                header[HEADER_V3]
            } else {
                0
            };
            compression = match (features & INCOMPATIBLE_COMPRESSION != 0, kind) {
                (false, 0) => Compression::Deflate,
                (true, 1) => Compression::Zstd,
                _ => return Err(ConvertError::Unsupported(format!("compression type {kind}"))),
            };
        }
        let size = u64_at(24);
        limits.check_size(size)?;
        if size == 0 {
            return Err(ConvertError::Empty);
        }
        let mut image = Self {
            source,
            size,
            version,
            cluster_bits,
            compression,
            l1: Vec::new(),
        };
        image.read_l1(u64_at(40), u32_at(36))?;
        Ok(image)
    }

    fn read_l1(&mut self, offset: u64, entries: u32) -> Result<(), ConvertError> {
        let needed = self.size.div_ceil(self.l2_reach());
        if needed > u64::from(entries) || needed * 8 > MAX_L1_BYTES {
            return Err(ConvertError::Damaged("its first-level table has the wrong size"));
        }
        // At most 32 MiB, and never more than the file holds.
        let bytes = self.read_table(offset, (needed * 8) as usize)?;
        self.l1 = words(&bytes).collect();
        Ok(())
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Guest bytes that a second-level table covers.
    fn l2_reach(&self) -> u64 {
        self.cluster() * (self.cluster() / 8)
    }

    /// Copies the guest's bytes and returns their number.
    pub(super) fn copy(mut self, output: &mut Output, limits: &Limits) -> Result<u64, ConvertError> {
        let cluster = self.cluster();
        let mut buffer = vec![0; cluster as usize];
        let mut packed = Vec::new();
        let mut inflater = Box::<DecompressorOxide>::default();
        for (index, entry) in std::mem::take(&mut self.l1).into_iter().enumerate() {
            limits.check_time()?;
            if entry & !(OFFSET_MASK | COPIED) != 0 {
                return Err(ConvertError::Damaged("a first-level entry has reserved bits"));
            }
            if entry & OFFSET_MASK == 0 {
                continue;
            }
            let start = index as u64 * self.l2_reach();
            let table = self.read_table(entry & OFFSET_MASK, cluster as usize)?;
            for (i, entry) in words(&table).enumerate() {
                let offset = start + i as u64 * cluster;
                if offset >= self.size {
                    break;
                }
                if i % 64 == 0 {
                    limits.check_time()?;
                }
                let n = cluster.min(self.size - offset) as usize;
                let has_data = if entry & COMPRESSED != 0 {
                    self.read_compressed(entry, &mut packed, &mut buffer, &mut inflater)?;
                    true
                } else {
                    self.read_plain(entry, &mut buffer)?
                };
                if has_data {
                    output.write(&buffer[..n], offset)?;
                }
            }
        }
        Ok(self.size.next_multiple_of(512))
    }

    /// False: the cluster reads as zeros.
    fn read_plain(&mut self, entry: u64, buffer: &mut [u8]) -> Result<bool, ConvertError> {
        let offset = entry & OFFSET_MASK;
        if entry & !(OFFSET_MASK | COPIED | ZERO) != 0 {
            return Err(ConvertError::Damaged("a second-level entry has reserved bits"));
        }
        if entry & ZERO != 0 {
            return if self.version >= 3 {
                Ok(false)
            } else {
                Err(ConvertError::Damaged("a second-level entry has reserved bits"))
            };
        }
        if offset == 0 {
            return Ok(false);
        }
        if !offset.is_multiple_of(self.cluster()) || offset >= self.source.len() {
            return Err(ConvertError::Damaged("a cluster lies outside the file"));
        }
        // The last cluster of a file may be cut off.
        let there = (self.source.len() - offset).min(buffer.len() as u64) as usize;
        self.source
            .read(&mut buffer[..there], offset, "a cluster lies outside the file")?;
        buffer[there..].fill(0);
        Ok(true)
    }

    fn read_compressed(
        &mut self,
        entry: u64,
        packed: &mut Vec<u8>,
        buffer: &mut [u8],
        inflater: &mut DecompressorOxide,
    ) -> Result<(), ConvertError> {
        let bits = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << bits) - 1);
        let sectors = ((entry & !COPIED & !COMPRESSED) >> bits) + 1;
        if offset >= self.source.len() {
            return Err(ConvertError::Damaged(
                "a compressed cluster lies outside the file",
            ));
        }
        // Sectors are counted from the one in which the data begin; at most two clusters' worth by construction.
        let there = (sectors * 512 - offset % 512).min(self.source.len() - offset);
        // Neighbours share sectors at both ends. No cluster is packed into less than this: deflate's best is 1 : 1032, and zstd
        // needs a frame's header and a block's.
        let least = match self.compression {
            Compression::Deflate => self.cluster() / 1040,
            Compression::Zstd => 8,
        };
        self.source.spend(there.saturating_sub(1024).max(least).max(1))?;
        packed.resize(there as usize, 0);
        self.source.read_unspent(packed, offset)?;
        let whole = match self.compression {
            Compression::Deflate => inflate(inflater, packed, buffer),
            Compression::Zstd => unzstd(packed, buffer),
        };
        if whole {
            Ok(())
        } else {
            Err(ConvertError::Damaged("a compressed cluster cannot be unpacked"))
        }
    }

    fn read_table(&mut self, offset: u64, bytes: usize) -> Result<Vec<u8>, ConvertError> {
        const OUTSIDE: &str = "a table lies outside the file";
        if !offset.is_multiple_of(self.cluster()) || !self.source.holds(offset, bytes as u64) {
            return Err(ConvertError::Damaged(OUTSIDE));
        }
        let mut table = vec![0; bytes];
        self.source.read(&mut table, offset, OUTSIDE)?;
        Ok(table)
    }
}

fn check_features(features: u64) -> Result<(), ConvertError> {
    if features & INCOMPATIBLE_DATA_FILE != 0 {
        return Err(ConvertError::Reference("an external data file"));
    }
    if features & INCOMPATIBLE_CORRUPT != 0 {
        return Err(ConvertError::Damaged("it is marked as corrupt"));
    }
    if features & INCOMPATIBLE_EXTENDED_L2 != 0 {
        return Err(ConvertError::Unsupported(
            "subclusters (extended L2 entries)".into(),
        ));
    }
    // A dirty image's reference counts may be wrong; nobody reads them here.
    if features & !(INCOMPATIBLE_DIRTY | INCOMPATIBLE_COMPRESSION) != 0 {
        return Err(ConvertError::Unsupported(
            "incompatible features that are not known".into(),
        ));
    }
    Ok(())
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes
        .chunks_exact(8)
        .map(|word| u64::from_be_bytes(std::array::from_fn(|i| word[i])))
}

/// Fills `buffer`, or says no. Writes no byte beyond it.
fn inflate(inflater: &mut DecompressorOxide, packed: &[u8], buffer: &mut [u8]) -> bool {
    inflater.init();
    let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, _, written) = decompress(inflater, packed, buffer, 0, flags);
    matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput) && written == buffer.len()
}

fn unzstd(packed: &[u8], buffer: &mut [u8]) -> bool {
    ruzstd::decoding::StreamingDecoder::new(packed).is_ok_and(|mut stream| stream.read_exact(buffer).is_ok())
}
