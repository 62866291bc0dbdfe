//! A reader of VMDK images in one file, which trusts nothing in them: hosted sparse extents and stream-optimized ones (VMware, "Virtual
//! Disk Format 5.0"). A descriptor that names other files than its own is refused: see [`descriptor`].

mod descriptor;

use std::fs::File;

use miniz_oxide::inflate::{
    TINFLStatus,
    core::{
        DecompressorOxide, decompress,
        inflate_flags::{
            TINFL_FLAG_COMPUTE_ADLER32, TINFL_FLAG_PARSE_ZLIB_HEADER,
            TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
        },
    },
};

use super::{
    ConvertError, Limits,
    copy::Output,
    source::{Source, Table},
};

const SECTOR: u64 = 512;
/// Entries of a grain table, as the format fixes them.
const TABLE_ENTRIES: u64 = 512;
/// The format's least grain is 4 KiB; nobody makes larger ones than this.
const GRAIN_SECTORS: std::ops::RangeInclusive<u64> = 8..=16 << 10;
/// The directory's place when the footer knows it (`GD_AT_END`).
const AT_END: u64 = u64::MAX;
/// Footer marker, footer, end-of-stream marker.
const FOOTER: u64 = 3 * SECTOR;
const MARKER_FOOTER: u32 = 3;

const FLAG_NEWLINE_TEST: u32 = 1;
const FLAG_ZEROED_GRAINS: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;

const CUT_OFF: &str = "its header is cut off";

/// What an extent's first sector says, or its footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    version: u32,
    flags: u32,
    capacity: u64,
    /// In sectors.
    grain: u64,
    descriptor: u64,
    descriptor_sectors: u64,
    entries: u32,
    directory: u64,
    compression: u16,
}

impl Header {
    fn parse(sector: &[u8; SECTOR as usize]) -> Result<Self, ConvertError> {
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| sector[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| sector[at + i]));
        let header = Self {
            version: u32_at(4),
            flags: u32_at(8),
            capacity: u64_at(12),
            grain: u64_at(20),
            descriptor: u64_at(28),
            descriptor_sectors: u64_at(36),
            entries: u32_at(44),
            directory: u64_at(56),
            compression: u16::from_le_bytes([sector[77], sector[78]]),
        };
        if header.flags & FLAG_NEWLINE_TEST != 0 && &sector[73..77] != b"\n \r\n" {
            return Err(ConvertError::Damaged(
                "its line ends were changed, as by a transfer in text mode",
            ));
        }
        Ok(header)
    }

    /// Whether and how grains are packed.
    fn check(&self) -> Result<bool, ConvertError> {
        if !(1..=3).contains(&self.version) {
            return Err(ConvertError::Unsupported(format!(
                "version {} of the vmdk format",
                self.version
            )));
        }
        if !GRAIN_SECTORS.contains(&self.grain) || !self.grain.is_power_of_two() {
            return Err(ConvertError::Damaged("its grain size is out of range"));
        }
        if u64::from(self.entries) != TABLE_ENTRIES {
            return Err(ConvertError::Damaged("its grain tables have the wrong size"));
        }
        match (self.flags & FLAG_COMPRESSED != 0, self.compression) {
            (false, _) => Ok(false),
            (true, 1) if self.flags & FLAG_MARKERS != 0 => Ok(true),
            (true, 1) => Err(ConvertError::Unsupported(
                "compressed grains without markers".into(),
            )),
            (true, kind) => Err(ConvertError::Unsupported(format!("compression type {kind}"))),
        }
    }
}

/// An image whose header and descriptor were found good.
#[derive(Debug)]
pub(super) struct Vmdk<'a> {
    source: Source<'a>,
    /// In bytes.
    size: u64,
    /// In bytes.
    grain: u64,
    compressed: bool,
    zeroed_grains: bool,
    directory: Table<4>,
}

impl<'a> Vmdk<'a> {
    pub(super) fn open(file: &'a File, len: u64, limits: &Limits) -> Result<Self, ConvertError> {
        let mut source = Source::new(file, len);
        let mut magic = [0; 4];
        source.read(&mut magic, 0, CUT_OFF)?;
        match &magic {
            b"KDMV" => {}
            b"COWD" => {
                return Err(ConvertError::Unsupported(
                    "the sparse format of ESX servers (COWD)".into(),
                ));
            }
            // Detection saw a descriptor.
            _ => {
                return Err(ConvertError::Reference(
                    "a descriptor, whose disk is in files of its own",
                ));
            }
        }
        let mut sector = [0; SECTOR as usize];
        source.read(&mut sector[4..], 4, CUT_OFF)?;
        let first = Header::parse(&sector)?;
        check_descriptor(&mut source, &first)?;
        let header = if first.directory == AT_END {
            let last = read_footer(&mut source)?;
            let same = |header: &Header| (header.capacity, header.grain, header.flags, header.compression);
            if same(&first) != same(&last) {
                return Err(ConvertError::Damaged("its header and its footer disagree"));
            }
            last
        } else {
            first
        };
        let compressed = header.check()?;
        let size = header.capacity.saturating_mul(SECTOR);
        limits.check_size(size)?;
        if size == 0 {
            return Err(ConvertError::Empty);
        }
        let tables = header.capacity.div_ceil(header.grain * TABLE_ENTRIES);
        let directory = Table::new(&source, header.directory.saturating_mul(SECTOR), tables)?;
        Ok(Self {
            source,
            size,
            grain: header.grain * SECTOR,
            compressed,
            zeroed_grains: header.flags & FLAG_ZEROED_GRAINS != 0,
            directory,
        })
    }

    /// Copies the guest's bytes and returns their number.
    pub(super) fn copy(mut self, output: &mut Output, limits: &Limits) -> Result<u64, ConvertError> {
        let mut buffer = vec![0; self.grain as usize];
        let mut packed = Vec::new();
        let mut inflater = Box::<DecompressorOxide>::default();
        let reach = self.grain * TABLE_ENTRIES;
        for index in 0..self.size.div_ceil(reach) {
            if index % 64 == 0 {
                limits.check_time()?;
            }
            let sector = u32::from_le_bytes(self.directory.entry(&mut self.source, index)?);
            if sector == 0 {
                continue;
            }
            let mut table = Table::<4>::new(&self.source, u64::from(sector) * SECTOR, TABLE_ENTRIES)?;
            for i in 0..TABLE_ENTRIES {
                let offset = index * reach + i * self.grain;
                if offset >= self.size {
                    break;
                }
                if i % 64 == 0 {
                    limits.check_time()?;
                }
                let sector = u32::from_le_bytes(table.entry(&mut self.source, i)?);
                match sector {
                    0 => continue,
                    1 if self.zeroed_grains => continue,
                    1 => return Err(ConvertError::Damaged("a grain lies in the header")),
                    _ => {}
                }
                let from = u64::from(sector) * SECTOR;
                let n = self.grain.min(self.size - offset) as usize;
                if self.compressed {
                    let there =
                        self.read_compressed(from, offset, &mut packed, &mut buffer, &mut inflater)?;
                    // The last grain may end where the disk does.
                    if there < n {
                        return Err(ConvertError::Damaged("a compressed grain is too short"));
                    }
                } else {
                    self.source
                        .read(&mut buffer[..n], from, "a grain lies outside the file")?;
                }
                output.write(&buffer[..n], offset)?;
            }
        }
        Ok(self.size)
    }

    /// How many bytes a grain has.
    fn read_compressed(
        &mut self,
        from: u64,
        offset: u64,
        packed: &mut Vec<u8>,
        buffer: &mut [u8],
        inflater: &mut DecompressorOxide,
    ) -> Result<usize, ConvertError> {
        const OUTSIDE: &str = "a compressed grain lies outside the file";
        let mut marker = [0; 12];
        self.source.read(&mut marker, from, OUTSIDE)?;
        let place = u64::from_le_bytes(std::array::from_fn(|i| marker[i]));
        let bytes = u32::from_le_bytes(std::array::from_fn(|i| marker[8 + i]));
        if place != offset / SECTOR {
            return Err(ConvertError::Damaged(
                "a grain's marker is of another place than its table's entry",
            ));
        }
        // Bytes that cannot be packed grow a little; twice is more than any writer makes of them.
        if bytes == 0 || u64::from(bytes) > 2 * self.grain {
            return Err(ConvertError::Damaged("a compressed grain has no possible size"));
        }
        packed.resize(bytes as usize, 0);
        self.source.read(packed, from + marker.len() as u64, OUTSIDE)?;
        inflater.init();
        let flags = TINFL_FLAG_PARSE_ZLIB_HEADER
            | TINFL_FLAG_COMPUTE_ADLER32
            | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let (status, _, written) = decompress(inflater, packed, buffer, 0, flags);
        if status == TINFLStatus::Done {
            Ok(written)
        } else {
            Err(ConvertError::Damaged("a compressed grain cannot be unpacked"))
        }
    }
}

/// The end of a stream: a marker, the header again with the directory's place, and another marker.
fn read_footer(source: &mut Source<'_>) -> Result<Header, ConvertError> {
    const MISSING: &str = "its footer is missing: it was cut off, or something follows it";
    let mut end = [0; FOOTER as usize];
    let start = source
        .len()
        .checked_sub(FOOTER)
        .ok_or(ConvertError::Damaged(MISSING))?;
    source.read(&mut end, start, MISSING)?;
    let marker = |at: usize| {
        let size = u32::from_le_bytes(std::array::from_fn(|i| end[at + 8 + i]));
        let kind = u32::from_le_bytes(std::array::from_fn(|i| end[at + 12 + i]));
        (size, kind)
    };
    let sector: [u8; SECTOR as usize] = std::array::from_fn(|i| end[SECTOR as usize + i]);
    let last = &end[2 * SECTOR as usize..];
    if marker(0) != (0, MARKER_FOOTER) || !sector.starts_with(b"KDMV") || last[..16] != [0; 16] {
        return Err(ConvertError::Damaged(MISSING));
    }
    Header::parse(&sector)
}

fn check_descriptor(source: &mut Source<'_>, header: &Header) -> Result<(), ConvertError> {
    let bytes = header.descriptor_sectors.saturating_mul(SECTOR);
    if bytes > descriptor::MAX_BYTES {
        return Err(ConvertError::Damaged("its descriptor is too long"));
    }
    // At most MAX_BYTES.
    let mut text = vec![0; bytes as usize];
    if header.descriptor != 0 {
        source.read(
            &mut text,
            header.descriptor.saturating_mul(SECTOR),
            "its descriptor lies outside the file",
        )?;
    }
    if text.first().is_none_or(|byte| *byte == 0) {
        // The extents of a split disk have none, or room for one.
        return Err(ConvertError::Reference(
            "a descriptor: this is one extent of a disk in several files",
        ));
    }
    descriptor::check(&text)
}
