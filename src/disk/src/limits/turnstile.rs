//! The same limits for whoever serves one request after the other: a place to wait.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::disk::DiskLimits;

use super::bucket::{Bucket, Cost};
use super::nanoseconds;

/// Lets requests pass as the limits do.
#[derive(Debug)]
pub(crate) struct Turnstile {
    state: Mutex<State>,
    /// Limits have changed, or nobody is to wait any longer.
    changed: Condvar,
    start: Instant,
}

#[derive(Debug)]
struct State {
    limits: DiskLimits,
    bucket: Bucket,
    waiting: u64,
    closed: bool,
}

impl Turnstile {
    pub(crate) fn new(limits: &DiskLimits) -> Self {
        let mut bucket = Bucket::default();
        bucket.change(limits, 0);
        Turnstile {
            state: Mutex::new(State {
                limits: *limits,
                bucket,
                waiting: 0,
                closed: false,
            }),
            changed: Condvar::new(),
            start: Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until such a request may pass; false if none will any more.
    pub(crate) fn pass(&self, cost: Cost) -> bool {
        let mut state = self.lock();
        state.waiting += 1;
        let passed = loop {
            if state.closed {
                break false;
            }
            if state.bucket.is_unlimited() {
                break true;
            }
            let now = nanoseconds(self.start.elapsed());
            let due = state.bucket.due(cost);
            if due <= now {
                state.bucket.pay(cost, now);
                break true;
            }
            state = self
                .changed
                .wait_timeout(state, Duration::from_nanos(due - now))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        };
        state.waiting -= 1;
        passed
    }

    /// Other limits from now on, also for who waits.
    pub(crate) fn limit(&self, limits: &DiskLimits) {
        let mut state = self.lock();
        if state.limits != *limits {
            state.limits = *limits;
            state.bucket.change(limits, nanoseconds(self.start.elapsed()));
            self.changed.notify_all();
        }
    }

    /// The limits, and how many requests wait.
    pub(crate) fn look(&self) -> (DiskLimits, u64) {
        let state = self.lock();
        (
            state.limits,
            if state.bucket.is_unlimited() {
                0
            } else {
                state.waiting
            },
        )
    }

    /// Nobody passes any more, and nobody waits.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}
