//! The database's files: which generation is current, and how its connections are set.
//!
//! ```text
//! CURRENT          the number of the generation in use
//! state.N.db       the database of generation N (with -wal and -shm)
//! ```
//! A snapshot becomes a new generation; nothing is ever written into a file that somebody has open.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::hooks::Authorization;
use rusqlite::{Connection, OpenFlags};

use crate::error::Error;
use crate::log::sync_directory;
use crate::schema;

const CURRENT: &str = "CURRENT";

/// What the writing connection may do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    /// The store's own statements.
    Own = 0,
    /// A write's closure.
    Closure = 1,
    /// A schema step's dry run.
    Step = 2,
}

/// The connections of the database's thread.
pub(crate) struct Connections {
    /// Runs the closures; everything it does is rolled back.
    pub writer: Connection,
    /// Applies entries: foreign keys and triggers are off.
    pub applier: Connection,
    /// Pages in the write-ahead log after the last commit.
    pub wal_pages: Arc<AtomicU32>,
    mode: Arc<AtomicU8>,
}

impl Connections {
    pub(crate) fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }
}

/// Where a generation's file is.
pub(crate) fn path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("state.{generation}.db"))
}

/// The generation in use; `None` in a new directory.
pub(crate) fn current(dir: &Path) -> Result<Option<u64>, Error> {
    let file = dir.join(CURRENT);
    match fs::read_to_string(&file) {
        Ok(text) => text
            .trim()
            .parse()
            .map(Some)
            .map_err(|_| Error::Corrupt(format!("{} holds no number", file.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("read {}", file.display()))(error)),
    }
}

/// Replaces a small file, durably, all or nothing.
pub(crate) fn replace(dir: &Path, name: &str, text: &[u8]) -> Result<(), Error> {
    let (file, new) = (dir.join(name), dir.join(format!("{name}.new")));
    let write = || {
        let mut out = fs::File::create(&new)?;
        out.write_all(text)?;
        out.sync_all()?;
        fs::rename(&new, &file)?;
        sync_directory(dir)
    };
    write().map_err(Error::io(format!("write {}", file.display())))
}

/// Makes this generation the current one and removes the files of others.
pub(crate) fn set_current(dir: &Path, generation: u64) -> Result<(), Error> {
    sync_directory(dir).map_err(Error::io(format!("sync {}", dir.display())))?;
    replace(dir, CURRENT, generation.to_string().as_bytes())?;
    remove_others(dir, generation);
    Ok(())
}

/// Removes files of generations that are not in use.
pub(crate) fn remove_others(dir: &Path, generation: u64) {
    let keep = format!("state.{generation}.db");
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if let Some(name) = name.to_str()
            && name.starts_with("state.")
            && !name.starts_with(&keep)
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::warn!(file = name, %error, "an old file cannot be removed");
        }
    }
}

fn connect(path: &Path, vfs: Option<&str>, flags: OpenFlags) -> Result<Connection, Error> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let conn = match vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs)?,
        None => Connection::open_with_flags(path, flags)?,
    };
    conn.busy_timeout(Duration::from_secs(1))?;
    conn.set_prepared_statement_cache_capacity(256);
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    Ok(conn)
}

/// Opens the thread's connections; makes the store's own tables in a new database.
pub(crate) fn open(path: &Path, vfs: Option<&str>) -> Result<Connections, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut applier = connect(path, vfs, flags)?;
    let journal: String = applier.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if journal != "wal" {
        return Err(Error::Other(format!(
            "{}: SQLite cannot use a write-ahead log here",
            path.display()
        )));
    }
    // Only the log is synced per write; SQLite syncs at checkpoints, which the thread runs itself.
    applier.execute_batch(
        "PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -4096;",
    )?;
    applier.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
    applier.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    applier.execute_batch(&format!("BEGIN IMMEDIATE; {} COMMIT;", schema::INTERNAL))?;
    let wal_pages = Arc::new(AtomicU32::new(0));
    let pages = wal_pages.clone();
    applier.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, count: i32| {
        pages.store(count.unsigned_abs(), Ordering::Relaxed);
        Ok(())
    }))?;

    let mut writer = connect(path, vfs, flags)?;
    writer.execute_batch(
        "PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -4096;",
    )?;
    writer.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true)?;
    let mode = Arc::new(AtomicU8::new(Mode::Own as u8));
    let current = mode.clone();
    writer.authorizer(Some(
        move |context: rusqlite::hooks::AuthContext<'_>| match current.load(Ordering::Relaxed) {
            mode if mode == Mode::Closure as u8 => schema::authorize_write(context),
            mode if mode == Mode::Step as u8 => schema::authorize_step(context),
            _ => Authorization::Allow,
        },
    ))?;
    Ok(Connections {
        writer,
        applier,
        wal_pages,
        mode,
    })
}

/// Opens a connection that only reads.
pub(crate) fn open_reader(path: &Path, vfs: Option<&str>) -> Result<Connection, Error> {
    let conn = connect(path, vfs, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    conn.execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -2048;")?;
    Ok(conn)
}
