//! Names of resource classes and traits: the standard ones that mean something here, and those that operators make.

use rusqlite::Connection;

use super::{in_use, missing};
use crate::{Cloud, Context, Error, Result};

/// Virtual processors.
pub const VCPU: &str = "VCPU";
/// Memory in MiB.
pub const MEMORY_MB: &str = "MEMORY_MB";
/// Space for local disks in GiB.
pub const DISK_GB: &str = "DISK_GB";

/// Placement's standard resource classes.
pub const CLASSES: &[&str] = &[
    VCPU,
    MEMORY_MB,
    DISK_GB,
    "PCI_DEVICE",
    "SRIOV_NET_VF",
    "NUMA_SOCKET",
    "NUMA_CORE",
    "NUMA_THREAD",
    "NUMA_MEMORY_MB",
    "IPV4_ADDRESS",
    "VGPU",
    "VGPU_DISPLAY_HEAD",
    "NET_BW_EGR_KILOBIT_PER_SEC",
    "NET_BW_IGR_KILOBIT_PER_SEC",
    "PCPU",
    "MEM_ENCRYPTION_CONTEXT",
    "FPGA",
    "PGPU",
    "NET_PACKET_RATE_KILOPACKET_PER_SEC",
    "NET_PACKET_RATE_EGR_KILOPACKET_PER_SEC",
    "NET_PACKET_RATE_IGR_KILOPACKET_PER_SEC",
];

/// What this cloud's nodes can do, in standard names.
pub const NODE_TRAITS: &[&str] = &[
    "COMPUTE_ACCELERATORS_NONE",
    "COMPUTE_DEVICE_TAGGING",
    "COMPUTE_IMAGE_TYPE_ISO",
    "COMPUTE_IMAGE_TYPE_QCOW2",
    "COMPUTE_IMAGE_TYPE_RAW",
    "COMPUTE_NET_ATTACH_INTERFACE",
    "COMPUTE_NET_VIF_MODEL_VIRTIO",
    "COMPUTE_NODE",
    "COMPUTE_RESCUE_BFV",
    "COMPUTE_STORAGE_BUS_VIRTIO",
    "COMPUTE_VOLUME_ATTACH",
    "COMPUTE_VOLUME_EXTEND",
    "COMPUTE_VOLUME_MULTI_ATTACH",
];

/// More standard traits, which operators may give to providers of their own.
const OTHER_TRAITS: &[&str] = &[
    "COMPUTE_STATUS_DISABLED",
    "HW_ARCH_AARCH64",
    "HW_ARCH_X86_64",
    "HW_CPU_AARCH64_ASIMD",
    "HW_CPU_X86_AESNI",
    "HW_CPU_X86_AVX",
    "HW_CPU_X86_AVX2",
    "HW_CPU_X86_AVX512F",
    "HW_CPU_X86_SSE42",
    "HW_CPU_X86_SVM",
    "HW_CPU_X86_VMX",
    "HW_NUMA_ROOT",
    "MISC_SHARES_VIA_AGGREGATE",
    "STORAGE_DISK_HDD",
    "STORAGE_DISK_SSD",
];

/// Standard traits.
fn standard_traits() -> impl Iterator<Item = &'static str> {
    NODE_TRAITS.iter().chain(OTHER_TRAITS).copied()
}

/// A name that operators may make: `CUSTOM_` and capital letters, digits and underscores.
pub fn is_custom(name: &str) -> bool {
    name.len() <= 255
        && name.strip_prefix("CUSTOM_").is_some_and(|rest| {
            !rest.is_empty()
                && rest
                    .bytes()
                    .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        })
}

fn made(conn: &Connection, table: &str) -> Result<Vec<String>> {
    let mut query = conn.prepare_cached(&format!("SELECT name FROM {table} ORDER BY name"))?;
    Ok(query
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?)
}

fn is_made(conn: &Connection, table: &str, name: &str) -> Result<bool> {
    Ok(conn
        .prepare_cached(&format!("SELECT 1 FROM {table} WHERE name = ?1"))?
        .exists([name])?)
}

/// There is such a resource class.
pub(super) fn has_class(conn: &Connection, name: &str) -> Result<bool> {
    Ok(CLASSES.contains(&name) || is_made(conn, "placement_resource_classes", name)?)
}

/// There is such a trait.
pub(super) fn has_trait(conn: &Connection, name: &str) -> Result<bool> {
    Ok(standard_traits().any(|known| known == name) || is_made(conn, "placement_traits", name)?)
}

/// The 400 for classes that are not there.
pub(super) fn check_class(conn: &Connection, name: &str) -> Result<()> {
    if has_class(conn, name)? {
        return Ok(());
    }
    let name: String = name.chars().take(64).collect();
    Err(Error::BadRequest(format!(
        "Unknown resource class in inventory or allocation: No such resource class {name}."
    )))
}

/// All resource classes.
pub async fn classes(cloud: &Cloud, ctx: &Context) -> Result<Vec<String>> {
    ctx.require("resource_classes", "list")?;
    cloud
        .store
        .read(|conn| {
            let standard = CLASSES.iter().map(|name| (*name).to_owned());
            Ok(standard
                .chain(made(conn, "placement_resource_classes")?)
                .collect())
        })
        .await
}

/// There is such a class, or 404.
pub async fn class(cloud: &Cloud, ctx: &Context, name: &str) -> Result<()> {
    ctx.require("resource_classes", "list")?;
    let name = name.to_owned();
    cloud
        .store
        .read(move |conn| {
            if has_class(conn, &name)? {
                Ok(())
            } else {
                Err(missing(format!("No such resource class {name}.")))
            }
        })
        .await
}

/// Makes a class; tells whether it is new.
pub async fn create_class(cloud: &Cloud, ctx: &Context, name: &str) -> Result<bool> {
    ctx.require("resource_classes", "update")?;
    create(cloud, ctx, "placement_resource_classes", name).await
}

async fn create(cloud: &Cloud, ctx: &Context, table: &'static str, name: &str) -> Result<bool> {
    if !is_custom(name) {
        return Err(Error::BadRequest(
            "The name must begin with CUSTOM_ and consist of capital letters, digits and underscores.".into(),
        ));
    }
    let name = name.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let sql = format!("INSERT OR IGNORE INTO {table} (name) VALUES (?1)");
            Ok(conn.execute(&sql, [&name])? > 0)
        })
        .await
}

/// Removes a class that no inventory has.
pub async fn delete_class(cloud: &Cloud, ctx: &Context, name: &str) -> Result<()> {
    ctx.require("resource_classes", "update")?;
    if CLASSES.contains(&name) {
        return Err(Error::BadRequest(format!(
            "Cannot delete standard resource class {name}."
        )));
    }
    let name = name.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let used = conn
                .prepare_cached("SELECT 1 FROM placement_inventories WHERE resource_class = ?1")?
                .exists([&name])?;
            if used {
                return Err(in_use(
                    "placement.undefined_code",
                    format!("Cannot delete resource class {name}. Class is in use in inventory."),
                ));
            }
            if conn.execute("DELETE FROM placement_resource_classes WHERE name = ?1", [&name])? == 0 {
                return Err(missing(format!("No such resource class {name}.")));
            }
            Ok(())
        })
        .await
}

/// Which traits a list shows.
#[derive(Debug, Clone, Default)]
pub struct TraitFilter {
    /// Whose names begin so.
    pub prefix: Option<String>,
    /// These.
    pub names: Option<Vec<String>>,
    /// That some provider has, or none.
    pub associated: Option<bool>,
}

/// Traits.
pub async fn traits(cloud: &Cloud, ctx: &Context, filter: TraitFilter) -> Result<Vec<String>> {
    ctx.require("traits", "list")?;
    cloud
        .store
        .read(move |conn| {
            let mut found = Vec::new();
            let all = standard_traits().map(str::to_owned);
            for name in all.chain(made(conn, "placement_traits")?) {
                if filter
                    .prefix
                    .as_ref()
                    .is_some_and(|prefix| !name.starts_with(prefix))
                    || filter.names.as_ref().is_some_and(|names| !names.contains(&name))
                {
                    continue;
                }
                if let Some(wanted) = filter.associated
                    && wanted != is_given(conn, &name)?
                {
                    continue;
                }
                found.push(name);
            }
            found.sort();
            Ok(found)
        })
        .await
}

fn is_given(conn: &Connection, name: &str) -> Result<bool> {
    Ok(conn
        .prepare_cached("SELECT 1 FROM placement_provider_traits WHERE trait = ?1")?
        .exists([name])?)
}

/// There is such a trait, or 404.
pub async fn a_trait(cloud: &Cloud, ctx: &Context, name: &str) -> Result<()> {
    ctx.require("traits", "list")?;
    let name = name.to_owned();
    cloud
        .store
        .read(move |conn| {
            if has_trait(conn, &name)? {
                Ok(())
            } else {
                Err(missing(format!("No such trait(s): {name}.")))
            }
        })
        .await
}

/// Makes a trait; tells whether it is new.
pub async fn create_trait(cloud: &Cloud, ctx: &Context, name: &str) -> Result<bool> {
    ctx.require("traits", "update")?;
    create(cloud, ctx, "placement_traits", name).await
}

/// Removes a trait that no provider has.
pub async fn delete_trait(cloud: &Cloud, ctx: &Context, name: &str) -> Result<()> {
    ctx.require("traits", "update")?;
    if standard_traits().any(|known| known == name) {
        return Err(Error::BadRequest(format!("Cannot delete standard trait {name}.")));
    }
    let name = name.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            if is_given(conn, &name)? {
                return Err(in_use(
                    "placement.undefined_code",
                    format!("The trait {name} is in use by a resource provider."),
                ));
            }
            if conn.execute("DELETE FROM placement_traits WHERE name = ?1", [&name])? == 0 {
                return Err(missing(format!("No such trait {name}.")));
            }
            Ok(())
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_names_begin_with_custom() {
        for name in ["CUSTOM_A", "CUSTOM_GOLD_2"] {
            assert!(is_custom(name), "{name}");
        }
        for name in ["CUSTOM_", "custom_a", "CUSTOM_a", "VCPU", "CUSTOM_A-B", ""] {
            assert!(!is_custom(name), "{name}");
        }
        assert!(!is_custom(&format!("CUSTOM_{}", "A".repeat(255))));
    }
}
