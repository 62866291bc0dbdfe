//! Secrets themselves.
//!
//! ```text
//!            payload in the request                 expiration
//!   (none) ─────────────────────────▶ has a payload ──────────▶ not found any more
//!      │                                    ▲
//!      └── without ──▶ waits for it ────────┘  once: a payload is never replaced
//! ```

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::acls::{self, Access, Acl};
use super::quotas::{self, Resource};
use super::vault;
use super::{Consumer, Part, check_name, consumers, metadata};
use crate::encryption::Kek;
use crate::identity::now;
use crate::image::list::Comparison;
use crate::{Cloud, Context, Error, Result};

/// What a secret may be, as its creator says.
pub const KINDS: [&str; 6] = [
    "symmetric",
    "public",
    "private",
    "certificate",
    "passphrase",
    "opaque",
];

/// The largest payload, as in Barbican.
pub const MAX_PAYLOAD: usize = 20_000;

/// All but the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub project_id: String,
    /// The user that made it.
    pub creator_id: String,
    /// Its name; many may have the same.
    pub name: Option<String>,
    /// One of [`KINDS`].
    pub kind: String,
    /// What the creator says of it.
    pub algorithm: Option<String>,
    /// What the creator says of it.
    pub bit_length: Option<u32>,
    /// What the creator says of it.
    pub mode: Option<String>,
    /// From then on it is not found, in microseconds since 1970.
    pub expires_at: Option<i64>,
    /// The payload's type, if the payload is there.
    pub content_type: Option<String>,
    /// What uses it.
    pub consumers: Vec<Consumer>,
    /// Microseconds since 1970.
    pub created_at: i64,
    /// Microseconds since 1970.
    pub updated_at: i64,
}

/// A payload.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    /// `text/plain` or `application/octet-stream`.
    pub content_type: String,
    /// The bytes.
    pub bytes: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "*** ({})", self.content_type)
    }
}

/// A secret to be made.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct NewSecret {
    pub name: Option<String>,
    pub kind: Option<String>,
    pub algorithm: Option<String>,
    pub bit_length: Option<u32>,
    pub mode: Option<String>,
    pub expires_at: Option<i64>,
    pub payload: Option<Payload>,
}

/// A time of a secret that a list is narrowed to or sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeKey {
    /// When it was made.
    Created,
    /// When it was changed.
    Updated,
    /// When it ends.
    Expiration,
}

/// What lists are sorted by, and whether upwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SortKey {
    /// Such as `created`.
    pub key: String,
    /// Smallest first.
    pub up: bool,
}

/// What a list is narrowed to.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Filter {
    pub name: Option<String>,
    pub algorithm: Option<String>,
    pub mode: Option<String>,
    pub bits: Option<u32>,
    pub kind: Option<String>,
    pub times: Vec<(TimeKey, Comparison, i64)>,
    /// Those alone that others share with the caller.
    pub acl_only: bool,
    pub sort: Vec<SortKey>,
}

impl Secret {
    fn read(row: &Row<'_>) -> rusqlite::Result<Secret> {
        let id: String = row.get("id")?;
        Ok(Secret {
            id: id
                .parse()
                .map_err(|_| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, id.into()))?,
            project_id: row.get("project_id")?,
            creator_id: row.get("creator_id")?,
            name: row.get("name")?,
            kind: row.get("kind")?,
            algorithm: row.get("algorithm")?,
            bit_length: row.get("bit_length")?,
            mode: row.get("mode")?,
            expires_at: row.get("expires_at")?,
            content_type: row.get("content_type")?,
            consumers: Vec::new(),
            created_at: row.get("created_at")?,
            updated_at: row.get("updated_at")?,
        })
    }

    fn time(&self, key: TimeKey) -> Option<i64> {
        match key {
            TimeKey::Created => Some(self.created_at),
            TimeKey::Updated => Some(self.updated_at),
            TimeKey::Expiration => self.expires_at,
        }
    }
}

fn missing(id: Uuid) -> Error {
    Error::not_found("Secret", id)
}

/// The secret, if the caller may do this with it.
pub(super) fn find(conn: &Connection, ctx: &Context, id: Uuid, access: Access) -> Result<Secret> {
    let row = conn
        .prepare_cached("SELECT * FROM secrets WHERE id = ?1")?
        .query_row([id.to_string()], Secret::read)
        .optional()?;
    let secret = row
        .filter(|secret| secret.expires_at.is_none_or(|at| now() < at))
        .ok_or_else(|| missing(id))?;
    let acl = Acl::of(conn, id)?;
    acl.check(ctx, &secret.project_id, &secret.creator_id, access, || {
        missing(id)
    })?;
    Ok(secret)
}

fn check(new: &NewSecret) -> Result<()> {
    for (field, text) in [
        ("name", &new.name),
        ("algorithm", &new.algorithm),
        ("mode", &new.mode),
    ] {
        check_name(field, text.as_deref())?;
    }
    if new.kind.as_deref().is_some_and(|kind| !KINDS.contains(&kind)) {
        return Err(Error::BadRequest(format!(
            "Provided object does not match schema 'Secret': secret_type is one of {}.",
            KINDS.join(", ")
        )));
    }
    if new
        .bit_length
        .is_some_and(|bits| bits == 0 || bits > i16::MAX.unsigned_abs().into())
    {
        return Err(Error::BadRequest(
            "Provided object does not match schema 'Secret': bit_length is from 1 to 32767.".into(),
        ));
    }
    if new.expires_at.is_some_and(|at| at <= now()) {
        return Err(Error::BadRequest(
            "Provided object does not match schema 'Secret': 'expiration' is before current time.".into(),
        ));
    }
    new.payload.as_ref().map_or(Ok(()), check_payload)
}

fn check_payload(payload: &Payload) -> Result<()> {
    if payload.bytes.is_empty() {
        return Err(Error::BadRequest("A payload must not be empty.".into()));
    }
    if payload.bytes.len() > MAX_PAYLOAD {
        return Err(Error::TooLarge(format!(
            "A payload has at most {MAX_PAYLOAD} bytes."
        )));
    }
    Ok(())
}

/// Inserts the row. For rules that make a secret together with something else.
pub(super) fn insert(conn: &Connection, ctx: &Context, key: &Kek, new: &NewSecret, id: Uuid) -> Result<()> {
    let project = ctx.project()?;
    quotas::charge(conn, project, Resource::Secrets)?;
    let sealed = new
        .payload
        .as_ref()
        .map(|payload| key.seal(&id.to_string(), &payload.bytes))
        .transpose()?;
    conn.prepare_cached(
        "INSERT INTO secrets (id, project_id, creator_id, name, kind, algorithm, bit_length, mode, expires_at,
             content_type, sealed, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?12)",
    )?
    .execute(params![
        id.to_string(),
        project,
        ctx.user_id,
        new.name,
        new.kind.as_deref().unwrap_or("opaque"),
        new.algorithm,
        new.bit_length,
        new.mode,
        new.expires_at,
        new.payload.as_ref().map(|payload| &payload.content_type),
        sealed,
        now()
    ])?;
    Ok(())
}

/// Makes a secret.
///
/// # Errors
/// 403, also if the quota is used up; 400, 413.
pub async fn create(cloud: &Cloud, ctx: &Context, new: NewSecret) -> Result<Uuid> {
    ctx.require("secrets", "create")?;
    check(&new)?;
    let key = vault::key_of(cloud, ctx.project()?).await?;
    let (caller, id) = (ctx.clone(), Uuid::new_v4());
    cloud
        .store
        .write(&ctx.user_id, move |conn| insert(conn, &caller, &key, &new, id))
        .await?;
    Ok(id)
}

/// The secrets of the caller's project that it may read, and how many there are in all.
///
/// # Errors
/// 403, 400.
pub async fn list(cloud: &Cloud, ctx: &Context, filter: Filter, part: Part) -> Result<(Vec<Secret>, usize)> {
    ctx.require("secrets", "list")?;
    let ctx = ctx.clone();
    cloud
        .store
        .read(move |conn| {
            // Who is listed may be of any project; a secret without a list is its project's.
            let sql = "SELECT s.* FROM secrets s LEFT JOIN secret_acls a ON a.target_id = s.id
                 WHERE (CASE WHEN ?7 THEN EXISTS (SELECT 1 FROM json_each(a.users) u WHERE u.value = ?2)
                        ELSE s.project_id = ?1 AND (coalesce(a.project_access, 1) OR s.creator_id = ?2 OR ?8
                             OR EXISTS (SELECT 1 FROM json_each(a.users) u WHERE u.value = ?2)) END)
                 AND (s.expires_at IS NULL OR s.expires_at > ?9)
                 AND (?3 IS NULL OR s.name = ?3) AND (?4 IS NULL OR s.algorithm = ?4)
                 AND (?5 IS NULL OR s.mode = ?5) AND (?6 IS NULL OR s.bit_length = ?6)
                 AND (?10 IS NULL OR s.kind = ?10)
                 ORDER BY s.created_at, s.id";
            let mut sql = conn.prepare_cached(sql)?;
            let rows = sql.query_map(
                params![
                    ctx.project()?,
                    ctx.user_id,
                    filter.name,
                    filter.algorithm,
                    filter.mode,
                    filter.bits,
                    filter.acl_only,
                    ctx.is_admin(),
                    now(),
                    filter.kind
                ],
                Secret::read,
            )?;
            let mut all = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            all.retain(|secret| {
                filter.times.iter().all(|(key, comparison, at)| {
                    secret
                        .time(*key)
                        .is_some_and(|time| comparison.holds(time.cmp(at)))
                })
            });
            for SortKey { key, up } in filter.sort.iter().rev() {
                all.sort_by(|a, b| {
                    let order = compare(a, b, key);
                    if *up { order } else { order.reverse() }
                });
            }
            let (mut shown, total) = part.of(all);
            for secret in &mut shown {
                secret.consumers = consumers::of_secret(conn, secret.id)?;
            }
            Ok((shown, total))
        })
        .await
}

fn compare(a: &Secret, b: &Secret, key: &str) -> std::cmp::Ordering {
    match key {
        "name" => a.name.cmp(&b.name),
        "algorithm" => a.algorithm.cmp(&b.algorithm),
        "bit_length" => a.bit_length.cmp(&b.bit_length),
        "mode" => a.mode.cmp(&b.mode),
        "secret_type" => a.kind.cmp(&b.kind),
        "updated" => a.updated_at.cmp(&b.updated_at),
        "expiration" => a.expires_at.cmp(&b.expires_at),
        _ => a.created_at.cmp(&b.created_at),
    }
}

/// One secret without its payload.
///
/// # Errors
/// 404, 403.
pub async fn show(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<Secret> {
    ctx.require("secrets", "show")?;
    let ctx = ctx.clone();
    cloud
        .store
        .read(move |conn| {
            let mut secret = find(conn, &ctx, id, Access::Read)?;
            secret.consumers = consumers::of_secret(conn, id)?;
            Ok(secret)
        })
        .await
}

/// The payload.
///
/// # Errors
/// 404, also while there is none; 403.
pub async fn payload(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<Payload> {
    ctx.require("secrets", "payload")?;
    let caller = ctx.clone();
    let (secret, sealed) = cloud
        .store
        .read(move |conn| {
            let secret = find(conn, &caller, id, Access::Read)?;
            let sealed: Option<Vec<u8>> = conn
                .prepare_cached("SELECT sealed FROM secrets WHERE id = ?1")?
                .query_row([id.to_string()], |row| row.get(0))?;
            Ok::<_, Error>((secret, sealed))
        })
        .await?;
    let (Some(sealed), Some(content_type)) = (sealed, secret.content_type) else {
        return Err(Error::Named {
            name: "NoPayload",
            kind: crate::error::Kind::NotFound,
            message: "Not Found. Sorry but your secret has no payload.".into(),
        });
    };
    let key = vault::key_of(cloud, &secret.project_id).await?;
    Ok(Payload {
        content_type,
        bytes: key.open(&id.to_string(), &sealed)?,
    })
}

/// Gives a secret the payload that it waits for.
///
/// # Errors
/// 404, 403, 409 if it has one, 400, 413.
pub async fn set_payload(cloud: &Cloud, ctx: &Context, id: Uuid, payload: Payload) -> Result<()> {
    ctx.require("secrets", "update")?;
    check_payload(&payload)?;
    let key = vault::key_of(cloud, ctx.project()?).await?;
    let sealed = key.seal(&id.to_string(), &payload.bytes)?;
    let (caller, content_type) = (ctx.clone(), payload.content_type);
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let secret = find(conn, &caller, id, Access::Change)?;
            if secret.content_type.is_some() {
                return Err(Error::Conflict(
                    "Secret already has data, cannot modify it.".into(),
                ));
            }
            conn.prepare_cached(
                "UPDATE secrets SET content_type = ?2, sealed = ?3, updated_at = ?4 WHERE id = ?1",
            )?
            .execute(params![id.to_string(), content_type, sealed, now()])?;
            Ok(())
        })
        .await
}

/// Removes a secret with all that is said of it.
///
/// # Errors
/// 404, 403.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("secrets", "delete")?;
    let caller = ctx.clone();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            find(conn, &caller, id, Access::Change)?;
            remove(conn, id)
        })
        .await
}

fn remove(conn: &Connection, id: Uuid) -> Result<()> {
    metadata::remove_of(conn, id)?;
    consumers::remove_of(conn, id)?;
    acls::remove_of(conn, id)?;
    let id = id.to_string();
    conn.execute("DELETE FROM secret_container_refs WHERE secret_id = ?1", [&id])?;
    conn.execute("DELETE FROM secrets WHERE id = ?1", [&id])?;
    Ok(())
}

/// Removes secrets of a project that nobody can see any longer, for they have expired.
pub(super) fn remove_expired(conn: &Connection, project: &str) -> Result<()> {
    let mut sql = conn.prepare_cached(
        "SELECT id FROM secrets WHERE project_id = ?1 AND expires_at IS NOT NULL AND expires_at <= ?2",
    )?;
    let rows = sql.query_map(rusqlite::params![project, now()], |row| row.get::<_, String>(0))?;
    let expired: Vec<String> = rows.collect::<rusqlite::Result<_>>()?;
    for id in expired.iter().filter_map(|id| id.parse().ok()) {
        remove(conn, id)?;
    }
    Ok(())
}
