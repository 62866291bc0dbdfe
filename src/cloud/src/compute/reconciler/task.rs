//! One server's task: plan, carry out, look again, until nothing is left to do.

use std::sync::Arc;
use std::time::SystemTime;

use model::machine::PowerState;
use uuid::Uuid;

use super::steps::{Failure, Flow};
use super::{NAME, Shared, Slot, lock, plugs, steps};
use crate::compute::servers::{self, Server};
use crate::compute::state::{Step, Task, plan};
use crate::worker::Activity;
use crate::{Error, Result};

/// How often the repair of a machine that should run is tried before the server is in `ERROR`.
const REPAIRS: u32 = 5;

/// Takes the server out of the list of those that have a task, however the task ends.
struct Leave {
    shared: Arc<Shared>,
    id: Uuid,
}

impl Drop for Leave {
    fn drop(&mut self) {
        lock(&self.shared.slots).remove(&self.id);
        self.shared.cloud.workers.remove(&worker_name(self.id));
    }
}

fn worker_name(id: Uuid) -> String {
    format!("{NAME}/server/{id}")
}

/// The task.
pub(super) async fn run(shared: Arc<Shared>, id: Uuid, slot: Arc<Slot>) {
    let leave = Leave {
        shared: shared.clone(),
        id,
    };
    let mut attempts = 0;
    loop {
        *lock(&slot.again) = false;
        match once(&shared, id, &slot, attempts).await {
            Ok(()) => {
                attempts = 0;
                // Under the lock of the slots, or a poke in between would be lost.
                let mut slots = lock(&shared.slots);
                if !*lock(&slot.again) {
                    slots.remove(&id);
                    drop(slots);
                    break;
                }
            }
            Err(error) => {
                attempts += 1;
                let wait = shared.settings.retry * 2u32.pow((attempts - 1).min(6));
                tracing::warn!(server = %id, %error, ?wait, "a step failed and is tried again");
                let next_try = SystemTime::now() + wait;
                let activity = Activity::Failed {
                    error: error.to_string(),
                    next_try,
                };
                shared.cloud.workers.set(&worker_name(id), activity);
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = slot.wake.notified() => {}
                }
            }
        }
    }
    drop(leave);
}

/// Carries out what there is to do. An error means: try again later.
async fn once(shared: &Shared, id: Uuid, slot: &Slot, attempts: u32) -> Result<()> {
    loop {
        let Some(server) = read(shared, id).await? else {
            return Ok(());
        };
        if server
            .host
            .as_ref()
            .is_some_and(|host| *host != shared.cloud.config.node)
        {
            return Ok(());
        }
        let at_rest = lock(&shared.rest).get(&id) == Some(&server.generation);
        if server.task_state.is_none() && !server.deleted && plugs::plug(shared, &server).await? {
            continue;
        }
        if server.task_state.is_none() && at_rest && !lock(&shared.told).contains_key(&id) {
            return Ok(());
        }
        let machine = machine(shared, &server).await?;
        let steps = plan(server.state(), machine, shared.settings.graceful_stop);
        if steps.is_empty() {
            if server.deleted {
                lock(&shared.rest).remove(&id);
            } else if server.task_state.is_none() {
                lock(&shared.rest).insert(id, server.generation);
            }
            return Ok(());
        }
        tracing::debug!(server = %id, task = ?server.task_state, ?machine, ?steps, "plan");
        for step in steps {
            match steps::perform(shared, &server, step, slot).await {
                Ok(Flow::Next) => {}
                Ok(Flow::Replan) => break,
                Err(failure) => {
                    failed(shared, &server, step, failure, attempts).await?;
                    break;
                }
            }
        }
        if server.deleted {
            return Ok(());
        }
    }
}

/// What follows from a step that failed: `ERROR`, or another try.
async fn failed(shared: &Shared, server: &Server, step: Step, failure: Failure, attempts: u32) -> Result<()> {
    let error = match failure {
        Failure::Store(error) => return Err(error),
        Failure::Driver(error) => error,
    };
    tracing::warn!(server = %server.id, ?step, %error, "step failed");
    let deleting = server.deleted || server.task_state == Some(Task::Deleting);
    let repairing = server.task_state.is_none();
    // By then there is an image of it, and perhaps no disk.
    let leaving =
        server.task_state == Some(Task::Shelving) && matches!(step, Step::Forget | Step::DeleteDisks);
    if deleting || leaving || (repairing && attempts < REPAIRS) {
        return Err(Error::Internal(error.to_string()));
    }
    if server.task_state == Some(Task::ImageSnapshot) {
        return steps::fail_snapshot(shared, server, &error).await;
    }
    if server.task_state == Some(Task::Unshelving) && steps::back_to_shelf(shared, server, &error).await? {
        return Ok(());
    }
    steps::fail(shared, server, &error).await
}

async fn read(shared: &Shared, id: Uuid) -> Result<Option<Server>> {
    shared.cloud.store.read(move |conn| servers::get(conn, id)).await
}

/// The machine, where the plan depends on it: as the node sees it, or as it told before its process ended.
async fn machine(shared: &Shared, server: &Server) -> Result<Option<PowerState>> {
    let seen = lock(&shared.seen).remove(&server.id);
    if !server.deleted && !matches!(server.task_state, None | Some(Task::Pausing | Task::Unpausing)) {
        return Ok(None);
    }
    let told = lock(&shared.told).remove(&server.id);
    let now = match seen {
        Some(seen) if told.is_none() => seen,
        _ => {
            let machines = shared.cloud.drivers.machines.list().await?;
            machines
                .into_iter()
                .find(|(id, _)| *id == server.id)
                .map(|(_, state)| state)
        }
    };
    Ok(match (now, told) {
        (None, Some(state @ (PowerState::Shutdown | PowerState::Crashed))) => Some(state),
        (now, _) => now,
    })
}
