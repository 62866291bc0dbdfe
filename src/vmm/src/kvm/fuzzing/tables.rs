//! ACPI's tables, whose only input is the number of processors.

use virtio::fuzzing::Input;

use crate::kvm::acpi::tables;
use crate::kvm::layout::{ACPI, KERNEL};
use crate::kvm::machine::MAX_VCPUS;

fn word(bytes: &[u8], at: usize) -> usize {
    bytes
        .get(at..at + 4)
        .and_then(|word| word.try_into().ok())
        .map_or(usize::MAX, |word| u32::from_le_bytes(word) as usize)
}

/// The tables for so many processors: they fit, and lead to one another, each with a sum of 0.
///
/// # Panics
/// If not.
pub fn acpi(data: &[u8]) {
    let vcpus = u32::from(Input::new(data).u8()) % MAX_VCPUS + 1;
    let area = tables(vcpus);
    assert!(area.len() as u64 <= KERNEL - ACPI);
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    let table = |address: usize| {
        let at = address - ACPI as usize;
        let table = &area[at..at + word(&area, at + 4)];
        assert_eq!(sum(table), 0);
        table
    };
    assert_eq!((sum(&area[..20]), sum(&area[..36])), (0, 0));
    let xsdt = table(word(&area, 24));
    for entry in xsdt[36..].chunks_exact(8) {
        let found = table(word(entry, 0));
        match &found[..4] {
            b"FACP" => assert_eq!(&table(word(found, 140))[..4], b"DSDT"),
            b"APIC" => {
                let (mut rest, mut count) = (&found[44..], 0);
                while let [kind, length, ..] = rest {
                    assert!(*length >= 2);
                    count += u32::from(*kind == 0);
                    rest = &rest[usize::from(*length)..];
                }
                assert_eq!((count, rest.len()), (vcpus, 0));
            }
            _ => {}
        }
    }
}
