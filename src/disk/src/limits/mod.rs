//! How much a volume may be used: the layer between a device and where its bytes go.
//!
//! ```text
//!              fits: at once                                     ┌ Engine (io_uring or threads)
//!  Block ──▶ Limited ─────────────────────────────────▶ backend ─┤
//!               │                                 ▲              └ or a layer above it
//!               └─▶ reads  ▢▢▢ ─┐ as the limits   │
//!                   writes ▢▢▢ ─┴─ let them ──────┘
//! ```
//!
//! - A read or a write costs one operation and its bytes; a discard or write-zeroes one operation, and no bytes, for it moves none.
//! - A flush costs nothing and waits for nothing: it makes durable what was reported before it, and however many of them
//!   there are at once, the kernel makes few of them.
//! - Reads keep their order, and so do writes; a read that would fit does not wait for writes that do not. There are never more than the
//!   device has requests.
//! - Without limits there is one branch for each request, and no look at the clock.
//!
//! What waits is with nobody yet: it can be [recalled](BlockBackend::recall), so that no stop and no pause waits for it.

mod bucket;
mod meter;
mod turnstile;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::disk::DiskLimits;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use virtio::block::{BlockBackend, Completion, Operation};
use virtio::chain::Buffer;
use virtio::memory::Memory;

pub(crate) use bucket::Cost;
pub(crate) use turnstile::Turnstile;

use bucket::Bucket;

/// Nobody is woken sooner than this: what did not pass meanwhile passes then, since limits are kept over a longer time.
const NAP: u64 = 200_000;

/// A backend that is used no more than it may be.
#[derive(Debug)]
pub struct Limited<B> {
    backend: B,
    limits: DiskLimits,
    bucket: Bucket,
    reads: VecDeque<Waiting>,
    writes: VecDeque<Waiting>,
    /// Requests that ever had to wait.
    count: u64,
    start: Instant,
    timer: TimerFd,
    /// When the timer goes off.
    alarm: Option<u64>,
    /// What [`BlockBackend::wait`] has seen.
    done: Vec<Completion>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    cost: Cost,
    token: u32,
    operation: Operation,
    buffers: Vec<Buffer>,
    memory: Arc<Memory>,
    durable: bool,
}

impl<B: BlockBackend + AsFd> Limited<B> {
    /// This backend, with these limits.
    ///
    /// # Errors
    /// If there is no timer to be had.
    pub fn new(backend: B, limits: &DiskLimits) -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let mut limited = Self {
            backend,
            limits: *limits,
            bucket: Bucket::default(),
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            count: 0,
            start: Instant::now(),
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            alarm: None,
            done: Vec::new(),
        };
        limited.bucket.change(limits, 0);
        Ok(limited)
    }

    fn now(&self) -> u64 {
        nanoseconds(self.start.elapsed())
    }

    fn nobody_waits(&self) -> bool {
        self.reads.is_empty() && self.writes.is_empty()
    }

    /// Let begin what may, the oldest first, and set the timer for the next.
    fn admit(&mut self) {
        let now = self.now();
        let mut next = u64::MAX;
        loop {
            let due = |queue: &VecDeque<Waiting>| {
                queue
                    .front()
                    .map(|first| (self.bucket.due(first.cost), first.number))
            };
            let (read, write) = (due(&self.reads), due(&self.writes));
            next = [read, write]
                .iter()
                .flatten()
                .map(|(due, _)| *due)
                .min()
                .unwrap_or(next);
            let ready =
                |head: Option<(u64, u64)>| head.filter(|(due, _)| *due <= now).map(|(_, number)| number);
            let queue = match (ready(read), ready(write)) {
                (None, None) => break,
                (Some(read), Some(write)) if write < read => &mut self.writes,
                (Some(_), _) => &mut self.reads,
                (None, Some(_)) => &mut self.writes,
            };
            if let Some(first) = queue.pop_front() {
                self.bucket.pay(first.cost, now);
                self.backend.submit(
                    first.token,
                    first.operation,
                    &first.buffers,
                    &first.memory,
                    first.durable,
                );
            }
        }
        self.set_timer(next, now);
    }

    fn set_timer(&mut self, next: u64, now: u64) {
        if self.nobody_waits() {
            if self.alarm.take().is_some() {
                // It is no more wanted than it can fail.
                let _ = self.timer.unset();
            }
            return;
        }
        let next = next.max(now.saturating_add(NAP));
        // One that goes off sooner does as well; one that has gone off is set anew, and so can be read no longer.
        if self.alarm.is_some_and(|alarm| now < alarm && alarm <= next) {
            return;
        }
        let time = Duration::from_nanos(next - now);
        let set = self
            .timer
            .set(Expiration::OneShot(time.into()), TimerSetTimeFlags::empty());
        if let Err(error) = set {
            tracing::warn!(%error, "a disk's timer cannot be set");
        }
        self.alarm = Some(next);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What an operation costs; nothing, if it is not limited.
fn cost(operation: Operation, buffers: &[Buffer]) -> Option<Cost> {
    let moved = || buffers.iter().map(|buffer| u64::from(buffer.len)).sum();
    let (reads, bytes) = match operation {
        Operation::Read { .. } => (true, moved()),
        Operation::Write { .. } => (false, moved()),
        Operation::Discard { .. } | Operation::WriteZeroes { .. } => (false, 0),
        Operation::Flush => return None,
    };
    Some(Cost { reads, bytes })
}

impl<B: AsFd> AsFd for Limited<B> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.backend.as_fd()
    }
}

impl<B: BlockBackend + AsFd> BlockBackend for Limited<B> {
    fn submit(
        &mut self,
        token: u32,
        operation: Operation,
        buffers: &[Buffer],
        memory: &Arc<Memory>,
        durable: bool,
    ) {
        if !self.bucket.is_unlimited()
            && let Some(cost) = cost(operation, buffers)
        {
            let now = self.now();
            if !self.nobody_waits() || self.bucket.due(cost) > now {
                let queue = if cost.reads {
                    &mut self.reads
                } else {
                    &mut self.writes
                };
                queue.push_back(Waiting {
                    number: self.count,
                    cost,
                    token,
                    operation,
                    buffers: buffers.to_vec(),
                    memory: Arc::clone(memory),
                    durable,
                });
                self.count += 1;
                return;
            }
            self.bucket.pay(cost, now);
        }
        self.backend.submit(token, operation, buffers, memory, durable);
    }

    fn kick(&mut self) {
        if !self.nobody_waits() {
            self.admit();
        }
        self.backend.kick();
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        if !self.nobody_waits() {
            self.admit();
            self.backend.kick();
        }
        done.append(&mut self.done);
        self.backend.reap(done);
    }

    fn wait(&mut self) {
        while self.done.is_empty() {
            if self.nobody_waits() {
                return self.backend.wait();
            }
            self.admit();
            self.backend.kick();
            self.backend.reap(&mut self.done);
            if self.done.is_empty() && !self.nobody_waits() {
                let mut either = [
                    PollFd::new(self.backend.as_fd(), PollFlags::POLLIN),
                    PollFd::new(self.timer.as_fd(), PollFlags::POLLIN),
                ];
                // An interrupted one is tried again like one that was woken for nothing.
                let _ = poll(&mut either, PollTimeout::NONE);
            }
        }
    }

    fn limit(&mut self, limits: &DiskLimits) -> bool {
        if self.limits != *limits {
            self.limits = *limits;
            self.bucket.change(limits, self.now());
            self.admit();
            self.backend.kick();
        }
        true
    }

    fn limits(&self) -> DiskLimits {
        self.limits
    }

    fn waiting(&self) -> usize {
        self.reads.len() + self.writes.len()
    }

    fn recall(&mut self, wanted: &dyn Fn(u32) -> bool, back: &mut Vec<u32>) {
        let mut found = Vec::new();
        for queue in [&mut self.reads, &mut self.writes] {
            queue.retain(|waiting| {
                let wanted = wanted(waiting.token);
                if wanted {
                    found.push((waiting.number, waiting.token));
                }
                !wanted
            });
        }
        found.sort_unstable();
        back.extend(found.into_iter().map(|(_, token)| token));
        if self.nobody_waits() {
            self.set_timer(u64::MAX, 0);
        }
    }

    fn timer(&self) -> Option<BorrowedFd<'_>> {
        Some(self.timer.as_fd())
    }
}

#[cfg(test)]
mod tests;
