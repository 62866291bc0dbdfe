//! The loop that does what rows of volumes, snapshots and backups say has to be done.
//!
//! It wakes on writes to their tables. Every row with a [`Task`] gets one step at a time: the driver is called, which may be
//! repeated, and then the row says what is from now on. A daemon that is killed in between finds the task in the row again.
//!
//! Most steps are short, for clones share their bytes. Those that go through all bytes of a volume have turns of their own, and a
//! project has one of them at a time, so that nobody's large volumes stop the others' work.

mod steps;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use uuid::Uuid;

use crate::worker::Activity;
use crate::{Cloud, Error, Result};

/// The worker's name in the list of workers.
const NAME: &str = "volume";
/// Steps at once: they are work for the disk.
const PARALLEL: usize = 4;
/// Beside them, steps that go through all bytes of a volume.
const PARALLEL_LONG: usize = 2;
/// After the database could not be written.
const RETRY: Duration = Duration::from_secs(2);

/// Whose a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Item {
    Volume(Uuid),
    Snapshot(Uuid),
    Backup(Uuid),
}

impl Item {
    fn id(self) -> Uuid {
        match self {
            Item::Volume(id) | Item::Snapshot(id) | Item::Backup(id) => id,
        }
    }
}

/// A row that has something to be done.
struct Job {
    item: Item,
    /// It goes through all bytes of a volume, for this project.
    long: Option<String>,
}

/// Where tasks are, and which of them go through all bytes of a volume.
const TABLES: [(&str, fn(Uuid) -> Item, &str); 3] = [
    (
        "volume_volumes",
        Item::Volume,
        "task IN ('upload', 'restore') OR task = 'create' AND origin = 'backup'",
    ),
    ("volume_snapshots", Item::Snapshot, "FALSE"),
    ("volume_backups", Item::Backup, "task = 'create'"),
];

/// Starts the loop. Aborting the handle ends it; steps under way are repeated by the next one.
pub fn spawn(cloud: Arc<Cloud>) -> JoinHandle<()> {
    // Subscribed here, so that no write after this call is missed.
    let events = cloud.store.subscribe();
    tokio::spawn(run(cloud, events))
}

async fn run(cloud: Arc<Cloud>, mut events: broadcast::Receiver<Arc<store::Event>>) {
    let room = Arc::new(Semaphore::new(PARALLEL));
    let long_room = Arc::new(Semaphore::new(PARALLEL_LONG));
    let mut tasks: JoinSet<(Item, Result<()>)> = JoinSet::new();
    // With the project of those that are long.
    let mut running: HashMap<Item, Option<String>> = HashMap::new();
    // Rows whose last step could not be written down.
    let mut later: HashMap<Item, Instant> = HashMap::new();
    loop {
        let failed = match steps::waiting(&cloud).await {
            Ok(jobs) => {
                let now = Instant::now();
                later.retain(|_, at| *at > now);
                for Job { item, long } in jobs {
                    let another = long.is_some() && running.values().any(|project| *project == long);
                    if another || later.contains_key(&item) || running.contains_key(&item) {
                        continue;
                    }
                    let room = if long.is_some() { &long_room } else { &room };
                    let (cloud, room) = (cloud.clone(), room.clone());
                    running.insert(item, long);
                    tasks.spawn(async move {
                        let _turn = room.acquire_owned().await;
                        (item, steps::perform(&cloud, item).await)
                    });
                }
                None
            }
            Err(error) => {
                tracing::warn!(%error, "volume: what has to be done cannot be read");
                Some(error)
            }
        };
        show(&cloud, tasks.len(), failed.as_ref());
        let next = match &failed {
            Some(_) => Some(Instant::now() + RETRY),
            None => later.values().min().copied(),
        };
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(event) if TABLES.iter().any(|(table, ..)| event.touches(table)) => break,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return,
                },
                Some(ended) = tasks.join_next_with_id(), if !tasks.is_empty() => {
                    match ended {
                        Ok((_, (item, result))) => {
                            running.remove(&item);
                            if let Err(error) = result {
                                tracing::warn!(?item, %error, "volume: a step is tried again");
                                later.insert(item, Instant::now() + RETRY);
                            }
                        }
                        // A panic: nobody knows whose. All are looked at again when the others have ended.
                        Err(error) => {
                            tracing::error!(%error, "volume: a step panicked");
                            if tasks.is_empty() {
                                running.clear();
                            }
                        }
                    }
                    break;
                }
                () = wait(next) => break,
            }
        }
    }
}

async fn wait(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

fn show(cloud: &Cloud, tasks: usize, failed: Option<&Error>) {
    let activity = match (failed, tasks) {
        (Some(error), _) => Activity::Failed {
            error: error.to_string(),
            next_try: SystemTime::now() + RETRY,
        },
        (None, 0) => Activity::Idle,
        (None, tasks) => Activity::Busy(format!("{tasks} volumes, snapshots or backups")),
    };
    cloud.workers.set(NAME, activity);
}
