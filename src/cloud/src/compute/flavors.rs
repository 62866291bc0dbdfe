//! Flavors: what sizes of servers there are, and who may use them.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use crate::{Cloud, Context, Error, Result};

/// A flavor; a server keeps a copy of the one that it was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flavor {
    /// Chosen at creation; any text.
    pub id: String,
    /// Unique.
    pub name: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub ram: u64,
    /// Root disk in GiB; 0: as large as the image.
    pub disk: u64,
    /// A second disk in GiB, blank; 0: none.
    pub ephemeral: u64,
    /// A blank disk for swap in MiB; 0: none.
    pub swap: u64,
    /// Kept for clients.
    pub rxtx_factor: f64,
    /// Every project may use it.
    pub is_public: bool,
    /// For people.
    pub description: Option<String>,
    /// Properties, such as `scs:cpu-type`.
    pub extra_specs: BTreeMap<String, String>,
}

const COLUMNS: &str = "id, name, vcpus, ram_mib, disk_gib, ephemeral_gib, swap_mib, rxtx_factor, is_public, \
                       description, extra_specs";

fn of_row(row: &Row<'_>) -> rusqlite::Result<Flavor> {
    Ok(Flavor {
        id: row.get(0)?,
        name: row.get(1)?,
        vcpus: row.get(2)?,
        ram: row.get(3)?,
        disk: row.get(4)?,
        ephemeral: row.get(5)?,
        swap: row.get(6)?,
        rxtx_factor: row.get(7)?,
        is_public: row.get(8)?,
        description: row.get(9)?,
        extra_specs: super::servers::json(row, 10)?,
    })
}

/// Which flavors a list shows.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only public (`Some(true)`), only private (`Some(false)`) or both; only admins choose.
    pub is_public: Option<bool>,
    /// At least this much disk in GiB.
    pub min_disk: u64,
    /// At least this much memory in MiB.
    pub min_ram: u64,
    /// Order, with `true` for descending.
    pub sort: Sort,
    /// Descending.
    pub descending: bool,
    /// The last flavor of the page before.
    pub marker: Option<String>,
    /// At most this many.
    pub limit: usize,
}

/// What flavors are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum Sort {
    #[default]
    Id,
    Name,
    Ram,
    Disk,
    Vcpus,
}

/// All that the caller may see and the filter lets through.
pub async fn list(cloud: &Cloud, ctx: &Context, filter: Filter) -> Result<Vec<Flavor>> {
    ctx.require("flavors", "list")?;
    let admin = ctx.is_admin();
    let project = ctx.project().map(str::to_owned).unwrap_or_default();
    cloud
        .store
        .read(move |conn| {
            let mut rows = conn.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM compute_flavors WHERE disk_gib >= ?1 AND ram_mib >= ?2"
            ))?;
            let mut flavors: Vec<Flavor> = rows
                .query_map(params![filter.min_disk, filter.min_ram], of_row)?
                .collect::<rusqlite::Result<_>>()?;
            let wanted = if admin { filter.is_public } else { None };
            let mut visible = Vec::with_capacity(flavors.len());
            for flavor in flavors.drain(..) {
                let shown = match wanted {
                    Some(public) => flavor.is_public == public,
                    None => flavor.is_public || admin || has_access(conn, &flavor.id, &project)?,
                };
                if shown {
                    visible.push(flavor);
                }
            }
            visible.sort_by(|a, b| {
                let order = match filter.sort {
                    Sort::Id => a.id.cmp(&b.id),
                    Sort::Name => a.name.cmp(&b.name),
                    Sort::Ram => a.ram.cmp(&b.ram),
                    Sort::Disk => a.disk.cmp(&b.disk),
                    Sort::Vcpus => a.vcpus.cmp(&b.vcpus),
                }
                .then_with(|| a.id.cmp(&b.id));
                if filter.descending { order.reverse() } else { order }
            });
            if let Some(marker) = &filter.marker {
                let at = visible.iter().position(|f| &f.id == marker);
                let at = at.ok_or_else(|| Error::BadRequest(format!("marker [{marker}] not found")))?;
                visible.drain(..=at);
            }
            visible.truncate(filter.limit);
            Ok(visible)
        })
        .await
}

fn has_access(conn: &Connection, flavor: &str, project: &str) -> Result<bool> {
    let mut query = conn.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM compute_flavor_access WHERE flavor_id = ?1 AND project_id = ?2)",
    )?;
    Ok(query.query_row(params![flavor, project], |row| row.get(0))?)
}

/// The flavor of this id, if the caller may use it.
pub(super) fn find(conn: &Connection, ctx: &Context, id: &str) -> Result<Flavor> {
    let mut query = conn.prepare_cached(&format!("SELECT {COLUMNS} FROM compute_flavors WHERE id = ?1"))?;
    let flavor = query.query_row([id], of_row).optional()?;
    let flavor = flavor.ok_or_else(|| Error::not_found("Flavor", id))?;
    let allowed =
        flavor.is_public || ctx.is_admin() || has_access(conn, id, ctx.project().unwrap_or_default())?;
    if allowed {
        Ok(flavor)
    } else {
        Err(Error::not_found("Flavor", id))
    }
}

/// One flavor.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Flavor> {
    ctx.require("flavors", "show")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    cloud.store.read(move |conn| find(conn, &ctx, &id)).await
}

/// Makes a flavor.
pub async fn create(cloud: &Cloud, ctx: &Context, flavor: Flavor) -> Result<Flavor> {
    ctx.require("flavors", "create")?;
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let taken: bool = conn.query_row(
                "SELECT EXISTS (SELECT 1 FROM compute_flavors WHERE name = ?1)",
                [&flavor.name],
                |row| row.get(0),
            )?;
            if taken {
                return Err(Error::Conflict(format!("Flavor with name {} already exists.", flavor.name)));
            }
            let taken: bool = conn.query_row(
                "SELECT EXISTS (SELECT 1 FROM compute_flavors WHERE id = ?1)",
                [&flavor.id],
                |row| row.get(0),
            )?;
            if taken {
                return Err(Error::Conflict(format!("Flavor with ID {} already exists.", flavor.id)));
            }
            conn.prepare_cached(&format!(
                "INSERT INTO compute_flavors ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"
            ))?
            .execute(params![
                flavor.id,
                flavor.name,
                flavor.vcpus,
                flavor.ram,
                flavor.disk,
                flavor.ephemeral,
                flavor.swap,
                flavor.rxtx_factor,
                flavor.is_public,
                flavor.description,
                super::servers::to_json(&flavor.extra_specs)?,
            ])?;
            Ok(flavor.clone())
        })
        .await
}

/// Changes the description, the one thing of a flavor that may change (microversion 2.55).
pub async fn update(cloud: &Cloud, ctx: &Context, id: &str, description: Option<String>) -> Result<Flavor> {
    ctx.require("flavors", "update")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    let actor = ctx.user_id.clone();
    cloud
        .store
        .write(&actor, move |conn| {
            let mut flavor = find(conn, &ctx, &id)?;
            conn.execute(
                "UPDATE compute_flavors SET description = ?2 WHERE id = ?1",
                params![id, description],
            )?;
            flavor.description.clone_from(&description);
            Ok(flavor)
        })
        .await
}

/// Removes a flavor; servers made from it keep their copy.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str) -> Result<()> {
    ctx.require("flavors", "delete")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    let actor = ctx.user_id.clone();
    cloud
        .store
        .write(&actor, move |conn| {
            find(conn, &ctx, &id)?;
            conn.execute("DELETE FROM compute_flavor_access WHERE flavor_id = ?1", [&id])?;
            conn.execute("DELETE FROM compute_flavors WHERE id = ?1", [&id])?;
            Ok(())
        })
        .await
}

/// A change of extra specs.
#[derive(Debug, Clone)]
pub enum SpecChange {
    /// Add or replace these.
    Set(BTreeMap<String, String>),
    /// Remove this one.
    Unset(String),
}

/// The most extra specs that a flavor may have.
const MAX_EXTRA_SPECS: usize = 128;

/// Changes extra specs and tells all that there are now.
pub async fn change_specs(
    cloud: &Cloud,
    ctx: &Context,
    id: &str,
    change: SpecChange,
) -> Result<BTreeMap<String, String>> {
    ctx.require("flavor_extra_specs", "update")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    let actor = ctx.user_id.clone();
    cloud
        .store
        .write(&actor, move |conn| {
            let mut specs = find(conn, &ctx, &id)?.extra_specs;
            match &change {
                SpecChange::Set(new) => specs.extend(new.clone()),
                SpecChange::Unset(key) => {
                    if specs.remove(key).is_none() {
                        return Err(no_such_spec(&id, key));
                    }
                }
            }
            if specs.len() > MAX_EXTRA_SPECS {
                return Err(Error::BadRequest(format!(
                    "A flavor has at most {MAX_EXTRA_SPECS} extra specs."
                )));
            }
            let text = super::servers::to_json(&specs)?;
            conn.execute(
                "UPDATE compute_flavors SET extra_specs = ?2 WHERE id = ?1",
                params![id, text],
            )?;
            Ok(specs)
        })
        .await
}

/// The error for an extra spec that is not there.
pub fn no_such_spec(id: &str, key: &str) -> Error {
    super::missing(format!("Flavor {id} has no extra specs with key {key}."))
}

/// Which projects may use a private flavor.
pub async fn access(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Vec<String>> {
    ctx.require("flavor_access", "list")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .read(move |conn| {
            let flavor = find(conn, &ctx, &id)?;
            if flavor.is_public {
                return Err(super::missing("Access list not available for public flavors."));
            }
            access_list(conn, &flavor.id)
        })
        .await
}

fn access_list(conn: &Connection, id: &str) -> Result<Vec<String>> {
    let mut query = conn.prepare_cached(
        "SELECT project_id FROM compute_flavor_access WHERE flavor_id = ?1 ORDER BY project_id",
    )?;
    Ok(query
        .query_map([id], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?)
}

/// Gives a project the use of a private flavor, or takes it away. `strict`: a public flavor is refused (2.7).
pub async fn change_access(
    cloud: &Cloud,
    ctx: &Context,
    id: &str,
    project: &str,
    grant: bool,
    strict: bool,
) -> Result<Vec<String>> {
    ctx.require("flavor_access", "update")?;
    let (ctx, id, project) = (ctx.clone(), id.to_owned(), project.to_owned());
    let actor = ctx.user_id.clone();
    cloud
        .store
        .write(&actor, move |conn| {
            let flavor = find(conn, &ctx, &id)?;
            if grant && strict && flavor.is_public {
                return Err(Error::Conflict("Can not add access to a public flavor.".into()));
            }
            let has = has_access(conn, &id, &project)?;
            if grant && has {
                return Err(Error::Conflict(format!(
                    "Flavor access already exists for flavor {id} and project {project} combination."
                )));
            }
            if !grant && !has {
                return Err(super::missing(format!(
                    "Flavor access not found for {id} / {project} combination."
                )));
            }
            let sql = if grant {
                "INSERT INTO compute_flavor_access (flavor_id, project_id) VALUES (?1, ?2)"
            } else {
                "DELETE FROM compute_flavor_access WHERE flavor_id = ?1 AND project_id = ?2"
            };
            conn.execute(sql, params![id, project])?;
            access_list(conn, &id)
        })
        .await
}
