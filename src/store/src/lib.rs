//! SQLite, replicated as changesets: the one place where the cloud's state lives.
#![allow(missing_docs)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

pub use rusqlite;
use rusqlite::Connection;
use rusqlite::session::Session;
use rusqlite::types::Value;
use tokio::sync::broadcast;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("database: {0}")]
    Sqlite(#[source] Arc<rusqlite::Error>),
    #[error("{0}")]
    Other(String),
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Error::Sqlite(Arc::new(error))
    }
}

/// A numbered step of the schema. Steps are only ever appended.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub number: u32,
    pub name: &'static str,
    pub sql: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Insert,
    Update,
    Delete,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub table: String,
    pub operation: Operation,
    /// The primary key's columns.
    pub key: Vec<Value>,
}

/// One acknowledged write, in the order of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub index: u64,
    pub changes: Vec<Change>,
}

impl Event {
    pub fn touches(&self, table: &str) -> bool {
        self.changes.iter().any(|change| change.table == table)
    }
}

/// State in memory that follows the database. Both calls run on the applying thread, before a write is
/// acknowledged; they only read.
pub trait Projection: Send + Sync {
    /// Build everything anew (at start, and after a snapshot was installed).
    fn load(&self, conn: &Connection) -> Result<(), Error>;
    /// Follow one event.
    fn apply(&self, conn: &Connection, event: &Event) -> Result<(), Error>;
}

pub struct Options {
    pub dir: PathBuf,
    pub steps: &'static [Step],
    pub projections: Vec<Arc<dyn Projection>>,
}

#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    options: Options,
    writer: Mutex<(Connection, u64)>,
    events: broadcast::Sender<Arc<Event>>,
}

impl Store {
    pub async fn open(options: Options) -> Result<Store, Error> {
        std::fs::create_dir_all(&options.dir).map_err(|e| Error::Other(e.to_string()))?;
        let conn = Connection::open(options.dir.join("allod.db"))?;
        conn.pragma_update(None, "journal_mode", "wal")?;
        let done: u32 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
        for step in options.steps.iter().filter(|step| step.number > done) {
            conn.execute_batch(step.sql)?;
            conn.pragma_update(None, "user_version", step.number)?;
        }
        for projection in &options.projections {
            projection.load(&conn)?;
        }
        Ok(Store(Arc::new(Inner { options, writer: Mutex::new((conn, 0)), events: broadcast::channel(1024).0 })))
    }

    /// A snapshot read.
    pub async fn read<T, E, F>(&self, f: F) -> Result<T, E>
    where
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let inner = self.0.clone();
        tokio::task::spawn_blocking(move || {
            let conn = Connection::open(inner.options.dir.join("allod.db")).map_err(Error::from)?;
            f(&conn)
        })
        .await
        .map_err(|e| E::from(Error::Other(e.to_string())))?
    }

    /// A transaction. The closure may run more than once (hence `Fn`), does no I/O and ends in < 2 ms; an `Err` undoes it.
    /// Returns when the write is durable and every projection has followed it.
    pub async fn write<T, E, F>(&self, actor: &str, f: F) -> Result<T, E>
    where
        F: Fn(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let _ = actor;
        let inner = self.0.clone();
        tokio::task::spawn_blocking(move || {
            let mut writer = inner.writer.lock().unwrap_or_else(|e| e.into_inner());
            let (conn, index) = &mut *writer;
            let tx = conn.transaction().map_err(Error::from)?;
            let mut session = Session::new(&tx).map_err(Error::from)?;
            session.attach::<&str>(None).map_err(Error::from)?;
            let value = f(&tx)?;
            let mut changes = Vec::new();
            {
                use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator;
                let changeset = session.changeset().map_err(Error::from)?;
                let mut iter = changeset.iter().map_err(Error::from)?;
                while let Some(item) = iter.next().map_err(Error::from)? {
                    let op = item.op().map_err(Error::from)?;
                    let pk = item.pk().map_err(Error::from)?;
                    let operation = match op.code() {
                        rusqlite::hooks::Action::SQLITE_INSERT => Operation::Insert,
                        rusqlite::hooks::Action::SQLITE_DELETE => Operation::Delete,
                        _ => Operation::Update,
                    };
                    let mut key = Vec::new();
                    for (i, is) in pk.iter().enumerate() {
                        if *is != 0 {
                            let value = match operation {
                                Operation::Insert => item.new_value(i),
                                _ => item.old_value(i),
                            };
                            key.push(Value::try_from(value.map_err(Error::from)?).map_err(|e| Error::Other(e.to_string()))?);
                        }
                    }
                    changes.push(Change { table: op.table_name().to_owned(), operation, key });
                }
            }
            drop(session);
            tx.commit().map_err(Error::from)?;
            *index += 1;
            let event = Arc::new(Event { index: *index, changes });
            for projection in &inner.options.projections {
                projection.apply(conn, &event)?;
            }
            let _ = inner.events.send(event);
            Ok(value)
        })
        .await
        .map_err(|e| E::from(Error::Other(e.to_string())))?
    }

    /// Every write from now on. A receiver that lags is told so and reads the database anew.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.events.subscribe()
    }
}
