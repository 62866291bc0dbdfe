//! A guest's virtio-net driver and its monitor's half of vhost-user, small enough for tests.
#![allow(unsafe_code)] // vhost wants addresses.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress,
};
use vmm_sys_util::eventfd::EventFd;

/// Feature bits (virtio 1.2 §5.1.3, §6).
pub mod feature {
    pub const CSUM: u64 = 1;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    pub const ALL: u64 = CSUM | GUEST_CSUM | GUEST_TSO4 | HOST_TSO4 | MRG_RXBUF | EVENT_IDX;
}

const SIZE: u16 = 16;
const MEMORY: usize = 4 << 20;
/// Size of a receive buffer.
pub const BUFFER: usize = 2048;
const HEADER: usize = 12;

/// The memory of a guest: it survives its monitor's connection.
pub struct Memory(GuestMemoryMmap<()>);

impl Memory {
    /// Sealed, as QEMU's memfd back end makes it.
    pub fn new() -> Self {
        let fd = memfd_create("guest", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(MEMORY as u64).unwrap();
        fcntl(
            file.as_fd(),
            FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW),
        )
        .unwrap();
        let range = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
        Self(GuestMemoryMmap::from_ranges_with_files([range]).unwrap())
    }

    fn word(&self, at: u64) -> u16 {
        self.0.read_obj(GuestAddress(at)).unwrap()
    }

    fn set_word(&self, at: u64, value: u16) {
        self.0.write_obj(value, GuestAddress(at)).unwrap();
    }
}

fn ring(index: u64) -> u64 {
    0x1_0000 * (index + 1)
}

fn buffer(pair: u64, descriptor: u64) -> u64 {
    0x10_0000 + (pair * u64::from(SIZE) + descriptor) * BUFFER as u64
}

const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;

/// A connected driver.
pub struct Driver<'a> {
    memory: &'a Memory,
    frontend: Frontend,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    seen: Vec<u16>,
}

/// A frame as the guest gets it.
#[derive(Debug)]
pub struct Received {
    /// virtio_net_hdr's flags and gso_type.
    pub flags: (u8, u8),
    /// How many buffers it took.
    pub buffers: u16,
    /// The frame.
    pub bytes: Vec<u8>,
}

impl<'a> Driver<'a> {
    /// Connects; the rings go on where they are in memory.
    pub fn connect(memory: &'a Memory, socket: &Path, features: u64) -> Self {
        Self::connect_pairs(memory, socket, features, 1)
    }

    /// The same with several pairs of rings.
    pub fn connect_pairs(memory: &'a Memory, socket: &Path, features: u64, pairs: u64) -> Self {
        let mut frontend = Frontend::connect(socket, 2 * pairs).unwrap();
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let wanted = features | feature::VERSION_1 | feature::PROTOCOL;
        assert_eq!(offered & wanted, wanted, "offered {offered:x}");
        let protocol = frontend.get_protocol_features().unwrap();
        frontend
            .set_protocol_features(
                protocol & (VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::MQ),
            )
            .unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(wanted).unwrap();
        let region = memory.0.iter().next().unwrap();
        let base = region.get_host_address(MemoryRegionAddress(0)).unwrap() as u64;
        frontend
            .set_mem_table(&[VhostUserMemoryRegionInfo::from_guest_region(region).unwrap()])
            .unwrap();
        let mut driver = Self {
            memory,
            frontend,
            kicks: Vec::new(),
            calls: Vec::new(),
            seen: Vec::new(),
        };
        for index in 0..2 * pairs {
            let i = index as usize;
            let (kick, call) = (
                EventFd::new(libc::EFD_NONBLOCK).unwrap(),
                EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            );
            let used = memory.word(ring(index) + USED + 2);
            driver.seen.push(used);
            let frontend = &mut driver.frontend;
            frontend.set_vring_num(i, SIZE).unwrap();
            let data = VringConfigData {
                queue_max_size: SIZE,
                queue_size: SIZE,
                flags: 0,
                desc_table_addr: base + ring(index),
                avail_ring_addr: base + ring(index) + AVAILABLE,
                used_ring_addr: base + ring(index) + USED,
                log_addr: None,
            };
            frontend.set_vring_addr(i, &data).unwrap();
            frontend.set_vring_base(i, used).unwrap();
            frontend.set_vring_call(i, &call).unwrap();
            frontend.set_vring_kick(i, &kick).unwrap();
            frontend.set_vring_enable(i, true).unwrap();
            driver.kicks.push(kick);
            driver.calls.push(call);
        }
        driver
    }

    fn offer(&self, index: u64, descriptor: u16, address: u64, length: u32, flags: u16) {
        let at = ring(index) + u64::from(descriptor) * 16;
        self.memory.0.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.0.write_obj(length, GuestAddress(at + 8)).unwrap();
        self.memory.set_word(at + 12, flags);
        let available = ring(index) + AVAILABLE;
        let next = self.memory.word(available + 2);
        self.memory
            .set_word(available + 4 + u64::from(next % SIZE) * 2, descriptor);
        self.memory.set_word(available + 2, next.wrapping_add(1));
    }

    /// How many rings the switch offers.
    pub fn rings_offered(&mut self) -> u64 {
        self.frontend.get_queue_num().unwrap()
    }

    /// Uses a pair of rings, or not.
    pub fn use_pair(&mut self, pair: usize, used: bool) {
        for index in [2 * pair, 2 * pair + 1] {
            self.frontend.set_vring_enable(index, used).unwrap();
        }
    }

    /// Gives receive buffers.
    pub fn give_buffers(&self, count: u16) {
        self.give_buffers_on(0, count);
    }

    /// The same on another pair.
    pub fn give_buffers_on(&self, pair: u64, count: u16) {
        let index = 2 * pair;
        let next = self.memory.word(ring(index) + AVAILABLE + 2);
        for n in 0..count {
            let descriptor = next.wrapping_add(n) % SIZE;
            self.offer(
                index,
                descriptor,
                buffer(pair, descriptor.into()),
                BUFFER as u32,
                2,
            );
        }
        self.kicks[index as usize].write(1).unwrap();
    }

    /// Sends a frame and waits until the switch has it.
    pub fn send(&mut self, header: [u8; HEADER], bytes: &[u8]) {
        self.send_on(0, header, bytes);
    }

    /// The same on another pair.
    pub fn send_on(&mut self, pair: u64, header: [u8; HEADER], bytes: &[u8]) {
        let index = 2 * pair + 1;
        let i = index as usize;
        self.memory
            .0
            .write_slice(&[&header, bytes].concat(), GuestAddress(0x20_0000))
            .unwrap();
        self.offer(index, 0, 0x20_0000, (HEADER + bytes.len()) as u32, 0);
        // The driver wants to hear of it (used_event).
        self.memory
            .set_word(ring(index) + AVAILABLE + 4 + u64::from(SIZE) * 2, self.seen[i]);
        self.kicks[i].write(1).unwrap();
        assert!(
            self.wait(index, Duration::from_secs(5)),
            "the switch does not take a frame"
        );
        self.seen[i] = self.seen[i].wrapping_add(1);
    }

    fn wait(&self, index: u64, patience: Duration) -> bool {
        let i = index as usize;
        let deadline = std::time::Instant::now() + patience;
        loop {
            if self.memory.word(ring(index) + USED + 2) != self.seen[i] {
                return true;
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let timeout = PollTimeout::try_from(left.as_millis() as i32).unwrap();
            // SAFETY: the descriptor stays open while it is borrowed.
            let fd = unsafe {
                std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&self.calls[i]))
            };
            if poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout).unwrap() == 0 {
                return false;
            }
            let _ = self.calls[i].read();
        }
    }

    /// The next frame, if one comes in time.
    pub fn receive(&mut self, patience: Duration) -> Option<Received> {
        self.receive_on(0, patience)
    }

    /// The same on another pair.
    pub fn receive_on(&mut self, pair: u64, patience: Duration) -> Option<Received> {
        let index = 2 * pair;
        let i = index as usize;
        // The driver wants to hear of the next one (used_event).
        self.memory
            .set_word(ring(index) + AVAILABLE + 4 + u64::from(SIZE) * 2, self.seen[i]);
        if !self.wait(index, patience) {
            return None;
        }
        let mut all = Vec::new();
        let mut buffers = 1;
        while buffers > 0 {
            assert_ne!(
                self.memory.word(ring(index) + USED + 2),
                self.seen[i],
                "a frame came in part"
            );
            let element = ring(index) + USED + 4 + u64::from(self.seen[i] % SIZE) * 8;
            let head: u32 = self.memory.0.read_obj(GuestAddress(element)).unwrap();
            let length: u32 = self.memory.0.read_obj(GuestAddress(element + 4)).unwrap();
            let mut bytes = vec![0; length as usize];
            self.memory
                .0
                .read_slice(&mut bytes, GuestAddress(buffer(pair, head.into())))
                .unwrap();
            if all.is_empty() {
                buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
            }
            all.extend(bytes);
            buffers -= 1;
            self.seen[i] = self.seen[i].wrapping_add(1);
        }
        let bytes = all.split_off(HEADER);
        Some(Received {
            flags: (all[0], all[1]),
            buffers: u16::from_le_bytes([all[10], all[11]]),
            bytes,
        })
    }
}
