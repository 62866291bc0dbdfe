//! A real vhost-user frontend (the `vhost` crate's) drives a [`Connection`] over a socket pair.

use std::{
    fs::File,
    io::Write,
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::Arc,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
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
use virtio::{
    chain::Chain,
    feature,
    vhost_user::{Connection, Error, Event, Next, Offer, Stops},
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: u64 = 1 << 20;
const USER: u64 = 0x7f00_0000_0000;
const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const SIZE: u16 = 16;

fn offer() -> Offer {
    Offer {
        queues: 2,
        queue_size: 256,
        config: vec![1, 2, 3, 4],
        inflight: true,
        ..Offer::default()
    }
}

/// The frontend's half: guest memory and one ring, which the tests fill by hand.
struct Guest {
    frontend: Frontend,
    memory: GuestMemoryMmap,
    file: File,
    kick: EventFd,
    call: EventFd,
    avail: u16,
}

impl Guest {
    /// Runs `request` here, and the backend's half on another thread until the request is answered.
    fn ask<T>(
        &mut self,
        backend: &mut Connection,
        request: impl FnOnce(&mut Frontend) -> T,
    ) -> (T, Vec<Event>) {
        let mut frontend = self.frontend.clone();
        let (wake, stop) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let server = scope.spawn(move || serve(backend, &stop).unwrap());
            let answer = request(&mut frontend);
            drop(wake);
            (answer, server.join().unwrap())
        })
    }

    fn offer_buffers(&mut self, heads: &[u16]) {
        for head in heads {
            let slot = u64::from(self.avail % SIZE);
            self.memory
                .write_obj(*head, GuestAddress(AVAIL + 4 + slot * 2))
                .unwrap();
            self.avail = self.avail.wrapping_add(1);
        }
        self.memory
            .write_obj(self.avail, GuestAddress(AVAIL + 2))
            .unwrap();
    }

    fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }
}

/// Serves requests until `stop` is closed and nothing more is to be read.
fn serve(backend: &mut Connection, stop: &UnixStream) -> Result<Vec<Event>, Error> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut events = Vec::new();
    loop {
        while let Next::Request { .. } = backend.look()? {
            events.push(backend.handle()?);
        }
        let mut fds = [
            PollFd::new(backend.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::NONE).unwrap();
        let (readable, ended) = (fds[0].any() == Some(true), fds[1].any() == Some(true));
        if ended && !readable {
            return Ok(events);
        }
    }
}

fn guest_memory(size: u64, sealed: bool) -> (File, GuestMemoryMmap) {
    let fd = memfd_create(c"guest", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    ftruncate(&fd, size as i64).unwrap();
    if sealed {
        fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
    }
    let file = File::from(fd);
    let region = MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), size as usize).unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
    (file, GuestMemoryMmap::from_regions(vec![region]).unwrap())
}

fn connect(offer: Offer) -> (Guest, Connection) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let backend = Connection::new(theirs, offer).unwrap();
    let (file, memory) = guest_memory(MEMORY, true);
    let guest = Guest {
        frontend: Frontend::from_stream(ours, 16),
        memory,
        file,
        kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        call: EventFd::new(EFD_NONBLOCK).unwrap(),
        avail: 0,
    };
    (guest, backend)
}

fn region(guest: &Guest) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: MEMORY,
        userspace_addr: USER,
        mmap_offset: 0,
        mmap_handle: guest.file.as_raw_fd(),
    }
}

fn negotiate(f: &mut Frontend) {
    f.set_owner().unwrap();
    let offered = f.get_features().unwrap();
    f.set_features(offered & !feature::EVENT_IDX).unwrap();
    let protocol = f.get_protocol_features().unwrap();
    assert!(protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD));
    f.set_protocol_features(protocol).unwrap();
    f.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
}

fn ring_addresses() -> VringConfigData {
    VringConfigData {
        queue_max_size: SIZE,
        queue_size: SIZE,
        flags: 0,
        desc_table_addr: USER + TABLE,
        used_ring_addr: USER + USED,
        avail_ring_addr: USER + AVAIL,
        log_addr: None,
    }
}

/// Negotiates everything and starts ring 0 at `base`, with an inflight record when given.
fn start(
    guest: &mut Guest,
    backend: &mut Connection,
    base: u16,
    record: Option<(&VhostUserInflight, &File)>,
) {
    let (region, kick, call) = (
        region(guest),
        guest.kick.try_clone().unwrap(),
        guest.call.try_clone().unwrap(),
    );
    let (_, events) = guest.ask(backend, |f| {
        negotiate(f);
        if let Some((shape, file)) = record {
            f.set_inflight_fd(shape, file.as_raw_fd()).unwrap();
        }
        f.set_mem_table(&[region]).unwrap();
        f.set_vring_num(0, SIZE).unwrap();
        f.set_vring_base(0, base).unwrap();
        f.set_vring_addr(0, &ring_addresses()).unwrap();
        f.set_vring_kick(0, &kick).unwrap();
        f.set_vring_call(0, &call).unwrap();
        f.set_vring_enable(0, true).unwrap();
    });
    assert!(events.contains(&Event::Ring(0)));
    assert!(backend.ring(0).running());
}

#[test]
fn a_ring_carries_buffers_and_interrupts() {
    let (mut guest, mut backend) = connect(offer());
    start(&mut guest, &mut backend, 0, None);
    assert!(backend.features() & feature::VERSION_1 != 0);
    guest.call.read().unwrap();

    guest
        .memory
        .write_slice(b"question", GuestAddress(0x8000))
        .unwrap();
    guest
        .memory
        .write_obj(Descriptor::new(0x8000, 8, 1, 4), GuestAddress(TABLE + 3 * 16))
        .unwrap();
    guest
        .memory
        .write_obj(Descriptor::new(0x9000, 64, 2, 0), GuestAddress(TABLE + 4 * 16))
        .unwrap();
    guest.offer_buffers(&[3]);

    let mut chain = Chain::new();
    let memory = Arc::clone(backend.memory());
    assert_eq!(backend.ring(0).waiting(&memory), 1);
    assert!(backend.take(0, &mut chain).unwrap());
    assert!(!backend.take(0, &mut Chain::new()).unwrap());
    let mut bytes = [0; 8];
    chain.read(&memory, 0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"question");
    chain.write(&memory, 0, b"answer").unwrap();
    backend.complete(0, chain.head(), 6).unwrap();
    assert!(backend.ring(0).notify(&memory));

    assert_eq!(guest.call.read().unwrap(), 1);
    assert_eq!(guest.used(), 1);
    assert_eq!(
        guest.memory.read_obj::<[u32; 2]>(GuestAddress(USED + 4)).unwrap(),
        [3, 6]
    );
    assert_eq!(
        guest.memory.read_obj::<[u8; 6]>(GuestAddress(0x9000)).unwrap(),
        *b"answer"
    );

    // Kicks that nobody needs are suppressed, and interrupts that the driver does not want.
    backend.ring(0).disable_kicks(&memory);
    assert_eq!(guest.memory.read_obj::<u16>(GuestAddress(USED)).unwrap(), 1);
    guest.offer_buffers(&[3]);
    assert!(
        backend.ring(0).enable_kicks(&memory),
        "a buffer came in before the guest could know"
    );
    guest.memory.write_obj(1u16, GuestAddress(AVAIL)).unwrap();
    assert!(backend.take(0, &mut chain).unwrap());
    backend.complete(0, chain.head(), 0).unwrap();
    assert!(!backend.ring(0).notify(&memory));
}

#[test]
fn stopping_is_announced_and_answers_the_next_index() {
    let (mut guest, mut backend) = connect(offer());
    start(&mut guest, &mut backend, 0, None);
    guest.offer_buffers(&[0, 0, 0]);
    guest
        .memory
        .write_obj(Descriptor::new(0x9000, 64, 2, 0), GuestAddress(TABLE))
        .unwrap();
    let mut chain = Chain::new();
    for _ in 0..3 {
        assert!(backend.take(0, &mut chain).unwrap());
    }
    backend.ring(0).unpop(1);

    let frontend = guest.frontend.clone();
    let asker = std::thread::spawn(move || frontend.get_vring_base(0).unwrap());
    let stops = loop {
        if let Next::Request { stops } = backend.look().unwrap() {
            break stops;
        }
        std::thread::yield_now();
    };
    assert_eq!(stops, Some(Stops::Ring(0)));
    assert_eq!(backend.handle().unwrap(), Event::Stopped(0));
    assert_eq!(asker.join().unwrap(), 2);
    assert!(!backend.ring(0).started());
    assert!(!backend.take(0, &mut chain).unwrap());
}

#[test]
fn a_second_backend_finds_what_the_first_left() {
    let (mut guest, mut backend) = connect(offer());
    let (record, _) = guest.ask(&mut backend, |f| {
        negotiate(f);
        f.get_inflight_fd(&VhostUserInflight::new(0, 0, 2, SIZE)).unwrap()
    });
    let (shape, file) = record;
    start(&mut guest, &mut backend, 0, Some((&shape, &file)));
    for head in 0..4u64 {
        guest
            .memory
            .write_obj(Descriptor::new(0x9000, 64, 2, 0), GuestAddress(TABLE + head * 16))
            .unwrap();
    }
    guest.offer_buffers(&[2, 1, 0]);
    let mut chain = Chain::new();
    for _ in 0..3 {
        assert!(backend.take(0, &mut chain).unwrap());
    }
    backend.complete(0, 1, 64).unwrap();
    drop(backend);
    guest.offer_buffers(&[3]);

    let (ours, theirs) = UnixStream::pair().unwrap();
    guest.frontend = Frontend::from_stream(ours, 16);
    let mut backend = Connection::new(theirs, offer()).unwrap();
    let base = guest.used();
    start(&mut guest, &mut backend, base, Some((&shape, &file)));
    assert_eq!(backend.take_recovered(0), [2, 0]);
    assert!(backend.take_recovered(0).is_empty());
    assert!(backend.take(0, &mut chain).unwrap());
    assert_eq!(chain.head(), 3, "the next new request follows the recovered ones");
    assert!(!backend.take(0, &mut chain).unwrap());
}

#[test]
fn an_in_order_device_resumes_at_the_used_index() {
    let (mut guest, mut backend) = connect(Offer {
        in_order: true,
        ..offer()
    });
    guest.memory.write_obj(7u16, GuestAddress(USED + 2)).unwrap();
    guest.avail = 7;
    guest.offer_buffers(&[0, 0]);
    guest
        .memory
        .write_obj(Descriptor::new(0x9000, 64, 2, 0), GuestAddress(TABLE))
        .unwrap();
    start(&mut guest, &mut backend, 9, None);
    let (memory, ring) = backend.memory_and_ring(0);
    assert_eq!(ring.waiting(memory), 2);
}

#[test]
fn configuration_is_read_written_and_announced() {
    let (mut guest, mut backend) = connect(Offer {
        writable_config: Some((2, 1)),
        ..offer()
    });
    let (backend_end, mut frontend_end) = UnixStream::pair().unwrap();
    let (bytes, events) = guest.ask(&mut backend, |f| {
        negotiate(f);
        f.set_backend_request_fd(&backend_end).unwrap();
        f.set_config(2, VhostUserConfigFlags::WRITABLE, &[9]).unwrap();
        f.get_config(2, 4, VhostUserConfigFlags::WRITABLE, &[0; 4])
            .unwrap()
            .1
    });
    assert_eq!(bytes, [9, 4, 0, 0]);
    assert!(events.contains(&Event::Config { offset: 2, len: 1 }));
    backend.change_config(vec![5; 4]).unwrap();
    let mut message = [0; 12];
    std::io::Read::read_exact(&mut frontend_end, &mut message).unwrap();
    assert_eq!(message[0], 2, "VHOST_USER_BACKEND_CONFIG_CHANGE_MSG");
}

/// Every refused request ends the connection with an error, and none with a panic.
#[test]
fn a_hostile_frontend_is_refused() {
    type Attack = fn(&mut Frontend, &VhostUserMemoryRegionInfo) -> bool;
    let attacks: [(&str, Attack); 10] = [
        ("a read-only field", |f, _| {
            f.set_config(1, VhostUserConfigFlags::WRITABLE, &[9]).is_err()
        }),
        ("unknown features", |f, _| f.set_features(u64::MAX).is_err()),
        ("a ring that is not there", |f, _| f.set_vring_base(5, 0).is_err()),
        ("odd queue size", |f, _| f.set_vring_num(0, 17).is_err()),
        ("huge queue", |f, _| f.set_vring_num(0, 512).is_err()),
        ("a kick before the addresses", |f, r| {
            f.set_mem_table(&[*r]).unwrap();
            f.set_vring_kick(0, &EventFd::new(0).unwrap()).is_err()
        }),
        ("a ring outside memory", |f, r| {
            f.set_mem_table(&[*r]).unwrap();
            let data = VringConfigData {
                used_ring_addr: USER + MEMORY - 8,
                ..ring_addresses()
            };
            f.set_vring_addr(0, &data).unwrap();
            f.set_vring_kick(0, &EventFd::new(0).unwrap()).is_err()
        }),
        ("memory beyond its file", |f, r| {
            f.set_mem_table(&[VhostUserMemoryRegionInfo {
                memory_size: MEMORY * 2,
                ..*r
            }])
            .is_err()
        }),
        ("unsealed memory", |f, r| {
            let (file, _) = guest_memory(MEMORY, false);
            f.set_mem_table(&[VhostUserMemoryRegionInfo {
                mmap_handle: file.as_raw_fd(),
                ..*r
            }])
            .is_err()
        }),
        ("an oversized inflight record", |f, _| {
            f.get_inflight_fd(&VhostUserInflight::new(0, 0, 2, 4096)).is_err()
        }),
    ];
    for (name, attack) in attacks {
        let (guest, mut backend) = connect(offer());
        let region = region(&guest);
        let Guest {
            mut frontend,
            file: _file,
            ..
        } = guest;
        let attacker = std::thread::spawn(move || {
            negotiate(&mut frontend);
            attack(&mut frontend, &region)
        });
        // The other end of this pair stays open: only an error ends the service.
        let (_open, stop) = UnixStream::pair().unwrap();
        let error = serve(&mut backend, &stop).unwrap_err();
        assert!(
            matches!(error, Error::Protocol(_) | Error::Ring(_)),
            "{name}: {error}"
        );
        drop(backend);
        assert!(attacker.join().unwrap(), "{name}");
    }
}

#[test]
fn messages_in_part_or_too_long_end_the_connection() {
    let messages: [&[u8]; 3] = [
        &[1, 0, 0, 0],
        &[9, 0, 0, 0, 1, 0, 0, 0, 40, 0, 0, 0, 1, 2, 3],
        &[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0],
    ];
    for message in messages {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut backend = Connection::new(theirs, offer()).unwrap();
        assert_eq!(backend.look().unwrap(), Next::Idle);
        ours.write_all(message).unwrap();
        assert!(matches!(backend.look(), Err(Error::Message)));
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut backend = Connection::new(theirs, offer()).unwrap();
    drop(ours);
    assert!(matches!(backend.look(), Err(Error::Closed)));
}

#[test]
fn a_frontend_that_does_not_read_its_replies_is_dropped() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut backend = Connection::new(theirs, offer()).unwrap();
    let error = loop {
        ours.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        if let Err(error) = backend.look().and_then(|_| backend.handle()) {
            break error;
        }
    };
    assert!(matches!(error, Error::Stalled), "{error}");
}

#[test]
fn a_guest_that_breaks_its_ring_stops_only_that_ring() {
    let (mut guest, mut backend) = connect(offer());
    start(&mut guest, &mut backend, 0, None);
    guest.memory.write_obj(900u16, GuestAddress(AVAIL + 2)).unwrap();
    let mut chain = Chain::new();
    backend.take(0, &mut chain).unwrap_err();
    assert!(backend.ring(0).broken());
    assert!(!backend.take(0, &mut chain).unwrap(), "reported once");
    assert!(!backend.ring(1).broken());
}

/// QEMU enables a network device's rings when only protocol features are agreed on.
#[test]
fn rings_may_be_enabled_before_features_are_set() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut backend = Connection::new(theirs, offer()).unwrap();
    let enable = |index: u32| [18u32, 1, 8, index, 1].map(u32::to_ne_bytes).concat();
    ours.write_all(&enable(1)).unwrap();
    assert_eq!(backend.look().unwrap(), Next::Request { stops: None });
    assert_eq!(backend.handle().unwrap(), Event::Ring(1));
    assert_eq!(backend.look().unwrap(), Next::Idle);
    ours.write_all(&enable(9)).unwrap();
    backend.look().unwrap();
    assert!(matches!(backend.handle(), Err(Error::Message)));
}
