//! The loop that brings this node's servers to what they should be.
//!
//! It wakes on writes to `compute_servers` and on what machines do by themselves, and gives every server that has
//! something to do a task of its own; no two tasks ever work on the same server.

mod plugs;
mod steps;
mod task;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::machine::PowerState;
use store::rusqlite::types::Value;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

use super::{Micros, now};
use crate::worker::Activity;
use crate::{Cloud, Error, Result};

/// The worker's name in the list of workers.
const NAME: &str = "compute";
/// How long rows of deleted servers are kept.
const HISTORY: Duration = Duration::from_secs(30 * 24 * 3600);
/// Rows of history that one write removes.
const HISTORY_CHUNK: u32 = 100;

/// Settings of the loop.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a guest may take to shut down when it is asked to.
    pub graceful_stop: Duration,
    /// How many machines and volumes are made at once.
    pub parallel: usize,
    /// How long a machine waits for the switch to have its ports.
    pub wait_for_ports: Duration,
    /// After this long a resize that no one has said a word on is confirmed; `None`: never.
    pub confirm_resize_after: Option<Duration>,
    /// The first wait after a step failed that is tried again; it doubles up to 64 times this.
    pub retry: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Settings {
            graceful_stop: Duration::from_secs(60),
            parallel: (cores * 2).max(4),
            wait_for_ports: Duration::from_secs(10),
            confirm_resize_after: None,
            retry: Duration::from_secs(1),
        }
    }
}

/// Starts the loop with the default settings. Aborting the handle ends it; guests are not touched.
pub fn spawn(cloud: Arc<Cloud>) -> JoinHandle<()> {
    spawn_with(cloud, Settings::default())
}

/// Starts the loop.
pub fn spawn_with(cloud: Arc<Cloud>, settings: Settings) -> JoinHandle<()> {
    // Subscribed here, so that no write after this call is missed.
    let events = cloud.store.subscribe();
    let machines = cloud.drivers.machines.events();
    let shared = Arc::new(Shared {
        room: Semaphore::new(settings.parallel.max(1)),
        settings,
        slots: Mutex::default(),
        rest: Mutex::default(),
        seen: Mutex::default(),
        told: Mutex::default(),
        cloud,
    });
    tokio::spawn(
        Loop {
            shared,
            tasks: JoinSet::new(),
            events,
            machines,
        }
        .run(),
    )
}

/// What the tasks of all servers share.
struct Shared {
    cloud: Arc<Cloud>,
    settings: Settings,
    /// Makes machines and volumes wait for their turn.
    room: Semaphore,
    /// Servers that have a task.
    slots: Mutex<HashMap<Uuid, Arc<Slot>>>,
    /// Servers that were found to be as they should, with the generation that this holds for.
    rest: Mutex<HashMap<Uuid, u64>>,
    /// Machines as the last scan saw them, each to be used once.
    seen: Mutex<HashMap<Uuid, Option<PowerState>>>,
    /// What machines did by themselves and no one has looked at since.
    told: Mutex<HashMap<Uuid, PowerState>>,
}

/// A server's task, seen from outside.
#[derive(Default)]
struct Slot {
    /// Something happened since the task last looked.
    again: Mutex<bool>,
    /// The same, for a task that waits.
    wake: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Loop {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    events: tokio::sync::broadcast::Receiver<Arc<store::Event>>,
    machines: tokio::sync::broadcast::Receiver<model::machine::MachineEvent>,
}

impl Loop {
    async fn run(mut self) {
        let mut rescan = true;
        let mut machines_gone = false;
        let hour = Duration::from_secs(3600);
        let often = self.shared.settings.confirm_resize_after;
        let often = often.map_or(hour, |after| after.clamp(Duration::from_millis(1), hour));
        let mut housekeeping = tokio::time::interval(often);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if rescan {
                match self.scan().await {
                    Ok(()) => rescan = false,
                    Err(error) => {
                        tracing::warn!(%error, "compute: the node's servers cannot be listed");
                        let wait = self.shared.settings.retry;
                        let next_try = std::time::SystemTime::now() + wait;
                        self.shared.cloud.workers.set(
                            NAME,
                            Activity::Failed {
                                error: error.to_string(),
                                next_try,
                            },
                        );
                        tokio::time::sleep(wait).await;
                        continue;
                    }
                }
            }
            self.show();
            tokio::select! {
                event = self.events.recv() => match event {
                    Ok(event) => {
                        for id in servers_of(&event) {
                            self.poke(id);
                        }
                    }
                    Err(RecvError::Lagged(_)) => rescan = true,
                    Err(RecvError::Closed) => return,
                },
                event = self.machines.recv(), if !machines_gone => match event {
                    Ok(event) => {
                        lock(&self.shared.told).insert(event.id, event.state);
                        self.poke(event.id);
                    }
                    Err(RecvError::Lagged(_)) => rescan = true,
                    Err(RecvError::Closed) => machines_gone = true,
                },
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "compute: the task of a server panicked");
                    }
                }
                _ = housekeeping.tick() => {
                    self.confirm_resizes().await;
                    self.purge().await;
                }
            }
        }
    }

    fn show(&self) {
        let activity = match self.tasks.len() {
            0 => Activity::Idle,
            1 => Activity::Busy("1 server".into()),
            n => Activity::Busy(format!("{n} servers")),
        };
        self.shared.cloud.workers.set(NAME, activity);
    }

    /// The server's task looks again, or gets going.
    fn poke(&mut self, id: Uuid) {
        let mut slots = lock(&self.shared.slots);
        if let Some(slot) = slots.get(&id) {
            *lock(&slot.again) = true;
            slot.wake.notify_one();
            return;
        }
        let slot = Arc::new(Slot::default());
        slots.insert(id, slot.clone());
        drop(slots);
        self.tasks.spawn(task::run(self.shared.clone(), id, slot));
    }

    /// Looks at all servers of this node, and at all machines.
    async fn scan(&mut self) -> Result<()> {
        super::register(&self.shared.cloud).await?;
        // What happened before is told first: a guest that shut down is no guest that has to be started again.
        while let Ok(event) = self.machines.try_recv() {
            lock(&self.shared.told).insert(event.id, event.state);
        }
        let machines = self.shared.cloud.drivers.machines.list().await?;
        let node = self.shared.cloud.config.node.clone();
        let rows = self
            .shared
            .cloud
            .store
            .read(move |conn| {
                let mut query = conn.prepare_cached(
                    "SELECT id, host IS NOT NULL AND host <> ?1, deleted FROM compute_servers \
                     WHERE deleted = 0 OR host = ?1",
                )?;
                let rows = query.query_map([node], |row| {
                    Ok((
                        super::servers::uuid(row, 0)?,
                        (row.get::<_, bool>(1)?, row.get::<_, bool>(2)?),
                    ))
                })?;
                Ok::<_, Error>(rows.collect::<rusqlite::Result<HashMap<_, _>>>()?)
            })
            .await?;
        let machines: HashMap<Uuid, PowerState> = machines.into_iter().collect();
        for (id, state) in &machines {
            if !rows.contains_key(id) {
                // Never ended by us: a row that is missing may be a database that was restored.
                tracing::warn!(server = %id, ?state, "a machine runs here that no server is known for");
            }
        }
        lock(&self.shared.rest).clear();
        for (id, (elsewhere, deleted)) in rows {
            let machine = machines.get(&id).copied();
            if elsewhere || (deleted && machine.is_none()) {
                continue;
            }
            lock(&self.shared.seen).insert(id, machine);
            self.poke(id);
        }
        Ok(())
    }

    /// Confirms resizes that no one has said a word on for long.
    async fn confirm_resizes(&self) {
        let Some(after) = self.shared.settings.confirm_resize_after else {
            return;
        };
        let before = Micros(
            now()
                .0
                .saturating_sub(i64::try_from(after.as_micros()).unwrap_or(i64::MAX)),
        );
        let done = self
            .shared
            .cloud
            .store
            .write(NAME, move |conn| super::change::confirm_old(conn, before))
            .await;
        if let Err(error) = done {
            tracing::warn!(%error, "compute: resizes cannot be confirmed");
        }
    }

    /// Forgets servers that were deleted long ago.
    async fn purge(&self) {
        let before = Micros(
            now()
                .0
                .saturating_sub(i64::try_from(HISTORY.as_micros()).unwrap_or(i64::MAX)),
        );
        loop {
            let removed = self
                .shared
                .cloud
                .store
                .write(NAME, move |conn| {
                    let old = "SELECT id FROM compute_servers WHERE deleted = 1 AND terminated_at < ?1 \
                               ORDER BY terminated_at, id LIMIT ?2";
                    for (table, column) in [
                        ("compute_actions", "server_id"),
                        ("compute_migrations", "server_id"),
                        ("compute_servers", "id"),
                    ] {
                        let sql = format!("DELETE FROM {table} WHERE {column} IN ({old})");
                        let count = conn.execute(&sql, rusqlite::params![before, HISTORY_CHUNK])?;
                        if table == "compute_servers" {
                            return Ok::<_, Error>(count);
                        }
                    }
                    Ok(0)
                })
                .await;
            match removed {
                Ok(removed) if removed >= HISTORY_CHUNK as usize => {}
                Ok(_) => return,
                Err(error) => {
                    tracing::warn!(%error, "compute: old rows cannot be removed");
                    return;
                }
            }
        }
    }
}

/// The servers whose rows an event touches.
fn servers_of(event: &store::Event) -> impl Iterator<Item = Uuid> + '_ {
    event
        .changes
        .iter()
        .filter(|change| {
            ["compute_servers", "compute_disks", "compute_plugs"].contains(&change.table.as_str())
        })
        .filter_map(|change| match change.key.first() {
            Some(Value::Text(id)) => id.parse().ok(),
            _ => None,
        })
}
