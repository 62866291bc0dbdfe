//! The thread that owns the database: it runs groups of writes and applies entries, one thing at a time.
//!
//! ```text
//!  callers ──Write──▶ pending ──run, record, roll back──▶ in flight ──propose──▶ Raft
//!                        ▲                                    │                   │
//!                        └───────── stale, term lost ─────────┤◀──Apply───────────┘
//!  callers ◀──────────────────── answered ◀───────────────────┘
//! ```
//! One group is in flight at a time. Whatever arrives meanwhile is the next group.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;

use super::apply::{self, Outcome};
use super::files::{self, Connections};
use super::state::State;
use super::{Config, Role, Shared};
use crate::command::{Command, Head, Request, Response, StepHead};
use crate::error::Error;
use crate::event::{Event, Shape};
use crate::log::LogStore;
use crate::raft::{Entry, LogId, Membership, Raft};
use crate::reader::Readers;
use crate::schema;
use crate::writer::{self, GROUP, Ran, Waiting, Work};

/// Pages of SQLite's write-ahead log that start a checkpoint, and those that make it wait for readers.
pub(crate) const CHECKPOINT_PAGES: u32 = 1000;
const CHECKPOINT_PAGES_HARD: u32 = 16_000;
/// Bytes of free room below which no write is begun: applying what is in the log must always succeed.
const RESERVE: u64 = 16 << 20;
/// Entries and bytes of log after which a snapshot is made.
const SNAPSHOT_ENTRIES: usize = 50_000;
const SNAPSHOT_BYTES: u64 = 16 << 20;
/// How long a full disk is waited for before the next try.
const FULL_PAUSE: Duration = Duration::from_millis(200);

/// What the thread is asked to do.
pub(crate) enum Order {
    Write(Waiting),
    Start(Proposer),
    Ready(oneshot::Sender<Result<(), Error>>),
    Role(Role),
    Refused {
        first: uuid::Uuid,
        error: Refusal,
    },
    Load(oneshot::Sender<Result<(), Error>>),
    Compare(oneshot::Sender<Result<u32, Error>>),
    Apply(Vec<Entry>, oneshot::Sender<Result<Vec<Response>, Error>>),
    Applied(oneshot::Sender<(Option<LogId>, Membership)>),
    Checkpoint(oneshot::Sender<Result<bool, Error>>),
    Install {
        generation: u64,
        expected: Option<LogId>,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    Generation(oneshot::Sender<u64>),
    Stop,
}

/// Why a proposal did not come through Raft.
pub(crate) enum Refusal {
    /// This node does not lead, or does not any more.
    NotLeader,
    /// Raft has stopped.
    Stopped(String),
}

/// How entries reach Raft, and its refusals come back.
pub(crate) struct Proposer {
    pub raft: Raft,
    pub runtime: tokio::runtime::Handle,
    pub orders: mpsc::Sender<Order>,
}

/// The group whose entry is on its way.
struct Flight {
    first: uuid::Uuid,
    group: Vec<Waiting>,
    ran: Vec<Ran>,
}

pub(crate) struct Database {
    config: Arc<Config>,
    shared: Arc<Shared>,
    log: Option<LogStore>,
    generation: u64,
    connections: Connections,
    state: State,
    shapes: HashMap<String, Shape>,
    proposer: Option<Proposer>,
    /// Who waits for this node to lead or follow.
    ready: Vec<oneshot::Sender<Result<(), Error>>>,
    role: Role,
    /// The term whose blank entry, written by this node, was applied.
    blank_term: Option<u64>,
    pending: VecDeque<Waiting>,
    flight: Option<Flight>,
    /// Projections follow events.
    live: bool,
    /// The index at which a snapshot was asked for last.
    snapshot_asked: u64,
    /// Why nothing is applied or written any more.
    stopped: Option<Error>,
}

impl Database {
    /// Opens the current generation, or makes the first.
    pub(crate) fn open(
        config: Arc<Config>,
        shared: Arc<Shared>,
        log: Option<LogStore>,
    ) -> Result<Database, Error> {
        let (generation, new) = match files::current(&config.dir)? {
            Some(generation) => (generation, false),
            None => (1, true),
        };
        if new {
            // The crash of a first start may have left a half-made file.
            files::remove_others(&config.dir, 0);
        }
        let connections = files::open(&files::path(&config.dir, generation), config.vfs)?;
        if new {
            files::set_current(&config.dir, generation)?;
        } else {
            files::remove_others(&config.dir, generation);
        }
        let state = State::load(&connections.applier)?;
        let shapes = schema::shapes(&connections.applier)?;
        shared
            .applied
            .store(state.applied.map_or(0, |id| id.index), Ordering::Release);
        Ok(Database {
            config,
            shared,
            log,
            generation,
            connections,
            state,
            shapes,
            proposer: None,
            ready: Vec::new(),
            role: Role::Unknown,
            blank_term: None,
            pending: VecDeque::new(),
            flight: None,
            live: false,
            snapshot_asked: 0,
            stopped: None,
        })
    }

    /// Works until it is told to stop or nobody is left who could ask.
    pub(crate) fn run(mut self, orders: &mpsc::Receiver<Order>) {
        loop {
            let order = if self.may_write() {
                match orders.try_recv() {
                    Ok(order) => Some(order),
                    Err(mpsc::TryRecvError::Empty) => None,
                    Err(mpsc::TryRecvError::Disconnected) => break,
                }
            } else {
                match orders.recv() {
                    Ok(order) => Some(order),
                    Err(mpsc::RecvError) => break,
                }
            };
            match order {
                Some(Order::Stop) => break,
                Some(Order::Apply(entries, reply)) => {
                    let result = self.apply_all(&entries, orders);
                    let _ = reply.send(result);
                    self.housekeeping();
                }
                Some(order) => self.handle(order),
                None => self.write_group(),
            }
        }
        self.fail_everything(&Error::Stopped("it was closed".to_owned()));
        // Leaves a database without a write-ahead log to recover; if not, the next start does it.
        let _ = self.checkpoint();
    }

    fn may_write(&self) -> bool {
        self.flight.is_none() && !self.pending.is_empty() && self.leads()
    }

    /// This node leads and its own blank entry is applied: it has seen everything that was ever acknowledged.
    fn leads(&self) -> bool {
        matches!(self.role, Role::Leader { term } if self.blank_term == Some(term)) && self.stopped.is_none()
    }

    fn handle(&mut self, order: Order) {
        match order {
            Order::Write(waiting) => match self.refuses(&waiting) {
                Some(error) => waiting.finish(Err(error)),
                None => self.pending.push_back(waiting),
            },
            Order::Start(proposer) => self.proposer = Some(proposer),
            Order::Ready(reply) => {
                self.ready.push(reply);
                self.announce();
            }
            Order::Role(role) => {
                self.role = role;
                if let Role::Stopped(reason) = &self.role {
                    let error = self
                        .stopped
                        .clone()
                        .unwrap_or_else(|| Error::Stopped(reason.clone()));
                    self.stop(error);
                }
                self.refuse_pending();
                self.announce();
            }
            Order::Refused { first, error } => self.refused(first, error),
            Order::Load(reply) => {
                self.live = true;
                let _ = reply.send(self.load_projections());
            }
            Order::Compare(reply) => {
                let result = schema::compare(&self.connections.applier, self.config.steps)
                    .map(|()| self.state.version);
                let _ = reply.send(result);
            }
            Order::Applied(reply) => {
                let _ = reply.send((self.state.applied, self.state.membership.clone()));
            }
            Order::Checkpoint(reply) => {
                let _ = reply.send(self.checkpoint());
            }
            Order::Install {
                generation,
                expected,
                reply,
            } => {
                let _ = reply.send(self.install(generation, expected));
            }
            Order::Generation(reply) => {
                let _ = reply.send(self.generation);
            }
            Order::Apply(..) | Order::Stop => {}
        }
    }

    /// Tells whoever waits that the store works, or why it does not.
    fn announce(&mut self) {
        let result = match &self.stopped {
            Some(error) => Err(error.clone()),
            None if self.leads() || matches!(self.role, Role::Follower { leader: Some(_) }) => Ok(()),
            None => return,
        };
        for ready in self.ready.drain(..) {
            let _ = ready.send(result.clone());
        }
    }

    // Writing.

    fn refuses(&self, waiting: &Waiting) -> Option<Error> {
        if let Some(error) = &self.stopped {
            return Some(error.clone());
        }
        match self.role {
            // A request that was proposed before may have come through: only its id can tell.
            Role::Follower { leader: Some(_) } if waiting.proposed => Some(Error::Unknown(
                "this node lost the leadership meanwhile".to_owned(),
            )),
            Role::Follower { leader: Some(leader) } => Some(Error::NotLeader { leader: Some(leader) }),
            _ => None,
        }
    }

    fn refuse_pending(&mut self) {
        for waiting in std::mem::take(&mut self.pending) {
            match self.refuses(&waiting) {
                Some(error) => waiting.finish(Err(error)),
                None => self.pending.push_back(waiting),
            }
        }
    }

    fn next_group(&mut self, limit: usize) -> Vec<Waiting> {
        let mut group: Vec<Waiting> = Vec::new();
        while group.len() < limit
            && let Some(next) = self.pending.front()
        {
            if next.is_step() && !group.is_empty() {
                break;
            }
            let Some(next) = self.pending.pop_front() else {
                break;
            };
            if let Work::Write(job) = &next.work
                && job.abandoned()
                && !next.proposed
            {
                continue;
            }
            let alone = next.is_step();
            group.push(next);
            if alone {
                break;
            }
        }
        group
    }

    /// Runs a group and proposes what it changed.
    fn write_group(&mut self) {
        let mut limit = GROUP;
        loop {
            let mut group = self.next_group(limit);
            if group.is_empty() {
                return;
            }
            match self.prepare(&mut group) {
                Ok(Some((command, ran))) => return self.propose(command, group, ran),
                Ok(None) => return,
                Err(Error::TooLarge { .. }) if group.len() > 1 => {
                    limit = group.len() / 2;
                    for waiting in group.into_iter().rev() {
                        self.pending.push_front(waiting);
                    }
                }
                Err(error) => {
                    group
                        .into_iter()
                        .for_each(|waiting| waiting.finish(Err(error.clone())));
                    return;
                }
            }
        }
    }

    /// The entry of a group; `None` if it changed nothing and was answered.
    fn prepare(&mut self, group: &mut Vec<Waiting>) -> Result<Option<(Command, Vec<Ran>)>, Error> {
        let mut head = Head {
            term: self.blank_term.unwrap_or_default(),
            base_index: self.state.store_index,
            base_hash: self.state.hash,
            schema_version: self.state.version,
            time: (time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000) as i64,
            requests: Vec::new(),
            step: None,
        };
        let (body, ran) = match group.first().map(|waiting| &waiting.work) {
            Some(Work::Step(step, _)) => {
                if step.number <= self.state.version {
                    group.drain(..).for_each(|waiting| waiting.finish(Ok(())));
                    return Ok(None);
                }
                let step = *step;
                writer::try_step(&self.connections, &step)?;
                head.step = Some(StepHead {
                    number: step.number,
                    name: step.name.to_owned(),
                });
                (step.sql.as_bytes().to_vec(), vec![Ran::Done])
            }
            _ => {
                let done = writer::run(&self.connections, group)?;
                if done.body.is_empty() {
                    answer(group.drain(..), &done.ran);
                    return Ok(None);
                }
                (done.body, done.ran)
            }
        };
        head.requests = group
            .iter()
            .zip(&ran)
            .filter(|(_, ran)| **ran == Ran::Done)
            .map(|(waiting, _)| Request {
                id: waiting.id,
                actor: waiting.actor.clone(),
            })
            .collect();
        let command = Command::encode(&head, &body)?;
        self.room(command.as_bytes().len())?;
        Ok(Some((command, ran)))
    }

    /// There is room to log this entry and to apply it.
    fn room(&self, size: usize) -> Result<(), Error> {
        let Some(log) = &self.log else { return Ok(()) };
        let needed = RESERVE + 8 * size as u64;
        let dir = &self.config.dir;
        let free = (self.config.free)(dir).map_err(Error::io(format!("free room of {}", dir.display())))?;
        let full = || Error::DiskFull {
            free,
            needed,
            dir: dir.display().to_string(),
        };
        if free < needed {
            return Err(full());
        }
        log.reserve(size).map_err(|error| match error.kind() {
            std::io::ErrorKind::StorageFull => full(),
            _ => Error::io("make room in the log")(error),
        })
    }

    fn propose(&mut self, command: Command, group: Vec<Waiting>, ran: Vec<Ran>) {
        let first = group
            .iter()
            .zip(&ran)
            .find(|(_, ran)| **ran == Ran::Done)
            .map(|(waiting, _)| waiting.id);
        let (Some(proposer), Some(first)) = (&self.proposer, first) else {
            let error = Error::Stopped("Raft does not run".to_owned());
            return group
                .into_iter()
                .for_each(|waiting| waiting.finish(Err(error.clone())));
        };
        self.flight = Some(Flight { first, group, ran });
        let (raft, orders) = (proposer.raft.clone(), proposer.orders.clone());
        proposer.runtime.spawn(async move {
            // Success is seen when the entry is applied, on the database's thread.
            if let Err(error) = raft.client_write(command).await {
                let error = match error {
                    openraft::error::RaftError::APIError(_) => Refusal::NotLeader,
                    openraft::error::RaftError::Fatal(fatal) => Refusal::Stopped(fatal.to_string()),
                };
                let _ = orders.send(Order::Refused { first, error });
            }
        });
    }

    fn refused(&mut self, first: uuid::Uuid, error: Refusal) {
        let Some(flight) = self.flight.take_if(|flight| flight.first == first) else {
            return;
        };
        match error {
            Refusal::NotLeader => {
                // Perhaps the next leader has the entry. It is looked for by id, if this node leads again.
                if matches!(self.role, Role::Leader { .. }) {
                    self.role = Role::Unknown;
                }
                self.requeue(flight, true);
                self.refuse_pending();
            }
            Refusal::Stopped(reason) => {
                let error = self.stopped.clone().unwrap_or(Error::Stopped(reason));
                flight
                    .group
                    .into_iter()
                    .for_each(|waiting| waiting.finish(Err(error.clone())));
                self.stop(error);
            }
        }
    }

    fn requeue(&mut self, flight: Flight, proposed: bool) {
        for (mut waiting, ran) in flight.group.into_iter().zip(flight.ran).rev() {
            waiting.proposed |= proposed && ran == Ran::Done;
            self.pending.push_front(waiting);
        }
    }

    // Applying.

    pub(crate) fn apply_all(
        &mut self,
        entries: &[Entry],
        orders: &mpsc::Receiver<Order>,
    ) -> Result<Vec<Response>, Error> {
        let mut responses = Vec::with_capacity(entries.len());
        for entry in entries {
            responses.push(self.apply(entry, orders)?);
        }
        Ok(responses)
    }

    fn apply(&mut self, entry: &Entry, orders: &mpsc::Receiver<Order>) -> Result<Response, Error> {
        if let Some(error) = &self.stopped {
            return Err(error.clone());
        }
        if self
            .state
            .applied
            .is_some_and(|applied| applied.index >= entry.log_id.index)
        {
            return Ok(Response::Internal);
        }
        let outcome = loop {
            match apply::apply(&self.connections.applier, &self.state, &self.shapes, entry) {
                Ok(outcome) => break outcome,
                Err(error) if error.is_full() => self.wait_for_room(&error, orders)?,
                Err(error) => {
                    tracing::error!(%error, index = entry.log_id.index, "an entry cannot be applied");
                    self.stop(error.clone());
                    return Err(error);
                }
            }
        };
        let Outcome {
            response,
            state,
            event,
            shapes,
            head,
        } = outcome;
        self.state = state;
        if let Some(shapes) = shapes {
            self.shapes = shapes;
        }
        self.shared.applied.store(entry.log_id.index, Ordering::Release);
        if matches!(entry.payload, openraft::EntryPayload::Blank)
            && entry.log_id.leader_id.node_id == self.config.id
        {
            self.blank_term = Some(entry.log_id.leader_id.term);
            self.announce();
        }
        let step = head.as_ref().is_some_and(|head| head.step.is_some());
        if let Some(event) = event {
            self.publish(event, step)?;
        }
        if let Some(head) = head {
            self.settle(&head, response);
        }
        Ok(response)
    }

    /// Lets the projections follow, then everybody else.
    fn publish(&mut self, event: Event, reload: bool) -> Result<(), Error> {
        if self.live {
            let behind = self
                .config
                .steps
                .last()
                .is_some_and(|step| step.number > self.state.version);
            let followed = if reload || behind {
                self.load_projections()
            } else {
                let conn = &self.connections.applier;
                self.config
                    .projections
                    .iter()
                    .try_for_each(|projection| projection.apply(conn, &event))
            };
            if let Err(error) = followed {
                tracing::error!(%error, "a projection cannot follow: it is built anew");
                if let Err(error) = self.load_projections() {
                    self.stop(error.clone());
                    return Err(error);
                }
            }
        }
        // Nobody listening is no error.
        let _ = self.shared.events.send(Arc::new(event));
        Ok(())
    }

    /// Builds the projections anew, once the schema that they read is there (a node that joins has to catch up).
    fn load_projections(&self) -> Result<(), Error> {
        if self
            .config
            .steps
            .last()
            .is_some_and(|step| step.number > self.state.version)
        {
            return Ok(());
        }
        let conn = &self.connections.applier;
        self.config
            .projections
            .iter()
            .try_for_each(|projection| projection.load(conn))
    }

    /// Answers the group whose entry this was.
    fn settle(&mut self, head: &Head, response: Response) {
        let ours = |flight: &mut Flight| {
            head.requests
                .first()
                .is_some_and(|request| request.id == flight.first)
        };
        let Some(flight) = self.flight.take_if(ours) else {
            return;
        };
        match response {
            Response::Applied => answer(flight.group, &flight.ran),
            Response::Stale | Response::Internal => self.requeue(flight, false),
        }
    }

    /// The disk is full while an entry must be applied. It is in the log: it waits here. Writers are told meanwhile.
    fn wait_for_room(&mut self, error: &Error, orders: &mpsc::Receiver<Order>) -> Result<(), Error> {
        tracing::error!(%error, "the state's disk is full: an entry waits to be applied");
        let dir = &self.config.dir;
        let full = Error::DiskFull {
            free: (self.config.free)(dir).unwrap_or(0),
            needed: RESERVE,
            dir: dir.display().to_string(),
        };
        if let Some(flight) = self.flight.take() {
            // It is in the log and will be applied; its own answer must not wait for that.
            let unknown = Error::Unknown(format!("{full}; it takes effect once there is room"));
            flight
                .group
                .into_iter()
                .for_each(|waiting| waiting.finish(Err(unknown.clone())));
        }
        let until = std::time::Instant::now() + FULL_PAUSE;
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            for waiting in std::mem::take(&mut self.pending) {
                waiting.finish(Err(full.clone()));
            }
            match orders.recv_timeout(left) {
                Ok(Order::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::Stopped("it was closed while the disk was full".to_owned()));
                }
                Ok(order) => self.handle(order),
                Err(mpsc::RecvTimeoutError::Timeout) => return Ok(()),
            }
        }
    }

    // Keeping house.

    fn housekeeping(&mut self) {
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
    fn checkpoint(&mut self) -> Result<bool, Error> {
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
    fn ask_for_snapshot(&mut self) {
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

    fn path(&self) -> PathBuf {
        files::path(&self.config.dir, self.generation)
    }

    /// Swaps the database for the file of another generation, which is complete and synced.
    fn install(&mut self, generation: u64, expected: Option<LogId>) -> Result<(), Error> {
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

    fn stop(&mut self, error: Error) {
        self.stopped.get_or_insert(error.clone());
        self.fail_everything(&error);
        self.announce();
    }

    fn fail_everything(&mut self, error: &Error) {
        let flying = self.flight.take().map(|flight| flight.group).unwrap_or_default();
        for waiting in flying.into_iter().chain(std::mem::take(&mut self.pending)) {
            waiting.finish(Err(error.clone()));
        }
    }
}

/// Answers a group that needs nothing more.
fn answer(group: impl IntoIterator<Item = Waiting>, ran: &[Ran]) {
    for (waiting, ran) in group.into_iter().zip(ran) {
        match ran {
            // Applied before, and this process does not hold its answer.
            Ran::Before if !waiting.proposed => {
                let id = waiting.id;
                waiting.finish(Err(Error::AlreadyApplied(id)));
            }
            Ran::Done | Ran::Failed | Ran::Before => waiting.finish(Ok(())),
        }
    }
}
