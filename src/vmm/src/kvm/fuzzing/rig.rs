//! Devices on a bus without a machine: what a vCPU's accesses reach, with interrupts and doorbells that are only noted.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::disk::DiskLimits;
use model::net::MacAddr;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use virtio::block::Geometry;
use virtio::fuzzing::RamDisk;
use virtio::memory::Memory;
use vm_memory::{FileOffset, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::kvm::bus::{Bus, BusDevice};
use crate::kvm::layout;
use crate::kvm::legacy::fw_cfg::{self, FwCfg, Items};
use crate::kvm::legacy::output::Output;
use crate::kvm::lifecycle::{Lifecycle, StateError};
use crate::kvm::pci::msix::{Message, Routes};
use crate::kvm::pci::{CONFIG_PORTS, ConfigPorts, Function, Functions, IsaBridge, Root, Window};
use crate::kvm::virtio::Device;
use crate::kvm::virtio::balloon::Balloon;
use crate::kvm::virtio::block::{BlockDevice, Disk};
use crate::kvm::virtio::console::ConsoleDevice;
use crate::kvm::virtio::net::{NetDevice, Nic};
use crate::kvm::virtio::rng::Rng;
use crate::kvm::virtio::transport::{Doorbells, VirtioPci, WINDOW};
use crate::kvm::virtio::vsock::{Vsock, VsockDevice};
use crate::kvm::virtio::worker::inline;

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

/// A device of a rig.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kvm) enum Kind {
    /// A disk, with [`QUEUES`] queues.
    Disk,
    /// A network interface with two pairs of queues, whose backend never is there.
    Net,
    Console,
    Balloon,
    /// Sockets, to nobody if there is no folder of them.
    Vsock,
    Rng,
}

/// All kinds.
#[cfg(test)]
pub(in crate::kvm) const ALL: [Kind; 6] = [
    Kind::Disk,
    Kind::Net,
    Kind::Console,
    Kind::Balloon,
    Kind::Vsock,
    Kind::Rng,
];

/// The devices.
pub(in crate::kvm) struct Rig {
    pub(in crate::kvm) memory: Arc<Memory>,
    pub(in crate::kvm) books: Arc<Books>,
    pub(in crate::kvm) functions: Vec<Arc<VirtioPci>>,
    /// How many queues each function has.
    pub(in crate::kvm) queues: Vec<u64>,
    pub(in crate::kvm) ports: Bus,
    pub(in crate::kvm) space: Bus,
    disk: Option<Arc<BlockDevice>>,
    net: Option<Arc<NetDevice>>,
    console: Option<Arc<ConsoleDevice>>,
    balloon: Option<Arc<Balloon>>,
    printed: Output,
    firmware: Arc<FwCfg>,
    root: Arc<Root>,
    config: Arc<ConfigPorts>,
}

fn fail(what: &dyn Display) -> ! {
    panic!("no rig for the fuzzer: {what}")
}

/// A guest's memory, that can be shared and given back, and its file.
fn memory() -> (Arc<Memory>, Arc<File>) {
    let made = memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).map(File::from);
    let file = Arc::new(made.unwrap_or_else(|error| fail(&error)));
    let share = file.set_len(MEMORY).and_then(|()| file.try_clone());
    let share = share.unwrap_or_else(|error| fail(&error));
    let range = (GuestAddress(0), MEMORY as usize, Some(FileOffset::new(share, 0)));
    let memory = Memory::from_ranges_with_files([range]).unwrap_or_else(|error| fail(&error));
    (Arc::new(memory), file)
}

/// The one memory of a fuzzer's thread, all zeroes: to give back the pages that were touched costs less than to map it anew.
fn cleared() -> Arc<Memory> {
    thread_local! {
        static ONE: (Arc<Memory>, Arc<File>) = memory();
    }
    let (memory, file) = ONE.with(Clone::clone);
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    if let Err(error) = fallocate(&file, punch, 0, MEMORY as i64) {
        fail(&error);
    }
    memory
}

impl Rig {
    /// These devices, each kind once at most. A disk's backend is as chaotic as its seed says.
    ///
    /// # Panics
    /// If the system has not so much as that takes.
    pub(in crate::kvm) fn new(chaos: u64, kinds: &[Kind]) -> Self {
        Self::with_sockets(chaos, kinds, None)
    }

    /// The same, and the guest's sockets lead to those in this folder.
    ///
    /// # Panics
    /// If the system has not so much as that takes.
    pub(in crate::kvm) fn with_sockets(chaos: u64, kinds: &[Kind], folder: Option<PathBuf>) -> Self {
        let memory = if inline::chosen() { cleared() } else { memory().0 };
        let books = Arc::new(Books::default());
        let has = |kind: Kind| kinds.contains(&kind);
        let disk = has(Kind::Disk).then(|| Arc::new(new_disk(chaos)));
        let net = has(Kind::Net).then(|| {
            let nic = Nic {
                name: "net".into(),
                mac: MacAddr([2, 0, 0, 0, 0, 5]),
                mtu: 1450,
                queue_pairs: 2,
                connect: Box::new(|| Err(io::ErrorKind::NotFound.into())),
            };
            NetDevice::new(nic)
                .map(Arc::new)
                .unwrap_or_else(|error| fail(&error))
        });
        let printed = Output::idle();
        let console = has(Kind::Console).then(|| Arc::new(ConsoleDevice::new(printed.inlet())));
        let balloon = has(Kind::Balloon).then(|| Arc::new(Balloon::new(MEMORY >> 20)));
        let device = |kind: &Kind| -> Option<Arc<dyn Device>> {
            Some(match kind {
                Kind::Disk => disk.clone()?,
                Kind::Net => net.clone()?,
                Kind::Console => console.clone()?,
                Kind::Balloon => balloon.clone()?,
                Kind::Vsock => {
                    let spec = Vsock {
                        cid: 3,
                        listener: None,
                        folder: folder.clone(),
                    };
                    Arc::new(VsockDevice::new(spec).unwrap_or_else(|error| fail(&error)))
                }
                Kind::Rng => Arc::new(Rng::default()),
            })
        };
        let devices: Vec<_> = kinds.iter().filter_map(device).collect();
        let queues = devices
            .iter()
            .map(|device| device.queues().len() as u64)
            .collect();
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
        let mut items = Items::default();
        items.add_file("etc/file", vec![0x55; 4096]);
        let firmware = Arc::new(FwCfg::new(items, (*memory).clone()));
        let (mut ports, mut space) = (Bus::default(), Bus::default());
        let placed = ports
            .add(layout::PCI_CONFIG, CONFIG_PORTS, config.clone())
            .and_then(|()| ports.add(layout::FW_CFG, fw_cfg::PORTS, firmware.clone()))
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
            queues,
            ports,
            space,
            disk,
            net,
            console,
            balloon,
            printed,
            firmware,
            root,
            config,
        }
    }

    /// All that the machine's driver would tell something.
    pub(in crate::kvm) fn parts(&self) -> impl Iterator<Item = &dyn Lifecycle> {
        let functions = self.functions.iter().map(|one| &**one as &dyn Lifecycle);
        [&*self.root as &dyn Lifecycle, &*self.config, &*self.firmware]
            .into_iter()
            .chain(functions)
    }

    /// What a machine's owner does: disks grow, somebody types and reads, the balloon is to have another size.
    pub(in crate::kvm) fn stir(&self, how: u8) {
        if let Some(disk) = &self.disk {
            disk.resize(u64::from(how) * 512);
            disk.limit(&DiskLimits::default());
            disk.status();
        }
        if let Some(net) = &self.net {
            assert!(!net.status().connected);
        }
        if let Some(console) = &self.console {
            console.type_in(&[how; 255][..how.into()]);
            self.printed.take_out();
        }
        if let Some(balloon) = &self.balloon {
            balloon.aim(u64::from(how & 3));
            balloon.status();
        }
    }

    /// The features that a function offers.
    pub(in crate::kvm) fn offered(&self, function: usize) -> u64 {
        let half = |select: u32| {
            let mut data = [0; 4];
            if let Some(device) = self.functions.get(function) {
                device.write(0, &select.to_le_bytes());
                device.read(4, &mut data);
            }
            u64::from(u32::from_le_bytes(data))
        };
        half(0) | half(1) << 32
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

fn new_disk(chaos: u64) -> BlockDevice {
    let bytes = Arc::new(Mutex::new(vec![0x11; (SECTORS * 512) as usize]));
    let mut storage = RamDisk::new(bytes).unwrap_or_else(|error| fail(&error));
    storage.set_chaos(chaos);
    BlockDevice::new(Disk {
        name: "disk".into(),
        geometry: Geometry {
            sectors: SECTORS,
            read_only: false,
            queues: QUEUES,
            serial: *b"fuzzed\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        },
        storage: Box::new(storage),
    })
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.parts().for_each(Lifecycle::halt);
    }
}
