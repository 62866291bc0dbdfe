//! The loop that keeps the switch's tables equal to the rows, and the rows' status equal to the switch.
//!
//! ```text
//!            event that matters            tables differ               applied
//!   asleep ────────────────────▶ compile ───────────────▶ apply ─────────────────▶ write status ──▶ asleep
//!     ▲                            │ no difference          │ failed
//!     └────────────────────────────┘                        └──▶ wait (doubling, ≤ 5 s) ──▶ compile
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::net::Tables;
use rusqlite::Connection;
use store::Event;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{compile, ports};
use crate::worker::Activity;
use crate::{Cloud, Error, Result};

/// The worker's name.
pub const WORKER: &str = "network";

/// Tables whose rows the switch's tables are made of. `network_status` is what this loop writes, and so is not here.
const WATCHED: [&str; 13] = [
    "networks",
    "subnets",
    "ports",
    "network_allocations",
    "port_security_groups",
    "routers",
    "floating_ips",
    "security_groups",
    "security_group_rules",
    "compute_servers",
    "compute_user_data",
    "compute_key_pairs",
    "projects",
];

/// How long further events are waited for after the first: a burst is one compilation.
const COALESCE: Duration = Duration::from_millis(10);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

fn matters(event: &Event) -> bool {
    event
        .changes
        .iter()
        .any(|change| WATCHED.contains(&change.table.as_str()))
}

/// Starts the loop; it ends when the task is aborted.
pub fn spawn(cloud: Arc<Cloud>) -> JoinHandle<()> {
    // Subscribed before the first compilation: nothing is missed.
    let mut events = cloud.store.subscribe();
    tokio::spawn(async move {
        let mut state = Reconciler {
            cloud,
            applied: None,
            generation: 0,
        };
        let mut retry = FIRST_RETRY;
        loop {
            state.cloud.workers.set(
                WORKER,
                Activity::Busy("bringing the switch's tables up to date".into()),
            );
            match state.run().await {
                Ok(()) => {
                    retry = FIRST_RETRY;
                    state.cloud.workers.set(WORKER, Activity::Idle);
                    loop {
                        match events.recv().await {
                            Ok(event) if matters(&event) => break,
                            Ok(_) => {}
                            Err(RecvError::Lagged(_)) => break,
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
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(LAST_RETRY);
                }
            }
            // What is queued by now is in the next compilation.
            while !matches!(
                events.try_recv(),
                Err(tokio::sync::broadcast::error::TryRecvError::Empty)
            ) {
                if events.is_closed() {
                    return;
                }
            }
        }
    })
}

struct Reconciler {
    cloud: Arc<Cloud>,
    /// What the switch obeys, with generation 0.
    applied: Option<Arc<Tables>>,
    generation: u64,
}

impl Reconciler {
    async fn run(&mut self) -> Result<()> {
        let config = self.cloud.config.clone();
        let tables = self
            .cloud
            .store
            .read(move |conn| compile::compile(conn, &config, &mut crate::compute::metadata_of))
            .await?;
        if self.applied.as_deref() != Some(&tables) {
            let generation = self.next_generation().await?;
            let numbered = Tables {
                generation,
                ..tables.clone()
            };
            if let Err(error) = self.cloud.drivers.switch.apply(Arc::new(numbered)).await {
                // What the switch obeys now is unknown.
                self.applied = None;
                return Err(error.into());
            }
            self.applied = Some(Arc::new(tables.clone()));
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
