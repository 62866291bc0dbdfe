//! Groups of writes: from the queue to Raft.

use super::{Database, Flight, Order, RESERVE, Refusal};
use crate::command::{Command, Head, Request, StepHead};
use crate::error::Error;
use crate::machine::Role;
use crate::writer::{self, GROUP, Ran, Waiting, Work};

impl Database {
    pub(super) fn refuses(&self, waiting: &Waiting) -> Option<Error> {
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

    pub(super) fn refuse_pending(&mut self) {
        for waiting in std::mem::take(&mut self.pending) {
            match self.refuses(&waiting) {
                Some(error) => waiting.finish(Err(error)),
                None => self.pending.push_back(waiting),
            }
        }
    }

    pub(super) fn next_group(&mut self, limit: usize) -> Vec<Waiting> {
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
    pub(super) fn write_group(&mut self) {
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
    pub(super) fn prepare(&mut self, group: &mut Vec<Waiting>) -> Result<Option<(Command, Vec<Ran>)>, Error> {
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
    pub(super) fn room(&self, size: usize) -> Result<(), Error> {
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

    pub(super) fn propose(&mut self, command: Command, group: Vec<Waiting>, ran: Vec<Ran>) {
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

    pub(super) fn refused(&mut self, first: uuid::Uuid, error: Refusal) {
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

    pub(super) fn requeue(&mut self, flight: Flight, proposed: bool) {
        for (mut waiting, ran) in flight.group.into_iter().zip(flight.ran).rev() {
            waiting.proposed |= proposed && ran == Ran::Done;
            self.pending.push_front(waiting);
        }
    }
}

/// Answers a group that needs nothing more.
pub(super) fn answer(group: impl IntoIterator<Item = Waiting>, ran: &[Ran]) {
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
