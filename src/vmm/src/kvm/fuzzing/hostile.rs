//! The hostile run: a million and more writes of two vCPUs to each of several buses full of devices that work on threads of
//! their own, at least half of them to rings that a device has accepted; the same for each seed, but for how threads
//! interleave. Beside them a bus whose driver behaves, and must not notice.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtio::feature;
use virtio::vsock::packet::{HEADER, Header};
use vm_memory::{Bytes, GuestAddress};

use super::pci::{drive, heals, queue};
use super::rig::{ALL, Kind, Rig};
use crate::kvm::layout::{ECAM, FW_CFG, HOLE, PCI_CONFIG};
use crate::kvm::lifecycle::Lifecycle;
use crate::kvm::pci::Function;
use crate::kvm::virtio::worker::inline;

/// Writes of the run in CI, of all attackers.
const WRITES: u64 = 1_050_000;
/// Buses under attack, with two attackers each.
const RIGS: u64 = 2;
const SEED: u64 = 0x616c_6c6f_6421;
/// Ring size that attackers choose.
const SIZE: u16 = 64;
/// Where header, data and status of plausible requests are.
const BUFFERS: u64 = 0x8_0000;
/// Where the headers of plausible packets are, which no other device's driver writes to.
const PACKETS: u64 = BUFFERS + 0x3_8000;
/// Where a program on the host listens to the guests' sockets, and how many connections it has at most.
const PORT: u32 = 80;
const STREAMS: usize = 32;
/// Names of [`ALL`].
const NAMES: [&str; ALL.len()] = ["disk", "net", "console", "balloon", "vsock", "rng"];

/// What became of a write.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    accepted: u64,
    refused: u64,
    broke: u64,
}

/// Per device and class of write.
#[derive(Debug, Default)]
struct Tally(BTreeMap<(&'static str, &'static str), Counts>);

impl Tally {
    fn at(&mut self, device: usize, class: &'static str) -> &mut Counts {
        self.0.entry((NAMES[device], class)).or_default()
    }

    fn note(&mut self, device: usize, class: &'static str, accepted: bool) {
        let counts = self.at(device, class);
        if accepted {
            counts.accepted += 1;
        } else {
            counts.refused += 1;
        }
    }

    fn add(&mut self, other: &Tally) {
        for (key, counts) in &other.0 {
            let sum = self.0.entry(*key).or_default();
            sum.accepted += counts.accepted;
            sum.refused += counts.refused;
            sum.broke += counts.broke;
        }
    }

    fn sum(&self, of: impl Fn(&str, &Counts) -> u64) -> u64 {
        self.0.iter().map(|((_, class), counts)| of(class, counts)).sum()
    }

    fn writes(&self) -> u64 {
        self.sum(|_, counts| counts.accepted + counts.refused)
    }

    /// To rings of a device that serves.
    fn past(&self) -> u64 {
        self.sum(|class, counts| {
            if class.starts_with("ring") {
                counts.accepted
            } else {
                0
            }
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((device, class), counts) in &self.0 {
            writeln!(
                f,
                "{device:7} {class:22} accepted {:8} refused {:8} broke {:6}",
                counts.accepted, counts.refused, counts.broke
            )?;
        }
        write!(
            f,
            "hostile: {} writes, {} past queue validation, {} rings broken, {} refused",
            self.writes(),
            self.past(),
            self.sum(|_, counts| counts.broke),
            self.sum(|_, counts| counts.refused)
        )
    }
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Small, or near a border, or anything.
    fn wild(&mut self) -> u64 {
        let value = self.next();
        match value & 7 {
            0 => 1 << (value >> 8 & 63),
            1 => (1 << (value >> 8 & 63)) - 1,
            2 => u64::MAX - (value >> 8 & 255),
            3 => value >> 8,
            _ => value >> 8 & 127,
        }
    }
}

struct Attacker<'a> {
    rig: &'a Rig,
    dice: Dice,
    tally: Tally,
}

impl Attacker<'_> {
    /// The device serves, and no ring of it is broken.
    fn serves(&self, device: usize) -> bool {
        let mut status = [0];
        self.rig.functions[device].read(20, &mut status);
        status[0] == 15
    }

    fn poke<const N: usize>(&self, bytes: [u8; N], at: u64) {
        // Outside memory it is nobody's.
        let _ = self.rig.memory.write_slice(&bytes, GuestAddress(at));
    }

    fn descriptor(&mut self, table: u64, index: u64, row: (u64, u32, u16, u16)) {
        let at = table + index * 16;
        let (address, length, flags, next) = row;
        self.poke(address.to_le_bytes(), at);
        self.poke(length.to_le_bytes(), at + 8);
        self.poke(flags.to_le_bytes(), at + 12);
        self.poke(next.to_le_bytes(), at + 14);
    }

    /// A packet for the socket device, most of them well-formed.
    fn packet(&mut self) -> [u8; HEADER] {
        // Mostly wanted connections, and bytes.
        let operation = [1, 1, 1, 5, 5, 5, 4, 6, 7, 3][self.dice.below(10) as usize];
        let (port, length, flags) = (self.dice.below(8), self.dice.below(600), self.dice.below(4));
        let mut number = |plain: u64| {
            if self.dice.below(8) == 0 {
                self.dice.wild()
            } else {
                plain
            }
        };
        let (operation, port) = (number(operation), number(port));
        Header {
            src_cid: number(3),
            dst_cid: number(2),
            src_port: port as u32,
            dst_port: number(PORT.into()) as u32,
            len: number(length) as u32,
            kind: number(1) as u16,
            operation: (operation as u16).into(),
            flags: number(flags) as u32,
            buf_alloc: number(1 << 16) as u32,
            fwd_cnt: number(0) as u32,
        }
        .bytes()
    }

    fn available(&self, available: u64) -> u16 {
        self.rig
            .memory
            .read_obj(GuestAddress(available + 2))
            .unwrap_or_default()
    }

    /// A write to a ring of a device that serves: its class.
    fn ring(&mut self, device: usize) -> &'static str {
        let queues = self.rig.queues[device];
        let number = match self.dice.below(2) {
            // The network's other rings are served by a backend, if there is one.
            0 if ALL[device] == Kind::Net => queues - 1,
            _ => self.dice.below(queues),
        };
        let [table, available, used] = queue(device as u64, number);
        let index = self.dice.below(SIZE.into());
        match self.dice.below(32) {
            0 => {
                let row = (
                    self.dice.wild(),
                    self.dice.wild() as u32,
                    self.dice.next() as u16,
                    self.dice.wild() as u16,
                );
                self.descriptor(table, index, row);
                "ring: garbage"
            }
            1 => {
                // A loop; a table within itself, or within another, of odd or enormous size.
                let flags = [1, 4, 5, 2 | 4][self.dice.below(4) as usize];
                let length = [16, 1024, 17, 0, 1 << 20, u32::MAX][self.dice.below(6) as usize];
                self.descriptor(table, index, (table, length, flags, index as u16));
                "ring: loops"
            }
            2 => {
                let next = self.dice.wild() as u16;
                self.poke(next.to_le_bytes(), available + 2);
                "ring: index"
            }
            3 => {
                // 64 Ki entries, with data at the end of memory.
                self.descriptor(table, index, (BUFFERS, 1 << 20, 4, 0));
                "ring: long chains"
            }
            4..12 => {
                // A request whose parts are where they may be.
                let header = BUFFERS + index * 64;
                // A disk's, and for the network's control queue: so many pairs.
                let kind = [0u32, 1, 4, 8, 11, 13, 99, 0x1_0004, 0x2_0004][self.dice.below(9) as usize];
                let sector = if self.dice.below(8) == 0 {
                    self.dice.wild()
                } else {
                    self.dice.below(240)
                };
                if ALL[device] == Kind::Vsock {
                    let packet = self.packet();
                    self.poke(packet, PACKETS + (index & !3) * 64);
                } else {
                    self.poke(kind.to_le_bytes(), header);
                    self.poke(sector.to_le_bytes(), header + 8);
                }
                "ring: headers"
            }
            12..22 => {
                let base = index & !3;
                let data = BUFFERS + 0x4000 + self.dice.below(64) * 512;
                let length = if self.dice.below(8) == 0 {
                    self.dice.wild() as u32
                } else {
                    512 * (1 + self.dice.below(8) as u32)
                };
                let writable = 2 * u16::from(self.dice.below(2) == 0 || ALL[device] == Kind::Rng);
                let (header, size) = if ALL[device] == Kind::Vsock {
                    (PACKETS, HEADER as u32)
                } else {
                    (BUFFERS, 16)
                };
                let row = (header + base * 64, size, 1, base as u16 + 1);
                self.descriptor(table, base, row);
                self.descriptor(
                    table,
                    base + 1,
                    (data, length & 0x1_ffff, 1 | writable, base as u16 + 2),
                );
                let status = BUFFERS + 0x3_0000 + self.dice.below(64);
                self.descriptor(table, base + 2, (status, 1, 2, 0));
                "ring: requests"
            }
            22..28 => {
                let next = self.available(available);
                // The entropy device's chains are each a buffer to write, and so is what others receive into.
                let writable = ALL[device] == Kind::Rng || number == 0 && self.dice.below(2) == 0;
                let head = (index & !3) + if writable { 2 } else { 0 };
                let head = if self.dice.below(32) == 0 {
                    self.dice.wild()
                } else {
                    head
                };
                self.poke(
                    (head as u16).to_le_bytes(),
                    available + 4 + u64::from(next % SIZE) * 2,
                );
                self.poke(next.wrapping_add(1).to_le_bytes(), available + 2);
                "ring: offers"
            }
            28 => {
                // The device's own ring, and the events.
                let (index, event) = (self.dice.wild() as u16, self.dice.wild() as u16);
                self.poke(index.to_le_bytes(), used + 2);
                self.poke(event.to_le_bytes(), available + 4 + u64::from(SIZE) * 2);
                "ring: used, events"
            }
            _ => {
                let bell = 0x3000 + 4 * number as u32;
                self.rig.functions[device].write(bell, &[0, 0]);
                // For the device to look at it, or it would mostly see what is there when it is reset.
                std::thread::sleep(Duration::from_micros(20));
                "ring: bells"
            }
        }
    }

    /// A write to a register, anywhere.
    fn register(&mut self, device: usize) {
        let function = &self.rig.functions[device];
        let length = [1usize, 2, 4, 8][self.dice.below(4) as usize];
        let value = self.dice.wild();
        let bytes = &value.to_le_bytes()[..length];
        let read_back = |read: &dyn Fn(&mut [u8])| {
            let mut data = [0; 8];
            read(&mut data[..length]);
            data[..length] == *bytes
        };
        match self.dice.below(16) {
            0..5 => {
                // The status now and then only: a device that is always reset does nothing else.
                let offset = match self.dice.below(57) {
                    20 if self.dice.below(8) > 0 => 22,
                    offset => offset as u32,
                };
                function.write(offset, bytes);
                let accepted = read_back(&|data| function.read(offset, data));
                self.tally.note(device, "common configuration", accepted);
            }
            5..8 => {
                let offset = 0x4000 + (self.dice.below(128) as u32 & !3);
                function.write(offset, bytes);
                let accepted = read_back(&|data| function.read(offset, data));
                self.tally.note(device, "MSI-X table", accepted);
            }
            8 => {
                let offset = 0x2000 + self.dice.below(80) as u32;
                function.write(offset, bytes);
                let accepted = read_back(&|data| function.read(offset, data));
                self.tally.note(device, "device configuration", accepted);
            }
            9 => {
                let offset = 0x3000 + self.dice.below(4096) as u32;
                function.write(offset, bytes);
                let bells = 0x3000 + 4 * self.rig.queues[device] as u32;
                self.tally.note(device, "notification", offset < bells);
            }
            10 => {
                let offset = self.dice.below(0x8000) as u32;
                function.write(offset, bytes);
                let accepted = read_back(&|data| function.read(offset, data));
                self.tally.note(device, "window", accepted);
            }
            11 => {
                // Onto memory, ECAM, interrupt controllers, the other's window, nowhere; and home.
                let places = [
                    0x10_0000,
                    0xe000_0000,
                    0xfec0_0000,
                    0xfee0_0000,
                    HOLE,
                    HOLE + 0x8000,
                    0,
                    u64::MAX,
                ];
                let place = places[self.dice.below(8) as usize] as u32;
                self.rig.configure(device as u64 + 1, 0x10, place, 4);
                let accepted = self.rig.configuration(device as u64 + 1, 0x10) == place;
                self.tally.note(device, "BAR", accepted);
                let mut data = [0; 4];
                self.rig.space.read(place.into(), &mut data);
                self.rig
                    .configure(device as u64 + 1, 0x10, HOLE as u32 + 0x8000 * device as u32, 4);
                self.rig.configure(device as u64 + 1, 4, 6, 2);
            }
            12 | 13 => {
                let at = ECAM + ((device as u64 + 1) << 15) + self.dice.below(260);
                self.rig.space.write(at, bytes);
                let accepted = read_back(&|data| self.rig.space.read(at, data));
                self.tally.note(device, "configuration space", accepted);
            }
            14 => {
                let at = match self.dice.below(2) {
                    0 => PCI_CONFIG + self.dice.below(8),
                    _ => FW_CFG + self.dice.below(12),
                };
                self.rig.ports.write(at, bytes);
                let accepted = read_back(&|data| self.rig.ports.read(at, data));
                self.tally.note(device, "configuration ports", accepted);
            }
            _ => {
                let at = HOLE + self.dice.below(0x4_0000);
                self.rig.space.write(at, bytes);
                let accepted = read_back(&|data| self.rig.space.read(at, data));
                self.tally.note(device, "device memory", accepted);
            }
        }
    }

    /// So many writes.
    fn attack(mut self, writes: u64) -> Tally {
        while self.tally.writes() < writes {
            // The disk more often than the others: it does most.
            let device = (self.dice.below(ALL.len() as u64 + 3) as usize).saturating_sub(3);
            self.rig.stir(self.dice.next() as u8);
            let offered = self.rig.offered(device);
            let features =
                [feature::VERSION_1, offered, offered & !feature::EVENT_IDX][self.dice.below(3) as usize];
            drive(self.rig, device as u64, features, SIZE);
            for _ in 0..160 {
                if !self.serves(device) {
                    break;
                }
                let class = self.ring(device);
                self.tally.note(device, class, true);
                if !self.serves(device) {
                    self.tally.at(device, class).broke += 1;
                }
            }
            for _ in 0..40 {
                self.register(device);
            }
            // Storms of resets, with requests on their way.
            if self.dice.below(16) == 0 {
                for _ in 0..8 {
                    self.rig.functions[device].write(20, &[0]);
                    self.tally.note(device, "reset", true);
                }
            }
        }
        self.tally
    }
}

/// A program on the host, until it is told to stop: it says back what it is told, to the latest connections. How many there were,
/// and bytes.
fn echo(listener: &UnixListener, stop: &AtomicBool) -> (u64, u64) {
    listener.set_nonblocking(true).unwrap();
    let mut streams = VecDeque::new();
    let (mut connections, mut bytes) = (0, 0);
    while !stop.load(Ordering::SeqCst) {
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).unwrap();
            connections += 1;
            streams.push_back(stream);
            if streams.len() > STREAMS {
                streams.pop_front();
            }
        }
        for stream in &mut streams {
            let mut data = [0; 4096];
            if let Ok(count @ 1..) = stream.read(&mut data) {
                bytes += count as u64;
                // One that does not listen, loses it.
                let _ = stream.write(&data[..count]);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    (connections, bytes)
}

/// A driver that behaves, until it is told to stop: each byte that it wrote comes back. How many it wrote.
fn behave(rig: &Rig, stop: &AtomicBool) -> u64 {
    drive(rig, 0, 1 << 32 | 1 << 9, 16);
    let [table, available, used] = queue(0, 0);
    let put = |value: u64, at: u64| rig.memory.write_obj(value, GuestAddress(at)).unwrap();
    let mut count = 0u64;
    let request = |kind: u32, sector: u64, count: u64| {
        put(u64::from(kind), BUFFERS);
        put(sector, BUFFERS + 8);
        put(BUFFERS, table);
        put(16 | 1 << 32 | 1 << 48, table + 8);
        put(BUFFERS + 0x1000, table + 16);
        put(
            512 | (if kind == 0 { 3 } else { 1u64 }) << 32 | 2 << 48,
            table + 24,
        );
        put(BUFFERS + 0x2000, table + 32);
        put(1 | 2 << 32, table + 40);
        put(0xff, BUFFERS + 0x2000);
        rig.memory
            .write_obj(0u16, GuestAddress(available + 4 + (count % 16) * 2))
            .unwrap();
        rig.memory
            .write_obj((count + 1) as u16, GuestAddress(available + 2))
            .unwrap();
        rig.functions[0].write(0x3000, &[0, 0]);
        let start = Instant::now();
        while rig.memory.read_obj::<u16>(GuestAddress(used + 2)).unwrap() != (count + 1) as u16 {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "a neighbour's disk stands still"
            );
            std::thread::sleep(Duration::from_micros(200));
        }
        assert_eq!(
            rig.memory.read_obj::<u8>(GuestAddress(BUFFERS + 0x2000)).unwrap(),
            0
        );
    };
    while !stop.load(Ordering::SeqCst) {
        let (sector, pattern) = (count / 2 % 256, count.wrapping_mul(0x0101_0101_0101_0101));
        put(pattern, BUFFERS + 0x1000);
        request(1, sector, count);
        put(!pattern, BUFFERS + 0x1000);
        request(0, sector, count + 1);
        assert_eq!(
            rig.memory
                .read_obj::<u64>(GuestAddress(BUFFERS + 0x1000))
                .unwrap(),
            pattern
        );
        count += 2;
    }
    count
}

fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn a_million_hostile_writes_break_rings_and_nothing_else() {
    inline::choose(false);
    let start = Instant::now();
    let (beside, stop) = (Rig::new(0, &[Kind::Disk, Kind::Rng]), AtomicBool::new(false));
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join(format!("vsock_{PORT}"))).unwrap();
    let rigs: Vec<Rig> = (0..RIGS)
        .map(|index| Rig::with_sockets(index * 77, &ALL, Some(folder.path().into())))
        .collect();
    let before = resident();
    let mut tally = Tally::default();
    let (behaved, (reached, echoed)) = std::thread::scope(|scope| {
        let echoing = scope.spawn(|| echo(&listener, &stop));
        let behaving = scope.spawn(|| behave(&beside, &stop));
        let attackers: Vec<_> = (0..RIGS * 2)
            .map(|number| {
                let attacker = Attacker {
                    rig: &rigs[(number / 2) as usize],
                    dice: Dice(SEED + number),
                    tally: Tally::default(),
                };
                scope.spawn(move || attacker.attack(WRITES / (RIGS * 2)))
            })
            .collect();
        for attacker in attackers {
            tally.add(&attacker.join().unwrap());
        }
        stop.store(true, Ordering::SeqCst);
        (behaving.join().unwrap(), echoing.join().unwrap())
    });
    let grown = resident().saturating_sub(before);
    println!("{tally}");
    println!(
        "hostile: {:?}, {} MiB grown, {behaved} requests beside, {reached} sockets reached, {echoed} bytes in them",
        start.elapsed(),
        grown >> 20
    );
    assert!(tally.writes() >= 1_000_000);
    assert!(
        tally.past() * 2 >= tally.writes(),
        "too few past queue validation"
    );
    assert!(reached > 0, "no socket was ever reached");
    // What the run is for happened: each of the devices broke rings, and refused registers.
    for name in NAMES {
        let sum = |of: fn(&Counts) -> u64| -> u64 {
            let counts = tally.0.iter().filter(|(key, _)| key.0 == name);
            counts.map(|(_, counts)| of(counts)).sum()
        };
        let (broke, refused) = (sum(|counts| counts.broke), sum(|counts| counts.refused));
        assert!(broke > 100 && refused > 1000, "{name}: {broke} {refused}");
    }
    assert!(grown < 256 << 20, "{grown} bytes more");

    // Pause, save, restore and resume are obeyed, a reset heals.
    for rig in &rigs {
        rig.parts().for_each(Lifecycle::pause);
        for function in &rig.functions {
            let saved = function.save().unwrap();
            function.restore(&saved).unwrap();
        }
        rig.parts().for_each(Lifecycle::resume);
        heals(rig, true);
        let books = rig.books.clone();
        rig.parts().for_each(Lifecycle::halt);
        assert!(books.are_empty());
    }
    assert!(behaved > 0);
    let mut status = [0];
    beside.functions[0].read(20, &mut status);
    assert_eq!(status, [15], "the neighbour noticed");
}
