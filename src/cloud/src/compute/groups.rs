//! Server groups: servers that belong on one node, or on different ones.

use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::quotas::{self, Resource};
use super::servers::uuid;
use super::{Micros, now};
use crate::{Cloud, Context, Error, Result};

/// Where a group's servers belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// On one node.
    Affinity,
    /// On different nodes.
    AntiAffinity,
    /// On one node if possible (2.15).
    SoftAffinity,
    /// On different nodes if possible (2.15).
    SoftAntiAffinity,
}

impl Policy {
    /// As the API calls it.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Affinity => "affinity",
            Policy::AntiAffinity => "anti-affinity",
            Policy::SoftAffinity => "soft-affinity",
            Policy::SoftAntiAffinity => "soft-anti-affinity",
        }
    }

    /// From the same.
    pub fn of_name(name: &str) -> Option<Policy> {
        [
            Policy::Affinity,
            Policy::AntiAffinity,
            Policy::SoftAffinity,
            Policy::SoftAntiAffinity,
        ]
        .into_iter()
        .find(|p| p.name() == name)
    }
}

/// A server group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Group {
    pub id: Uuid,
    pub project_id: String,
    pub user_id: String,
    pub name: String,
    pub policy: Policy,
    /// Anti-affinity: how many servers a node may have (2.64).
    pub max_per_host: Option<u32>,
    pub created_at: Micros,
    /// Servers that are not deleted.
    pub members: Vec<Uuid>,
}

const COLUMNS: &str = "id, project_id, user_id, name, policy, max_per_host, created_at";

fn of_row(row: &Row<'_>) -> rusqlite::Result<Group> {
    let policy: String = row.get(4)?;
    Ok(Group {
        id: uuid(row, 0)?,
        project_id: row.get(1)?,
        user_id: row.get(2)?,
        name: row.get(3)?,
        policy: Policy::of_name(&policy).unwrap_or(Policy::SoftAffinity),
        max_per_host: row.get(5)?,
        created_at: row.get(6)?,
        members: Vec::new(),
    })
}

fn members(conn: &Connection, group: Uuid) -> Result<Vec<Uuid>> {
    let mut query = conn.prepare_cached(
        "SELECT id FROM compute_servers WHERE server_group = ?1 AND deleted = 0 ORDER BY created_at, id",
    )?;
    Ok(query
        .query_map([group.to_string()], |row| uuid(row, 0))?
        .collect::<rusqlite::Result<_>>()?)
}

pub(super) fn get(conn: &Connection, id: Uuid) -> Result<Option<Group>> {
    let mut query = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM compute_server_groups WHERE id = ?1"
    ))?;
    let Some(mut group) = query.query_row([id.to_string()], of_row).optional()? else {
        return Ok(None);
    };
    group.members = members(conn, id)?;
    Ok(Some(group))
}

fn find(conn: &Connection, ctx: &Context, id: &str) -> Result<Group> {
    let missing = || super::missing(format!("Instance group {id} could not be found."));
    let group = get(conn, id.parse().map_err(|_| missing())?)?.ok_or_else(missing)?;
    if ctx.sees(&group.project_id) {
        Ok(group)
    } else {
        Err(missing())
    }
}

/// New servers may join the group.
pub(super) fn check_room(conn: &Connection, ctx: &Context, id: Uuid, count: u32) -> Result<()> {
    let group = find(conn, ctx, &id.to_string()).map_err(|e| Error::BadRequest(e.to_string()))?;
    let limit = quotas::limit(conn, &group.project_id, Resource::ServerGroupMembers)?;
    if limit >= 0 && group.members.len() as i64 + i64::from(count) > limit {
        return Err(Error::QuotaExceeded(
            "Quota exceeded, too many servers in group".into(),
        ));
    }
    Ok(())
}

/// A project's groups, or all projects'.
pub async fn list(
    cloud: &Cloud,
    ctx: &Context,
    all: bool,
    offset: usize,
    limit: usize,
) -> Result<Vec<Group>> {
    ctx.require("server_groups", "list")?;
    let project = if all && ctx.is_admin() {
        ctx.require("server_groups", "list_all_projects")?;
        None
    } else {
        Some(ctx.project()?.to_owned())
    };
    cloud
        .store
        .read(move |conn| {
            let mut query = conn.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM compute_server_groups WHERE ?1 IS NULL OR project_id = ?1 \
                 ORDER BY created_at, id"
            ))?;
            let rows = query.query_map([project], of_row)?;
            let mut groups = Vec::new();
            for group in rows.skip(offset).take(limit) {
                let mut group = group?;
                group.members = members(conn, group.id)?;
                groups.push(group);
            }
            Ok(groups)
        })
        .await
}

/// One group.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Group> {
    ctx.require("server_groups", "show")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    cloud.store.read(move |conn| find(conn, &ctx, &id)).await
}

/// The groups that a server is in (2.71).
pub async fn of_server(cloud: &Cloud, server: Option<Uuid>) -> Result<Vec<Uuid>> {
    let Some(id) = server else { return Ok(Vec::new()) };
    cloud
        .store
        .read(move |conn| Ok(get(conn, id)?.map(|group| group.id).into_iter().collect()))
        .await
}

/// Makes a group.
pub async fn create(
    cloud: &Cloud,
    ctx: &Context,
    name: String,
    policy: Policy,
    max_per_host: Option<u32>,
) -> Result<Group> {
    ctx.require("server_groups", "create")?;
    if max_per_host.is_some() && policy != Policy::AntiAffinity {
        return Err(Error::BadRequest(
            "Only anti-affinity policy supports rules.".into(),
        ));
    }
    let group = Group {
        id: Uuid::new_v4(),
        project_id: ctx.project()?.to_owned(),
        user_id: ctx.user_id.clone(),
        name,
        policy,
        max_per_host,
        created_at: now(),
        members: Vec::new(),
    };
    let row = group.clone();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut query =
                conn.prepare_cached("SELECT COUNT(*) FROM compute_server_groups WHERE project_id = ?1")?;
            let used: i64 = query.query_row([&row.project_id], |r| r.get(0))?;
            let limit = quotas::limit(conn, &row.project_id, Resource::ServerGroups)?;
            if limit >= 0 && used >= limit {
                return Err(Error::QuotaExceeded(
                    "Quota exceeded, too many server groups.".into(),
                ));
            }
            conn.prepare_cached(&format!(
                "INSERT INTO compute_server_groups ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
            ))?
            .execute(params![
                row.id.to_string(),
                row.project_id,
                row.user_id,
                row.name,
                row.policy.name(),
                row.max_per_host,
                row.created_at
            ])?;
            Ok::<_, Error>(())
        })
        .await?;
    Ok(group)
}

/// Removes a group; its servers stay.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str) -> Result<()> {
    ctx.require("server_groups", "delete")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    let actor = ctx.user_id.clone();
    cloud
        .store
        .write(&actor, move |conn| {
            let group = find(conn, &ctx, &id)?;
            conn.execute(
                "DELETE FROM compute_server_groups WHERE id = ?1",
                [group.id.to_string()],
            )?;
            Ok(())
        })
        .await
}
