//! Keys that encrypt keys are exchanged with time, and what is not used any more goes.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::warn;

use super::keys::NAME;
use super::{files, rotate_domain, rotate_project};
use crate::identity::now;
use crate::worker::Activity;
use crate::{Cloud, Result};

/// How often it is looked for old ones.
const EVERY: Duration = Duration::from_secs(3600);
/// For so long an image that a project used stays encrypted for it, in microseconds.
const KEPT: i64 = 24 * 3600 * 1_000_000;
const WORKER: &str = "encryption";

/// Exchanges domains' and projects' keys that are older than the operator wants, for as long as the cloud runs.
pub fn spawn(cloud: Arc<Cloud>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            match round(&cloud).await {
                Ok(()) => cloud.workers.set(WORKER, Activity::Idle),
                Err(error) => {
                    warn!(%error, "old keys of disks cannot be exchanged");
                    let next_try = std::time::SystemTime::now() + EVERY;
                    let error = error.to_string();
                    cloud.workers.set(WORKER, Activity::Failed { error, next_try });
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    })
}

async fn round(cloud: &Cloud) -> Result<()> {
    exchange_old(cloud).await?;
    sweep(cloud, now().saturating_sub(KEPT)).await
}

/// Removes the keys of images that no volume of a project is of, and was of since then; and what this node has of lineages that
/// there are no more.
pub(super) async fn sweep(cloud: &Cloud, since: i64) -> Result<()> {
    if cloud.store.leads() {
        cloud
            .store
            .write(NAME, move |conn| files::remove_unused(conn, since))
            .await?;
    }
    let told = |error: crate::driver::DriverError| crate::Error::Internal(error.to_string());
    let disks = &cloud.drivers.disks;
    for lineage in disks.list_lineages().await.map_err(told)? {
        let known = cloud.store.read(move |conn| {
            let mut sql = conn.prepare_cached("SELECT 1 FROM encryption_lineages WHERE lineage = ?1")?;
            Ok::<_, crate::Error>(sql.exists([lineage.to_string()])?)
        });
        if !known.await? {
            disks.delete_lineage(lineage).await.map_err(told)?;
        }
    }
    Ok(())
}

/// Exchanges what is older than the operator wants.
pub(super) async fn exchange_old(cloud: &Cloud) -> Result<()> {
    if !cloud.store.leads() {
        return Ok(());
    }
    let age = i64::try_from(cloud.config.key_lifetime.as_micros()).unwrap_or(i64::MAX);
    let before = now().saturating_sub(age);
    let old = |sql: &'static str| {
        cloud.store.read(move |conn| {
            let mut sql = conn.prepare_cached(sql)?;
            let ids = sql.query_map([before], |row| row.get::<_, String>(0))?;
            Ok::<_, crate::Error>(ids.collect::<std::result::Result<Vec<_>, _>>()?)
        })
    };
    for domain in old("SELECT domain_id FROM encryption_domains WHERE created_at < ?1").await? {
        rotate_domain(cloud, &domain).await?;
    }
    for project in old("SELECT project_id FROM encryption_projects WHERE created_at < ?1").await? {
        rotate_project(cloud, &project).await?;
    }
    Ok(())
}
