//! What a volume type says of encryption (Cinder's encryption types): its volumes are encrypted, also where the operator's file does not
//! ask for it. How, is the cloud's; provider, cipher and key size are kept as they were said.

use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::row::{uuid, uuid_or_null};
use super::types;
use crate::compute::{Micros, now};
use crate::{Cloud, Context, Error, Result};

/// Tables.
pub const SCHEMA: &str = "
CREATE TABLE volume_type_encryptions (
    type_id TEXT NOT NULL PRIMARY KEY,
    id TEXT NOT NULL,
    provider TEXT NOT NULL,
    cipher TEXT,
    key_size INTEGER,
    control_location TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER
) STRICT;
";

/// What may be said of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Words {
    pub provider: Option<String>,
    pub cipher: Option<Option<String>>,
    pub key_size: Option<Option<i64>>,
    /// `front-end` or `back-end`.
    pub control_location: Option<String>,
}

/// A type's encryption.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TypeEncryption {
    pub type_id: Uuid,
    pub id: Uuid,
    pub provider: String,
    pub cipher: Option<String>,
    pub key_size: Option<i64>,
    pub control_location: String,
    pub created_at: Micros,
    pub updated_at: Option<Micros>,
}

impl TypeEncryption {
    fn of_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(TypeEncryption {
            type_id: uuid(row, "type_id")?,
            id: uuid_or_null(row, "id")?.unwrap_or_default(),
            provider: row.get("provider")?,
            cipher: row.get("cipher")?,
            key_size: row.get("key_size")?,
            control_location: row.get("control_location")?,
            created_at: row.get("created_at")?,
            updated_at: row.get("updated_at")?,
        })
    }

    fn save(&self, conn: &Connection) -> Result<()> {
        conn.prepare_cached(
            "INSERT OR REPLACE INTO volume_type_encryptions VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            self.type_id.to_string(),
            self.id.to_string(),
            self.provider,
            self.cipher,
            self.key_size,
            self.control_location,
            self.created_at,
            self.updated_at,
        ])?;
        Ok(())
    }
}

fn get(conn: &Connection, kind: Uuid) -> Result<Option<TypeEncryption>> {
    let mut sql = conn.prepare_cached("SELECT * FROM volume_type_encryptions WHERE type_id = ?1")?;
    Ok(sql
        .query_row([kind.to_string()], TypeEncryption::of_row)
        .optional()?)
}

/// The type of this volume asks for encryption.
pub(crate) fn asked_for(conn: &Connection, volume: Uuid) -> Result<bool> {
    let mut sql = conn.prepare_cached(
        "SELECT 1 FROM volume_volumes JOIN volume_type_encryptions USING (type_id) WHERE volume_volumes.id = ?1",
    )?;
    Ok(sql.exists([volume.to_string()])?)
}

/// A type that is deleted says nothing any more.
pub(super) fn forget(conn: &Connection, kind: &str) -> Result<()> {
    conn.prepare_cached("DELETE FROM volume_type_encryptions WHERE type_id = ?1")?
        .execute([kind])?;
    Ok(())
}

/// A type with volumes stays as it is: they were made as it said.
fn check_unused(conn: &Connection, kind: Uuid) -> Result<()> {
    let mut sql = conn.prepare_cached("SELECT 1 FROM volume_volumes WHERE type_id = ?1")?;
    if sql.exists([kind.to_string()])? {
        return Err(Error::BadRequest(
            "Cannot create encryption specs. Volume type in use.".into(),
        ));
    }
    Ok(())
}

/// What a type says, by its id; 404.
fn find(conn: &Connection, kind: Uuid, id: &str) -> Result<TypeEncryption> {
    get(conn, kind)?
        .filter(|found| found.id.to_string() == id)
        .ok_or_else(|| Error::not_found("Volume type encryption for type", kind))
}

/// What a type says; `None`: nothing.
///
/// # Errors
/// 404 for the type.
pub async fn show(cloud: &Cloud, ctx: &Context, kind: &str) -> Result<Option<TypeEncryption>> {
    let kind = types::show(cloud, ctx, kind).await?.id;
    cloud.store.read(move |conn| get(conn, kind)).await
}

/// Makes a type say so.
///
/// # Errors
/// 404; 400 without a provider, if it does so already, or has volumes.
pub async fn create(cloud: &Cloud, ctx: &Context, kind: &str, words: Words) -> Result<TypeEncryption> {
    ctx.require("volume_types", "update")?;
    let kind = types::show(cloud, ctx, kind).await?.id;
    let id = Uuid::new_v4();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            if get(conn, kind)?.is_some() {
                return Err(Error::BadRequest(format!(
                    "Volume type encryption for type {kind} already exists."
                )));
            }
            check_unused(conn, kind)?;
            let words = words.clone();
            let made = TypeEncryption {
                type_id: kind,
                id,
                provider: words.provider.ok_or_else(|| {
                    Error::BadRequest("Invalid input: provider is a required property".into())
                })?,
                cipher: words.cipher.flatten(),
                key_size: words.key_size.flatten(),
                control_location: words.control_location.unwrap_or_else(|| "front-end".into()),
                created_at: now(),
                updated_at: None,
            };
            made.save(conn)?;
            Ok(made)
        })
        .await
}

/// Changes what it says.
///
/// # Errors
/// 404 for the type or its encryption; 400 if it has volumes.
pub async fn update(
    cloud: &Cloud,
    ctx: &Context,
    kind: &str,
    id: &str,
    words: Words,
) -> Result<TypeEncryption> {
    ctx.require("volume_types", "update")?;
    let kind = types::show(cloud, ctx, kind).await?.id;
    let id = id.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut found = find(conn, kind, &id)?;
            check_unused(conn, kind)?;
            let words = words.clone();
            if let Some(provider) = words.provider {
                found.provider = provider;
            }
            if let Some(cipher) = words.cipher {
                found.cipher = cipher;
            }
            if let Some(key_size) = words.key_size {
                found.key_size = key_size;
            }
            if let Some(location) = words.control_location {
                found.control_location = location;
            }
            found.updated_at = Some(now());
            found.save(conn)?;
            Ok(found)
        })
        .await
}

/// It says nothing any more.
///
/// # Errors
/// 404; 400 if it has volumes.
pub async fn delete(cloud: &Cloud, ctx: &Context, kind: &str, id: &str) -> Result<()> {
    ctx.require("volume_types", "update")?;
    let kind = types::show(cloud, ctx, kind).await?.id;
    let id = id.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            find(conn, kind, &id)?;
            check_unused(conn, kind)?;
            forget(conn, &kind.to_string())
        })
        .await
}
