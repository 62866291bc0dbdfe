//! The gate through which vCPUs enter the guest.
//!
//! It is open when nobody holds it: neither the machine's driver (pause), nor the guest itself, which has asked for
//! something (reset, power off) that the driver has yet to do. A vCPU looks at the gate before each entry, so that
//! the one that asks executes no further instruction.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The driver holds the gate.
const HELD: u8 = 1;
/// The guest has asked for something.
const ASKED: u8 = 2;
/// The machine ends.
const ENDING: u8 = 4;

/// The gate. Made closed, by the driver.
#[derive(Debug)]
pub(in crate::kvm) struct Gate {
    bits: AtomicU8,
    /// How often the guest was started: what it asked for before a reset does not count after it.
    boot: AtomicU64,
    /// vCPUs that may be in the guest.
    inside: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    /// Closed.
    pub(in crate::kvm) fn new() -> Self {
        Gate {
            bits: AtomicU8::new(HELD),
            boot: AtomicU64::new(0),
            inside: Mutex::new(0),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        // A number cannot be left half-changed.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, bits: u8) {
        let _inside = self.lock();
        self.bits.fetch_or(bits, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn clear(&self, bits: u8) {
        let _inside = self.lock();
        self.bits.fetch_and(!bits, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// vCPUs may enter.
    pub(in crate::kvm) fn is_open(&self) -> bool {
        self.bits.load(Ordering::SeqCst) == 0
    }

    /// For a vCPU: wait until the gate is open and go in. False: the machine ends.
    pub(in crate::kvm) fn enter(&self) -> bool {
        let mut inside = self.lock();
        loop {
            let bits = self.bits.load(Ordering::SeqCst);
            if bits & ENDING != 0 {
                return false;
            }
            if bits == 0 {
                *inside += 1;
                return true;
            }
            inside = self.changed.wait(inside).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// For a vCPU: it is out.
    pub(in crate::kvm) fn leave(&self) {
        *self.lock() -= 1;
        self.changed.notify_all();
    }

    /// For a device that the guest asked: let nobody in until the driver has answered. The number of the boot that it
    /// was asked in.
    pub(in crate::kvm) fn ask(&self) -> u64 {
        self.set(ASKED);
        self.boot.load(Ordering::SeqCst)
    }

    /// For the driver: what the guest asked for is being done.
    pub(in crate::kvm) fn answered(&self) {
        self.clear(ASKED);
    }

    /// The number of the current boot.
    pub(in crate::kvm) fn boot(&self) -> u64 {
        self.boot.load(Ordering::SeqCst)
    }

    /// For the driver: another boot begins, and forgets what the guest asked for.
    pub(in crate::kvm) fn next_boot(&self) {
        self.boot.fetch_add(1, Ordering::SeqCst);
        self.answered();
    }

    /// For the driver: open the gate, as far as it is the driver's.
    pub(in crate::kvm) fn open(&self) {
        self.clear(HELD);
    }

    /// For the driver: close the gate and wait until nobody is inside. `kick` makes vCPUs leave the guest; it is called
    /// again and again, in case one was just on its way in.
    pub(in crate::kvm) fn close(&self, kick: impl Fn()) {
        self.set(HELD);
        let mut inside = self.lock();
        while *inside > 0 {
            drop(inside);
            kick();
            inside = self.lock();
            if *inside > 0 {
                inside = self
                    .changed
                    .wait_timeout(inside, Duration::from_millis(5))
                    .map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
            }
        }
    }

    /// For the driver: nobody enters any more, and vCPU threads end.
    pub(in crate::kvm) fn end(&self) {
        self.set(ENDING);
    }

    /// For a vCPU that waits for something other than the guest: wait at most this long, less if the gate closes.
    pub(in crate::kvm) fn nap(&self, at_most: Duration) {
        let inside = self.lock();
        if self.is_open() {
            drop(self.changed.wait_timeout(inside, at_most));
        }
    }
}
