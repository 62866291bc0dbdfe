//! Kernels, as tenants bring them.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use nix::sys::memfd::{MFdFlags, memfd_create};
use virtio::fuzzing::Input;

use crate::kvm::boot::{Kernel, load};
use crate::kvm::memory::Ram;

/// Memory of the machine in MiB.
const MEMORY: u64 = 8;

fn file(bytes: &[u8]) -> Option<File> {
    let file: OwnedFd = memfd_create(c"kernel", MFdFlags::MFD_CLOEXEC).ok()?;
    let mut file = File::from(file);
    file.write_all(bytes).ok()?;
    Some(file)
}

fn boot(input: &mut Input<'_>, magic: &[(usize, &[u8])]) -> Option<()> {
    let flags = input.u8();
    let mut image = input.rest().to_vec();
    for (at, bytes) in magic {
        if image.len() < at + bytes.len() {
            image.resize(at + bytes.len(), 0);
        }
        image[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    let kernel = Kernel {
        image: file(&image)?,
        initrd: if flags & 1 != 0 {
            Some(file(&vec![0x33; usize::from(flags) * 256])?)
        } else {
            None
        },
        command_line: "x".repeat(usize::from(flags >> 4)),
    };
    let ram = Ram::new(MEMORY, false).ok()?;
    // Refused or loaded: both are well.
    let _ = load(&ram, &kernel, (flags & 2 != 0).then_some(0xe_0000));
    Some(())
}

/// An ELF. The first byte chooses what comes with it.
pub fn elf(data: &[u8]) {
    boot(&mut Input::new(data), &[(0, b"\x7fELF")]);
}

/// A bzImage. The first byte chooses what comes with it.
pub fn bzimage(data: &[u8]) {
    boot(&mut Input::new(data), &[(0x202, b"HdrS")]);
}
