//! Devices on a bus without a machine: what a vCPU's accesses reach, with interrupts and doorbells that are only noted.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio::block::Geometry;
use virtio::fuzzing::RamDisk;
use virtio::memory::Memory;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::kvm::bus::{Bus, BusDevice};
use crate::kvm::layout;
use crate::kvm::lifecycle::{Lifecycle, StateError};
use crate::kvm::pci::msix::{Message, Routes};
use crate::kvm::pci::{CONFIG_PORTS, ConfigPorts, Function, Functions, IsaBridge, Root, Window};
use crate::kvm::virtio::Device;
use crate::kvm::virtio::block::{BlockDevice, Disk};
use crate::kvm::virtio::rng::Rng;
use crate::kvm::virtio::transport::{Doorbells, VirtioPci, WINDOW};

/// Bytes of the guest's memory, from 0 on.
pub(in crate::kvm) const MEMORY: u64 = 1 << 20;
/// Sectors of the disk.
pub(in crate::kvm) const SECTORS: u64 = 256;
/// Its queues.
pub(in crate::kvm) const QUEUES: u16 = 4;
/// What KVM takes as interrupt numbers, pins among them.
const NUMBERS: u32 = 4096;

/// KVM's part, as far as it keeps books.
#[derive(Default)]
pub(in crate::kvm) struct Books {
    connected: Mutex<BTreeMap<u32, Message>>,
    bells: Mutex<BTreeMap<u64, i32>>,
    next: AtomicU32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Books {
    /// Nothing is connected or bound.
    pub(in crate::kvm) fn are_empty(&self) -> bool {
        lock(&self.connected).is_empty() && lock(&self.bells).is_empty()
    }
}

impl Routes for Books {
    fn connect(&self, _: &EventFd, number: u32, message: Message) -> Result<(), StateError> {
        let old = lock(&self.connected).insert(number, message);
        assert_eq!(old, None, "connected twice");
        Ok(())
    }

    fn disconnect(&self, _: &EventFd, number: u32) {
        let old = lock(&self.connected).remove(&number);
        assert!(old.is_some(), "was not connected");
    }

    fn allocate(&self) -> Option<u32> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        (next < NUMBERS).then_some(next)
    }
}

impl Doorbells for Books {
    fn bind(&self, address: u64, bell: &EventFd) -> Result<(), StateError> {
        let mut bells = lock(&self.bells);
        // As KVM answers where another doorbell is.
        if bells.contains_key(&address) {
            return Err(StateError::Os("EEXIST".into()));
        }
        bells.insert(address, bell.as_raw_fd());
        Ok(())
    }

    fn unbind(&self, address: u64, bell: &EventFd) {
        let old = lock(&self.bells).remove(&address);
        assert_eq!(old, Some(bell.as_raw_fd()), "another's doorbell");
    }
}

/// Nothing.
struct Deaf;

impl BusDevice for Deaf {
    fn read(&self, _: u64, _: &mut [u8]) {}
    fn write(&self, _: u64, _: &[u8]) {}
}

/// The devices.
pub(in crate::kvm) struct Rig {
    pub(in crate::kvm) memory: Arc<Memory>,
    pub(in crate::kvm) books: Arc<Books>,
    pub(in crate::kvm) functions: Vec<Arc<VirtioPci>>,
    pub(in crate::kvm) disk: Arc<BlockDevice>,
    pub(in crate::kvm) ports: Bus,
    pub(in crate::kvm) space: Bus,
    root: Arc<Root>,
    config: Arc<ConfigPorts>,
}

impl Rig {
    /// A disk, whose backend is as chaotic as its seed says, and the entropy device.
    ///
    /// # Panics
    /// If the system has not so much as that takes.
    pub(in crate::kvm) fn new(chaos: u64) -> Self {
        let fail = |what: &dyn std::fmt::Display| -> ! { panic!("no rig for the fuzzer: {what}") };
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY as usize)])
            .map(Arc::new)
            .unwrap_or_else(|error| fail(&error));
        let books = Arc::new(Books::default());
        let bytes = Arc::new(Mutex::new(vec![0x11; (SECTORS * 512) as usize]));
        let mut storage = RamDisk::new(bytes).unwrap_or_else(|error| fail(&error));
        storage.set_chaos(chaos);
        let disk = Arc::new(BlockDevice::new(Disk {
            name: "disk".into(),
            geometry: Geometry {
                sectors: SECTORS,
                read_only: false,
                queues: QUEUES,
                serial: *b"fuzzed\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            },
            storage: Box::new(storage),
        }));
        // Console, balloon, vsock: here.
        let devices: [Arc<dyn Device>; 2] = [disk.clone(), Arc::new(Rng::default())];
        let functions: Vec<_> = devices
            .into_iter()
            .zip((layout::HOLE as u32..).step_by(WINDOW as usize))
            .map(|(device, base)| {
                VirtioPci::new(device, memory.clone(), base, books.clone(), books.clone())
                    .map(Arc::new)
                    .unwrap_or_else(|error| fail(&error))
            })
            .collect();
        let all: Functions = functions
            .iter()
            .map(|one| one.clone() as Arc<dyn Function>)
            .collect();
        let root = Arc::new(Root::new(all, Some(Arc::new(IsaBridge::new()))));
        let config = Arc::new(ConfigPorts::new(root.clone(), Arc::new(Deaf)));
        let (mut ports, mut space) = (Bus::default(), Bus::default());
        let placed = ports
            .add(layout::PCI_CONFIG, CONFIG_PORTS, config.clone())
            .and_then(|()| space.add(layout::ECAM, layout::ECAM_SIZE, root.clone()))
            .and_then(|()| {
                let window = Arc::new(Window::new(layout::LOW_END, root.clone()));
                space.add(layout::LOW_END, layout::ECAM - layout::LOW_END, window)
            })
            .and_then(|()| {
                let start = layout::ECAM + layout::ECAM_SIZE;
                let window = Arc::new(Window::new(start, root.clone()));
                space.add(start, layout::IO_APIC - start, window)
            });
        if let Err(error) = placed {
            fail(&error);
        }
        Rig {
            memory,
            books,
            functions,
            disk,
            ports,
            space,
            root,
            config,
        }
    }

    /// All that the machine's driver would tell something.
    pub(in crate::kvm) fn parts(&self) -> impl Iterator<Item = &dyn Lifecycle> {
        let functions = self.functions.iter().map(|one| &**one as &dyn Lifecycle);
        [&*self.root as &dyn Lifecycle, &*self.config]
            .into_iter()
            .chain(functions)
    }

    /// A write to configuration space.
    pub(in crate::kvm) fn configure(&self, device: u64, register: u64, value: u32, length: usize) {
        let at = layout::ECAM + (device << 15) + register;
        self.space.write(at, &value.to_le_bytes()[..length.min(4)]);
    }

    /// A read of it.
    #[cfg(test)]
    pub(in crate::kvm) fn configuration(&self, device: u64, register: u64) -> u32 {
        let mut data = [0; 4];
        self.space
            .read(layout::ECAM + (device << 15) + register, &mut data);
        u32::from_le_bytes(data)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.parts().for_each(Lifecycle::halt);
    }
}
