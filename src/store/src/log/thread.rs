//! The log's thread: takes every order that waits, writes them as one group, syncs once, and answers them all.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, mpsc};

use openraft::storage::LogFlushed;
use tokio::sync::oneshot;

use super::journal::{Append, Journal, Location};
use super::{Figures, Index, Order, lock};
use crate::raft::{LogId, Types};

/// Orders per group: bounds the memory of a group's buffer.
const GROUP: usize = 64;

pub(super) struct Thread {
    journal: Journal,
    index: Arc<RwLock<Index>>,
    durable: Arc<AtomicU64>,
    figures: Arc<Figures>,
    /// The purge point that awaits a checkpoint.
    purge: Option<LogId>,
}

/// Who is answered after the sync.
enum Waiter {
    Raft(LogFlushed<Types>),
    Caller(oneshot::Sender<Result<(), Arc<io::Error>>>),
}

impl Thread {
    pub(super) fn new(
        journal: Journal,
        index: Arc<RwLock<Index>>,
        durable: Arc<AtomicU64>,
        figures: Arc<Figures>,
    ) -> Thread {
        let thread = Thread {
            journal,
            index,
            durable,
            figures,
            purge: None,
        };
        thread.publish();
        thread
    }

    /// Works until every sender is gone.
    pub(super) fn run(mut self, orders: &mpsc::Receiver<Order>) {
        while let Ok(order) = orders.recv() {
            let mut group = vec![order];
            while group.len() < GROUP
                && let Ok(order) = orders.try_recv()
            {
                group.push(order);
            }
            self.serve(group);
            self.publish();
        }
    }

    fn publish(&self) {
        self.figures
            .size
            .store(self.journal.size() as u64, Ordering::Relaxed);
        self.figures
            .room
            .store(self.journal.room() as u64, Ordering::Release);
    }

    fn serve(&mut self, group: Vec<Order>) {
        let mut waiters = Vec::new();
        let mut places: Vec<(u64, Location)> = Vec::new();
        let mut result: io::Result<()> = Ok(());
        for order in group {
            match order {
                Order::Append {
                    records,
                    first,
                    callback,
                } => {
                    for (record, index) in records.iter().zip(first..) {
                        result = result.and_then(|()| {
                            places.extend(self.journal.append(record)?.map(|location| (index, location)));
                            Ok(())
                        });
                    }
                    waiters.push(Waiter::Raft(callback));
                }
                Order::Record { record, reply } => {
                    if let Append::Truncate(since) = record {
                        places.retain(|(index, _)| *index < since);
                    }
                    result = result.and_then(|()| self.journal.append(&record).map(drop));
                    waiters.push(Waiter::Caller(reply));
                }
                Order::Purge { id } => self.purge = Some(id),
                Order::Reserve { size, reply } => {
                    let _ = reply.send(self.journal.reserve(size).map_err(Arc::new));
                }
            }
        }
        let result = result.and_then(|()| self.journal.sync()).map_err(Arc::new);
        if let Err(error) = &result {
            tracing::error!(%error, "the log cannot be written");
        } else {
            let mut index = lock(self.index.write());
            for (position, location) in places {
                if let Some(slot) = index.slot(position) {
                    slot.location = Some(location);
                }
            }
            index.evict();
        }
        for waiter in waiters {
            match waiter {
                Waiter::Raft(callback) => callback.log_io_completed(
                    result
                        .clone()
                        .map_err(|e| io::Error::new(e.kind(), e.to_string())),
                ),
                Waiter::Caller(reply) => {
                    let _ = reply.send(result.clone());
                }
            }
        }
        if let Some(id) = self.purge
            && id.index <= self.durable.load(Ordering::Acquire)
        {
            self.purge = None;
            if let Err(error) = self.forget(id) {
                // The entries stay: they cost room, not correctness.
                tracing::warn!(%error, "old segments of the log cannot be removed");
            }
        }
    }

    /// Records the purge, durably, then removes the segments that hold nothing else.
    fn forget(&mut self, id: LogId) -> io::Result<()> {
        self.journal.append(&Append::Purged(id))?;
        self.journal.sync()?;
        // The oldest segment that an entry is in; entries without a place are in the active one.
        let live = lock(self.index.read())
            .slots
            .front()
            .and_then(|slot| slot.location.as_ref())
            .map(|l| l.segment);
        self.journal.drop_segments(live)
    }
}
