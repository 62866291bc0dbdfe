//! Image conversion: real files made by `qemu-img`, and hostile ones made by hand.

use std::{
    fs::{self, File, OpenOptions},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::Command,
};

use disk::convert::{ConvertError, Shown, run};
use model::disk::{ConvertSpec, Converted, ImageFormat};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A disk of 40 MiB and a bit: random here, repetitive there, mostly nothing.
    fn source(&self) -> PathBuf {
        let path = self.path("source.raw");
        let file = File::create(&path).unwrap();
        file.set_len(40 * MIB + 1536).unwrap();
        let noise: Vec<u8> = (0..3 * MIB)
            .scan(0x9e37_79b9_7f4a_7c15u64, |state, _| {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                Some(*state as u8)
            })
            .collect();
        file.write_all_at(&noise, 5 * MIB + 512).unwrap();
        file.write_all_at(&vec![b'a'; 2 << 20], 20 * MIB).unwrap();
        file.write_all_at(&[0x55, 0xaa], 510).unwrap();
        file.write_all_at(b"the end", 40 * MIB + 1500).unwrap();
        path
    }

    fn qemu_img(&self, args: &[&str]) {
        let output = Command::new("qemu-img")
            .current_dir(self.dir.path())
            .args(args)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "qemu-img {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn convert(&self, path: &Path, format: ImageFormat) -> Result<Converted, ConvertError> {
        let spec = ConvertSpec {
            format,
            max_virtual_size: 1 << 30,
            max_seconds: 60,
        };
        self.convert_with(&spec, path)
    }

    fn convert_with(&self, spec: &ConvertSpec, path: &Path) -> Result<Converted, ConvertError> {
        run(spec, File::open(path).unwrap().into(), self.output())
    }

    fn output(&self) -> OwnedFd {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        options.open(self.path("output.raw")).unwrap().into()
    }

    /// Writes a file, converts it, and returns what became of it.
    fn hostile(&self, bytes: &[u8], format: ImageFormat) -> Result<Converted, ConvertError> {
        let path = self.path("hostile");
        fs::write(&path, bytes).unwrap();
        self.convert(&path, format)
    }
}

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

#[test]
fn the_bytes_must_show_what_the_sender_says() {
    let bench = Bench::new();
    bench.source();
    for format in ["qcow2", "vmdk", "vhdx", "vpc", "vdi", "qed", "luks"] {
        let mut args = vec!["create", "-q", "-f", format];
        if format == "luks" {
            args.extend([
                "--object",
                "secret,id=s,data=x",
                "-o",
                "key-secret=s,iter-time=10",
            ]);
        }
        args.extend(["disguised", "8M"]);
        bench.qemu_img(&args);
        let refused = bench.convert(&bench.path("disguised"), ImageFormat::Raw);
        assert!(
            matches!(refused, Err(ConvertError::Mismatch { named: "raw", .. })),
            "{format}: {refused:?}"
        );
        assert!(refused.unwrap_err().is_senders_fault());
        fs::remove_file(bench.path("disguised")).unwrap();
    }
    let mut iso = vec![0; 0x9000];
    iso[0x8001..0x8006].copy_from_slice(b"CD001");
    assert_eq!(
        bench.hostile(&iso, ImageFormat::Iso).unwrap().virtual_size,
        0x9000
    );
    assert!(matches!(
        bench.hostile(&iso, ImageFormat::Raw),
        Err(ConvertError::Mismatch {
            shown: Shown::Iso,
            ..
        })
    ));
    iso[..4].copy_from_slice(b"QFI\xfb");
    for format in [ImageFormat::Iso, ImageFormat::Raw, ImageFormat::Qcow2] {
        let twofold = bench.hostile(&iso, format);
        assert!(
            matches!(
                twofold,
                Err(ConvertError::Mismatch {
                    shown: Shown::Foreign(_),
                    ..
                })
            ),
            "{twofold:?}"
        );
    }
    assert!(matches!(
        bench.hostile(&[1; 4096], ImageFormat::Qcow2),
        Err(ConvertError::Mismatch { .. })
    ));
    assert!(matches!(
        bench.hostile(&[], ImageFormat::Raw),
        Err(ConvertError::Empty)
    ));
    assert_eq!(
        bench.hostile(&[1; 700], ImageFormat::Raw).unwrap().virtual_size,
        1024
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

#[test]
fn a_full_disk_is_told_apart_from_a_bad_image() {
    let bench = Bench::new();
    fs::write(bench.path("big"), vec![1; 4 << 20]).unwrap();
    let spec = ConvertSpec {
        format: ImageFormat::Raw,
        max_virtual_size: 1 << 30,
        max_seconds: 60,
    };
    let dir = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| {
        assert!(
            Command::new(args[0])
                .args(&args[1..])
                .arg(dir.path())
                .status()
                .unwrap()
                .success()
        )
    };
    mount(&["mount", "-t", "tmpfs", "-o", "size=1m", "none"]);
    let output = File::create_new(dir.path().join("output")).unwrap();
    let result = run(
        &spec,
        File::open(bench.path("big")).unwrap().into(),
        output.into(),
    );
    mount(&["umount"]);
    assert!(matches!(result, Err(ConvertError::Full)), "{result:?}");
    assert!(!result.unwrap_err().is_senders_fault());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// A real image with bytes changed at random is converted or refused; nothing panics, hangs or swells.
    #[test]
    fn mutations_are_harmless(
        compressed in any::<bool>(),
        changes in proptest::collection::vec((prop_oneof![0usize..120, 0usize..0x60000], any::<u8>()), 1..12),
        cut in prop_oneof![Just(usize::MAX), 0usize..0x60000],
    ) {
        let mut bytes = sample(compressed).to_vec();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(cut.max(1));
        let bench = Bench::new();
        let spec = ConvertSpec { format: ImageFormat::Qcow2, max_virtual_size: 64 << 20, max_seconds: 20 };
        fs::write(bench.path("hostile"), &bytes).unwrap();
        let result = bench.convert_with(&spec, &bench.path("hostile"));
        prop_assert!(!matches!(result, Err(ConvertError::TooSlow(_) | ConvertError::Io(_))), "{:?}", result);
        let stored = fs::metadata(bench.path("output.raw")).unwrap().blocks() * 512;
        prop_assert!(stored <= 64 << 20);
    }
}

/// A small image by `qemu-img`, made once.
fn sample(compressed: bool) -> &'static [u8] {
    static SAMPLES: [std::sync::OnceLock<Vec<u8>>; 2] = [const { std::sync::OnceLock::new() }; 2];
    SAMPLES[usize::from(compressed)].get_or_init(|| {
        let bench = Bench::new();
        let text = "all work and no play ".repeat(12_000);
        fs::write(bench.path("text"), text).unwrap();
        let mut args = vec![
            "convert",
            "-q",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            "cluster_size=4k",
            "text",
            "image",
        ];
        if compressed {
            args.insert(1, "-c");
        }
        bench.qemu_img(&args);
        fs::read(bench.path("image")).unwrap()
    })
}
