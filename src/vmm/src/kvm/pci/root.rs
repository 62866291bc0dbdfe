//! The root of the bus: the host bridge, and the two ways to configuration space: ECAM (PCI Express base 5.0 §7.2.2)
//! and mechanism 1 (PCI Local Bus 3.0 §3.2.2.3.2), which older kernels try first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::config::{ConfigSpace, Identity};
use super::{Function, Functions};
use crate::kvm::bus::BusDevice;
use crate::kvm::lifecycle::{Lifecycle, Saved, StateError};

/// Ports of mechanism 1: address, data. The reset control register lies in the first four.
pub(in crate::kvm) const CONFIG_PORTS: u64 = 8;
/// The first data port.
const DATA: u64 = 4;
/// The reset control register's place.
const RESET_CONTROL: u64 = 1;
/// Address: the data ports lead to configuration space.
const ENABLED: u32 = 1 << 31;
/// Address: bus, device, function, register; the two lowest bits are the data port's.
const ADDRESS_BITS: u32 = 0x80ff_fffc;
/// The layout of the saved state.
const VERSION: u32 = 1;

/// The root, and the functions on its bus.
pub(in crate::kvm) struct Root {
    bridge: Mutex<ConfigSpace>,
    functions: Functions,
}

impl Root {
    /// With the host bridge, which is function 0 of device 0, and these functions.
    pub(in crate::kvm) fn new(functions: Functions) -> Self {
        Root {
            functions,
            bridge: Mutex::new(ConfigSpace::new(Identity {
                // Intel's 82G33, which drivers know as a PCI Express host bridge with nothing to be done about it.
                vendor: 0x8086,
                device: 0x29c0,
                class: 0x06_0000,
                revision: 0,
            })),
        }
    }

    fn bridge(&self) -> MutexGuard<'_, ConfigSpace> {
        // Bytes, each of which is changed at once.
        self.bridge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Read from a register on. `function` counts bus, device and function as ECAM does. All ones where there is none.
    fn read(&self, function: u64, register: usize, data: &mut [u8]) {
        data.fill(0xff);
        if function == 0 {
            self.bridge().read(register, data);
        } else if let Some(function) = self.function(function) {
            function.read_config(register, data);
        }
    }

    fn write(&self, function: u64, register: usize, data: &[u8]) {
        if function == 0 {
            self.bridge().write(register, data);
        } else if let Some(function) = self.function(function) {
            function.write_config(register, data);
        }
    }

    /// Device `n` is the one with number `n - 1`, as function 0.
    fn function(&self, function: u64) -> Option<&dyn Function> {
        let index = usize::try_from(function / 8).ok()?.checked_sub(1)?;
        let found = self.functions.get(index).filter(|_| function.is_multiple_of(8));
        found.map(Arc::as_ref)
    }
}

/// ECAM: 4 KiB for each function.
impl BusDevice for Root {
    fn read(&self, offset: u64, data: &mut [u8]) {
        Root::read(self, offset >> 12, (offset & 0xfff) as usize, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        Root::write(self, offset >> 12, (offset & 0xfff) as usize, data);
    }
}

impl Lifecycle for Root {
    fn name(&self) -> &str {
        "pci-host-bridge"
    }

    fn reset(&self) {
        self.bridge().reset();
    }

    fn save(&self) -> Result<Saved, StateError> {
        self.bridge().save()
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        self.bridge().restore(saved)
    }
}

/// The device memory below ECAM: whoever has opened a window at an address answers.
pub(in crate::kvm) struct Window {
    /// The first address of the bus place.
    base: u64,
    functions: Functions,
}

impl Window {
    /// Of these functions, on a bus place that begins at `base`.
    pub(in crate::kvm) fn new(base: u64, functions: Functions) -> Self {
        Window { base, functions }
    }

    fn find(&self, offset: u64) -> Option<(&dyn Function, u32)> {
        let address = self.base.checked_add(offset)?;
        self.functions.iter().find_map(|function| {
            let within = address.checked_sub(function.window()?.into())?;
            let within = u32::try_from(within).ok()?;
            (within < function.window_size()).then_some((function.as_ref(), within))
        })
    }
}

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((function, within)) = self.find(offset) {
            function.read(within, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, within)) = self.find(offset) {
            function.write(within, data);
        }
    }
}

/// Mechanism 1.
pub(in crate::kvm) struct ConfigPorts {
    root: Arc<Root>,
    reset: Arc<dyn BusDevice>,
    address: Mutex<u32>,
}

#[derive(Serialize, Deserialize)]
struct State {
    address: u32,
}

impl ConfigPorts {
    /// To this root. A byte for port 0xcf9 goes to `reset`.
    pub(in crate::kvm) fn new(root: Arc<Root>, reset: Arc<dyn BusDevice>) -> Self {
        ConfigPorts {
            root,
            reset,
            address: Mutex::new(0),
        }
    }

    fn address(&self) -> MutexGuard<'_, u32> {
        self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the data port at `offset` leads: function and register.
    fn target(&self, offset: u64) -> Option<(u64, usize)> {
        let address = *self.address();
        let function = u64::from(address >> 8 & 0xffff);
        let register = (address & 0xfc) as usize + (offset - DATA) as usize;
        (address & ENABLED != 0).then_some((function, register))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            // The address is one register of 32 bits; narrower accesses are not its own.
            (0, 4) => data.copy_from_slice(&self.address().to_le_bytes()),
            (RESET_CONTROL, 1) => self.reset.read(0, data),
            (0..DATA, _) => {}
            // An access does not go beyond its four bytes.
            (_, length) if length as u64 <= DATA + 4 - offset.min(DATA + 4) => {
                if let Some((function, register)) = self.target(offset) {
                    self.root.read(function, register, data);
                }
            }
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, &[a, b, c, d]) => *self.address() = u32::from_le_bytes([a, b, c, d]) & ADDRESS_BITS,
            (RESET_CONTROL, [_]) => self.reset.write(0, data),
            (0..DATA, _) => {}
            (_, data) if data.len() as u64 <= DATA + 4 - offset.min(DATA + 4) => {
                if let Some((function, register)) = self.target(offset) {
                    self.root.write(function, register, data);
                }
            }
            _ => {}
        }
    }
}

impl Lifecycle for ConfigPorts {
    fn name(&self) -> &str {
        "pci-config-ports"
    }

    fn reset(&self) {
        *self.address() = 0;
    }

    fn save(&self) -> Result<Saved, StateError> {
        let state = State {
            address: *self.address(),
        };
        Saved::new(VERSION, &state)
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let state: State = saved.read(VERSION)?;
        *self.address() = state.address & ADDRESS_BITS;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Presses(Mutex<Vec<u8>>);

    impl BusDevice for Presses {
        fn read(&self, _: u64, data: &mut [u8]) {
            data.fill(0);
        }
        fn write(&self, _: u64, data: &[u8]) {
            self.0.lock().unwrap().extend_from_slice(data);
        }
    }

    fn ports() -> (Arc<Presses>, Arc<Root>, ConfigPorts) {
        let (reset, root) = (Arc::new(Presses::default()), Arc::new(Root::new(Vec::new())));
        let ports = ConfigPorts::new(root.clone(), reset.clone());
        (reset, root, ports)
    }

    fn read<const N: usize>(device: &dyn BusDevice, offset: u64) -> [u8; N] {
        let mut data = [0xff; N];
        device.read(offset, &mut data);
        data
    }

    #[test]
    fn both_ways_lead_to_the_same_registers() {
        let (_, root, ports) = ports();
        ports.write(0, &0x8000_0000u32.to_le_bytes());
        assert_eq!(read::<4>(&ports, 0), 0x8000_0000u32.to_le_bytes());
        assert_eq!(read::<4>(&ports, 4), [0x86, 0x80, 0xc0, 0x29]);
        assert_eq!(read::<2>(&ports, 6), [0xc0, 0x29]);
        assert_eq!(read::<4>(&*root, 0), read::<4>(&ports, 4));
        ports.write(0, &0x8000_0004u32.to_le_bytes());
        ports.write(4, &[0xff, 0xff]);
        assert_eq!(read::<2>(&*root, 4), [0x07, 0x04]);
        // Another function, another bus, and the ports switched off.
        for address in [0x8000_0100u32, 0x8000_0800, 0x8001_0000, 0] {
            ports.write(0, &address.to_le_bytes());
            assert_eq!(read::<4>(&ports, 4), [0xff; 4], "{address:#x}");
        }
        assert_eq!(read::<4>(&*root, 0x1000), [0xff; 4]);
        assert_eq!(read::<4>(&*root, 0x100), [0; 4], "no extended capabilities");
    }

    #[test]
    fn a_byte_for_the_reset_register_is_not_the_address() {
        let (reset, _, ports) = ports();
        ports.write(1, &[6]);
        assert_eq!(*reset.0.lock().unwrap(), [6]);
        assert_eq!(read::<4>(&ports, 0), [0; 4]);
        ports.write(0, &0x8000_0600u32.to_le_bytes());
        assert_eq!(*reset.0.lock().unwrap(), [6], "the address is not a reset");
    }

    proptest! {
        /// Whatever ports and ECAM are used for: no panic, and the host bridge stays what it is.
        #[test]
        fn any_access_is_harmless(accesses in prop::collection::vec(
            (any::<bool>(), prop_oneof![0u64..8, 0u64..0x1_0000, any::<u64>()], prop::collection::vec(any::<u8>(), 0..17)), 0..60
        )) {
            let (_, root, ports) = ports();
            for (ecam, offset, mut data) in accesses {
                let device: &dyn BusDevice = if ecam { &*root } else { &ports };
                device.write(offset, &data);
                device.read(offset, &mut data);
            }
            prop_assert_eq!(read::<4>(&*root, 0), [0x86, 0x80, 0xc0, 0x29]);
        }
    }
}
