//! Quotas: how much of everything a project may have.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};

use crate::{Cloud, Context, Error, Result};

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// Servers.
    Instances,
    /// Their virtual processors.
    Cores,
    /// Their memory in MiB.
    Ram,
    /// Metadata pairs of one server.
    MetadataItems,
    /// Key pairs of one user.
    KeyPairs,
    /// Server groups.
    ServerGroups,
    /// Members of one server group.
    ServerGroupMembers,
    /// Files injected into a server: none are, but clients before 2.57 read the figure.
    InjectedFiles,
    /// As `InjectedFiles`.
    InjectedFileContentBytes,
    /// As `InjectedFiles`.
    InjectedFilePathBytes,
}

impl Resource {
    /// All of them.
    pub const ALL: [Resource; 10] = [
        Resource::Instances,
        Resource::Cores,
        Resource::Ram,
        Resource::MetadataItems,
        Resource::KeyPairs,
        Resource::ServerGroups,
        Resource::ServerGroupMembers,
        Resource::InjectedFiles,
        Resource::InjectedFileContentBytes,
        Resource::InjectedFilePathBytes,
    ];

    /// As the API calls it.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Instances => "instances",
            Resource::Cores => "cores",
            Resource::Ram => "ram",
            Resource::MetadataItems => "metadata_items",
            Resource::KeyPairs => "key_pairs",
            Resource::ServerGroups => "server_groups",
            Resource::ServerGroupMembers => "server_group_members",
            Resource::InjectedFiles => "injected_files",
            Resource::InjectedFileContentBytes => "injected_file_content_bytes",
            Resource::InjectedFilePathBytes => "injected_file_path_bytes",
        }
    }

    /// By the API's name.
    pub fn of_name(name: &str) -> Option<Resource> {
        Resource::ALL.into_iter().find(|r| r.name() == name)
    }

    /// What a project has if nothing else was said.
    pub fn default_limit(self) -> i64 {
        match self {
            Resource::Instances => 10,
            Resource::Cores => 20,
            Resource::Ram => 51_200,
            Resource::MetadataItems => 128,
            Resource::KeyPairs => 100,
            Resource::ServerGroups => 10,
            Resource::ServerGroupMembers => 10,
            Resource::InjectedFiles => 5,
            Resource::InjectedFileContentBytes => 10_240,
            Resource::InjectedFilePathBytes => 255,
        }
    }
}

/// The limit of a project; -1: none.
pub(super) fn limit(conn: &Connection, project: &str, resource: Resource) -> Result<i64> {
    let mut query = conn.prepare_cached(
        "SELECT value FROM compute_quotas WHERE project_id IN (?1, '') AND resource = ?2 \
         ORDER BY project_id DESC LIMIT 1",
    )?;
    let value = query
        .query_row(params![project, resource.name()], |row| row.get(0))
        .optional()?;
    Ok(value.unwrap_or(resource.default_limit()))
}

/// What a project's servers take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Used {
    /// Servers.
    pub instances: i64,
    /// Their virtual processors.
    pub cores: i64,
    /// Their memory in MiB.
    pub ram: i64,
}

/// What a project's servers take now.
pub(super) fn used(conn: &Connection, project: &str) -> Result<Used> {
    let mut query = conn.prepare_cached(
        "SELECT COUNT(*), TOTAL(vcpus), TOTAL(ram_mib) FROM compute_servers WHERE project_id = ?1 AND deleted = 0",
    )?;
    Ok(query.query_row([project], |row| {
        Ok(Used {
            instances: row.get(0)?,
            cores: row.get::<_, f64>(1)? as i64,
            ram: row.get::<_, f64>(2)? as i64,
        })
    })?)
}

/// How many more servers of this size fit into the project's quota, at most `max`; fewer than `min`: an error.
pub(super) fn fit(conn: &Connection, project: &str, vcpus: u32, ram: u64, min: u32, max: u32) -> Result<u32> {
    let used = used(conn, project)?;
    let ram = i64::try_from(ram).unwrap_or(i64::MAX);
    let needs = [
        (Resource::Instances, 1, used.instances),
        (Resource::Cores, i64::from(vcpus), used.cores),
        (Resource::Ram, ram, used.ram),
    ];
    let mut count = i64::from(max);
    let mut over = Vec::new();
    for (resource, each, have) in needs {
        let limit = limit(conn, project, resource)?;
        if limit < 0 || each == 0 {
            continue;
        }
        count = count.min((limit - have).max(0) / each);
        if each.saturating_mul(i64::from(min)) > limit - have {
            over.push((resource.name(), each.saturating_mul(i64::from(min)), have, limit));
        }
    }
    if over.is_empty() {
        return Ok(u32::try_from(count).unwrap_or(0).max(min));
    }
    let join =
        |f: &dyn Fn(&(&str, i64, i64, i64)) -> String| over.iter().map(f).collect::<Vec<_>>().join(", ");
    Err(Error::QuotaExceeded(format!(
        "Quota exceeded for {}: Requested {}, but already used {} of {} {}",
        join(&|o| o.0.to_owned()),
        join(&|o| o.1.to_string()),
        join(&|o| o.2.to_string()),
        join(&|o| o.3.to_string()),
        join(&|o| o.0.to_owned()),
    )))
}

/// A limit, and how much of it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// -1: none.
    pub limit: i64,
    /// Now.
    pub in_use: i64,
}

/// A server may get the other flavor: what it needs more fits into the project's quota.
pub(super) fn check_resize(
    conn: &Connection,
    project: &str,
    old: &super::flavors::Flavor,
    new: &super::flavors::Flavor,
) -> Result<()> {
    let used = used(conn, project)?;
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let needs = [
        (
            Resource::Cores,
            i64::from(new.vcpus) - i64::from(old.vcpus),
            used.cores,
        ),
        (Resource::Ram, signed(new.ram) - signed(old.ram), used.ram),
    ];
    for (resource, more, have) in needs {
        let limit = limit(conn, project, resource)?;
        if more > 0 && limit >= 0 && have.saturating_add(more) > limit {
            return Err(Error::QuotaExceeded(format!(
                "Quota exceeded for {}: Requested {more}, but already used {have} of {limit} {}",
                resource.name(),
                resource.name()
            )));
        }
    }
    Ok(())
}

/// All limits of a project.
pub async fn show(cloud: &Cloud, ctx: &Context, project: &str) -> Result<BTreeMap<Resource, Quota>> {
    ctx.require("quota_sets", "show")?;
    if !ctx.sees(project) {
        return Err(Error::Forbidden(
            "Policy doesn't allow os_compute_api:os-quota-sets:show to be performed.".into(),
        ));
    }
    let project = project.to_owned();
    cloud.store.read(move |conn| of_project(conn, &project)).await
}

pub(super) fn of_project(conn: &Connection, project: &str) -> Result<BTreeMap<Resource, Quota>> {
    let used = used(conn, project)?;
    let groups: i64 = conn
        .prepare_cached("SELECT COUNT(*) FROM compute_server_groups WHERE project_id = ?1")?
        .query_row([project], |row| row.get(0))?;
    Resource::ALL
        .into_iter()
        .map(|resource| {
            let in_use = match resource {
                Resource::Instances => used.instances,
                Resource::Cores => used.cores,
                Resource::Ram => used.ram,
                Resource::ServerGroups => groups,
                _ => 0,
            };
            Ok((
                resource,
                Quota {
                    limit: limit(conn, project, resource)?,
                    in_use,
                },
            ))
        })
        .collect()
}

/// Sets limits; without `force` a limit below what is used is refused.
pub async fn update(
    cloud: &Cloud,
    ctx: &Context,
    project: &str,
    limits: BTreeMap<Resource, i64>,
    force: bool,
) -> Result<BTreeMap<Resource, Quota>> {
    ctx.require("quota_sets", "update")?;
    let project = project.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let now = of_project(conn, &project)?;
            for (resource, &limit) in &limits {
                if limit < -1 {
                    return Err(Error::BadRequest(format!(
                        "Quota limit {limit} for {} must be -1 or greater.",
                        resource.name()
                    )));
                }
                let in_use = now.get(resource).map_or(0, |q| q.in_use);
                if !force && limit >= 0 && limit < in_use {
                    return Err(Error::BadRequest(format!(
                        "Quota limit {limit} for {} must be greater than or equal to already used and reserved {in_use}.",
                        resource.name()
                    )));
                }
                conn.prepare_cached(
                    "INSERT INTO compute_quotas (project_id, resource, value) VALUES (?1, ?2, ?3) \
                     ON CONFLICT (project_id, resource) DO UPDATE SET value = excluded.value",
                )?
                .execute(params![project, resource.name(), limit])?;
            }
            of_project(conn, &project)
        })
        .await
}

/// The limits of projects of which nothing else was said (the quota class `default`).
pub async fn defaults(cloud: &Cloud, ctx: &Context) -> Result<BTreeMap<Resource, Quota>> {
    ctx.require("quota_sets", "defaults")?;
    cloud.store.read(|conn| of_project(conn, "")).await
}

/// The same, of any class: the others are names alone.
pub async fn class(cloud: &Cloud, ctx: &Context, name: &str) -> Result<BTreeMap<Resource, Quota>> {
    ctx.require("quota_class_sets", "show")?;
    let _ = name;
    cloud.store.read(|conn| of_project(conn, "")).await
}

/// Sets the limits of projects of which nothing else was said.
pub async fn update_class(
    cloud: &Cloud,
    ctx: &Context,
    name: &str,
    limits: BTreeMap<Resource, i64>,
) -> Result<BTreeMap<Resource, Quota>> {
    ctx.require("quota_class_sets", "update")?;
    if name != "default" {
        return Err(Error::BadRequest("There is one quota class: 'default'.".into()));
    }
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            for (resource, limit) in &limits {
                conn.prepare_cached(
                    "INSERT OR REPLACE INTO compute_quotas (project_id, resource, value) VALUES ('', ?1, ?2)",
                )?
                .execute(params![resource.name(), limit])?;
            }
            of_project(conn, "")
        })
        .await
}

/// Back to the defaults.
pub async fn reset(cloud: &Cloud, ctx: &Context, project: &str) -> Result<()> {
    ctx.require("quota_sets", "update")?;
    let project = project.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            conn.execute("DELETE FROM compute_quotas WHERE project_id = ?1", [&project])?;
            Ok(())
        })
        .await
}
