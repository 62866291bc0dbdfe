//! A reader of VHD images, fixed and dynamic, which trusts nothing in them (Microsoft, "Virtual Hard Disk Image Format Specification",
//! version 1.0). Numbers are big-endian.
//!
//! ```text
//! fixed     the disk │ footer
//! dynamic   copy of the footer │ header │ table of blocks │ (bitmap of sectors │ block)… │ footer
//! ```

use std::fs::File;

use super::{
    ConvertError, Limits, copy,
    copy::Output,
    source::{Source, Table},
};

const SECTOR: u64 = 512;
/// What a footer begins with.
pub(super) const COOKIE: &[u8; 8] = b"conectix";
/// Before Virtual PC 2004 the last byte was left out.
pub(super) const FOOTERS: [u64; 2] = [512, 511];
/// Major version in the upper half.
const VERSION: u32 = 0x1_0000;
/// An entry of a block that is not there.
const ABSENT: u32 = u32::MAX;
/// Sectors of a block are a power of two; 2 MiB are usual.
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 512..=256 << 20;

const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;

/// What a footer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Footer {
    /// Where a dynamic disk's header is.
    header: u64,
    size: u64,
    kind: u32,
}

impl Footer {
    fn parse(bytes: &[u8; 512]) -> Result<Self, ConvertError> {
        let u32_at = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u64_at = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
        if u32_at(64) != checksum(bytes, 64) {
            return Err(ConvertError::Damaged("its footer's checksum is wrong"));
        }
        check_version(u32_at(12))?;
        Ok(Self {
            header: u64_at(16),
            size: u64_at(48),
            kind: u32_at(60),
        })
    }
}

/// The complement of the sum of all bytes but the checksum's own.
pub(super) fn checksum(bytes: &[u8], own: usize) -> u32 {
    let all = bytes.iter().enumerate();
    let counted = all.filter(|(at, _)| !(own..own + 4).contains(at));
    !counted.fold(0u32, |sum, (_, byte)| sum.wrapping_add((*byte).into()))
}

fn check_version(version: u32) -> Result<(), ConvertError> {
    if version >> 16 == VERSION >> 16 {
        Ok(())
    } else {
        Err(ConvertError::Unsupported(format!(
            "version {}.{} of the vhd format",
            version >> 16,
            version & 0xffff
        )))
    }
}

/// An image whose footer and header were found good.
#[derive(Debug)]
pub(super) struct Vhd<'a> {
    file: &'a File,
    source: Source<'a>,
    size: u64,
    /// None: the file begins with the disk.
    blocks: Option<Blocks>,
}

/// Where a dynamic disk's blocks are.
#[derive(Debug)]
struct Blocks {
    table: Table<4>,
    /// In bytes.
    block: u64,
}

impl<'a> Vhd<'a> {
    pub(super) fn open(file: &'a File, len: u64, limits: &Limits) -> Result<Self, ConvertError> {
        let whole = Source::new(file, len);
        let mut found = None;
        for bytes in FOOTERS {
            let mut footer = [0; 512];
            let Some(start) = len.checked_sub(bytes) else {
                continue;
            };
            whole.read_unspent(&mut footer[..bytes as usize], start)?;
            if found.is_none() && footer.starts_with(COOKIE) {
                found = Some((start, footer));
            }
        }
        let Some((end, footer)) = found else {
            return Err(ConvertError::Damaged(
                "its footer is missing: it was cut off, or something follows it",
            ));
        };
        let footer = Footer::parse(&footer)?;
        // No block reaches into the footer.
        let mut source = Source::new(file, end);
        let mut first = [0; 512];
        let n = first.len().min(usize::try_from(end).unwrap_or(usize::MAX));
        source.read_unspent(&mut first[..n], 0)?;
        let copy = first.starts_with(COOKIE).then_some(&first);
        limits.check_size(footer.size)?;
        if footer.size == 0 {
            return Err(ConvertError::Empty);
        }
        let blocks = match (footer.kind, copy) {
            (FIXED, None) if footer.size <= end => None,
            (FIXED, None) => return Err(ConvertError::Damaged("it is shorter than its disk")),
            // Readers that look at the beginning would take it for another disk than those that look at the end.
            (FIXED, Some(_)) => return Err(ConvertError::Damaged("its two footers disagree")),
            (DYNAMIC, Some(copy)) if Footer::parse(copy)? == footer => {
                Some(open_blocks(&mut source, &footer)?)
            }
            (DYNAMIC, _) => return Err(ConvertError::Damaged("its two footers disagree")),
            (DIFFERENCING, _) => return Err(ConvertError::Reference("a parent disk")),
            (kind, _) => return Err(ConvertError::Unsupported(format!("disk type {kind}"))),
        };
        Ok(Self {
            file,
            source,
            size: footer.size,
            blocks,
        })
    }

    /// Copies the guest's bytes and returns their number.
    pub(super) fn copy(self, output: &mut Output, limits: &Limits) -> Result<u64, ConvertError> {
        let Some(mut blocks) = self.blocks else {
            return copy::plain(self.file, self.size, output, limits);
        };
        let mut source = self.source;
        let mut bitmap = vec![0; bitmap_bytes(blocks.block) as usize];
        for index in 0..self.size.div_ceil(blocks.block) {
            if index % 64 == 0 {
                limits.check_time()?;
            }
            let sector = u32::from_be_bytes(blocks.table.entry(&mut source, index)?);
            if sector == ABSENT {
                continue;
            }
            const OUTSIDE: &str = "a block lies outside the file";
            let from = u64::from(sector) * SECTOR;
            source.read(&mut bitmap, from, OUTSIDE)?;
            let data = from + bitmap.len() as u64;
            let to = index * blocks.block;
            let n = blocks.block.min(self.size - to);
            source.copy((data, n), output, to, limits, OUTSIDE, |at, bytes| {
                clear_unset(&bitmap, at / SECTOR, bytes);
            })?;
        }
        // As much as the limit allows: no overflow.
        Ok(self.size.next_multiple_of(SECTOR))
    }
}

/// Sectors whose bit is not set were never written. The first bit is the highest of the first byte.
fn clear_unset(bitmap: &[u8], first: u64, bytes: &mut [u8]) {
    for (sector, bytes) in (first as usize..).zip(bytes.chunks_mut(SECTOR as usize)) {
        if bitmap[sector / 8] & (0x80 >> (sector % 8)) == 0 {
            bytes.fill(0);
        }
    }
}

/// A bit for each sector, in whole sectors.
fn bitmap_bytes(block: u64) -> u64 {
    (block / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
}

fn open_blocks(source: &mut Source<'_>, footer: &Footer) -> Result<Blocks, ConvertError> {
    let mut header = [0; 1024];
    source.read(&mut header, footer.header, "its header lies outside the file")?;
    let u32_at = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| header[at + i]));
    if !header.starts_with(b"cxsparse") {
        return Err(ConvertError::Damaged("its header is missing"));
    }
    if u32_at(36) != checksum(&header, 36) {
        return Err(ConvertError::Damaged("its header's checksum is wrong"));
    }
    check_version(u32_at(24))?;
    let block = u32_at(32);
    if !BLOCK_BYTES.contains(&block) || !block.is_power_of_two() {
        return Err(ConvertError::Damaged("its block size is out of range"));
    }
    let needed = footer.size.div_ceil(block.into());
    if needed > u32_at(28).into() {
        return Err(ConvertError::Damaged("its table of blocks is too short"));
    }
    let start = u64::from_be_bytes(std::array::from_fn(|i| header[16 + i]));
    Ok(Blocks {
        table: Table::new(source, start, needed)?,
        block: block.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmaps_are_whole_sectors_and_begin_with_the_highest_bit() {
        for (block, bytes) in [(512, 512), (2 << 20, 512), (4 << 20, 1024), (256 << 20, 64 << 10)] {
            assert_eq!(bitmap_bytes(block), bytes);
        }
        let mut bytes = vec![1; 16 * 512 - 100];
        clear_unset(&[0, 0b1000_0001, 0xff], 8, &mut bytes);
        let set: Vec<bool> = bytes.chunks(512).map(|sector| sector[0] == 1).collect();
        let first = [true, false, false, false, false, false, false, true];
        assert_eq!(set[..8], first);
        assert!(set[8..].iter().all(|set| *set));
    }
}
