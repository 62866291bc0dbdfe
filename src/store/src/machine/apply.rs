//! The one path by which every node, the leader too, applies an entry.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use openraft::EntryPayload;
use rusqlite::session::{ChangesetItem, ConflictAction, ConflictType};
use rusqlite::{Connection, params};

use super::state::State;
use crate::command::{Command, Head, Kind, Response};
use crate::error::Error;
use crate::event::{self, Change, Event, Operation, Shape};
use crate::raft::{Entry, Membership};
use crate::schema;

/// Entries for which the ids of requests are remembered, and how often the older ones are forgotten.
const REMEMBERED: u64 = 16_384;
const FORGET_EVERY: u64 = 256;

/// What applying an entry did.
pub(crate) struct Outcome {
    pub response: Response,
    pub state: State,
    /// Set if the state changed.
    pub event: Option<Event>,
    /// Set if tables changed.
    pub shapes: Option<HashMap<String, Shape>>,
    /// Who is answered.
    pub head: Option<Head>,
}

/// Applies an entry in one transaction, together with the mark that it is applied. On an error nothing has changed.
pub(crate) fn apply(
    conn: &Connection,
    state: &State,
    shapes: &HashMap<String, Shape>,
    entry: &Entry,
) -> Result<Outcome, Error> {
    execute(conn, "BEGIN IMMEDIATE")?;
    let result = inside(conn, state, shapes, entry).and_then(|outcome| {
        outcome.state.save(conn)?;
        execute(conn, "COMMIT")?;
        Ok(outcome)
    });
    if result.is_err() && !conn.is_autocommit() {
        execute(conn, "ROLLBACK")?;
    }
    result
}

/// Runs a statement that is prepared once.
pub(crate) fn execute(conn: &Connection, sql: &str) -> Result<(), Error> {
    conn.prepare_cached(sql)?.execute([])?;
    Ok(())
}

fn inside(
    conn: &Connection,
    state: &State,
    shapes: &HashMap<String, Shape>,
    entry: &Entry,
) -> Result<Outcome, Error> {
    let mut outcome = Outcome {
        response: Response::Internal,
        state: State {
            applied: Some(entry.log_id),
            ..state.clone()
        },
        event: None,
        shapes: None,
        head: None,
    };
    match &entry.payload {
        EntryPayload::Blank => {}
        EntryPayload::Membership(members) => {
            outcome.state.membership = Membership::new(Some(entry.log_id), members.clone());
        }
        EntryPayload::Normal(command) => normal(conn, state, shapes, entry, command, &mut outcome)?,
    }
    Ok(outcome)
}

fn normal(
    conn: &Connection,
    state: &State,
    shapes: &HashMap<String, Shape>,
    entry: &Entry,
    command: &Command,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let index = entry.log_id.index;
    let diverged = |reason: String| Error::Diverged { index, reason };
    let (kind, head, body) = command.decode()?;
    let fits = head.term == entry.log_id.leader_id.term && head.base_index == state.store_index;
    if !fits {
        // Made on a state that others have changed since: no node applies it, its leader tries again.
        outcome.response = Response::Stale;
        outcome.head = Some(head);
        return Ok(());
    }
    if head.schema_version != state.version {
        return Err(diverged(format!(
            "it was made with schema step {} and this node has step {}",
            head.schema_version, state.version
        )));
    }
    if head.base_hash != state.hash {
        return Err(diverged(
            "the entries before it differ from the leader's".to_owned(),
        ));
    }
    let changes = match (kind, &head.step) {
        (Kind::Step, Some(step)) => {
            let sql = std::str::from_utf8(body).map_err(|e| diverged(e.to_string()))?;
            conn.execute_batch(sql)?;
            conn.prepare_cached(
                "INSERT INTO _allod_step (number, name, hash, log_index) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![step.number, step.name, schema::hash(sql), index as i64])?;
            outcome.state.version = step.number;
            let shapes = schema::shapes(conn)?;
            let changes = everything(&shapes);
            outcome.shapes = Some(shapes);
            changes
        }
        _ => {
            let changes = event::changes(body, |table| shapes.get(table)).map_err(|error| match error {
                Error::Schema(reason) => diverged(reason),
                other => other,
            })?;
            changeset(conn, body).map_err(|error| match error {
                Conflict::At(reason) => diverged(reason),
                Conflict::Failed(error) => error,
            })?;
            changes
        }
    };
    let mut insert = conn.prepare_cached("INSERT INTO _allod_request (id, log_index) VALUES (?1, ?2)")?;
    for request in &head.requests {
        insert.execute(params![request.id.as_bytes().as_slice(), index as i64])?;
    }
    if index.is_multiple_of(FORGET_EVERY) {
        conn.prepare_cached("DELETE FROM _allod_request WHERE log_index < ?1")?
            .execute([index.saturating_sub(REMEMBERED) as i64])?;
    }
    outcome.state.store_index = index;
    outcome.state.hash = command.roll(&state.hash, index);
    outcome.event = Some(Event { index, changes });
    outcome.response = Response::Applied;
    outcome.head = Some(head);
    Ok(())
}

/// "Read every table anew", as changes.
pub(crate) fn everything(shapes: &HashMap<String, Shape>) -> Vec<Change> {
    let mut tables: Vec<&String> = shapes.keys().collect();
    tables.sort();
    let change = |table: &String| Change {
        table: table.clone(),
        operation: Operation::Update,
        key: Vec::new(),
    };
    tables.into_iter().map(change).collect()
}

enum Conflict {
    /// The rows here are not those that the leader had.
    At(String),
    /// SQLite failed for another reason.
    Failed(Error),
}

fn changeset(conn: &Connection, bytes: &[u8]) -> Result<(), Conflict> {
    let found: Arc<Mutex<Option<String>>> = Arc::default();
    let note = found.clone();
    let on_conflict = move |kind: ConflictType, item: ChangesetItem| {
        let table = item
            .op()
            .map_or_else(|_| "a table".to_owned(), |op| op.table_name().to_owned());
        *note.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{kind:?} in {table}"));
        ConflictAction::SQLITE_CHANGESET_ABORT
    };
    let mut input = bytes;
    let result = conn.apply_strm(&mut input, None::<fn(&str) -> bool>, on_conflict);
    let found = found.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (result, found) {
        (Ok(()), None) => Ok(()),
        (_, Some(reason)) => Err(Conflict::At(reason)),
        (Err(error), None) => Err(Conflict::Failed(error.into())),
    }
}
