//! A reader of VHDX images, fixed and dynamic, which trusts nothing in them (Microsoft's [MS-VHDX]). Numbers are little-endian.
//!
//! An image with a parent is refused, and so is one whose log holds writes that are not in place: to replay them is for the
//! program that made them.

mod crc;
mod header;
mod metadata;

use std::fs::File;

use self::metadata::Metadata;
use super::{
    ConvertError, Limits,
    copy::Output,
    source::{Source, Table},
};

#[cfg(any(test, feature = "fuzzing"))]
pub(super) use crc::crc32c;

/// What the file begins with.
pub(super) const SIGNATURE: &[u8; 8] = b"vhdxfile";

/// A GUID as Microsoft stores it: the first three groups little-endian.
type Guid = [u8; 16];

/// States of a block, the lowest three bits of its entry.
const NOT_PRESENT: u64 = 0;
const UNDEFINED: u64 = 1;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
const FULLY_PRESENT: u64 = 6;
const STATE: u64 = 7;
/// Above the state, up to the place in MiB.
const RESERVED: u64 = 0xf_fff8;

/// An image whose headers were found good.
#[derive(Debug)]
pub(super) struct Vhdx<'a> {
    source: Source<'a>,
    metadata: Metadata,
    /// Payload blocks to one bitmap block, whose entry follows theirs.
    ratio: u64,
    table: Table<8>,
}

impl<'a> Vhdx<'a> {
    pub(super) fn open(file: &'a File, len: u64, limits: &Limits) -> Result<Self, ConvertError> {
        let mut source = Source::new(file, len);
        header::check_headers(&mut source)?;
        let (bat, region) = header::regions(&mut source)?;
        let metadata = metadata::read(&mut source, region)?;
        limits.check_size(metadata.size)?;
        // A bitmap block of 1 MiB has 2^23 sectors' bits (§2.5).
        let ratio = (metadata.sector << 23) / metadata.block;
        let blocks = metadata.size.div_ceil(metadata.block);
        let entries = blocks + (blocks - 1) / ratio;
        if entries * 8 > bat.bytes {
            return Err(ConvertError::Damaged("its table of blocks is too short"));
        }
        let table = Table::new(&source, bat.start, entries)?;
        Ok(Self {
            source,
            metadata,
            ratio,
            table,
        })
    }

    /// Copies the guest's bytes and returns their number.
    pub(super) fn copy(self, output: &mut Output, limits: &Limits) -> Result<u64, ConvertError> {
        let Metadata { size, block, .. } = self.metadata;
        let (mut source, mut table) = (self.source, self.table);
        for index in 0..size.div_ceil(block) {
            if index % 64 == 0 {
                limits.check_time()?;
            }
            let entry = u64::from_le_bytes(table.entry(&mut source, index + index / self.ratio)?);
            if entry & RESERVED != 0 {
                return Err(ConvertError::Damaged("a block's entry has reserved bits"));
            }
            match entry & STATE {
                // The last three may read as what the block held before; it reads as zeros.
                NOT_PRESENT | ZERO | UNDEFINED | UNMAPPED => continue,
                FULLY_PRESENT => {}
                _ => return Err(ConvertError::Damaged("a block has no possible state")),
            }
            // 44 bits of MiB.
            let from = (entry >> 20)
                .checked_mul(header::MIB)
                .filter(|from| *from >= header::MIB)
                .ok_or(ConvertError::Damaged("a block lies in the headers"))?;
            let to = index * block;
            let n = block.min(size - to);
            const OUTSIDE: &str = "a block lies outside the file";
            source.copy((from, n), output, to, limits, OUTSIDE, |_, _| {})?;
        }
        Ok(size)
    }
}

fn guid_at(bytes: &[u8], at: usize) -> Guid {
    std::array::from_fn(|i| bytes[at + i])
}

/// A GUID by its usual text.
const fn guid(text: &str) -> Guid {
    /// Where each byte's two digits are.
    const DIGITS: [usize; 16] = [6, 4, 2, 0, 11, 9, 16, 14, 19, 21, 24, 26, 28, 30, 32, 34];
    const fn digit(byte: u8) -> u8 {
        if byte >= b'a' {
            byte - b'a' + 10
        } else {
            byte - b'0'
        }
    }
    let text = text.as_bytes();
    let mut guid = [0; 16];
    let mut i = 0;
    while i < 16 {
        guid[i] = digit(text[DIGITS[i]]) << 4 | digit(text[DIGITS[i] + 1]);
        i += 1;
    }
    guid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_are_stored_as_microsoft_stores_them() {
        let text = "2dc27766-f623-4200-9d64-115e9bfd4a08";
        let expected = uuid::Uuid::parse_str(text).unwrap().to_bytes_le();
        assert_eq!(guid(text), expected);
    }
}
