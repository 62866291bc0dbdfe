//! What projects have used (`os-simple-tenant-usage`) and may use (`limits`).

use std::collections::BTreeMap;

use rusqlite::params;
use uuid::Uuid;

use super::quotas::{self, Quota, Resource};
use super::servers::uuid;
use super::{Micros, now};
use crate::{Cloud, Context, Result};

/// The limits of a project and how much of them is used.
pub async fn limits(
    cloud: &Cloud,
    ctx: &Context,
    project: Option<&str>,
) -> Result<BTreeMap<Resource, Quota>> {
    ctx.require("limits", "show")?;
    let project = match project {
        Some(project) if ctx.project().ok() != Some(project) => {
            ctx.require("limits", "show_other_project")?;
            project.to_owned()
        }
        _ => ctx.project()?.to_owned(),
    };
    cloud
        .store
        .read(move |conn| quotas::of_project(conn, &project))
        .await
}

/// A server's use of a period.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct ServerUsage {
    pub id: Uuid,
    pub project_id: String,
    pub name: String,
    pub flavor: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub local_gib: u64,
    pub state: String,
    pub started_at: Micros,
    pub ended_at: Option<Micros>,
    /// Since it was started, in seconds.
    pub uptime: u64,
    /// In the period.
    pub hours: f64,
}

/// What servers used in a period, by project; of one project, or of all for admins.
pub async fn usage(
    cloud: &Cloud,
    ctx: &Context,
    project: Option<&str>,
    start: Micros,
    end: Micros,
) -> Result<BTreeMap<String, Vec<ServerUsage>>> {
    match project {
        Some(project) if ctx.sees(project) => ctx.require("usage", "show")?,
        _ => ctx.require("usage", "list")?,
    }
    let project = project.map(str::to_owned);
    let now = now();
    cloud
        .store
        .read(move |conn| {
            let mut query = conn.prepare_cached(
                "SELECT id, project_id, name, json_extract(flavor, '$.name'), vcpus, ram_mib, root_bytes, vm_state, \
                 launched_at, terminated_at FROM compute_servers \
                 WHERE launched_at IS NOT NULL AND launched_at < ?2 AND (terminated_at IS NULL OR terminated_at > ?1) \
                 AND (?3 IS NULL OR project_id = ?3) ORDER BY project_id, launched_at, id",
            )?;
            let mut rows = query.query(params![start, end, project])?;
            let mut usage: BTreeMap<String, Vec<ServerUsage>> = BTreeMap::new();
            while let Some(row) = rows.next()? {
                let started_at: Micros = row.get(8)?;
                let ended_at: Option<Micros> = row.get(9)?;
                let last = ended_at.unwrap_or(now).min(end).min(now);
                let micros = last.0.saturating_sub(started_at.max(start).0).max(0);
                let project_id: String = row.get(1)?;
                usage.entry(project_id.clone()).or_default().push(ServerUsage {
                    id: uuid(row, 0)?,
                    project_id,
                    name: row.get(2)?,
                    flavor: row.get(3)?,
                    vcpus: row.get(4)?,
                    memory_mib: row.get(5)?,
                    local_gib: row.get::<_, u64>(6)? / model::units::GIB,
                    state: if ended_at.is_some() { "terminated".into() } else { row.get(7)? },
                    started_at,
                    ended_at,
                    uptime: ended_at.unwrap_or(now).0.saturating_sub(started_at.0).unsigned_abs() / 1_000_000,
                    hours: micros as f64 / 3.6e9,
                });
            }
            Ok(usage)
        })
        .await
}
