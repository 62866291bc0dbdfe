//! Group commit: many closures in one transaction, one changeset, one entry.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rusqlite::session::Session;
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::command::MAX_ENTRY;
use crate::error::Error;
use crate::machine::apply::execute;
use crate::machine::files::{Connections, Mode};
use crate::schema::{self, OWN, Step};

/// A closure that takes longer is named in the log.
const SLOW: Duration = Duration::from_millis(50);
/// Closures in one group at most.
pub(crate) const GROUP: usize = 256;

/// A closure that waits to run, with its answer's address.
pub(crate) trait Job: Send {
    /// Runs it; `false` if it returned an error, whose changes are undone. It may run more than once.
    fn run(&mut self, conn: &Connection) -> bool;
    /// Whoever asked has gone.
    fn abandoned(&self) -> bool;
    /// Answers: what the last run returned, or this error.
    fn finish(self: Box<Self>, outcome: Result<(), Error>);
}

/// A closure, what it returned, and who waits for that.
pub(crate) struct Call<F, T, E> {
    pub f: F,
    pub value: Option<Result<T, E>>,
    pub reply: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> Job for Call<F, T, E>
where
    F: Fn(&Connection) -> Result<T, E> + Send,
    T: Send,
    E: From<Error> + Send,
{
    fn run(&mut self, conn: &Connection) -> bool {
        // A panic undoes this closure alone; the thread that everybody needs lives on.
        let value = catch_unwind(AssertUnwindSafe(|| (self.f)(conn))).unwrap_or_else(|_| {
            Err(E::from(Error::Other(
                "the write panicked and was undone".to_owned(),
            )))
        });
        let ok = value.is_ok();
        self.value = Some(value);
        ok
    }

    fn abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn finish(self: Box<Self>, outcome: Result<(), Error>) {
        let answer = match (outcome, self.value) {
            (Ok(()), Some(value)) => value,
            (Ok(()), None) => Err(E::from(Error::Unknown("the write never ran".to_owned()))),
            (Err(error), _) => Err(E::from(error)),
        };
        // Whoever asked may have gone meanwhile.
        let _ = self.reply.send(answer);
    }
}

/// What waits for the writer.
pub(crate) enum Work {
    Write(Box<dyn Job>),
    Step(Step, oneshot::Sender<Result<(), Error>>),
}

/// One request, from its arrival to its answer.
pub(crate) struct Waiting {
    pub id: Uuid,
    pub actor: String,
    pub work: Work,
    /// The caller named the id: it may have been applied before.
    pub named: bool,
    /// It was proposed before and that proposal's fate is unknown: look for it before running it again.
    pub proposed: bool,
}

impl Waiting {
    pub(crate) fn finish(self, outcome: Result<(), Error>) {
        match self.work {
            Work::Write(job) => job.finish(outcome),
            Work::Step(_, reply) => {
                let _ = reply.send(outcome);
            }
        }
    }

    pub(crate) fn is_step(&self) -> bool {
        matches!(self.work, Work::Step(..))
    }
}

/// What a group did.
pub(crate) struct Group {
    /// The changeset, or a step's SQL.
    pub body: Vec<u8>,
    /// For each request, in order: its changes are in the body, or nothing is to be proposed for it.
    pub ran: Vec<Ran>,
}

/// What became of one request of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ran {
    /// It succeeded.
    Done,
    /// It failed and was undone: its own error is the answer.
    Failed,
    /// The log holds it already.
    Before,
}

/// Collects a changeset, up to what fits into an entry.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_ENTRY {
            return Err(io::Error::other("the changeset is too large"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs a group in a transaction, records its changeset, and rolls everything back. `Err(TooLarge)`: try fewer.
pub(crate) fn run(connections: &Connections, group: &mut [Waiting]) -> Result<Group, Error> {
    let conn = &connections.writer;
    execute(conn, "BEGIN IMMEDIATE")?;
    let result = record(connections, group);
    if !conn.is_autocommit() {
        execute(conn, "ROLLBACK")?;
    }
    result
}

fn record(connections: &Connections, group: &mut [Waiting]) -> Result<Group, Error> {
    let conn = &connections.writer;
    let mut session = Session::new(conn)?;
    session.table_filter(Some(|table: &str| !table.starts_with(OWN)));
    session.attach::<&str>(None)?;
    let mut ran = Vec::with_capacity(group.len());
    for waiting in group.iter_mut() {
        if (waiting.named || waiting.proposed) && was_applied(conn, waiting.id)? {
            ran.push(Ran::Before);
            continue;
        }
        let Work::Write(job) = &mut waiting.work else {
            return Err(Error::Other("a schema step in a group of writes".to_owned()));
        };
        execute(conn, "SAVEPOINT request")?;
        connections.set_mode(Mode::Closure);
        let began = Instant::now();
        let ok = job.run(conn);
        connections.set_mode(Mode::Own);
        let took = began.elapsed();
        if took > SLOW {
            tracing::warn!(actor = waiting.actor, ?took, "a write held everybody up");
        }
        if conn.is_autocommit() {
            // SQLite gave the whole transaction up (no memory, no room): nobody's changes are left.
            return Err(Error::Other("SQLite undid the group's transaction".to_owned()));
        }
        if !ok {
            execute(conn, "ROLLBACK TO request")?;
        }
        execute(conn, "RELEASE request")?;
        ran.push(if ok { Ran::Done } else { Ran::Failed });
    }
    let mut body = Bounded(Vec::new());
    if let Err(error) = session.changeset_strm(&mut body) {
        return Err(match error.sqlite_error().map(|e| e.extended_code & 0xff) {
            Some(rusqlite::ffi::SQLITE_IOERR) => Error::TooLarge {
                size: MAX_ENTRY + 1,
                limit: MAX_ENTRY,
            },
            _ => error.into(),
        });
    }
    Ok(Group { body: body.0, ran })
}

/// Runs a step on the writing connection, checks what it made, and rolls it back.
pub(crate) fn try_step(connections: &Connections, step: &Step) -> Result<(), Error> {
    let conn = &connections.writer;
    execute(conn, "BEGIN IMMEDIATE")?;
    connections.set_mode(Mode::Step);
    let result = conn.execute_batch(step.sql);
    connections.set_mode(Mode::Own);
    let explain = |what: String| Error::Schema(format!("step {} ({}): {what}", step.number, step.name));
    let result = result
        .map_err(|error| explain(error.to_string()))
        .and_then(|()| schema::check(conn).map_err(|faults| explain(faults.join("; "))));
    if !conn.is_autocommit() {
        execute(conn, "ROLLBACK")?;
    }
    result
}

fn was_applied(conn: &Connection, id: Uuid) -> Result<bool, Error> {
    let mut find = conn.prepare_cached("SELECT 1 FROM _allod_request WHERE id = ?1")?;
    Ok(find
        .query_row([id.as_bytes().as_slice()], |_| Ok(()))
        .optional()?
        .is_some())
}
