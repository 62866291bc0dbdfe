//! The loop that keeps the switch's tables equal to the rows, and the rows' status equal to the switch.
//!
//! ```text
//!            event that matters            tables differ               applied
//!   asleep ────────────────────▶ compile ───────────────▶ apply ─────────────────▶ write status ──▶ asleep
//!     ▲                            │ no difference          │ failed
//!     └────────────────────────────┘                        └──▶ wait (doubling, ≤ 5 s) ──▶ compile
//! ```
//!
//! Servers change far more often than their metadata documents do: documents are kept, and a change of a server alone
//! compiles nothing unless its documents changed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::net::{Metadata, Tables};
use rusqlite::Connection;
use rusqlite::types::Value;
use store::Event;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{compile, ports};
use crate::worker::Activity;
use crate::{Cloud, Error, Result, compute};

/// The worker's name.
pub const WORKER: &str = "network";

/// Tables whose rows the switch's tables are made of. `network_status` is what this loop writes, and so is not here.
const NETWORK_TABLES: [&str; 9] = [
    "networks",
    "subnets",
    "ports",
    "network_allocations",
    "port_security_groups",
    "routers",
    "floating_ips",
    "security_groups",
    "security_group_rules",
];
/// Tables that metadata documents are made of beside them, each with the server's id as its key.
const SERVER_TABLES: [&str; 2] = ["compute_servers", "compute_user_data"];

/// How long further events are waited for after the first: a burst is one compilation.
const COALESCE: Duration = Duration::from_millis(10);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// What happened since the last compilation.
#[derive(Debug, Default)]
struct Pending {
    networks: bool,
    servers: HashSet<Uuid>,
}

impl Pending {
    fn everything() -> Self {
        Pending {
            networks: true,
            servers: HashSet::new(),
        }
    }

    fn note(&mut self, event: &Event) {
        for change in &event.changes {
            let table = change.table.as_str();
            if NETWORK_TABLES.contains(&table) {
                self.networks = true;
            } else if SERVER_TABLES.contains(&table)
                && let Some(Value::Text(id)) = change.key.first()
                && let Ok(id) = id.parse()
            {
                self.servers.insert(id);
            }
        }
    }

    fn is_empty(&self) -> bool {
        !self.networks && self.servers.is_empty()
    }
}

/// Starts the loop; it ends when the task is aborted.
pub fn spawn(cloud: Arc<Cloud>) -> JoinHandle<()> {
    // Subscribed before the first compilation: nothing is missed.
    let mut events = cloud.store.subscribe();
    tokio::spawn(async move {
        let mut state = Reconciler {
            cloud,
            pending: Pending::everything(),
            kept: Kept::default(),
            applied: None,
            generation: 0,
        };
        let mut retry = FIRST_RETRY;
        loop {
            let doing = "bringing the switch's tables up to date";
            state.cloud.workers.set(WORKER, Activity::Busy(doing.into()));
            match state.run().await {
                Ok(()) => {
                    retry = FIRST_RETRY;
                    state.cloud.workers.set(WORKER, Activity::Idle);
                    while state.pending.is_empty() {
                        match events.recv().await {
                            Ok(event) => state.pending.note(&event),
                            Err(RecvError::Lagged(_)) => state.forget(),
                            Err(RecvError::Closed) => return,
                        }
                    }
                    tokio::time::sleep(COALESCE).await;
                }
                Err(error) => {
                    let error = error.to_string();
                    tracing::warn!(%error, retry_ms = retry.as_millis(), "the switch's tables are not up to date");
                    let next_try = SystemTime::now() + retry;
                    state
                        .cloud
                        .workers
                        .set(WORKER, Activity::Failed { error, next_try });
                    state.forget();
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(LAST_RETRY);
                }
            }
            // What is queued by now is in the next compilation.
            loop {
                match events.try_recv() {
                    Ok(event) => state.pending.note(&event),
                    Err(TryRecvError::Lagged(_)) => state.forget(),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Closed) => return,
                }
            }
        }
    })
}

/// Documents by server, each with the print of the networks' part of it.
type Kept = HashMap<Uuid, (u64, Option<Metadata>)>;

struct Reconciler {
    cloud: Arc<Cloud>,
    pending: Pending,
    kept: Kept,
    /// What the switch obeys, with generation 0.
    applied: Option<Arc<Tables>>,
    generation: u64,
}

impl Reconciler {
    /// Nothing that is remembered can be relied on.
    fn forget(&mut self) {
        self.pending = Pending::everything();
        self.kept.clear();
    }

    async fn run(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let mut kept = std::mem::take(&mut self.kept);
        let config = self.cloud.config.clone();
        let read = self.cloud.store.read(move |conn| {
            let changed = renew(conn, &mut kept, &pending.servers)?;
            if !changed && !pending.networks {
                return Ok::<_, Error>((None, kept));
            }
            let mut used = Kept::with_capacity(kept.len());
            let tables = compile::compile(conn, &config, &mut |conn, server, print| {
                let documents = match kept.remove(&server) {
                    Some((old, documents)) if old == print => documents,
                    _ => compute::metadata_of(conn, server)?,
                };
                used.insert(server, (print, documents.clone()));
                Ok(documents)
            })?;
            Ok((Some(tables), used))
        });
        let (tables, kept) = read.await?;
        self.kept = kept;
        let Some(tables) = tables.map(Arc::new) else {
            return Ok(());
        };
        if self.applied.as_ref() != Some(&tables) {
            let generation = self.next_generation().await?;
            let numbered = Tables {
                generation,
                ..Tables::clone(&tables)
            };
            if let Err(error) = self.cloud.drivers.switch.apply(Arc::new(numbered)).await {
                // What the switch obeys now is unknown.
                self.applied = None;
                return Err(error.into());
            }
            self.applied = Some(Arc::clone(&tables));
        }
        self.write_status(compile::active(&tables)).await
    }

    /// A generation above all that this switch has seen, also from a daemon before this one.
    async fn next_generation(&mut self) -> Result<u64> {
        if self.generation == 0 {
            self.generation = self.cloud.drivers.switch.status().await?.generation;
        }
        let clock = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_micros());
        self.generation = u64::try_from(clock).unwrap_or(0).max(self.generation + 1);
        Ok(self.generation)
    }

    /// Writes only what is not so already.
    async fn write_status(&self, active: BTreeSet<Uuid>) -> Result<()> {
        let known = self.cloud.store.read(ports::active_ids).await?;
        let known: BTreeMap<Uuid, bool> = known.into_iter().collect();
        let up = active
            .iter()
            .filter(|id| known.get(id) != Some(&true))
            .map(|id| (*id, true));
        let down = known
            .iter()
            .filter(|(id, up)| **up && !active.contains(id))
            .map(|(id, _)| (*id, false));
        let changes: Vec<(Uuid, bool)> = up.chain(down).collect();
        for part in changes.chunks(256) {
            let part = part.to_vec();
            self.cloud
                .store
                .write(WORKER, move |conn| set_status(conn, &part))
                .await?;
        }
        Ok(())
    }
}

/// Ports and floating IPs may have gone since the tables were compiled: a status without its row is not written.
fn set_status(conn: &Connection, changes: &[(Uuid, bool)]) -> Result<()> {
    for (id, active) in changes {
        conn.prepare_cached(
            "INSERT INTO network_status (id, active) SELECT ?1, ?2
             WHERE EXISTS (SELECT 1 FROM ports WHERE id=?1) OR EXISTS (SELECT 1 FROM floating_ips WHERE id=?1)
             ON CONFLICT (id) DO UPDATE SET active=excluded.active",
        )?
        .execute((id.to_string(), active))?;
    }
    Ok(())
}

/// Makes the documents of servers that changed anew; true if any differ.
fn renew(conn: &Connection, kept: &mut Kept, servers: &HashSet<Uuid>) -> Result<bool> {
    let mut changed = false;
    for server in servers {
        // A server without documents here has no ports here.
        let Some((_, documents)) = kept.get_mut(server) else {
            continue;
        };
        let new = compute::metadata_of(conn, *server)?;
        if *documents != new {
            *documents = new;
            changed = true;
        }
    }
    Ok(changed)
}

/// Waits until the switch has all ports of a server.
///
/// # Errors
/// 503 when it takes longer than `limit`.
pub async fn wait_for_server(cloud: &Cloud, server: Uuid, limit: Duration) -> Result<()> {
    let wait = async {
        let mut events = cloud.store.subscribe();
        loop {
            let ports = cloud
                .store
                .read(move |conn| ports::of_server(conn, server))
                .await?;
            if ports.iter().all(|port| port.active || !port.admin_state_up) {
                return Ok(());
            }
            loop {
                match events.recv().await {
                    Ok(event) if event.touches("network_status") || event.touches("ports") => break,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return Err(Error::Unavailable("the store is closing".into())),
                }
            }
        }
    };
    match tokio::time::timeout(limit, wait).await {
        Ok(result) => result,
        Err(_) => Err(Error::Unavailable(format!(
            "the switch did not take the ports of {server} in time"
        ))),
    }
}
