//! Consumers: what says that it uses a secret or a container, for people who would delete it.

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::acls::Access;
use super::quotas::{self, Resource};
use super::{Part, check_name, containers, secrets};
use crate::{Cloud, Context, Error, Result};

/// A resource that uses a secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Consumer {
    /// Such as `glance`.
    pub service: String,
    /// Such as `image`.
    pub resource_type: String,
    /// Which.
    pub resource_id: String,
}

/// A resource that uses a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerConsumer {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub url: String,
}

pub(super) fn of_secret(conn: &Connection, secret: Uuid) -> Result<Vec<Consumer>> {
    let mut sql = conn.prepare_cached("SELECT * FROM secret_consumers WHERE secret_id = ?1")?;
    let rows = sql.query_map([secret.to_string()], |row| {
        Ok(Consumer {
            service: row.get("service")?,
            resource_type: row.get("resource_type")?,
            resource_id: row.get("resource_id")?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn remove_of(conn: &Connection, secret: Uuid) -> Result<()> {
    conn.prepare_cached("DELETE FROM secret_consumers WHERE secret_id = ?1")?
        .execute([secret.to_string()])?;
    Ok(())
}

pub(super) fn of_container(conn: &Connection, container: Uuid) -> Result<Vec<ContainerConsumer>> {
    let sql = "SELECT name, url FROM secret_container_consumers WHERE container_id = ?1 ORDER BY name, url";
    let mut sql = conn.prepare_cached(sql)?;
    let rows = sql.query_map([container.to_string()], |row| {
        Ok(ContainerConsumer {
            name: row.get(0)?,
            url: row.get(1)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn check(texts: &[(&str, &str)]) -> Result<()> {
    for (field, text) in texts {
        if text.is_empty() {
            return Err(Error::BadRequest(format!(
                "Provided object does not match schema 'Consumer': '{field}' is empty."
            )));
        }
        check_name(field, Some(text))?;
    }
    Ok(())
}

/// The consumers of a secret, and how many there are in all.
///
/// # Errors
/// 404, 403.
pub async fn list(cloud: &Cloud, ctx: &Context, secret: Uuid, part: Part) -> Result<(Vec<Consumer>, usize)> {
    ctx.require("secret_consumers", "list")?;
    let ctx = ctx.clone();
    cloud
        .store
        .read(move |conn| {
            secrets::find(conn, &ctx, secret, Access::Read)?;
            Ok(part.of(of_secret(conn, secret)?))
        })
        .await
}

/// Something uses a secret; twice is once.
///
/// # Errors
/// 404, 403, 400.
pub async fn add(cloud: &Cloud, ctx: &Context, secret: Uuid, consumer: Consumer) -> Result<()> {
    ctx.require("secret_consumers", "update")?;
    check(&[
        ("service", &consumer.service),
        ("resource_type", &consumer.resource_type),
        ("resource_id", &consumer.resource_id),
    ])?;
    let caller = ctx.clone();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let of = secrets::find(conn, &caller, secret, Access::Read)?;
            quotas::charge(conn, &of.project_id, Resource::Consumers)?;
            conn.execute(
                "INSERT OR IGNORE INTO secret_consumers (secret_id, service, resource_type, resource_id)
                 VALUES (?1, ?2, ?3, ?4)",
                params![
                    secret.to_string(),
                    consumer.service,
                    consumer.resource_type,
                    consumer.resource_id
                ],
            )?;
            Ok(())
        })
        .await
}

/// Something uses a secret no more.
///
/// # Errors
/// 404, 403.
pub async fn remove(cloud: &Cloud, ctx: &Context, secret: Uuid, consumer: Consumer) -> Result<()> {
    ctx.require("secret_consumers", "update")?;
    let caller = ctx.clone();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            secrets::find(conn, &caller, secret, Access::Read)?;
            let gone = conn.execute(
                "DELETE FROM secret_consumers WHERE secret_id = ?1 AND service = ?2 AND resource_type = ?3
                 AND resource_id = ?4",
                params![
                    secret.to_string(),
                    consumer.service,
                    consumer.resource_type,
                    consumer.resource_id
                ],
            )?;
            match gone {
                0 => Err(Error::not_found("Consumer", &consumer.resource_id)),
                _ => Ok(()),
            }
        })
        .await
}

/// The consumers of a container, and how many there are in all.
///
/// # Errors
/// 404, 403.
pub async fn list_of_container(
    cloud: &Cloud,
    ctx: &Context,
    container: Uuid,
    part: Part,
) -> Result<(Vec<ContainerConsumer>, usize)> {
    ctx.require("secret_consumers", "list")?;
    let ctx = ctx.clone();
    cloud
        .store
        .read(move |conn| {
            containers::find(conn, &ctx, container, Access::Read)?;
            Ok(part.of(of_container(conn, container)?))
        })
        .await
}

/// Something uses a container; twice is once.
///
/// # Errors
/// 404, 403, 400.
pub async fn add_to_container(
    cloud: &Cloud,
    ctx: &Context,
    container: Uuid,
    consumer: ContainerConsumer,
) -> Result<()> {
    ctx.require("secret_consumers", "update")?;
    check(&[("name", &consumer.name), ("URL", &consumer.url)])?;
    let caller = ctx.clone();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let of = containers::find(conn, &caller, container, Access::Read)?;
            quotas::charge(conn, &of.project_id, Resource::Consumers)?;
            conn.execute(
                "INSERT OR IGNORE INTO secret_container_consumers (container_id, name, url) VALUES (?1, ?2, ?3)",
                params![container.to_string(), consumer.name, consumer.url],
            )?;
            Ok(())
        })
        .await
}

/// Something uses a container no more.
///
/// # Errors
/// 404, 403.
pub async fn remove_from_container(
    cloud: &Cloud,
    ctx: &Context,
    container: Uuid,
    consumer: ContainerConsumer,
) -> Result<()> {
    ctx.require("secret_consumers", "update")?;
    let caller = ctx.clone();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            containers::find(conn, &caller, container, Access::Read)?;
            let sql =
                "DELETE FROM secret_container_consumers WHERE container_id = ?1 AND name = ?2 AND url = ?3";
            match conn.execute(sql, params![container.to_string(), consumer.name, consumer.url])? {
                0 => Err(Error::not_found("Consumer", &consumer.name)),
                _ => Ok(()),
            }
        })
        .await
}
