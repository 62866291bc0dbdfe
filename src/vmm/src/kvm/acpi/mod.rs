//! ACPI's tables (ACPI 6.5 §5.2): RSDP → XSDT → FADT (→ DSDT, FACS), MADT, MCFG. A kernel finds them in the firmware's area
//! below 1 MiB; firmware gets them as files, and places them itself ([`loader`]).

mod dsdt;
pub(super) mod loader;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use virtio::memory::Memory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout::{self, ACPI, ECAM, KERNEL, PM, RESET_CONTROL, SCI};
use super::legacy::cmos::CENTURY;
use super::legacy::power::{CONTROL, TIMER};
use super::legacy::reset::ResetControl;

/// Who made the tables.
const OEM: [u8; 6] = *b"ALLOD ";
const OEM_TABLE: [u8; 8] = *b"ALLODKVM";
const OEM_REVISION: u32 = 1;
/// Bytes of a table's header.
const HEADER: u32 = 36;
/// Of a table of revision 6 (§5.2.9).
const FADT_LENGTH: u32 = 276;
/// Where the local APICs are.
const LOCAL_APIC: u32 = 0xfee0_0000;
/// Where the IOAPIC is.
const IO_APIC: u32 = layout::IO_APIC as u32;

/// The tables, one after the other from [`ACPI`] on, the RSDP first.
pub(super) fn tables(vcpus: u32) -> Vec<u8> {
    let (area, xsdt) = Area::new(ACPI + ALIGNMENT as u64, vcpus);
    let mut tables = bytes(&Rsdp::new(OEM, xsdt));
    tables.resize(ALIGNMENT, 0);
    tables.extend(area.bytes);
    tables
}

/// Write the tables. Where the RSDP is.
///
/// # Errors
/// If the guest has no memory there.
pub(super) fn write(memory: &Memory, vcpus: u32) -> Result<u64, GuestMemoryError> {
    let tables = tables(vcpus);
    debug_assert!(tables.len() as u64 <= KERNEL - ACPI);
    memory.write_slice(&tables, GuestAddress(ACPI))?;
    Ok(ACPI)
}

/// What the FACS wants (§5.2.10), and more than the RSDP's size.
const ALIGNMENT: usize = 64;

/// All tables but the RSDP in a row, and what in them depends on where they are.
struct Area {
    base: u64,
    bytes: Vec<u8>,
    /// Offset and bytes of each field that points to a table.
    pointers: Vec<(usize, u8)>,
    /// Offset and bytes of each table with a checksum.
    checked: Vec<(usize, usize)>,
}

impl Area {
    /// The tables from this address on, and where the XSDT is.
    fn new(base: u64, vcpus: u32) -> (Self, u64) {
        let mut area = Area {
            base,
            bytes: Vec::new(),
            pointers: Vec::new(),
            checked: Vec::new(),
        };
        let facs = area.put(&bytes(&FACS::new()));
        let dsdt = area.put_table(&table(*b"DSDT", 2, &dsdt::code()), &[]);
        let fadt = area.put_table(&fadt(facs, dsdt), &FADT_POINTERS);
        let madt = area.put_table(&madt(vcpus), &[]);
        let mcfg = area.put_table(&mcfg(), &[]);
        let addresses = [fadt, madt, mcfg];
        let entries: Vec<u8> = addresses.into_iter().flat_map(u64::to_le_bytes).collect();
        let pointers: Vec<_> = (HEADER as usize..)
            .step_by(8)
            .map(|at| (at, 8))
            .take(addresses.len())
            .collect();
        let xsdt = area.put_table(&table(*b"XSDT", 1, &entries), &pointers);
        (area, xsdt)
    }

    /// Append bytes, aligned. Their address.
    fn put(&mut self, bytes: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        let address = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        address
    }

    /// Append a table with a checksum and such pointers. Its address.
    fn put_table(&mut self, table: &[u8], pointers: &[(usize, u8)]) -> u64 {
        let address = self.put(table);
        let start = self.bytes.len() - table.len();
        self.checked.push((start, table.len()));
        self.pointers
            .extend(pointers.iter().map(|(at, size)| (start + at, *size)));
        address
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut out = Vec::new();
    table.to_aml_bytes(&mut out);
    out
}

fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(signature, HEADER, revision, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}

/// The FACS, and the DSDT in the old field and in the new.
const FADT_POINTERS: [(usize, u8); 3] = [(36, 4), (40, 4), (140, 8)];

/// The fixed description (§5.2.9).
fn fadt(facs: u64, dsdt: u64) -> Vec<u8> {
    /// WBINVD works; processors have C1; there is no sleep button; the clock does not wake; there is a reset register; the
    /// timer has 32 bits. The power button is a fixed one.
    const FLAGS: u32 = 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10;
    /// There are devices on ISA's ports, and no VGA. The keyboard controller, which can but reset, is not told of.
    const BOOT_ARCHITECTURE: u16 = 1 | 1 << 2;
    /// A latency that says that a state is not there.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;
    let mut fadt = Sdt::new(*b"FACP", FADT_LENGTH, 6, OEM, OEM_TABLE, OEM_REVISION);
    // All below 4 GiB.
    fadt.write_u32(36, facs as u32);
    fadt.write_u32(40, dsdt as u32);
    // An enterprise server.
    fadt.write_u8(45, 4);
    fadt.write_u16(46, SCI as u16);
    // Address in the old fields and the new, length.
    for (old, new, length_at, port, length) in [
        (56, 148, 88, PM, 4u8),
        (64, 172, 89, PM + CONTROL, 2),
        (76, 208, 91, PM + TIMER, 4),
    ] {
        fadt.write_u32(old, port as u32);
        fadt.write_u8(length_at, length);
        fadt.write_bytes(new, &ports(port, length));
    }
    fadt.write_u16(96, NO_C2);
    fadt.write_u16(98, NO_C3);
    fadt.write_u8(108, CENTURY);
    fadt.write_u16(109, BOOT_ARCHITECTURE);
    fadt.write_u32(112, FLAGS);
    fadt.write_bytes(116, &ports(RESET_CONTROL, 1));
    fadt.write_u8(128, ResetControl::VALUE);
    // Minor version: 6.5.
    fadt.write_u8(131, 5);
    fadt.write_u64(140, dsdt);
    fadt.write_bytes(268, b"KVMKVMKV");
    fadt.as_slice().to_vec()
}

/// A generic address: ports (§5.2.3.2).
fn ports(port: u64, bytes: u8) -> [u8; 12] {
    let mut out = [0; 12];
    let access = bytes.trailing_zeros() as u8 + 1;
    out[..4].copy_from_slice(&[1, bytes * 8, 0, access]);
    out[4..].copy_from_slice(&port.to_le_bytes());
    out
}

/// Interrupt controllers (§5.2.12).
fn madt(vcpus: u32) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(LOCAL_APIC.to_le_bytes());
    // There are 8259s, too.
    body.extend(1u32.to_le_bytes());
    for id in (0..=u8::MAX).take(vcpus as usize) {
        // Local APIC, enabled.
        body.extend([0, 8, id, id, 1, 0, 0, 0]);
    }
    body.extend([1, 12, 0, 0]);
    body.extend(IO_APIC.to_le_bytes());
    body.extend(0u32.to_le_bytes());
    // KVM's routes lead ISA's interrupts to the pins of the same numbers, the timer's to pin 0, too; they are edges. But
    // ACPI's is active high and level-triggered.
    body.extend([2, 10, 0, SCI as u8]);
    body.extend(SCI.to_le_bytes());
    body.extend(0b1101u16.to_le_bytes());
    // All local APICs take the NMI at LINT1.
    body.extend([4, 6, 0xff, 0, 0, 1]);
    table(*b"APIC", 5, &body)
}

/// Configuration space (PCI Firmware 3.3 §4.1.2): segment 0, bus 0.
fn mcfg() -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend(ECAM.to_le_bytes());
    body.extend([0; 8]);
    table(*b"MCFG", 1, &body)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::kvm::layout::HOLE;

    fn long(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// The table at this address: it lies within the area, and its bytes add up to nothing.
    fn follow(area: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - ACPI).unwrap();
        let length = word(area, start + 4) as usize;
        let table = &area[start..start + length];
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        table
    }

    #[test]
    fn a_kernel_can_follow_the_tables() {
        for vcpus in [1, 2, 128] {
            let area = tables(vcpus);
            assert!(area.len() as u64 <= KERNEL - ACPI);
            assert_eq!(&area[..8], b"RSD PTR ");
            for length in [20, 36] {
                assert_eq!(
                    area[..length]
                        .iter()
                        .fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
                    0
                );
            }
            let xsdt = follow(&area, long(&area, 24));
            let tables: Vec<_> = xsdt[36..]
                .chunks(8)
                .map(|entry| follow(&area, long(entry, 0)))
                .collect();
            let names: Vec<_> = tables.iter().map(|table| &table[..4]).collect();
            assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);
            let fadt = tables[0];
            assert_eq!(&follow(&area, long(fadt, 140))[..4], b"DSDT");
            let facs = (u64::from(word(fadt, 36)) - ACPI) as usize;
            assert_eq!((&area[facs..facs + 4], facs % 64), (&b"FACS"[..], 0));
            assert_eq!(
                (word(fadt, 56), word(fadt, 64), word(fadt, 76)),
                (0x600, 0x604, 0x608)
            );
            let mut controllers = &tables[1][44..];
            let mut processors = 0;
            while let [kind, length, ..] = *controllers {
                processors += u32::from(kind == 0);
                controllers = &controllers[length.into()..];
            }
            assert_eq!(processors, vcpus);
            assert_eq!(long(tables[2], 44), ECAM);
            const { assert!(ECAM >= HOLE) };
        }
    }

    /// ACPICA's own compiler reads the code, where it is installed.
    #[test]
    fn the_code_can_be_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dsdt.aml");
        std::fs::write(&file, table(*b"DSDT", 2, &dsdt::code())).unwrap();
        let Ok(output) = Command::new("iasl").arg("-d").arg(&file).output() else {
            println!("skipped: iasl is not installed");
            return;
        };
        assert!(output.status.success(), "{output:?}");
        let text = std::fs::read_to_string(folder.path().join("dsdt.dsl")).unwrap();
        for part in ["PCI0", "_S5", "PNP0A08", "COM1", "PNP0C02"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
