//! Image conversion: real files made by `qemu-img`, and hostile ones made by hand.

mod corpus;
mod mutations;
mod qcow2;
mod stream;
mod vhd;
mod vhdx;
mod vmdk;

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

const MIB: u64 = 1 << 20;
const ALL: [ImageFormat; 6] = [
    ImageFormat::Raw,
    ImageFormat::Qcow2,
    ImageFormat::Iso,
    ImageFormat::Vmdk,
    ImageFormat::Vhd,
    ImageFormat::Vhdx,
];

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

    /// The source as an image of `qemu-img`'s, converted: the same bytes, sparse, and how many there are.
    fn through(&self, driver: &str, options: &[&str], format: ImageFormat) -> u64 {
        let args = [
            &["convert", "-q", "-f", "raw", "-O", driver],
            options,
            &["source.raw", "image"],
        ];
        self.qemu_img(&args.concat());
        let converted = self
            .convert(&self.path("image"), format)
            .unwrap_or_else(|error| panic!("{driver} {options:?}: {error}"));
        assert_eq!(converted.format, format);
        self.same("raw", "source.raw");
        self.same(driver, "image");
        let written = fs::metadata(self.path("output.raw")).unwrap();
        assert_eq!(written.len(), converted.virtual_size);
        let stored = written.blocks() * 512;
        assert!(stored < 7 * MIB, "{options:?}: sparse, but {stored} bytes");
        assert!(
            (5 * MIB..6 * MIB).contains(&converted.allocated),
            "{options:?}: {}",
            converted.allocated
        );
        converted.virtual_size
    }

    /// The output has the bytes that QEMU's driver reads in this file.
    fn same(&self, driver: &str, image: &str) {
        self.qemu_img(&["compare", "-q", "-f", driver, "-F", "raw", image, "output.raw"]);
    }

    /// Writes a file, converts it, and returns what became of it.
    fn hostile(&self, bytes: &[u8], format: ImageFormat) -> Result<Converted, ConvertError> {
        let path = self.path("hostile");
        write_sparse(&path, bytes);
        self.convert(&path, format)
    }
}

/// Leaves out what is zero.
fn write_sparse(path: &Path, bytes: &[u8]) {
    let file = File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (page, chunk) in (0..).zip(bytes.chunks(4096)) {
        if chunk != &[0; 4096][..chunk.len()] {
            file.write_all_at(chunk, page * 4096).unwrap();
        }
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn assert_damaged(result: Result<Converted, ConvertError>, what: &str) {
    assert!(
        matches!(result, Err(ConvertError::Damaged(_))),
        "{what}: {result:?}"
    );
}

fn assert_reference(result: Result<Converted, ConvertError>, what: &str) {
    assert!(
        matches!(result, Err(ConvertError::Reference(_))),
        "{what}: {result:?}"
    );
    assert!(result.unwrap_err().is_senders_fault());
}

fn assert_unsupported(result: Result<Converted, ConvertError>, what: &str) {
    assert!(
        matches!(result, Err(ConvertError::Unsupported(_))),
        "{what}: {result:?}"
    );
}

/// The most memory that this process has had, in bytes.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
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
        let own = match format {
            "qcow2" => Some(ImageFormat::Qcow2),
            "vmdk" => Some(ImageFormat::Vmdk),
            "vhdx" => Some(ImageFormat::Vhdx),
            "vpc" => Some(ImageFormat::Vhd),
            _ => None,
        };
        for other in ALL.into_iter().filter(|other| Some(*other) != own) {
            let refused = bench.convert(&bench.path("disguised"), other);
            let mismatch = matches!(refused, Err(ConvertError::Mismatch { .. }));
            assert!(mismatch, "{format} as {other:?}: {refused:?}");
        }
        if let Some(own) = own {
            let converted = bench.convert(&bench.path("disguised"), own).unwrap();
            assert_eq!(converted.allocated, 0, "{format}");
        }
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
    // A fixed VHD's footer at the end of anything else, whatever it is called.
    let mut tail = vec![1; 8192];
    for end in [512, 511] {
        let mut bytes = tail.clone();
        put(&mut bytes, 8192 - end, b"conectix");
        let refused = bench.hostile(&bytes, ImageFormat::Raw);
        let vhd = matches!(
            refused,
            Err(ConvertError::Mismatch {
                shown: Shown::Vhd,
                ..
            })
        );
        assert!(vhd, "{refused:?}");
    }
    let at = iso.len() - 512;
    put(&mut iso, at, b"conectix");
    put(&mut tail, 0, b"KDMV");
    put(&mut tail, 8192 - 512, b"conectix");
    for bytes in [&iso, &tail] {
        for format in ALL {
            let twofold = bench.hostile(bytes, format);
            let shown = matches!(
                &twofold,
                Err(ConvertError::Mismatch {
                    shown: Shown::Foreign(_),
                    ..
                })
            );
            assert!(shown, "{format:?}: {twofold:?}");
        }
    }
    // A descriptor alone, with its usual first line or as QEMU knows it.
    for text in ["# Disk DescriptorFile\nversion=1\n", "# hello\n\nversion=1\n"] {
        let refused = bench.hostile(text.as_bytes(), ImageFormat::Raw);
        let vmdk = matches!(
            refused,
            Err(ConvertError::Mismatch {
                shown: Shown::Vmdk,
                ..
            })
        );
        assert!(vmdk, "{refused:?}");
    }
    put(&mut iso, at, &[0; 8]);
    iso[..4].copy_from_slice(b"QFI\xfb");
    for format in ALL {
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
