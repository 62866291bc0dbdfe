//! bzImage kernels (`Documentation/arch/x86/boot.rst`), entered in 32 bits.

use std::io::{Seek, SeekFrom};

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bzimage::BzImage;
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, Kernel, Start, is_room, load_initrd, reading, write_command_line};
use crate::kvm::cpu::entry::LINUX_GDT;
use crate::kvm::layout::{BOOT_GDT, BOOT_PARAMS, COMMAND_LINE, KERNEL};
use crate::kvm::memory::{Kind, Ram};

/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// The oldest protocol that tells how much memory the kernel needs (`init_size`): 2.10, Linux 2.6.31.
const MIN_VERSION: u16 = 0x020a;
/// Kinds of the map of memory.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Load the kernel at 1 MiB with its boot parameters.
pub(super) fn load(ram: &Ram, kernel: &Kernel, rsdp: Option<u64>) -> Result<Start, BootError> {
    let mut image = kernel.image.try_clone().map_err(reading("the kernel"))?;
    let size = image.seek(SeekFrom::End(0)).map_err(reading("the kernel"))?;
    // The loader writes the file's bytes behind its set-up sectors; more cannot be, so that much must fit.
    if !is_room(ram, KERNEL, KERNEL, size) {
        return Err(BootError::Room {
            what: "a kernel",
            bytes: size,
        });
    }
    let loaded = BzImage::load(ram.memory(), Some(GuestAddress(KERNEL)), &mut image, None)?;
    let Some(mut header) = loaded.setup_header else {
        return Err(BootError::Kind);
    };
    if header.version < MIN_VERSION {
        return Err(BootError::Malformed("its boot protocol is older than 2.10"));
    }
    // A kernel unpacks itself where it prefers to be, or, being relocatable, at least not below.
    let (preferred, needed) = (header.pref_address, header.init_size);
    let place = preferred.max(KERNEL);
    if !is_room(ram, KERNEL, place, needed.into()) {
        return Err(BootError::Room {
            what: "a kernel",
            bytes: needed.into(),
        });
    }
    let end = loaded.kernel_end.max(place + u64::from(needed));

    write_command_line(ram, &kernel.command_line, header.cmdline_size as usize)?;
    let initrd = load_initrd(ram, kernel, end, header.initrd_addr_max.into())?;
    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = COMMAND_LINE as u32;
    if let Some(initrd) = initrd {
        // Both are below the hole.
        header.ramdisk_image = initrd.address as u32;
        header.ramdisk_size = initrd.size as u32;
    }
    let mut params = boot_params {
        hdr: header,
        acpi_rsdp_addr: rsdp.unwrap_or(0),
        ..boot_params::default()
    };
    let map = ram.map();
    for (slot, entry) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: entry.start,
            size: entry.size,
            r#type: match entry.kind {
                Kind::Ram => E820_RAM,
                Kind::Reserved => E820_RESERVED,
            },
        };
    }
    params.e820_entries = map.len() as u8;
    let memory = ram.memory();
    memory.write_obj(params, GuestAddress(BOOT_PARAMS))?;
    for (at, descriptor) in (BOOT_GDT..).step_by(8).zip(LINUX_GDT) {
        memory.write_obj(descriptor, GuestAddress(at))?;
    }
    Ok(Start::Linux { entry: KERNEL as u32 })
}
