//! How much the disks of machines may be used, and the loop that tells machines when that changes.
//!
//! A volume has the limits that its type and its size give it ([`volume::limits`]), a disk of the server's own those of its
//! flavor (`quota:disk_…`). A machine gets them with its disks. Afterwards they may change with a type, its QoS specs, a volume's size or type:
//! the loop compares what machines were told with what should be, and tells them what differs. After its start it tells all of them
//! once, for an earlier daemon may have ended in the middle.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use model::disk::DiskLimits;
use rusqlite::Connection;
use store::rusqlite::types::Value;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use super::servers::{self, Server};
use crate::worker::Activity;
use crate::{Cloud, Error, Result, volume};

/// The worker's name in the list of workers.
const NAME: &str = "limits";
/// Flavors' extra specs begin with this, as Nova has them.
const PREFIX: &str = "quota:disk_";
/// So long what happened is gathered before it is looked at.
const GATHER: Duration = Duration::from_millis(200);
/// After a machine could not be told; it doubles until the longest.
const RETRY: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(64);
/// Machines that are told at once.
const PARALLEL: usize = 8;

/// Disks of the server's own.
pub(super) fn of_flavor(server: &Server) -> DiskLimits {
    volume::limits::of_specs(&server.flavor.extra_specs, PREFIX, None)
}

/// What one disk of a server may be used.
fn of_disk(conn: &Connection, server: &Server, volume: Uuid) -> Result<DiskLimits> {
    let limits = volume::limits::of_volume(conn, volume)?;
    Ok(limits.unwrap_or_else(|| of_flavor(server)))
}

/// Servers to look at.
#[derive(Debug, Default, PartialEq, Eq)]
struct Todo {
    /// All that run here.
    all: bool,
    servers: BTreeSet<Uuid>,
    /// Whoever has one of these.
    volumes: BTreeSet<Uuid>,
}

impl Todo {
    fn note(&mut self, event: &store::Event) {
        for change in &event.changes {
            let into = match change.table.as_str() {
                "volume_types" | "volume_qos_specs" => {
                    self.all = true;
                    continue;
                }
                "volume_volumes" => &mut self.volumes,
                "compute_servers" | "compute_disks" => &mut self.servers,
                _ => continue,
            };
            match change.key.first() {
                Some(Value::Text(id)) => into.extend(id.parse::<Uuid>().ok()),
                _ => self.all = true,
            }
        }
    }

    fn is_empty(&self) -> bool {
        *self == Todo::default()
    }
}

/// Starts the loop. Aborting the handle ends it.
pub fn spawn(cloud: Arc<Cloud>) -> JoinHandle<()> {
    // Subscribed here, so that no write after this call is missed.
    let events = cloud.store.subscribe();
    tokio::spawn(run(cloud, events))
}

async fn run(cloud: Arc<Cloud>, mut events: broadcast::Receiver<Arc<store::Event>>) {
    let mut todo = Todo {
        all: true,
        ..Todo::default()
    };
    // Nobody knows what machines have been told.
    let mut all_doubtful = true;
    let mut doubtful = BTreeSet::new();
    // When what failed is tried again, and how long after that.
    let mut again: Option<Instant> = None;
    let mut wait = RETRY;
    loop {
        if again.is_some_and(|at| at <= Instant::now()) {
            todo.servers.extend(&doubtful);
            wait = (wait * 2).min(RETRY_MAX);
            again = None;
        }
        let failed = match look(&cloud, &todo, all_doubtful, &doubtful).await {
            Ok((seen, failed)) => {
                todo = Todo::default();
                all_doubtful = false;
                doubtful.retain(|id| !seen.contains(id));
                doubtful.extend(failed);
                (!doubtful.is_empty()).then(|| format!("{} machines do not answer", doubtful.len()))
            }
            Err(error) => {
                tracing::warn!(%error, "limits: what disks may be used cannot be read");
                Some(error.to_string())
            }
        };
        match failed {
            None => {
                (again, wait) = (None, RETRY);
                cloud.workers.set(NAME, Activity::Idle);
            }
            Some(error) => {
                again = again.or(Some(Instant::now() + wait));
                let next_try = SystemTime::now() + wait;
                cloud.workers.set(NAME, Activity::Failed { error, next_try });
            }
        }
        // All that happens within a moment is looked at together.
        let mut until = again;
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = sleep_until(until) => break,
            };
            match event {
                Ok(event) => todo.note(&event),
                Err(RecvError::Lagged(_)) => todo.all = true,
                Err(RecvError::Closed) => return,
            }
            if !todo.is_empty() {
                let gathered = Instant::now() + GATHER;
                until = Some(until.map_or(gathered, |until| until.min(gathered)));
            }
        }
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// Looks at servers that run here, and tells machines what differs; those in doubt everything. Which were looked at, and which
/// of them could not be told.
async fn look(
    cloud: &Cloud,
    todo: &Todo,
    all_doubtful: bool,
    doubtful: &BTreeSet<Uuid>,
) -> Result<(BTreeSet<Uuid>, Vec<Uuid>)> {
    let mut ids = todo.servers.clone();
    if todo.all {
        let machines = cloud.drivers.machines.list().await?;
        ids.extend(machines.into_iter().map(|(id, _)| id));
    }
    if !todo.volumes.is_empty() {
        let volumes = todo.volumes.clone();
        let holders = cloud.store.read(move |conn| {
            let mut query =
                conn.prepare_cached("SELECT server_id FROM compute_disks WHERE volume_id = ?1")?;
            let mut holders = Vec::new();
            for volume in volumes {
                let rows = query.query_map([volume.to_string()], |row| servers::uuid(row, 0))?;
                holders.extend(rows.collect::<rusqlite::Result<Vec<_>>>()?);
            }
            Ok::<_, Error>(holders)
        });
        ids.extend(holders.await?);
    }
    let told = futures::stream::iter(ids.clone())
        .map(|id| async move {
            let doubt = all_doubtful || doubtful.contains(&id);
            (id, tell(cloud, id, doubt).await)
        })
        .buffer_unordered(PARALLEL);
    let failed = told.filter_map(|(id, told)| async move {
        let error = told.err()?;
        tracing::warn!(server = %id, %error, "limits: a machine cannot be told what its disks may be used");
        Some(id)
    });
    let failed = failed.collect().await;
    Ok((ids, failed))
}

/// Tells a machine what differs, or everything.
async fn tell(cloud: &Cloud, id: Uuid, everything: bool) -> Result<()> {
    let machines = &cloud.drivers.machines;
    let has = machines.disk_limits(id).await?;
    if has.is_empty() {
        return Ok(());
    }
    let wanted = cloud.store.read(move |conn| {
        let Some(server) = servers::get(conn, id)? else {
            return Ok::<_, Error>(Vec::new());
        };
        has.into_iter()
            .map(|(volume, has)| Ok((volume, has, of_disk(conn, &server, volume)?)))
            .collect()
    });
    for (volume, has, wanted) in wanted.await? {
        if everything || has != wanted {
            machines.limit_disk(id, volume, &wanted).await?;
        }
    }
    Ok(())
}
