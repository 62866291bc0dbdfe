//! How much of each resource a project may have.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::Part;
use crate::{Cloud, Context, Error, Result};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Resource {
    Secrets,
    Orders,
    Containers,
    Consumers,
}

impl Resource {
    /// All of them.
    pub const ALL: [Resource; 4] = [
        Resource::Secrets,
        Resource::Orders,
        Resource::Containers,
        Resource::Consumers,
    ];

    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Secrets => "secrets",
            Resource::Orders => "orders",
            Resource::Containers => "containers",
            Resource::Consumers => "consumers",
        }
    }

    /// The resource of this name.
    pub fn named(name: &str) -> Option<Resource> {
        Resource::ALL.into_iter().find(|resource| resource.name() == name)
    }

    /// What a project may have if nobody said otherwise.
    pub fn default_limit(self) -> i64 {
        1000
    }

    fn count(self) -> &'static str {
        match self {
            Resource::Secrets => "SELECT count(*) FROM secrets WHERE project_id = ?1",
            Resource::Orders => "SELECT count(*) FROM secret_orders WHERE project_id = ?1",
            Resource::Containers => "SELECT count(*) FROM secret_containers WHERE project_id = ?1",
            Resource::Consumers => {
                "SELECT (SELECT count(*) FROM secret_consumers WHERE secret_id IN
                             (SELECT id FROM secrets WHERE project_id = ?1))
                      + (SELECT count(*) FROM secret_container_consumers WHERE container_id IN
                             (SELECT id FROM secret_containers WHERE project_id = ?1))"
            }
        }
    }
}

/// Limits, -1 for "as much as there is".
pub type Limits = BTreeMap<Resource, i64>;

fn own_limits(conn: &Connection, project: &str) -> Result<Limits> {
    let mut sql = conn.prepare_cached("SELECT resource, amount FROM secret_quotas WHERE project_id = ?1")?;
    let mut rows = sql.query([project])?;
    let mut limits = Limits::new();
    while let Some(row) = rows.next()? {
        if let Some(resource) = Resource::named(&row.get::<_, String>(0)?) {
            limits.insert(resource, row.get(1)?);
        }
    }
    Ok(limits)
}

fn limit(limits: &Limits, resource: Resource) -> i64 {
    limits
        .get(&resource)
        .copied()
        .unwrap_or_else(|| resource.default_limit())
}

/// Refuses one more of the resource if the project has no room for it.
pub(super) fn charge(conn: &Connection, project: &str, resource: Resource) -> Result<()> {
    if resource == Resource::Secrets {
        super::secrets::remove_expired(conn, project)?;
    }
    let limit = limit(&own_limits(conn, project)?, resource);
    if limit < 0 {
        return Ok(());
    }
    let used: i64 = conn
        .prepare_cached(resource.count())?
        .query_row([project], |row| row.get(0))?;
    if used < limit {
        return Ok(());
    }
    Err(Error::QuotaExceeded(format!(
        "Quota reached for project {project}. Only {limit} {} are allowed.",
        resource.name()
    )))
}

/// What the caller's project may have.
///
/// # Errors
/// 403.
pub async fn own(cloud: &Cloud, ctx: &Context) -> Result<Limits> {
    ctx.require("secret_quotas", "own")?;
    let project = ctx.project()?.to_owned();
    let own = cloud.store.read(move |conn| own_limits(conn, &project)).await?;
    Ok(Resource::ALL
        .map(|resource| (resource, limit(&own, resource)))
        .into())
}

/// The projects that have limits of their own.
///
/// # Errors
/// 403.
pub async fn list(cloud: &Cloud, ctx: &Context, part: Part) -> Result<(Vec<(String, Limits)>, usize)> {
    ctx.require("secret_quotas", "list")?;
    cloud
        .store
        .read(move |conn| {
            let mut sql =
                conn.prepare_cached("SELECT DISTINCT project_id FROM secret_quotas ORDER BY project_id")?;
            let all: Vec<String> = sql
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let (all, total) = part.of(all);
            let all = all.into_iter().map(|project| {
                let limits = own_limits(conn, &project)?;
                Ok((project, limits))
            });
            Ok((all.collect::<Result<_>>()?, total))
        })
        .await
}

/// A project's own limits.
///
/// # Errors
/// 403, 404 if it has none.
pub async fn show(cloud: &Cloud, ctx: &Context, project: &str) -> Result<Limits> {
    ctx.require("secret_quotas", "list")?;
    let name = project.to_owned();
    let limits = cloud.store.read(move |conn| own_limits(conn, &name)).await?;
    if limits.is_empty() {
        return Err(Error::not_found("Project quotas", project));
    }
    Ok(limits)
}

/// Gives a project limits of its own; what is not named has the default.
///
/// # Errors
/// 403, 400.
pub async fn update(cloud: &Cloud, ctx: &Context, project: &str, limits: Limits) -> Result<()> {
    ctx.require("secret_quotas", "update")?;
    if let Some(limit) = limits.values().find(|limit| **limit < -1) {
        return Err(Error::BadRequest(format!("Quota limit {limit} is less than -1.")));
    }
    let project = project.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            conn.execute("DELETE FROM secret_quotas WHERE project_id = ?1", [&project])?;
            for (resource, limit) in &limits {
                conn.execute(
                    "INSERT INTO secret_quotas (project_id, resource, amount) VALUES (?1, ?2, ?3)",
                    params![project, resource.name(), limit],
                )?;
            }
            Ok(())
        })
        .await
}

/// Back to the defaults.
///
/// # Errors
/// 403, 404 if the project has no limits of its own.
pub async fn reset(cloud: &Cloud, ctx: &Context, project: &str) -> Result<()> {
    ctx.require("secret_quotas", "update")?;
    let project = project.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            match conn.execute("DELETE FROM secret_quotas WHERE project_id = ?1", [&project])? {
                0 => Err(Error::not_found("Project quotas", &project)),
                _ => Ok(()),
            }
        })
        .await
}
