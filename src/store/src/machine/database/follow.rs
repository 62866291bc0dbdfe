//! Applying entries, and telling everybody.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::write::answer;
use super::{Database, Flight, Order, RESERVE};
use crate::command::{Head, Response};
use crate::error::Error;
use crate::event::Event;
use crate::machine::apply::{self, Outcome};
use crate::raft::Entry;

/// How long a full disk is waited for before the next try.
const FULL_PAUSE: Duration = Duration::from_millis(200);

impl Database {
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

    pub(super) fn apply(&mut self, entry: &Entry, orders: &mpsc::Receiver<Order>) -> Result<Response, Error> {
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
    pub(super) fn publish(&mut self, event: Event, reload: bool) -> Result<(), Error> {
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
    pub(super) fn load_projections(&self) -> Result<(), Error> {
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
    pub(super) fn settle(&mut self, head: &Head, response: Response) {
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
    pub(super) fn wait_for_room(
        &mut self,
        error: &Error,
        orders: &mpsc::Receiver<Order>,
    ) -> Result<(), Error> {
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
}
