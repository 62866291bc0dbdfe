//! What this node's pool is, as schedulers ask of it.

use super::row::Pairs;
use crate::{Cloud, Context, Result};

/// The name of the backend, as `volume_backend_name` in a type's extra specs.
pub const BACKEND: &str = "pool";
/// Who made it.
pub const VENDOR: &str = "Allod";
/// How servers reach it.
pub const PROTOCOL: &str = "vhost-user";

/// What types may ask of it.
const CAPABILITIES: [(&str, &str); 6] = [
    ("volume_backend_name", BACKEND),
    ("vendor_name", VENDOR),
    ("storage_protocol", PROTOCOL),
    ("thin_provisioning_support", "True"),
    ("thick_provisioning_support", "False"),
    ("multiattach", "False"),
];

/// The pool is what a type with these extra specs asks for. Keys with a scope other than `capabilities:` are others' matter.
pub(super) fn offers(extra_specs: &Pairs) -> bool {
    extra_specs.iter().all(|(key, wanted)| {
        let key = match key.split_once(':') {
            None => key.as_str(),
            Some(("capabilities", key)) => key,
            Some(_) => return true,
        };
        let has = CAPABILITIES
            .iter()
            .find(|(known, _)| *known == key)
            .map(|(_, value)| *value);
        let wanted = wanted.trim();
        match (wanted.strip_prefix("<is>"), has) {
            (Some(flag), has) => super::create::is_true(flag) == has.is_some_and(super::create::is_true),
            (None, Some(has)) => wanted
                .split("<or>")
                .any(|word| word.trim().eq_ignore_ascii_case(has)),
            (None, None) => false,
        }
    })
}

/// The pool, for administrators.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Pool {
    /// `node@backend#pool`.
    pub name: String,
    pub total_gb: f64,
    pub free_gb: f64,
    /// In GiB: sizes of all volumes.
    pub allocated_gb: i64,
    pub reflinks: bool,
}

/// The pools of the cloud.
///
/// # Errors
/// If the pool cannot be asked.
pub async fn list(cloud: &Cloud, ctx: &Context) -> Result<Vec<Pool>> {
    ctx.require("volume_pools", "list")?;
    let usage = cloud.drivers.disks.usage().await?;
    let allocated = cloud.store.read(|conn| {
        Ok::<i64, crate::Error>(conn.query_row(
            "SELECT COALESCE(SUM(size), 0) FROM volume_volumes",
            [],
            |row| row.get(0),
        )?)
    });
    let gib = |bytes: u64| (bytes as f64 / model::units::GIB as f64 * 100.0).round() / 100.0;
    Ok(vec![Pool {
        name: host_name(&cloud.config.node),
        total_gb: gib(usage.total),
        free_gb: gib(usage.free),
        allocated_gb: allocated.await?,
        reflinks: usage.reflinks,
    }])
}

/// A node's pool as volumes name it: `node@backend#pool`.
pub fn host_name(node: &str) -> String {
    format!("{node}@{BACKEND}#{BACKEND}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_get_only_what_the_pool_is() {
        let specs = |pairs: &[(&str, &str)]| -> Pairs {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        for good in [
            &[][..],
            &[("volume_backend_name", "pool")],
            &[("capabilities:vendor_name", "allod")],
            &[("multiattach", "<is> False")],
            &[("thin_provisioning_support", "<is> True")],
            &[("key:of-others", "whatever")],
            &[("storage_protocol", "<or> iSCSI <or> vhost-user")],
        ] {
            assert!(offers(&specs(good)), "{good:?}");
        }
        for bad in [
            &[("volume_backend_name", "ceph")][..],
            &[("multiattach", "<is> True")],
            &[("encryption", "<is> True")],
            &[("vendor_name", "nobody")],
            &[("no_such_thing", "x")],
        ] {
            assert!(!offers(&specs(bad)), "{bad:?}");
        }
    }
}
