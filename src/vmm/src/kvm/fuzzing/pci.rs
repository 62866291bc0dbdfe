//! The bus: configuration space both ways, windows, MSI-X, the virtio registers, and rings behind them.

use virtio::fuzzing::{Input, plant};
use vm_memory::{Bytes, GuestAddress};

use super::rig::{Kind, MEMORY, Rig};
use crate::kvm::layout::{ECAM, FW_CFG, HOLE, PCI_CONFIG};
use crate::kvm::lifecycle::Lifecycle;
use crate::kvm::pci::Function;
use crate::kvm::virtio::worker::inline;

/// The parts of a queue: descriptors, available ring, used ring.
pub(in crate::kvm) const fn queue(function: u64, index: u64) -> [u64; 3] {
    let at = 0x1_0000 * (function + 1) + 0x3000 * index;
    [at, at + 0x1000, at + 0x2000]
}

/// Where a driver's buffers are.
const BUFFERS: u64 = 0x8_0000;

/// What a driver does until the device serves (virtio 1.2 §3.1.1).
pub(in crate::kvm) fn drive(rig: &Rig, function: u64, features: u64, size: u16) {
    let Some(device) = rig.functions.get(function as usize) else {
        return;
    };
    let write = |offset: u32, length: usize, value: u64| {
        device.write(offset, &value.to_le_bytes()[..length]);
    };
    rig.configure(function + 1, 4, 6, 2);
    write(20, 1, 0);
    write(20, 1, 3);
    for half in 0..2 {
        write(8, 4, half);
        write(12, 4, features >> (32 * half) & 0xffff_ffff);
    }
    write(20, 1, 11);
    for index in 0..rig.queues[function as usize] {
        write(22, 2, index);
        write(24, 2, size.into());
        write(26, 2, index + 1);
        let [descriptors, available, used] = queue(function, index);
        for at in [available, used] {
            // A fresh ring.
            let _ = rig.memory.write_obj(0u32, GuestAddress(at));
        }
        write(32, 4, descriptors);
        write(40, 4, available);
        write(48, 4, used);
        write(28, 2, 1);
    }
    write(20, 1, 15);
}

/// The registers in which something happens.
const REGISTERS: &[(u32, u8)] = &[
    (0, 4),
    (8, 4),
    (12, 4),
    (16, 2),
    (20, 1),
    (22, 2),
    (24, 2),
    (26, 2),
    (28, 2),
    (32, 4),
    (36, 4),
    (40, 4),
    (44, 4),
    (48, 4),
    (52, 4),
    (0x3000, 2),
    (0x3004, 2),
    (0x4000, 4),
    (0x4004, 4),
    (0x4008, 4),
    (0x400c, 4),
    (0x401c, 4),
];

/// One access.
pub(super) fn step(rig: &Rig, input: &mut Input<'_>) {
    let kind = input.u8();
    let function = usize::from(kind >> 7);
    let device = &rig.functions[function];
    match kind & 0x7f {
        0..16 => {
            let (offset, length) = REGISTERS[usize::from(input.u8()) % REGISTERS.len()];
            device.write(offset, &input.number().to_le_bytes()[..usize::from(length)]);
        }
        16..24 => {
            let (at, length) = (HOLE.wrapping_add(input.number()), usize::from(input.u8() % 17));
            let mut data = [0xff; 16];
            rig.space.read(at, &mut data[..length]);
            rig.space.write(at, input.bytes(length));
        }
        24..32 => {
            let (at, length) = (u64::from(input.u16()), usize::from(input.u8() % 9));
            let mut data = [0xff; 8];
            rig.space.read(ECAM + at, &mut data[..length]);
            rig.space.write(ECAM + at, input.bytes(length));
        }
        32..40 => {
            let (port, length) = (
                PCI_CONFIG + u64::from(input.u8() & 7),
                usize::from(input.u8() % 9),
            );
            let mut data = [0xff; 8];
            rig.ports.read(port, &mut data[..length]);
            rig.ports.write(port, input.bytes(length));
        }
        40..48 => rig.configure(
            function as u64 + 1,
            u64::from(input.u8()) & 0xfc,
            input.number() as u32,
            4,
        ),
        48..52 => {
            // The address ports, and then the data.
            let address = 0x8000_0000 | u32::from(input.u8() & 3) << 11 | u32::from(input.u8() & 0xfc);
            rig.ports.write(PCI_CONFIG, &address.to_le_bytes());
            rig.ports
                .write(PCI_CONFIG + 4, &(input.number() as u32).to_le_bytes());
        }
        52 | 53 => drive(rig, function as u64, rig.offered(function) & !input.number(), 16),
        54 | 55 => drive(rig, function as u64, 0x1_3000_0200 | input.number(), 16),
        56..60 => drive(rig, function as u64, 0x1_0000_0000, 1 << (input.u8() & 15)),
        60..72 => {
            let [descriptors, ..] = queue(function as u64, u64::from(input.u8() & 7));
            plant(input, &rig.memory, descriptors);
        }
        72..88 => {
            // Offer a chain, properly.
            let index = u64::from(input.u8() & 7);
            let [_, available, _] = queue(function as u64, index);
            let next: u16 = rig
                .memory
                .read_obj(GuestAddress(available + 2))
                .unwrap_or_default();
            let slot = available + 4 + u64::from(next % 16) * 2;
            let _ = rig.memory.write_obj(u16::from(input.u8()), GuestAddress(slot));
            let _ = rig
                .memory
                .write_obj(next.wrapping_add(1), GuestAddress(available + 2));
            device.write(0x3000 + 4 * index as u32, &[0, 0]);
        }
        88..96 => {
            // A header for a disk's request.
            let at = BUFFERS + u64::from(input.u8()) * 32;
            let _ = rig.memory.write_obj(u32::from(input.u8() & 15), GuestAddress(at));
            let _ = rig.memory.write_obj(input.number(), GuestAddress(at + 8));
        }
        96..104 => {
            let at = input.number() % MEMORY;
            let _ = rig.memory.write_slice(input.bytes(16), GuestAddress(at));
        }
        104..112 => inline::work(),
        112..116 => {
            rig.parts().for_each(Lifecycle::pause);
            rig.parts().for_each(Lifecycle::resume);
        }
        116..118 => rig.parts().for_each(Lifecycle::reset),
        118..122 => {
            rig.parts().for_each(Lifecycle::pause);
            if let Ok(saved) = device.save() {
                device.reset();
                let restored = device.restore(&saved);
                assert!(restored.is_ok(), "{restored:?}");
                assert_eq!(device.save().ok(), Some(saved));
            }
            rig.parts().for_each(Lifecycle::resume);
        }
        122..124 => rig.stir(input.u8()),
        _ => {
            let at = FW_CFG + u64::from(input.u8() % 12);
            let bytes = input.bytes(usize::from(kind & 3) * 2);
            rig.ports.read(at, &mut [0; 8][..bytes.len()]);
            rig.ports.write(at, bytes);
        }
    }
}

/// After whatever it was: a reset heals it, and the devices serve, on threads or inline.
///
/// # Panics
/// If not.
pub(in crate::kvm) fn heals(rig: &Rig, threads: bool) {
    rig.parts().for_each(Lifecycle::pause);
    rig.parts().for_each(Lifecycle::reset);
    assert!(rig.books.are_empty());
    rig.parts().for_each(Lifecycle::resume);
    // The entropy device is the last one.
    let last = rig.functions.len() - 1;
    drive(rig, last as u64, 1 << 32, 16);
    let [descriptors, available, used] = queue(last as u64, 0);
    let put = |value: u64, at: u64| {
        let _ = rig.memory.write_obj(value, GuestAddress(at));
    };
    put(BUFFERS, descriptors);
    put(32 | 2 << 32, descriptors + 8);
    put(1 << 16, available);
    rig.functions[last].write(0x3000, &[0, 0]);
    inline::work();
    for _ in 0..20_000 {
        let used: u16 = rig.memory.read_obj(GuestAddress(used + 2)).unwrap_or_default();
        if !threads || used == 1 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let status = &mut [0];
    rig.functions[last].read(20, status);
    let answered: u16 = rig.memory.read_obj(GuestAddress(used + 2)).unwrap_or_default();
    assert_eq!((status[0], answered), (15, 1));
}

/// Whom the entropy device has beside it.
pub(super) const KINDS: [Kind; 5] = [Kind::Disk, Kind::Net, Kind::Console, Kind::Balloon, Kind::Vsock];

/// Accesses of a guest to two devices on a bus, of which the first byte says which the first is, while the machine is paused, reset, saved and restored.
///
/// # Panics
/// If a reset does not heal what was done, or something stays connected.
pub fn pci(data: &[u8]) {
    inline::choose(true);
    let mut input = Input::new(data);
    let first = input.u8();
    let kind = KINDS[usize::from(first >> 2) % KINDS.len()];
    let rig = Rig::new(u64::from(first & 3), &[kind, Kind::Rng]);
    while !input.is_empty() {
        step(&rig, &mut input);
    }
    heals(&rig, false);
    let books = rig.books.clone();
    drop(rig);
    assert!(books.are_empty());
    inline::choose(false);
}
