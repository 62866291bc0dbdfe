//! What the fuzz target `image` begins with.

use super::{stream::stream_optimized, *};

/// As `disk::fuzzing::image` reads it: the format's number, and pieces that are not zeros.
fn pack(format: u8, file: &[u8]) -> Vec<u8> {
    // Checksums are made right.
    let mut packed = vec![format | 8];
    let mut piece = |place: usize, bytes: &[u8]| {
        packed.extend_from_slice(&u32::try_from(place).unwrap().to_le_bytes());
        packed.extend_from_slice(&u16::try_from(bytes.len()).unwrap().to_le_bytes());
        packed.extend_from_slice(bytes);
    };
    let mut at = 0;
    while at < file.len() {
        if file[at] == 0 {
            at += 1;
            continue;
        }
        // Up to 16 zeros on the way are cheaper than another piece.
        let zeros = |from: &usize| file[*from..].iter().take(16).all(|byte| *byte == 0);
        let end = (at..file.len())
            .find(zeros)
            .unwrap_or(file.len())
            .min(at + 60_000);
        piece(at, &file[at..end]);
        at = end;
    }
    piece(file.len(), &[]);
    packed
}

#[test]
#[ignore = "it writes fuzz/corpus/image: run it when the way in which inputs are read has changed"]
fn make_the_corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/image");
    fs::create_dir_all(&folder).unwrap();
    let bench = Bench::new();
    let mut disk = vec![0; 400 << 10];
    for (place, text) in [
        (0, "first"),
        (70_000, "second, second, second"),
        (300_001, "third"),
        (409_590, "fourth"),
    ] {
        put(&mut disk, place, text.as_bytes());
    }
    fs::write(bench.path("disk"), &disk).unwrap();
    let save = |name: &str, format: u8, file: &[u8]| {
        fs::write(folder.join(name), pack(format, file)).unwrap();
    };
    save("raw", 0, &disk);
    let mut iso = disk.clone();
    put(&mut iso, 0x8001, b"CD001");
    save("iso", 2, &iso);
    save("vmdk-stream-footer", 3, &stream_optimized(&disk));
    let variants: [(&str, u8, &str, &[&str]); 10] = [
        ("qcow2", 1, "qcow2", &["-o", "cluster_size=4k"]),
        ("qcow2-deflate", 1, "qcow2", &["-c", "-o", "cluster_size=4k"]),
        (
            "qcow2-zstd",
            1,
            "qcow2",
            &["-c", "-o", "cluster_size=4k,compression_type=zstd"],
        ),
        (
            "vmdk-sparse",
            3,
            "vmdk",
            &["-o", "subformat=monolithicSparse,zeroed_grain=on"],
        ),
        ("vmdk-stream", 3, "vmdk", &["-o", "subformat=streamOptimized"]),
        (
            "vhd-dynamic",
            4,
            "vpc",
            &["-o", "subformat=dynamic,force_size=on"],
        ),
        ("vhd-fixed", 4, "vpc", &["-o", "subformat=fixed"]),
        (
            "vhdx-dynamic",
            5,
            "vhdx",
            &["-o", "subformat=dynamic,log_size=1M,block_size=1M"],
        ),
        (
            "vhdx-large-blocks",
            5,
            "vhdx",
            &["-o", "subformat=dynamic,log_size=1M,block_size=2M"],
        ),
        (
            "vhdx-fixed",
            5,
            "vhdx",
            &["-o", "subformat=fixed,log_size=1M,block_size=1M"],
        ),
    ];
    for (name, format, driver, options) in variants {
        let args = [
            &["convert", "-q", "-f", "raw", "-O", driver],
            options,
            &["disk", "image"],
        ];
        bench.qemu_img(&args.concat());
        save(name, format, &fs::read(bench.path("image")).unwrap());
    }
}
