//! Numbered schema steps, the store's own tables, and the rules that close the session extension's traps.

use std::collections::HashMap;

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Connection, OptionalExtension};
use sha2::{Digest, Sha256};

use crate::command::{Hash, hex};
use crate::error::Error;
use crate::event::Shape;

/// A numbered step of the schema. Steps are only ever appended; their SQL travels in the log.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Ascending, from 1.
    pub number: u32,
    /// For logs and errors.
    pub name: &'static str,
    /// `CREATE TABLE …`, `ALTER TABLE …`; it may insert rows whose values do not depend on time or chance.
    pub sql: &'static str,
}

/// The names of the store's own tables start with this. They are not replicated by changesets: each node writes
/// them as it applies.
pub(crate) const OWN: &str = "_allod_";

/// The store's own tables.
pub(crate) const INTERNAL: &str = "
    CREATE TABLE IF NOT EXISTS _allod_state (
        id INTEGER PRIMARY KEY NOT NULL CHECK (id = 1),
        applied TEXT,
        membership TEXT NOT NULL,
        store_index INTEGER NOT NULL,
        entries_hash TEXT NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS _allod_step (
        number INTEGER PRIMARY KEY NOT NULL,
        name TEXT NOT NULL,
        hash TEXT NOT NULL,
        log_index INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS _allod_request (
        id BLOB PRIMARY KEY NOT NULL,
        log_index INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS _allod_request_index ON _allod_request (log_index);
";

/// The hash of a step's SQL, as it is recorded.
pub(crate) fn hash(sql: &str) -> String {
    hex(&Sha256::digest(sql.as_bytes()))
}

/// Reads `sqlite_schema` and names every table that changesets would not carry faithfully: without STRICT, without
/// a primary key, with a primary key that may be NULL, with AUTOINCREMENT; and every virtual table, view with a
/// trigger, and trigger. All of these record nothing, or abort the apply, without any error at the time of the write.
pub fn check(conn: &Connection) -> Result<(), Vec<String>> {
    let mut faults = Vec::new();
    match examine(conn, &mut faults) {
        Ok(()) if faults.is_empty() => Ok(()),
        Ok(()) => Err(faults),
        Err(error) => {
            faults.push(format!("sqlite_schema cannot be read: {error}"));
            Err(faults)
        }
    }
}

fn examine(conn: &Connection, faults: &mut Vec<String>) -> rusqlite::Result<()> {
    let mut triggers = conn.prepare("SELECT name, tbl_name FROM sqlite_schema WHERE type = 'trigger'")?;
    for row in triggers.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))? {
        let (name, table) = row?;
        faults.push(format!("trigger {name} on {table}: triggers abort the apply"));
    }
    // `sqlite_sequence` exists exactly where a table has, or had, AUTOINCREMENT.
    let mut tables =
        conn.prepare("SELECT name, type, wr, strict FROM pragma_table_list WHERE schema = 'main'")?;
    let rows = tables.query_map([], |row| {
        Ok((
            row.get::<_, String>(0)?,
            row.get::<_, String>(1)?,
            row.get::<_, bool>(3)?,
        ))
    })?;
    for row in rows {
        let (name, kind, strict) = row?;
        match kind.as_str() {
            "virtual" | "shadow" => faults.push(format!("table {name} is virtual: changesets skip it")),
            "table" if name.starts_with("sqlite_") => {}
            "table" => {
                if !strict {
                    faults.push(format!("table {name} is not STRICT"));
                }
                examine_table(conn, &name, faults)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn examine_table(conn: &Connection, name: &str, faults: &mut Vec<String>) -> rusqlite::Result<()> {
    let mut columns = conn.prepare_cached(
        "SELECT name, \"notnull\", pk, hidden, upper(type) = 'INTEGER' FROM pragma_table_xinfo(?1)",
    )?;
    let rows = columns.query_map([name], |row| {
        let nullable = !row.get::<_, bool>(1)?;
        Ok((
            row.get::<_, String>(0)?,
            nullable,
            row.get::<_, i64>(2)?,
            row.get::<_, i64>(3)?,
            row.get::<_, bool>(4)?,
        ))
    })?;
    let mut keys = 0;
    let mut nullable_keys = Vec::new();
    for row in rows {
        let (column, nullable, key, hidden, integer) = row?;
        if key > 0 {
            keys += 1;
            if nullable {
                nullable_keys.push((column.clone(), integer));
            }
        }
        if hidden > 1 {
            faults.push(format!(
                "table {name}: column {column} is generated: changesets do not carry it"
            ));
        }
    }
    for (column, integer) in nullable_keys {
        // A lone INTEGER PRIMARY KEY is the row's number, which is never NULL.
        if !(integer && keys == 1) {
            faults.push(format!(
                "table {name}: column {column} of the primary key is not NOT NULL"
            ));
        }
    }
    if keys == 0 {
        faults.push(format!("table {name} has no primary key"));
    }
    let sql: Option<String> = conn
        .query_row(
            "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1",
            [name],
            |row| row.get(0),
        )
        .optional()?
        .flatten();
    if sql.is_some_and(|sql| words(&sql).any(|word| word.eq_ignore_ascii_case("AUTOINCREMENT"))) {
        faults.push(format!("table {name} has AUTOINCREMENT"));
    }
    Ok(())
}

/// The words of SQL outside of comments and quotes.
fn words(sql: &str) -> impl Iterator<Item = &str> {
    let bytes = sql.as_bytes();
    let mut spans = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let skip_to = |end: &[u8]| {
            rest[1..]
                .windows(end.len())
                .position(|w| w == end)
                .map_or(bytes.len(), |p| at + 1 + p + end.len())
        };
        match rest[0] {
            b'\'' => at = skip_to(b"'"),
            b'"' => at = skip_to(b"\""),
            b'`' => at = skip_to(b"`"),
            b'[' => at = skip_to(b"]"),
            b'-' if rest.starts_with(b"--") => at = skip_to(b"\n"),
            b'/' if rest.starts_with(b"/*") => at = skip_to(b"*/"),
            c if c.is_ascii_alphanumeric() || c == b'_' => {
                let end = rest
                    .iter()
                    .position(|c| !c.is_ascii_alphanumeric() && *c != b'_')
                    .unwrap_or(rest.len());
                spans.push((at, at + end));
                at += end;
            }
            _ => at += 1,
        }
    }
    spans.into_iter().filter_map(|(start, end)| sql.get(start..end))
}

/// The tables that changesets carry, with their shapes.
pub(crate) fn shapes(conn: &Connection) -> Result<HashMap<String, Shape>, Error> {
    let mut names = conn.prepare(
        "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' ORDER BY name",
    )?;
    let mut shapes = HashMap::new();
    for name in names.query_map([], |row| row.get::<_, String>(0))? {
        let name = name?;
        if name.starts_with("sqlite_") || name.starts_with(OWN) {
            continue;
        }
        let mut columns = conn.prepare_cached("SELECT pk FROM pragma_table_info(?1) ORDER BY cid")?;
        let shape = columns
            .query_map([&name], |row| Ok(row.get::<_, i64>(0)? > 0))?
            .collect::<Result<_, _>>()?;
        shapes.insert(name, shape);
    }
    Ok(shapes)
}

/// The number of the last step that was applied; 0 if none.
pub(crate) fn version(conn: &Connection) -> Result<u32, Error> {
    Ok(
        conn.query_row("SELECT COALESCE(MAX(number), 0) FROM _allod_step", [], |row| {
            row.get(0)
        })?,
    )
}

/// The binary's steps are in order, and those that were applied are the ones that the database records.
pub(crate) fn compare(conn: &Connection, steps: &[Step]) -> Result<(), Error> {
    for pair in steps.windows(2) {
        if pair[1].number <= pair[0].number {
            return Err(Error::Schema(format!(
                "step {} follows step {}",
                pair[1].number, pair[0].number
            )));
        }
    }
    let mut recorded = conn.prepare("SELECT number, name, hash FROM _allod_step ORDER BY number")?;
    let rows = recorded.query_map([], |row| {
        Ok((
            row.get::<_, u32>(0)?,
            row.get::<_, String>(1)?,
            row.get::<_, String>(2)?,
        ))
    })?;
    for row in rows {
        let (number, name, known) = row?;
        match steps.iter().find(|step| step.number == number) {
            None => {
                return Err(Error::Schema(format!(
                    "the database has step {number} ({name}), which this release does not know: start the release that wrote it"
                )));
            }
            Some(step) if hash(step.sql) != known => {
                return Err(Error::Schema(format!(
                    "step {number} ({name}) was applied with other SQL than this release carries: released steps are never changed"
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// SHA-256 of every table's rows, in the order of their keys: what nodes compare at a snapshot.
pub fn table_hashes(conn: &Connection) -> Result<Vec<(String, Hash)>, Error> {
    let mut names: Vec<String> = shapes(conn)?.into_keys().collect();
    names.sort();
    let mut hashes = Vec::with_capacity(names.len());
    for name in names {
        let quoted = name.replace('"', "\"\"");
        let keys: Vec<String> = conn
            .prepare_cached("SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk")?
            .query_map([&name], |row| {
                Ok(format!("\"{}\"", row.get::<_, String>(0)?.replace('"', "\"\"")))
            })?
            .collect::<Result<_, _>>()?;
        let mut rows = conn.prepare(&format!(
            "SELECT * FROM \"{quoted}\" ORDER BY {}",
            keys.join(", ")
        ))?;
        let columns = rows.column_count();
        let mut rows = rows.query([])?;
        let mut hash = Sha256::new();
        while let Some(row) = rows.next()? {
            for column in 0..columns {
                use rusqlite::types::ValueRef;
                let (tag, bytes): (u8, &[u8]) = match row.get_ref(column)? {
                    ValueRef::Null => (0, &[]),
                    ValueRef::Integer(value) => {
                        hash.update([1]);
                        hash.update(value.to_le_bytes());
                        continue;
                    }
                    ValueRef::Real(value) => {
                        hash.update([2]);
                        hash.update(value.to_bits().to_le_bytes());
                        continue;
                    }
                    ValueRef::Text(text) => (3, text),
                    ValueRef::Blob(blob) => (4, blob),
                };
                hash.update([tag]);
                hash.update((bytes.len() as u64).to_le_bytes());
                hash.update(bytes);
            }
        }
        hashes.push((name, hash.finalize().into()));
    }
    Ok(hashes)
}

/// What a write's closure may do: read and change rows of the cloud's own tables. No DDL (a changeset does not carry
/// it), no transactions (the group owns them), no pragmas, no other databases, no touching of the store's tables.
pub(crate) fn authorize_write(context: AuthContext<'_>) -> Authorization {
    match context.action {
        AuthAction::Insert { table_name }
        | AuthAction::Delete { table_name }
        | AuthAction::Update { table_name, .. }
            if table_name.starts_with(OWN) || table_name.starts_with("sqlite_") =>
        {
            Authorization::Deny
        }
        AuthAction::Insert { .. }
        | AuthAction::Delete { .. }
        | AuthAction::Update { .. }
        | AuthAction::Read { .. }
        | AuthAction::Select
        | AuthAction::Recursive => Authorization::Allow,
        AuthAction::Function { function_name } if function_name.eq_ignore_ascii_case("load_extension") => {
            Authorization::Deny
        }
        AuthAction::Function { .. } => Authorization::Allow,
        // `pragma_table_info(…)` and friends only read.
        AuthAction::Pragma { pragma_name, .. } if READING_PRAGMAS.contains(&pragma_name) => {
            Authorization::Allow
        }
        _ => Authorization::Deny,
    }
}

const READING_PRAGMAS: &[&str] = &[
    "table_info",
    "table_xinfo",
    "table_list",
    "foreign_key_check",
    "data_version",
];

/// What a schema step may do: anything but what would differ from node to node.
pub(crate) fn authorize_step(context: AuthContext<'_>) -> Authorization {
    const VARYING: &[&str] = &[
        "random",
        "randomblob",
        "current_time",
        "current_date",
        "current_timestamp",
        "date",
        "time",
        "datetime",
        "julianday",
        "unixepoch",
        "strftime",
        "timediff",
        "load_extension",
        "changes",
        "total_changes",
        "last_insert_rowid",
    ];
    match context.action {
        AuthAction::Function { function_name }
            if VARYING.iter().any(|f| function_name.eq_ignore_ascii_case(f)) =>
        {
            Authorization::Deny
        }
        AuthAction::Transaction { .. }
        | AuthAction::Savepoint { .. }
        | AuthAction::Attach { .. }
        | AuthAction::Detach { .. }
        | AuthAction::CreateTrigger { .. }
        | AuthAction::CreateTempTrigger { .. }
        | AuthAction::CreateVtable { .. } => Authorization::Deny,
        // `ALTER TABLE … ADD COLUMN` looks with it whether the rows of a STRICT table fit the column.
        AuthAction::Pragma {
            pragma_name: "quick_check",
            ..
        } => Authorization::Allow,
        AuthAction::Pragma { pragma_name, .. } if !READING_PRAGMAS.contains(&pragma_name) => {
            Authorization::Deny
        }
        _ => Authorization::Allow,
    }
}
