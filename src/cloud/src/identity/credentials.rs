//! Application credentials: a user's roles on one project, or some of them, under a secret of their own.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Deserialize;

use super::{Secret, names, now, password, rights, users};
use crate::{Cloud, Context, Error, Result};

/// The longest name.
const MAX_NAME: usize = 255;
/// The most credentials of one user.
const MAX_PER_USER: i64 = 200;

/// An application credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Its id.
    pub id: String,
    /// Its owner.
    pub user_id: String,
    /// What it opens.
    pub project_id: String,
    /// Its name, unique among its owner's.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// Its end, in microseconds since 1970.
    pub expires_at: Option<i64>,
    /// It may make and remove application credentials.
    pub unrestricted: bool,
    /// Ids and names of its roles.
    pub roles: Vec<(String, String)>,
}

/// A credential to be made.
#[derive(Debug, Clone, Deserialize)]
pub struct NewCredential {
    /// See [`Credential`].
    pub name: String,
    /// Without it one is made up.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// See [`Credential`].
    #[serde(default)]
    pub description: Option<String>,
    /// An ISO 8601 time in UTC.
    #[serde(default)]
    pub expires_at: Option<String>,
    /// Without them: all that the token has.
    #[serde(default)]
    pub roles: Option<Vec<RoleRef>>,
    /// See [`Credential`].
    #[serde(default)]
    pub unrestricted: Option<bool>,
    /// Rules that narrow a credential to single requests are not there, and so are refused.
    #[serde(default)]
    pub access_rules: Option<Vec<serde_json::Value>>,
}

/// A role by id or name.
#[derive(Debug, Clone, Deserialize)]
pub struct RoleRef {
    /// Its id.
    #[serde(default)]
    pub id: Option<String>,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Credential> {
    Ok(Credential {
        id: row.get("id")?,
        user_id: row.get("user_id")?,
        project_id: row.get("project_id")?,
        name: row.get("name")?,
        description: row.get("description")?,
        expires_at: row.get("expires_at")?,
        unrestricted: row.get("unrestricted")?,
        roles: Vec::new(),
    })
}

fn with_roles(conn: &Connection, mut credential: Credential) -> Result<Credential> {
    let sql = "SELECT r.id, r.name FROM application_credential_roles c JOIN roles r ON r.id = c.role_id
         WHERE c.credential_id = ?1 ORDER BY r.name";
    let mut sql = conn.prepare_cached(sql)?;
    let rows = sql.query_map([&credential.id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    credential.roles = rows.collect::<rusqlite::Result<_>>()?;
    Ok(credential)
}

fn find(conn: &Connection, user_id: &str, id: &str) -> Result<Credential> {
    let mut sql =
        conn.prepare_cached("SELECT * FROM application_credentials WHERE id = ?1 AND user_id = ?2")?;
    let row = sql.query_row([id, user_id], from_row).optional()?;
    with_roles(
        conn,
        row.ok_or_else(|| Error::not_found("application credential", id))?,
    )
}

/// The owner itself, or an administrator.
fn reachable(ctx: &Context, user_id: &str, action: &str) -> Result<()> {
    if ctx.user_id == user_id || ctx.is_admin() {
        return Ok(());
    }
    Err(rights::forbidden("application_credentials", action))
}

/// A restricted credential cannot make or remove others: whoever steals it must not outlive it.
fn unrestricted(cloud: &Cloud, ctx: &Context, action: &str) -> Result<()> {
    let Some(id) = &ctx.application_credential else {
        return Ok(());
    };
    let may = cloud
        .identity
        .directory()
        .credentials
        .get(id)
        .is_some_and(|credential| credential.unrestricted);
    if may {
        Ok(())
    } else {
        Err(rights::forbidden("application_credentials", action))
    }
}

/// A user's credentials, by name.
///
/// # Errors
/// 403, 404.
pub async fn list(
    cloud: &Cloud,
    ctx: &Context,
    user_id: &str,
    name: Option<String>,
) -> Result<Vec<Credential>> {
    reachable(ctx, user_id, "list")?;
    let user_id = user_id.to_owned();
    cloud
        .store
        .read(move |conn| {
            users::find(conn, &user_id)?;
            let sql = "SELECT * FROM application_credentials WHERE user_id = ?1 AND (?2 IS NULL OR name = ?2)
                 ORDER BY name";
            let mut sql = conn.prepare_cached(sql)?;
            let rows = sql
                .query_map(params![user_id, name], from_row)?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            rows.into_iter().map(|row| with_roles(conn, row)).collect()
        })
        .await
}

/// One credential.
///
/// # Errors
/// 403, 404.
pub async fn show(cloud: &Cloud, ctx: &Context, user_id: &str, id: &str) -> Result<Credential> {
    reachable(ctx, user_id, "show")?;
    let (user_id, id) = (user_id.to_owned(), id.to_owned());
    cloud.store.read(move |conn| find(conn, &user_id, &id)).await
}

/// Makes a credential for the project and at most the roles of the caller's token. The secret is told this once.
///
/// # Errors
/// 403, 400, 409 if the name is taken.
pub async fn create(
    cloud: &Cloud,
    ctx: &Context,
    user_id: &str,
    new: NewCredential,
) -> Result<(Credential, Secret)> {
    if ctx.user_id != user_id {
        return Err(rights::forbidden("application_credentials", "create"));
    }
    unrestricted(cloud, ctx, "create")?;
    let project_id = ctx.project()?.to_owned();
    names::name("name", &new.name, MAX_NAME)?;
    names::description(new.description.as_deref())?;
    if new.access_rules.as_ref().is_some_and(|rules| !rules.is_empty()) {
        return Err(Error::BadRequest(
            "Access rules are not supported by this cloud.".into(),
        ));
    }
    let expires_at = match new.expires_at.as_deref() {
        None => None,
        Some(text) => Some(parse_time(text)?),
    };
    if expires_at.is_some_and(|at| at <= now()) {
        return Err(Error::BadRequest(
            "Invalid input for field 'expires_at': it lies in the past.".into(),
        ));
    }
    let roles = chosen_roles(cloud, ctx, new.roles.as_deref())?;
    let (secret, stored) = match new.secret.clone() {
        None => password::random_secret(),
        Some(secret) if secret.expose().is_empty() => {
            return Err(Error::BadRequest(
                "Invalid input for field 'secret': it is empty.".into(),
            ));
        }
        Some(secret) => (secret.clone(), cloud.identity.hasher.hash(secret).await?),
    };
    let (id, user_id) = (super::new_id(), user_id.to_owned());
    let credential = cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let sql = "SELECT count(*) FROM application_credentials WHERE user_id = ?1";
            let count: i64 = conn
                .prepare_cached(sql)?
                .query_row([&user_id], |row| row.get(0))?;
            if count >= MAX_PER_USER {
                let text = format!("A user has at most {MAX_PER_USER} application credentials.");
                return Err(Error::Forbidden(text));
            }
            let done = conn.execute(
                "INSERT INTO application_credentials
                     (id, user_id, project_id, name, description, secret_hash, expires_at, unrestricted)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    id,
                    user_id,
                    project_id,
                    new.name,
                    new.description,
                    stored,
                    expires_at,
                    new.unrestricted.unwrap_or(false)
                ],
            );
            names::unique(done, "application credential", &new.name)?;
            for role in &roles {
                let sql = "INSERT INTO application_credential_roles (credential_id, role_id) VALUES (?1, ?2)";
                conn.execute(sql, [&id, role])?;
            }
            find(conn, &user_id, &id)
        })
        .await?;
    Ok((credential, secret))
}

/// The ids of the roles that a client named, or of all that the token has.
fn chosen_roles(cloud: &Cloud, ctx: &Context, chosen: Option<&[RoleRef]>) -> Result<Vec<String>> {
    let directory = cloud.identity.directory();
    let own: HashMap<&str, &str> = directory
        .roles
        .iter()
        .filter(|(_, name)| ctx.has_role(name))
        .map(|(id, name)| (name.as_str(), id.as_str()))
        .collect();
    let Some(chosen) = chosen.filter(|chosen| !chosen.is_empty()) else {
        return Ok(own.values().map(|id| (*id).to_owned()).collect());
    };
    let mut ids = Vec::new();
    for role in chosen {
        let by_name = role.name.as_deref().and_then(|name| own.get(name).copied());
        let by_id = role
            .id
            .as_deref()
            .and_then(|id| own.values().copied().find(|own| *own == id));
        let asked = role.id.as_deref().or(role.name.as_deref()).unwrap_or("");
        let id = by_id.or(by_name).ok_or_else(|| {
            Error::BadRequest(format!(
                "Invalid application credential: the caller does not have the role {asked}."
            ))
        })?;
        if !ids.iter().any(|known| known == id) {
            ids.push(id.to_owned());
        }
    }
    Ok(ids)
}

/// Removes a credential; its tokens end with it.
///
/// # Errors
/// 403, 404.
pub async fn delete(cloud: &Cloud, ctx: &Context, user_id: &str, id: &str) -> Result<()> {
    reachable(ctx, user_id, "delete")?;
    unrestricted(cloud, ctx, "delete")?;
    let (user_id, id) = (user_id.to_owned(), id.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            find(conn, &user_id, &id)?;
            conn.execute(
                "DELETE FROM application_credential_roles WHERE credential_id = ?1",
                [&id],
            )?;
            conn.execute("DELETE FROM application_credentials WHERE id = ?1", [&id])?;
            Ok(())
        })
        .await
}

/// `2026-12-31T23:59:59[.ffffff][Z]`, in microseconds since 1970.
fn parse_time(text: &str) -> Result<i64> {
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;
    let text = text.trim();
    let zoned = if text.ends_with('Z') || text.contains('+') {
        text.to_owned()
    } else {
        format!("{text}Z")
    };
    let parsed = OffsetDateTime::parse(&zoned, &Rfc3339);
    let bad =
        |_| Error::BadRequest("Invalid input for field 'expires_at': an ISO 8601 time is needed.".into());
    let nanos = parsed.map_err(bad)?.unix_timestamp_nanos();
    i64::try_from(nanos / 1000).map_err(|_| Error::BadRequest("Invalid input for field 'expires_at'.".into()))
}
