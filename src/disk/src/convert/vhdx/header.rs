//! The first mebibyte of a VHDX image: two headers, of which the newer good one counts, and two tables of regions ([MS-VHDX] §2.2).

use super::{
    super::{ConvertError, source::Source},
    Guid,
    crc::crc32c,
    guid, guid_at,
};

/// Both are found at each of their places.
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const HEADER_BYTES: usize = 4 << 10;
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
const REGION_TABLE_BYTES: usize = 64 << 10;
const MAX_REGIONS: u32 = 2047;
/// Regions and blocks are whole ones of these; the first is the header section's.
pub(super) const MIB: u64 = 1 << 20;

const BAT: Guid = guid("2dc27766-f623-4200-9d64-115e9bfd4a08");
const METADATA: Guid = guid("8b7ca206-4790-4b9a-b8fe-575f050f886e");

const OUTSIDE: &str = "its headers are cut off";

/// A part of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) start: u64,
    pub(super) bytes: u64,
}

/// Looks at both headers: the file is of a known version, and was closed.
pub(super) fn check_headers(source: &mut Source<'_>) -> Result<(), ConvertError> {
    let mut current: Option<(u64, Vec<u8>)> = None;
    for place in HEADERS {
        let mut bytes = vec![0; HEADER_BYTES];
        source.read(&mut bytes, place, OUTSIDE)?;
        if !is_whole(&mut bytes, b"head") {
            continue;
        }
        let number = u64::from_le_bytes(std::array::from_fn(|i| bytes[8 + i]));
        match &current {
            Some((newer, _)) if *newer > number => {}
            Some((same, other)) if *same == number && *other != bytes => {
                return Err(ConvertError::Damaged("its two headers disagree"));
            }
            _ => current = Some((number, bytes)),
        }
    }
    let Some((_, header)) = current else {
        return Err(ConvertError::Damaged("it has no header with the right checksum"));
    };
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let (log_version, version) = (u16_at(64), u16_at(66));
    if version != 1 {
        return Err(ConvertError::Unsupported(format!(
            "version {version} of the vhdx format"
        )));
    }
    // A log that is named holds writes that are not in place yet, however old they are.
    if guid_at(&header, 48) != Guid::default() {
        return Err(ConvertError::Unclosed(
            "its log holds writes that are not in place",
        ));
    }
    if log_version != 0 {
        return Err(ConvertError::Unsupported(format!(
            "version {log_version} of the vhdx log"
        )));
    }
    Ok(())
}

/// The block allocation table and the metadata.
pub(super) fn regions(source: &mut Source<'_>) -> Result<(Region, Region), ConvertError> {
    let mut bytes = vec![0; REGION_TABLE_BYTES];
    for place in REGION_TABLES {
        source.read(&mut bytes, place, OUTSIDE)?;
        if is_whole(&mut bytes, b"regi") {
            return parse_regions(&bytes, source);
        }
    }
    Err(ConvertError::Damaged(
        "it has no table of regions with the right checksum",
    ))
}

fn parse_regions(table: &[u8], source: &Source<'_>) -> Result<(Region, Region), ConvertError> {
    let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| table[at + i]));
    let count = u32_at(8);
    if count > MAX_REGIONS {
        return Err(ConvertError::Damaged("its table of regions is too long"));
    }
    let (mut bat, mut metadata) = (None, None);
    let mut all = Vec::new();
    for entry in (0..count as usize).map(|i| 16 + i * 32) {
        let start = u64::from_le_bytes(std::array::from_fn(|i| table[entry + 16 + i]));
        let region = Region {
            start,
            bytes: u32_at(entry + 24).into(),
        };
        if start < MIB
            || !start.is_multiple_of(MIB)
            || region.bytes == 0
            || !region.bytes.is_multiple_of(MIB)
            || !source.holds(start, region.bytes)
        {
            return Err(ConvertError::Damaged(
                "a region lies outside the file, or out of line",
            ));
        }
        all.push(region);
        let slot = match guid_at(table, entry) {
            BAT => &mut bat,
            METADATA => &mut metadata,
            _ if u32_at(entry + 28) & 1 == 0 => continue,
            _ => return Err(ConvertError::Unsupported("a region that is not known".into())),
        };
        if slot.replace(region).is_some() {
            return Err(ConvertError::Damaged("a region is there twice"));
        }
    }
    all.sort_by_key(|region| region.start);
    // Their ends are in the file: no overflow.
    if all
        .windows(2)
        .any(|pair| pair[0].start + pair[0].bytes > pair[1].start)
    {
        return Err(ConvertError::Damaged("two regions overlap"));
    }
    bat.zip(metadata)
        .ok_or(ConvertError::Damaged("it lacks a region"))
}

/// Has the signature, and the checksum in the four bytes after it, which count as zeros. They are zeros then.
fn is_whole(bytes: &mut [u8], signature: &[u8; 4]) -> bool {
    let claimed = u32::from_le_bytes(std::array::from_fn(|i| bytes[4 + i]));
    bytes[4..8].fill(0);
    bytes.starts_with(signature) && crc32c(bytes) == claimed
}
