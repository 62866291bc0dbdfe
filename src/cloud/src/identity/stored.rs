//! What users leave with the cloud to be proved by later: EC2 keys, TOTP seeds, certificates. A row's text is encrypted
//! under the cloud's root key, which is not in the database.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Secret;
use crate::{Cloud, Context, Error, Result};

/// The largest text.
const MAX_BLOB: usize = 64 * 1024;
/// The longest type.
const MAX_KIND: usize = 255;
/// The most of one user.
const MAX_PER_USER: i64 = 200;
/// The type of EC2 keys.
pub const EC2: &str = "ec2";

/// One of a user's credentials.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its id; that of an EC2 key is the SHA-256 digest of its access key.
    pub id: String,
    /// Whose it is.
    pub user_id: String,
    /// What it is for.
    pub project_id: Option<String>,
    /// `ec2`, `totp`, `cert`, or whatever the client calls it.
    pub kind: String,
    /// The text.
    pub blob: Secret,
}

/// A credential to be kept.
#[derive(Debug, Clone, Deserialize)]
pub struct New {
    /// See [`Stored`]; the caller if it says nothing.
    #[serde(default)]
    pub user_id: Option<String>,
    /// See [`Stored`].
    #[serde(default)]
    pub project_id: Option<String>,
    /// See [`Stored`].
    #[serde(rename = "type")]
    pub kind: String,
    /// See [`Stored`].
    pub blob: Secret,
}

/// A change of a credential.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Update {
    /// See [`Stored`].
    #[serde(default)]
    pub user_id: Option<String>,
    /// See [`Stored`].
    #[serde(default)]
    pub project_id: Option<String>,
    /// See [`Stored`].
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// See [`Stored`].
    #[serde(default)]
    pub blob: Option<Secret>,
}

/// The row without its text.
struct Sealed {
    id: String,
    user_id: String,
    project_id: Option<String>,
    kind: String,
    sealed: Vec<u8>,
}

fn read(row: &Row<'_>) -> rusqlite::Result<Sealed> {
    Ok(Sealed {
        id: row.get("id")?,
        user_id: row.get("user_id")?,
        project_id: row.get("project_id")?,
        kind: row.get("kind")?,
        sealed: row.get("sealed")?,
    })
}

fn purpose(id: &str) -> String {
    format!("credential {id}")
}

fn open(cloud: &Cloud, row: Sealed) -> Result<Stored> {
    let plain = cloud.identity.root.open_sealed(&purpose(&row.id), &row.sealed);
    let plain = plain.ok_or_else(|| Error::Internal(format!("credential {} cannot be decrypted", row.id)))?;
    let text = std::str::from_utf8(&plain).map_err(|error| Error::Internal(error.to_string()))?;
    Ok(Stored {
        id: row.id,
        user_id: row.user_id,
        project_id: row.project_id,
        kind: row.kind,
        blob: Secret::new(text),
    })
}

fn find(conn: &Connection, ctx: &Context, id: &str) -> Result<Sealed> {
    let row = conn
        .prepare_cached("SELECT * FROM credentials WHERE id = ?1")?
        .query_row([id], read)
        .optional()?;
    row.filter(|row| ctx.is_admin() || row.user_id == ctx.user_id)
        .ok_or_else(|| Error::not_found("credential", id))
}

/// Whoever has but an application credential for one project must not learn keys that open others.
fn own_login(ctx: &Context, action: &str) -> Result<()> {
    if ctx.application_credential.is_some() {
        return Err(super::rights::forbidden("credentials", action));
    }
    Ok(())
}

/// Credentials are their user's own; administrators reach all.
fn check(ctx: &Context, user_id: &str) -> Result<()> {
    own_login(ctx, "create")?;
    if !(ctx.is_admin() || ctx.user_id == user_id) {
        return Err(super::rights::forbidden("credentials", "create"));
    }
    Ok(())
}

fn check_text(kind: &str, blob: &Secret) -> Result<()> {
    if kind.is_empty() || kind.len() > MAX_KIND || blob.expose().len() > MAX_BLOB {
        return Err(Error::BadRequest(format!(
            "A credential has a type of 1 to {MAX_KIND} and a blob of at most {MAX_BLOB} bytes."
        )));
    }
    Ok(())
}

/// The credentials that the caller reaches.
///
/// # Errors
/// 403.
pub async fn list(
    cloud: &Cloud,
    ctx: &Context,
    user_id: Option<String>,
    kind: Option<String>,
) -> Result<Vec<Stored>> {
    ctx.require("credentials", "list")?;
    own_login(ctx, "list")?;
    let only = (!ctx.is_admin()).then(|| ctx.user_id.clone());
    let rows: Vec<Sealed> = cloud
        .store
        .read(move |conn| {
            let mut sql = conn.prepare_cached(
                "SELECT * FROM credentials WHERE (?1 IS NULL OR user_id = ?1) AND (?2 IS NULL OR user_id = ?2)
                 AND (?3 IS NULL OR kind = ?3) ORDER BY id",
            )?;
            let rows = sql.query_map(params![only, user_id, kind], read)?;
            Ok::<_, Error>(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await?;
    rows.into_iter().map(|row| open(cloud, row)).collect()
}

/// One credential.
///
/// # Errors
/// 404.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Stored> {
    ctx.require("credentials", "show")?;
    own_login(ctx, "show")?;
    let (caller, id) = (ctx.clone(), id.to_owned());
    let row = cloud.store.read(move |conn| find(conn, &caller, &id)).await?;
    open(cloud, row)
}

/// The id of an EC2 key.
pub fn ec2_id(access: &str) -> String {
    use std::fmt::Write;
    Sha256::digest(access.as_bytes())
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Keeps a credential.
///
/// # Errors
/// 403 for another user's, 400, 409 if there is such an EC2 key.
pub async fn create(cloud: &Cloud, ctx: &Context, new: New) -> Result<Stored> {
    ctx.require("credentials", "create")?;
    let user_id = new.user_id.unwrap_or_else(|| ctx.user_id.clone());
    check(ctx, &user_id)?;
    check_text(&new.kind, &new.blob)?;
    let mut id = super::new_id();
    if new.kind == EC2 {
        let blob: Value = serde_json::from_str(new.blob.expose())
            .map_err(|_| Error::BadRequest("Invalid blob in credential".into()))?;
        let access = blob["access"].as_str().filter(|access| !access.is_empty());
        id = ec2_id(access.ok_or_else(|| Error::BadRequest("Invalid blob in credential".into()))?);
        if new.project_id.is_none() {
            return Err(Error::BadRequest("An ec2 credential needs a project_id.".into()));
        }
    }
    let sealed = cloud
        .identity
        .root
        .seal(&purpose(&id), new.blob.expose().as_bytes())?;
    let (kind, project) = (new.kind, new.project_id);
    let row = cloud
        .store
        .write(&ctx.user_id, move |conn| {
            super::users::find(conn, &user_id)?;
            if let Some(project) = &project {
                super::projects::find(conn, project)?;
            }
            let count: i64 = conn
                .prepare_cached("SELECT count(*) FROM credentials WHERE user_id = ?1")?
                .query_row([&user_id], |row| row.get(0))?;
            if count >= MAX_PER_USER {
                return Err(Error::Forbidden(format!(
                    "A user has at most {MAX_PER_USER} credentials."
                )));
            }
            let done = conn.execute(
                "INSERT INTO credentials (id, user_id, project_id, kind, sealed) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![id, user_id, project, kind, sealed],
            );
            super::names::unique(done, "credential", &id)?;
            Ok(Sealed {
                id: id.clone(),
                user_id: user_id.clone(),
                project_id: project.clone(),
                kind: kind.clone(),
                sealed: sealed.clone(),
            })
        })
        .await?;
    open(cloud, row)
}

/// Changes a credential.
///
/// # Errors
/// 404, 403 for giving it to another user, 400.
pub async fn update(cloud: &Cloud, ctx: &Context, id: &str, change: Update) -> Result<Stored> {
    ctx.require("credentials", "update")?;
    let old = show(cloud, ctx, id).await?;
    let user_id = change.user_id.unwrap_or(old.user_id);
    check(ctx, &user_id)?;
    let (kind, blob) = (change.kind.unwrap_or(old.kind), change.blob.unwrap_or(old.blob));
    check_text(&kind, &blob)?;
    let project = change.project_id.or(old.project_id);
    let sealed = cloud.identity.root.seal(&purpose(id), blob.expose().as_bytes())?;
    let (caller, id) = (ctx.clone(), id.to_owned());
    let row = cloud
        .store
        .write(&ctx.user_id, move |conn| {
            super::users::find(conn, &user_id)?;
            find(conn, &caller, &id)?;
            conn.execute(
                "UPDATE credentials SET user_id = ?2, project_id = ?3, kind = ?4, sealed = ?5 WHERE id = ?1",
                params![id, user_id, project, kind, sealed],
            )?;
            find(conn, &Context::system(), &id)
        })
        .await?;
    open(cloud, row)
}

/// Removes a credential.
///
/// # Errors
/// 404.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str) -> Result<()> {
    ctx.require("credentials", "delete")?;
    let (caller, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            find(conn, &caller, &id)?;
            conn.execute("DELETE FROM credentials WHERE id = ?1", [&id])?;
            Ok(())
        })
        .await
}

/// A user's EC2 keys.
///
/// # Errors
/// 403 for another user's.
pub async fn list_ec2(cloud: &Cloud, ctx: &Context, user_id: &str) -> Result<Vec<Stored>> {
    check(ctx, user_id)?;
    list(cloud, ctx, Some(user_id.to_owned()), Some(EC2.into())).await
}

/// A new EC2 key of a user for a project that it has a role on.
///
/// # Errors
/// 403, 404.
pub async fn create_ec2(cloud: &Cloud, ctx: &Context, user_id: &str, project_id: &str) -> Result<Stored> {
    check(ctx, user_id)?;
    {
        let directory = cloud.identity.directory();
        let target = super::token::Target::Project(project_id.to_owned());
        if directory.roles_on(user_id, &target).is_empty() {
            return Err(Error::not_found("project", project_id));
        }
    }
    let secret = super::password::random_secret().0;
    let blob = json!({"access": super::new_id(), "secret": secret.expose(), "trust_id": null});
    let new = New {
        user_id: Some(user_id.to_owned()),
        project_id: Some(project_id.to_owned()),
        kind: EC2.into(),
        blob: Secret::new(blob.to_string()),
    };
    create(cloud, ctx, new).await
}

pub(super) fn remove_of_user(conn: &Connection, user_id: &str) -> Result<()> {
    conn.prepare_cached("DELETE FROM credentials WHERE user_id = ?1")?
        .execute([user_id])?;
    Ok(())
}

pub(super) fn remove_of_project(conn: &Connection, project_id: &str) -> Result<()> {
    conn.prepare_cached("DELETE FROM credentials WHERE project_id = ?1")?
        .execute([project_id])?;
    Ok(())
}
