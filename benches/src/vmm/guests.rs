//! What runs on the monitors: made by the C compiler, and by ourselves.

use std::fs;
use std::path::{Path, PathBuf};

use allod_tests::paths;
use allod_tests::run::run;
use anyhow::{Context, Result};

#[path = "../../../src/vmm/tests/suite/guest.rs"]
mod suite;

/// Where the monitor's own tests have their guests.
fn sources() -> PathBuf {
    paths::root().join("src/vmm")
}

fn compile(arguments: &[&str], source: &Path, out: &Path) -> Result<()> {
    let own = [out, source].map(|path| path.to_str().context("a path is not UTF-8"));
    let [out, source] = own;
    let common = ["-nostdlib", "-static", "-no-pie"];
    run("cc", &[&common[..], arguments, &["-o", out?, source?]].concat())
}

/// The guest that says one line at once: an ELF with a PVH entry.
pub fn first(folder: &Path) -> Result<PathBuf> {
    let elf = folder.join("first");
    let source = paths::root().join("benches/src/vmm/first.S");
    compile(&["-Wl,-N,-Ttext=0x100000,--build-id=none"], &source, &elf)?;
    Ok(elf)
}

/// The guest that asks a disk by itself, see `src/vmm/tests/guests/suite`.
pub fn driver(folder: &Path) -> PathBuf {
    let elf = folder.join("suite");
    suite::build(&sources(), &elf);
    elf
}

/// What Linux's first process says.
pub const HELLO: &str = "HELLO-FROM-GUEST";

/// An initial RAM disk whose first process says [`HELLO`] and switches off: an archive in cpio's "new ASCII" format
/// (`Documentation/driver-api/early-userspace/buffer-format.rst`).
pub fn initramfs(folder: &Path) -> Result<PathBuf> {
    let (program, archive) = (folder.join("init"), folder.join("initramfs"));
    compile(
        &["-s", "-Wl,-N,--build-id=none"],
        &sources().join("tests/guests/init.S"),
        &program,
    )?;
    let entries = [
        ("dev", 0o040_755, (0, 0), Vec::new()),
        ("dev/console", 0o020_600, (5, 1), Vec::new()),
        ("init", 0o100_755, (0, 0), fs::read(&program)?),
        ("TRAILER!!!", 0, (0, 0), Vec::new()),
    ];
    let mut bytes = Vec::new();
    for (name, mode, (major, minor), content) in entries {
        let words = [
            0,
            mode,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            major,
            minor,
            name.len() + 1,
            0,
        ];
        bytes.extend(b"070701");
        for word in words {
            bytes.extend(format!("{word:08X}").into_bytes());
        }
        for part in [[name.as_bytes(), b"\0"].concat(), content] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    fs::write(&archive, bytes)?;
    Ok(archive)
}
