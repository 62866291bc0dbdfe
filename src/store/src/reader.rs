//! Connections that only read, a bounded number of them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rusqlite::Connection;

use crate::error::Error;
use crate::machine::files;

/// Reads that run at once; others wait.
pub(crate) const READERS: usize = 8;
/// Connections that are kept open while nobody reads.
const IDLE: usize = 4;

/// The readers of one generation of the database.
pub(crate) struct Readers {
    path: PathBuf,
    vfs: Option<&'static str>,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(crate) fn new(path: PathBuf, vfs: Option<&'static str>) -> Readers {
        Readers {
            path,
            vfs,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Runs the closure in a read transaction: all of it sees one state. Blocks.
    pub(crate) fn read<T, E: From<Error>>(
        &self,
        f: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let conn = match idle {
            Some(conn) => conn,
            None => files::open_reader(&self.path, self.vfs)?,
        };
        let run = |sql: &str| {
            conn.prepare_cached(sql)
                .and_then(|mut s| s.execute([]))
                .map_err(Error::from)
        };
        run("BEGIN")?;
        let result = f(&conn);
        // A connection whose transaction does not end is not used again.
        if run("ROLLBACK").is_ok() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE {
                idle.push(conn);
            }
        }
        result
    }
}

/// The current generation's readers. Installing a snapshot swaps them.
pub(crate) struct Pool(RwLock<Arc<Readers>>);

impl Pool {
    pub(crate) fn new(readers: Readers) -> Pool {
        Pool(RwLock::new(Arc::new(readers)))
    }

    pub(crate) fn get(&self) -> Arc<Readers> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn swap(&self, readers: Readers) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(readers);
    }
}
