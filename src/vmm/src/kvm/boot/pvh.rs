//! What a PVH kernel is told (Xen `docs/misc/pvh.pandoc`, `xen/include/public/arch-x86/hvm/start_info.h`).

use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry,
    hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, Initrd};
use crate::kvm::layout::{COMMAND_LINE, PVH_INFO, PVH_MAP, PVH_MODULES};
use crate::kvm::memory::{Kind, Ram};

/// The structure's version that has a map of memory.
const VERSION: u32 = 1;

/// Write the start information and what it points to, but for the command line.
pub(super) fn write_information(
    ram: &Ram,
    initrd: Option<Initrd>,
    rsdp: Option<u64>,
) -> Result<(), BootError> {
    let memory = ram.memory();
    let map = ram.map();
    let mut at = PVH_MAP;
    for entry in &map {
        let record = hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.size,
            type_: match entry.kind {
                Kind::Ram => XEN_HVM_MEMMAP_TYPE_RAM,
                Kind::Reserved => XEN_HVM_MEMMAP_TYPE_RESERVED,
            },
            reserved: 0,
        };
        memory.write_obj(record, GuestAddress(at))?;
        at += size_of::<hvm_memmap_table_entry>() as u64;
    }
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.address,
            size: initrd.size,
            ..hvm_modlist_entry::default()
        };
        memory.write_obj(module, GuestAddress(PVH_MODULES))?;
    }
    let information = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        flags: 0,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: if initrd.is_some() { PVH_MODULES } else { 0 },
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: rsdp.unwrap_or(0),
        memmap_paddr: PVH_MAP,
        memmap_entries: map.len() as u32,
        reserved: 0,
    };
    memory.write_obj(information, GuestAddress(PVH_INFO))?;
    Ok(())
}
