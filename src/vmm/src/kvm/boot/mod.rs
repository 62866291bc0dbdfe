//! Loading what the guest runs first.
//!
//! Kernels come from tenants: whatever a file says of itself is checked against its size and the guest's memory, and
//! loading reads no more bytes than a small multiple of the file's.

mod bzimage;
mod elf;
mod pvh;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::acpi;
use super::cpu::entry;
use super::firmware::{Firmware, Rom};
use super::layout::{COMMAND_LINE, COMMAND_LINE_MAX};
use super::memory::Ram;

/// What the machine boots.
#[derive(Debug)]
pub enum Boot {
    /// A kernel, at once.
    Kernel(Kernel),
    /// Firmware, which boots from a disk.
    Firmware(Firmware),
}

/// A kernel that the machine boots.
#[derive(Debug)]
pub struct Kernel {
    /// A bzImage, or an ELF with a PVH entry.
    pub image: File,
    /// The initial RAM disk.
    pub initrd: Option<File>,
    /// The command line.
    pub command_line: String,
}

/// Why a kernel is not started.
#[derive(Debug, Error)]
pub enum BootError {
    /// The file is none of the known kinds.
    #[error("the kernel is neither a bzImage nor an ELF with a PVH entry")]
    Kind,
    /// The file contradicts itself.
    #[error("the kernel's file is malformed: {0}")]
    Malformed(&'static str),
    /// The loader's answer.
    #[error("the kernel cannot be loaded: {0}")]
    Loader(#[from] linux_loader::loader::Error),
    /// The kernel, the initial RAM disk, or both.
    #[error("{what} of {bytes} bytes does not fit into the guest's memory")]
    Room {
        /// What.
        what: &'static str,
        /// How large it is.
        bytes: u64,
    },
    /// Too long, or with a zero byte in it.
    #[error("the kernel takes no command line of {0} bytes, or with a zero byte in it")]
    CommandLine(usize),
    /// Firmware of an impossible size, or of another than it had when the machine was made.
    #[error("firmware is whole pages, 64 KiB to 16 MiB, and keeps its size: not {0} bytes")]
    FirmwareSize(u64),
    /// A file cannot be read.
    #[error("cannot read {what}: {source}")]
    Read {
        /// Which.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The guest has no memory where it must have.
    #[error("the guest's memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// Where and how the boot processor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// As a processor starts: the state that KVM has made.
    Reset,
    /// By PVH: at an address, with the start information's address.
    Pvh {
        /// Of the first instruction.
        entry: u32,
    },
    /// By the Linux boot protocol, in 32 bits.
    Linux {
        /// Of the first instruction.
        entry: u32,
    },
}

impl Start {
    /// Set the boot processor's registers.
    pub(super) fn prepare(self, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        match self {
            Start::Reset => Ok(()),
            Start::Pvh { entry } => entry::protected(vcpu, entry, super::layout::PVH_INFO as u32),
            Start::Linux { entry } => entry::linux(
                vcpu,
                entry,
                super::layout::BOOT_PARAMS as u32,
                super::layout::BOOT_GDT,
            ),
        }
    }
}

/// [`Boot`], with the room for firmware that KVM was given.
pub(super) enum Source {
    Kernel(Kernel),
    Firmware(Rom),
}

impl Source {
    /// Load what a machine with so many vCPUs runs first, into memory that is all zeroes.
    pub(super) fn load(&self, ram: &Ram, vcpus: u32) -> Result<Start, BootError> {
        match self {
            Source::Kernel(kernel) => {
                let rsdp = acpi::write(ram.memory(), vcpus)?;
                load(ram, kernel, Some(rsdp))
            }
            Source::Firmware(rom) => rom.load(ram).map(|()| Start::Reset),
        }
    }
}

/// Load the kernel with all it needs. `rsdp` is where ACPI's tables begin, if there are any.
pub(super) fn load(ram: &Ram, kernel: &Kernel, rsdp: Option<u64>) -> Result<Start, BootError> {
    let mut head = [0; 0x206];
    let length = kernel
        .image
        .read_at(&mut head, 0)
        .map_err(reading("the kernel"))?;
    if head.starts_with(b"\x7fELF") {
        let loaded = elf::load(ram.memory(), &kernel.image)?;
        write_command_line(ram, &kernel.command_line, COMMAND_LINE_MAX)?;
        let initrd = load_initrd(ram, kernel, loaded.end, u64::from(u32::MAX))?;
        pvh::write_information(ram, initrd, rsdp)?;
        Ok(Start::Pvh { entry: loaded.entry })
    } else if length == head.len() && head[0x202..].starts_with(b"HdrS") {
        bzimage::load(ram, kernel, rsdp)
    } else {
        Err(BootError::Kind)
    }
}

fn reading(what: &'static str) -> impl FnOnce(std::io::Error) -> BootError {
    move |source| BootError::Read { what, source }
}

/// Where an initial RAM disk was put: address and size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Initrd {
    address: u64,
    size: u64,
}

/// Put the initial RAM disk as high as it can be: below the hole, its last byte at most at `last`, above `kernel_end`.
fn load_initrd(ram: &Ram, kernel: &Kernel, kernel_end: u64, last: u64) -> Result<Option<Initrd>, BootError> {
    let Some(file) = &kernel.initrd else {
        return Ok(None);
    };
    let mut file = file;
    let size = file
        .seek(SeekFrom::End(0))
        .map_err(reading("the initial RAM disk"))?;
    if size == 0 {
        return Ok(None);
    }
    let room = BootError::Room {
        what: "an initial RAM disk",
        bytes: size,
    };
    let top = ram.low_end().min(last.saturating_add(1));
    let Some(address) = top.checked_sub(size).map(|address| address & !0xfff) else {
        return Err(room);
    };
    if address < kernel_end {
        return Err(room);
    }
    file.rewind().map_err(reading("the initial RAM disk"))?;
    copy(ram, file, address, size, "the initial RAM disk")?;
    Ok(Some(Initrd { address, size }))
}

/// Copy `size` bytes of a file to an address. A file that is shorter by now is an error.
fn copy(ram: &Ram, mut file: &File, address: u64, size: u64, what: &'static str) -> Result<(), BootError> {
    let mut buffer = vec![0; 256 << 10];
    let (mut address, mut left) = (address, size);
    while left > 0 {
        let piece = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact(&mut buffer[..piece]).map_err(reading(what))?;
        ram.memory()
            .write_slice(&buffer[..piece], GuestAddress(address))?;
        address += piece as u64;
        left -= piece as u64;
    }
    Ok(())
}

fn write_command_line(ram: &Ram, line: &str, max: usize) -> Result<(), BootError> {
    if line.len() > max.min(COMMAND_LINE_MAX) || line.contains('\0') {
        return Err(BootError::CommandLine(line.len()));
    }
    let memory = ram.memory();
    memory.write_slice(line.as_bytes(), GuestAddress(COMMAND_LINE))?;
    memory.write_obj(0u8, GuestAddress(COMMAND_LINE + line.len() as u64))?;
    Ok(())
}

/// Whether all of these addresses are memory below the hole, and none below `floor`.
fn is_room(ram: &Ram, floor: u64, start: u64, size: u64) -> bool {
    let end = start.checked_add(size);
    start >= floor
        && end.is_some_and(|end| end <= ram.low_end())
        && ram.memory().address_in_range(GuestAddress(start))
}

#[cfg(test)]
mod tests;
