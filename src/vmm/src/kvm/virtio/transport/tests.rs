//! A driver in test code, against the registers alone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use virtio::block::Geometry;
use virtio::fuzzing::RamDisk;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::kvm::pci::msix::tests::Fake;
use crate::kvm::virtio::block::{BlockDevice, Disk};
use crate::kvm::virtio::rng::Rng;

/// Where firmware puts the window.
const BASE: u32 = 0xc000_8000;

#[derive(Default)]
struct Bells(Mutex<BTreeMap<u64, i32>>);

impl Doorbells for Bells {
    fn bind(&self, address: u64, bell: &EventFd) -> Result<(), StateError> {
        use std::os::fd::AsRawFd;
        let old = self.0.lock().unwrap().insert(address, bell.as_raw_fd());
        assert_eq!(old, None);
        Ok(())
    }
    fn unbind(&self, address: u64, _: &EventFd) {
        assert!(self.0.lock().unwrap().remove(&address).is_some());
    }
}

struct Guest {
    memory: Arc<Memory>,
    routes: Arc<Fake>,
    bells: Arc<Bells>,
    function: VirtioPci,
}

impl Guest {
    fn new() -> Self {
        Self::with(Arc::new(Rng::default()))
    }

    fn with(device: Arc<dyn Device>) -> Self {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
        let (routes, bells) = (Arc::new(Fake::default()), Arc::new(Bells::default()));
        let function = VirtioPci::new(device, memory.clone(), BASE, routes.clone(), bells.clone()).unwrap();
        Guest {
            memory,
            routes,
            bells,
            function,
        }
    }

    fn config(&self, register: usize) -> u32 {
        let mut data = [0; 4];
        self.function.read_config(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn read(&self, offset: u32, length: usize) -> u64 {
        let mut data = [0; 8];
        self.function.read(offset, &mut data[..length]);
        u64::from_le_bytes(data)
    }

    fn write(&self, offset: u32, length: usize, value: u64) {
        self.function.write(offset, &value.to_le_bytes()[..length]);
    }

    /// Open the window, switch on interrupts, set up the ring at 0x1000, and say that the driver is ready.
    fn drive(&self) {
        self.function.write_config(4, &6u16.to_le_bytes());
        self.function
            .write_config(self.function.msix_at + 2, &msix::ENABLE.to_le_bytes());
        for vector in 0..2u32 {
            self.write(TABLE + vector * 16, 4, 0xfee0_0000);
            self.write(TABLE + vector * 16 + 8, 4, (0x40 + vector).into());
            self.write(TABLE + vector * 16 + 12, 4, 0);
        }
        self.write(20, 1, 3);
        self.write(8, 4, 1);
        self.write(12, 4, 1);
        self.write(20, 1, 11);
        assert_eq!(self.read(20, 1), 11);
        self.write(24, 2, 8);
        self.write(26, 2, 1);
        for (at, place) in [(32, 0x1000), (40, 0x2000), (48, 0x3000)] {
            self.write(at, 4, place);
        }
        self.write(28, 2, 1);
        self.write(20, 1, 15);
    }

    /// Offer a buffer of 32 bytes as number `index`, and ring.
    fn offer(&self, index: u16) {
        let slot = u64::from(index % 8);
        let put = |value: u64, at: u64| self.memory.write_obj(value, GuestAddress(at)).unwrap();
        put(0x8000 + slot * 64, 0x1000 + slot * 16);
        put(32 | 2 << 32, 0x1008 + slot * 16);
        self.memory
            .write_obj(slot as u16, GuestAddress(0x2004 + slot * 2))
            .unwrap();
        self.memory.write_obj(index + 1, GuestAddress(0x2002)).unwrap();
        self.write(NOTIFY, 2, 0);
    }

    fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(0x3002)).unwrap()
    }

    fn waits_for(&self, used: u16) {
        let start = Instant::now();
        while self.used() != used {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{} of {used}",
                self.used()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The vector's signal, which nobody takes here.
    fn signalled(&self, vector: u16) -> u64 {
        let inner = self.function.lock();
        inner.msix.signal(vector).unwrap().read().unwrap_or(0)
    }
}

#[test]
fn the_capabilities_lead_to_the_structures() {
    let guest = Guest::new();
    assert_eq!(guest.config(0), 0x1044_1af4);
    assert_eq!(guest.config(0x10), BASE);
    let mut kinds = Vec::new();
    let mut at = (guest.config(0x34) & 0xff) as usize;
    while at != 0 {
        let head = guest.config(at);
        if head & 0xff == u32::from(VENDOR) {
            kinds.push((head >> 24, guest.config(at + 8)));
        }
        at = (head >> 8 & 0xff) as usize;
    }
    assert_eq!(kinds, [(1, COMMON), (2, NOTIFY), (3, ISR), (4, DEVICE), (5, 0)]);
    assert_eq!(guest.config(guest.function.msix_at), 0x0001_0011);
    guest.function.write_config(0x10, &u32::MAX.to_le_bytes());
    assert_eq!(
        guest.config(0x10),
        !(WINDOW - 1),
        "the window's size can be asked"
    );
}

#[test]
fn a_driver_gets_entropy_and_interrupts_over_pauses_resets_and_moves() {
    let guest = Guest::new();
    guest.drive();
    assert_eq!(guest.routes.connected.lock().unwrap().len(), 2);
    assert_eq!(
        *guest.bells.0.lock().unwrap().first_key_value().unwrap().0,
        u64::from(BASE + NOTIFY)
    );
    guest.offer(0);
    guest.waits_for(1);
    let got: [u8; 32] = guest.memory.read_obj(GuestAddress(0x8000)).unwrap();
    assert_ne!(got, [0; 32]);
    let start = Instant::now();
    while guest.signalled(1) == 0 {
        assert!(start.elapsed() < Duration::from_secs(20), "no interrupt");
    }

    guest.function.pause();
    guest.offer(1);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.used(), 1, "paused");
    let saved = guest.function.save().unwrap();
    guest.function.resume();
    guest.waits_for(2);

    // The same again elsewhere.
    let other = Guest::new();
    for (from, size) in [(0x1000u64, 0x1000usize), (0x2000, 0x1000), (0x3000, 0x1000)] {
        let mut bytes = vec![0; size];
        guest.memory.read_slice(&mut bytes, GuestAddress(from)).unwrap();
        other.memory.write_slice(&bytes, GuestAddress(from)).unwrap();
    }
    other.memory.write_obj(1u16, GuestAddress(0x3002)).unwrap();
    other.function.restore(&saved).unwrap();
    assert_eq!(other.function.save().unwrap(), saved);
    assert_eq!(other.routes.connected.lock().unwrap().len(), 2);
    other.function.resume();
    other.waits_for(2);

    guest.function.write_config(0x10, &0xd000_0000u32.to_le_bytes());
    assert_eq!(guest.function.window(), Some(0xd000_0000));
    assert_eq!(
        *guest.bells.0.lock().unwrap().first_key_value().unwrap().0,
        u64::from(0xd000_0000 + NOTIFY)
    );
    guest.write(20, 1, 0);
    assert_eq!((guest.read(20, 1), guest.read(28, 2)), (0, 0));
    guest.memory.write_obj(0u64, GuestAddress(0x3000)).unwrap();
    guest.drive();
    guest.offer(0);
    guest.waits_for(1);
    guest.function.reset();
    assert_eq!((guest.function.window(), guest.config(0x10)), (None, BASE));
    assert!(guest.bells.0.lock().unwrap().is_empty());
    assert!(guest.routes.connected.lock().unwrap().is_empty());
    other.function.halt();
    assert!(other.bells.0.lock().unwrap().is_empty());
}

#[test]
fn a_broken_ring_is_told_and_a_reset_heals_it() {
    let guest = Guest::new();
    guest.drive();
    guest.memory.write_obj(9000u16, GuestAddress(0x2002)).unwrap();
    guest.write(NOTIFY, 2, 0);
    let start = Instant::now();
    while guest.read(20, 1) & u64::from(NEEDS_RESET) == 0 {
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    guest.memory.write_obj(0u64, GuestAddress(0x2000)).unwrap();
    guest.write(20, 1, 0);
    assert_eq!(guest.read(20, 1), 0);
    guest.drive();
    guest.offer(0);
    guest.waits_for(1);
    guest.function.halt();

    let guest = Guest::new();
    guest.write(22, 2, 0);
    guest.write(36, 4, 1 << 31);
    guest.drive();
    assert_ne!(
        guest.read(20, 1) & u64::from(NEEDS_RESET),
        0,
        "a ring outside memory"
    );
    guest.function.halt();
}

#[test]
fn a_disk_that_grows_is_told_at_once_or_when_the_machine_goes_on() {
    let bytes = Arc::new(Mutex::new(vec![0; 1 << 20]));
    let disk = Arc::new(BlockDevice::new(Disk {
        name: "disk".into(),
        geometry: Geometry {
            sectors: 8,
            read_only: false,
            queues: 1,
            serial: [0; 20],
        },
        storage: Box::new(RamDisk::new(bytes).unwrap()),
    }));
    let guest = Guest::with(disk.clone());
    guest.write(16, 2, 0);
    guest.drive();
    let looked = guest.read(21, 1);
    assert_eq!((guest.read(DEVICE, 8), guest.signalled(0)), (8, 0));
    for refused in [0, 4095, 4096 - 512] {
        assert!(!disk.resize(refused), "{refused}");
    }
    assert!(disk.resize(8192));
    assert_eq!((guest.read(DEVICE, 8), guest.signalled(0)), (16, 1));
    assert_ne!(guest.read(21, 1), looked, "another generation");

    let looked = guest.read(21, 1);
    guest.function.pause();
    assert!(disk.resize(1 << 20));
    assert_eq!(guest.signalled(0), 0, "it stands still");
    guest.function.resume();
    assert_eq!((guest.read(DEVICE, 8), guest.signalled(0)), (2048, 1));
    assert_ne!(guest.read(21, 1), looked);
    assert_eq!(guest.read(21, 1), guest.read(21, 1));
    guest.function.pause();
    guest.function.resume();
    assert_eq!(guest.signalled(0), 0, "nothing is new");
    guest.function.halt();
}

#[test]
fn the_window_is_reached_by_configuration_space() {
    let guest = Guest::new();
    let at = guest.function.access_at;
    guest
        .function
        .write_config(at + ACCESS_OFFSET, &18u32.to_le_bytes());
    guest
        .function
        .write_config(at + ACCESS_LENGTH, &2u32.to_le_bytes());
    let mut data = [0; 2];
    guest.function.read_config(at + ACCESS_DATA, &mut data);
    assert_eq!(data, [1, 0], "the number of queues");
    guest
        .function
        .write_config(at + ACCESS_OFFSET, &22u32.to_le_bytes());
    guest.function.write_config(at + ACCESS_DATA, &[5, 0]);
    assert_eq!(guest.read(22, 2), 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a driver writes where: no panic, no deadlock, and a reset heals it.
    #[test]
    fn any_access_is_harmless(accesses in prop::collection::vec(
        (0u8..4, prop_oneof![0u32..0x40, 0u32..WINDOW, 0x3000u32..0x3010, 0x4000u32..0x4030],
         prop::sample::select(vec![0usize, 1, 2, 3, 4, 8]), prop_oneof![0u64..16, any::<u64>(), Just(0x1_0000_2000)]), 0..80
    ), driven in any::<bool>()) {
        let guest = Guest::new();
        if driven {
            guest.drive();
        }
        for (kind, offset, length, value) in accesses {
            let bytes = value.to_le_bytes();
            match kind {
                0 => guest.function.write_config(offset as usize, &bytes[..length]),
                1 => { let mut data = bytes; guest.function.read_config(offset as usize, &mut data[..length]); }
                2 => guest.function.write(offset, &bytes[..length]),
                _ => { let mut data = bytes; guest.function.read(offset, &mut data[..length]); }
            }
        }
        guest.function.pause();
        let saved = guest.function.save().unwrap();
        guest.function.restore(&saved).unwrap();
        guest.function.resume();
        guest.function.reset();
        guest.memory.write_obj(0u64, GuestAddress(0x2000)).unwrap();
        guest.memory.write_obj(0u64, GuestAddress(0x3000)).unwrap();
        guest.drive();
        guest.offer(0);
        guest.waits_for(1);
        guest.function.halt();
        prop_assert!(guest.bells.0.lock().unwrap().is_empty());
        prop_assert!(guest.routes.connected.lock().unwrap().is_empty());
    }
}
