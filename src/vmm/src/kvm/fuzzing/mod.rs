//! What fuzzers and their replay call, as in [`virtio::fuzzing`]: any bytes, and no panic, no hang, no growth. No part of the
//! product.
//!
//! A new device joins the others in `rig.rs`; a new parser gets a function, a target in `fuzz/`, and a line in
//! [`TARGETS`].

mod firmware;
#[cfg(test)]
mod hostile;
mod kernel;
mod pci;
pub(in crate::kvm) mod rig;
mod state;
mod tables;

pub use firmware::fw_cfg;
pub use kernel::{bzimage, elf};
pub use pci::pci;
pub use state::state;
pub use tables::acpi;

/// Name and function of each.
pub const TARGETS: &[(&str, fn(&[u8]))] = &[
    ("pci", pci),
    ("state", state),
    ("elf", elf),
    ("bzimage", bzimage),
    ("acpi", acpi),
    ("fw_cfg", fw_cfg),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_and_random_bytes_are_harmless() {
        for (name, target) in TARGETS {
            assert!(virtio::fuzzing::replay(name, *target) > 0, "{name} has no corpus");
            virtio::fuzzing::shower(*target, 200);
        }
    }
}
