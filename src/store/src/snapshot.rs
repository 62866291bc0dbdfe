//! Snapshots: a copy of the database, made by SQLite's backup into a new file, with what it is a copy of beside it.
//!
//! ```text
//! snapshot/ID.db      the copy; its table `_allod_snapshot` holds the hash of every table
//! snapshot/ID.json    Raft's description; written last: a copy without it is unfinished
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::{Snapshot, SnapshotMeta};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, params};

use crate::command::{Hash, hex};
use crate::error::Error;
use crate::log::sync_directory;
use crate::machine::state::State;
use crate::machine::{Keep, files};
use crate::raft::{Node, NodeId, Types};
use crate::reader::Readers;
use crate::schema;

type Meta = SnapshotMeta<NodeId, Node>;

const HASHES: &str = "
    DROP TABLE IF EXISTS _allod_snapshot;
    CREATE TABLE _allod_snapshot (name TEXT PRIMARY KEY NOT NULL, hash TEXT NOT NULL) STRICT;
";

fn folder(dir: &Path) -> PathBuf {
    dir.join("snapshot")
}

async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(f)
        .await
        .map_err(|e| Error::Other(format!("a snapshot's task ended early: {e}")))?
}

/// Makes a snapshot of what is applied now.
pub(crate) async fn build(dir: &Path, readers: Arc<Readers>, lock: Keep) -> Result<Snapshot<Types>, Error> {
    let dir = dir.to_owned();
    let (meta, file) = blocking(move || {
        // The task may go away; this thread ends its work, with the lock.
        let _lock = lock;
        let folder = folder(&dir);
        fs::create_dir_all(&folder).map_err(Error::io(format!("make {}", folder.display())))?;
        let unfinished = folder.join("unfinished.db");
        let result = readers.read(|conn| copy(conn, &unfinished));
        let state = result.inspect_err(|_| {
            let _ = fs::remove_file(&unfinished);
        })?;
        let last = state.applied;
        let id = last.map_or("empty".to_owned(), |id| {
            format!("{}-{}-{}", id.leader_id.term, id.leader_id.node_id, id.index)
        });
        let meta = Meta {
            last_log_id: last,
            last_membership: state.membership,
            snapshot_id: id,
        };
        keep(&folder, &unfinished, &meta)?;
        let file = folder.join(format!("{}.db", meta.snapshot_id));
        let file = fs::File::open(&file).map_err(Error::io(format!("open {}", file.display())))?;
        Ok((meta, file))
    })
    .await?;
    Ok(Snapshot {
        meta,
        snapshot: Box::new(tokio::fs::File::from_std(file)),
    })
}

/// Copies the database as this read transaction sees it, and records the hashes of its tables in the copy.
fn copy(conn: &Connection, to: &Path) -> Result<State, Error> {
    let state = State::load(conn)?;
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io(format!("remove {}", to.display()))(error));
        }
        _ => {}
    }
    let mut copy = Connection::open(to)?;
    // The copy is synced once, at its end.
    copy.execute_batch("PRAGMA synchronous = OFF;")?;
    {
        let backup = Backup::new(conn, &mut copy)?;
        if !matches!(backup.step(-1)?, StepResult::Done) {
            return Err(Error::Other(
                "the database could not be copied: it was busy".to_owned(),
            ));
        }
    }
    // One file, no write-ahead log beside it.
    copy.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
    copy.execute_batch(HASHES)?;
    for (name, hash) in schema::table_hashes(&copy)? {
        copy.execute(
            "INSERT INTO _allod_snapshot (name, hash) VALUES (?1, ?2)",
            params![name, hex(&hash)],
        )?;
    }
    copy.close().map_err(|(_, error)| error)?;
    fs::File::open(to)
        .and_then(|file| file.sync_all())
        .map_err(Error::io(format!("sync {}", to.display())))?;
    Ok(state)
}

/// The copy becomes the current snapshot; older ones go.
fn keep(folder: &Path, copy: &Path, meta: &Meta) -> Result<(), Error> {
    let at = || format!("keep a snapshot in {}", folder.display());
    fs::rename(copy, folder.join(format!("{}.db", meta.snapshot_id))).map_err(Error::io(at()))?;
    sync_directory(folder).map_err(Error::io(at()))?;
    let text = serde_json::to_vec_pretty(meta)
        .map_err(|e| Error::Other(format!("a snapshot's description: {e}")))?;
    let description = format!("{}.json", meta.snapshot_id);
    files::replace(folder, &description, &text)?;
    let prefix = format!("{}.", meta.snapshot_id);
    for entry in fs::read_dir(folder).map_err(Error::io(at()))?.flatten() {
        let name = entry.file_name();
        if !name
            .to_str()
            .is_some_and(|name| name.starts_with(&prefix) || name.starts_with("unfinished"))
        {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// The newest snapshot, if there is one.
pub(crate) async fn current(dir: &Path) -> Result<Option<Snapshot<Types>>, Error> {
    let folder = folder(dir);
    let found = blocking(move || {
        let Ok(entries) = fs::read_dir(&folder) else {
            return Ok(None);
        };
        let mut newest: Option<Meta> = None;
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = fs::read(&path).map_err(Error::io(format!("read {}", path.display())))?;
            let meta: Meta = serde_json::from_slice(&text)
                .map_err(|e| Error::Corrupt(format!("{}: {e}", path.display())))?;
            if newest
                .as_ref()
                .is_none_or(|newest| newest.last_log_id < meta.last_log_id)
            {
                newest = Some(meta);
            }
        }
        let Some(meta) = newest else { return Ok(None) };
        let path = folder.join(format!("{}.db", meta.snapshot_id));
        match fs::File::open(&path) {
            Ok(file) => Ok(Some((meta, file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("open {}", path.display()))(error)),
        }
    })
    .await?;
    Ok(found.map(|(meta, file)| Snapshot {
        meta,
        snapshot: Box::new(tokio::fs::File::from_std(file)),
    }))
}

/// A file into which a leader's snapshot is received.
pub(crate) async fn receive(dir: &Path) -> Result<tokio::fs::File, Error> {
    let folder = folder(dir);
    let file = blocking(move || {
        fs::create_dir_all(&folder).map_err(Error::io(format!("make {}", folder.display())))?;
        let path = folder.join("unfinished-received.db");
        let open = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path);
        open.map_err(Error::io(format!("make {}", path.display())))
    })
    .await?;
    Ok(tokio::fs::File::from_std(file))
}

/// Checks a received snapshot, keeps it as the current one, and copies it to the file of a new generation.
pub(crate) async fn unpack(
    dir: &Path,
    meta: &Meta,
    file: tokio::fs::File,
    generation: u64,
    lock: Keep,
) -> Result<(), Error> {
    let (dir, meta, file) = (dir.to_owned(), meta.clone(), file.into_std().await);
    blocking(move || {
        let _lock = lock;
        let folder = folder(&dir);
        fs::create_dir_all(&folder).map_err(Error::io(format!("make {}", folder.display())))?;
        if meta.snapshot_id.is_empty()
            || !meta
                .snapshot_id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            return Err(Error::Corrupt(format!(
                "{:?} names no snapshot",
                meta.snapshot_id
            )));
        }
        let unfinished = folder.join("unfinished.db");
        write_copy(&file, &unfinished)?;
        verify(&unfinished)?;
        let state = files::path(&dir, generation);
        write_copy(&file, &state)?;
        keep(&folder, &unfinished, &meta)
    })
    .await
}

fn write_copy(mut from: &fs::File, to: &Path) -> Result<(), Error> {
    use std::io::{Seek, SeekFrom};
    let mut copy = || {
        from.seek(SeekFrom::Start(0))?;
        let mut out = fs::File::create(to)?;
        io::copy(&mut from, &mut out)?;
        out.sync_all()
    };
    copy().map_err(Error::io(format!("write {}", to.display())))
}

/// The copy's tables are those that its maker hashed.
fn verify(path: &Path) -> Result<(), Error> {
    let conn = files::open_reader(path, None)?;
    let mut rows = conn.prepare("SELECT name, hash FROM _allod_snapshot ORDER BY name")?;
    let recorded: Vec<(String, String)> = rows
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let found: Vec<(String, Hash)> = schema::table_hashes(&conn)?;
    let same = recorded.len() == found.len()
        && recorded
            .iter()
            .zip(&found)
            .all(|((a, left), (b, right))| a == b && *left == hex(right));
    if same {
        Ok(())
    } else {
        Err(Error::Corrupt(
            "a snapshot's tables are not what its maker hashed".to_owned(),
        ))
    }
}
