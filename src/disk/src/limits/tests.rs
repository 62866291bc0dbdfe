use model::disk::Rate;
use nix::sys::eventfd::{EfdFlags, EventFd};
use virtio::block::Outcome;
use vm_memory::GuestAddress;

use super::*;

/// Ends every operation at once, and remembers it.
struct Fake {
    begun: Vec<(u32, Operation)>,
    ended: Vec<Completion>,
    event: EventFd,
}

impl AsFd for Fake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl BlockBackend for Fake {
    fn submit(&mut self, token: u32, operation: Operation, _: &[Buffer], _: &Arc<Memory>, _: bool) {
        self.begun.push((token, operation));
        let outcome = Outcome::Done;
        self.ended.push(Completion { token, outcome });
        self.event.write(1).unwrap();
    }

    fn kick(&mut self) {}

    fn reap(&mut self, done: &mut Vec<Completion>) {
        let _ = self.event.read();
        done.append(&mut self.ended);
    }

    fn wait(&mut self) {
        assert!(!self.ended.is_empty(), "nobody would end this");
    }
}

struct Bench {
    limited: Limited<Fake>,
    memory: Arc<Memory>,
    done: Vec<Completion>,
}

const READ: Operation = Operation::Read { offset: 0 };
const WRITE: Operation = Operation::Write { offset: 0 };

fn iops(total: u64, writes: Option<u64>) -> DiskLimits {
    DiskLimits {
        total_iops: Some(Rate::steady(total)),
        write_iops: writes.map(Rate::steady),
        ..DiskLimits::default()
    }
}

impl Bench {
    fn new(limits: &DiskLimits) -> Bench {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let fake = Fake {
            begun: Vec::new(),
            ended: Vec::new(),
            event: EventFd::from_flags(flags).unwrap(),
        };
        Bench {
            limited: Limited::new(fake, limits).unwrap(),
            memory: Arc::new(Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap()),
            done: Vec::new(),
        }
    }

    fn submit(&mut self, token: u32, operation: Operation) {
        let buffers = [Buffer {
            addr: GuestAddress(0),
            len: 512,
        }];
        self.limited
            .submit(token, operation, &buffers, &self.memory, false);
    }

    fn tokens(&mut self) -> Vec<u32> {
        self.limited.reap(&mut self.done);
        self.done.drain(..).map(|done| done.token).collect()
    }

    /// The timer can be read within this time.
    fn rings(&self, time: Duration) -> bool {
        let mut timer = [PollFd::new(self.limited.timer().unwrap(), PollFlags::POLLIN)];
        poll(&mut timer, PollTimeout::try_from(time).unwrap()).unwrap() > 0
    }
}

#[test]
fn without_limits_all_begin_at_once() {
    let mut bench = Bench::new(&DiskLimits::default());
    for token in 0..1000 {
        bench.submit(token, WRITE);
    }
    assert_eq!(bench.limited.waiting(), 0);
    assert_eq!(bench.tokens(), (0..1000).collect::<Vec<_>>());
    assert!(!bench.rings(Duration::ZERO));
}

#[test]
fn what_waits_keeps_its_order_and_is_woken_by_the_timer() {
    let mut bench = Bench::new(&iops(100, None));
    for token in 0..30 {
        bench.submit(token, if token % 2 == 0 { READ } else { WRITE });
    }
    bench.submit(30, Operation::Flush);
    bench.limited.kick();
    let first = bench.tokens();
    assert!(
        first.len() < 30 && first.contains(&30),
        "a flush does not wait: {first:?}"
    );
    let mut seen: Vec<u32> = first.into_iter().filter(|token| *token != 30).collect();
    while seen.len() < 30 {
        assert!(bench.rings(Duration::from_secs(10)));
        let more = bench.tokens();
        assert!(!more.is_empty(), "woken for nothing");
        seen.extend(more);
        // What is over is not told again.
        assert!(!bench.rings(Duration::ZERO) || bench.limited.waiting() > 0);
    }
    assert_eq!(seen, (0..30).collect::<Vec<_>>());
    assert!(!bench.rings(Duration::ZERO));
}

#[test]
fn reads_do_not_wait_for_writes_that_have_used_up_theirs() {
    let mut bench = Bench::new(&iops(1_000_000, Some(1)));
    for token in 0..4 {
        bench.submit(token, WRITE);
    }
    assert_eq!((bench.tokens(), bench.limited.waiting()), (vec![0], 3));
    for token in 4..8 {
        bench.submit(token, READ);
    }
    assert_eq!(bench.tokens(), [4, 5, 6, 7]);
    // A discard is a write that moves nothing.
    bench.submit(8, Operation::Discard { offset: 0, len: 512 });
    assert!(bench.tokens().is_empty());
    assert_eq!(bench.limited.waiting(), 4);
}

#[test]
fn a_change_counts_for_those_that_wait() {
    let mut bench = Bench::new(&iops(1, None));
    for token in 0..100 {
        bench.submit(token, READ);
    }
    assert_eq!(bench.tokens(), [0]);
    assert!(bench.limited.limit(&DiskLimits::default()));
    assert_eq!(bench.tokens(), (1..100).collect::<Vec<_>>());
    assert!(!bench.rings(Duration::ZERO) && bench.limited.limits().is_unlimited());
}

#[test]
fn waiting_for_an_end_waits_for_the_limits() {
    let mut bench = Bench::new(&iops(10, None));
    let start = Instant::now();
    for token in 0..4 {
        bench.submit(token, READ);
    }
    let mut seen = Vec::new();
    while seen.len() < 4 {
        bench.limited.wait();
        let more = bench.tokens();
        assert!(!more.is_empty());
        seen.extend(more);
    }
    assert_eq!(seen, [0, 1, 2, 3]);
    // What is kept of the time before the first are two, and one passes on credit.
    assert!(
        start.elapsed() >= Duration::from_millis(100),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn what_waits_can_be_had_back() {
    let mut bench = Bench::new(&iops(1, None));
    for token in 0..8 {
        bench.submit(token, if token < 4 { WRITE } else { READ });
    }
    bench.limited.kick();
    assert_eq!(bench.tokens(), [0]);
    let mut back = Vec::new();
    bench.limited.recall(&|token| token % 2 == 0, &mut back);
    assert_eq!((back.as_slice(), bench.limited.waiting()), (&[2, 4, 6][..], 4));
    bench.limited.recall(&|_| true, &mut back);
    assert_eq!(back, [2, 4, 6, 1, 3, 5, 7]);
    assert_eq!(bench.limited.waiting(), 0);
    assert!(!bench.rings(Duration::from_millis(1200)), "nobody is to be woken");
    assert_eq!(bench.limited.backend.begun, [(0, WRITE)]);
}
