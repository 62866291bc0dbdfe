//! The device between rings and backend.

use std::sync::Arc;

use super::{
    BlockBackend, Completion, Geometry, Operation, Outcome,
    request::{Request, S_IOERR, S_OK, parse},
};
use crate::{
    chain::{Buffer, Chain},
    memory::Memory,
};

/// A chain that goes back to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// The ring that it came from.
    pub ring: u16,
    /// Its first descriptor.
    pub head: u16,
    /// Bytes that were written to it.
    pub written: u32,
}

/// What a device did since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Completed reads.
    pub reads: u64,
    /// Completed writes.
    pub writes: u64,
    /// Completed flushes.
    pub flushes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
}

/// A request that the backend has, or that waits for space.
#[derive(Debug, Default)]
struct Slot {
    /// `None`: free.
    busy: Option<Busy>,
    /// Kept, so that requests allocate nothing once the device is warm.
    chain: Chain,
    buffers: Vec<Buffer>,
}

#[derive(Debug)]
struct Busy {
    ring: u16,
    operation: Operation,
    bytes: u32,
    memory: Arc<Memory>,
    /// The ring is gone: the outcome interests nobody.
    abandoned: bool,
}

/// A block device over a backend.
#[derive(Debug)]
pub struct Block<B> {
    backend: B,
    geometry: Geometry,
    write_through: bool,
    /// A flush failed. What the backend lost then stays lost, and no later flush may pretend otherwise.
    lost: bool,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Requests for which there was no space, and those that were recalled.
    parked: Vec<u32>,
    /// Requests that the backend has.
    running: usize,
    done: Vec<Completion>,
    counters: Counters,
}

impl<B: BlockBackend> Block<B> {
    /// A device of this geometry. At most `depth` requests are with the backend at once.
    pub fn new(geometry: Geometry, backend: B, depth: u32) -> Self {
        Self {
            backend,
            geometry,
            write_through: false,
            lost: false,
            slots: (0..depth).map(|_| Slot::default()).collect(),
            free: (0..depth).rev().collect(),
            parked: Vec::new(),
            running: 0,
            done: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// The device's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The device has another size from now on.
    pub fn resize(&mut self, sectors: u64) {
        self.geometry.sectors = sectors;
    }

    /// The backend.
    pub fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    /// A driver that did not accept `VIRTIO_BLK_F_FLUSH` gets each write durably (§5.2.6.2).
    pub fn set_write_through(&mut self, write_through: bool) {
        self.write_through = write_through;
    }

    /// What the device did so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Another request can be started.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Requests that the backend has.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Requests of `ring`, or of all rings, that the backend has.
    pub fn running_of(&self, ring: Option<u16>) -> usize {
        let parked = |i: usize| self.parked.iter().any(|token| *token as usize == i);
        let counts = |busy: &Busy| !busy.abandoned && ring.is_none_or(|ring| busy.ring == ring);
        self.slots
            .iter()
            .enumerate()
            .filter(|(i, slot)| slot.busy.as_ref().is_some_and(counts) && !parked(*i))
            .count()
    }

    /// Requests that wait for space, or were recalled.
    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    /// Requests that the backend is at work on: they do not wait for a limit.
    pub fn at_work(&self) -> usize {
        self.running.saturating_sub(self.backend.waiting())
    }

    /// Starts the request in `chain`, which is exchanged for a used one. What is answered at once is appended to `finished`. Call
    /// [`Block::kick`] after the last one, and only call this while there [is room](Block::has_room).
    pub fn start(
        &mut self,
        ring: u16,
        chain: &mut Chain,
        memory: &Arc<Memory>,
        finished: &mut Vec<Finished>,
    ) {
        let Some(token) = self.free.pop() else {
            debug_assert!(false, "no room");
            return;
        };
        let slot = &mut self.slots[token as usize];
        std::mem::swap(&mut slot.chain, chain);
        let mut spare = std::mem::take(&mut slot.buffers);
        spare.clear();
        // A chain whose memory cannot be read any more is refused like one that reads wrongly.
        let request = parse(&slot.chain, memory, &self.geometry, spare).unwrap_or(Request::Refuse(S_IOERR));
        let (status, written) = match request {
            Request::Run {
                operation: Operation::Flush,
                ..
            } if self.lost => (S_IOERR, 0),
            Request::Run {
                operation,
                buffers,
                bytes,
            } => {
                slot.buffers = buffers;
                slot.busy = Some(Busy {
                    ring,
                    operation,
                    bytes,
                    memory: Arc::clone(memory),
                    abandoned: false,
                });
                self.submit(token);
                return;
            }
            Request::Id => {
                let id = &self.geometry.serial;
                let room = (slot.chain.writable_len() - 1).min(id.len() as u32);
                match slot.chain.write(memory, 0, &id[..room as usize]) {
                    Ok(_) => (S_OK, room),
                    Err(_) => (S_IOERR, 0),
                }
            }
            Request::Refuse(status) => (status, 0),
            Request::Unanswerable => {
                self.counters.errors += 1;
                finished.push(Finished {
                    ring,
                    head: slot.chain.head(),
                    written: 0,
                });
                self.free.push(token);
                return;
            }
        };
        if status != S_OK {
            self.counters.errors += 1;
        }
        finished.push(answer(&slot.chain, memory, ring, status, written));
        self.free.push(token);
    }

    /// Hands what was started to the backend.
    pub fn kick(&mut self) {
        self.backend.kick();
    }

    /// Appends the requests that ended to `finished`, without waiting.
    pub fn reap(&mut self, finished: &mut Vec<Finished>) {
        let mut done = std::mem::take(&mut self.done);
        self.backend.reap(&mut done);
        for Completion { token, outcome } in done.drain(..) {
            self.ended(token, outcome, finished);
        }
        self.done = done;
    }

    /// Waits until nothing of `ring`, or of all rings, is with the backend. Parked requests are left alone.
    pub fn drain(&mut self, ring: Option<u16>, finished: &mut Vec<Finished>) {
        self.backend.kick();
        self.reap(finished);
        while self.running_of(ring) > 0 {
            self.backend.wait();
            self.reap(finished);
        }
    }

    /// Takes requests of `ring`, or of all rings, that wait for a limit back from the backend: they are parked, and who drains
    /// the ring need not wait for them.
    pub fn recall(&mut self, ring: Option<u16>) {
        let slots = &self.slots;
        let wanted = |token: u32| {
            let busy = slots.get(token as usize).and_then(|slot| slot.busy.as_ref());
            busy.is_some_and(|busy| ring.is_none_or(|ring| busy.ring == ring))
        };
        let before = self.parked.len();
        self.backend.recall(&wanted, &mut self.parked);
        self.running -= self.parked.len() - before;
    }

    /// Waits until there is room for one more request, or nothing is left that could make some.
    pub fn make_room(&mut self, finished: &mut Vec<Finished>) {
        self.backend.kick();
        self.reap(finished);
        while !self.has_room() && self.running > 0 {
            self.backend.wait();
            self.reap(finished);
        }
    }

    /// Gives the parked requests to the backend again.
    pub fn retry(&mut self) {
        for token in std::mem::take(&mut self.parked) {
            self.submit(token);
        }
        self.backend.kick();
    }

    /// Forgets the parked requests of `ring`, or of all rings. With `finished` they are answered with an error; without, not at
    /// all: an [inflight record](crate::inflight) has them.
    pub fn drop_parked(&mut self, ring: Option<u16>, mut finished: Option<&mut Vec<Finished>>) {
        for token in std::mem::take(&mut self.parked) {
            let slot = &mut self.slots[token as usize];
            let Some(busy) = slot
                .busy
                .take_if(|busy| ring.is_none_or(|ring| busy.ring == ring))
            else {
                self.parked.push(token);
                continue;
            };
            if let Some(finished) = finished.as_mut() {
                self.counters.errors += 1;
                finished.push(answer(&slot.chain, &busy.memory, busy.ring, S_IOERR, 0));
            }
            self.free.push(token);
        }
    }

    /// Forgets the parked requests, and says which they are: ring and first descriptor, in the order in which they were
    /// taken. Whoever drives the rings starts them again later.
    pub fn give_up_parked(&mut self) -> Vec<(u16, u16)> {
        let mut parked = Vec::with_capacity(self.parked.len());
        for token in std::mem::take(&mut self.parked) {
            let slot = &mut self.slots[token as usize];
            if let Some(busy) = slot.busy.take() {
                parked.push((busy.ring, slot.chain.head()));
            }
            self.free.push(token);
        }
        parked
    }

    /// The rings are gone: lets what runs end, and answers nothing.
    pub fn abandon(&mut self) {
        self.recall(None);
        self.drop_parked(None, None);
        self.slots
            .iter_mut()
            .filter_map(|slot| slot.busy.as_mut())
            .for_each(|busy| busy.abandoned = true);
        while self.running > 0 {
            self.backend.kick();
            self.backend.wait();
            self.reap(&mut Vec::new());
        }
    }

    fn submit(&mut self, token: u32) {
        let slot = &self.slots[token as usize];
        if let Some(busy) = &slot.busy {
            self.backend.submit(
                token,
                busy.operation,
                &slot.buffers,
                &busy.memory,
                self.write_through,
            );
            self.running += 1;
        }
    }

    fn ended(&mut self, token: u32, outcome: Outcome, finished: &mut Vec<Finished>) {
        let Some(slot) = self.slots.get_mut(token as usize) else {
            return;
        };
        let Some(busy) = &slot.busy else { return };
        self.running -= 1;
        if outcome == Outcome::Full && !busy.abandoned {
            self.parked.push(token);
            return;
        }
        let Some(busy) = slot.busy.take() else { return };
        self.free.push(token);
        if busy.abandoned {
            return;
        }
        let (status, written) = match (outcome, busy.operation) {
            (Outcome::Done, Operation::Read { .. }) => {
                self.counters.reads += 1;
                self.counters.read_bytes += u64::from(busy.bytes);
                (S_OK, busy.bytes)
            }
            (Outcome::Done, Operation::Write { .. }) => {
                self.counters.writes += 1;
                self.counters.written_bytes += u64::from(busy.bytes);
                (S_OK, 0)
            }
            (Outcome::Done, Operation::Flush) => {
                self.counters.flushes += 1;
                (S_OK, 0)
            }
            (Outcome::Done, _) => (S_OK, 0),
            (Outcome::Failed(_) | Outcome::Full, operation) => {
                self.lost |= operation == Operation::Flush;
                self.counters.errors += 1;
                (S_IOERR, 0)
            }
        };
        finished.push(answer(&slot.chain, &busy.memory, busy.ring, status, written));
    }
}

/// Writes the status into the last writable byte (§5.2.6).
fn answer(chain: &Chain, memory: &Memory, ring: u16, status: u8, written: u32) -> Finished {
    let last = chain.writable_len() - 1;
    // The buffers were checked when the chain was read, and `memory` is the one they were checked against.
    let stored = chain.write(memory, last, &[status]);
    debug_assert_eq!(stored, Ok(1));
    // The used length counts bytes from the start (§2.7.8.2); the status is the last one, so all is only written when the data is.
    let written = if written == last { written + 1 } else { written };
    Finished {
        ring,
        head: chain.head(),
        written,
    }
}

#[cfg(test)]
mod tests {
    use virtio_queue::desc::split::Descriptor;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const STATUS: u64 = 0x9000;

    /// Keeps what is submitted until a test says how it ends.
    #[derive(Debug, Default)]
    struct Fake {
        submitted: Vec<(u32, Operation, bool)>,
        ended: Vec<Completion>,
        /// How [`BlockBackend::wait`] ends the oldest operation.
        on_wait: Option<Outcome>,
        /// So many of the last ones wait for a limit.
        waiting: usize,
    }

    impl Fake {
        fn end(&mut self, outcome: Outcome) {
            let (token, ..) = self.submitted.remove(0);
            self.ended.push(Completion { token, outcome });
        }
    }

    impl BlockBackend for Fake {
        fn submit(&mut self, token: u32, operation: Operation, _: &[Buffer], _: &Arc<Memory>, durable: bool) {
            self.submitted.push((token, operation, durable));
        }

        fn kick(&mut self) {}

        fn reap(&mut self, done: &mut Vec<Completion>) {
            done.append(&mut self.ended);
        }

        fn wait(&mut self) {
            let outcome = self.on_wait.expect("nothing to wait for");
            self.end(outcome);
        }

        fn waiting(&self) -> usize {
            self.waiting
        }

        fn recall(&mut self, wanted: &dyn Fn(u32) -> bool, back: &mut Vec<u32>) {
            let first = self.submitted.len() - self.waiting;
            let waiting = self.submitted.split_off(first);
            for operation in waiting {
                if wanted(operation.0) {
                    back.push(operation.0);
                    self.waiting -= 1;
                } else {
                    self.submitted.push(operation);
                }
            }
        }
    }

    struct Bench {
        block: Block<Fake>,
        memory: Arc<Memory>,
        finished: Vec<Finished>,
    }

    impl Bench {
        fn new() -> Self {
            let geometry = Geometry {
                sectors: 64,
                read_only: false,
                queues: 2,
                serial: [b's'; 20],
            };
            let memory = Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
            Self {
                block: Block::new(geometry, Fake::default(), 4),
                memory: Arc::new(memory),
                finished: Vec::new(),
            }
        }

        /// A request of this type at sector 0 with a data buffer of 512 bytes, unless it is a flush.
        fn start(&mut self, ring: u16, kind: u32) {
            let data_flags = if matches!(kind, 0 | 8) { 3 } else { 1 };
            self.memory
                .write_obj([u64::from(kind), 0], GuestAddress(0x1000))
                .unwrap();
            self.memory.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
            let data = if kind == 4 { 0 } else { 512 };
            let descriptors = [
                Descriptor::new(0x1000, 16, 1, 1),
                Descriptor::new(0x2000, data, data_flags, 2),
                Descriptor::new(STATUS, 1, 2, 0),
            ];
            for (i, descriptor) in (0..).zip(descriptors) {
                self.memory.write_obj(descriptor, GuestAddress(i * 16)).unwrap();
            }
            let mut chain = Chain::new();
            chain.load(&self.memory, GuestAddress(0), 8, 0).unwrap();
            self.block
                .start(ring, &mut chain, &self.memory, &mut self.finished);
        }

        fn end(&mut self, outcome: Outcome) {
            self.block.backend().end(outcome);
            self.block.reap(&mut self.finished);
        }

        fn status(&self) -> u8 {
            self.memory.read_obj(GuestAddress(STATUS)).unwrap()
        }
    }

    #[test]
    fn requests_are_answered_when_the_backend_is_done_and_not_before() {
        let mut bench = Bench::new();
        bench.start(1, 0);
        assert_eq!((bench.status(), bench.block.running()), (0xff, 1));
        bench.end(Outcome::Done);
        assert_eq!(
            bench.finished,
            [Finished {
                ring: 1,
                head: 0,
                written: 513
            }]
        );
        assert_eq!(bench.status(), S_OK);
        bench.start(0, 1);
        bench.end(Outcome::Failed(libc::EIO));
        assert_eq!(bench.finished[1].written, 1, "the status alone");
        assert_eq!(bench.status(), S_IOERR);
        bench.start(0, 8);
        assert_eq!(
            bench.finished[2].written, 20,
            "the serial number is answered at once"
        );
        let counters = bench.block.counters();
        assert_eq!((counters.reads, counters.writes, counters.errors), (1, 0, 1));
    }

    #[test]
    fn writers_wait_for_space_and_are_tried_again() {
        let mut bench = Bench::new();
        bench.start(0, 1);
        bench.end(Outcome::Full);
        assert!(bench.finished.is_empty());
        assert_eq!((bench.block.parked(), bench.block.running_of(None)), (1, 0));
        bench.block.retry();
        bench.end(Outcome::Full);
        bench.block.retry();
        bench.end(Outcome::Done);
        assert_eq!(
            (bench.finished.len(), bench.status(), bench.block.parked()),
            (1, S_OK, 0)
        );
    }

    #[test]
    fn parked_requests_of_a_ring_that_stops_are_answered_or_forgotten() {
        let mut bench = Bench::new();
        for ring in [0, 1] {
            bench.start(ring, 1);
            bench.end(Outcome::Full);
        }
        bench.block.drop_parked(Some(1), Some(&mut bench.finished));
        assert_eq!(
            (bench.finished.len(), bench.finished[0].ring, bench.status()),
            (1, 1, S_IOERR)
        );
        bench.block.drop_parked(None, None);
        assert_eq!((bench.finished.len(), bench.block.parked()), (1, 0));
        for _ in 0..4 {
            assert!(bench.block.has_room());
            bench.start(0, 1);
        }
        assert!(!bench.block.has_room());
    }

    #[test]
    fn draining_waits_for_one_ring_and_abandoning_for_all_in_silence() {
        let mut bench = Bench::new();
        bench.start(0, 1);
        bench.start(1, 1);
        bench.start(1, 1);
        bench.block.backend().on_wait = Some(Outcome::Done);
        bench.block.drain(Some(0), &mut bench.finished);
        assert_eq!((bench.finished.len(), bench.block.running()), (1, 2));
        bench.block.abandon();
        assert_eq!(
            (
                bench.finished.len(),
                bench.block.running(),
                bench.block.free.len()
            ),
            (1, 0, 4)
        );
    }

    #[test]
    fn what_waits_for_a_limit_need_not_be_waited_for() {
        let mut bench = Bench::new();
        for ring in [0, 1, 0, 1] {
            bench.start(ring, 1);
        }
        bench.block.backend().waiting = 3;
        assert_eq!((bench.block.running(), bench.block.at_work()), (4, 1));
        bench.block.recall(Some(0));
        assert_eq!((bench.block.parked(), bench.block.running()), (1, 3));
        bench.block.drop_parked(Some(0), None);
        assert!(bench.block.has_room(), "an inflight record has it");
        // They begin again where they were not given up.
        bench.block.recall(Some(1));
        assert_eq!((bench.block.parked(), bench.block.running()), (2, 1));
        bench.block.retry();
        assert_eq!((bench.block.parked(), bench.block.running()), (0, 3));
        bench.block.backend().waiting = 2;
        bench.block.backend().on_wait = Some(Outcome::Done);
        bench.block.abandon();
        assert_eq!((bench.block.running(), bench.block.free.len()), (0, 4));
        assert!(bench.finished.is_empty());
        for _ in 0..4 {
            bench.start(0, 1);
        }
        bench.block.make_room(&mut bench.finished);
        assert_eq!(bench.finished.len(), 1);
    }

    #[test]
    fn after_a_failed_flush_no_flush_succeeds() {
        let mut bench = Bench::new();
        bench.start(0, 4);
        bench.end(Outcome::Failed(libc::EIO));
        assert_eq!(bench.status(), S_IOERR);
        bench.start(0, 4);
        assert_eq!((bench.finished.len(), bench.status()), (2, S_IOERR));
        bench.start(0, 1);
        bench.end(Outcome::Done);
        assert_eq!(bench.status(), S_OK);
    }

    #[test]
    fn drivers_without_flush_write_through() {
        let mut bench = Bench::new();
        bench.block.set_write_through(true);
        bench.start(0, 1);
        assert_eq!(
            bench.block.backend().submitted,
            [(0, Operation::Write { offset: 0 }, true)]
        );
    }
}
