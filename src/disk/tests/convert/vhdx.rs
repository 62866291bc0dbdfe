//! VHDX.

use std::sync::OnceLock;

use super::*;

#[test]
fn everything_that_qemu_img_makes_comes_out_as_it_went_in() {
    let bench = Bench::new();
    bench.source();
    for options in [
        "subformat=dynamic",
        "subformat=dynamic,block_size=1M",
        "subformat=dynamic,block_size=16M,log_size=2M",
        "subformat=dynamic,block_size=256M",
        "subformat=dynamic,block_state_zero=off",
        "subformat=fixed,block_size=1M",
        "subformat=fixed,block_size=32M",
    ] {
        let size = bench.through("vhdx", &["-o", options], ImageFormat::Vhdx);
        assert_eq!(size, 40 * MIB + 1536, "{options}");
    }
}

#[test]
fn entries_of_bitmap_blocks_stand_between_those_of_blocks() {
    let bench = Bench::new();
    // After each 4 GiB.
    let file = File::create(bench.path("source.raw")).unwrap();
    file.set_len(9 << 30).unwrap();
    for (place, byte) in [
        (0u64, 1),
        ((4 << 30) - 512, 2),
        (4 << 30, 3),
        ((8 << 30) - 4096, 4),
        ((8 << 30) + MIB, 5),
    ] {
        file.write_all_at(&[byte; 512], place).unwrap();
    }
    let spec = ConvertSpec {
        format: ImageFormat::Vhdx,
        max_virtual_size: 16 << 30,
        max_seconds: 60,
    };
    for block in ["1M", "64M"] {
        let options = format!("subformat=dynamic,block_size={block}");
        bench.qemu_img(&[
            "convert",
            "-q",
            "-O",
            "vhdx",
            "-o",
            &options,
            "source.raw",
            "image",
        ]);
        let converted = bench.convert_with(&spec, &bench.path("image")).unwrap();
        assert_eq!(
            (converted.virtual_size, converted.allocated),
            (9 << 30, 5 * (64 << 10))
        );
        bench.same("raw", "source.raw");
    }
}

#[test]
fn a_file_that_was_not_closed_is_refused() {
    let bench = Bench::new();
    bench.qemu_img(&["create", "-q", "-f", "vhdx", "image", "40M"]);
    // A crash after a write, of a program that puts each in its place at once.
    let _ = Command::new("qemu-io")
        .args(["-f", "vhdx", "-c", "write -q -P 7 1M 1M", "-c", "abort"])
        .arg(bench.path("image"))
        .output()
        .unwrap();
    bench.convert(&bench.path("image"), ImageFormat::Vhdx).unwrap();
    bench.same("vhdx", "image");

    let mut image = Image::new();
    let current = image.current();
    put(&mut image.bytes, current + 48, &[1]);
    let refused = image.convert(&bench);
    assert!(matches!(refused, Err(ConvertError::Unclosed(_))), "{refused:?}");
    assert!(refused.unwrap_err().is_senders_fault());
}

/// CRC-32C, by halves of bytes.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let table: [u32; 16] = std::array::from_fn(|half| {
        (0..4).fold(half as u32, |rest, _| {
            (rest >> 1) ^ if rest & 1 != 0 { 0x82f6_3b78 } else { 0 }
        })
    });
    let step = |rest: u32| (rest >> 4) ^ table[rest as usize & 15];
    !bytes
        .iter()
        .fold(u32::MAX, |rest, byte| step(step(rest ^ u32::from(*byte))))
}

/// Sets the checksums of headers and tables of regions.
pub(crate) fn mend(bytes: &mut [u8]) {
    for (place, length) in [
        (64 << 10, 4 << 10),
        (128 << 10, 4 << 10),
        (192 << 10, 64 << 10),
        (256 << 10, 64 << 10),
    ] {
        if let Some(part) = bytes.get_mut(place..place + length) {
            part[4..8].fill(0);
            let sum = crc32c(part);
            put(part, 4, &sum.to_le_bytes());
        }
    }
}

/// A small image by `qemu-img`, and where its parts are.
#[derive(Clone)]
struct Image {
    bytes: Vec<u8>,
    bat: usize,
    metadata: usize,
}

const REGIONS: usize = 192 << 10;

impl Image {
    /// Two blocks of 1 MiB, of which the first is there.
    fn new() -> Self {
        static MADE: OnceLock<Image> = OnceLock::new();
        MADE.get_or_init(Self::make).clone()
    }

    fn make() -> Self {
        let bench = Bench::new();
        fs::write(bench.path("text"), "all work and no play ".repeat(4000)).unwrap();
        File::options()
            .write(true)
            .open(bench.path("text"))
            .unwrap()
            .set_len(2 * MIB)
            .unwrap();
        let options = "subformat=dynamic,block_size=1M,log_size=1M";
        bench.qemu_img(&["convert", "-q", "-O", "vhdx", "-o", options, "text", "image"]);
        let bytes = fs::read(bench.path("image")).unwrap();
        let place = |id: u32| {
            (REGIONS + 16..)
                .step_by(32)
                .take(2)
                .find(|at| bytes[*at..].starts_with(&id.to_le_bytes()))
                .map(|at| u64::from_le_bytes(bytes[at + 16..at + 24].try_into().unwrap()) as usize)
                .unwrap()
        };
        Self {
            bat: place(0x2dc2_7766),
            metadata: place(0x8b7c_a206),
            bytes,
        }
    }

    /// The header that counts.
    fn current(&self) -> usize {
        let number = |at: usize| u64::from_le_bytes(self.bytes[at + 8..at + 16].try_into().unwrap());
        [64 << 10, 128 << 10]
            .into_iter()
            .max_by_key(|at| number(*at))
            .unwrap()
    }

    /// The entry of a metadata item, and its value.
    fn item(&self, id: u32) -> (usize, usize) {
        let entry = (self.metadata + 32..)
            .step_by(32)
            .take(8)
            .find(|at| self.bytes[*at..].starts_with(&id.to_le_bytes()))
            .unwrap();
        let offset = u32::from_le_bytes(self.bytes[entry + 16..entry + 20].try_into().unwrap());
        (entry, self.metadata + offset as usize)
    }

    fn set(&mut self, at: usize, value: &[u8]) {
        put(&mut self.bytes, at, value);
    }

    /// Changes an item's entry so many bytes after its beginning.
    fn set_entry(&mut self, id: u32, after: usize, value: &[u8]) {
        let at = self.item(id).0 + after;
        self.set(at, value);
    }

    fn set_value(&mut self, id: u32, value: &[u8]) {
        let at = self.item(id).1;
        self.set(at, value);
    }

    fn convert(&mut self, bench: &Bench) -> Result<Converted, ConvertError> {
        mend(&mut self.bytes);
        bench.hostile(&self.bytes, ImageFormat::Vhdx)
    }
}

const FILE_PARAMETERS: u32 = 0xcaa1_6737;
const DISK_SIZE: u32 = 0x2fa5_4224;
const DISK_ID: u32 = 0xbeca_12ab;
const SECTOR_SIZE: u32 = 0x8141_bf1d;

type Change<'a> = (&'a str, &'a dyn Fn(&mut Image));

#[test]
fn damage_is_named() {
    let bench = Bench::new();
    let changed = |change: &dyn Fn(&mut Image)| {
        let mut image = Image::new();
        change(&mut image);
        image.convert(&bench)
    };
    let whole = changed(&|_| {}).unwrap();
    assert_eq!((whole.virtual_size, whole.allocated), (2 * MIB, 128 << 10));
    let first = 64 << 10;
    let damage: [Change<'_>; 37] = [
        ("no header", &|i| {
            i.set(first, b"HEAD");
            i.set(first * 2, b"HEAD");
        }),
        ("two headers of one number", &|i| {
            let number: Vec<u8> = i.bytes[first + 8..first + 16].to_vec();
            i.set(first * 2 + 8, &number);
        }),
        ("no regions", &|i| {
            i.set(REGIONS, b"REGI");
            i.set(REGIONS + first, b"REGI");
        }),
        ("too many regions", &|i| {
            i.set(REGIONS + 8, &2048u32.to_le_bytes())
        }),
        ("2^32 regions", &|i| i.set(REGIONS + 8, &[0xff; 4])),
        ("one region", &|i| i.bytes[REGIONS + 8] = 1),
        ("a region twice", &|i| {
            i.bytes[REGIONS + 8] = 3;
            i.bytes.copy_within(REGIONS + 16..REGIONS + 48, REGIONS + 80);
            let last = i.bytes.len() as u64 - MIB;
            i.set(REGIONS + 80 + 16, &last.to_le_bytes());
            i.set(REGIONS + 80 + 24, &(MIB as u32).to_le_bytes());
        }),
        ("regions that overlap", &|i| {
            let place: Vec<u8> = i.bytes[REGIONS + 32..REGIONS + 40].to_vec();
            i.set(REGIONS + 64, &place);
        }),
        ("a region in the headers", &|i| i.set(REGIONS + 32, &[0; 8])),
        ("a region out of line", &|i| i.set(REGIONS + 32, &[1])),
        ("a region beyond the file", &|i| i.set(REGIONS + 36, &[1])),
        ("a region beyond the address space", &|i| {
            i.set(REGIONS + 32, &[0, 0, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff])
        }),
        ("a region of nothing", &|i| i.set(REGIONS + 40, &[0; 4])),
        ("a region of 4 GiB", &|i| i.set(REGIONS + 40, &[0, 0, 0xf0, 0xff])),
        ("no metadata", &|i| i.set(i.metadata, b"METADATA")),
        ("too many metadata", &|i| {
            i.set(i.metadata + 10, &2048u16.to_le_bytes())
        }),
        ("no items", &|i| i.set(i.metadata + 10, &[0; 2])),
        ("no size", &|i| {
            i.set_entry(DISK_SIZE, 0, &[0; 16]);
            i.set_entry(0, 24, &[0; 4])
        }),
        ("an item in the table", &|i| i.set_entry(DISK_SIZE, 16, &[0; 4])),
        ("an item beyond its region", &|i| {
            i.set_entry(DISK_SIZE, 16, &[0xff; 4])
        }),
        ("an item over the end of its region", &|i| {
            i.set_entry(DISK_SIZE, 16, &0xf_fff9u32.to_le_bytes())
        }),
        ("an item of 4 bytes", &|i| i.set_entry(DISK_SIZE, 20, &[4])),
        ("an item of 4 GiB", &|i| i.set_entry(DISK_SIZE, 20, &[0xff; 4])),
        ("an item twice", &|i| {
            let from = i.item(DISK_SIZE).0;
            let to = i.item(DISK_ID).0;
            i.bytes.copy_within(from..from + 16, to);
        }),
        ("blocks of 512 KiB", &|i| {
            i.set_value(FILE_PARAMETERS, &(512u32 << 10).to_le_bytes())
        }),
        ("blocks of 3 MiB", &|i| {
            i.set_value(FILE_PARAMETERS, &(3u32 << 20).to_le_bytes())
        }),
        ("blocks of 512 MiB", &|i| {
            i.set_value(FILE_PARAMETERS, &(512u32 << 20).to_le_bytes())
        }),
        ("blocks of nothing", &|i| i.set_value(FILE_PARAMETERS, &[0; 4])),
        ("sectors of 1 KiB", &|i| {
            i.set_value(SECTOR_SIZE, &1024u32.to_le_bytes())
        }),
        ("sectors of nothing", &|i| i.set_value(SECTOR_SIZE, &[0; 4])),
        ("a size of no whole sectors", &|i| i.set_value(DISK_SIZE, &[1])),
        ("a size of 16 EiB", &|i| {
            i.set_value(DISK_SIZE, &(u64::MAX << 9).to_le_bytes())
        }),
        ("a block in no state", &|i| {
            i.bytes[i.bat] = i.bytes[i.bat] & !7 | 4
        }),
        ("a block that is partly there", &|i| i.bytes[i.bat] |= 7),
        ("reserved bits", &|i| i.bytes[i.bat + 1] = 1),
        ("a block in the headers", &|i| {
            i.set(i.bat, &[6, 0, 0, 0, 0, 0, 0, 0])
        }),
        ("a block far beyond the file", &|i| {
            i.set(i.bat, &[6, 0, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff])
        }),
    ];
    for (what, change) in damage {
        assert_damaged(changed(change), what);
    }
    // 131,072 entries are a mebibyte.
    let mut image = Image::new();
    image.set_value(DISK_SIZE, &(131_073 * MIB).to_le_bytes());
    mend(&mut image.bytes);
    write_sparse(&bench.path("hostile"), &image.bytes);
    let spec = ConvertSpec {
        format: ImageFormat::Vhdx,
        max_virtual_size: 1 << 40,
        max_seconds: 60,
    };
    let short = bench.convert_with(&spec, &bench.path("hostile"));
    assert_damaged(short, "a table that is too short");
    let shared: Change<'_> = ("one block again and again", &|i| {
        let entry: Vec<u8> = i.bytes[i.bat..i.bat + 8].to_vec();
        for index in 1..64 {
            i.set(i.bat + index * 8, &entry);
        }
        i.set_value(DISK_SIZE, &(64 * MIB).to_le_bytes());
    });
    assert_damaged(changed(shared.1), shared.0);

    let unsupported: [Change<'_>; 6] = [
        ("a newer version", &|i| {
            i.bytes[first + 66] = 2;
            i.bytes[first * 2 + 66] = 2;
        }),
        ("a newer log", &|i| {
            i.bytes[first + 64] = 1;
            i.bytes[first * 2 + 64] = 1;
        }),
        ("an unknown region that is required", &|i| {
            i.bytes[REGIONS + 16] ^= 1;
            i.bytes[REGIONS + 44] = 1;
        }),
        ("an unknown item that is required", &|i| {
            let at = i.item(DISK_ID).0;
            i.bytes[at] ^= 1;
        }),
        ("a user's item that is required", &|i| {
            let at = i.item(DISK_ID).0;
            i.bytes[at + 24] |= 1;
        }),
        ("another one", &|i| {
            i.bytes[REGIONS + 48] ^= 1;
            i.bytes[REGIONS + 76] = 1;
        }),
    ];
    for (what, change) in unsupported {
        assert_unsupported(changed(change), what);
    }
    let parents: [Change<'_>; 2] = [
        ("a parent", &|i| {
            let at = i.item(FILE_PARAMETERS).1;
            i.bytes[at + 4] |= 2;
        }),
        ("a parent's locator", &|i| {
            let at = i.item(DISK_ID).0;
            let id = [
                0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab,
                0x0c,
            ];
            i.set(at, &id);
        }),
    ];
    for (what, change) in parents {
        assert_reference(changed(change), what);
    }
    let empty = changed(&|i| i.set_value(DISK_SIZE, &[0; 8]));
    assert!(matches!(empty, Err(ConvertError::Empty)), "{empty:?}");
    let huge = changed(&|i| i.set_value(DISK_SIZE, &(1u64 << 40).to_le_bytes()));
    assert!(matches!(huge, Err(ConvertError::TooLarge { .. })), "{huge:?}");
    for length in [8, 512, 65536, 66000, 200_000, 262_144, 300_000, 327_680, 1 << 20] {
        let image = Image::new();
        assert_damaged(
            bench.hostile(&image.bytes[..length], ImageFormat::Vhdx),
            "cut off",
        );
    }
    let image = Image::new();
    let cut = &image.bytes[..image.bytes.len() - MIB as usize];
    assert_damaged(bench.hostile(cut, ImageFormat::Vhdx), "cut off by a block");
}

#[test]
fn either_header_and_either_table_will_do() {
    let bench = Bench::new();
    for broken in [64 << 10, 128 << 10, 192 << 10, 256 << 10] {
        let mut image = Image::new();
        image.bytes[broken + 4] ^= 1;
        bench.hostile(&image.bytes, ImageFormat::Vhdx).unwrap();
        // With another signature, too.
        image.bytes[broken] ^= 1;
        bench.hostile(&image.bytes, ImageFormat::Vhdx).unwrap();
    }
    // An older header that says nonsense does not count.
    let mut image = Image::new();
    let current = image.current();
    let older = (64 << 10) + (128 << 10) - current;
    image.bytes[older + 48..older + 72].fill(0xff);
    image.convert(&bench).unwrap();
    // Sectors of 4 KiB, and blocks that read as zeros.
    let mut image = Image::new();
    let at = image.item(SECTOR_SIZE).1;
    put(&mut image.bytes, at, &4096u32.to_le_bytes());
    image.convert(&bench).unwrap();
    for state in 0..4 {
        let mut image = Image::new();
        let entry = &mut image.bytes[image.bat];
        *entry = *entry & !7 | state;
        assert_eq!(image.convert(&bench).unwrap().allocated, 0);
    }
}
