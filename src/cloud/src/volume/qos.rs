//! QoS specs: figures that administrators write down and give to types.

use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::row::{self, Pairs, json, uuid};
use super::types::{self, VolumeType};
use crate::compute::now;
use crate::error::Kind;
use crate::{Cloud, Context, Error, Result};

/// QoS specs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Qos {
    pub id: Uuid,
    pub name: String,
    /// `front-end`, `back-end` or `both`.
    pub consumer: String,
    pub specs: Pairs,
}

/// Who obeys the figures.
pub const CONSUMERS: [&str; 3] = ["front-end", "back-end", "both"];

impl Qos {
    fn of_row(row: &Row<'_>) -> rusqlite::Result<Qos> {
        Ok(Qos {
            id: uuid(row, "id")?,
            name: row.get("name")?,
            consumer: row.get("consumer")?,
            specs: json(row, "specs")?,
        })
    }

    fn save(&self, conn: &Connection) -> Result<()> {
        conn.prepare_cached(
            "INSERT INTO volume_qos_specs (id, name, consumer, specs, created_at) VALUES (?1, ?2, ?3, ?4, ?5) \
             ON CONFLICT (id) DO UPDATE SET consumer = excluded.consumer, specs = excluded.specs",
        )?
        .execute(params![
            self.id.to_string(),
            self.name,
            self.consumer,
            row::to_json(&self.specs)?,
            now()
        ])?;
        Ok(())
    }
}

fn find(conn: &Connection, id: &str) -> Result<Qos> {
    let missing = || Error::Named {
        name: "QoSSpecsNotFound",
        kind: Kind::NotFound,
        message: format!("No such QoS spec {id}."),
    };
    let uuid = row::parse_id("QoS spec", id).map_err(|_| missing())?;
    let mut query = conn.prepare_cached("SELECT * FROM volume_qos_specs WHERE id = ?1")?;
    query
        .query_row([uuid.to_string()], Qos::of_row)
        .optional()?
        .ok_or_else(missing)
}

fn consumer_of(text: &str) -> Result<String> {
    if CONSUMERS.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(Error::BadRequest(format!(
        "Invalid qos specs: Valid consumer of QoS specs are: {CONSUMERS:?}"
    )))
}

/// Makes QoS specs.
///
/// # Errors
/// 400 for a consumer that is none, 409 if the name is taken.
pub async fn create(
    cloud: &Cloud,
    ctx: &Context,
    name: String,
    consumer: Option<String>,
    specs: Pairs,
) -> Result<Qos> {
    ctx.require("volume_qos_specs", "update")?;
    let consumer = consumer_of(consumer.as_deref().unwrap_or("back-end"))?;
    let id = Uuid::new_v4();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut taken = conn.prepare_cached("SELECT 1 FROM volume_qos_specs WHERE name = ?1")?;
            if taken.exists([&name])? {
                return Err(Error::Conflict(format!("QoS Specs {name} already exists.")));
            }
            let qos = Qos {
                id,
                name: name.clone(),
                consumer: consumer.clone(),
                specs: specs.clone(),
            };
            qos.save(conn)?;
            Ok(qos)
        })
        .await
}

/// All QoS specs.
pub async fn list(cloud: &Cloud, ctx: &Context) -> Result<Vec<Qos>> {
    ctx.require("volume_qos_specs", "list")?;
    cloud
        .store
        .read(|conn| {
            let mut query =
                conn.prepare_cached("SELECT * FROM volume_qos_specs ORDER BY created_at DESC, id DESC")?;
            let rows = query.query_map([], Qos::of_row)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
}

/// One.
///
/// # Errors
/// 404.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Qos> {
    ctx.require("volume_qos_specs", "list")?;
    let id = id.to_owned();
    cloud.store.read(move |conn| find(conn, &id)).await
}

/// Sets figures, and the consumer if one is named.
///
/// # Errors
/// 404, 400.
pub async fn update(
    cloud: &Cloud,
    ctx: &Context,
    id: &str,
    consumer: Option<String>,
    specs: Pairs,
) -> Result<Qos> {
    ctx.require("volume_qos_specs", "update")?;
    let consumer = consumer.as_deref().map(consumer_of).transpose()?;
    let id = id.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut qos = find(conn, &id)?;
            if let Some(consumer) = &consumer {
                qos.consumer.clone_from(consumer);
            }
            qos.specs.extend(specs.clone());
            qos.save(conn)?;
            Ok(qos)
        })
        .await
}

/// Removes figures.
///
/// # Errors
/// 404, 400 for one that is not there.
pub async fn delete_keys(cloud: &Cloud, ctx: &Context, id: &str, keys: Vec<String>) -> Result<()> {
    ctx.require("volume_qos_specs", "update")?;
    let id = id.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut qos = find(conn, &id)?;
            for key in &keys {
                if qos.specs.remove(key).is_none() {
                    return Err(Error::BadRequest(format!(
                        "Invalid qos specs: QoS spec {id} has no spec with key {key}."
                    )));
                }
            }
            qos.save(conn)
        })
        .await
}

/// Removes QoS specs; `force`: also while types have them.
///
/// # Errors
/// 404, 400.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str, force: bool) -> Result<()> {
    ctx.require("volume_qos_specs", "update")?;
    let (caller, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let qos = find(conn, &id)?;
            for kind in types::with_qos(conn, qos.id)? {
                if !force {
                    return Err(Error::BadRequest(format!(
                        "Invalid qos specs: QoS Specs {id} is still associated with entities."
                    )));
                }
                types::set_qos(conn, &caller, &kind.id.to_string(), None)?;
            }
            conn.execute("DELETE FROM volume_qos_specs WHERE id = ?1", [qos.id.to_string()])?;
            Ok(())
        })
        .await
}

/// Types that have these QoS specs.
///
/// # Errors
/// 404.
pub async fn associations(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Vec<VolumeType>> {
    ctx.require("volume_qos_specs", "list")?;
    let id = id.to_owned();
    cloud
        .store
        .read(move |conn| types::with_qos(conn, find(conn, &id)?.id))
        .await
}

/// What of a type's QoS is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// This type has them from now on.
    Associate(String),
    /// This type does not.
    Disassociate(String),
    /// No type does.
    DisassociateAll,
}

/// See [`Change`].
///
/// # Errors
/// 404.
pub async fn change(cloud: &Cloud, ctx: &Context, id: &str, change: Change) -> Result<()> {
    ctx.require("volume_qos_specs", "update")?;
    let (caller, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let qos = find(conn, &id)?;
            match &change {
                Change::Associate(kind) => types::set_qos(conn, &caller, kind, Some(qos.id)),
                Change::Disassociate(kind) => types::set_qos(conn, &caller, kind, None),
                Change::DisassociateAll => types::with_qos(conn, qos.id)?
                    .iter()
                    .try_for_each(|kind| types::set_qos(conn, &caller, &kind.id.to_string(), None)),
            }
        })
        .await
}
