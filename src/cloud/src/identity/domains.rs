//! Domains: the realms of users and projects.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{names, projects, rights, users};
use crate::context::Scope;
use crate::{Cloud, Context, Error, Result};

/// The domain that the cloud begins with.
pub const DEFAULT: &str = "default";
/// The longest name.
const MAX_NAME: usize = 64;

/// A domain.
#[derive(Debug, Clone, PartialEq)]
pub struct Domain {
    /// Its id.
    pub id: String,
    /// Its name, unique in the cloud.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Its users can log in and its projects can be used.
    pub enabled: bool,
    /// Attributes that the cloud only keeps.
    pub extra: Map<String, Value>,
}

/// A domain to be made.
#[derive(Debug, Clone, Deserialize)]
pub struct NewDomain {
    /// See [`Domain`].
    pub name: String,
    /// See [`Domain`].
    #[serde(default)]
    pub description: Option<String>,
    /// See [`Domain`].
    #[serde(default)]
    pub enabled: Option<bool>,
    /// See [`Domain`].
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A change of a domain.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct DomainChange {
    /// See [`Domain`].
    #[serde(default)]
    pub name: Option<String>,
    /// See [`Domain`].
    #[serde(default)]
    pub description: Option<String>,
    /// See [`Domain`].
    #[serde(default)]
    pub enabled: Option<bool>,
    /// See [`Domain`].
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What a list is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this name.
    pub name: Option<String>,
    /// Only enabled or disabled ones.
    pub enabled: Option<bool>,
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Domain> {
    Ok(Domain {
        id: row.get("id")?,
        name: row.get("name")?,
        description: row.get("description")?,
        enabled: row.get("enabled")?,
        extra: names::read_extra(row, "extra")?,
    })
}

pub(super) fn find(conn: &Connection, id: &str) -> Result<Domain> {
    let row = conn
        .prepare_cached("SELECT * FROM domains WHERE id = ?1")?
        .query_row([id], from_row)
        .optional()?;
    row.ok_or_else(|| Error::not_found("domain", id))
}

/// All domains that the caller reaches, by name.
///
/// # Errors
/// 403 without a role that reads domains.
pub async fn list(cloud: &Cloud, ctx: &Context, filter: Filter) -> Result<Vec<Domain>> {
    let reach = rights::read(ctx, "domains", "list")?;
    cloud
        .store
        .read(move |conn| {
            let sql = "SELECT * FROM domains WHERE (?1 IS NULL OR id = ?1) AND (?2 IS NULL OR name = ?2)
                 AND (?3 IS NULL OR enabled = ?3) ORDER BY name, id";
            let mut sql = conn.prepare_cached(sql)?;
            let rows = sql.query_map(params![reach.domain(), filter.name, filter.enabled], from_row)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
}

/// One domain. A token that is scoped to it, or to one of its projects, may always see it.
///
/// # Errors
/// 404, 403.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Domain> {
    let own = match &ctx.scope {
        Scope::Domain { id: own } | Scope::Project { domain_id: own, .. } => own == id,
        _ => false,
    };
    let reach = if own {
        rights::Reach::Domain(id.to_owned())
    } else {
        rights::read(ctx, "domains", "show")?
    };
    let id = id.to_owned();
    let domain: Domain = cloud.store.read(move |conn| find(conn, &id)).await?;
    reach.check(&domain.id, "domains", "show")?;
    Ok(domain)
}

/// Makes a domain.
///
/// # Errors
/// 403, 400, 409 if the name is taken.
pub async fn create(cloud: &Cloud, ctx: &Context, new: NewDomain) -> Result<Domain> {
    rights::write(ctx, "domains", "create")?;
    names::name("name", &new.name, MAX_NAME)?;
    names::description(new.description.as_deref())?;
    let (id, extra) = (super::new_id(), names::extra(new.extra.clone())?);
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let (description, enabled) = (
                new.description.as_deref().unwrap_or(""),
                new.enabled.unwrap_or(true),
            );
            let done = conn.execute(
                "INSERT INTO domains (id, name, description, enabled, extra) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![id, new.name, description, enabled, extra],
            );
            names::unique(done, "domain", &new.name)?;
            find(conn, &id)
        })
        .await
}

/// Changes a domain.
///
/// # Errors
/// 403, 400, 404, 409 if the name is taken.
pub async fn update(cloud: &Cloud, ctx: &Context, id: &str, change: DomainChange) -> Result<Domain> {
    rights::write(ctx, "domains", "update")?;
    if let Some(name) = &change.name {
        names::name("name", name, MAX_NAME)?;
    }
    names::description(change.description.as_deref())?;
    let id = id.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let old = find(conn, &id)?;
            let name = change.name.as_ref().unwrap_or(&old.name);
            let done = conn.execute(
                "UPDATE domains SET name = ?2, description = ?3, enabled = ?4, extra = ?5 WHERE id = ?1",
                params![
                    id,
                    name,
                    change.description.as_ref().unwrap_or(&old.description),
                    change.enabled.unwrap_or(old.enabled),
                    names::merged(&old.extra, change.extra.clone())?
                ],
            );
            names::unique(done, "domain", name)?;
            rights::keep_an_admin(conn)?;
            find(conn, &id)
        })
        .await
}

/// Removes a disabled domain with all that is in it.
///
/// # Errors
/// 403 while it is enabled, 404.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str) -> Result<()> {
    rights::write(ctx, "domains", "delete")?;
    let id = id.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let domain = find(conn, &id)?;
            if domain.enabled || id == DEFAULT {
                return Err(Error::Forbidden(
                    "Cannot delete a domain that is enabled, please disable it first.".into(),
                ));
            }
            for user in ids(conn, "SELECT id FROM users WHERE domain_id = ?1", &id)? {
                users::remove(conn, &user)?;
            }
            for group in ids(conn, "SELECT id FROM user_groups WHERE domain_id = ?1", &id)? {
                super::groups::remove(conn, &group)?;
            }
            for project in ids(conn, "SELECT id FROM projects WHERE domain_id = ?1", &id)? {
                projects::remove(conn, &project)?;
            }
            conn.execute(
                "DELETE FROM role_assignments WHERE target_kind = 'domain' AND target_id = ?1",
                [&id],
            )?;
            crate::encryption::remove_of_domain(conn, &id)?;
            conn.execute("DELETE FROM domains WHERE id = ?1", [&id])?;
            rights::keep_an_admin(conn)
        })
        .await
}

fn ids(conn: &Connection, sql: &str, domain: &str) -> Result<Vec<String>> {
    let mut sql = conn.prepare_cached(sql)?;
    let rows = sql.query_map([domain], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
