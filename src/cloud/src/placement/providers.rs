//! Resource providers: their inventories, traits and aggregates.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::{allocations, candidates::Request, concurrent, in_use, missing, names};
use crate::compute::{Micros, now};
use crate::{Cloud, Context, Error, Result};

/// A resource provider.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Provider {
    pub id: Uuid,
    pub name: String,
    /// Raised by every change; who changes it says which one he saw.
    pub generation: u64,
    pub parent: Option<Uuid>,
    pub updated_at: Micros,
}

/// What a provider has of one resource class.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub struct Inventory {
    pub total: u64,
    pub reserved: u64,
    pub min_unit: u64,
    pub max_unit: u64,
    pub step_size: u64,
    pub allocation_ratio: f64,
}

impl Inventory {
    /// This much, given out as it is.
    pub fn of(total: u64) -> Inventory {
        Inventory {
            total,
            reserved: 0,
            min_unit: 1,
            max_unit: i32::MAX as u64,
            step_size: 1,
            allocation_ratio: 1.0,
        }
    }

    /// What may be given out in all.
    pub fn capacity(&self) -> u64 {
        (self.total.saturating_sub(self.reserved) as f64 * self.allocation_ratio) as u64
    }

    /// One consumer may take so much, beside what is taken.
    pub fn admits(&self, amount: u64, used: u64) -> bool {
        amount >= self.min_unit
            && amount <= self.max_unit
            && amount.is_multiple_of(self.step_size.max(1))
            && used.saturating_add(amount) <= self.capacity()
    }
}

const COLUMNS: &str = "id, name, generation, parent_id, updated_at";

fn of_row(row: &Row<'_>) -> rusqlite::Result<Provider> {
    let parent: Option<String> = row.get(3)?;
    Ok(Provider {
        id: crate::compute::uuid_column(row, 0)?,
        name: row.get(1)?,
        generation: row.get(2)?,
        parent: parent.and_then(|text| text.parse().ok()),
        updated_at: row.get(4)?,
    })
}

impl Provider {
    /// The id of the tree's root.
    pub fn root(&self, conn: &Connection) -> Result<Uuid> {
        let mut at = self.clone();
        for _ in 0..32 {
            match at.parent {
                None => return Ok(at.id),
                Some(parent) => at = find(conn, parent)?,
            }
        }
        Ok(at.id)
    }

    fn save(&self, conn: &Connection) -> Result<()> {
        conn.prepare_cached(
            "INSERT INTO placement_providers (id, name, generation, parent_id, created_at, updated_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?5) ON CONFLICT (id) DO UPDATE SET name = excluded.name, \
             generation = excluded.generation, parent_id = excluded.parent_id, updated_at = excluded.updated_at",
        )?
        .execute(params![
            self.id.to_string(),
            self.name,
            self.generation,
            self.parent.map(|id| id.to_string()),
            self.updated_at,
        ])?;
        Ok(())
    }

    /// Something of it was changed.
    pub(super) fn touch(&mut self, conn: &Connection) -> Result<()> {
        self.generation += 1;
        self.updated_at = now();
        self.save(conn)
    }
}

/// The provider of this id.
pub fn get(conn: &Connection, id: Uuid) -> Result<Option<Provider>> {
    let mut query = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM placement_providers WHERE id = ?1"
    ))?;
    Ok(query.query_row([id.to_string()], of_row).optional()?)
}

pub(super) fn find(conn: &Connection, id: Uuid) -> Result<Provider> {
    get(conn, id)?.ok_or_else(|| missing(format!("No resource provider with uuid {id} found : ")))
}

/// The provider of this id, made if it is not there.
pub(super) fn ensure(conn: &Connection, id: Uuid, name: &str) -> Result<Provider> {
    let mut provider = match get(conn, id)? {
        Some(provider) if provider.name == name => return Ok(provider),
        Some(provider) => provider,
        None => Provider {
            id,
            name: String::new(),
            generation: 0,
            parent: None,
            updated_at: now(),
        },
    };
    name.clone_into(&mut provider.name);
    provider.save(conn)?;
    Ok(provider)
}

pub(super) fn all(conn: &Connection) -> Result<Vec<Provider>> {
    let mut query = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM placement_providers ORDER BY created_at, id"
    ))?;
    Ok(query.query_map([], of_row)?.collect::<rusqlite::Result<_>>()?)
}

/// What a provider has, by resource class.
pub fn inventories_of(conn: &Connection, id: Uuid) -> Result<BTreeMap<String, Inventory>> {
    let mut query = conn.prepare_cached(
        "SELECT resource_class, total, reserved, min_unit, max_unit, step_size, allocation_ratio \
         FROM placement_inventories WHERE provider_id = ?1",
    )?;
    let rows = query.query_map([id.to_string()], |row| {
        Ok((
            row.get(0)?,
            Inventory {
                total: row.get(1)?,
                reserved: row.get(2)?,
                min_unit: row.get(3)?,
                max_unit: row.get(4)?,
                step_size: row.get(5)?,
                allocation_ratio: row.get(6)?,
            },
        ))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Writes down exactly these.
pub(super) fn save_inventories(
    conn: &Connection,
    provider: &mut Provider,
    inventories: &BTreeMap<String, Inventory>,
) -> Result<()> {
    for (class, inventory) in inventories {
        names::check_class(conn, class)?;
        let sound = inventory.total >= 1
            && inventory.reserved <= inventory.total
            && inventory.min_unit >= 1
            && inventory.max_unit >= inventory.min_unit
            && inventory.step_size >= 1
            && inventory.allocation_ratio.is_finite()
            && inventory.allocation_ratio > 0.0;
        if !sound {
            return Err(Error::BadRequest(format!(
                "Invalid inventory for '{class}' on resource provider '{}'.",
                provider.id
            )));
        }
    }
    for class in inventories_of(conn, provider.id)?.keys() {
        if !inventories.contains_key(class) && allocations::used(conn, provider.id, class)? > 0 {
            return Err(in_use(
                "placement.inventory.inuse",
                format!(
                    "Update conflict: Inventory for '{class}' on resource provider '{}' in use.",
                    provider.id
                ),
            ));
        }
    }
    conn.prepare_cached("DELETE FROM placement_inventories WHERE provider_id = ?1")?
        .execute([provider.id.to_string()])?;
    for (class, inventory) in inventories {
        conn.prepare_cached("INSERT INTO placement_inventories VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?
            .execute(params![
                provider.id.to_string(),
                class,
                inventory.total,
                inventory.reserved,
                inventory.min_unit,
                inventory.max_unit,
                inventory.step_size,
                inventory.allocation_ratio,
                now(),
            ])?;
    }
    provider.touch(conn)
}

fn names_of(conn: &Connection, sql: &str, id: Uuid) -> Result<BTreeSet<String>> {
    let mut query = conn.prepare_cached(sql)?;
    Ok(query
        .query_map([id.to_string()], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?)
}

/// A provider's traits.
pub fn traits_of(conn: &Connection, id: Uuid) -> Result<BTreeSet<String>> {
    names_of(
        conn,
        "SELECT trait FROM placement_provider_traits WHERE provider_id = ?1",
        id,
    )
}

/// A provider's aggregates.
pub fn aggregates_of(conn: &Connection, id: Uuid) -> Result<BTreeSet<String>> {
    names_of(
        conn,
        "SELECT aggregate_id FROM placement_provider_aggregates WHERE provider_id = ?1",
        id,
    )
}

pub(super) fn save_traits(
    conn: &Connection,
    provider: &mut Provider,
    traits: &BTreeSet<String>,
) -> Result<()> {
    for name in traits {
        if !names::has_trait(conn, name)? {
            let name: String = name.chars().take(64).collect();
            return Err(Error::BadRequest(format!("No such trait {name}")));
        }
    }
    conn.prepare_cached("DELETE FROM placement_provider_traits WHERE provider_id = ?1")?
        .execute([provider.id.to_string()])?;
    for name in traits {
        conn.prepare_cached("INSERT INTO placement_provider_traits VALUES (?1, ?2)")?
            .execute([&provider.id.to_string(), name])?;
    }
    provider.touch(conn)
}

/// Which providers a list shows.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Filter {
    pub name: Option<String>,
    pub id: Option<Uuid>,
    /// In the tree of this one.
    pub in_tree: Option<Uuid>,
    /// What they must have and be.
    pub request: Request,
}

/// A provider and the root of its tree.
pub type Rooted = (Provider, Uuid);

/// Providers.
pub async fn list(cloud: &Cloud, ctx: &Context, filter: Filter) -> Result<Vec<Rooted>> {
    ctx.require("resource_providers", "list")?;
    cloud
        .store
        .read(move |conn| {
            filter.request.check(conn)?;
            let tree = match filter.in_tree {
                None => None,
                Some(id) => match get(conn, id)? {
                    None => return Ok(Vec::new()),
                    Some(provider) => Some(provider.root(conn)?),
                },
            };
            let mut found = Vec::new();
            for provider in all(conn)? {
                let root = provider.root(conn)?;
                if filter.name.as_ref().is_none_or(|name| *name == provider.name)
                    && filter.id.is_none_or(|id| id == provider.id)
                    && tree.is_none_or(|tree| tree == root)
                    && filter.request.fits(conn, provider.id)?
                {
                    found.push((provider, root));
                }
            }
            Ok(found)
        })
        .await
}

/// One provider.
pub async fn show(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<Rooted> {
    ctx.require("resource_providers", "show")?;
    cloud
        .store
        .read(move |conn| {
            let provider = find(conn, id)?;
            let root = provider.root(conn)?;
            Ok((provider, root))
        })
        .await
}

fn check_name(conn: &Connection, id: Uuid, name: &str) -> Result<()> {
    let taken = conn
        .prepare_cached("SELECT 1 FROM placement_providers WHERE name = ?1 AND id <> ?2")?
        .exists([name, &id.to_string()])?;
    if taken {
        return Err(in_use(
            "placement.duplicate_name",
            format!("Conflicting resource provider name: {name} already exists."),
        ));
    }
    Ok(())
}

fn check_parent(conn: &Connection, id: Uuid, parent: Option<Uuid>) -> Result<()> {
    let Some(parent) = parent else { return Ok(()) };
    if parent == id {
        return Err(Error::BadRequest(
            "parent provider UUID cannot be same as UUID.".into(),
        ));
    }
    if get(conn, parent)?.is_none() {
        return Err(Error::BadRequest("parent provider UUID does not exist.".into()));
    }
    Ok(())
}

/// Makes a provider of the operator's own.
pub async fn create(
    cloud: &Cloud,
    ctx: &Context,
    id: Uuid,
    name: String,
    parent: Option<Uuid>,
) -> Result<Rooted> {
    ctx.require("resource_providers", "create")?;
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            check_name(conn, id, &name)?;
            check_parent(conn, id, parent)?;
            if get(conn, id)?.is_some() {
                return Err(in_use(
                    "placement.undefined_code",
                    format!("Conflicting resource provider uuid: {id} already exists."),
                ));
            }
            let provider = Provider {
                id,
                name: name.clone(),
                generation: 0,
                parent,
                updated_at: now(),
            };
            provider.save(conn)?;
            let root = provider.root(conn)?;
            Ok((provider, root))
        })
        .await
}

/// Changes name, and parent where one is given.
pub async fn update(
    cloud: &Cloud,
    ctx: &Context,
    id: Uuid,
    name: String,
    parent: Option<Option<Uuid>>,
) -> Result<Rooted> {
    ctx.require("resource_providers", "update")?;
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut provider = find(conn, id)?;
            check_name(conn, id, &name)?;
            name.clone_into(&mut provider.name);
            if let Some(parent) = parent {
                check_parent(conn, id, parent)?;
                // A ring has no root.
                if let Some(parent) = parent
                    && find(conn, parent)?.root(conn)? == id
                {
                    return Err(Error::BadRequest(
                        "creating loop in the provider tree is not allowed.".into(),
                    ));
                }
                provider.parent = parent;
            }
            provider.updated_at = now();
            provider.save(conn)?;
            let root = provider.root(conn)?;
            Ok((provider, root))
        })
        .await
}

/// Removes a provider that has no children and no allocations.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("resource_providers", "delete")?;
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            find(conn, id)?;
            let text = id.to_string();
            let exists = |sql: &str| -> Result<bool> { Ok(conn.prepare_cached(sql)?.exists([&text])?) };
            if exists("SELECT 1 FROM placement_providers WHERE parent_id = ?1")? {
                return Err(in_use(
                    "placement.resource_provider.cannot_delete_parent",
                    format!(
                        "Unable to delete parent resource provider {id}: It has child resource providers."
                    ),
                ));
            }
            if exists("SELECT 1 FROM placement_allocations WHERE provider_id = ?1")? {
                return Err(in_use(
                    "placement.resource_provider.inuse",
                    format!("Unable to delete resource provider {id}: Resource provider has allocations."),
                ));
            }
            for table in [
                "placement_inventories WHERE provider_id",
                "placement_provider_traits WHERE provider_id",
                "placement_provider_aggregates WHERE provider_id",
                "placement_providers WHERE id",
            ] {
                conn.execute(&format!("DELETE FROM {table} = ?1"), [&text])?;
            }
            Ok(())
        })
        .await
}

/// What a provider has, with its generation.
pub async fn inventories(
    cloud: &Cloud,
    ctx: &Context,
    id: Uuid,
) -> Result<(Provider, BTreeMap<String, Inventory>)> {
    ctx.require("resource_providers", "show")?;
    cloud
        .store
        .read(move |conn| Ok((find(conn, id)?, inventories_of(conn, id)?)))
        .await
}

/// A change of inventories.
#[derive(Debug, Clone)]
pub enum InventoryChange {
    /// Exactly these.
    Replace(BTreeMap<String, Inventory>),
    /// This one beside those that there are.
    Add(String, Inventory),
    /// This one, which is there.
    Update(String, Inventory),
    /// Without this one.
    Remove(String),
}

pub(super) fn check_generation(provider: &Provider, seen: Option<u64>) -> Result<()> {
    if seen.is_some_and(|seen| seen != provider.generation) {
        return Err(concurrent("resource provider generation conflict"));
    }
    Ok(())
}

/// Changes inventories. `seen`: the generation that the caller knows.
pub async fn change_inventories(
    cloud: &Cloud,
    ctx: &Context,
    id: Uuid,
    seen: Option<u64>,
    change: InventoryChange,
) -> Result<(Provider, BTreeMap<String, Inventory>)> {
    ctx.require("resource_providers", "update")?;
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut provider = find(conn, id)?;
            check_generation(&provider, seen)?;
            let mut all = inventories_of(conn, id)?;
            let unknown = |class: &str| {
                missing(format!(
                    "No inventory of class {} found for {id}",
                    class.chars().take(64).collect::<String>()
                ))
            };
            match &change {
                InventoryChange::Replace(new) => all.clone_from(new),
                InventoryChange::Add(class, inventory) => {
                    if all.insert(class.clone(), *inventory).is_some() {
                        return Err(in_use(
                            "placement.undefined_code",
                            format!("Update conflict: {class} is there already."),
                        ));
                    }
                }
                InventoryChange::Update(class, inventory) => match all.get_mut(class) {
                    None => {
                        return Err(Error::BadRequest(format!(
                            "No inventory record with resource class {class}"
                        )));
                    }
                    Some(old) => *old = *inventory,
                },
                InventoryChange::Remove(class) => {
                    all.remove(class).ok_or_else(|| unknown(class))?;
                }
            }
            save_inventories(conn, &mut provider, &all)?;
            Ok((provider, all))
        })
        .await
}

/// Reads traits or aggregates.
pub async fn sets(
    cloud: &Cloud,
    ctx: &Context,
    id: Uuid,
) -> Result<(Provider, BTreeSet<String>, BTreeSet<String>)> {
    ctx.require("resource_providers", "show")?;
    cloud
        .store
        .read(move |conn| Ok((find(conn, id)?, traits_of(conn, id)?, aggregates_of(conn, id)?)))
        .await
}

/// Gives the provider exactly these traits.
pub async fn set_traits(
    cloud: &Cloud,
    ctx: &Context,
    id: Uuid,
    seen: Option<u64>,
    traits: BTreeSet<String>,
) -> Result<Provider> {
    ctx.require("resource_providers", "update")?;
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut provider = find(conn, id)?;
            check_generation(&provider, seen)?;
            save_traits(conn, &mut provider, &traits)?;
            Ok(provider)
        })
        .await
}

/// Puts the provider into exactly these aggregates.
pub async fn set_aggregates(
    cloud: &Cloud,
    ctx: &Context,
    id: Uuid,
    seen: Option<u64>,
    aggregates: BTreeSet<Uuid>,
) -> Result<Provider> {
    ctx.require("resource_providers", "update")?;
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut provider = find(conn, id)?;
            check_generation(&provider, seen)?;
            conn.execute(
                "DELETE FROM placement_provider_aggregates WHERE provider_id = ?1",
                [id.to_string()],
            )?;
            for aggregate in &aggregates {
                conn.execute(
                    "INSERT INTO placement_provider_aggregates VALUES (?1, ?2)",
                    [id.to_string(), aggregate.to_string()],
                )?;
            }
            provider.touch(conn)?;
            Ok(provider)
        })
        .await
}

/// What is taken of a provider, by resource class; classes that it has and nobody uses are 0.
pub async fn usages(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<(Provider, BTreeMap<String, u64>)> {
    ctx.require("usages", "list")?;
    cloud
        .store
        .read(move |conn| {
            let provider = find(conn, id)?;
            let mut usages = BTreeMap::new();
            for class in inventories_of(conn, id)?.into_keys() {
                let used = allocations::used(conn, id, &class)?;
                usages.insert(class, used);
            }
            Ok((provider, usages))
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inventory_is_given_out_as_its_ratio_and_units_say() {
        let inventory = Inventory {
            reserved: 2,
            max_unit: 8,
            step_size: 2,
            min_unit: 2,
            allocation_ratio: 2.0,
            ..Inventory::of(10)
        };
        assert_eq!(inventory.capacity(), 16);
        assert!(inventory.admits(8, 8));
        for (amount, used) in [(8, 9), (1, 0), (3, 0), (10, 0), (0, 0)] {
            assert!(!inventory.admits(amount, used), "{amount} beside {used}");
        }
        assert!(!Inventory::of(u64::MAX).admits(u64::MAX, u64::MAX));
    }
}
