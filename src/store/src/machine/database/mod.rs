//! The thread that owns the database: it runs groups of writes and applies entries, one thing at a time.
//!
//! ```text
//!  callers ──Write──▶ pending ──run, record, roll back──▶ in flight ──propose──▶ Raft
//!                        ▲                                    │                   │
//!                        └───────── stale, term lost ─────────┤◀──Apply───────────┘
//!  callers ◀──────────────────── answered ◀───────────────────┘
//! ```
//! One group is in flight at a time. Whatever arrives meanwhile is the next group.

mod follow;
mod house;
mod write;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use tokio::sync::oneshot;

use super::files::{self, Connections};
use super::state::State;
use super::{Config, Role, Shared};
use crate::command::Response;
use crate::error::Error;
use crate::event::Shape;
use crate::log::LogStore;
use crate::raft::{Entry, LogId, Membership, Raft};
use crate::schema;
use crate::writer::{Ran, Waiting};

/// Pages of SQLite's write-ahead log that start a checkpoint.
pub(crate) const CHECKPOINT_PAGES: u32 = 1000;
/// Bytes of free room below which no write is begun: applying what is in the log must always succeed.
const RESERVE: u64 = 16 << 20;

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
