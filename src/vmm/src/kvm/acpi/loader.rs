//! The tables for firmware, which places them where it has room: two files, and a list of commands that says what must be
//! corrected then (SeaBIOS `src/fw/romfile_loader.h`, QEMU `hw/acpi/bios-linker-loader.c`; EDK II's OVMF obeys the same).

use acpi_tables::rsdp::Rsdp;

use super::{ALIGNMENT, Area, OEM, bytes};

/// The file with the RSDP.
pub(in crate::kvm) const RSDP_FILE: &str = "etc/acpi/rsdp";
/// The file with all other tables.
pub(in crate::kvm) const TABLES_FILE: &str = "etc/acpi/tables";
/// The file with the commands.
pub(in crate::kvm) const LOADER_FILE: &str = "etc/table-loader";

/// Bytes of a command, and of a file's name in it.
const COMMAND: usize = 128;
const NAME: usize = 56;
/// Commands: put a file into memory; add a file's address to a field; make the bytes of a range add up to nothing.
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
/// Where a file goes: anywhere below 4 GiB, or where a kernel looks for the RSDP.
const ZONE_HIGH: u8 = 1;
const ZONE_F_SEGMENT: u8 = 2;
/// The RSDP's alignment (ACPI 6.5 §5.2.5.1).
const RSDP_ALIGNMENT: u32 = 16;
/// Where a table's checksum is (§5.2.6).
const CHECKSUM: usize = 9;
/// The RSDP's pointer to the XSDT; its checksums, and how many bytes they are about (§5.2.5.3).
const RSDP_XSDT: usize = 24;
const RSDP_CHECKSUMS: [(usize, usize); 2] = [(8, 20), (32, 36)];

/// What firmware gets.
pub(in crate::kvm) struct Files {
    pub(in crate::kvm) rsdp: Vec<u8>,
    pub(in crate::kvm) tables: Vec<u8>,
    pub(in crate::kvm) commands: Vec<u8>,
}

/// The tables of a machine with so many vCPUs.
pub(in crate::kvm) fn files(vcpus: u32) -> Files {
    let (mut area, xsdt) = Area::new(0, vcpus);
    let mut rsdp = bytes(&Rsdp::new(OEM, xsdt));
    let mut commands = Commands::default();
    commands.allocate(TABLES_FILE, ALIGNMENT as u32, ZONE_HIGH);
    commands.allocate(RSDP_FILE, RSDP_ALIGNMENT, ZONE_F_SEGMENT);
    for (at, size) in &area.pointers {
        commands.add_pointer(TABLES_FILE, *at, *size);
    }
    commands.add_pointer(RSDP_FILE, RSDP_XSDT, 8);
    // A checksum is about what a table says in the end, and what is in its own place counts as well.
    for (start, length) in &area.checked {
        area.bytes[start + CHECKSUM] = 0;
        commands.add_checksum(TABLES_FILE, start + CHECKSUM, *start, *length);
    }
    for (at, length) in RSDP_CHECKSUMS {
        rsdp[at] = 0;
        commands.add_checksum(RSDP_FILE, at, 0, length);
    }
    Files {
        rsdp,
        tables: area.bytes,
        commands: commands.0,
    }
}

#[derive(Default)]
struct Commands(Vec<u8>);

impl Commands {
    fn push(&mut self, command: u32, names: &[&str], numbers: &[usize], last: Option<u8>) {
        let end = self.0.len() + COMMAND;
        self.0.extend(command.to_le_bytes());
        for name in names {
            debug_assert!(name.len() < NAME);
            let next = self.0.len() + NAME;
            self.0.extend(name.bytes());
            self.0.resize(next, 0);
        }
        for number in numbers {
            self.0.extend((*number as u32).to_le_bytes());
        }
        self.0.extend(last);
        self.0.resize(end, 0);
    }

    fn allocate(&mut self, file: &str, alignment: u32, zone: u8) {
        self.push(ALLOCATE, &[file], &[alignment as usize], Some(zone));
    }

    /// All pointers lead into the tables' file.
    fn add_pointer(&mut self, file: &str, at: usize, size: u8) {
        self.push(ADD_POINTER, &[file, TABLES_FILE], &[at], Some(size));
    }

    fn add_checksum(&mut self, file: &str, at: usize, start: usize, length: usize) {
        self.push(ADD_CHECKSUM, &[file], &[at, start, length], None);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn word(command: &[u8], at: usize) -> usize {
        u32::from_le_bytes(command[at..at + 4].try_into().unwrap()) as usize
    }

    fn name(command: &[u8], at: usize) -> &str {
        let field = &command[at..at + NAME];
        let end = field.iter().position(|byte| *byte == 0).unwrap();
        std::str::from_utf8(&field[..end]).unwrap()
    }

    /// What firmware makes of the files: as the commands say, with the files at these addresses.
    fn obey(files: &Files, tables_at: u64, rsdp_at: u64) -> BTreeMap<String, (u64, Vec<u8>)> {
        let mut memory = BTreeMap::new();
        assert_eq!(files.commands.len() % COMMAND, 0);
        for command in files.commands.chunks(COMMAND) {
            let file = name(command, 4);
            match word(command, 0) as u32 {
                ALLOCATE => {
                    let (address, bytes, zone) = match file {
                        TABLES_FILE => (tables_at, &files.tables, ZONE_HIGH),
                        RSDP_FILE => (rsdp_at, &files.rsdp, ZONE_F_SEGMENT),
                        other => panic!("{other}"),
                    };
                    assert_eq!(address as usize % word(command, 60), 0);
                    assert_eq!(command[64], zone);
                    let before = memory.insert(file.to_owned(), (address, bytes.clone()));
                    assert!(before.is_none(), "{file} twice");
                }
                ADD_POINTER => {
                    let to = memory[name(command, 60)].0;
                    let (at, size) = (word(command, 116), usize::from(command[120]));
                    let field = &mut memory.get_mut(file).unwrap().1[at..at + size];
                    let mut value = [0; 8];
                    value[..size].copy_from_slice(field);
                    let sum = (u64::from_le_bytes(value) + to).to_le_bytes();
                    assert!(sum[size..].iter().all(|byte| *byte == 0), "it does not fit");
                    field.copy_from_slice(&sum[..size]);
                }
                ADD_CHECKSUM => {
                    let (at, start, length) = (word(command, 60), word(command, 64), word(command, 68));
                    let bytes = &mut memory.get_mut(file).unwrap().1;
                    let sum = bytes[start..start + length]
                        .iter()
                        .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                    bytes[at] = bytes[at].wrapping_sub(sum);
                }
                other => panic!("command {other}"),
            }
        }
        memory
    }

    proptest! {
        /// Wherever firmware puts them: the tables are those that they would be if they were made for that place.
        #[test]
        fn placed_tables_are_as_if_made_there(
            vcpus in 1u32..=128,
            tables_at in (0u64..0x3ff_0000).prop_map(|at| at * ALIGNMENT as u64),
            rsdp_at in (0xf_0000u64 / 16..0xf_f000 / 16).prop_map(|at| at * 16),
        ) {
            let files = files(vcpus);
            let memory = obey(&files, tables_at, rsdp_at);
            let (area, xsdt) = Area::new(tables_at, vcpus);
            prop_assert_eq!(&memory[TABLES_FILE].1, &area.bytes);
            prop_assert_eq!(&memory[RSDP_FILE].1, &bytes(&Rsdp::new(OEM, xsdt)));
        }
    }
}
