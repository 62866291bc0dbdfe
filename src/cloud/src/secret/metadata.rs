//! Free metadata of secrets: not encrypted, for what is no secret.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::acls::Access;
use super::secrets;
use crate::{Cloud, Context, Error, Result};

/// The most entries of one secret, and the longest key and value.
const MAX_ENTRIES: usize = 100;
const MAX_LENGTH: usize = 255;

/// All metadata of a secret.
pub type Metadata = BTreeMap<String, String>;

/// How one entry is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It must not be there yet.
    New,
    /// It must be there.
    Known,
}

fn read(conn: &Connection, secret: Uuid) -> Result<Metadata> {
    let mut sql = conn.prepare_cached("SELECT key, value FROM secret_metadata WHERE secret_id = ?1")?;
    let rows = sql.query_map([secret.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn check(metadata: &Metadata) -> Result<()> {
    let fits = |text: &str| !text.is_empty() && text.chars().count() <= MAX_LENGTH;
    if metadata.len() > MAX_ENTRIES
        || metadata
            .iter()
            .any(|(key, value)| !fits(key) || value.chars().count() > MAX_LENGTH)
    {
        return Err(Error::BadRequest(format!(
            "A secret has at most {MAX_ENTRIES} entries of metadata, with keys of 1 to {MAX_LENGTH} and values of at \
             most {MAX_LENGTH} characters."
        )));
    }
    Ok(())
}

fn write(conn: &Connection, secret: Uuid, key: &str, value: &str) -> Result<()> {
    conn.prepare_cached(
        "INSERT OR REPLACE INTO secret_metadata (secret_id, key, value) VALUES (?1, ?2, ?3)",
    )?
    .execute(params![secret.to_string(), key, value])?;
    Ok(())
}

pub(super) fn remove_of(conn: &Connection, secret: Uuid) -> Result<()> {
    conn.prepare_cached("DELETE FROM secret_metadata WHERE secret_id = ?1")?
        .execute([secret.to_string()])?;
    Ok(())
}

fn missing(key: &str) -> Error {
    Error::not_found("Secret metadata", key.chars().take(64).collect::<String>())
}

/// All metadata of a secret.
///
/// # Errors
/// 404, 403.
pub async fn list(cloud: &Cloud, ctx: &Context, secret: Uuid) -> Result<Metadata> {
    ctx.require("secret_metadata", "show")?;
    let ctx = ctx.clone();
    cloud
        .store
        .read(move |conn| {
            secrets::find(conn, &ctx, secret, Access::Read)?;
            read(conn, secret)
        })
        .await
}

/// These and no others. Keys are lower case, as Barbican keeps them.
///
/// # Errors
/// 404, 403, 400.
pub async fn replace(cloud: &Cloud, ctx: &Context, secret: Uuid, metadata: Metadata) -> Result<()> {
    ctx.require("secret_metadata", "update")?;
    let metadata = metadata
        .into_iter()
        .map(|(key, value)| (key.to_lowercase(), value))
        .collect();
    check(&metadata)?;
    let caller = ctx.clone();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            secrets::find(conn, &caller, secret, Access::Change)?;
            remove_of(conn, secret)?;
            metadata
                .iter()
                .try_for_each(|(key, value)| write(conn, secret, key, value))
        })
        .await
}

/// Sets one entry.
///
/// # Errors
/// 404, 403, 400, 409 if it is there and must not be.
pub async fn put(cloud: &Cloud, ctx: &Context, secret: Uuid, how: Put, key: &str, value: &str) -> Result<()> {
    ctx.require("secret_metadata", "update")?;
    let (caller, key, value) = (ctx.clone(), key.to_lowercase(), value.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            secrets::find(conn, &caller, secret, Access::Change)?;
            let mut all = read(conn, secret)?;
            match (how, all.contains_key(&key)) {
                (Put::New, true) => {
                    return Err(Error::Conflict(format!("Key {key} is there already.")));
                }
                (Put::Known, false) => return Err(missing(&key)),
                _ => {}
            }
            all.insert(key.clone(), value.clone());
            check(&all)?;
            write(conn, secret, &key, &value)
        })
        .await
}

/// Removes one entry.
///
/// # Errors
/// 404, 403.
pub async fn remove(cloud: &Cloud, ctx: &Context, secret: Uuid, key: &str) -> Result<()> {
    ctx.require("secret_metadata", "update")?;
    let (caller, key) = (ctx.clone(), key.to_lowercase());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            secrets::find(conn, &caller, secret, Access::Change)?;
            let sql = "DELETE FROM secret_metadata WHERE secret_id = ?1 AND key = ?2";
            match conn.execute(sql, params![secret.to_string(), key])? {
                0 => Err(missing(&key)),
                _ => Ok(()),
            }
        })
        .await
}
