//! Volume types: what kinds of volumes there are, and who may use them.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::row::{self, Pairs, json, uuid, uuid_or_null};
use crate::compute::{Micros, now};
use crate::{Cloud, Context, Error, Result};

/// The type of volumes that name none, made with the tables.
pub const DEFAULT: &str = "standard";

/// A volume type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeType {
    /// Its id.
    pub id: Uuid,
    /// Its name; no two have the same.
    pub name: String,
    /// For people. In brackets at its beginning may stand what the type promises (SCS-0114).
    pub description: Option<String>,
    /// Every project may use it.
    pub is_public: bool,
    /// What it asks of the backend.
    pub extra_specs: Pairs,
    /// The QoS specs that go with it.
    pub qos_id: Option<Uuid>,
    /// When it was made.
    pub created_at: Micros,
    /// When it was last changed.
    pub updated_at: Option<Micros>,
}

impl VolumeType {
    fn of_row(row: &Row<'_>) -> rusqlite::Result<VolumeType> {
        Ok(VolumeType {
            id: uuid(row, "id")?,
            name: row.get("name")?,
            description: row.get("description")?,
            is_public: row.get("is_public")?,
            extra_specs: json(row, "extra_specs")?,
            qos_id: uuid_or_null(row, "qos_id")?,
            created_at: row.get("created_at")?,
            updated_at: row.get("updated_at")?,
        })
    }

    fn save(&self, conn: &Connection) -> Result<()> {
        const COLUMNS: [&str; 8] = [
            "id",
            "name",
            "description",
            "is_public",
            "extra_specs",
            "qos_id",
            "created_at",
            "updated_at",
        ];
        conn.prepare_cached(&row::save_sql("volume_types", &COLUMNS))?
            .execute(params![
                self.id.to_string(),
                self.name,
                self.description,
                self.is_public,
                row::to_json(&self.extra_specs)?,
                self.qos_id.map(|id| id.to_string()),
                self.created_at,
                self.updated_at,
            ])?;
        Ok(())
    }
}

fn missing(id: &str) -> Error {
    Error::Named {
        name: "VolumeTypeNotFound",
        kind: crate::error::Kind::NotFound,
        message: format!("Volume type {id} could not be found."),
    }
}

/// The type of this id, whoever asks.
pub(super) fn get(conn: &Connection, id: Uuid) -> Result<Option<VolumeType>> {
    let mut query = conn.prepare_cached("SELECT * FROM volume_types WHERE id = ?1")?;
    Ok(query.query_row([id.to_string()], VolumeType::of_row).optional()?)
}

/// The name of a type.
pub(super) fn name_of(conn: &Connection, id: &str) -> Result<Option<String>> {
    let mut query = conn.prepare_cached("SELECT name FROM volume_types WHERE id = ?1")?;
    Ok(query.query_row([id], |row| row.get(0)).optional()?)
}

/// All names, by id.
pub(super) fn ids_and_names(conn: &Connection) -> Result<Vec<(String, String)>> {
    let mut query = conn.prepare_cached("SELECT id, name FROM volume_types ORDER BY name")?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn has_access(conn: &Connection, ctx: &Context, kind: &VolumeType) -> Result<bool> {
    if kind.is_public || ctx.is_admin() {
        return Ok(true);
    }
    let Ok(project) = ctx.project() else {
        return Ok(false);
    };
    let mut query =
        conn.prepare_cached("SELECT 1 FROM volume_type_access WHERE type_id = ?1 AND project_id = ?2")?;
    Ok(query.exists(params![kind.id.to_string(), project])?)
}

/// The type of this id, if the caller may use it.
fn find(conn: &Connection, ctx: &Context, id: &str) -> Result<VolumeType> {
    let parsed = row::parse_id("Volume type", id).map_err(|_| missing(id))?;
    match get(conn, parsed)? {
        Some(kind) if has_access(conn, ctx, &kind)? => Ok(kind),
        _ => Err(missing(id)),
    }
}

/// The type of this name or id, if the caller may use it.
///
/// # Errors
/// 404.
pub(super) fn find_by_name(conn: &Connection, ctx: &Context, name: &str) -> Result<VolumeType> {
    if let Ok(kind) = find(conn, ctx, name) {
        return Ok(kind);
    }
    let mut query = conn.prepare_cached("SELECT * FROM volume_types WHERE name = ?1")?;
    match query.query_row([name], VolumeType::of_row).optional()? {
        Some(kind) if has_access(conn, ctx, &kind)? => Ok(kind),
        _ => Err(Error::Named {
            name: "VolumeTypeNotFoundByName",
            kind: crate::error::Kind::NotFound,
            message: format!("Volume type with name {name} could not be found."),
        }),
    }
}

/// The type of volumes that name none.
///
/// # Errors
/// 404 if an administrator has removed it.
pub(super) fn default_of(conn: &Connection, ctx: &Context) -> Result<VolumeType> {
    if let Ok(project) = ctx.project() {
        let mut query = conn.prepare_cached(
            "SELECT t.* FROM volume_default_types d JOIN volume_types t ON t.id = d.type_id WHERE d.project_id = ?1",
        )?;
        if let Some(kind) = query.query_row([project], VolumeType::of_row).optional()? {
            return Ok(kind);
        }
    }
    let mut query = conn.prepare_cached("SELECT * FROM volume_types WHERE name = ?1")?;
    query
        .query_row([DEFAULT], VolumeType::of_row)
        .optional()?
        .ok_or_else(|| Error::not_found("Default volume type", DEFAULT))
}

/// All types that the caller may use; `is_public`: only those that are, or are not, for all.
pub async fn list(cloud: &Cloud, ctx: &Context, is_public: Option<bool>) -> Result<Vec<VolumeType>> {
    ctx.require("volume_types", "list")?;
    let ctx = ctx.clone();
    cloud
        .store
        .read(move |conn| {
            let mut query =
                conn.prepare_cached("SELECT * FROM volume_types ORDER BY created_at DESC, id DESC")?;
            let rows = query.query_map([], VolumeType::of_row)?;
            let mut found = Vec::new();
            for kind in rows {
                let kind = kind?;
                if is_public.is_none_or(|public| public == kind.is_public) && has_access(conn, &ctx, &kind)? {
                    found.push(kind);
                }
            }
            Ok(found)
        })
        .await
}

/// One type; `default`: the caller's.
///
/// # Errors
/// 404.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<VolumeType> {
    ctx.require("volume_types", "show")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .read(move |conn| {
            if id == "default" {
                default_of(conn, &ctx)
            } else {
                find(conn, &ctx, &id)
            }
        })
        .await
}

/// Names of all types by id, for views of volumes.
pub async fn names(cloud: &Cloud) -> Result<BTreeMap<String, String>> {
    cloud
        .store
        .read(|conn| Ok(ids_and_names(conn)?.into_iter().collect()))
        .await
}

fn check_name(conn: &Connection, name: &str, but: Option<Uuid>) -> Result<()> {
    let mut query = conn.prepare_cached("SELECT 1 FROM volume_types WHERE name = ?1 AND id IS NOT ?2")?;
    if query.exists(params![name, but.map(|id| id.to_string())])? {
        return Err(Error::Conflict(format!("Volume Type {name} already exists.")));
    }
    Ok(())
}

/// Makes a type.
///
/// # Errors
/// 409 if the name is taken.
pub async fn create(
    cloud: &Cloud,
    ctx: &Context,
    name: String,
    description: Option<String>,
    is_public: bool,
    extra_specs: Pairs,
) -> Result<VolumeType> {
    ctx.require("volume_types", "create")?;
    let id = Uuid::new_v4();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            check_name(conn, &name, None)?;
            let kind = VolumeType {
                id,
                name: name.clone(),
                description: description.clone(),
                is_public,
                extra_specs: extra_specs.clone(),
                qos_id: None,
                created_at: now(),
                updated_at: None,
            };
            kind.save(conn)?;
            Ok(kind)
        })
        .await
}

async fn change<F>(cloud: &Cloud, ctx: &Context, id: &str, change: F) -> Result<VolumeType>
where
    F: Fn(&Connection, &mut VolumeType) -> Result<()> + Send + 'static,
{
    let (caller, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut kind = find(conn, &caller, &id)?;
            change(conn, &mut kind)?;
            kind.updated_at = Some(now());
            kind.save(conn)?;
            Ok(kind)
        })
        .await
}

/// What of a type is to be changed.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Update {
    pub name: Option<String>,
    pub description: Option<Option<String>>,
    pub is_public: Option<bool>,
}

/// Changes a type.
///
/// # Errors
/// 404, 409 if the name is taken.
pub async fn update(cloud: &Cloud, ctx: &Context, id: &str, update: Update) -> Result<VolumeType> {
    ctx.require("volume_types", "update")?;
    change(cloud, ctx, id, move |conn, kind| {
        if let Some(name) = &update.name {
            check_name(conn, name, Some(kind.id))?;
            kind.name.clone_from(name);
        }
        if let Some(description) = &update.description {
            kind.description.clone_from(description);
        }
        kind.is_public = update.is_public.unwrap_or(kind.is_public);
        Ok(())
    })
    .await
}

/// Removes a type.
///
/// # Errors
/// 404, 400 while volumes have it or it is the default.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str) -> Result<()> {
    ctx.require("volume_types", "delete")?;
    let (caller, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let kind = find(conn, &caller, &id)?;
            let id = kind.id.to_string();
            if kind.name == DEFAULT {
                return Err(Error::BadRequest(format!(
                    "Invalid volume type: Volume type {id} is the default type and cannot be deleted."
                )));
            }
            for table in ["volume_volumes", "volume_snapshots", "volume_default_types"] {
                if conn
                    .prepare_cached(&format!("SELECT 1 FROM {table} WHERE type_id = ?1"))?
                    .exists([&id])?
                {
                    return Err(Error::BadRequest("Target volume type is still in use.".into()));
                }
            }
            conn.execute("DELETE FROM volume_type_access WHERE type_id = ?1", [&id])?;
            super::type_encryption::forget(conn, &id)?;
            conn.execute("DELETE FROM volume_types WHERE id = ?1", [&id])?;
            Ok(())
        })
        .await
}

/// Sets extra specs.
///
/// # Errors
/// 404.
pub async fn set_specs(cloud: &Cloud, ctx: &Context, id: &str, specs: Pairs) -> Result<Pairs> {
    ctx.require("volume_type_extra_specs", "update")?;
    change(cloud, ctx, id, move |_, kind| {
        kind.extra_specs.extend(specs.clone());
        Ok(())
    })
    .await
    .map(|kind| kind.extra_specs)
}

/// Removes an extra spec.
///
/// # Errors
/// 404.
pub async fn unset_spec(cloud: &Cloud, ctx: &Context, id: &str, key: &str) -> Result<()> {
    ctx.require("volume_type_extra_specs", "update")?;
    let key = key.to_owned();
    change(cloud, ctx, id, move |_, kind| {
        match kind.extra_specs.remove(&key) {
            Some(_) => Ok(()),
            None => Err(Error::Named {
                name: "VolumeTypeExtraSpecsNotFound",
                kind: crate::error::Kind::NotFound,
                message: format!("Volume Type {} has no extra specs with key {key}.", kind.id),
            }),
        }
    })
    .await
    .map(drop)
}

/// Projects that may use a private type.
///
/// # Errors
/// 404, also for a public type.
pub async fn access(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Vec<(Uuid, String)>> {
    ctx.require("volume_type_access", "list")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .read(move |conn| {
            let kind = find(conn, &ctx, &id)?;
            if kind.is_public {
                return Err(Error::Named {
                    name: "VolumeTypeAccess",
                    kind: crate::error::Kind::NotFound,
                    message: "Access list not available for public volume types.".into(),
                });
            }
            let mut query = conn.prepare_cached(
                "SELECT project_id FROM volume_type_access WHERE type_id = ?1 ORDER BY project_id",
            )?;
            let rows = query.query_map([kind.id.to_string()], |row| row.get(0))?;
            let projects = rows.collect::<rusqlite::Result<Vec<String>>>()?;
            Ok(projects.into_iter().map(|project| (kind.id, project)).collect())
        })
        .await
}

/// Lets a project use a private type, or not any more.
///
/// # Errors
/// 404, 409 if it stands already (or 404 if it does not), 400 for a public type.
pub async fn set_access(cloud: &Cloud, ctx: &Context, id: &str, project: &str, allowed: bool) -> Result<()> {
    ctx.require("volume_type_access", "update")?;
    let (caller, id, project) = (ctx.clone(), id.to_owned(), project.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let kind = find(conn, &caller, &id)?;
            if kind.is_public {
                return Err(Error::BadRequest(
                    "Invalid volume type: Type access modification is not applicable to public volume type."
                        .into(),
                ));
            }
            let key = params![kind.id.to_string(), project];
            if allowed {
                let sql = "INSERT OR IGNORE INTO volume_type_access (type_id, project_id) VALUES (?1, ?2)";
                if conn.execute(sql, key)? == 0 {
                    return Err(Error::Conflict(format!(
                        "Volume type access for {} / {project} combination already exists.",
                        kind.id
                    )));
                }
            } else if conn.execute(
                "DELETE FROM volume_type_access WHERE type_id = ?1 AND project_id = ?2",
                key,
            )? == 0
            {
                return Err(Error::Named {
                    name: "VolumeTypeAccessNotFound",
                    kind: crate::error::Kind::NotFound,
                    message: format!(
                        "Volume type access not found for {} / {project} combination.",
                        kind.id
                    ),
                });
            }
            Ok(())
        })
        .await
}

/// The default type of a project; `None`: of all projects that have one.
///
/// # Errors
/// 404 if a project is named that has none.
pub async fn defaults(cloud: &Cloud, ctx: &Context, project: Option<&str>) -> Result<Vec<(String, Uuid)>> {
    ctx.require("volume_default_types", "show")?;
    let project = project.map(str::to_owned);
    cloud
        .store
        .read(move |conn| {
            let mut query = conn.prepare_cached(
                "SELECT project_id, type_id FROM volume_default_types WHERE (?1 IS NULL OR project_id = ?1) \
                 ORDER BY project_id",
            )?;
            let rows = query.query_map([&project], |row| Ok((row.get(0)?, uuid(row, "type_id")?)))?;
            let found = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            match &project {
                Some(project) if found.is_empty() => Err(Error::Named {
                    name: "VolumeTypeDefaultNotFound",
                    kind: crate::error::Kind::NotFound,
                    message: format!("Default type for project {project} not found."),
                }),
                _ => Ok(found),
            }
        })
        .await
}

/// Sets the default type of a project, or takes it away.
///
/// # Errors
/// 404 for a type that is none.
pub async fn set_default(
    cloud: &Cloud,
    ctx: &Context,
    project: &str,
    kind: Option<&str>,
) -> Result<Option<Uuid>> {
    ctx.require("volume_default_types", "update")?;
    let (caller, project, kind) = (ctx.clone(), project.to_owned(), kind.map(str::to_owned));
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let Some(kind) = &kind else {
                conn.execute(
                    "DELETE FROM volume_default_types WHERE project_id = ?1",
                    [&project],
                )?;
                return Ok(None);
            };
            let kind = find_by_name(conn, &caller, kind)?;
            conn.execute(
                "INSERT INTO volume_default_types (project_id, type_id) VALUES (?1, ?2) \
                 ON CONFLICT (project_id) DO UPDATE SET type_id = excluded.type_id",
                params![project, kind.id.to_string()],
            )?;
            Ok(Some(kind.id))
        })
        .await
}

/// Gives types QoS specs or takes them away; used by [`super::qos`].
pub(super) fn set_qos(conn: &Connection, ctx: &Context, id: &str, qos: Option<Uuid>) -> Result<()> {
    let mut kind = find(conn, ctx, id)?;
    kind.qos_id = qos;
    kind.save(conn)
}

/// Types that have these QoS specs.
pub(super) fn with_qos(conn: &Connection, qos: Uuid) -> Result<Vec<VolumeType>> {
    let mut query = conn.prepare_cached("SELECT * FROM volume_types WHERE qos_id = ?1 ORDER BY name")?;
    let rows = query.query_map([qos.to_string()], VolumeType::of_row)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
