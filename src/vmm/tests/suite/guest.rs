//! The suite's guest, compiled by the C compiler that links this test, too. Needs nothing else of the test, so that a bench
//! can use this file.

use std::path::Path;
use std::process::Command;

/// Where its sources are, from this package's folder on.
const SOURCES: &str = "tests/guests/suite";
const FILES: [&str; 6] = ["boot.S", "base.c", "virtio.c", "main.c", "bench.c", "hostile.c"];

/// Compile the guest of the package in this folder: an ELF with a PVH entry. What it does is told in `main.c`.
///
/// # Panics
/// If it cannot be compiled.
pub fn build(package: &Path, elf: &Path) {
    let output = Command::new("cc")
        .args(["-ffreestanding", "-nostdlib", "-static", "-no-pie", "-fno-pic"])
        // Nothing that an emulator lacks, or that an interrupt would have to save.
        .args(["-mgeneral-regs-only", "-mno-red-zone", "-fcf-protection=none"])
        .args(["-fno-stack-protector", "-fno-asynchronous-unwind-tables"])
        .args(["-O1", "-Wall", "-Wextra"])
        .args([
            "-Wl,-N,-Ttext=0x100000,--build-id=none",
            "-Wl,-z,noexecstack",
            "-o",
        ])
        .arg(elf)
        .args(FILES.map(|name| package.join(SOURCES).join(name)))
        .output()
        .expect("there is no C compiler");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
