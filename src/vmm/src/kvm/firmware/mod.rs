//! Firmware: SeaBIOS, or a UEFI like EDK II's OVMF. It finds a machine like QEMU's `q35`, as far as it looks: the image where
//! a processor begins ([`rom`]), a host bridge and an ISA bridge that it knows (`pci`), and what the machine is made of by
//! `fw_cfg` ([`items`]).

mod rom;
mod smbios;

use std::fs::File;

use uuid::Uuid;

use super::acpi::loader::{self, LOADER_FILE, RSDP_FILE, TABLES_FILE};
use super::layout::{ECAM, ECAM_SIZE, FIRMWARE, HIGH_MEMORY, IDENTITY_MAP, SERIAL};
use super::legacy::fw_cfg::Items;
use super::memory::Ram;

pub(super) use rom::Rom;

/// Firmware that the machine boots.
#[derive(Debug)]
pub struct Firmware {
    /// The image: whole pages, 64 KiB to 16 MiB, the last 16 bytes of which are what a processor begins with.
    pub image: File,
    /// What the machine is called in SMBIOS: the server's id.
    pub id: Uuid,
}

/// Items of fw_cfg with numbers of their own (QEMU `include/standard-headers/linux/qemu_fw_cfg.h`).
const ID: u16 = 0x02;
const PROCESSORS: u16 = 0x05;
const BOOT_MENU: u16 = 0x0e;
const MAX_PROCESSORS: u16 = 0x0f;

/// Kinds of memory (ACPI 6.5 §15).
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// What the firmware of a machine is told. `disks` are the numbers of the devices on PCI that it may boot, in this order.
pub(super) fn items(id: Uuid, vcpus: u32, ram: &Ram, disks: &[u32]) -> Items {
    let mut items = Items::default();
    let processors = (vcpus as u16).to_le_bytes().to_vec();
    items.add(ID, id.as_bytes().to_vec());
    items.add(PROCESSORS, processors.clone());
    items.add(MAX_PROCESSORS, processors);
    // Nobody is there to choose, so nobody is waited for.
    items.add(BOOT_MENU, vec![0; 2]);
    items.add_file("etc/boot-menu-wait", vec![0; 2]);
    // Without a disk that boots: stay, rather than try again for ever.
    items.add_file("etc/boot-fail-wait", u32::MAX.to_le_bytes().to_vec());
    items.add_file("bootorder", boot_order(disks));
    // SeaBIOS's screen and keyboard.
    items.add_file("etc/sercon-port", (SERIAL as u16).to_le_bytes().to_vec());
    items.add_file("etc/e820", memory_map(ram));
    let (anchor, tables) = smbios::tables(id);
    items.add_file("etc/smbios/smbios-anchor", anchor);
    items.add_file("etc/smbios/smbios-tables", tables);
    let acpi = loader::files(vcpus);
    items.add_file(RSDP_FILE, acpi.rsdp);
    items.add_file(TABLES_FILE, acpi.tables);
    items.add_file(LOADER_FILE, acpi.commands);
    items
}

/// Paths as in Open Firmware's device tree, a line each, ended by a zero byte (QEMU `docs/devel/bootindex.rst`).
fn boot_order(disks: &[u32]) -> Vec<u8> {
    let mut order = String::new();
    for device in disks {
        order += &format!("/pci@i0cf8/scsi@{device:x}/disk@0,0\n");
    }
    // Nothing else is tried.
    order += "HALT\0";
    order.into_bytes()
}

/// The map of memory: start, size, kind. What a PC keeps below 1 MiB, firmware knows itself.
fn memory_map(ram: &Ram) -> Vec<u8> {
    let low = ram.low_end();
    let high = ram.bytes() - low;
    [
        (0, low, RAM),
        (HIGH_MEMORY, high, RAM),
        (ECAM, ECAM_SIZE, RESERVED),
        (IDENTITY_MAP, FIRMWARE - IDENTITY_MAP, RESERVED),
    ]
    .into_iter()
    .filter(|(_, size, _)| *size > 0)
    .flat_map(|(start, size, kind)| {
        let mut entry = Vec::with_capacity(20);
        entry.extend(u64::to_le_bytes(start));
        entry.extend(u64::to_le_bytes(size));
        entry.extend(u32::to_le_bytes(kind));
        entry
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(mib: u64) -> Vec<(u64, u64, u32)> {
        memory_map(&Ram::new(mib, false).unwrap())
            .chunks(20)
            .map(|entry| {
                let (start, rest) = entry.split_at(8);
                let (size, kind) = rest.split_at(8);
                (
                    u64::from_le_bytes(start.try_into().unwrap()),
                    u64::from_le_bytes(size.try_into().unwrap()),
                    u32::from_le_bytes(kind.try_into().unwrap()),
                )
            })
            .collect()
    }

    #[test]
    fn all_memory_is_told_of() {
        for mib in [16, 2816, 2817, 5 * 1024] {
            let map = map(mib);
            let memory: u64 = map
                .iter()
                .filter(|(_, _, kind)| *kind == RAM)
                .map(|(_, size, _)| size)
                .sum();
            assert_eq!(memory, mib << 20);
            assert_eq!((map[0].0, map[0].2), (0, RAM));
            assert_eq!(map.iter().any(|entry| entry.0 == HIGH_MEMORY), mib > 2816);
        }
    }

    #[test]
    fn disks_are_told_of_in_their_order() {
        assert_eq!(boot_order(&[]), b"HALT\0");
        assert_eq!(
            boot_order(&[2, 0x1e]),
            b"/pci@i0cf8/scsi@2/disk@0,0\n/pci@i0cf8/scsi@1e/disk@0,0\nHALT\0"
        );
    }
}
