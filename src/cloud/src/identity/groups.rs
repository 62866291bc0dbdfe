//! Groups of users, which hold roles together.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::directory::Actor;
use super::{domains, names, projects, rights, users};
use crate::{Cloud, Context, Error, Result};

/// The longest name.
const MAX_NAME: usize = 64;

/// A group.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its id.
    pub id: String,
    /// Its domain.
    pub domain_id: String,
    /// Its name, unique in its domain.
    pub name: String,
    /// Who is in it.
    pub description: String,
    /// Attributes that the cloud only keeps.
    pub extra: Map<String, Value>,
}

/// A group to be made.
#[derive(Debug, Clone, Deserialize)]
pub struct NewGroup {
    /// See [`Group`].
    pub name: String,
    /// Without it: the domain of the caller's scope.
    #[serde(default)]
    pub domain_id: Option<String>,
    /// See [`Group`].
    #[serde(default)]
    pub description: Option<String>,
    /// See [`Group`].
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A change of a group.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct GroupChange {
    /// See [`Group`].
    #[serde(default)]
    pub name: Option<String>,
    /// It may be repeated, not changed.
    #[serde(default)]
    pub domain_id: Option<String>,
    /// See [`Group`].
    #[serde(default)]
    pub description: Option<String>,
    /// See [`Group`].
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What a list is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this name.
    pub name: Option<String>,
    /// Only of this domain.
    pub domain_id: Option<String>,
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Group> {
    Ok(Group {
        id: row.get("id")?,
        domain_id: row.get("domain_id")?,
        name: row.get("name")?,
        description: row.get("description")?,
        extra: names::read_extra(row, "extra")?,
    })
}

pub(super) fn find(conn: &Connection, id: &str) -> Result<Group> {
    let row = conn
        .prepare_cached("SELECT * FROM user_groups WHERE id = ?1")?
        .query_row([id], from_row)
        .optional()?;
    row.ok_or_else(|| Error::not_found("group", id))
}

/// All groups that the caller reaches, by name.
///
/// # Errors
/// 403 without a role that reads groups.
pub async fn list(cloud: &Cloud, ctx: &Context, filter: Filter) -> Result<Vec<Group>> {
    let reach = rights::read(ctx, "groups", "list")?;
    cloud
        .store
        .read(move |conn| {
            let sql = "SELECT * FROM user_groups WHERE (?1 IS NULL OR domain_id = ?1)
                 AND (?2 IS NULL OR domain_id = ?2) AND (?3 IS NULL OR name = ?3) ORDER BY name, id";
            let mut sql = conn.prepare_cached(sql)?;
            let rows = sql.query_map(params![reach.domain(), filter.domain_id, filter.name], from_row)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
}

/// The groups of a user, by name; everyone may see its own.
///
/// # Errors
/// 404, 403.
pub async fn of_user(cloud: &Cloud, ctx: &Context, user_id: &str) -> Result<Vec<Group>> {
    users::reachable(cloud, ctx, user_id, "groups", "list")?;
    let user_id = user_id.to_owned();
    cloud
        .store
        .read(move |conn| {
            let sql = "SELECT * FROM user_groups WHERE id IN (SELECT group_id FROM group_members WHERE user_id = ?1)
                 ORDER BY name, id";
            Ok(conn.prepare_cached(sql)?.query_map([user_id], from_row)?.collect::<rusqlite::Result<_>>()?)
        })
        .await
}

/// One group.
///
/// # Errors
/// 404, 403.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Group> {
    let reach = rights::read(ctx, "groups", "show")?;
    let id = id.to_owned();
    let group: Group = cloud.store.read(move |conn| find(conn, &id)).await?;
    reach.check(&group.domain_id, "groups", "show")?;
    Ok(group)
}

/// Makes a group.
///
/// # Errors
/// 403, 400, 404 for an unknown domain, 409 if the name is taken.
pub async fn create(cloud: &Cloud, ctx: &Context, new: NewGroup) -> Result<Group> {
    let reach = rights::write(ctx, "groups", "create")?;
    let domain = new
        .domain_id
        .clone()
        .unwrap_or_else(|| projects::scope_domain(ctx));
    reach.check(&domain, "groups", "create")?;
    names::name("name", &new.name, MAX_NAME)?;
    names::description(new.description.as_deref())?;
    let (id, extra) = (super::new_id(), names::extra(new.extra.clone())?);
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            domains::find(conn, &domain)?;
            let done = conn.execute(
                "INSERT INTO user_groups (id, domain_id, name, description, extra) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![id, domain, new.name, new.description.as_deref().unwrap_or(""), extra],
            );
            names::unique(done, "group", &new.name)?;
            find(conn, &id)
        })
        .await
}

/// Changes a group.
///
/// # Errors
/// 403, 400, 404, 409 if the name is taken.
pub async fn update(cloud: &Cloud, ctx: &Context, id: &str, change: GroupChange) -> Result<Group> {
    let reach = rights::write(ctx, "groups", "update")?;
    rights::spare_admins(cloud, ctx, &Actor::Group(id.to_owned()))?;
    if let Some(name) = &change.name {
        names::name("name", name, MAX_NAME)?;
    }
    names::description(change.description.as_deref())?;
    let id = id.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let old = find(conn, &id)?;
            reach.check(&old.domain_id, "groups", "update")?;
            if change
                .domain_id
                .as_ref()
                .is_some_and(|domain| *domain != old.domain_id)
            {
                return Err(Error::BadRequest("A group's domain cannot be changed.".into()));
            }
            let name = change.name.as_ref().unwrap_or(&old.name);
            let done = conn.execute(
                "UPDATE user_groups SET name = ?2, description = ?3, extra = ?4 WHERE id = ?1",
                params![
                    id,
                    name,
                    change.description.as_ref().unwrap_or(&old.description),
                    names::merged(&old.extra, change.extra.clone())?
                ],
            );
            names::unique(done, "group", name)?;
            find(conn, &id)
        })
        .await
}

/// Removes a group and its assignments.
///
/// # Errors
/// 403, 404.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str) -> Result<()> {
    let reach = rights::write(ctx, "groups", "delete")?;
    rights::spare_admins(cloud, ctx, &Actor::Group(id.to_owned()))?;
    let id = id.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let group = find(conn, &id)?;
            reach.check(&group.domain_id, "groups", "delete")?;
            remove(conn, &id)?;
            rights::keep_an_admin(conn)
        })
        .await
}

pub(super) fn remove(conn: &Connection, id: &str) -> Result<()> {
    conn.execute(
        "DELETE FROM role_assignments WHERE actor_kind = 'group' AND actor_id = ?1",
        [id],
    )?;
    conn.execute("DELETE FROM group_members WHERE group_id = ?1", [id])?;
    conn.execute("DELETE FROM user_groups WHERE id = ?1", [id])?;
    Ok(())
}

/// A user becomes a member; twice is once.
///
/// # Errors
/// 403, 404.
pub async fn add_member(cloud: &Cloud, ctx: &Context, group_id: &str, user_id: &str) -> Result<()> {
    membership(
        cloud,
        ctx,
        group_id,
        user_id,
        "add_member",
        |conn, group, user| {
            conn.execute(
                "INSERT OR IGNORE INTO group_members (group_id, user_id) VALUES (?1, ?2)",
                [group, user],
            )?;
            Ok(())
        },
    )
    .await
}

/// A user is no member any more.
///
/// # Errors
/// 403, 404 if it was none.
pub async fn remove_member(cloud: &Cloud, ctx: &Context, group_id: &str, user_id: &str) -> Result<()> {
    membership(
        cloud,
        ctx,
        group_id,
        user_id,
        "remove_member",
        |conn, group, user| {
            if conn.execute(
                "DELETE FROM group_members WHERE group_id = ?1 AND user_id = ?2",
                [group, user],
            )? == 0
            {
                return Err(Error::not_found("user", user));
            }
            rights::keep_an_admin(conn)
        },
    )
    .await
}

async fn membership(
    cloud: &Cloud,
    ctx: &Context,
    group_id: &str,
    user_id: &str,
    action: &'static str,
    change: fn(&Connection, &str, &str) -> Result<()>,
) -> Result<()> {
    let reach = rights::write(ctx, "groups", action)?;
    rights::spare_admins(cloud, ctx, &Actor::Group(group_id.to_owned()))?;
    let (group_id, user_id) = (group_id.to_owned(), user_id.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let (group, user) = (find(conn, &group_id)?, users::find(conn, &user_id)?);
            reach.check(&group.domain_id, "groups", action)?;
            reach.check(&user.domain_id, "groups", action)?;
            change(conn, &group_id, &user_id)
        })
        .await
}

/// Whether a user is a member.
///
/// # Errors
/// 403, 404 if it is none.
pub async fn check_member(cloud: &Cloud, ctx: &Context, group_id: &str, user_id: &str) -> Result<()> {
    let group = show(cloud, ctx, group_id).await?;
    if cloud
        .identity
        .directory()
        .members(&group.id)
        .iter()
        .any(|member| member == user_id)
    {
        return Ok(());
    }
    Err(Error::not_found("user", user_id))
}
