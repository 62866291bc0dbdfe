//! The bridge to ISA, of which firmware wants to know where power management is (Intel 82801I "ICH9" datasheet §13.1).

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::config::{ConfigSpace, Identity};
use crate::kvm::layout::PM;
use crate::kvm::lifecycle::{Lifecycle, Saved, StateError};

/// Where the block of ACPI's registers is, and whether it answers: always, and here.
const PM_BASE: usize = 0x40;
const PM_CONTROL: usize = 0x44;
const DECODES_PORTS: u32 = 1;
const ENABLED: u8 = 1 << 7;
/// Where the interrupts A to D and E to H go, of which nobody has one: firmware's notes. The highest bit: nowhere.
const INTERRUPT_ROUTES: [usize; 2] = [0x60, 0x68];
const NOWHERE: u8 = 1 << 7;

/// The bridge, device 31.
pub(in crate::kvm) struct IsaBridge(Mutex<ConfigSpace>);

impl IsaBridge {
    /// As after power on.
    pub(in crate::kvm) fn new() -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x2918,
            class: 0x06_0100,
            revision: 2,
        });
        config.add_registers(PM_BASE, &(PM as u32 | DECODES_PORTS).to_le_bytes(), &[0; 4]);
        config.add_registers(PM_CONTROL, &[ENABLED], &[0]);
        for at in INTERRUPT_ROUTES {
            config.add_registers(at, &[NOWHERE; 4], &[NOWHERE | 0xf; 4]);
        }
        IsaBridge(Mutex::new(config))
    }

    /// Its configuration space.
    pub(super) fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        // Bytes, each of which is changed at once.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lifecycle for IsaBridge {
    fn name(&self) -> &str {
        "pci-isa-bridge"
    }

    fn reset(&self) {
        self.config().reset();
    }

    fn save(&self) -> Result<Saved, StateError> {
        self.config().save()
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        self.config().restore(saved)
    }
}
