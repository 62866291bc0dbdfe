//! The record of requests that were taken from a ring and not yet returned, in memory that outlives the backend.
//!
//! vhost-user's `INFLIGHT_SHMFD`: the backend makes a memfd, the frontend keeps it, and gives it to the next backend when
//! the first one dies. The layout is that of the protocol's specification ("Inflight I/O tracking", split virtqueue), so
//! that another backend could take over:
//!
//! ```text
//! per queue, aligned to 64:  u64 features │ u16 version │ u16 desc_num │ u16 last_batch_head │ u16 used_idx │ entries…
//! entry (16 bytes):          u8 inflight │ u8 padding[5] │ u16 next │ u64 counter
//! ```
//!
//! The order of stores makes a kill -9 at any point harmless: a request is in flight from [`InflightQueue::begin`] until
//! the guest can see it in the used ring, and no longer. The window between the used ring's index and the mark is closed by
//! comparing the two indices on recovery.

use std::{
    fs::File,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
    unistd::ftruncate,
};
use thiserror::Error;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

const HEADER: usize = 16;
const ENTRY: usize = 16;
const ALIGN: usize = 64;
const VERSION: u16 = 1;

const OFFSET_VERSION: usize = 8;
const OFFSET_DESC_NUM: usize = 10;
const OFFSET_LAST_BATCH_HEAD: usize = 12;
const OFFSET_USED_IDX: usize = 14;
const ENTRY_NEXT: usize = 6;
const ENTRY_COUNTER: usize = 8;

/// Why an inflight record was refused.
#[derive(Debug, Error)]
pub enum InflightError {
    /// More queues or larger ones than the device has.
    #[error("the inflight record is for {queues} queues of {size}, which the device does not have")]
    Shape {
        /// Queues.
        queues: u16,
        /// Descriptors of each.
        size: u16,
    },
    /// The area does not hold all queues, or does not lie within its file.
    #[error("the inflight record's area is too small")]
    Area,
    /// Its content cannot come from a backend.
    #[error("the inflight record is corrupt")]
    Corrupt,
    /// Memory could not be made or mapped.
    #[error("cannot map the inflight record: {0}")]
    Map(#[from] vm_memory::mmap::MmapRegionError),
    /// A system call failed.
    #[error("cannot make the inflight record: {0}")]
    Os(#[from] nix::Error),
    /// A system call failed.
    #[error("cannot read the inflight record's size: {0}")]
    Io(#[from] std::io::Error),
}

/// The shape of a record, as in the `GET_INFLIGHT_FD` and `SET_INFLIGHT_FD` messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InflightShape {
    /// Bytes of the area.
    pub area: u64,
    /// Where the area begins in its file.
    pub offset: u64,
    /// Queues.
    pub queues: u16,
    /// Descriptors of each queue.
    pub size: u16,
}

/// A mapped record of all queues.
#[derive(Debug, Clone)]
pub struct InflightRecord {
    region: Arc<MmapRegion>,
    shape: InflightShape,
}

impl InflightRecord {
    /// Makes an empty record and returns the file to hand to the frontend.
    pub fn create(queues: u16, size: u16) -> Result<(InflightShape, File), InflightError> {
        let area = stride(size) * usize::from(queues);
        let fd = memfd_create(c"inflight", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC)?;
        ftruncate(&fd, i64::try_from(area).map_err(|_| InflightError::Area)?)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(fd.as_fd(), FcntlArg::F_ADD_SEALS(seals))?;
        Ok((
            InflightShape {
                area: area as u64,
                offset: 0,
                queues,
                size,
            },
            File::from(fd),
        ))
    }

    /// Maps a record that a frontend kept, for a device of at most `max_queues` queues of `max_size`.
    pub fn open(
        shape: InflightShape,
        file: File,
        max_queues: u16,
        max_size: u16,
    ) -> Result<Self, InflightError> {
        let InflightShape { queues, size, .. } = shape;
        if queues == 0 || size == 0 || queues > max_queues || size > max_size {
            return Err(InflightError::Shape { queues, size });
        }
        let need = stride(size) * usize::from(queues);
        let end = shape.offset.checked_add(need as u64).ok_or(InflightError::Area)?;
        if shape.area < need as u64 || file.metadata()?.len() < end {
            return Err(InflightError::Area);
        }
        let region = MmapRegion::from_file(FileOffset::new(file, shape.offset), need)?;
        Ok(Self {
            region: Arc::new(region),
            shape,
        })
    }

    /// The record of one queue; `None` if there is none for it.
    pub fn queue(&self, index: u16) -> Option<InflightQueue> {
        (index < self.shape.queues).then(|| InflightQueue {
            region: Arc::clone(&self.region),
            start: stride(self.shape.size) * usize::from(index),
            size: self.shape.size,
            counter: 0,
        })
    }
}

fn stride(size: u16) -> usize {
    (HEADER + ENTRY * usize::from(size)).next_multiple_of(ALIGN)
}

/// The record of one queue.
#[derive(Debug)]
pub struct InflightQueue {
    region: Arc<MmapRegion>,
    start: usize,
    size: u16,
    counter: u64,
}

impl InflightQueue {
    /// Notes that the chain `head` was taken.
    pub fn begin(&mut self, head: u16) {
        if head >= self.size {
            return;
        }
        let entry = self.entry(head);
        self.store(entry + ENTRY_COUNTER, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.store(entry, 1u8);
        fence(Ordering::SeqCst);
    }

    /// Call before `head` is put in the used ring.
    pub fn before_used(&mut self, head: u16) {
        if head >= self.size {
            return;
        }
        let last = self.load::<u16>(self.start + OFFSET_LAST_BATCH_HEAD);
        self.store(self.entry(head) + ENTRY_NEXT, last);
        self.store(self.start + OFFSET_LAST_BATCH_HEAD, head);
        fence(Ordering::SeqCst);
    }

    /// Call when `head` is in the used ring, whose index is now `used`.
    pub fn after_used(&mut self, head: u16, used: u16) {
        if head >= self.size {
            return;
        }
        fence(Ordering::SeqCst);
        self.store(self.entry(head), 0u8);
        fence(Ordering::SeqCst);
        self.store(self.start + OFFSET_USED_IDX, used);
    }

    /// Prepares the record for a start of the ring, whose used index is `used` and size `ring`, and returns the requests that are
    /// still to be carried out, in the order in which they were taken.
    pub fn recover(&mut self, used: u16, ring: u16) -> Result<Vec<u16>, InflightError> {
        if ring > self.size {
            return Err(InflightError::Shape {
                queues: 1,
                size: ring,
            });
        }
        if self.load::<u16>(self.start + OFFSET_VERSION) == 0 {
            // A fresh area is all zeros.
            self.store(self.start + OFFSET_DESC_NUM, self.size);
            self.store(self.start + OFFSET_USED_IDX, used);
            self.store(self.start + OFFSET_VERSION, VERSION);
            return Ok(Vec::new());
        }
        if self.load::<u16>(self.start + OFFSET_VERSION) != VERSION {
            return Err(InflightError::Corrupt);
        }
        if self.load::<u16>(self.start + OFFSET_USED_IDX) != used {
            // The last one had just become visible to the guest.
            let last = self.load::<u16>(self.start + OFFSET_LAST_BATCH_HEAD);
            if last >= self.size {
                return Err(InflightError::Corrupt);
            }
            self.store(self.entry(last), 0u8);
            fence(Ordering::SeqCst);
            self.store(self.start + OFFSET_USED_IDX, used);
        }
        let mut taken: Vec<(u64, u16)> = (0..self.size)
            .filter(|head| self.load::<u8>(self.entry(*head)) != 0)
            .map(|head| (self.load::<u64>(self.entry(head) + ENTRY_COUNTER), head))
            .collect();
        if taken.iter().any(|(_, head)| *head >= ring) {
            return Err(InflightError::Corrupt);
        }
        taken.sort_unstable();
        self.counter = taken.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(taken.into_iter().map(|(_, head)| head).collect())
    }

    fn entry(&self, head: u16) -> usize {
        self.start + HEADER + ENTRY * usize::from(head)
    }

    /// Offsets are within the region and aligned by construction, so the accesses cannot fail.
    fn store<T: vm_memory::AtomicAccess>(&self, offset: usize, value: T) {
        let stored = self
            .region
            .as_volatile_slice()
            .store(value, offset, Ordering::Release);
        debug_assert!(stored.is_ok());
    }

    fn load<T: vm_memory::AtomicAccess + Default>(&self, offset: usize) -> T {
        let loaded = self.region.as_volatile_slice().load(offset, Ordering::Acquire);
        debug_assert!(loaded.is_ok());
        loaded.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(size: u16) -> (InflightRecord, File) {
        let (shape, file) = InflightRecord::create(2, size).unwrap();
        let kept = file.try_clone().unwrap();
        (InflightRecord::open(shape, file, 2, size).unwrap(), kept)
    }

    #[test]
    fn a_successor_finds_what_was_in_flight_in_order() {
        let (record, kept) = record(8);
        let mut first = record.queue(1).unwrap();
        assert!(first.recover(40, 8).unwrap().is_empty());
        for head in [3, 7, 0, 5] {
            first.begin(head);
        }
        first.before_used(7);
        first.after_used(7, 41);

        let shape = record.shape;
        let mut second = InflightRecord::open(shape, kept, 2, 8).unwrap().queue(1).unwrap();
        assert_eq!(second.recover(41, 8).unwrap(), [3, 0, 5]);
        second.begin(7);
        let mut third = record.queue(1).unwrap();
        assert_eq!(third.recover(41, 8).unwrap(), [3, 0, 5, 7], "counters go on");
        assert!(
            record.queue(0).unwrap().recover(0, 8).unwrap().is_empty(),
            "queues are apart"
        );
    }

    #[test]
    fn death_at_each_step_of_a_completion_is_told_apart_by_the_used_index() {
        for (step, used, left) in [
            (0, 5, vec![2, 4]),
            (1, 5, vec![2, 4]),
            (1, 6, vec![2]),
            (2, 6, vec![2]),
        ] {
            let (record, _kept) = record(8);
            let mut queue = record.queue(0).unwrap();
            queue.recover(5, 8).unwrap();
            queue.begin(2);
            queue.begin(4);
            if step >= 1 {
                queue.before_used(4);
            }
            if step >= 2 {
                queue.after_used(4, 6);
            }
            assert_eq!(
                record.queue(0).unwrap().recover(used, 8).unwrap(),
                left,
                "step {step}, used {used}"
            );
        }
    }

    #[test]
    fn a_forged_record_is_refused() {
        let (shape, file) = InflightRecord::create(1, 8).unwrap();
        let open = |shape| InflightRecord::open(shape, file.try_clone().unwrap(), 1, 8);
        open(InflightShape { queues: 2, ..shape }).unwrap_err();
        open(InflightShape { size: 16, ..shape }).unwrap_err();
        open(InflightShape { area: 64, ..shape }).unwrap_err();
        open(InflightShape {
            offset: 4096,
            ..shape
        })
        .unwrap_err();
        open(InflightShape {
            offset: u64::MAX,
            ..shape
        })
        .unwrap_err();
        let mut queue = open(shape).unwrap().queue(0).unwrap();
        queue.recover(0, 8).unwrap();
        queue.store(OFFSET_LAST_BATCH_HEAD, 900u16);
        assert!(matches!(queue.recover(1, 8), Err(InflightError::Corrupt)));
        queue.store(OFFSET_LAST_BATCH_HEAD, 0u16);
        queue.store(OFFSET_VERSION, 9u16);
        assert!(matches!(queue.recover(1, 8), Err(InflightError::Corrupt)));
        queue.begin(900);
        queue.before_used(900);
        queue.after_used(900, 1);
    }
}
