//! A driver in test code and a backend in a thread; the device is in between.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, fence};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tempfile::TempDir;
use virtio::feature::{EVENT_IDX, VERSION_1};
use virtio::memory::Memory;
use virtio::vring::{Placement, RingAddresses};
use vm_memory::{Bytes, FileOffset, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::backend::{Backend, HEADER, offer};
use super::*;
use crate::kvm::event::descriptor;
use crate::kvm::virtio::Alarm;

#[path = "../../../../tests/backend/mod.rs"]
mod backend;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);
const MEMORY: usize = 2 << 20;
const SIZE: u16 = 16;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFER: u64 = 0x800;
const BASIC: u64 = VERSION_1 | feature::STATUS | feature::MAC;
const SEVERAL: u64 = BASIC | EVENT_IDX | feature::MQ | feature::CTRL_VQ;

const PATIENCE: Patience = Patience {
    answer: Duration::from_secs(5),
    first: Duration::from_secs(5),
    retry: Duration::from_millis(10),
    slow_retry: Duration::from_millis(50),
    absence: Duration::from_secs(60),
};

fn soon(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A place for a backend.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("net-0")
    }

    /// A backend that sends everything back.
    fn echo(&self, features: u64, queues: u16) -> Backend {
        Backend::start(&self.path(), offer(features, queues), |frame| {
            vec![frame.to_vec()]
        })
    }

    fn nic(&self, queue_pairs: u16) -> Nic {
        Nic {
            name: "net0".into(),
            mac: MacAddr([2, 0, 0, 0, 0, 5]),
            mtu: 1450,
            queue_pairs,
            connect: Nic::at(self.path()),
        }
    }

    fn device(&self, queue_pairs: u16, patience: Patience) -> NetDevice {
        NetDevice::with_patience(self.nic(queue_pairs), patience).unwrap()
    }
}

/// A guest's driver. Ring `i` is at 64 KiB × (i + 1).
struct Driver {
    memory: Arc<Memory>,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    config: EventFd,
    raised: Arc<AtomicBool>,
    /// The driver kicks only where it is asked to (§2.7.7.2, §2.7.10).
    event_idx: bool,
    /// How many chains were made available, and seen to be used, of each ring.
    offered: Vec<u16>,
    used: Vec<u16>,
}

fn ring(index: usize) -> u64 {
    0x1_0000 * (index as u64 + 1)
}

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

fn hand(event: &EventFd) -> File {
    descriptor(event).try_clone_to_owned().unwrap().into()
}

impl Driver {
    fn new(device: &NetDevice) -> Self {
        let file = File::from(memfd_create(c"guest", MFdFlags::MFD_ALLOW_SEALING).unwrap());
        file.set_len(MEMORY as u64).unwrap();
        fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        let part = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
        let count = device.queues().len();
        Driver {
            memory: Arc::new(Memory::from_ranges_with_files([part]).unwrap()),
            kicks: (0..count).map(|_| eventfd()).collect(),
            calls: (0..count).map(|_| eventfd()).collect(),
            config: eventfd(),
            raised: Arc::default(),
            event_idx: false,
            offered: vec![0; count],
            used: vec![0; count],
        }
    }

    /// All rings, going on where they were left.
    fn session(&mut self, features: u64, left: &[Left]) -> Session {
        self.event_idx = features & EVENT_IDX != 0;
        let queue = |index: usize| SessionQueue {
            max: QUEUE_SIZE,
            placement: Some(Placement {
                size: SIZE,
                at: RingAddresses {
                    descriptors: ring(index),
                    available: ring(index) + AVAILABLE,
                    used: ring(index) + USED,
                },
                event_idx: self.event_idx,
                next: left.get(index).map_or(0, |left| left.next),
            }),
            kick: hand(&self.kicks[index]),
            call: Some(hand(&self.calls[index])),
            taken: Vec::new(),
        };
        Session {
            memory: self.memory.clone(),
            queues: (0..self.kicks.len()).map(queue).collect(),
            features,
            alarm: Alarm {
                raised: self.raised.clone(),
                interrupt: Some(self.config.try_clone().unwrap()),
            },
        }
    }

    fn put<T: vm_memory::ByteValued>(&self, value: T, at: u64) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
    }

    /// Make a chain of these buffers available: address, length, and whether the device writes. Ring.
    fn offer(&mut self, index: usize, buffers: &[(u64, u32, bool)]) {
        let next = self.offered[index];
        let first = next % (SIZE / 2) * 2;
        for (at, (address, length, writes)) in (first..).zip(buffers) {
            let more = at + 1 < first + buffers.len() as u16;
            let flags = u64::from(more) | u64::from(*writes) << 1;
            self.put(*address, ring(index) + u64::from(at) * 16);
            let word = u64::from(*length) | flags << 32 | u64::from(at + 1) << 48;
            self.put(word, ring(index) + u64::from(at) * 16 + 8);
        }
        self.put(first, ring(index) + AVAILABLE + 4 + u64::from(next % SIZE) * 2);
        self.offered[index] = next.wrapping_add(1);
        // Interrupt for this one.
        self.put(next, ring(index) + AVAILABLE + 4 + u64::from(SIZE) * 2);
        self.put(self.offered[index], ring(index) + AVAILABLE + 2);
        fence(Ordering::SeqCst);
        let event = ring(index) + USED + 4 + u64::from(SIZE) * 8;
        let event: u16 = self.memory.read_obj(GuestAddress(event)).unwrap();
        if !self.event_idx || event == next {
            self.kicks[index].write(1).unwrap();
        }
    }

    fn buffer(&self, index: usize) -> u64 {
        ring(index) + 0x3000 + u64::from(self.offered[index] % (SIZE / 2)) * BUFFER
    }

    fn send(&mut self, pair: usize, frame: &[u8]) {
        let index = 2 * pair + 1;
        let at = self.buffer(index);
        let bytes = [&[0; HEADER], frame].concat();
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        self.offer(index, &[(at, bytes.len() as u32, false)]);
    }

    fn give_buffers(&mut self, pair: usize, count: usize) {
        for _ in 0..count {
            let at = self.buffer(2 * pair);
            self.offer(2 * pair, &[(at, BUFFER as u32, true)]);
        }
    }

    fn used_index(&self, index: usize) -> u16 {
        self.memory
            .read_obj(GuestAddress(ring(index) + USED + 2))
            .unwrap()
    }

    /// Wait until so many chains of the ring were returned in all, and for its interrupt.
    fn wait(&self, index: usize, count: u16) {
        soon(
            &format!("ring {index}: {} of {count}", self.used_index(index)),
            || self.used_index(index) == count,
        );
        soon("no interrupt", || self.calls[index].read().is_ok());
    }

    fn receive(&mut self, pair: usize) -> Vec<u8> {
        let index = 2 * pair;
        let before = self.used[index];
        soon(&format!("nothing is received on {index}"), || {
            self.used_index(index) != before
        });
        let element = ring(index) + USED + 4 + u64::from(before % SIZE) * 8;
        let [head, length]: [u32; 2] = self.memory.read_obj(GuestAddress(element)).unwrap();
        let at: u64 = self
            .memory
            .read_obj(GuestAddress(ring(index) + u64::from(head) * 16))
            .unwrap();
        let mut bytes = vec![0; length as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        self.used[index] = before.wrapping_add(1);
        bytes.split_off(HEADER)
    }

    /// One frame there and back.
    fn round_trip(&mut self, pair: usize, frame: &[u8]) {
        self.give_buffers(pair, 1);
        self.send(pair, frame);
        assert_eq!(self.receive(pair), frame);
    }

    /// Ask something of the control queue: its answer.
    fn control(&mut self, index: usize, request: &[u8]) -> u8 {
        let at = ring(index) + 0x3000;
        self.memory.write_slice(request, GuestAddress(at)).unwrap();
        self.put(0xffu8, at + 0x100);
        self.offer(index, &[(at, request.len() as u32, false), (at + 0x100, 1, true)]);
        self.wait(index, self.offered[index]);
        self.memory.read_obj(GuestAddress(at + 0x100)).unwrap()
    }

    /// As a driver that resets the device: the rings are empty, and the features are read anew.
    fn forget(&mut self) {
        for index in 0..self.offered.len() {
            (self.offered[index], self.used[index]) = (0, 0);
            self.memory
                .write_slice(&[0; 0x3000], GuestAddress(ring(index)))
                .unwrap();
        }
    }

    fn told_of_config(&self) -> bool {
        self.config.read().is_ok()
    }
}

#[test]
fn frames_go_to_the_backend_and_back_over_pauses() {
    let place = Place::new();
    let backend = place.echo(feature::SWITCH, 2);
    let device = place.device(8, PATIENCE);
    assert_eq!(
        (device.id(), device.queues().len()),
        (1, 2),
        "the backend has one pair"
    );
    assert_eq!(
        device.features(),
        feature::SWITCH | feature::MAC | feature::MTU | feature::STATUS
    );
    assert_eq!(device.config(), [2, 0, 0, 0, 0, 5, 1, 0, 1, 0, 0xaa, 5]);
    let mut driver = Driver::new(&device);
    let features = BASIC | feature::CSUM | feature::MTU;
    device.start(driver.session(features, &[])).unwrap();
    for number in 0..40u8 {
        driver.round_trip(0, &[number; 100]);
    }
    driver.wait(1, 40);
    assert_eq!(backend.seen().features & !(1 << 30), VERSION_1 | feature::CSUM);
    driver.give_buffers(0, 3);
    let left = device.stop();
    let next = |ring: usize| left[ring].next;
    assert_eq!((next(0), next(1)), (40, 40));
    assert!(left.iter().all(|left| left.taken.is_empty()));
    assert!(device.stop().is_empty(), "not twice");

    // Between sessions nothing moves.
    driver.send(0, b"later");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.used_index(1), 40);
    assert!(backend.seen().running.is_empty());
    device.start(driver.session(features, &left)).unwrap();
    assert_eq!(driver.receive(0), b"later");
    backend.send(b"unasked".to_vec());
    assert_eq!(driver.receive(0), b"unasked");
    assert_eq!(device.status().connections, 1, "one connection for all sessions");
    device.stop();
}

#[test]
fn a_backend_that_comes_late_serves_what_waits() {
    let place = Place::new();
    let device = place.device(1, PATIENCE);
    assert_eq!(device.features() & feature::PACKETS, feature::SWITCH);
    assert_eq!(device.config()[6], 0, "no link");
    let mut driver = Driver::new(&device);
    let start = Instant::now();
    device.start(driver.session(BASIC, &[])).unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "nobody is waited for");
    driver.give_buffers(0, 2);
    driver.send(0, b"early");
    assert!(device.status().trouble.is_some());
    // Once at the start, whatever the link is.
    soon("the guest is told", || driver.told_of_config());
    let backend = place.echo(feature::SWITCH, 2);
    assert_eq!(driver.receive(0), b"early");
    driver.wait(1, 1);
    soon("the guest is told again", || driver.told_of_config());
    assert_eq!(device.config()[6], 1, "a link");
    assert_eq!(device.status().trouble, None);
    drop(backend);
    device.stop();
}

/// Three frames that a backend takes and does not return.
fn held(driver: &mut Driver, backend: &Backend) {
    backend.hold();
    driver.give_buffers(0, 3);
    for frame in [b"a", b"b", b"c"] {
        driver.send(0, frame);
    }
    soon("they are held", || {
        let frames = backend.seen().frames;
        frames
            .get(&1)
            .is_some_and(|frames| frames.ends_with(&[b"c".to_vec()]))
    });
}

#[test]
fn a_backend_that_dies_loses_nothing_that_it_held_and_its_link_stays() {
    let place = Place::new();
    let mut backend = place.echo(feature::SWITCH, 2);
    let device = place.device(1, PATIENCE);
    let mut driver = Driver::new(&device);
    device.start(driver.session(BASIC, &[])).unwrap();
    for round in 0..5 {
        driver.round_trip(0, b"before");
        driver.wait(1, 4 * round + 1);
        while driver.told_of_config() {}
        held(&mut driver, &backend);
        assert_eq!(driver.used_index(1), 4 * round + 1);
        if round % 2 == 0 {
            drop(backend);
            soon("its death is seen", || !device.status().connected);
            backend = place.echo(feature::SWITCH, 2);
        } else {
            // Its successor is there first.
            drop(std::mem::replace(&mut backend, place.echo(feature::SWITCH, 2)));
        }
        for frame in [b"a", b"b", b"c"] {
            assert_eq!(driver.receive(0), frame);
        }
        driver.wait(1, 4 * round + 4);
        assert!(device.status().link_up && !driver.told_of_config());
    }
    assert_eq!(device.status().connections, 6);
    held(&mut driver, &backend);
    drop(backend);
    let left = device.stop();
    assert_eq!((left[0].next, left[1].next), (20, 20));
    let backend = place.echo(feature::SWITCH, 2);
    device.start(driver.session(BASIC, &left)).unwrap();
    assert_eq!(driver.receive(0), b"a");
    drop(backend);
    device.stop();
}

#[test]
fn a_long_absence_is_shown_as_a_lost_link() {
    let place = Place::new();
    let absence = Duration::from_millis(200);
    let backend = place.echo(feature::SWITCH, 2);
    let device = place.device(1, Patience { absence, ..PATIENCE });
    let mut driver = Driver::new(&device);
    device.start(driver.session(BASIC, &[])).unwrap();
    soon("it serves", || backend.seen().running.len() == 2);
    while driver.told_of_config() {}
    let gone = Instant::now();
    drop(backend);
    soon("the guest is told", || driver.told_of_config());
    assert!(gone.elapsed() >= absence);
    assert_eq!(device.config()[6], 0);
    let _backend = place.echo(feature::SWITCH, 2);
    soon("the guest is told again", || driver.told_of_config());
    assert_eq!(device.config()[6], 1);
    device.stop();
}

#[test]
fn a_deaf_backend_makes_nobody_wait_for_long() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path()).unwrap();
    let patience = Patience {
        answer: Duration::from_millis(300),
        first: Duration::from_millis(100),
        ..PATIENCE
    };
    let start = Instant::now();
    let device = place.device(1, patience);
    let mut driver = Driver::new(&device);
    device.start(driver.session(BASIC, &[])).unwrap();
    device.stop();
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert!(!device.status().link_up);
    assert_eq!(
        device.status().trouble.as_deref(),
        Some("the backend does not answer")
    );

    drop(listener);
    let backend = place.echo(feature::SWITCH, 2);
    device.start(driver.session(BASIC, &[])).unwrap();
    driver.round_trip(0, b"heard");
    driver.wait(1, 1);
    held(&mut driver, &backend);
    backend.be_deaf();
    // It is, when it does not take a kick.
    std::thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    let left = device.stop();
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!((left[0].next, left[1].next), (1, 1), "the used rings' indices");
    drop(backend);
}

#[test]
fn a_backend_with_fewer_features_or_rings_is_not_let_near_the_guest() {
    let place = Place::new();
    let backend = place.echo(feature::SWITCH, 4);
    let device = place.device(2, PATIENCE);
    let mut driver = Driver::new(&device);
    let features = SEVERAL | feature::CSUM | feature::HOST_TSO4;
    device.start(driver.session(features, &[])).unwrap();
    driver.round_trip(0, b"good");
    drop(backend);
    let says = |wanted: &str| {
        soon(wanted, || {
            let status = device.status();
            !status.connected && status.trouble.is_some_and(|trouble| trouble.contains(wanted))
        });
    };
    let lesser = place.echo(feature::CSUM, 4);
    says("features that the guest uses: 0x800");
    driver.send(0, b"wait");
    std::thread::sleep(Duration::from_millis(100));
    assert!(lesser.seen().running.is_empty());
    assert_eq!(driver.used_index(1), 1);
    drop(lesser);
    let lesser = place.echo(feature::SWITCH, 2);
    says("the backend has 2 rings, and the guest uses 4");
    drop(lesser);

    // A driver that starts anew takes what there is.
    let _lesser = place.echo(feature::CSUM, 4);
    says("features");
    device.stop();
    device.reset();
    assert_eq!(device.features() & feature::PACKETS, feature::CSUM);
    driver.forget();
    device
        .start(driver.session(SEVERAL | feature::CSUM, &[]))
        .unwrap();
    driver.round_trip(0, b"good again");
    // Frames may be through before the link's thread says that it is connected.
    soon("the connection", || device.status().connected);
    device.stop();
}

#[test]
fn the_driver_chooses_its_pairs() {
    let place = Place::new();
    let backend = place.echo(feature::SWITCH, 8);
    let device = place.device(3, PATIENCE);
    assert_eq!(device.queues(), [256, 256, 256, 256, 256, 256, 64]);
    assert_eq!(device.config()[8], 3);
    assert_ne!(device.features() & feature::MQ, 0);
    let mut driver = Driver::new(&device);
    device.start(driver.session(SEVERAL, &[])).unwrap();
    soon("one pair at first", || backend.seen().running == [0, 1].into());
    let set = |pairs: u16| {
        let [low, high] = pairs.to_le_bytes();
        [4, 0, low, high]
    };
    assert_eq!(driver.control(6, &set(3)), 0);
    assert_eq!(
        backend.seen().running,
        (0..6).collect(),
        "when it is answered it is done"
    );
    for pair in 0..3 {
        driver.round_trip(pair, &[pair as u8; 60]);
    }
    assert_eq!(driver.control(6, &set(2)), 0);
    assert_eq!(backend.seen().running, (0..4).collect());
    for wrong in [
        &set(0)[..],
        &set(4),
        &set(0x8000),
        &[4, 1, 1, 0],
        &[0, 0, 1, 0],
        &[4, 0, 1],
        &[],
    ] {
        assert_eq!(driver.control(6, wrong), 1, "{wrong:?}");
    }
    assert_eq!(backend.seen().running, (0..4).collect());

    // Another backend, a pause, another machine: still two.
    drop(backend);
    let backend = place.echo(feature::SWITCH, 8);
    soon("two pairs at the next one", || {
        backend.seen().running == (0..4).collect()
    });
    let left = device.stop();
    assert_eq!((left[5].next, left[6].next), (1, 9));
    let saved = device.save();
    drop(device);
    let device = place.device(3, PATIENCE);
    for wrong in [Value::Null, 0.into(), 4.into(), 65537.into(), "2".into()] {
        device.restore(&wrong).unwrap_err();
    }
    device.restore(&saved).unwrap();
    device.start(driver.session(SEVERAL, &left)).unwrap();
    soon("two pairs here", || backend.seen().running == (0..4).collect());
    driver.round_trip(1, b"second");
    assert_eq!(driver.control(6, &set(1)), 0);
    device.stop();

    // A driver that knows of one pair finds the control queue behind that.
    device.reset();
    driver.forget();
    device
        .start(driver.session(BASIC | feature::CTRL_VQ, &[]))
        .unwrap();
    soon("one pair", || backend.seen().running == [0, 1].into());
    assert_eq!(driver.control(2, &[0, 0, 1, 0]), 1);
    driver.round_trip(0, b"one");
    let left = device.stop();
    assert_eq!((left[0].next, left[2].next), (1, 1));
}

#[test]
fn a_driver_that_breaks_a_ring_is_told_so() {
    let place = Place::new();
    let _backend = place.echo(feature::SWITCH, 4);
    let device = place.device(2, PATIENCE);
    for index in [1, 4] {
        let mut driver = Driver::new(&device);
        device.start(driver.session(SEVERAL, &[])).unwrap();
        driver.put(9000u16, ring(index) + AVAILABLE + 2);
        driver.kicks[index].write(1).unwrap();
        soon("the alarm", || driver.raised.load(Ordering::SeqCst));
        device.stop();
        device.reset();
    }
    let mut driver = Driver::new(&device);
    let mut session = driver.session(SEVERAL, &[]);
    session.queues[3].placement.as_mut().unwrap().at.used = MEMORY as u64 - 4;
    assert!(matches!(device.start(session), Err(StartError::Ring(_))));
    assert!(device.stop().is_empty());
}

#[test]
fn what_cannot_be_is_refused() {
    let place = Place::new();
    for (mtu, queue_pairs, sound) in [
        (68, 1, true),
        (67, 1, false),
        (u16::MAX, 64, true),
        (1500, 0, false),
        (1500, 65, false),
    ] {
        let nic = Nic {
            mtu,
            ..place.nic(queue_pairs)
        };
        assert_eq!(nic.is_sound(), sound, "{nic:?}");
    }
}
