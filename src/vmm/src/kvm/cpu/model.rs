//! Which processor a guest sees: the host's, or a baseline that many hosts have, so that a guest can move between them.
//!
//! The baselines are the levels of the x86-64 psABI (§3.1.1, "Processor Architecture"), with what operating systems use beside
//! them. A feature that is not in a baseline is hidden; one that the host lacks makes the baseline impossible. Controls of speculation
//! are shown as the host has them: a guest that does not see them cannot protect itself.

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

/// The processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuModel {
    /// All that the host's processor and KVM have.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// x86-64-v2: SSE4.2, POPCNT (2009 on).
    #[serde(rename = "x86-64-v2")]
    V2,
    /// x86-64-v3: AVX2, BMI, FMA (2013 on).
    #[serde(rename = "x86-64-v3")]
    V3,
    /// x86-64-v4: AVX-512 (servers since 2017).
    #[serde(rename = "x86-64-v4")]
    V4,
}

/// A register of a leaf that holds features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Ebx,
    Ecx,
    Edx,
}

/// A feature register: leaf, subleaf, register; what level 2 needs, what level 3 adds, what level 4 adds; what is shown as it is.
struct Features {
    leaf: u32,
    index: u32,
    register: Register,
    levels: [u32; 3],
    shown: u32,
}

/// The bits of these numbers.
const fn bits(numbers: &[u32]) -> u32 {
    let mut bits = 0;
    let mut at = 0;
    while at < numbers.len() {
        bits |= 1 << numbers[at];
        at += 1;
    }
    bits
}

const FEATURES: [Features; 7] = [
    Features {
        leaf: 1,
        index: 0,
        register: Register::Edx,
        // FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE36, CLFSH, MMX, FXSR, SSE, SSE2
        levels: [
            bits(&[
                0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26,
            ]),
            0,
            0,
        ],
        // VME, HTT (the topology's)
        shown: bits(&[1, 28]),
    },
    Features {
        leaf: 1,
        index: 0,
        register: Register::Ecx,
        levels: [
            // SSE3, SSSE3, CX16, SSE4.1, SSE4.2, POPCNT
            bits(&[0, 9, 13, 19, 20, 23]),
            // FMA, MOVBE, XSAVE, AVX, F16C
            bits(&[12, 22, 26, 28, 29]),
            0,
        ],
        // x2APIC and the deadline timer are KVM's own; the hypervisor's mark
        shown: bits(&[21, 24, 31]),
    },
    Features {
        leaf: 7,
        index: 0,
        register: Register::Ebx,
        levels: [
            0,
            // BMI1, AVX2, BMI2
            bits(&[3, 5, 8]),
            // AVX512 F, DQ, CD, BW, VL
            bits(&[16, 17, 28, 30, 31]),
        ],
        shown: 0,
    },
    Features {
        leaf: 7,
        index: 0,
        register: Register::Ecx,
        levels: [0; 3],
        shown: 0,
    },
    Features {
        leaf: 7,
        index: 0,
        register: Register::Edx,
        levels: [0; 3],
        // MD_CLEAR, SPEC_CTRL, STIBP, FLUSH_L1D, ARCH_CAPABILITIES, SSBD
        shown: bits(&[10, 26, 27, 28, 29, 31]),
    },
    Features {
        leaf: 0x8000_0001,
        index: 0,
        register: Register::Ecx,
        levels: [
            // LAHF
            bits(&[0]),
            // LZCNT
            bits(&[5]),
            0,
        ],
        shown: 0,
    },
    Features {
        leaf: 0x8000_0001,
        index: 0,
        register: Register::Edx,
        // SYSCALL, NX, LM
        levels: [bits(&[11, 20, 29]), 0, 0],
        // What AMD repeats of leaf 1.
        shown: 0x0183_f3ff,
    },
];

impl CpuModel {
    /// How many of the levels' sets it takes; `None`: it hides nothing.
    fn levels(self) -> Option<usize> {
        match self {
            CpuModel::Host => None,
            CpuModel::V2 => Some(1),
            CpuModel::V3 => Some(2),
            CpuModel::V4 => Some(3),
        }
    }

    /// Hide what the model does not have from leaves that KVM supports.
    ///
    /// # Errors
    /// If the host lacks what it has: leaf and missing bits, for people.
    pub(in crate::kvm) fn apply(self, leaves: &mut [kvm_cpuid_entry2]) -> Result<(), String> {
        let Some(levels) = self.levels() else {
            return Ok(());
        };
        for features in &FEATURES {
            let needed = features.levels[..levels].iter().fold(0, |all, bits| all | bits);
            let leaf = leaves
                .iter_mut()
                .find(|leaf| (leaf.function, leaf.index) == (features.leaf, features.index));
            let has = match leaf {
                Some(leaf) => {
                    let register = match features.register {
                        Register::Ebx => &mut leaf.ebx,
                        Register::Ecx => &mut leaf.ecx,
                        Register::Edx => &mut leaf.edx,
                    };
                    let has = *register;
                    *register &= needed | features.shown;
                    has
                }
                None => 0,
            };
            if needed & !has != 0 {
                return Err(format!(
                    "bits {:#x} of {:?} in CPUID leaf {:#x}",
                    needed & !has,
                    features.register,
                    features.leaf
                ));
            }
        }
        for leaf in leaves {
            match (leaf.function, leaf.index) {
                // More of leaf 7's features.
                (7, 1..) => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
                // Extended states: x87 and SSE, AVX, AVX-512; and no compaction, supervisor states or other components.
                (0xd, 0) => {
                    leaf.eax &= [0x3, 0x7, 0xe7][levels - 1];
                    leaf.edx = 0;
                }
                (0xd, 1) => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    fn host(registers: [u32; 4]) -> Vec<kvm_cpuid_entry2> {
        [(1, 0), (7, 0), (7, 1), (0xd, 0), (0xd, 1), (0x8000_0001, 0)]
            .into_iter()
            .map(|(function, index)| leaf(function, index, registers))
            .collect()
    }

    #[test]
    fn a_baseline_looks_the_same_on_every_host_that_has_it() {
        let mut rich = host([u32::MAX; 4]);
        CpuModel::V3.apply(&mut rich).unwrap();
        // A host that has exactly this.
        let mut poor = rich.clone();
        CpuModel::V3.apply(&mut poor).unwrap();
        assert_eq!(rich, poor);
        let one = rich[0];
        assert_eq!(one.ecx >> 28 & 1, 1, "AVX");
        assert_eq!(one.ecx >> 25 & 1, 0, "AES is in no level");
        assert_eq!(rich[1].ebx, 0x128, "AVX2, BMI1, BMI2, and no AVX-512");
        assert_eq!(rich[3].eax, 7);
        let error = CpuModel::V4.apply(&mut poor).unwrap_err();
        assert!(error.contains("leaf 0x7"), "{error}");
    }

    #[test]
    fn the_host_is_shown_as_it_is() {
        let mut leaves = host([u32::MAX; 4]);
        CpuModel::Host.apply(&mut leaves).unwrap();
        assert_eq!(leaves, host([u32::MAX; 4]));
    }

    #[test]
    fn names_are_those_of_the_configuration() {
        for (name, model) in [
            ("host", CpuModel::Host),
            ("x86-64-v2", CpuModel::V2),
            ("x86-64-v4", CpuModel::V4),
        ] {
            assert_eq!(serde_json::from_value::<CpuModel>(name.into()).unwrap(), model);
        }
    }

    proptest! {
        /// Nothing appears that the host does not have.
        #[test]
        fn nothing_is_made_up(registers in any::<[u32; 4]>(), model in prop::sample::select(vec![CpuModel::V2, CpuModel::V3, CpuModel::V4])) {
            let before = host(registers);
            let mut after = before.clone();
            let _ = model.apply(&mut after);
            for (before, after) in before.iter().zip(&after) {
                for (had, has) in [(before.eax, after.eax), (before.ebx, after.ebx), (before.ecx, after.ecx), (before.edx, after.edx)] {
                    prop_assert_eq!(has & !had, 0);
                }
            }
        }
    }
}
