//! The memory balloon: what the guest does without goes back to the host.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio::balloon::{self, CONFIG_SIZE, DEVICE_ID, PAGE, QUEUE_SIZE, QUEUES, Work, feature};

use super::worker::{Floor, Post, Service};
use super::{Device, Left, Session, StartError};
use crate::kvm::lifecycle::StateError;
use crate::kvm::memory::give_back;

/// Pages of a MiB.
const MIB: u64 = (1 << 20) / PAGE;

/// What a balloon is to hold, and what the guest says it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonStatus {
    /// What the guest is to give up, in MiB.
    pub target_mib: u64,
    /// What it says it has given up, in MiB. Its word alone.
    pub actual_mib: u64,
    /// Bytes that went back to the host since the machine was made: by the balloon, and free pages that the guest reported.
    pub given_back: u64,
}

/// The numbers, which the driver's registers show.
#[derive(Default)]
struct Numbers {
    /// The wanted and the actual number of pages (§5.5.4).
    target: AtomicU32,
    actual: AtomicU32,
    given_back: AtomicU64,
}

/// The device.
pub(in crate::kvm) struct Balloon {
    post: Post<Server>,
    numbers: Arc<Numbers>,
    /// The guest's memory, in pages.
    pages: u64,
}

struct Server {
    numbers: Arc<Numbers>,
    work: Work,
}

#[derive(Serialize, Deserialize)]
struct State {
    target: u32,
    actual: u32,
}

impl Balloon {
    /// For a guest with so much memory, not in huge pages: these cannot be given back (see [`give_back`]).
    pub(in crate::kvm) fn new(memory_mib: u64) -> Self {
        let numbers = Arc::new(Numbers::default());
        let server = Server {
            numbers: numbers.clone(),
            work: Work::default(),
        };
        Balloon {
            post: Post::new("balloon", server),
            numbers,
            pages: memory_mib * MIB,
        }
    }

    /// Let the guest give up so much. False if it has not so much.
    pub(in crate::kvm) fn aim(&self, mib: u64) -> bool {
        let pages = mib.checked_mul(MIB).filter(|pages| *pages <= self.pages);
        let Some(Ok(pages)) = pages.map(u32::try_from) else {
            return false;
        };
        self.post.call(|_, floor| {
            self.numbers.target.store(pages, Ordering::SeqCst);
            if let Some(floor) = floor {
                floor.alarm.changed();
            }
        });
        true
    }

    /// How far the guest has come.
    pub(in crate::kvm) fn status(&self) -> BalloonStatus {
        let mib = |pages: &AtomicU32| u64::from(pages.load(Ordering::SeqCst)).min(self.pages) / MIB;
        BalloonStatus {
            target_mib: mib(&self.numbers.target),
            actual_mib: mib(&self.numbers.actual),
            given_back: self.numbers.given_back.load(Ordering::SeqCst),
        }
    }
}

impl Service for Server {
    fn begin(&mut self, floor: &mut Floor) {
        // The target may be another one since the machine was paused. A driver that has just begun looks by itself.
        floor.alarm.changed();
    }

    fn serve(&mut self, floor: &mut Floor, ring: usize) -> bool {
        let Some(role) = balloon::role(ring, floor.features) else {
            return false;
        };
        let memory = floor.memory.clone();
        let release = |start, length| match give_back(&memory, start, length) {
            Ok(given) => {
                self.numbers.given_back.fetch_add(given, Ordering::SeqCst);
            }
            // The guest loses nothing by that.
            Err(error) => tracing::debug!(%error, "a guest's memory cannot be given back"),
        };
        balloon::serve(&mut floor.rings[ring], role, &memory, &mut self.work, release).unwrap_or_else(
            |error| {
                tracing::debug!(%error, "the guest's balloon");
                false
            },
        )
    }
}

impl Device for Balloon {
    fn name(&self) -> &str {
        self.post.name()
    }

    fn id(&self) -> u16 {
        DEVICE_ID
    }

    /// Others.
    fn class(&self) -> u32 {
        0xff_0000
    }

    /// The driver need not tell before it takes pages out (`MUST_TELL_HOST`): they are there when it touches them.
    fn features(&self) -> u64 {
        feature::DEFLATE_ON_OOM | feature::PAGE_REPORTING
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES.into()]
    }

    fn config(&self) -> Vec<u8> {
        let target = self.numbers.target.load(Ordering::SeqCst);
        let actual = self.numbers.actual.load(Ordering::SeqCst);
        [target.to_le_bytes(), actual.to_le_bytes()].concat()
    }

    /// The actual number is the driver's to write.
    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut bytes = self.numbers.actual.load(Ordering::SeqCst).to_le_bytes();
        for (at, byte) in (offset..CONFIG_SIZE).zip(data) {
            if let Some(place) = at.checked_sub(4).and_then(|at| bytes.get_mut(at)) {
                *place = *byte;
            }
        }
        self.numbers
            .actual
            .store(u32::from_le_bytes(bytes), Ordering::SeqCst);
    }

    fn start(&self, session: Session) -> Result<(), StartError> {
        self.post.start(session)
    }

    fn stop(&self) -> Vec<Left> {
        self.post.stop()
    }

    /// The target is the host's, and stays.
    fn reset(&self) {
        self.numbers.actual.store(0, Ordering::SeqCst);
    }

    fn save(&self) -> Value {
        serde_json::json!(State {
            target: self.numbers.target.load(Ordering::SeqCst),
            actual: self.numbers.actual.load(Ordering::SeqCst),
        })
    }

    fn restore(&self, state: &Value) -> Result<(), StateError> {
        let state = State::deserialize(state).map_err(|error| StateError::Malformed(error.to_string()))?;
        // What the guest says it has given up may be anything.
        if u64::from(state.target) > self.pages {
            return Err(StateError::Malformed(format!(
                "a balloon of {} pages, of {}",
                state.target, self.pages
            )));
        }
        self.numbers.target.store(state.target, Ordering::SeqCst);
        self.numbers.actual.store(state.actual, Ordering::SeqCst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_hosts_and_the_drivers() {
        let balloon = Balloon::new(16);
        for (mib, possible) in [(0, true), (17, false), (u64::MAX, false), (16, true), (3, true)] {
            assert_eq!(balloon.aim(mib), possible, "{mib}");
        }
        balloon.write_config(4, &[0, 2, 0, 0]);
        balloon.write_config(0, &[0xff; 4]);
        balloon.write_config(2, &[0xff, 0xff, 1]);
        for offset in [7, 8, usize::MAX] {
            balloon.write_config(offset, &[0; 8]);
        }
        assert_eq!(balloon.config(), [0, 3, 0, 0, 1, 2, 0, 0]);
        let expected = BalloonStatus {
            target_mib: 3,
            actual_mib: 2,
            given_back: 0,
        };
        assert_eq!(balloon.status(), expected);
        balloon.write_config(4, &[0xff; 4]);
        assert_eq!(balloon.status().actual_mib, 16, "no more than there is");

        let saved = balloon.save();
        let other = Balloon::new(16);
        other.restore(&saved).unwrap();
        assert_eq!((other.config(), other.save()), (balloon.config(), saved.clone()));
        Balloon::new(2).restore(&saved).unwrap_err();
        for wrong in [Value::Null, serde_json::json!({"target": -1, "actual": 0})] {
            other.restore(&wrong).unwrap_err();
        }
        other.reset();
        assert_eq!(
            other.config(),
            [0, 3, 0, 0, 0, 0, 0, 0],
            "the target is the host's"
        );
    }
}
