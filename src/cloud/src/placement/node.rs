//! This node as a resource provider.

use std::collections::BTreeMap;

use rusqlite::Connection;
use uuid::Uuid;

use super::names::{DISK_GB, MEMORY_MB, NODE_TRAITS, VCPU};
use super::providers::{self, Inventory};
use crate::{Cloud, Result};

/// Virtual processors that are given out for each real one, unless an operator says otherwise.
const CPU_RATIO: f64 = 16.0;
/// The same for memory.
const RAM_RATIO: f64 = 1.0;
/// The same for space on disks: they are sparse, and clones share what they have in common.
const DISK_RATIO: f64 = 10.0;

/// Writes down what this node has, where that has changed. Ratios and what is reserved stay as operators set them.
pub async fn register(cloud: &Cloud, id: Uuid) -> Result<()> {
    let capacity = cloud.drivers.machines.capacity();
    let usage = cloud.drivers.disks.usage().await?;
    let node = cloud.config.node.clone();
    let has = [
        (VCPU, u64::from(capacity.vcpus), CPU_RATIO),
        (MEMORY_MB, capacity.memory_mib, RAM_RATIO),
        (DISK_GB, usage.total / model::units::GIB, DISK_RATIO),
    ];
    let known = cloud
        .store
        .read({
            let node = node.clone();
            move |conn| is_as(conn, id, &node, &has)
        })
        .await?;
    if known {
        return Ok(());
    }
    cloud
        .store
        .write("placement", move |conn| {
            let mut provider = providers::ensure(conn, id, &node)?;
            let mut inventories = providers::inventories_of(conn, id)?;
            for (class, total, ratio) in has {
                let total = total.max(1);
                let inventory = inventories.entry(class.to_owned()).or_insert(Inventory {
                    allocation_ratio: ratio,
                    ..Inventory::of(total)
                });
                inventory.total = total;
                inventory.max_unit = total;
                inventory.reserved = inventory.reserved.min(total);
            }
            providers::save_inventories(conn, &mut provider, &inventories)?;
            let mut traits = providers::traits_of(conn, id)?;
            traits.extend(NODE_TRAITS.iter().map(|name| (*name).to_owned()));
            providers::save_traits(conn, &mut provider, &traits)
        })
        .await
}

/// What this node has is written down already.
fn is_as(conn: &Connection, id: Uuid, node: &str, has: &[(&str, u64, f64)]) -> Result<bool> {
    if providers::get(conn, id)?.is_none_or(|provider| provider.name != node) {
        return Ok(false);
    }
    let inventories: BTreeMap<String, Inventory> = providers::inventories_of(conn, id)?;
    let traits = providers::traits_of(conn, id)?;
    Ok(has.iter().all(|(class, total, _)| {
        inventories
            .get(*class)
            .is_some_and(|inventory| inventory.total == (*total).max(1))
    }) && NODE_TRAITS.iter().all(|name| traits.contains(*name)))
}
