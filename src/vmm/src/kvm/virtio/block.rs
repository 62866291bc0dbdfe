//! The block device: what [`virtio::block`] does, on a thread with the backend that it was given.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model::disk::{DiskLimits, DiskStatus};
use virtio::block::{
    Block, BlockBackend, Completion, Finished, Geometry, Operation, QUEUE_SIZE, SECTOR, feature,
};
use virtio::chain::{Buffer, Chain};
use virtio::memory::Memory;

use super::worker::{Floor, Post, Service};
use super::{Device, Left, Session, StartError};

/// The device's type (virtio 1.2 §5).
const DEVICE_ID: u16 = 2;
/// How long requests for which there was no space wait before they are tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Chains that are taken before what has ended is returned.
const BATCH: u16 = QUEUE_SIZE;
/// What came within this time after the thread's last step is waited for this long with open eyes the next time, before it asks for
/// kicks and sleeps: a doorbell costs a guest far more than a look costs the host, and so does waking a processor. As long as
/// KVM looks for a halted guest (`halt_poll_ns`).
const PATIENCE: Duration = Duration::from_micros(200);
/// Requests that the backend gets at once: it is at work on the first ones while others are taken, and a deep queue does not go back
/// and forth as one.
const PIECE: u16 = 2;
/// The tokens of the backend and its timer.
const BACKEND: u32 = 0;
const TIMER: u32 = 1;

/// Where a disk's bytes are: a backend whose descriptor can be read (level-triggered) while something has ended. If it has a
/// [timer](BlockBackend::timer), that is watched as well.
pub trait Storage: BlockBackend + AsFd + Send {}

impl<T: BlockBackend + AsFd + Send> Storage for T {}

impl BlockBackend for Box<dyn Storage> {
    fn submit(
        &mut self,
        token: u32,
        operation: Operation,
        buffers: &[Buffer],
        memory: &Arc<Memory>,
        durable: bool,
    ) {
        (**self).submit(token, operation, buffers, memory, durable);
    }

    fn kick(&mut self) {
        (**self).kick();
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        (**self).reap(done);
    }

    fn wait(&mut self) {
        (**self).wait();
    }

    fn limit(&mut self, limits: &DiskLimits) -> bool {
        (**self).limit(limits)
    }

    fn limits(&self) -> DiskLimits {
        (**self).limits()
    }

    fn waiting(&self) -> usize {
        (**self).waiting()
    }

    fn recall(&mut self, wanted: &dyn Fn(u32) -> bool, back: &mut Vec<u32>) {
        (**self).recall(wanted, back);
    }

    fn timer(&self) -> Option<BorrowedFd<'_>> {
        (**self).timer()
    }
}

/// The places of the bits that are set.
fn bits(set: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |bit| set & 1 << bit != 0)
}

/// A disk of a machine.
pub struct Disk {
    /// Its name in the machine, unique among devices.
    pub name: String,
    /// Size, queues, serial number.
    pub geometry: Geometry,
    /// Its bytes.
    pub storage: Box<dyn Storage>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("name", &self.name)
            .field("geometry", &self.geometry)
            .finish_non_exhaustive()
    }
}

/// The device.
pub(in crate::kvm) struct BlockDevice {
    post: Post<Server>,
    geometry: Geometry,
    /// What the geometry's size is by now.
    sectors: AtomicU64,
}

struct Server {
    block: Block<Box<dyn Storage>>,
    last_retry: Instant,
    /// Rings that wait for room, as bits.
    waiting: u64,
    /// Rings whose kicks are switched off, as bits.
    quiet: u64,
    /// When requests were last taken, and when some were last returned.
    taken: Instant,
    returned: Instant,
    /// The last requests ended soon after they were taken; the last ones came soon after others were returned.
    ends_soon: bool,
    comes_soon: bool,
    // Kept, so that requests allocate nothing.
    chain: Chain,
    finished: Vec<Finished>,
}

impl BlockDevice {
    /// A device for this disk.
    pub(in crate::kvm) fn new(disk: Disk) -> Self {
        let Disk {
            name,
            geometry,
            storage,
        } = disk;
        let depth = geometry.depth();
        let now = Instant::now();
        let server = Server {
            block: Block::new(geometry.clone(), storage, depth),
            last_retry: now,
            waiting: 0,
            quiet: 0,
            taken: now,
            returned: now,
            ends_soon: false,
            comes_soon: false,
            chain: Chain::new(),
            finished: Vec::new(),
        };
        BlockDevice {
            post: Post::new(&name, server),
            sectors: AtomicU64::new(geometry.sectors),
            geometry,
        }
    }

    /// The storage has grown to this many bytes: the guest is told. False if that is no size for it.
    pub(in crate::kvm) fn resize(&self, bytes: u64) -> bool {
        let sectors = bytes / SECTOR;
        if !bytes.is_multiple_of(SECTOR) || sectors < self.sectors.load(Ordering::SeqCst) {
            return false;
        }
        self.post.call(|server, floor| {
            server.block.resize(sectors);
            self.sectors.store(sectors, Ordering::SeqCst);
            if let Some(floor) = floor {
                floor.alarm.changed();
            }
        });
        true
    }

    /// It may be used this much from now on. False if its storage knows no limits.
    pub(in crate::kvm) fn limit(&self, limits: &DiskLimits) -> bool {
        self.post.call(|server, floor| {
            let known = server.block.backend().limit(limits);
            if let Some(floor) = floor {
                // What may begin now may have ended at once.
                server.collect(floor);
            }
            known
        })
    }

    /// What it did so far.
    pub(in crate::kvm) fn status(&self) -> DiskStatus {
        self.post.call(|server, floor| {
            let counters = server.block.counters();
            DiskStatus {
                connected: floor.is_some(),
                reads: counters.reads,
                writes: counters.writes,
                flushes: counters.flushes,
                read_bytes: counters.read_bytes,
                written_bytes: counters.written_bytes,
                errors: counters.errors,
                paused: (server.block.parked() > 0).then(|| "pool full".to_owned()),
                limits: server.block.backend().limits(),
                waiting: server.block.backend().waiting() as u64,
            }
        })
    }
}

impl Server {
    /// Return what has ended, and look again at rings that wait for room. True if something had ended.
    fn collect(&mut self, floor: &mut Floor) -> bool {
        self.block.reap(&mut self.finished);
        let progress = !self.finished.is_empty();
        if progress {
            self.ends_soon = self.taken.elapsed() < PATIENCE;
            self.deliver(floor);
            self.returned = Instant::now();
        }
        if self.block.has_room() {
            for index in bits(std::mem::take(&mut self.waiting)) {
                floor.mark(index);
            }
        }
        progress
    }

    /// Until when it is worth it to look at rings and backend.
    fn patience(&mut self) -> Option<Instant> {
        // Requests that wait for a limit do not end soon, nor would more that come.
        let limited = self.block.backend().waiting() > 0;
        let comes = (self.comes_soon && !limited).then(|| self.returned + PATIENCE);
        let ends = (self.ends_soon && self.block.at_work() > 0).then(|| self.taken + PATIENCE);
        comes.max(ends)
    }

    /// Look at rings whose guests need not kick, and at what runs, until then. True if there was something.
    fn look(&mut self, floor: &mut Floor, until: Instant) -> bool {
        while Instant::now() < until {
            let mut found = self.collect(floor);
            for index in bits(self.quiet & !self.waiting) {
                if floor.rings[index].waiting(&floor.memory) > 0 {
                    floor.mark(index);
                    found = true;
                }
            }
            if found {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// The guest need not kick.
    fn silence(&mut self, floor: &mut Floor, index: usize) {
        if self.quiet & 1 << index == 0 {
            floor.rings[index].disable_kicks(&floor.memory);
            self.quiet |= 1 << index;
        }
    }

    /// Ask for kicks, and look once more for what came in between. True if there was something.
    fn listen(&mut self, floor: &mut Floor) -> bool {
        let mut found = false;
        let rings = self.quiet & !self.waiting;
        self.quiet &= self.waiting;
        for index in bits(rings) {
            if floor.rings[index].enable_kicks(&floor.memory) {
                floor.mark(index);
                found = true;
            }
        }
        found
    }

    fn deliver(&mut self, floor: &mut Floor) {
        let memory = floor.memory.clone();
        let mut touched = 0u64;
        for done in &self.finished {
            touched |= 1 << done.ring;
        }
        if self.comes_soon {
            // Before it sees what is returned.
            for index in bits(touched) {
                self.silence(floor, index);
            }
        }
        for done in self.finished.drain(..) {
            let ring = &mut floor.rings[usize::from(done.ring)];
            if let Err(error) = ring.push_used(&memory, done.head, done.written) {
                tracing::debug!(%error, "a guest's request cannot be returned");
            }
        }
        for (index, ring) in floor.rings.iter_mut().enumerate() {
            if touched & 1 << index != 0 {
                ring.notify(&memory);
            }
        }
    }

    /// Chains that an earlier session took: carried out again, before all others.
    fn take_again(&mut self, floor: &mut Floor) {
        let memory = floor.memory.clone();
        for (index, heads) in (0u16..).zip(std::mem::take(&mut floor.taken)) {
            for head in heads {
                if !self.block.has_room() {
                    self.block.make_room(&mut self.finished);
                    self.deliver(floor);
                }
                let ring = &mut floor.rings[usize::from(index)];
                // Without room even so, they are more than a device has at once: the state that tells of them lies.
                if !self.block.has_room() || ring.load(&memory, head, &mut self.chain).is_err() {
                    ring.break_ring();
                    break;
                }
                self.block
                    .start(index, &mut self.chain, &memory, &mut self.finished);
            }
        }
        self.block.kick();
    }
}

impl Service for Server {
    fn begin(&mut self, floor: &mut Floor) {
        self.block.set_write_through(floor.features & feature::FLUSH == 0);
        let backend = self.block.backend();
        let watched = floor.watch(backend.as_fd(), BACKEND);
        let timer = backend.timer();
        if let Err(error) = watched.and_then(|()| timer.map_or(Ok(()), |timer| floor.watch(timer, TIMER))) {
            tracing::warn!(%error, "a disk's backend cannot be watched");
            floor.alarm.raise();
        }
        self.take_again(floor);
    }

    fn serve(&mut self, floor: &mut Floor, index: usize) -> bool {
        self.silence(floor, index);
        let memory = floor.memory.clone();
        let ring = &mut floor.rings[index];
        let mut taken = false;
        let (mut more, mut again) = (false, true);
        // What is answered at once needs no room: a guest could go on for ever.
        for count in 1..=BATCH {
            if !self.block.has_room() {
                (more, again) = (true, false);
                break;
            }
            match ring.pop(&memory, &mut self.chain) {
                Ok(true) => {
                    taken = true;
                    // Queues are far fewer than 65536.
                    self.block
                        .start(index as u16, &mut self.chain, &memory, &mut self.finished);
                    if count.is_multiple_of(PIECE) {
                        self.block.kick();
                    }
                }
                // Kicks stay switched off until the thread rests.
                Ok(false) => {
                    again = false;
                    break;
                }
                Err(error) => {
                    tracing::debug!(ring = index, %error, "the guest broke its ring");
                    again = false;
                    break;
                }
            }
        }
        if taken {
            self.comes_soon = self.returned.elapsed() < PATIENCE;
            self.taken = Instant::now();
        }
        self.block.kick();
        if more {
            // The next completion makes room, perhaps one that comes at once.
            self.waiting |= 1 << index;
        }
        self.collect(floor);
        again
    }

    fn wake(&mut self, floor: &mut Floor, _: u32) {
        self.collect(floor);
    }

    fn rest(&mut self, floor: &mut Floor) -> Option<Duration> {
        let until = self.patience();
        if until.is_some_and(|until| self.look(floor, until)) || self.listen(floor) {
            return Some(Duration::ZERO);
        }
        if self.block.parked() == 0 {
            return None;
        }
        let waited = self.last_retry.elapsed();
        if waited >= RETRY {
            self.last_retry = Instant::now();
            self.block.retry();
            return Some(RETRY);
        }
        Some(RETRY - waited)
    }

    fn finish(&mut self, floor: &mut Floor) -> Vec<Vec<u16>> {
        // Nobody waits for those that wait for a limit.
        self.block.recall(None);
        self.block.drain(None, &mut self.finished);
        self.deliver(floor);
        (self.waiting, self.quiet) = (0, 0);
        let backend = self.block.backend();
        floor.unwatch(backend.as_fd());
        if let Some(timer) = backend.timer() {
            floor.unwatch(timer);
        }
        let mut taken = vec![Vec::new(); floor.rings.len()];
        for (ring, head) in self.block.give_up_parked() {
            taken[usize::from(ring)].push(head);
        }
        taken
    }
}

impl Device for BlockDevice {
    fn name(&self) -> &str {
        self.post.name()
    }

    fn id(&self) -> u16 {
        DEVICE_ID
    }

    /// Mass storage, others: what firmware and drivers of no kind in particular leave alone.
    fn class(&self) -> u32 {
        0x01_8000
    }

    fn features(&self) -> u64 {
        self.geometry.features()
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.geometry.queues.into()]
    }

    fn config(&self) -> Vec<u8> {
        Geometry {
            sectors: self.sectors.load(Ordering::SeqCst),
            ..self.geometry.clone()
        }
        .config()
    }

    fn start(&self, session: Session) -> Result<(), StartError> {
        self.post.start(session)
    }

    fn stop(&self) -> Vec<Left> {
        self.post.stop()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::atomic::AtomicBool;

    use virtio::block::Outcome;
    use virtio::vring::{Placement, RingAddresses};
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::kvm::event::descriptor;
    use crate::kvm::virtio::{Alarm, SessionQueue};

    /// A pool without any space.
    struct FullDisk(EventFd, Vec<Completion>);

    impl AsFd for FullDisk {
        fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
            descriptor(&self.0)
        }
    }

    impl BlockBackend for FullDisk {
        fn submit(&mut self, token: u32, _: Operation, _: &[Buffer], _: &Arc<Memory>, _: bool) {
            let outcome = Outcome::Full;
            self.1.push(Completion { token, outcome });
        }
        fn kick(&mut self) {}
        fn reap(&mut self, done: &mut Vec<Completion>) {
            done.append(&mut self.1);
        }
        fn wait(&mut self) {}
    }

    /// Holds all requests back until it is told otherwise, and rings its timer then.
    struct Held {
        event: EventFd,
        timer: EventFd,
        free: bool,
        held: Vec<u32>,
    }

    impl AsFd for Held {
        fn as_fd(&self) -> BorrowedFd<'_> {
            descriptor(&self.event)
        }
    }

    impl BlockBackend for Held {
        fn submit(&mut self, token: u32, _: Operation, _: &[Buffer], _: &Arc<Memory>, _: bool) {
            self.held.push(token);
        }
        fn kick(&mut self) {}
        fn reap(&mut self, done: &mut Vec<Completion>) {
            if self.free {
                let _ = self.timer.read();
                let outcome = Outcome::Done;
                done.extend(self.held.drain(..).map(|token| Completion { token, outcome }));
            }
        }
        fn wait(&mut self) {
            panic!("nobody is to wait for what is held back");
        }
        fn limit(&mut self, limits: &DiskLimits) -> bool {
            self.free = limits.is_unlimited();
            self.timer.write(1).unwrap();
            true
        }
        fn waiting(&self) -> usize {
            self.held.len()
        }
        fn recall(&mut self, wanted: &dyn Fn(u32) -> bool, back: &mut Vec<u32>) {
            back.extend(self.held.iter().filter(|token| wanted(**token)));
            self.held.retain(|token| !wanted(*token));
        }
        fn timer(&self) -> Option<BorrowedFd<'_>> {
            Some(descriptor(&self.timer))
        }
    }

    fn event() -> EventFd {
        EventFd::new(EFD_NONBLOCK).unwrap()
    }

    fn geometry(queues: u16) -> Geometry {
        Geometry {
            sectors: 8,
            read_only: false,
            queues,
            serial: [0; 20],
        }
    }

    /// Memory in which every place of a ring at 0x3000 offers the same write.
    fn writes() -> Arc<Memory> {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
        memory.write_obj(1u32, GuestAddress(0x8000)).unwrap();
        memory
            .write_obj([0x8000u64, 528 | 1 << 32 | 1 << 48], GuestAddress(0x1000))
            .unwrap();
        memory
            .write_obj([0x9000u64, 1 | 2 << 32], GuestAddress(0x1010))
            .unwrap();
        memory
    }

    fn queue(next: u16, taken: Vec<u16>) -> SessionQueue {
        SessionQueue {
            max: QUEUE_SIZE,
            placement: Some(Placement {
                size: QUEUE_SIZE,
                at: RingAddresses {
                    descriptors: 0x1000,
                    available: 0x3000,
                    used: 0x4000,
                },
                event_idx: false,
                next,
            }),
            kick: File::from(descriptor(&event()).try_clone_to_owned().unwrap()),
            call: None,
            taken,
        }
    }

    fn session(memory: Arc<Memory>, queues: Vec<SessionQueue>) -> (Session, Arc<AtomicBool>) {
        let raised = Arc::new(AtomicBool::new(false));
        let session = Session {
            memory,
            queues,
            features: 0,
            alarm: Alarm {
                raised: raised.clone(),
                interrupt: None,
            },
        };
        (session, raised)
    }

    fn until(what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(60), "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn what_is_held_back_neither_spins_nor_holds_up_a_pause_and_is_carried_out_after_it() {
        const OFFERED: u16 = 20;
        let memory = writes();
        memory.write_obj(OFFERED, GuestAddress(0x3002)).unwrap();
        let disk = BlockDevice::new(Disk {
            name: "disk".into(),
            geometry: geometry(1),
            storage: Box::new(Held {
                event: event(),
                timer: event(),
                free: false,
                held: Vec::new(),
            }),
        });
        let waiting = |count: u64| until("they wait", || disk.status().waiting == count);
        let start = |next, taken| {
            let (session, _) = session(memory.clone(), vec![queue(next, taken)]);
            disk.start(session).unwrap();
        };
        start(0, Vec::new());
        waiting(OFFERED.into());
        let spent = || Duration::from(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID.now().unwrap());
        let before = spent();
        std::thread::sleep(Duration::from_millis(500));
        assert!(spent() - before < Duration::from_millis(100), "it looks for ever");
        // The same for a reset and for a machine's end.
        let left = disk.stop();
        assert_eq!((left[0].next, left[0].taken.len()), (OFFERED, OFFERED.into()));
        assert_eq!(disk.status().waiting, 0);
        start(OFFERED, left[0].taken.clone());
        waiting(OFFERED.into());
        assert!(disk.limit(&DiskLimits::default()));
        until("all are carried out", || {
            disk.status().writes == u64::from(OFFERED)
        });
        assert!(disk.stop()[0].taken.is_empty());
        let used: u16 = memory.read_obj(GuestAddress(0x4002)).unwrap();
        assert_eq!(used, OFFERED);
    }

    #[test]
    fn a_state_with_more_requests_than_a_device_has_breaks_its_ring_and_ends_no_thread() {
        const QUEUES: u16 = 8;
        let disk = BlockDevice::new(Disk {
            name: "disk".into(),
            geometry: geometry(QUEUES),
            storage: Box::new(FullDisk(event(), Vec::new())),
        });
        let taken = || vec![0; QUEUE_SIZE.into()];
        let queues = (0..QUEUES).map(|_| queue(0, taken())).collect();
        let (session, raised) = session(writes(), queues);
        disk.start(session).unwrap();
        until("it does not say so", || raised.load(Ordering::SeqCst));
        let left = disk.stop();
        let taken: usize = left.iter().map(|left| left.taken.len()).sum();
        assert_eq!(taken, 1024, "as many as it can have at once");
    }
}
