//! Containers: secrets that belong together, such as a certificate and its key.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::acls::{self, Access, Acl};
use super::consumers::{self, ContainerConsumer};
use super::quotas::{self, Resource};
use super::{Part, check_name, secrets};
use crate::identity::now;
use crate::{Cloud, Context, Error, Result};

/// The most secrets of one container.
const MAX_REFS: usize = 100;

/// A kind, the names that a container of it must have, and those that it may have.
const KINDS: [(&str, &[&str], &[&str]); 3] = [
    ("generic", &[], &[]),
    ("rsa", &["public_key", "private_key"], &["private_key_passphrase"]),
    (
        "certificate",
        &["certificate"],
        &["private_key", "private_key_passphrase", "intermediates"],
    ),
];

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub project_id: String,
    /// The user that made it.
    pub creator_id: String,
    /// Its name.
    pub name: Option<String>,
    /// `generic`, `rsa` or `certificate`.
    pub kind: String,
    /// Names and secrets.
    pub refs: Vec<(String, Uuid)>,
    /// What uses it.
    pub consumers: Vec<ContainerConsumer>,
    /// Microseconds since 1970.
    pub created_at: i64,
    /// Microseconds since 1970.
    pub updated_at: i64,
}

/// A container to be made.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct NewContainer {
    pub name: Option<String>,
    pub kind: String,
    pub refs: Vec<(String, Uuid)>,
}

fn uuid(text: String) -> rusqlite::Result<Uuid> {
    text.parse()
        .map_err(|_| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, text.into()))
}

fn read(row: &Row<'_>) -> rusqlite::Result<Container> {
    Ok(Container {
        id: uuid(row.get("id")?)?,
        project_id: row.get("project_id")?,
        creator_id: row.get("creator_id")?,
        name: row.get("name")?,
        kind: row.get("kind")?,
        refs: Vec::new(),
        consumers: Vec::new(),
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

fn with_parts(conn: &Connection, mut container: Container) -> Result<Container> {
    let sql =
        "SELECT name, secret_id FROM secret_container_refs WHERE container_id = ?1 ORDER BY name, secret_id";
    let mut sql = conn.prepare_cached(sql)?;
    let rows = sql.query_map([container.id.to_string()], |row| {
        Ok((row.get(0)?, uuid(row.get(1)?)?))
    })?;
    container.refs = rows.collect::<rusqlite::Result<_>>()?;
    container.consumers = consumers::of_container(conn, container.id)?;
    Ok(container)
}

fn missing(id: Uuid) -> Error {
    Error::not_found("Container", id)
}

/// The container, if the caller may do this with it.
pub(super) fn find(conn: &Connection, ctx: &Context, id: Uuid, access: Access) -> Result<Container> {
    let row = conn
        .prepare_cached("SELECT * FROM secret_containers WHERE id = ?1")?
        .query_row([id.to_string()], read)
        .optional()?;
    let container = row.ok_or_else(|| missing(id))?;
    let acl = Acl::of(conn, id)?;
    acl.check(ctx, &container.project_id, &container.creator_id, access, || {
        missing(id)
    })?;
    with_parts(conn, container)
}

fn check(new: &NewContainer) -> Result<()> {
    check_name("name", new.name.as_deref())?;
    let bad = |why: String| {
        Err(Error::BadRequest(format!(
            "Provided object does not match schema 'Container': {why}."
        )))
    };
    let Some((kind, required, optional)) = KINDS.iter().find(|(kind, ..)| *kind == new.kind) else {
        return bad("'type' is one of generic, rsa, certificate".into());
    };
    if new.refs.len() > MAX_REFS {
        return bad(format!("it has at most {MAX_REFS} secrets"));
    }
    for (name, _) in &new.refs {
        check_name("name", Some(name))?;
    }
    let mut seen = std::collections::BTreeSet::new();
    let doubled = new.refs.iter().any(|entry| !seen.insert(entry));
    let mut names: Vec<&str> = new.refs.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let doubled_name = *kind != "generic" && names.windows(2).any(|pair| pair[0] == pair[1]);
    if doubled || doubled_name {
        return bad("a secret reference is there twice".into());
    }
    if *kind == "generic" {
        return Ok(());
    }
    if let Some(name) = required.iter().find(|name| !names.contains(name)) {
        return bad(format!("a {kind} container needs {name}"));
    }
    if let Some(name) = names
        .iter()
        .find(|name| !required.contains(name) && !optional.contains(name))
    {
        return bad(format!("a {kind} container has no {name}"));
    }
    Ok(())
}

fn add_ref(conn: &Connection, ctx: &Context, container: Uuid, name: &str, secret: Uuid) -> Result<()> {
    secrets::find(conn, ctx, secret, Access::Read)?;
    conn.prepare_cached(
        "INSERT INTO secret_container_refs (container_id, name, secret_id) VALUES (?1, ?2, ?3)",
    )?
    .execute(params![container.to_string(), name, secret.to_string()])?;
    Ok(())
}

/// Makes a container.
///
/// # Errors
/// 403, 400, 404 for a secret that the caller does not see.
pub async fn create(cloud: &Cloud, ctx: &Context, new: NewContainer) -> Result<Uuid> {
    ctx.require("secret_containers", "create")?;
    check(&new)?;
    let (caller, id, now) = (ctx.clone(), Uuid::new_v4(), now());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let project = caller.project()?;
            quotas::charge(conn, project, Resource::Containers)?;
            conn.execute(
                "INSERT INTO secret_containers (id, project_id, creator_id, name, kind, created_at, updated_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
                params![id.to_string(), project, caller.user_id, new.name, new.kind, now],
            )?;
            new.refs
                .iter()
                .try_for_each(|(name, secret)| add_ref(conn, &caller, id, name, *secret))
        })
        .await?;
    Ok(id)
}

/// The containers of the caller's project that it may read, and how many there are in all.
///
/// # Errors
/// 403.
pub async fn list(
    cloud: &Cloud,
    ctx: &Context,
    kind: Option<String>,
    name: Option<String>,
    part: Part,
) -> Result<(Vec<Container>, usize)> {
    ctx.require("secret_containers", "list")?;
    let ctx = ctx.clone();
    cloud
        .store
        .read(move |conn| {
            let mut sql = conn.prepare_cached(
                "SELECT c.* FROM secret_containers c LEFT JOIN secret_acls a ON a.target_id = c.id
                 WHERE c.project_id = ?1 AND (coalesce(a.project_access, 1) OR c.creator_id = ?2 OR ?3
                      OR EXISTS (SELECT 1 FROM json_each(a.users) u WHERE u.value = ?2))
                 AND (?4 IS NULL OR c.kind = ?4) AND (?5 IS NULL OR c.name = ?5) ORDER BY c.created_at, c.id",
            )?;
            let rows = sql.query_map(
                params![ctx.project()?, ctx.user_id, ctx.is_admin(), kind, name],
                read,
            )?;
            let (shown, total) = part.of(rows.collect::<rusqlite::Result<Vec<_>>>()?);
            let shown = shown.into_iter().map(|container| with_parts(conn, container));
            Ok((shown.collect::<Result<_>>()?, total))
        })
        .await
}

/// One container.
///
/// # Errors
/// 404, 403.
pub async fn show(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<Container> {
    ctx.require("secret_containers", "show")?;
    let ctx = ctx.clone();
    cloud
        .store
        .read(move |conn| find(conn, &ctx, id, Access::Read))
        .await
}

/// Removes a container; its secrets stay.
///
/// # Errors
/// 404, 403.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("secret_containers", "delete")?;
    let caller = ctx.clone();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            find(conn, &caller, id, Access::Change)?;
            acls::remove_of(conn, id)?;
            let id = id.to_string();
            conn.execute("DELETE FROM secret_container_refs WHERE container_id = ?1", [&id])?;
            conn.execute(
                "DELETE FROM secret_container_consumers WHERE container_id = ?1",
                [&id],
            )?;
            conn.execute("DELETE FROM secret_containers WHERE id = ?1", [&id])?;
            Ok(())
        })
        .await
}

fn generic(container: &Container) -> Result<()> {
    if container.kind == "generic" {
        return Ok(());
    }
    Err(Error::BadRequest(
        "Only containers of type generic can be changed.".into(),
    ))
}

/// Puts one more secret into a generic container.
///
/// # Errors
/// 404, 403, 400 for another kind, 409 if it is there.
pub async fn add_secret(cloud: &Cloud, ctx: &Context, id: Uuid, name: &str, secret: Uuid) -> Result<()> {
    ctx.require("secret_containers", "update")?;
    let (caller, name, now) = (ctx.clone(), name.to_owned(), now());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let container = find(conn, &caller, id, Access::Change)?;
            generic(&container)?;
            let entry = (name.clone(), secret);
            if container.refs.contains(&entry) {
                return Err(Error::Conflict(
                    "Conflict. A secret with that name and ID is already stored.".into(),
                ));
            }
            let mut refs = container.refs;
            refs.push(entry);
            check(&NewContainer {
                name: container.name,
                kind: container.kind,
                refs,
            })?;
            add_ref(conn, &caller, id, &name, secret)?;
            conn.execute(
                "UPDATE secret_containers SET updated_at = ?2 WHERE id = ?1",
                params![id.to_string(), now],
            )?;
            Ok(())
        })
        .await
}

/// Takes a secret out of a generic container.
///
/// # Errors
/// 404, 403, 400 for another kind.
pub async fn remove_secret(cloud: &Cloud, ctx: &Context, id: Uuid, name: &str, secret: Uuid) -> Result<()> {
    ctx.require("secret_containers", "update")?;
    let (caller, name) = (ctx.clone(), name.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            generic(&find(conn, &caller, id, Access::Change)?)?;
            let sql =
                "DELETE FROM secret_container_refs WHERE container_id = ?1 AND name = ?2 AND secret_id = ?3";
            match conn.execute(sql, params![id.to_string(), name, secret.to_string()])? {
                0 => Err(Error::not_found("Secret in the container", secret)),
                _ => Ok(()),
            }
        })
        .await
}
