//! Checkpoints, snapshots, and the swap of the database.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::Database;
use crate::error::Error;
use crate::event::Event;
use crate::machine::state::State;
use crate::machine::{apply, files};
use crate::raft::LogId;
use crate::reader::Readers;
use crate::schema;

/// Pages of SQLite's write-ahead log that make a checkpoint wait for readers.
const CHECKPOINT_PAGES_HARD: u32 = 16_000;
/// Entries and bytes of log after which a snapshot is made.
const SNAPSHOT_ENTRIES: usize = 50_000;
const SNAPSHOT_BYTES: u64 = 16 << 20;

impl Database {
    pub(super) fn housekeeping(&mut self) {
        let pages = self.connections.wal_pages.load(Ordering::Relaxed);
        if pages >= self.config.checkpoint_pages
            && let Err(error) = self.checkpoint()
        {
            // The write-ahead log holds everything: a later checkpoint will do.
            tracing::warn!(%error, "no checkpoint now");
        }
        self.ask_for_snapshot();
    }

    /// Syncs everything that was applied into the database's file. `false` if a reader was in the way.
    pub(super) fn checkpoint(&mut self) -> Result<bool, Error> {
        let applied = self.state.applied.map_or(0, |id| id.index);
        let pages = self.connections.wal_pages.load(Ordering::Relaxed);
        let mode = if pages >= CHECKPOINT_PAGES_HARD {
            "RESTART"
        } else {
            "PASSIVE"
        };
        let (busy, pages, done): (bool, i64, i64) =
            self.connections
                .applier
                .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })?;
        let complete = !busy && pages >= 0 && pages == done;
        if complete {
            self.connections.wal_pages.store(0, Ordering::Relaxed);
            if let Some(log) = &self.log {
                log.set_durable(applied);
            }
        }
        Ok(complete)
    }

    /// The log grew: a snapshot lets it be purged.
    pub(super) fn ask_for_snapshot(&mut self) {
        let (Some(log), Some(proposer)) = (&self.log, &self.proposer) else {
            return;
        };
        let (bytes, entries) = log.held();
        let applied = self.state.applied.map_or(0, |id| id.index);
        let database = std::fs::metadata(self.path()).map_or(0, |file| file.len());
        let grown = entries > SNAPSHOT_ENTRIES || bytes > SNAPSHOT_BYTES.max(2 * database);
        if !grown || applied < self.snapshot_asked + 1000 {
            return;
        }
        self.snapshot_asked = applied;
        let raft = proposer.raft.clone();
        proposer.runtime.spawn(async move {
            if let Err(error) = raft.trigger().snapshot().await {
                tracing::warn!(%error, "no snapshot now");
            }
        });
    }

    pub(super) fn path(&self) -> PathBuf {
        files::path(&self.config.dir, self.generation)
    }

    /// Swaps the database for the file of another generation, which is complete and synced.
    pub(super) fn install(&mut self, generation: u64, expected: Option<LogId>) -> Result<(), Error> {
        let path = files::path(&self.config.dir, generation);
        let connections = files::open(&path, self.config.vfs)?;
        let state = State::load(&connections.applier)?;
        if state.applied != expected {
            return Err(Error::Corrupt(format!(
                "the snapshot is of {:?}, not of {expected:?}",
                state.applied
            )));
        }
        let shapes = schema::shapes(&connections.applier)?;
        files::set_current(&self.config.dir, generation)?;
        self.connections = connections;
        self.generation = generation;
        self.shapes = shapes;
        self.shared.readers.swap(Readers::new(path, self.config.vfs));
        self.shared
            .applied
            .store(state.applied.map_or(0, |id| id.index), Ordering::Release);
        self.state = state;
        self.checkpoint()?;
        let index = self.state.applied.map_or(0, |id| id.index);
        self.publish(
            Event {
                index,
                changes: apply::everything(&self.shapes),
            },
            true,
        )
    }
}
