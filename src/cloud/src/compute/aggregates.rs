//! Host aggregates: operators' groups of nodes. One with an availability zone puts its nodes into that zone.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::servers::{json, to_json, uuid};
use super::{Micros, now};
use crate::{Cloud, Context, Error, Result};

/// An aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Aggregate {
    /// For clients that want one.
    pub number: i64,
    pub id: Uuid,
    pub name: String,
    pub zone: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub hosts: Vec<String>,
    pub created_at: Micros,
    pub updated_at: Option<Micros>,
}

const COLUMNS: &str = "number, id, name, zone, metadata, hosts, created_at, updated_at";

fn of_row(row: &Row<'_>) -> rusqlite::Result<Aggregate> {
    Ok(Aggregate {
        number: row.get(0)?,
        id: uuid(row, 1)?,
        name: row.get(2)?,
        zone: row.get(3)?,
        metadata: json(row, 4)?,
        hosts: json(row, 5)?,
        created_at: row.get(6)?,
        updated_at: row.get(7)?,
    })
}

impl Aggregate {
    fn save(&self, conn: &Connection) -> Result<()> {
        conn.prepare_cached(&format!(
            "INSERT OR REPLACE INTO compute_aggregates ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
        ))?
        .execute(params![
            self.number,
            self.id.to_string(),
            self.name,
            self.zone,
            to_json(&self.metadata)?,
            to_json(&self.hosts)?,
            self.created_at,
            self.updated_at,
        ])?;
        Ok(())
    }
}

fn all(conn: &Connection) -> Result<Vec<Aggregate>> {
    let mut query = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM compute_aggregates ORDER BY number"
    ))?;
    Ok(query.query_map([], of_row)?.collect::<rusqlite::Result<_>>()?)
}

fn find(conn: &Connection, id: &str) -> Result<Aggregate> {
    let missing = || super::missing(format!("Aggregate {id} could not be found."));
    let number: i64 = id.parse().map_err(|_| missing())?;
    let mut query = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM compute_aggregates WHERE number = ?1"
    ))?;
    query.query_row([number], of_row).optional()?.ok_or_else(missing)
}

/// The availability zone of a node: an aggregate's that has it, or else the one of the settings.
pub(super) fn zone_of(conn: &Connection, node: &str, settings: &str) -> Result<String> {
    let zone = all(conn)?
        .into_iter()
        .filter(|aggregate| aggregate.hosts.iter().any(|host| host == node))
        .find_map(|aggregate| aggregate.zone);
    Ok(zone.unwrap_or_else(|| settings.to_owned()))
}

/// A server that is to be in this availability zone finds a node.
pub(super) fn check_zone(conn: &Connection, node: &str, settings: &str, asked: &str) -> Result<()> {
    if zone_of(conn, node, settings)? == asked {
        return Ok(());
    }
    Err(Error::BadRequest(
        "The requested availability zone is not available".into(),
    ))
}

/// All aggregates.
pub async fn list(cloud: &Cloud, ctx: &Context) -> Result<Vec<Aggregate>> {
    ctx.require("aggregates", "list")?;
    cloud.store.read(all).await
}

/// One aggregate, by its number.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Aggregate> {
    ctx.require("aggregates", "list")?;
    let id = id.to_owned();
    cloud.store.read(move |conn| find(conn, &id)).await
}

fn check_name(conn: &Connection, name: &str, but: i64) -> Result<()> {
    let taken = conn
        .prepare_cached("SELECT 1 FROM compute_aggregates WHERE name = ?1 AND number <> ?2")?
        .exists(params![name, but])?;
    if taken {
        return Err(Error::Conflict(format!("Aggregate {name} already exists.")));
    }
    Ok(())
}

/// Makes an aggregate.
pub async fn create(cloud: &Cloud, ctx: &Context, name: String, zone: Option<String>) -> Result<Aggregate> {
    ctx.require("aggregates", "update")?;
    let id = Uuid::new_v4();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            check_name(conn, &name, -1)?;
            let last: i64 = conn.query_row(
                "SELECT COALESCE(MAX(number), 0) FROM compute_aggregates",
                [],
                |row| row.get(0),
            )?;
            let mut metadata = BTreeMap::new();
            if let Some(zone) = &zone {
                metadata.insert("availability_zone".to_owned(), zone.clone());
            }
            let aggregate = Aggregate {
                number: last + 1,
                id,
                name: name.clone(),
                zone: zone.clone(),
                metadata,
                hosts: Vec::new(),
                created_at: now(),
                updated_at: None,
            };
            aggregate.save(conn)?;
            Ok(aggregate)
        })
        .await
}

/// A change of an aggregate.
#[derive(Debug, Clone)]
pub enum Change {
    /// Another name, another zone.
    Update {
        /// The name.
        name: Option<String>,
        /// The zone.
        zone: Option<String>,
    },
    /// Metadata are added, replaced and (without a value) removed.
    Metadata(BTreeMap<String, Option<String>>),
    /// A node more.
    AddHost(String),
    /// A node less.
    RemoveHost(String),
}

/// Changes an aggregate.
pub async fn change(cloud: &Cloud, ctx: &Context, id: &str, what: Change) -> Result<Aggregate> {
    ctx.require("aggregates", "update")?;
    let (id, node) = (id.to_owned(), cloud.config.node.clone());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut aggregate = find(conn, &id)?;
            match &what {
                Change::Update { name, zone } => {
                    if let Some(name) = name {
                        check_name(conn, name, aggregate.number)?;
                        aggregate.name.clone_from(name);
                    }
                    if let Some(zone) = zone {
                        set_zone(conn, &mut aggregate, Some(zone.clone()))?;
                    }
                }
                Change::Metadata(pairs) => {
                    for (key, value) in pairs {
                        match value {
                            _ if key == "availability_zone" => set_zone(conn, &mut aggregate, value.clone())?,
                            Some(value) => {
                                aggregate.metadata.insert(key.clone(), value.clone());
                            }
                            None => {
                                aggregate.metadata.remove(key);
                            }
                        }
                    }
                    if aggregate.metadata.len() > 128 {
                        return Err(Error::BadRequest("An aggregate has at most 128 metadata.".into()));
                    }
                }
                Change::AddHost(host) => add(conn, &mut aggregate, host, &node)?,
                Change::RemoveHost(host) => {
                    if !aggregate.hosts.contains(host) {
                        return Err(super::missing(format!(
                            "Cannot remove host {host} in aggregate {id}: it is not there."
                        )));
                    }
                    aggregate.hosts.retain(|other| other != host);
                }
            }
            aggregate.updated_at = Some(now());
            aggregate.save(conn)?;
            Ok(aggregate)
        })
        .await
}

fn has_servers(conn: &Connection, hosts: &[String]) -> Result<bool> {
    let mut query = conn.prepare_cached("SELECT 1 FROM compute_servers WHERE host = ?1 AND deleted = 0")?;
    for host in hosts {
        if query.exists([host])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A zone is not changed under servers' feet.
fn set_zone(conn: &Connection, aggregate: &mut Aggregate, zone: Option<String>) -> Result<()> {
    if zone != aggregate.zone && has_servers(conn, &aggregate.hosts)? {
        return Err(Error::BadRequest(
            "Cannot update aggregate. Reason: One or more hosts contain instances in this zone.".into(),
        ));
    }
    match &zone {
        Some(zone) => aggregate
            .metadata
            .insert("availability_zone".to_owned(), zone.clone()),
        None => aggregate.metadata.remove("availability_zone"),
    };
    aggregate.zone = zone;
    Ok(())
}

fn add(conn: &Connection, aggregate: &mut Aggregate, host: &str, node: &str) -> Result<()> {
    if host != node {
        return Err(super::missing(format!("Compute host {host} could not be found.")));
    }
    if aggregate.hosts.iter().any(|other| other == host) {
        return Err(Error::Conflict(format!(
            "Cannot add host {host} in aggregate {}: host already exists",
            aggregate.number
        )));
    }
    let other = all(conn)?
        .into_iter()
        .filter(|other| other.number != aggregate.number && other.hosts.iter().any(|h| h == host))
        .find_map(|other| other.zone);
    if let (Some(other), Some(zone)) = (other, &aggregate.zone)
        && other != *zone
    {
        return Err(Error::Conflict(format!(
            "Cannot add host to aggregate {}. Reason: One or more hosts already in availability zone(s) {other}.",
            aggregate.number
        )));
    }
    aggregate.hosts.push(host.to_owned());
    Ok(())
}

/// Removes an aggregate that has no nodes.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str) -> Result<()> {
    ctx.require("aggregates", "update")?;
    let id = id.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let aggregate = find(conn, &id)?;
            if !aggregate.hosts.is_empty() {
                return Err(Error::BadRequest(format!(
                    "Cannot remove host aggregate {id}: Host aggregate is not empty."
                )));
            }
            conn.execute(
                "DELETE FROM compute_aggregates WHERE number = ?1",
                [aggregate.number],
            )?;
            Ok(())
        })
        .await
}
