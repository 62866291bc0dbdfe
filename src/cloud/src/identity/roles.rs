//! Roles and what they imply.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Deserialize;

use super::{names, rights};
use crate::context::Scope;
use crate::{Cloud, Context, Error, Result};

/// Roles that the policy table is written in, each implying the next. They cannot be renamed or removed.
pub const BUILT_IN: [&str; 4] = ["admin", "manager", "member", "reader"];
/// The longest name.
const MAX_NAME: usize = 255;

/// A role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its id.
    pub id: String,
    /// Its name, unique in the cloud.
    pub name: String,
    /// What it allows.
    pub description: Option<String>,
}

/// A role to be made.
#[derive(Debug, Clone, Deserialize)]
pub struct NewRole {
    /// See [`Role`].
    pub name: String,
    /// Roles of one domain alone are not there.
    #[serde(default)]
    pub domain_id: Option<String>,
    /// See [`Role`].
    #[serde(default)]
    pub description: Option<String>,
}

/// A change of a role; an inner `None` removes.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RoleChange {
    /// See [`Role`].
    #[serde(default)]
    pub name: Option<String>,
    /// See [`Role`].
    #[serde(default, deserialize_with = "names::some")]
    pub description: Option<Option<String>>,
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Role> {
    Ok(Role {
        id: row.get("id")?,
        name: row.get("name")?,
        description: row.get("description")?,
    })
}

pub(super) fn find(conn: &Connection, id: &str) -> Result<Role> {
    let row = conn
        .prepare_cached("SELECT * FROM roles WHERE id = ?1")?
        .query_row([id], from_row)
        .optional()?;
    row.ok_or_else(|| Error::not_found("role", id))
}

/// Roles are the same everywhere: whoever reads anything beyond a project reads them.
fn readable(ctx: &Context, resource: &str, action: &str) -> Result<()> {
    rights::read(ctx, resource, action).map(|_| ())
}

/// All roles, by name.
///
/// # Errors
/// 403.
pub async fn list(cloud: &Cloud, ctx: &Context, name: Option<String>) -> Result<Vec<Role>> {
    readable(ctx, "roles", "list")?;
    cloud
        .store
        .read(move |conn| {
            let mut sql =
                conn.prepare_cached("SELECT * FROM roles WHERE (?1 IS NULL OR name = ?1) ORDER BY name, id")?;
            Ok(sql
                .query_map([name], from_row)?
                .collect::<rusqlite::Result<_>>()?)
        })
        .await
}

/// One role.
///
/// # Errors
/// 404, 403.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Role> {
    readable(ctx, "roles", "show")?;
    let id = id.to_owned();
    cloud.store.read(move |conn| find(conn, &id)).await
}

/// Makes a role. Services know the built-in ones alone; others are for outside software that reads tokens.
///
/// # Errors
/// 403, 400, 409 if the name is taken.
pub async fn create(cloud: &Cloud, ctx: &Context, new: NewRole) -> Result<Role> {
    rights::write(ctx, "roles", "create")?;
    names::name("name", &new.name, MAX_NAME)?;
    names::description(new.description.as_deref())?;
    if new.domain_id.is_some() {
        return Err(Error::BadRequest(
            "Roles that belong to a domain are not supported by this cloud.".into(),
        ));
    }
    let id = super::new_id();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let done = conn.execute(
                "INSERT INTO roles (id, name, description) VALUES (?1, ?2, ?3)",
                params![id, new.name, new.description],
            );
            names::unique(done, "role", &new.name)?;
            find(conn, &id)
        })
        .await
}

/// Changes a role.
///
/// # Errors
/// 403, 400, 404, 409 if the name is taken.
pub async fn update(cloud: &Cloud, ctx: &Context, id: &str, change: RoleChange) -> Result<Role> {
    rights::write(ctx, "roles", "update")?;
    if let Some(name) = &change.name {
        names::name("name", name, MAX_NAME)?;
    }
    names::description(change.description.as_ref().and_then(|d| d.as_deref()))?;
    let id = id.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let old = find(conn, &id)?;
            let name = change.name.as_ref().unwrap_or(&old.name);
            if *name != old.name {
                spare_built_in(&old)?;
            }
            let description = change.description.as_ref().unwrap_or(&old.description);
            let done = conn.execute(
                "UPDATE roles SET name = ?2, description = ?3 WHERE id = ?1",
                params![id, name, description],
            );
            names::unique(done, "role", name)?;
            find(conn, &id)
        })
        .await
}

fn spare_built_in(role: &Role) -> Result<()> {
    if BUILT_IN.contains(&role.name.as_str()) {
        return Err(Error::Forbidden(format!("The role {} is built in.", role.name)));
    }
    Ok(())
}

/// Removes a role with its assignments.
///
/// # Errors
/// 403, also for the built-in ones; 404.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str) -> Result<()> {
    rights::write(ctx, "roles", "delete")?;
    let id = id.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            spare_built_in(&find(conn, &id)?)?;
            conn.execute("DELETE FROM role_assignments WHERE role_id = ?1", [&id])?;
            conn.execute(
                "DELETE FROM implied_roles WHERE prior_role_id = ?1 OR implied_role_id = ?1",
                [&id],
            )?;
            conn.execute(
                "DELETE FROM application_credential_roles WHERE role_id = ?1",
                [&id],
            )?;
            conn.execute("DELETE FROM roles WHERE id = ?1", [&id])?;
            Ok(())
        })
        .await
}

/// What a role implies directly, with the role itself.
///
/// # Errors
/// 404, 403.
pub async fn implied(cloud: &Cloud, ctx: &Context, id: &str) -> Result<(Role, Vec<Role>)> {
    readable(ctx, "implied_roles", "list")?;
    let id = id.to_owned();
    cloud
        .store
        .read(move |conn| {
            let prior = find(conn, &id)?;
            let sql = "SELECT * FROM roles WHERE id IN
                 (SELECT implied_role_id FROM implied_roles WHERE prior_role_id = ?1) ORDER BY name";
            let implied = conn
                .prepare_cached(sql)?
                .query_map([id], from_row)?
                .collect::<rusqlite::Result<_>>()?;
            Ok((prior, implied))
        })
        .await
}

/// Every role that implies others, with these.
///
/// # Errors
/// 403.
pub async fn inferences(cloud: &Cloud, ctx: &Context) -> Result<Vec<(Role, Vec<Role>)>> {
    let mut all = Vec::new();
    for role in list(cloud, ctx, None).await? {
        let (prior, implied) = implied(cloud, ctx, &role.id).await?;
        if !implied.is_empty() {
            all.push((prior, implied));
        }
    }
    Ok(all)
}

/// A role implies another from now on, or does so no more.
///
/// # Errors
/// 403, also if `admin` were implied or the built-in chain broken; 404; 400 for a circle.
pub async fn set_implied(cloud: &Cloud, ctx: &Context, prior: &str, implied: &str, is: bool) -> Result<()> {
    rights::write(ctx, "implied_roles", "change")?;
    if is {
        let directory = cloud.identity.directory();
        if directory.closure([implied.to_owned()]).contains(prior) {
            return Err(Error::BadRequest(
                "Roles would imply each other in a circle.".into(),
            ));
        }
    }
    let (prior, implied) = (prior.to_owned(), implied.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let (from, to) = (find(conn, &prior)?, find(conn, &implied)?);
            if to.name == "admin" || (!is && BUILT_IN.contains(&from.name.as_str())) {
                return Err(Error::Forbidden(format!("What {} implies is fixed.", from.name)));
            }
            let keys = [&prior, &implied];
            if is {
                let sql =
                    "INSERT OR IGNORE INTO implied_roles (prior_role_id, implied_role_id) VALUES (?1, ?2)";
                conn.execute(sql, keys)?;
            } else {
                let sql = "DELETE FROM implied_roles WHERE prior_role_id = ?1 AND implied_role_id = ?2";
                if conn.execute(sql, keys)? == 0 {
                    return Err(Error::not_found("implied role", &implied));
                }
            }
            Ok(())
        })
        .await
}

/// The enabled domains that a user has a role on, for "where may I go".
pub async fn domains_of_user(cloud: &Cloud, ctx: &Context) -> Result<Vec<super::domains::Domain>> {
    let ids: Vec<String> = {
        let directory = cloud.identity.directory();
        let on = |id: &str| {
            let target = super::token::Target::Domain(id.to_owned());
            directory
                .grants(&ctx.user_id)
                .any(|(_, grant)| directory.reaches(grant, &target))
        };
        directory
            .domains
            .iter()
            .filter(|(id, domain)| domain.enabled && on(id))
            .map(|(id, _)| id.clone())
            .collect()
    };
    cloud
        .store
        .read(move |conn| {
            let mut domains = Vec::new();
            for id in ids {
                match super::domains::find(conn, &id) {
                    Ok(domain) => domains.push(domain),
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            domains.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(domains)
        })
        .await
}

/// Whether the caller could scope a token to the system.
pub fn has_system(cloud: &Cloud, ctx: &Context) -> bool {
    let directory = cloud.identity.directory();
    let target = super::token::Target::System;
    matches!(ctx.scope, Scope::System)
        || directory
            .grants(&ctx.user_id)
            .any(|(_, g)| directory.reaches(g, &target))
}
