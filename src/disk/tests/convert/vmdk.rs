//! VMDK.

use super::{stream::stream_optimized, *};

#[test]
fn everything_that_qemu_img_makes_comes_out_as_it_went_in() {
    let bench = Bench::new();
    bench.source();
    for options in [
        "subformat=monolithicSparse",
        "subformat=monolithicSparse,compat6=on,adapter_type=lsilogic",
        "subformat=monolithicSparse,zeroed_grain=on",
        "subformat=streamOptimized",
    ] {
        let size = bench.through("vmdk", &["-o", options], ImageFormat::Vmdk);
        assert_eq!(size, 40 * MIB + 1536, "{options}");
    }
}

#[test]
fn zeroed_grains_are_read_as_qemu_reads_them() {
    let bench = Bench::new();
    bench.source();
    let options = "subformat=monolithicSparse,zeroed_grain=on";
    bench.qemu_img(&[
        "convert",
        "-q",
        "-O",
        "vmdk",
        "-o",
        options,
        "source.raw",
        "image",
    ]);
    let done = Command::new("qemu-io")
        .args([
            "-f",
            "vmdk",
            "-c",
            "write -q -z 6M 1M",
            "-c",
            "write -q -P 7 30M 64k",
        ])
        .arg(bench.path("image"))
        .status()
        .unwrap();
    assert!(done.success());
    bench.convert(&bench.path("image"), ImageFormat::Vmdk).unwrap();
    bench.same("vmdk", "image");
}

#[test]
fn a_stream_with_its_directory_at_the_end_is_read_as_qemu_reads_it() {
    let bench = Bench::new();
    let disk = fs::read(bench.source()).unwrap();
    let image = stream_optimized(&disk);
    fs::write(bench.path("image"), &image).unwrap();
    let converted = bench.convert(&bench.path("image"), ImageFormat::Vmdk).unwrap();
    assert_eq!(converted.virtual_size, disk.len() as u64);
    bench.same("vmdk", "image");
    bench.same("raw", "source.raw");

    let end = image.len();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut image = image.clone();
        change(&mut image);
        bench.hostile(&image, ImageFormat::Vmdk)
    };
    for (what, change) in [
        (
            "cut off",
            &(|b: &mut Vec<u8>| b.truncate(end - 512)) as &dyn Fn(&mut Vec<u8>),
        ),
        ("something follows", &|b| b.extend_from_slice(&[0; 512])),
        ("no footer marker", &|b| b[end - 1536 + 12] = 2),
        ("no end of the stream", &|b| b[end - 512 + 12] = 1),
        ("no footer", &|b| b[end - 1024] = b'k'),
        ("another compression in the footer", &|b| b[end - 1024 + 77] = 2),
        ("another capacity", &|b| b[end - 1024 + 12] ^= 1),
        ("the footer's directory is at the end, too", &|b| {
            put(b, end - 1024 + 56, &[0xff; 8])
        }),
        ("a header alone", &|b| b.truncate(1024)),
        // The first grain is at sector 128.
        ("a marker of another grain", &|b| b[128 * 512] ^= 128),
        ("a grain of no bytes", &|b| put(b, 128 * 512 + 8, &[0; 4])),
        ("a grain of 4 GiB", &|b| put(b, 128 * 512 + 8, &[0xff; 4])),
        ("a grain that is no zlib stream", &|b| {
            put(b, 128 * 512 + 12, b"\xff\xff")
        }),
        ("a grain with another checksum", &|b| {
            let bytes = u32::from_le_bytes(b[128 * 512 + 8..128 * 512 + 12].try_into().unwrap());
            b[128 * 512 + 12 + bytes as usize - 1] ^= 1;
        }),
    ] {
        assert_damaged(changed(change), what);
    }
    let result = changed(&|b| {
        b[77] = 2;
        b[end - 1024 + 77] = 2;
    });
    assert_unsupported(result, "another compression");
    let result = changed(&|b| {
        b[8 + 2] = 1;
        b[end - 1024 + 8 + 2] = 1;
    });
    assert_unsupported(result, "no markers");
}

#[test]
fn other_files_are_out_of_reach() {
    let bench = Bench::new();
    bench.source();
    for kind in ["monolithicFlat", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse"] {
        let options = format!("subformat={kind}");
        bench.qemu_img(&[
            "convert",
            "-q",
            "-O",
            "vmdk",
            "-o",
            &options,
            "source.raw",
            "disk.vmdk",
        ]);
        let refused = bench.convert(&bench.path("disk.vmdk"), ImageFormat::Vmdk);
        assert_reference(refused, kind);
        if kind == "twoGbMaxExtentSparse" {
            // Nor is such an extent a disk.
            let refused = bench.convert(&bench.path("disk-s001.vmdk"), ImageFormat::Vmdk);
            assert_reference(refused, "an extent");
        }
    }
    bench.qemu_img(&["convert", "-q", "-O", "vmdk", "source.raw", "base.vmdk"]);
    bench.qemu_img(&[
        "create",
        "-q",
        "-f",
        "vmdk",
        "-b",
        "base.vmdk",
        "-F",
        "vmdk",
        "child.vmdk",
    ]);
    let refused = bench.convert(&bench.path("child.vmdk"), ImageFormat::Vmdk);
    assert_reference(refused, "a child");

    // A descriptor inside of a sparse extent that names a file of the host's, with and without a capacity.
    for capacity in [0, 64u64] {
        let mut bytes = small();
        put(&mut bytes, 12, &capacity.to_le_bytes());
        let text = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
                    RW 64 FLAT \"/etc/shadow\" 0\n\0";
        put(&mut bytes, 512, text.as_bytes());
        assert_reference(bench.hostile(&bytes, ImageFormat::Vmdk), "an embedded descriptor");
    }
}

/// A disk of 64 sectors in grains of 8: header, descriptor in sectors 1 to 4, directory in 5, table in 6 to 9, the second grain, of
/// sevens, in 16 to 23, and as much behind it.
fn small() -> Vec<u8> {
    let mut bytes = vec![0; 32 * 512];
    put(&mut bytes, 0, b"KDMV\x01\0\0\0\x01");
    for (at, number) in [(12, 64u64), (20, 8), (28, 1), (36, 4), (56, 5), (64, 16)] {
        put(&mut bytes, at, &number.to_le_bytes());
    }
    put(&mut bytes, 44, &512u32.to_le_bytes());
    put(&mut bytes, 73, b"\n \r\n");
    let text = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\n\
                RW 64 SPARSE \"x\"\n";
    put(&mut bytes, 512, text.as_bytes());
    bytes[DIRECTORY] = 6;
    bytes[TABLE + 4] = 16;
    bytes[16 * 512..24 * 512].fill(7);
    bytes
}

const DIRECTORY: usize = 5 * 512;
const TABLE: usize = 6 * 512;

#[test]
fn damage_is_named() {
    let bench = Bench::new();
    let changed = |at: usize, value: &[u8]| {
        let mut bytes = small();
        put(&mut bytes, at, value);
        bench.hostile(&bytes, ImageFormat::Vmdk)
    };
    let whole = changed(0, b"").unwrap();
    assert_eq!((whole.virtual_size, whole.allocated), (64 * 512, 64 << 10));
    let mut expected = vec![0; 64 * 512];
    expected[8 * 512..16 * 512].fill(7);
    assert_eq!(fs::read(bench.path("output.raw")).unwrap(), expected);
    bench.same("vmdk", "hostile");

    for (what, at, value) in [
        ("line ends", 75, &b"\n"[..]),
        ("grains of no sectors", 20, &[0; 8]),
        ("grains of 7 sectors", 20, &[7]),
        ("grains of 4 sectors", 20, &[4]),
        ("grains of 16 MiB", 20, &[0, 128]),
        ("grains of everything", 20, &[0xff; 8]),
        ("tables of no entries", 44, &[0; 4]),
        ("tables of 2^32 entries", 44, &[0xff; 4]),
        ("directory beyond the file", 56, &[33]),
        (
            "directory beyond the address space",
            56,
            &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        ),
        ("descriptor beyond the file", 28, &[30]),
        ("descriptor beyond the address space", 28, &[0xff; 8]),
        ("descriptor without an end", 36, &[0xff; 8]),
        ("descriptor without words", 512, b"\n\n\0"),
        ("table beyond the file", DIRECTORY, &[29]),
        ("table far beyond the file", DIRECTORY, &[0xff; 4]),
        ("grain beyond the file", TABLE + 8, &[25]),
        ("grain far beyond the file", TABLE + 8, &[0xff; 4]),
        ("grain in the header", TABLE + 8, &[1]),
    ] {
        assert_damaged(changed(at, value), what);
    }
    for (what, at, value) in [
        ("version 0", 4, &[0][..]),
        ("version 4", 4, &[4]),
        ("compression without markers", 8, &[1, 0, 1]),
        ("ESX", 0, b"COWD"),
    ] {
        let mut bytes = small();
        bytes[77] = 1;
        put(&mut bytes, at, value);
        assert_unsupported(bench.hostile(&bytes, ImageFormat::Vmdk), what);
    }
    assert_reference(changed(28, &[0]), "no descriptor");
    assert_reference(changed(512, &[0]), "an empty descriptor");
    assert!(matches!(changed(12, &[0; 8]), Err(ConvertError::Empty)));
    for length in [1, 3, 4, 5, 79, 511, 512, 1000] {
        let result = bench.hostile(&small()[..length], ImageFormat::Vmdk);
        assert!(matches!(
            result,
            Err(ConvertError::Damaged(_) | ConvertError::Mismatch { .. })
        ));
    }
}

#[test]
fn bombs_do_not_go_off() {
    let bench = Bench::new();
    let mut bytes = small();
    put(&mut bytes, 12, &(1u64 << 40).to_le_bytes());
    let huge = bench.hostile(&bytes, ImageFormat::Vmdk);
    assert!(matches!(huge, Err(ConvertError::TooLarge { .. })), "{huge:?}");

    // Every entry of a table names the same grain.
    put(&mut bytes, 12, &(512u64 * 8).to_le_bytes());
    for entry in bytes[TABLE..TABLE + 2048].chunks_exact_mut(4) {
        entry.copy_from_slice(&16u32.to_le_bytes());
    }
    assert_damaged(
        bench.hostile(&bytes, ImageFormat::Vmdk),
        "one grain again and again",
    );
    let stored = fs::metadata(bench.path("output.raw")).unwrap().blocks() * 512;
    assert!(stored <= 64 << 10, "{stored}");

    // Every entry of a directory names the same table, which is empty.
    let mut bytes = small();
    bytes.resize(64 * 512, 0);
    put(&mut bytes, 12, &(128u64 * 512 * 8).to_le_bytes());
    put(&mut bytes, TABLE, &[0; 16]);
    for entry in bytes[DIRECTORY..DIRECTORY + 512].chunks_exact_mut(4) {
        entry.copy_from_slice(&6u32.to_le_bytes());
    }
    assert_damaged(
        bench.hostile(&bytes, ImageFormat::Vmdk),
        "one table again and again",
    );

    // Grains that are all packed into one of a few bytes.
    let mut disk = vec![0; 512 * 128 * 512];
    disk[..128 * 512].fill(1);
    let mut image = stream_optimized(&disk);
    let first = image.len() - 1536 - 1024 - 2048;
    for entry in image[first..first + 2048].chunks_exact_mut(4) {
        entry.copy_from_slice(&128u32.to_le_bytes());
    }
    assert_damaged(
        bench.hostile(&image, ImageFormat::Vmdk),
        "one packed grain again and again",
    );

    // A directory of 16 MiB, none of which is there, takes a while and no memory.
    let spec = ConvertSpec {
        format: ImageFormat::Vmdk,
        max_virtual_size: 1 << 50,
        max_seconds: 60,
    };
    let mut bytes = small();
    put(&mut bytes, 12, &((4u64 << 20) * 512 * 8).to_le_bytes());
    put(&mut bytes, 56, &16u64.to_le_bytes());
    put(&mut bytes, 16 * 512, &[0; 8 * 512]);
    write_sparse(&bench.path("hostile"), &bytes);
    let file = OpenOptions::new()
        .write(true)
        .open(bench.path("hostile"))
        .unwrap();
    file.set_len((16 << 20) + 32 * 512).unwrap();
    let before = peak_memory();
    let converted = bench.convert_with(&spec, &bench.path("hostile")).unwrap();
    assert_eq!((converted.virtual_size, converted.allocated), (1 << 43, 0));
    assert!(peak_memory() - before < 8 << 20, "{}", peak_memory() - before);
}
