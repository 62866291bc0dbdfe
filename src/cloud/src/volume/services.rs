//! What an administrator sees of the services behind volumes: one process here.

use rusqlite::params;

use super::pool;
use crate::compute::{Micros, now};
use crate::{Cloud, Context, Error, Result};

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Service {
    pub binary: &'static str,
    pub host: String,
    pub zone: String,
    /// Why an administrator has disabled it; empty: no reason was given.
    pub disabled: Option<String>,
    pub updated_at: Micros,
}

/// The parts that Cinder has processes for.
pub const BINARIES: [&str; 3] = ["cinder-scheduler", "cinder-volume", "cinder-backup"];

fn host_of(cloud: &Cloud, binary: &str) -> String {
    match binary {
        "cinder-volume" => format!("{}@{}", cloud.config.node, pool::BACKEND),
        _ => cloud.config.node.clone(),
    }
}

/// All services.
pub async fn list(cloud: &Cloud, ctx: &Context) -> Result<Vec<Service>> {
    ctx.require("volume_services", "list")?;
    let disabled = cloud.store.read(|conn| {
        let mut query = conn.prepare_cached("SELECT host, binary, disabled_reason FROM volume_services")?;
        let rows = query.query_map([], |row| {
            Ok((
                (row.get::<_, String>(0)?, row.get::<_, String>(1)?),
                row.get::<_, Option<String>>(2)?.unwrap_or_default(),
            ))
        })?;
        Ok::<_, Error>(rows.collect::<rusqlite::Result<std::collections::HashMap<_, _>>>()?)
    });
    let disabled = disabled.await?;
    Ok(BINARIES
        .iter()
        .map(|&binary| {
            let host = host_of(cloud, binary);
            Service {
                binary,
                disabled: disabled.get(&(host.clone(), binary.to_owned())).cloned(),
                host,
                zone: cloud.config.availability_zone.clone(),
                updated_at: now(),
            }
        })
        .collect())
}

/// Disables a service (with a reason), or enables it.
///
/// # Errors
/// 404.
pub async fn set_disabled(
    cloud: &Cloud,
    ctx: &Context,
    host: &str,
    binary: &str,
    disabled: Option<Option<String>>,
) -> Result<()> {
    ctx.require("volume_services", "update")?;
    let host = host.split('#').next().unwrap_or_default().to_owned();
    let known = BINARIES.contains(&binary) && host == host_of(cloud, binary);
    if !known {
        return Err(Error::Named {
            name: "ServiceNotFound",
            kind: crate::error::Kind::NotFound,
            message: format!("Service {binary} could not be found on host {host}."),
        });
    }
    let binary = binary.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            match &disabled {
                None => conn.execute(
                    "DELETE FROM volume_services WHERE host = ?1 AND binary = ?2",
                    params![host, binary],
                )?,
                Some(reason) => conn.execute(
                    "INSERT INTO volume_services (host, binary, disabled_reason, updated_at) VALUES (?1, ?2, ?3, ?4) \
                     ON CONFLICT (host, binary) DO UPDATE SET disabled_reason = excluded.disabled_reason, \
                     updated_at = excluded.updated_at",
                    params![host, binary, reason, now()],
                )?,
            };
            Ok(())
        })
        .await
}

/// What one project has on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct HostUse {
    pub project_id: String,
    pub volumes: i64,
    pub volume_gb: i64,
    pub snapshots: i64,
    pub snapshot_gb: i64,
}

/// What the projects have on a host, in all first.
///
/// # Errors
/// 404 for a host that is none.
pub async fn host(cloud: &Cloud, ctx: &Context, name: &str) -> Result<Vec<HostUse>> {
    ctx.require("volume_hosts", "list")?;
    let bare = name.split(['@', '#']).next().unwrap_or_default();
    if bare != cloud.config.node {
        return Err(Error::Named {
            name: "HostNotFound",
            kind: crate::error::Kind::NotFound,
            message: format!("Host {name} could not be found."),
        });
    }
    let projects = cloud.store.read(|conn| {
        let mut query = conn.prepare_cached(
            "SELECT project_id, SUM(volumes), SUM(volume_gb), SUM(snapshots), SUM(snapshot_gb) FROM (\
             SELECT project_id, COUNT(*) AS volumes, SUM(size) AS volume_gb, 0 AS snapshots, 0 AS snapshot_gb \
             FROM volume_volumes GROUP BY project_id UNION ALL \
             SELECT project_id, 0, 0, COUNT(*), SUM(size) FROM volume_snapshots GROUP BY project_id) \
             GROUP BY project_id ORDER BY project_id",
        )?;
        let rows = query.query_map([], |row| {
            Ok(HostUse {
                project_id: row.get(0)?,
                volumes: row.get(1)?,
                volume_gb: row.get(2)?,
                snapshots: row.get(3)?,
                snapshot_gb: row.get(4)?,
            })
        })?;
        Ok::<_, Error>(rows.collect::<rusqlite::Result<Vec<_>>>()?)
    });
    let projects = projects.await?;
    let sum = |f: fn(&HostUse) -> i64| projects.iter().map(f).sum();
    let total = HostUse {
        project_id: "(total)".into(),
        volumes: sum(|p| p.volumes),
        volume_gb: sum(|p| p.volume_gb),
        snapshots: sum(|p| p.snapshots),
        snapshot_gb: sum(|p| p.snapshot_gb),
    };
    Ok(std::iter::once(total).chain(projects).collect())
}
