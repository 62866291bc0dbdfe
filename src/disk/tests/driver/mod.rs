//! A guest's block driver over a real vhost-user frontend (the `vhost` crate's), for tests and torture.
//!
//! It does what QEMU and Linux do together: sets up memory and rings, keeps the inflight record, and after a backend's death
//! connects again and resumes at the used ring's index. It counts every completion, and panics when one comes that it did not wait for.
#![allow(dead_code)]

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    sync::atomic::{Ordering, fence},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::memfd::{MFdFlags, memfd_create},
    unistd::ftruncate,
};
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend, VhostUserProtocolFeatures,
        message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight},
    },
};
use virtio::feature;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const RING: u16 = 128;
/// Three descriptors make a request: header, data, status.
pub const DEPTH: usize = RING as usize / 3;
pub const MAX_DATA: usize = 64 << 10;
pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_GET_ID: u32 = 8;
pub const T_DISCARD: u32 = 11;
pub const T_WRITE_ZEROES: u32 = 13;

const USER: u64 = 0x7e00_0000_0000;
const RING_SPACE: u64 = 0x4000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADERS: u64 = 0x3000;
const STATUS: u64 = 0x3c00;
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Options {
    pub queues: u16,
    pub event_idx: bool,
    pub inflight: bool,
    /// Bytes of a request's data at most.
    pub data: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queues: 1,
            event_idx: true,
            inflight: true,
            data: MAX_DATA,
        }
    }
}

pub struct Driver {
    path: PathBuf,
    options: Options,
    frontend: Frontend,
    file: File,
    pub memory: GuestMemoryMmap,
    rings: Vec<Ring>,
    record: Option<(VhostUserInflight, File)>,
    pub features: u64,
}

struct Ring {
    kick: EventFd,
    call: EventFd,
    avail: u16,
    used: u16,
    /// By slot: waited for.
    busy: [bool; DEPTH],
}

/// A completed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    pub ring: usize,
    pub slot: usize,
    pub status: u8,
    pub written: u32,
}

fn connect(path: &Path) -> Frontend {
    Frontend::connect(path, 16).expect("the backend's socket")
}

impl Driver {
    pub fn new(path: &Path, options: Options) -> Self {
        let size = memory_size(&options);
        let file = File::from(memfd_create(c"guest", MFdFlags::MFD_ALLOW_SEALING).unwrap());
        ftruncate(&file, size as i64).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let region = MmapRegion::from_file(offset, size as usize).unwrap();
        let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
        let rings = (0..options.queues)
            .map(|_| Ring {
                kick: EventFd::new(EFD_NONBLOCK).unwrap(),
                call: EventFd::new(EFD_NONBLOCK).unwrap(),
                avail: 0,
                used: 0,
                busy: [false; DEPTH],
            })
            .collect();
        let mut driver = Self {
            path: path.to_owned(),
            frontend: connect(path),
            options,
            file,
            memory: GuestMemoryMmap::from_regions(vec![region]).unwrap(),
            rings,
            record: None,
            features: 0,
        };
        driver.set_up().expect("setting up the device");
        driver
    }

    /// After the backend died: connects to the next one and resumes. The next one may die, too.
    pub fn reconnect(&mut self) -> vhost::Result<()> {
        self.frontend = connect(&self.path);
        self.set_up()
    }

    fn set_up(&mut self) -> vhost::Result<()> {
        let f = &mut self.frontend;
        f.set_owner()?;
        let mut features = f.get_features()?;
        if !self.options.event_idx {
            features &= !feature::EVENT_IDX;
        }
        self.features = features;
        f.set_features(features)?;
        let mut protocol = f.get_protocol_features()?;
        if !self.options.inflight {
            protocol -= VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        }
        f.set_protocol_features(protocol)?;
        f.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        if self.options.inflight {
            if self.record.is_none() {
                self.record =
                    Some(f.get_inflight_fd(&VhostUserInflight::new(0, 0, self.options.queues, RING))?);
            }
            if let Some((shape, file)) = &self.record {
                f.set_inflight_fd(shape, file.as_raw_fd())?;
            }
        }
        f.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: memory_size(&self.options),
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }])?;
        for index in 0..self.rings.len() {
            let start = ring_start(index);
            f.set_vring_num(index, RING)?;
            let used: u16 = self
                .memory
                .load(GuestAddress(start + USED + 2), Ordering::Acquire)
                .unwrap();
            f.set_vring_base(index, used)?;
            f.set_vring_addr(
                index,
                &VringConfigData {
                    queue_max_size: RING,
                    queue_size: RING,
                    flags: 0,
                    desc_table_addr: USER + start,
                    used_ring_addr: USER + start + USED,
                    avail_ring_addr: USER + start + AVAIL,
                    log_addr: None,
                },
            )?;
            f.set_vring_kick(index, &self.rings[index].kick)?;
            f.set_vring_call(index, &self.rings[index].call)?;
            f.set_vring_enable(index, true)?;
        }
        Ok(())
    }

    /// Stops the ring as a monitor does when its guest pauses, and returns the next available index.
    pub fn stop_ring(&mut self, ring: usize) -> u32 {
        self.frontend.get_vring_base(ring).unwrap()
    }

    pub fn config(&mut self) -> Vec<u8> {
        self.frontend
            .get_config(0, 60, VhostUserConfigFlags::WRITABLE, &[0; 60])
            .unwrap()
            .1
    }

    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// Where the data of a slot are in guest memory.
    pub fn data(&self, ring: usize, slot: usize) -> GuestAddress {
        let rings = self.rings.len() as u64 * RING_SPACE;
        GuestAddress(rings + ((ring * DEPTH + slot) * self.options.data) as u64)
    }

    pub fn free_slot(&self, ring: usize) -> Option<usize> {
        self.rings[ring].busy.iter().position(|busy| !busy)
    }

    pub fn in_flight(&self) -> usize {
        self.rings
            .iter()
            .map(|ring| ring.busy.iter().filter(|busy| **busy).count())
            .sum()
    }

    /// Queues a request whose data, if it has any, the device reads or writes at [`Driver::data`].
    pub fn submit(&mut self, ring: usize, slot: usize, kind: u32, sector: u64, len: u32) {
        assert!(!self.rings[ring].busy[slot]);
        let start = ring_start(ring);
        let header = start + HEADERS + slot as u64 * 16;
        let status = start + STATUS + slot as u64;
        let bytes = [kind.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat();
        self.memory.write_slice(&bytes, GuestAddress(header)).unwrap();
        self.memory.write_obj(0xffu8, GuestAddress(status)).unwrap();
        let from_device = matches!(kind, T_IN | T_GET_ID);
        let first = slot as u16 * 3;
        let mut table = vec![Descriptor::new(header, 16, 1, first + 1)];
        if len > 0 {
            let flags = if from_device { 3 } else { 1 };
            table.push(Descriptor::new(self.data(ring, slot).0, len, flags, first + 2));
        }
        table.push(Descriptor::new(status, 1, 2, 0));
        for (i, descriptor) in table.iter().enumerate() {
            let at = start + (u64::from(first) + i as u64) * 16;
            self.memory.write_obj(*descriptor, GuestAddress(at)).unwrap();
        }
        let state = &mut self.rings[ring];
        state.busy[slot] = true;
        let entry = start + AVAIL + 4 + u64::from(state.avail % RING) * 2;
        self.memory.write_obj(first, GuestAddress(entry)).unwrap();
        state.avail = state.avail.wrapping_add(1);
        let index = GuestAddress(start + AVAIL + 2);
        self.memory.store(state.avail, index, Ordering::Release).unwrap();
    }

    /// Kicks as the device asked for it: a kick that is held back wrongly hangs the test.
    pub fn kick(&mut self, ring: usize, added: u16) {
        fence(Ordering::SeqCst);
        let start = ring_start(ring);
        let state = &self.rings[ring];
        let wanted = if self.features & feature::EVENT_IDX != 0 {
            let at = start + USED + 4 + u64::from(RING) * 8;
            let event: u16 = self.memory.load(GuestAddress(at), Ordering::Acquire).unwrap();
            let old = state.avail.wrapping_sub(added);
            state.avail.wrapping_sub(event).wrapping_sub(1) < state.avail.wrapping_sub(old)
        } else {
            let flags: u16 = self
                .memory
                .load(GuestAddress(start + USED), Ordering::Acquire)
                .unwrap();
            flags & 1 == 0
        };
        if wanted {
            state.kick.write(1).unwrap();
        }
    }

    /// The next completion of a ring, if there is one.
    pub fn poll(&mut self, ring: usize) -> Option<Done> {
        let start = ring_start(ring);
        let index: u16 = self
            .memory
            .load(GuestAddress(start + USED + 2), Ordering::Acquire)
            .unwrap();
        let state = &mut self.rings[ring];
        if index == state.used {
            // Ask for an interrupt at the next one, and look again as drivers do.
            let event = start + AVAIL + 4 + u64::from(RING) * 2;
            self.memory
                .store(state.used, GuestAddress(event), Ordering::Release)
                .unwrap();
            fence(Ordering::SeqCst);
            let again: u16 = self
                .memory
                .load(GuestAddress(start + USED + 2), Ordering::Acquire)
                .unwrap();
            if again == state.used {
                return None;
            }
        }
        let entry = start + USED + 4 + u64::from(state.used % RING) * 8;
        let [head, written]: [u32; 2] = self.memory.read_obj(GuestAddress(entry)).unwrap();
        state.used = state.used.wrapping_add(1);
        let slot = head as usize / 3;
        assert!(
            head % 3 == 0 && slot < DEPTH && state.busy[slot],
            "a request was completed that nobody waits for: head {head} of ring {ring}"
        );
        state.busy[slot] = false;
        let status = self
            .memory
            .read_obj(GuestAddress(start + STATUS + slot as u64))
            .unwrap();
        Some(Done {
            ring,
            slot,
            status,
            written,
        })
    }

    /// Waits for an interrupt of any ring; false if none came in time.
    pub fn wait(&self, timeout: Duration) -> bool {
        let mut fds: Vec<_> = self
            .rings
            .iter()
            .map(|ring| PollFd::new(borrow(&ring.call), PollFlags::POLLIN))
            .collect();
        let timeout = PollTimeout::try_from(timeout).unwrap();
        let count = poll(&mut fds, timeout).unwrap();
        for ring in &self.rings {
            let _ = ring.call.read();
        }
        count > 0
    }

    /// Waits until a completion comes, by interrupts alone.
    pub fn next(&mut self) -> Done {
        let start = Instant::now();
        loop {
            if let Some(done) = (0..self.rings.len()).find_map(|ring| self.poll(ring)) {
                return done;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "no completion, {} in flight",
                self.in_flight()
            );
            self.wait(PATIENCE);
        }
    }

    /// One request from start to end.
    pub fn request(&mut self, kind: u32, sector: u64, data: &mut [u8]) -> Done {
        let slot = self.free_slot(0).unwrap();
        let at = self.data(0, slot);
        self.memory.write_slice(data, at).unwrap();
        self.submit(0, slot, kind, sector, data.len() as u32);
        self.kick(0, 1);
        let done = self.next();
        assert_eq!((done.ring, done.slot), (0, slot));
        self.memory.read_slice(data, at).unwrap();
        done
    }
}

fn memory_size(options: &Options) -> u64 {
    let bytes = u64::from(options.queues) * (RING_SPACE + (DEPTH * options.data) as u64);
    bytes.next_multiple_of(4096)
}

fn ring_start(ring: usize) -> u64 {
    ring as u64 * RING_SPACE
}

fn borrow(fd: &EventFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the event is open while it is borrowed.
    #[allow(unsafe_code)]
    unsafe {
        std::os::fd::BorrowedFd::borrow_raw(fd.as_raw_fd())
    }
}

/// A control connection to the backend.
pub fn control(path: &Path) -> process::control::Client<model::disk::DiskRequest, model::disk::DiskStatus> {
    process::control::Client::connect(path, PATIENCE).unwrap()
}

/// A listening socket in a directory.
pub fn listen(path: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.as_fd().try_clone_to_owned()
}
