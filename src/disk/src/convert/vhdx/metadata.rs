//! What a VHDX image says of its disk ([MS-VHDX] §2.6).

use super::{
    super::{ConvertError, source::Source},
    Guid, guid, guid_at,
    header::{MIB, Region},
};

const TABLE_BYTES: usize = 64 << 10;
const MAX_ITEMS: u16 = 2047;
/// The format's largest disk, 64 TiB.
const MAX_SIZE: u64 = 64 << 40;
const BLOCK_BYTES: std::ops::RangeInclusive<u64> = MIB..=256 * MIB;

const FILE_PARAMETERS: Guid = guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b");
const DISK_SIZE: Guid = guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8");
const DISK_ID: Guid = guid("beca12ab-b2e6-4523-93ef-c309e000c746");
const LOGICAL_SECTOR: Guid = guid("8141bf1d-a96f-4709-ba47-f233a8faab5f");
const PHYSICAL_SECTOR: Guid = guid("cda348c7-445d-4471-9cc9-e9885251c556");
const PARENT: Guid = guid("a8d35f2d-b30b-454d-abf7-d3d84834ab0c");

const IS_USERS: u32 = 1;
const IS_REQUIRED: u32 = 1 << 2;
const HAS_PARENT: u32 = 1 << 1;

/// What is needed of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Of the disk, in bytes.
    pub(super) size: u64,
    /// Of a block, in bytes.
    pub(super) block: u64,
    /// Of a sector, as the guest sees it.
    pub(super) sector: u64,
}

pub(super) fn read(source: &mut Source<'_>, region: Region) -> Result<Metadata, ConvertError> {
    let mut table = vec![0; TABLE_BYTES];
    source.read(&mut table, region.start, "its metadata lie outside the file")?;
    let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| table[at + i]));
    let count = u16::from_le_bytes([table[10], table[11]]);
    if !table.starts_with(b"metadata") || count > MAX_ITEMS {
        return Err(ConvertError::Damaged("its table of metadata is broken"));
    }
    let (mut parameters, mut size, mut sector) = (None, None, None);
    for entry in (0..usize::from(count)).map(|i| 32 + i * 32) {
        let id = guid_at(&table, entry);
        let flags = u32_at(entry + 24);
        let slot = match id {
            _ if flags & IS_USERS != 0 && flags & IS_REQUIRED == 0 => continue,
            _ if flags & IS_USERS != 0 => {
                return Err(ConvertError::Unsupported("metadata that are not known".into()));
            }
            PARENT => return Err(ConvertError::Reference("a parent disk")),
            FILE_PARAMETERS => &mut parameters,
            DISK_SIZE => &mut size,
            LOGICAL_SECTOR => &mut sector,
            DISK_ID | PHYSICAL_SECTOR => continue,
            _ if flags & IS_REQUIRED == 0 => continue,
            _ => return Err(ConvertError::Unsupported("metadata that are not known".into())),
        };
        let (offset, bytes) = (u64::from(u32_at(entry + 16)), u64::from(u32_at(entry + 20)));
        let needed = if id == LOGICAL_SECTOR { 4 } else { 8 };
        if offset < TABLE_BYTES as u64 || bytes < needed || offset + bytes > region.bytes {
            return Err(ConvertError::Damaged("its metadata lie outside their region"));
        }
        let mut value = [0; 8];
        source.read(
            &mut value[..needed as usize],
            region.start + offset,
            "its metadata lie outside the file",
        )?;
        if slot.replace(u64::from_le_bytes(value)).is_some() {
            return Err(ConvertError::Damaged("its metadata are there twice"));
        }
    }
    let (Some(parameters), Some(size), Some(sector)) = (parameters, size, sector) else {
        return Err(ConvertError::Damaged("its metadata are not whole"));
    };
    let metadata = Metadata {
        size,
        // The lower half; flags are in the upper.
        block: parameters & u64::from(u32::MAX),
        sector,
    };
    if parameters >> 32 & u64::from(HAS_PARENT) != 0 {
        return Err(ConvertError::Reference("a parent disk"));
    }
    check(&metadata)?;
    Ok(metadata)
}

fn check(metadata: &Metadata) -> Result<(), ConvertError> {
    let Metadata { size, block, sector } = *metadata;
    if !BLOCK_BYTES.contains(&block) || !block.is_power_of_two() {
        return Err(ConvertError::Damaged("its block size is out of range"));
    }
    if ![512, 4096].contains(&sector) {
        return Err(ConvertError::Damaged("its sector size is out of range"));
    }
    if size > MAX_SIZE || !size.is_multiple_of(sector) {
        return Err(ConvertError::Damaged("its disk has no possible size"));
    }
    if size == 0 {
        return Err(ConvertError::Empty);
    }
    Ok(())
}
