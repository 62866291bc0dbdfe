//! Raft's log: an append-only file log of our own, synced once per group.
//!
//! [`LogStore`] is what openraft sees. Appends become readable at once and durable when the log's thread has synced
//! them together with whatever else was waiting.

mod disk;
mod entry;
mod journal;
mod record;
mod thread;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, mpsc};

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, RaftLogReader, StorageIOError};
use tokio::sync::oneshot;

pub use self::disk::{Directory, Disk, File};
pub(crate) use self::disk::{free_bytes, sync_directory};
use self::journal::{Append, Journal, Location};
use crate::error::Error;
use crate::raft::{Entry, LogId, StorageError, Types, Vote};

/// Bytes of a segment.
pub(crate) const SEGMENT: usize = 8 << 20;
/// Bytes of recent entries that are kept in memory: what is applied next is never read from disk.
const CACHE: usize = 4 << 20;

/// Where an entry is.
struct Slot {
    id: LogId,
    location: Option<Location>,
    cached: Option<Entry>,
    size: usize,
}

/// The entries that are not purged.
#[derive(Default)]
struct Index {
    slots: VecDeque<Slot>,
    purged: Option<LogId>,
    /// Bytes of the cached entries, and the log index before which nothing is cached.
    cached: usize,
    cached_from: u64,
    /// Bytes of all entries.
    bytes: u64,
}

impl Index {
    fn first(&self) -> Option<u64> {
        self.slots.front().map(|slot| slot.id.index)
    }

    fn slot(&mut self, index: u64) -> Option<&mut Slot> {
        let first = self.first()?;
        let position = usize::try_from(index.checked_sub(first)?).ok()?;
        self.slots.get_mut(position)
    }

    fn push(&mut self, entry: Entry, size: usize) {
        let id = entry.log_id;
        if self
            .slots
            .back()
            .is_some_and(|last| last.id.index + 1 != id.index)
        {
            // openraft appends in order; after a snapshot the log starts anew behind it.
            self.slots.clear();
            (self.cached, self.bytes) = (0, 0);
        }
        self.cached += size;
        self.bytes += size as u64;
        self.slots.push_back(Slot {
            id,
            location: None,
            cached: Some(entry),
            size,
        });
        self.evict();
    }

    /// Drops the oldest cached entries that are on disk, until the rest fits.
    fn evict(&mut self) {
        let Some(first) = self.first() else { return };
        let mut index = self.cached_from.max(first);
        while self.cached > CACHE {
            let Some(slot) = self.slot(index) else { break };
            if slot.location.is_none() {
                break;
            }
            let freed = if slot.cached.take().is_some() {
                slot.size
            } else {
                0
            };
            self.cached -= freed;
            index += 1;
        }
        self.cached_from = index;
    }

    fn forget(&mut self, slot: Slot) {
        self.bytes -= slot.size as u64;
        if slot.cached.is_some() {
            self.cached -= slot.size;
        }
    }

    fn truncate(&mut self, since: u64) {
        while self.slots.back().is_some_and(|slot| slot.id.index >= since) {
            if let Some(slot) = self.slots.pop_back() {
                self.forget(slot);
            }
        }
        self.cached_from = self.cached_from.min(since);
    }

    fn purge(&mut self, id: LogId) {
        while self.slots.front().is_some_and(|slot| slot.id.index <= id.index) {
            if let Some(slot) = self.slots.pop_front() {
                self.forget(slot);
            }
        }
        if self.purged.is_none_or(|purged| purged.index < id.index) {
            self.purged = Some(id);
        }
    }
}

/// An order to the log's thread.
enum Order {
    Append {
        records: Vec<Append>,
        first: u64,
        callback: LogFlushed<Types>,
    },
    Record {
        record: Append,
        reply: oneshot::Sender<Result<(), Arc<std::io::Error>>>,
    },
    Purge {
        id: LogId,
    },
    Reserve {
        size: usize,
        reply: mpsc::SyncSender<Result<(), Arc<std::io::Error>>>,
    },
}

/// Raft's log. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    index: Arc<RwLock<Index>>,
    vote: Option<Vote>,
    orders: mpsc::Sender<Order>,
    /// Entries up to here may be forgotten: a checkpoint of the database has synced them.
    durable: Arc<AtomicU64>,
    figures: Arc<Figures>,
}

/// What the log's thread publishes.
#[derive(Default)]
struct Figures {
    /// Bytes on disk.
    size: AtomicU64,
    /// Bytes that can be appended without asking.
    room: AtomicU64,
}

fn lock<T>(result: Result<T, std::sync::PoisonError<T>>) -> T {
    // Nobody panics while holding the index; if somebody did, its data is still whole.
    result.unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl LogStore {
    /// Opens the log and starts its thread. `keep` is held until the thread ends.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        segment_size: usize,
        keep: impl Send + 'static,
    ) -> Result<LogStore, Error> {
        let (journal, recovered) = Journal::open(disk, segment_size)?;
        let mut index = Index {
            purged: recovered.purged,
            ..Index::default()
        };
        for (id, location) in recovered.entries {
            index.bytes += location.length as u64;
            index.cached_from = id.index + 1;
            index.slots.push_back(Slot {
                id,
                size: location.length,
                location: Some(location),
                cached: None,
            });
        }
        let index = Arc::new(RwLock::new(index));
        let (orders, receiver) = mpsc::channel();
        let durable = Arc::new(AtomicU64::new(0));
        let figures = Arc::new(Figures::default());
        let thread = thread::Thread::new(journal, index.clone(), durable.clone(), figures.clone());
        std::thread::Builder::new()
            .name("store-log".to_owned())
            .spawn(move || {
                let _keep = keep;
                thread.run(&receiver);
            })
            .map_err(Error::io("start the log's thread"))?;
        Ok(LogStore {
            index,
            vote: recovered.vote,
            orders,
            durable,
            figures,
        })
    }

    /// Entries up to this index are in the database's file, synced: they may be purged.
    pub(crate) fn set_durable(&self, index: u64) {
        self.durable.fetch_max(index, Ordering::AcqRel);
    }

    /// An entry of this size can be appended without asking the file system for room. Blocks.
    pub(crate) fn reserve(&self, size: usize) -> Result<(), std::io::Error> {
        if (size as u64) < self.figures.room.load(Ordering::Acquire) {
            return Ok(());
        }
        let (reply, answer) = mpsc::sync_channel(1);
        let gone = || std::io::Error::other("the log's thread has ended");
        self.orders
            .send(Order::Reserve { size, reply })
            .map_err(|_| gone())?;
        answer
            .recv()
            .map_err(|_| gone())?
            .map_err(|e| std::io::Error::new(e.kind(), e.to_string()))
    }

    /// Bytes of entries that are not purged, and how many they are.
    pub(crate) fn held(&self) -> (u64, usize) {
        let index = lock(self.index.read());
        (index.bytes, index.slots.len())
    }

    /// Bytes on disk.
    pub(crate) fn size(&self) -> u64 {
        self.figures.size.load(Ordering::Relaxed)
    }

    /// Entries of a range, as far as they exist.
    pub(crate) fn entries(&self, from: u64, to: u64) -> Result<Vec<Entry>, Error> {
        enum Found {
            Entry(Entry),
            At(Location),
        }
        let found: Vec<Found> = {
            let index = lock(self.index.read());
            let first = index.first().unwrap_or(u64::MAX);
            let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
            let slots = index
                .slots
                .iter()
                .skip(skip)
                .take_while(|slot| slot.id.index < to);
            slots
                .map(|slot| match (&slot.cached, &slot.location) {
                    (Some(entry), _) => Ok(Found::Entry(entry.clone())),
                    (None, Some(location)) => Ok(Found::At(location.clone())),
                    (None, None) => Err(Error::Corrupt(format!("entry {} is nowhere", slot.id.index))),
                })
                .collect::<Result<_, _>>()?
        };
        let mut entries = Vec::with_capacity(found.len());
        for found in found {
            entries.push(match found {
                Found::Entry(entry) => entry,
                Found::At(location) => entry::decode(&location.read().map_err(Error::io("read the log"))?)?,
            });
        }
        Ok(entries)
    }

    async fn record(&self, record: Append) -> Result<(), StorageIOError<u64>> {
        let (reply, answer) = oneshot::channel();
        let gone = || StorageIOError::write_logs(AnyError::error("the log's thread has ended"));
        self.orders
            .send(Order::Record { record, reply })
            .map_err(|_| gone())?;
        answer
            .await
            .map_err(|_| gone())?
            .map_err(|e| StorageIOError::write_logs(AnyError::new(&*e)))
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(&index) => index,
            Bound::Excluded(&index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&index) => index.saturating_add(1),
            Bound::Excluded(&index) => index,
            Bound::Unbounded => u64::MAX,
        };
        self.entries(from, to)
            .map_err(|e| StorageIOError::read_logs(AnyError::new(&e)).into())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        // A follower that lags is fed in messages of a few MiB.
        const LIMIT: usize = 4 << 20;
        let end = {
            let index = lock(self.index.read());
            let first = index.first().unwrap_or(u64::MAX);
            let skip = usize::try_from(start.saturating_sub(first)).unwrap_or(usize::MAX);
            let mut bytes = 0;
            let fits = index.slots.iter().skip(skip).take_while(|slot| {
                let fits = bytes == 0 || bytes + slot.size <= LIMIT;
                bytes += slot.size;
                fits
            });
            end.min(start.saturating_add(fits.count() as u64))
        };
        self.try_get_log_entries(start..end).await
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let index = lock(self.index.read());
        let last = index.slots.back().map(|slot| slot.id).or(index.purged);
        Ok(LogState {
            last_purged_log_id: index.purged,
            last_log_id: last,
        })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.record(Append::Vote(*vote)).await?;
        self.vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.vote)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut records = Vec::new();
        let mut first = u64::MAX;
        {
            let mut index = lock(self.index.write());
            for entry in entries {
                let bytes = entry::encode(&entry)
                    .map_err(|e| StorageIOError::write_log_entry(entry.log_id, AnyError::new(&e)))?;
                first = first.min(entry.log_id.index);
                index.push(entry, bytes.len());
                records.push(Append::Entry(bytes));
            }
        }
        self.orders
            .send(Order::Append {
                records,
                first,
                callback,
            })
            .map_err(|_| StorageIOError::write_logs(AnyError::error("the log's thread has ended")).into())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        lock(self.index.write()).truncate(log_id.index);
        Ok(self.record(Append::Truncate(log_id.index)).await?)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        lock(self.index.write()).purge(log_id);
        self.orders
            .send(Order::Purge { id: log_id })
            .map_err(|_| StorageIOError::write_logs(AnyError::error("the log's thread has ended")).into())
    }
}
