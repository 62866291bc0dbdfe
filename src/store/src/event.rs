//! The applied changeset is the event stream.

use std::io::Read;

use rusqlite::Connection;
use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator;
use rusqlite::hooks::Action;
use rusqlite::session::ChangesetIter;
use rusqlite::types::Value;

use crate::error::Error;

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It is new.
    Insert,
    /// Some of its columns changed.
    Update,
    /// It is gone.
    Delete,
}

/// One changed row.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The table's name.
    pub table: String,
    /// What happened.
    pub operation: Operation,
    /// The primary key's columns. Empty if the whole table may have changed (a snapshot or a schema step
    /// was installed): read the table anew.
    pub key: Vec<Value>,
}

/// One applied entry of the log: the writes of one group, in the order in which they ran.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The entry's index in the log.
    pub index: u64,
    /// The rows that it changed.
    pub changes: Vec<Change>,
}

impl Event {
    /// A row of this table changed.
    pub fn touches(&self, table: &str) -> bool {
        self.changes.iter().any(|change| change.table == table)
    }
}

/// State in memory that follows the database. Both calls run on the applying thread, before a write is
/// acknowledged; they only read.
pub trait Projection: Send + Sync {
    /// Build everything anew (at start, after a schema step, and after a snapshot was installed).
    fn load(&self, conn: &Connection) -> Result<(), Error>;
    /// Follow one event.
    fn apply(&self, conn: &Connection, event: &Event) -> Result<(), Error>;
}

/// The shape that a changeset expects of a table: which of its columns are the primary key's.
pub(crate) type Shape = Vec<bool>;

/// Lists the rows of a changeset. `shape` is asked once per row for the table's shape in the database: SQLite
/// silently skips what does not fit, so a difference is an error here.
pub(crate) fn changes<'a>(
    changeset: &[u8],
    shape: impl Fn(&str) -> Option<&'a Shape>,
) -> Result<Vec<Change>, Error> {
    let mut bytes = changeset;
    let input: &mut dyn Read = &mut bytes;
    let mut iter = ChangesetIter::start_strm(&input)?;
    let mut changes = Vec::new();
    while let Some(item) = iter.next()? {
        let op = item.op()?;
        let table = op.table_name().to_owned();
        let key_columns: Shape = item.pk()?.iter().map(|&is_key| is_key != 0).collect();
        match shape(&table) {
            Some(known) if *known == key_columns => {}
            Some(_) => return Err(Error::Schema(format!("table {table} has other columns here"))),
            None => return Err(Error::Schema(format!("there is no table {table} here"))),
        }
        let operation = match op.code() {
            Action::SQLITE_INSERT => Operation::Insert,
            Action::SQLITE_DELETE => Operation::Delete,
            _ => Operation::Update,
        };
        let mut key = Vec::with_capacity(1);
        for (column, _) in key_columns.iter().enumerate().filter(|(_, is_key)| **is_key) {
            let value = match operation {
                Operation::Insert => item.new_value(column)?,
                _ => item.old_value(column)?,
            };
            key.push(Value::try_from(value).map_err(|e| Error::Other(format!("key of table {table}: {e}")))?);
        }
        changes.push(Change {
            table,
            operation,
            key,
        });
    }
    Ok(changes)
}
