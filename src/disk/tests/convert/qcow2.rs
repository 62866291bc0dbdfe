//! qcow2.

use super::*;

#[test]
fn everything_that_qemu_img_makes_comes_out_as_it_went_in() {
    let bench = Bench::new();
    let source = bench.source();
    let variants: [&[&str]; 9] = [
        &["-o", "compat=0.10"],
        &["-o", "compat=1.1"],
        &["-o", "compat=1.1,lazy_refcounts=on"],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=2M"],
        &["-c"],
        &["-c", "-o", "compat=0.10"],
        &["-c", "-o", "compression_type=zstd"],
        &["-c", "-o", "cluster_size=4k,refcount_bits=1"],
    ];
    for options in variants {
        let args = [
            &["convert", "-q", "-f", "raw", "-O", "qcow2"],
            options,
            &["source.raw", "image.qcow2"],
        ]
        .concat();
        bench.qemu_img(&args);
        let converted = bench
            .convert(&bench.path("image.qcow2"), ImageFormat::Qcow2)
            .unwrap();
        assert_eq!(
            (converted.format, converted.virtual_size),
            (ImageFormat::Qcow2, 40 * MIB + 1536),
            "{options:?}"
        );
        bench.qemu_img(&[
            "compare",
            "-q",
            "-f",
            "raw",
            "-F",
            "raw",
            "source.raw",
            "output.raw",
        ]);
        let stored = fs::metadata(bench.path("output.raw")).unwrap().blocks() * 512;
        assert!(stored < 7 * MIB, "{options:?}: sparse, but {stored} bytes");
        assert!(
            (5 * MIB..6 * MIB).contains(&converted.allocated),
            "{options:?}: {}",
            converted.allocated
        );
    }
    let converted = bench.convert(&source, ImageFormat::Raw).unwrap();
    assert_eq!(converted.virtual_size, 40 * MIB + 1536);
    bench.qemu_img(&[
        "compare",
        "-q",
        "-f",
        "raw",
        "-F",
        "raw",
        "source.raw",
        "output.raw",
    ]);
}

#[test]
fn snapshots_inside_an_image_and_zeroed_clusters_are_read_as_qemu_reads_them() {
    let bench = Bench::new();
    bench.source();
    bench.qemu_img(&["convert", "-q", "-O", "qcow2", "source.raw", "image.qcow2"]);
    bench.qemu_img(&["snapshot", "-c", "before", "image.qcow2"]);
    let write = "write -q -P 7 5M 1M; write -q -z 6M 1M; write -q -P 9 30M 64k; discard -q 20M 1M";
    let commands: Vec<_> = write.split("; ").flat_map(|command| ["-c", command]).collect();
    let done = Command::new("qemu-io")
        .args(commands)
        .arg(bench.path("image.qcow2"))
        .status()
        .unwrap();
    assert!(done.success());
    bench
        .convert(&bench.path("image.qcow2"), ImageFormat::Qcow2)
        .unwrap();
    bench.qemu_img(&[
        "compare",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "image.qcow2",
        "output.raw",
    ]);
}

#[test]
fn other_files_are_out_of_reach() {
    let bench = Bench::new();
    bench.source();
    bench.qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "source.raw",
        "-F",
        "raw",
        "backed.qcow2",
    ]);
    let backed = bench.convert(&bench.path("backed.qcow2"), ImageFormat::Qcow2);
    assert!(
        matches!(backed, Err(ConvertError::Reference("a backing file"))),
        "{backed:?}"
    );
    bench.qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "data_file=data,data_file_raw=on",
        "outside.qcow2",
        "1M",
    ]);
    let outside = bench.convert(&bench.path("outside.qcow2"), ImageFormat::Qcow2);
    assert!(
        matches!(outside, Err(ConvertError::Reference("an external data file"))),
        "{outside:?}"
    );
}

/// A header of version 3 with clusters of 64 KiB, L1 in the second cluster.
fn header(size: u64, l1_entries: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4 << 16];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(20, &16u32.to_be_bytes());
    put(24, &size.to_be_bytes());
    put(36, &l1_entries.to_be_bytes());
    put(40, &(1u64 << 16).to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    bytes
}

#[test]
fn bombs_do_not_go_off() {
    let bench = Bench::new();
    let huge = bench.hostile(&header(1 << 60, 1), ImageFormat::Qcow2);
    assert!(matches!(huge, Err(ConvertError::TooLarge { .. })), "{huge:?}");
    let raw = ConvertSpec {
        format: ImageFormat::Raw,
        max_virtual_size: MIB,
        max_seconds: 60,
    };
    fs::write(bench.path("big"), vec![1; MIB as usize + 1]).unwrap();
    assert!(matches!(
        bench.convert_with(&raw, &bench.path("big")),
        Err(ConvertError::TooLarge { .. })
    ));

    // A gigabyte of data out of four clusters: every entry of one table names the same cluster.
    let mut bytes = header(1 << 29, 1);
    bytes[1 << 16..(1 << 16) + 8].copy_from_slice(&(2u64 << 16).to_be_bytes());
    for entry in bytes[2 << 16..3 << 16].chunks_exact_mut(8) {
        entry.copy_from_slice(&(3u64 << 16).to_be_bytes());
    }
    bytes[3 << 16..].fill(0x77);
    let shared = bench.hostile(&bytes, ImageFormat::Qcow2);
    assert!(matches!(shared, Err(ConvertError::Damaged(_))), "{shared:?}");
    let stored = fs::metadata(bench.path("output.raw")).unwrap().blocks() * 512;
    assert!(stored <= bytes.len() as u64, "{stored}");

    // The same with every first-level entry naming one table.
    let mut bytes = header(1 << 30, 2);
    for entry in bytes[1 << 16..(1 << 16) + 16].chunks_exact_mut(8) {
        entry.copy_from_slice(&(2u64 << 16).to_be_bytes());
    }
    bench.hostile(&bytes, ImageFormat::Qcow2).unwrap();
    bytes.truncate(3 << 16);
    bytes[36..40].copy_from_slice(&8192u32.to_be_bytes());
    for entry in bytes[1 << 16..2 << 16].chunks_exact_mut(8) {
        entry.copy_from_slice(&(2u64 << 16).to_be_bytes());
    }
    let spec = ConvertSpec {
        format: ImageFormat::Qcow2,
        max_virtual_size: 1 << 42,
        max_seconds: 60,
    };
    bytes[24..32].copy_from_slice(&(1u64 << 42).to_be_bytes());
    fs::write(bench.path("hostile"), &bytes).unwrap();
    let shared = bench.convert_with(&spec, &bench.path("hostile"));
    assert!(matches!(shared, Err(ConvertError::Damaged(_))), "{shared:?}");

    let never = ConvertSpec {
        format: ImageFormat::Raw,
        max_virtual_size: 1 << 30,
        max_seconds: 0,
    };
    assert!(matches!(
        bench.convert_with(&never, &bench.path("big")),
        Err(ConvertError::TooSlow(0))
    ));
}

#[test]
fn damage_is_named() {
    let bench = Bench::new();
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = header(1 << 20, 1);
        bytes[1 << 16..(1 << 16) + 8].copy_from_slice(&(2u64 << 16).to_be_bytes());
        change(&mut bytes);
        bench.hostile(&bytes, ImageFormat::Qcow2)
    };
    damaged(&|_| {}).unwrap();
    let put = |at: usize, value: u64| {
        move |bytes: &mut Vec<u8>| bytes[at..at + 8].copy_from_slice(&value.to_be_bytes())
    };
    for (at, value) in [
        (40, u64::MAX),                   // table beyond the address space
        (40, 1 << 40),                    // table beyond the file
        (40, 513),                        // table out of line
        (1 << 16, 1 << 40),               // second-level table beyond the file
        (2 << 16, 1 << 40),               // cluster beyond the file
        (2 << 16, (3 << 16) + 512),       // cluster out of line
        (2 << 16, 2),                     // reserved bit
        (2 << 16, (1 << 62) | (1 << 40)), // compressed data beyond the file
        (2 << 16, (1 << 62) | (3 << 16)), // no compressed data
        (72, 2),                          // marked corrupt
        (32, 0),                          // no first-level entries
    ] {
        let result = damaged(&put(at, value));
        assert!(
            matches!(result, Err(ConvertError::Damaged(_))),
            "{at}: {value:x}: {result:?}"
        );
    }
    for (at, value) in [(72, 16), (72, 1 << 20), (32, 1 << 32), (72, 8)] {
        let result = damaged(&put(at, value));
        assert!(
            matches!(result, Err(ConvertError::Unsupported(_))),
            "{at}: {value:x}: {result:?}"
        );
    }
    assert!(matches!(
        damaged(&|b| b.truncate(60)),
        Err(ConvertError::Damaged(_))
    ));
    assert!(matches!(
        damaged(&|b| b[20..24].fill(0xff)),
        Err(ConvertError::Damaged(_))
    ));
}
