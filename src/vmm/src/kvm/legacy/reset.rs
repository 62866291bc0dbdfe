//! The two ways to reset a PC by a port: the keyboard controller and the chipset's reset control register.

use std::sync::{Mutex, PoisonError};

use vm_superio::{I8042Device, Trigger};

use crate::kvm::bus::BusDevice;
use crate::kvm::lifecycle::{Lifecycle, Saved, StateError};
use crate::kvm::request::{Request, Requests};

/// Ports of the keyboard controller, between whose data and command port the timer's is.
pub(in crate::kvm) const I8042_PORTS: u64 = 5;
/// Bit 2 of the reset control register: reset now.
const RESET_NOW: u8 = 1 << 2;

/// Asks for a reset.
struct Button(Requests);

impl Trigger for Button {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.ask(Request::Reset);
        Ok(())
    }
}

/// A keyboard controller without a keyboard.
pub(in crate::kvm) struct I8042(Mutex<I8042Device<Button>>);

impl I8042 {
    /// One that resets this machine.
    pub(in crate::kvm) fn new(requests: Requests) -> Self {
        I8042(Mutex::new(I8042Device::new(Button(requests))))
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(offset) = u8::try_from(offset) {
            data.fill_with(|| device.read(offset));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Ok(offset), Some(value)) = (u8::try_from(offset), data.first()) {
            let Ok(()) = device.write(offset, *value);
        }
    }
}

/// The reset control register, which ACPI's table names as the reset register.
pub(in crate::kvm) struct ResetControl(Requests);

impl ResetControl {
    /// What to write to it for a reset.
    pub(in crate::kvm) const VALUE: u8 = RESET_NOW | 1 << 1;

    /// One that resets this machine.
    pub(in crate::kvm) fn new(requests: Requests) -> Self {
        ResetControl(requests)
    }
}

impl BusDevice for ResetControl {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|value| value & RESET_NOW != 0) {
            self.0.ask(Request::Reset);
        }
    }
}

macro_rules! stateless {
    ($device:ty, $name:literal) => {
        impl Lifecycle for $device {
            fn name(&self) -> &str {
                $name
            }
            fn reset(&self) {}
            fn save(&self) -> Result<Saved, StateError> {
                Saved::new(1, &())
            }
            fn restore(&self, saved: &Saved) -> Result<(), StateError> {
                saved.read(1)
            }
        }
    };
}

stateless!(I8042, "i8042");
stateless!(ResetControl, "reset-control");
