//! What a guest reads by CPUID: what KVM supports on this processor, with the machine's own topology.
//!
//! Every vCPU is a core of one socket, with caches of its own but for the last one.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1 ECX: MONITOR and MWAIT, which would leave the guest idle on the host's processor.
const MONITOR: u32 = 1 << 3;
/// Leaf 1 ECX: the local APIC's timer takes a TSC deadline.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: the count in EBX holds.
const HTT: u32 = 1 << 28;
/// Leaf 6 EAX: the local APIC's timer never stops.
const ARAT: u32 = 1 << 2;
/// "AMD": EBX of leaf 0 on AMD's processors ("Auth").
const AMD: u32 = u32::from_le_bytes(*b"Auth");
/// EBX of leaf 0 on Hygon's processors ("Hygo").
const HYGON: u32 = u32::from_le_bytes(*b"Hygo");

/// The leaves of vCPU `index` of `count`, from those that KVM supports.
pub(in crate::kvm) fn leaves(
    supported: &[kvm_cpuid_entry2],
    index: u32,
    count: u32,
    tsc_deadline: bool,
) -> Vec<kvm_cpuid_entry2> {
    let amd = supported
        .iter()
        .any(|leaf| leaf.function == 0 && [AMD, HYGON].contains(&leaf.ebx));
    let highest = supported
        .iter()
        .find(|leaf| leaf.function == 0)
        .map_or(0, |leaf| leaf.eax);
    // A part of the APIC's id that tells cores apart.
    let bits = count.next_power_of_two().trailing_zeros();
    let mut leaves: Vec<_> = supported
        .iter()
        .filter(|leaf| ![0xb, 0x1f].contains(&leaf.function))
        .copied()
        .collect();
    for leaf in &mut leaves {
        match leaf.function {
            0x1 => {
                leaf.ebx = leaf.ebx & 0xffff | (1 << bits).min(0xff) << 16 | index << 24;
                leaf.ecx = leaf.ecx & !(MONITOR | TSC_DEADLINE) | HYPERVISOR;
                if tsc_deadline {
                    leaf.ecx |= TSC_DEADLINE;
                }
                leaf.edx &= !HTT;
                if count > 1 {
                    leaf.edx |= HTT;
                }
            }
            // Deterministic cache parameters (SDM vol. 2, CPUID): type in bits 4:0, level in 7:5, sharing in 25:14.
            0x4 | 0x8000_001d if leaf.eax & 0x1f != 0 => {
                let shared = if leaf.eax >> 5 & 7 >= 3 {
                    (1 << bits) - 1
                } else {
                    0
                };
                leaf.eax = leaf.eax & 0x3fff | shared << 14;
                if leaf.function == 0x4 {
                    leaf.eax |= ((1 << bits) - 1) << 26;
                }
            }
            // MONITOR's parameters, and performance counters, which are not offered.
            0x5 | 0xa => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
            // Of power management there is a timer that does not stop.
            0x6 => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (ARAT, 0, 0, 0),
            // AMD: cores less one, and how many bits of the APIC's id tell them apart.
            0x8000_0008 if amd => leaf.ecx = (count - 1) | (bits << 12),
            0x8000_001e if amd => (leaf.eax, leaf.ebx, leaf.ecx) = (index, index, 0),
            _ => {}
        }
    }
    for function in [0xb, 0x1f] {
        if highest >= function {
            // One thread a core; all cores one socket; then a level of type 0, which ends the list.
            leaves.push(level(function, 0, 0, 1, 1, index));
            leaves.push(level(function, 1, bits, count, 2, index));
            leaves.push(level(function, 2, 0, 0, 0, index));
        }
    }
    leaves
}

/// A level of the extended topology (SDM vol. 2, CPUID leaf 0BH).
fn level(function: u32, index: u32, shift: u32, processors: u32, kind: u32, id: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: kind << 8 | index,
        edx: id,
        ..kvm_cpuid_entry2::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        }
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut found = leaves
            .iter()
            .filter(|leaf| (leaf.function, leaf.index) == (function, index));
        let first = *found.next().unwrap();
        assert!(found.next().is_none(), "leaf {function:#x} twice");
        first
    }

    #[test]
    fn every_processor_is_a_core_of_one_socket() {
        let supported = [
            leaf(0, 0, [0x1f, 0, 0, 0]),
            leaf(1, 0, [0x806f8, 0x7710_0800, MONITOR, 0]),
            leaf(4, 1, [0xfc00_4121, 1, 2, 3]),
            leaf(4, 3, [0xfffc_0163, 1, 2, 3]),
            leaf(0xb, 0, [9, 9, 9, 9]),
            leaf(0xb, 1, [9, 9, 9, 9]),
        ];
        for count in [1, 2, 3, 8, 128] {
            for index in 0..count {
                let leaves = leaves(&supported, index, count, true);
                let one = find(&leaves, 1, 0);
                assert_eq!(one.ebx >> 24, index);
                assert!(one.ebx >> 16 & 0xff >= count);
                assert_eq!(one.ebx & 0xffff, 0x0800);
                assert_eq!(one.ecx, HYPERVISOR | TSC_DEADLINE);
                assert_eq!(one.edx & HTT != 0, count > 1);
                let l1 = find(&leaves, 4, 1);
                assert_eq!(l1.eax >> 14 & 0xfff, 0, "the first cache is the core's own");
                let l3 = find(&leaves, 4, 3);
                assert!(
                    (l3.eax >> 14 & 0xfff) + 1 >= count,
                    "the last cache is everyone's"
                );
                assert_eq!(l3.eax & 0x3fff, 0x163);
                for function in [0xb, 0x1f] {
                    let cores = find(&leaves, function, 1);
                    assert_eq!((cores.ebx, cores.edx, cores.ecx >> 8), (count, index, 2));
                    assert!(1 << cores.eax >= count);
                    assert_eq!(find(&leaves, function, 2).ecx >> 8, 0, "the end of the list");
                }
            }
        }
    }

    #[test]
    fn a_processor_without_extended_topology_gets_none() {
        let leaves = leaves(&[leaf(0, 0, [4, 0, 0, 0]), leaf(1, 0, [0; 4])], 0, 1, false);
        assert!(leaves.iter().all(|leaf| leaf.function < 0xb));
        assert_eq!(find(&leaves, 1, 0).ecx & TSC_DEADLINE, 0);
    }
}
