//! Orders: keys that the cloud makes. They are made at once, so an order is done when it is there.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::{Map, Value};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::quotas::{self, Resource};
use super::secrets::{self, NewSecret, Payload};
use super::{Part, check_name, vault};
use crate::identity::now;
use crate::{Cloud, Context, Error, Result};

/// Algorithms of symmetric keys, each with the lengths that its keys may have; none: any whole number of bytes.
const ALGORITHMS: [(&str, &[u32]); 8] = [
    ("aes", &[128, 192, 256]),
    ("des", &[64]),
    ("3des", &[64, 128, 192]),
    ("hmacsha1", &[]),
    ("hmacsha256", &[]),
    ("hmacsha384", &[]),
    ("hmacsha512", &[]),
    ("camellia", &[128, 192, 256]),
];
/// The longest key.
const MAX_BITS: u32 = 4096;

/// An order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Its id.
    pub id: Uuid,
    /// The user that ordered.
    pub creator_id: String,
    /// `key`.
    pub kind: String,
    /// What was ordered, as it was said.
    pub meta: Map<String, Value>,
    /// What came of it.
    pub secret_id: Uuid,
    /// Microseconds since 1970.
    pub created_at: i64,
    /// Microseconds since 1970.
    pub updated_at: i64,
}

/// A key to be made.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct KeyOrder {
    pub name: Option<String>,
    pub algorithm: String,
    pub bit_length: u32,
    pub mode: Option<String>,
    pub expires_at: Option<i64>,
    /// As it was said.
    pub meta: Map<String, Value>,
}

fn read(row: &Row<'_>) -> rusqlite::Result<Order> {
    let bad = |text: String| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, text.into());
    let uuid = |text: String| text.parse().map_err(|_| bad(text));
    let meta: String = row.get("meta")?;
    Ok(Order {
        id: uuid(row.get("id")?)?,
        creator_id: row.get("creator_id")?,
        kind: row.get("kind")?,
        meta: serde_json::from_str(&meta).map_err(|error| bad(error.to_string()))?,
        secret_id: uuid(row.get("secret_id")?)?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

fn find(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Order> {
    let row = conn
        .prepare_cached("SELECT * FROM secret_orders WHERE id = ?1 AND project_id = ?2")?
        .query_row([&id.to_string(), ctx.project()?], read)
        .optional()?;
    row.ok_or_else(|| Error::not_found("Order", id))
}

fn check(order: &KeyOrder) -> Result<()> {
    check_name("name", order.name.as_deref())?;
    check_name("mode", order.mode.as_deref())?;
    let algorithm = order.algorithm.to_lowercase().replace('-', "");
    let Some((_, lengths)) = ALGORITHMS.iter().find(|(name, _)| *name == algorithm) else {
        return Err(Error::BadRequest(format!(
            "Invalid algorithm for a key: {}.",
            order.algorithm.chars().take(64).collect::<String>()
        )));
    };
    let bits = order.bit_length;
    let fits = if lengths.is_empty() {
        bits > 0 && bits <= MAX_BITS && bits.is_multiple_of(8)
    } else {
        lengths.contains(&bits)
    };
    if !fits {
        return Err(Error::BadRequest(format!(
            "Invalid bit_length for a key of {algorithm}: {bits}."
        )));
    }
    if order.expires_at.is_some_and(|at| at <= now()) {
        return Err(Error::BadRequest("'expiration' is before current time.".into()));
    }
    Ok(())
}

/// Makes a random key, and a secret of it.
///
/// # Errors
/// 403, 400.
pub async fn create(cloud: &Cloud, ctx: &Context, order: KeyOrder) -> Result<Uuid> {
    ctx.require("secret_orders", "create")?;
    check(&order)?;
    let meta = serde_json::to_string(&order.meta).map_err(|error| Error::Internal(error.to_string()))?;
    let mut bytes = Zeroizing::new(vec![0; (order.bit_length / 8) as usize]);
    rand::fill(&mut bytes[..]);
    let new = NewSecret {
        name: order.name,
        kind: Some("symmetric".into()),
        algorithm: Some(order.algorithm),
        bit_length: Some(order.bit_length),
        mode: order.mode,
        expires_at: order.expires_at,
        payload: Some(Payload {
            content_type: "application/octet-stream".into(),
            bytes,
        }),
    };
    let key = vault::key_of(cloud, ctx.project()?).await?;
    let (caller, id, secret, now) = (ctx.clone(), Uuid::new_v4(), Uuid::new_v4(), now());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let project = caller.project()?;
            quotas::charge(conn, project, Resource::Orders)?;
            secrets::insert(conn, &caller, &key, &new, secret)?;
            conn.execute(
                "INSERT INTO secret_orders (id, project_id, creator_id, kind, meta, secret_id, created_at, updated_at)
                 VALUES (?1, ?2, ?3, 'key', ?4, ?5, ?6, ?6)",
                params![
                    id.to_string(),
                    project,
                    caller.user_id,
                    meta,
                    secret.to_string(),
                    now
                ],
            )?;
            Ok::<_, Error>(())
        })
        .await?;
    Ok(id)
}

/// The orders of the caller's project, and how many there are in all.
///
/// # Errors
/// 403.
pub async fn list(cloud: &Cloud, ctx: &Context, part: Part) -> Result<(Vec<Order>, usize)> {
    ctx.require("secret_orders", "list")?;
    let ctx = ctx.clone();
    cloud
        .store
        .read(move |conn| {
            let sql = "SELECT * FROM secret_orders WHERE project_id = ?1 ORDER BY created_at, id";
            let mut sql = conn.prepare_cached(sql)?;
            let rows = sql.query_map([ctx.project()?], read)?;
            Ok(part.of(rows.collect::<rusqlite::Result<Vec<_>>>()?))
        })
        .await
}

/// One order.
///
/// # Errors
/// 404, 403.
pub async fn show(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<Order> {
    ctx.require("secret_orders", "show")?;
    let ctx = ctx.clone();
    cloud.store.read(move |conn| find(conn, &ctx, id)).await
}

/// Removes an order; what came of it stays.
///
/// # Errors
/// 404, 403.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("secret_orders", "delete")?;
    let caller = ctx.clone();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            find(conn, &caller, id)?;
            conn.execute("DELETE FROM secret_orders WHERE id = ?1", [id.to_string()])?;
            Ok(())
        })
        .await
}
