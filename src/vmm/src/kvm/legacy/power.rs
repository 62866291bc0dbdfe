//! ACPI's fixed power management registers (ACPI 6.5 §4.8.3): the power button, the way to switch off, the timer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::kvm::bus::BusDevice;
use crate::kvm::layout::SCI;
use crate::kvm::lifecycle::{Lifecycle, Saved, StateError};
use crate::kvm::request::{Request, Requests};

/// Ports: events (status, enable), control, timer.
pub(in crate::kvm) const PORTS: u64 = 12;
/// Where the status is.
const STATUS: u64 = 0;
/// Where the control register is.
pub(in crate::kvm) const CONTROL: u64 = 4;
/// Where the timer is.
pub(in crate::kvm) const TIMER: u64 = 8;
/// The timer's rate in Hz (§4.8.3.3).
const TIMER_HZ: u128 = 3_579_545;
/// Status and enable: the power button.
const POWER_BUTTON: u16 = 1 << 8;
/// Status and enable bits that there are: timer, global lock, power button, sleep button, clock.
const EVENTS: u16 = 1 | 1 << 5 | POWER_BUTTON | 1 << 9 | 1 << 10;
/// Control: events interrupt (SCI_EN). Always so: there is no other firmware to take them.
const SCI_ENABLED: u16 = 1;
/// Control: enter the sleep state.
const SLEEP: u16 = 1 << 13;
/// Control: which sleep state, three bits.
const SLEEP_TYPE_SHIFT: u16 = 10;
/// The sleep type that stands for "off", as the DSDT's `\_S5` says.
pub(in crate::kvm) const SLEEP_TYPE_OFF: u8 = 5;
/// The layout of the saved state.
const VERSION: u32 = 1;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    status: u16,
    enable: u16,
    control: u16,
}

impl Registers {
    fn pending(self) -> bool {
        self.status & self.enable != 0
    }

    fn bytes(self) -> [u8; 6] {
        let [s0, s1] = self.status.to_le_bytes();
        let [e0, e1] = self.enable.to_le_bytes();
        let [c0, c1] = (self.control & !SLEEP | SCI_ENABLED).to_le_bytes();
        [s0, s1, e0, e1, c0, c1]
    }

    /// A byte is written. True if the guest switches off.
    fn put(&mut self, offset: u64, value: u8) -> bool {
        let shift = 8 * (offset % 2);
        let (byte, mask) = (u16::from(value) << shift, 0xffu16 << shift);
        match offset & !1 {
            // Ones clear.
            STATUS => self.status &= !byte,
            2 => self.enable = (self.enable & !mask | byte) & EVENTS,
            CONTROL => {
                let control = self.control & !mask | byte;
                self.control = control & !SLEEP;
                return control & SLEEP != 0 && control >> SLEEP_TYPE_SHIFT & 7 == u16::from(SLEEP_TYPE_OFF);
            }
            _ => {}
        }
        false
    }
}

/// The registers.
pub(in crate::kvm) struct Power {
    registers: Mutex<Registers>,
    vm: Arc<VmFd>,
    requests: Requests,
    began: Instant,
}

impl Power {
    /// Those of this machine.
    pub(in crate::kvm) fn new(vm: Arc<VmFd>, requests: Requests) -> Self {
        Power {
            registers: Mutex::default(),
            vm,
            requests,
            began: Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Press the power button. A guest that listens shuts down.
    pub(in crate::kvm) fn press(&self) {
        let mut registers = self.lock();
        registers.status |= POWER_BUTTON;
        self.interrupt(*registers);
    }

    /// Set the interrupt's level. Under the registers' lock, so that levels come in order.
    fn interrupt(&self, registers: Registers) {
        if let Err(error) = self.vm.set_irq_line(SCI, registers.pending()) {
            tracing::warn!(%error, "cannot set the level of ACPI's interrupt");
        }
    }

    fn timer(&self) -> [u8; 4] {
        let ticks = self.began.elapsed().as_nanos() * TIMER_HZ / 1_000_000_000;
        // 32 bits, which wrap.
        (ticks as u32).to_le_bytes()
    }
}

impl BusDevice for Power {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut bytes = [0; PORTS as usize];
        bytes[..6].copy_from_slice(&self.lock().bytes());
        bytes[TIMER as usize..].copy_from_slice(&self.timer());
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        for (to, from) in data.iter_mut().zip(bytes.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = self.lock();
        let mut off = false;
        for (at, value) in (offset..PORTS).zip(data) {
            off |= registers.put(at, *value);
        }
        self.interrupt(*registers);
        drop(registers);
        if off {
            self.requests.ask(Request::PowerOff);
        }
    }
}

impl Lifecycle for Power {
    fn name(&self) -> &str {
        "power"
    }

    fn reset(&self) {
        let mut registers = self.lock();
        *registers = Registers::default();
        self.interrupt(*registers);
    }

    fn save(&self) -> Result<Saved, StateError> {
        Saved::new(VERSION, &*self.lock())
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let state: Registers = saved.read(VERSION)?;
        if state.status & !EVENTS != 0 || state.enable & !EVENTS != 0 {
            return Err(StateError::Malformed("events that there are not".into()));
        }
        let mut registers = self.lock();
        *registers = state;
        self.interrupt(state);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_button_is_seen_and_acknowledged() {
        let mut registers = Registers::default();
        registers.put(3, (POWER_BUTTON >> 8) as u8);
        assert!(!registers.pending());
        registers.status |= POWER_BUTTON;
        assert!(registers.pending());
        registers.put(0, 0xff);
        assert!(registers.pending(), "the other byte's bits stay");
        registers.put(1, (POWER_BUTTON >> 8) as u8);
        assert!(!registers.pending());
    }

    #[test]
    fn only_sleep_of_the_right_type_switches_off() {
        for kind in 0..8 {
            for sleep in [false, true] {
                let mut registers = Registers::default();
                let value = u16::from(kind) << SLEEP_TYPE_SHIFT | u16::from(sleep) << 13;
                let [low, high] = value.to_le_bytes();
                assert!(!registers.put(CONTROL, low));
                assert_eq!(registers.put(CONTROL + 1, high), sleep && kind == SLEEP_TYPE_OFF);
                assert_eq!(registers.bytes()[4] & 1, 1, "events interrupt, always");
            }
        }
    }

    proptest! {
        /// Whatever a guest writes, only events that there are can be enabled or pending, so that what is saved can be restored.
        #[test]
        fn any_write_leaves_registers_that_can_be_restored(writes in prop::collection::vec((0u64..20, any::<u8>()), 0..50)) {
            let mut registers = Registers::default();
            for (offset, value) in writes {
                registers.put(offset, value);
                registers.status |= POWER_BUTTON;
                prop_assert_eq!(registers.status & !EVENTS, 0);
                prop_assert_eq!(registers.enable & !EVENTS, 0);
            }
        }
    }
}
