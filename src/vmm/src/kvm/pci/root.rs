//! The root of the bus: the host bridge, and the two ways to configuration space: ECAM (PCI Express base 5.0 §7.2.2)
//! and mechanism 1 (PCI Local Bus 3.0 §3.2.2.3.2), which older kernels try first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::config::{ConfigSpace, Identity};
use super::{Function, Functions, IsaBridge};
use crate::kvm::bus::BusDevice;
use crate::kvm::layout::ECAM;
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
/// The host bridge's register that says where configuration space is seen in memory (Intel 82Q35 datasheet §5.1.16,
/// "PCIEXBAR"): bit 0 that it is, 28 and above where. It is seen at [`ECAM`] anyway, and where firmware moves it.
const SEEN_AT: usize = 0x60;
const SEEN: u32 = 1;
const SEEN_AT_BITS: u64 = 0xf_f000_0000;
/// Bytes that are seen: 256 buses, of which there is one.
const SEEN_SIZE: u64 = 256 << 20;
/// The registers that say whether there is memory from 0xc_0000 on (§5.1.20, "PAM0" to "PAM6"). Here there is, and it can be
/// written, whatever they say; but at first they must say that there is not, so that SeaBIOS copies itself there.
const SHADOW: usize = 0x90;
const SHADOW_BITS: [u8; 7] = [0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33];
/// The number of the bridge to ISA.
const ISA: u64 = 31 << 3;
/// The layout of the saved state.
const VERSION: u32 = 1;

/// The root, and the functions on its bus.
pub(in crate::kvm) struct Root {
    bridge: Mutex<ConfigSpace>,
    isa: Option<Arc<IsaBridge>>,
    functions: Functions,
}

impl Root {
    /// With the host bridge, which is function 0 of device 0, these functions, and perhaps a bridge to ISA.
    pub(in crate::kvm) fn new(functions: Functions, isa: Option<Arc<IsaBridge>>) -> Self {
        let mut bridge = ConfigSpace::new(Identity {
            // Intel's 82G33, which kernels know as a PCI Express host bridge with nothing to be done about it, and firmware as
            // that of QEMU's `q35`.
            vendor: 0x8086,
            device: 0x29c0,
            class: 0x06_0000,
            revision: 0,
        });
        let seen_at = (ECAM | u64::from(SEEN)).to_le_bytes();
        bridge.add_registers(SEEN_AT, &seen_at, &(SEEN_AT_BITS | u64::from(SEEN)).to_le_bytes());
        bridge.add_registers(SHADOW, &[0; SHADOW_BITS.len()], &SHADOW_BITS);
        Root {
            functions,
            isa,
            bridge: Mutex::new(bridge),
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
        } else if let Some(isa) = self.isa.as_ref().filter(|_| function == ISA) {
            isa.config().read(register, data);
        } else if let Some(function) = self.function(function) {
            function.read_config(register, data);
        }
    }

    fn write(&self, function: u64, register: usize, data: &[u8]) {
        if function == 0 {
            self.bridge().write(register, data);
        } else if let Some(isa) = self.isa.as_ref().filter(|_| function == ISA) {
            isa.config().write(register, data);
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

    /// The offset in configuration space of this address of memory, if firmware wants to see it there.
    fn seen(&self, address: u64) -> Option<u64> {
        let bridge = self.bridge();
        let (low, high) = (bridge.word(SEEN_AT), bridge.word(SEEN_AT + 4));
        let base = (u64::from(high) << 32 | u64::from(low)) & SEEN_AT_BITS;
        let offset = address.checked_sub(base)?;
        (low & SEEN != 0 && offset < SEEN_SIZE).then_some(offset)
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

/// Device memory beside ECAM: whoever has opened a window at an address answers, or configuration space, if firmware has
/// moved it here.
pub(in crate::kvm) struct Window {
    /// The first address of the bus place.
    base: u64,
    root: Arc<Root>,
}

impl Window {
    /// Of this root's functions, on a bus place that begins at `base`.
    pub(in crate::kvm) fn new(base: u64, root: Arc<Root>) -> Self {
        Window { base, root }
    }

    fn find(&self, offset: u64) -> Option<(&dyn Function, u32)> {
        let address = self.base.checked_add(offset)?;
        self.root.functions.iter().find_map(|function| {
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
        } else if let Some(seen) = self.root.seen(self.base.saturating_add(offset)) {
            BusDevice::read(&*self.root, seen, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, within)) = self.find(offset) {
            function.write(within, data);
        } else if let Some(seen) = self.root.seen(self.base.saturating_add(offset)) {
            BusDevice::write(&*self.root, seen, data);
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
        let (reset, root) = (
            Arc::new(Presses::default()),
            Arc::new(Root::new(Vec::new(), Some(Arc::new(IsaBridge::new())))),
        );
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

    #[test]
    fn configuration_space_is_seen_where_firmware_moves_it_and_at_ecam() {
        let root = Arc::new(Root::new(Vec::new(), Some(Arc::new(IsaBridge::new()))));
        let place = 0xb000_0000;
        let window = Window::new(place, root.clone());
        assert_eq!(read::<4>(&window, 0), [0xff; 4]);
        let base = (place | 1).to_le_bytes();
        BusDevice::write(&*root, SEEN_AT as u64 + 4, &base[4..]);
        BusDevice::write(&*root, SEEN_AT as u64, &base[..4]);
        for device in [&*root as &dyn BusDevice, &window] {
            assert_eq!(read::<4>(device, 0), [0x86, 0x80, 0xc0, 0x29]);
            assert_eq!(read::<4>(device, ISA << 12), [0x86, 0x80, 0x18, 0x29]);
            // Where ACPI's registers are cannot be changed.
            device.write(ISA << 12 | 0x40, &[0; 5]);
            assert_eq!(read::<5>(device, ISA << 12 | 0x40), [0x01, 0x06, 0, 0, 0x80]);
        }
        assert_eq!(read::<4>(&window, 1 << 20), [0xff; 4], "the second bus");
        assert_eq!(read::<4>(&window, SEEN_SIZE), [0xff; 4]);
        BusDevice::write(&*root, SEEN_AT as u64, &[0]);
        assert_eq!(read::<4>(&window, 0), [0xff; 4]);
        root.reset();
        assert_eq!(root.seen(ECAM), Some(0));
    }

    proptest! {
        /// Whatever ports, ECAM and the memory beside it are used for: no panic, and the bridges stay what they are.
        #[test]
        fn any_access_is_harmless(accesses in prop::collection::vec(
            (0..3usize, prop_oneof![0u64..8, 0x60u64..0x68, 0u64..0x10_0000, any::<u64>()], prop::collection::vec(any::<u8>(), 0..17)),
            0..60
        )) {
            let (_, root, ports) = ports();
            let window = Window::new(0xb000_0000, root.clone());
            for (device, offset, mut data) in accesses {
                let device = [&*root as &dyn BusDevice, &ports, &window][device];
                device.write(offset, &data);
                device.read(offset, &mut data);
            }
            prop_assert_eq!(read::<4>(&*root, ISA << 12), [0x86, 0x80, 0x18, 0x29]);
            let saved = root.save().unwrap();
            root.restore(&saved).unwrap();
            prop_assert_eq!(read::<4>(&*root, 0), [0x86, 0x80, 0xc0, 0x29]);
        }
    }
}
