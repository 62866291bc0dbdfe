//! VHD, which QEMU calls vpc.

use super::*;

/// In QEMU's driver a disk has the size of its geometry, unless the size is forced.
const ROUNDED: std::ops::Range<u64> = 40 * MIB + 1537..41 * MIB;

#[test]
fn everything_that_qemu_img_makes_comes_out_as_it_went_in() {
    let bench = Bench::new();
    bench.source();
    for options in [
        "subformat=dynamic",
        "subformat=dynamic,force_size=on",
        "subformat=fixed",
        "subformat=fixed,force_size=on",
    ] {
        let size = bench.through("vpc", &["-o", options], ImageFormat::Vhd);
        if options.contains("force_size") {
            assert_eq!(size, 40 * MIB + 1536, "{options}");
        } else {
            assert!(ROUNDED.contains(&size), "{options}: {size}");
        }
    }
}

#[test]
fn a_disk_that_was_written_to_is_read_as_qemu_reads_it() {
    let bench = Bench::new();
    bench.qemu_img(&[
        "create",
        "-q",
        "-f",
        "vpc",
        "-o",
        "force_size=on",
        "image",
        "300M",
    ]);
    let writes = [
        "write -q -P 7 299M 64k",
        "write -q -P 9 1M 512",
        "write -q -P 3 3M 5M",
        "write -q -z 4M 1M",
    ];
    let done = Command::new("qemu-io")
        .args(["-f", "vpc"])
        .args(writes.iter().flat_map(|write| ["-c", write]))
        .arg(bench.path("image"))
        .status()
        .unwrap();
    assert!(done.success());
    bench.convert(&bench.path("image"), ImageFormat::Vhd).unwrap();
    bench.same("vpc", "image");
}

fn checksum(bytes: &mut [u8], at: usize) {
    put(bytes, at, &[0; 4]);
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    put(bytes, at, &(!sum).to_be_bytes());
}

/// Sets the checksums of both footers and of the header.
pub(crate) fn mend(bytes: &mut [u8]) {
    for place in [0, bytes.len().saturating_sub(512)] {
        let Some(footer) = bytes.get_mut(place..place + 512) else {
            continue;
        };
        if !footer.starts_with(b"conectix") {
            continue;
        }
        checksum(footer, 64);
        let at = u64::from_be_bytes(footer[16..24].try_into().unwrap());
        let header = usize::try_from(at)
            .ok()
            .and_then(|at| bytes.get_mut(at..at.checked_add(1024)?));
        if let Some(header) = header.filter(|header| header.starts_with(b"cxsparse")) {
            checksum(header, 36);
        }
    }
}

fn footer(kind: u8, size: u64) -> Vec<u8> {
    let mut footer = vec![0; 512];
    put(&mut footer, 0, b"conectix\0\0\0\x02\0\x01\0\0");
    put(
        &mut footer,
        16,
        &(if kind == 2 { u64::MAX } else { 512 }).to_be_bytes(),
    );
    put(&mut footer, 28, b"win ");
    put(&mut footer, 40, &size.to_be_bytes());
    put(&mut footer, 48, &size.to_be_bytes());
    footer[63] = kind;
    checksum(&mut footer, 64);
    footer
}

const SIZE: u64 = 8 * 4096;
const HEADER: usize = 512;
const TABLE: usize = 1536;
const BITMAP: usize = 2048;
const END: usize = BITMAP + 512 + 4096;

/// A disk of eight blocks of 4 KiB, of which the second is there: sevens, whose third sector was never written.
fn small() -> Vec<u8> {
    let mut bytes = vec![0; END];
    put(&mut bytes, 0, &footer(3, SIZE));
    put(&mut bytes, HEADER, b"cxsparse");
    put(&mut bytes, HEADER + 8, &[0xff; 8]);
    put(&mut bytes, HEADER + 16, &(TABLE as u64).to_be_bytes());
    put(&mut bytes, HEADER + 24, &[0, 1, 0, 0, 0, 0, 0, 8, 0, 0, 0x10, 0]);
    checksum(&mut bytes[HEADER..TABLE], 36);
    put(&mut bytes, TABLE, &[0xff; 512]);
    put(&mut bytes, TABLE + 4, &[0, 0, 0, 4]);
    bytes[BITMAP] = 0b1101_1111;
    bytes[BITMAP + 512..].fill(7);
    bytes.extend_from_slice(&footer(3, SIZE));
    bytes
}

#[test]
fn sectors_that_were_never_written_are_zeros() {
    let bench = Bench::new();
    let converted = bench.hostile(&small(), ImageFormat::Vhd).unwrap();
    assert_eq!(converted.virtual_size, SIZE);
    let mut expected = vec![0; SIZE as usize];
    expected[4096..8192].fill(7);
    expected[4096 + 1024..4096 + 1536].fill(0);
    assert!(fs::read(bench.path("output.raw")).unwrap() == expected);
}

#[test]
fn sizes_that_are_no_whole_sectors_are_rounded_up() {
    let bench = Bench::new();
    for last in [512, 511] {
        let bytes = [vec![7; 1000], footer(2, 1000)[..last].to_vec()].concat();
        let converted = bench.hostile(&bytes, ImageFormat::Vhd).unwrap();
        assert_eq!(converted.virtual_size, 1024);
        let expected = [vec![7; 1000], vec![0; 24]].concat();
        assert_eq!(fs::read(bench.path("output.raw")).unwrap(), expected);
    }
    let mut bytes = small();
    let size = SIZE - 7 * 4096 + 1001;
    put(&mut bytes, 0, &footer(3, size));
    put(&mut bytes, END, &footer(3, size));
    let converted = bench.hostile(&bytes, ImageFormat::Vhd).unwrap();
    assert_eq!(converted.virtual_size, size.next_multiple_of(512));
    let output = fs::read(bench.path("output.raw")).unwrap();
    assert!(output[size as usize..].iter().all(|byte| *byte == 0));
}

#[test]
fn damage_is_named() {
    let bench = Bench::new();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = small();
        change(&mut bytes);
        if bytes.len() > TABLE {
            checksum(&mut bytes[HEADER..TABLE], 36);
        }
        bench.hostile(&bytes, ImageFormat::Vhd)
    };
    changed(&|_| {}).unwrap();
    let both = |bytes: &mut Vec<u8>, footer: Vec<u8>| {
        put(bytes, 0, &footer);
        put(bytes, END, &footer);
    };
    for (what, change) in [
        (
            "cut off",
            &(|b: &mut Vec<u8>| b.truncate(END)) as &dyn Fn(&mut Vec<u8>),
        ),
        ("cut off in its footer", &|b| b.truncate(END + 300)),
        ("something follows", &|b| b.extend_from_slice(&[0; 512])),
        ("first footer's checksum", &|b| b[100] ^= 1),
        ("last footer's checksum", &|b| b[END + 100] ^= 1),
        ("another size in front", &|b| put(b, 0, &footer(3, SIZE - 512))),
        ("no footer in front", &|b| put(b, 0, &[0; 512])),
        ("fixed behind, dynamic in front", &|b| {
            put(b, END, &footer(2, 4096))
        }),
        ("dynamic behind, fixed in front", &|b| put(b, 0, &footer(2, SIZE))),
        ("both fixed", &|b| both(b, footer(2, 4096))),
        ("no header", &|b| put(b, HEADER, b"CXSPARSE")),
        ("header beyond the file", &|b| {
            let mut footer = footer(3, SIZE);
            put(&mut footer, 16, &(1u64 << 40).to_be_bytes());
            checksum(&mut footer, 64);
            both(b, footer);
        }),
        ("header beyond the address space", &|b| {
            let mut footer = footer(3, SIZE);
            put(&mut footer, 16, &(u64::MAX - 100).to_be_bytes());
            checksum(&mut footer, 64);
            both(b, footer);
        }),
        ("table beyond the file", &|b| {
            put(b, HEADER + 16, &(END as u64 - 10).to_be_bytes())
        }),
        ("table beyond the address space", &|b| {
            put(b, HEADER + 16, &[0xff; 8])
        }),
        ("table too short", &|b| put(b, HEADER + 28, &[0, 0, 0, 7])),
        ("blocks of nothing", &|b| put(b, HEADER + 32, &[0; 4])),
        ("blocks of 256 bytes", &|b| put(b, HEADER + 32, &[0, 0, 1, 0])),
        ("blocks of 12 KiB", &|b| put(b, HEADER + 32, &[0, 0, 0x30, 0])),
        ("blocks of 2 GiB", &|b| put(b, HEADER + 32, &[0x80, 0, 0, 0])),
        ("block beyond the file", &|b| put(b, TABLE, &[0, 0, 0, 5])),
        ("block far beyond the file", &|b| {
            put(b, TABLE, &[0xff, 0xff, 0xff, 0xfe])
        }),
        ("one block again and again", &|b| {
            put(b, TABLE, &[[0, 0, 0, 4]; 8].concat())
        }),
    ] {
        assert_damaged(changed(change), what);
    }
    let mut bytes = small();
    bytes[HEADER + 300] ^= 1;
    assert_damaged(bench.hostile(&bytes, ImageFormat::Vhd), "header's checksum");
    let short = [vec![7; 999], footer(2, 1000)].concat();
    assert_damaged(bench.hostile(&short, ImageFormat::Vhd), "shorter than its disk");
    for alone in [footer(2, 512), footer(3, 512), footer(3, SIZE)[..511].to_vec()] {
        assert_damaged(bench.hostile(&alone, ImageFormat::Vhd), "a footer alone");
    }
    assert_reference(changed(&|b| both(b, footer(4, SIZE))), "differencing");
    for kind in [0, 1, 5, 6, 255] {
        assert_unsupported(changed(&|b| both(b, footer(kind, SIZE))), "kind");
    }
    let newer = changed(&|b| {
        let mut footer = footer(3, SIZE);
        footer[13] = 2;
        checksum(&mut footer, 64);
        both(b, footer);
    });
    assert_unsupported(newer, "a newer version");
    assert_unsupported(changed(&|b| b[HEADER + 25] = 2), "a newer header");
    let empty = changed(&|b| both(b, footer(3, 0)));
    assert!(matches!(empty, Err(ConvertError::Empty)), "{empty:?}");
    for size in [1 << 31, u64::MAX] {
        let huge = changed(&|b| both(b, footer(3, size)));
        assert!(matches!(huge, Err(ConvertError::TooLarge { .. })), "{huge:?}");
    }
}

#[test]
fn a_large_table_needs_no_memory() {
    let bench = Bench::new();
    let entries = 4u32 << 20;
    let size = u64::from(entries) * 512;
    let mut bytes = small();
    bytes.truncate(TABLE);
    put(&mut bytes, 0, &footer(3, size));
    put(&mut bytes, HEADER + 28, &entries.to_be_bytes());
    put(&mut bytes, HEADER + 32, &512u32.to_be_bytes());
    checksum(&mut bytes[HEADER..TABLE], 36);
    let file = File::create(bench.path("hostile")).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    let absent = vec![0xff; 1 << 20];
    for piece in 0..16 {
        file.write_all_at(&absent, TABLE as u64 + piece * MIB).unwrap();
    }
    file.write_all_at(&footer(3, size), TABLE as u64 + (16 << 20))
        .unwrap();
    let spec = ConvertSpec {
        format: ImageFormat::Vhd,
        max_virtual_size: 1 << 40,
        max_seconds: 60,
    };
    let before = peak_memory();
    let converted = bench.convert_with(&spec, &bench.path("hostile")).unwrap();
    assert_eq!((converted.virtual_size, converted.allocated), (size, 0));
    assert!(peak_memory() - before < 8 << 20, "{}", peak_memory() - before);
}
