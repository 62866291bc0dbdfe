//! Test guests: assembled by the C compiler that links this test, too.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

/// The folder with the assembled guests.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/pc.S");
            let elf = folder.path().join("pc");
            run(Command::new("cc")
                .args([
                    "-nostdlib",
                    "-static",
                    "-no-pie",
                    "-Wl,-N,-Ttext=0x100000,--build-id=none",
                    "-o",
                ])
                .args([&elf, &source]));
            run(Command::new("objcopy")
                .args(["-O", "binary", "-j", ".text"])
                .args([&elf, &folder.path().join("pc.bin")]));
            folder
        })
        .path()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// An initial RAM disk with a console, the small first process, and modules that it loads in this order.
pub fn initramfs(modules: &[PathBuf]) -> File {
    archive("init.S", ("dev/hwrng", (10, 183)), modules)
}

/// One with the first process that exchanges packets.
pub fn network() -> File {
    archive("net.c", ("dev/null", (1, 3)), &[])
}

/// One with the first process that tries devices.
pub fn devices() -> File {
    archive("devices.c", ("dev/hvc0", (229, 0)), &[])
}

/// An initial RAM disk with a first process of this source, a console, a device, and modules.
fn archive(source: &str, (device, number): (&str, (usize, usize)), modules: &[PathBuf]) -> File {
    let program = folder().join(format!("{source}.elf"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/guests")
        .join(source);
    run(Command::new("cc")
        .args(["-nostdlib", "-static", "-no-pie", "-s", "-O1", "-ffreestanding"])
        .args([
            "-fno-stack-protector",
            "-mgeneral-regs-only",
            "-Wl,-N,--build-id=none",
            "-o",
        ])
        .args([&program, &path]));
    let mut archive = Vec::new();
    let file = |name: String, path: &Path| (name, 0o100_755, (0, 0), std::fs::read(path).unwrap());
    let node = |name: &str, mode, device| (name.to_owned(), mode, device, Vec::new());
    let mut entries = vec![
        node("dev", 0o040_755, (0, 0)),
        node("dev/console", 0o020_600, (5, 1)),
        node(device, 0o020_600, number),
        file("init".into(), &program),
    ];
    for (letter, module) in ('a'..='z').zip(modules) {
        entries.push(file(letter.into(), module));
    }
    entries.push(node("TRAILER!!!", 0, (0, 0)));
    // (name, mode, device, content), in cpio's "new ASCII" format (`Documentation/driver-api/early-userspace/buffer-format.rst`).
    for (name, mode, (major, minor), content) in entries {
        let size = content.len();
        let words = [0, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name.len() + 1, 0];
        archive.extend(b"070701");
        for word in words {
            archive.extend(format!("{word:08X}").into_bytes());
        }
        for part in [[name.as_bytes(), b"\0"].concat(), content] {
            archive.extend(part);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
    }
    let path = folder().join(format!("{source}.cpio"));
    std::fs::write(&path, archive).unwrap();
    File::open(path).unwrap()
}

/// A boot sector.
pub fn sector() -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/sector.S");
    let [elf, binary] = ["sector", "sector.bin"].map(|name| folder().join(name));
    run(Command::new("cc")
        .args([
            "-m32",
            "-nostdlib",
            "-static",
            "-no-pie",
            "-Wl,-N,-Ttext=0x7c00,--build-id=none",
            "-o",
        ])
        .args([&elf, &source]));
    run(Command::new("objcopy")
        .args(["-O", "binary", "-j", ".text"])
        .args([&elf, &binary]));
    std::fs::read(binary).unwrap()
}

/// The guest as an ELF with a PVH entry.
pub fn elf() -> File {
    File::open(folder().join("pc")).unwrap()
}

/// The guest as a bzImage.
pub fn bzimage() -> File {
    let code = std::fs::read(folder().join("pc.bin")).unwrap();
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x234, &[1]);
    put(0x238, &255u32.to_le_bytes());
    put(0x258, &0x10_0000u64.to_le_bytes());
    put(0x260, &0x1_0000u32.to_le_bytes());
    image.extend(code);
    let path: PathBuf = folder().join("bzImage");
    std::fs::write(&path, image).unwrap();
    File::open(path).unwrap()
}
