//! Nodes as Nova shows them: hypervisors, services, availability zones.

use uuid::Uuid;

use super::scheduler;
use crate::{Cloud, Context, Error, Result};

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Hypervisor {
    pub id: Uuid,
    pub service_id: Uuid,
    pub hostname: String,
    /// `kvm` or `qemu`.
    pub engine: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub local_gib: u64,
    pub free_gib: u64,
    pub vcpus_used: u64,
    pub memory_mib_used: u64,
    pub servers: Vec<(Uuid, String)>,
}

/// A stable id for a node's own things, made from its name.
fn id_of(kind: &str, node: &str) -> Uuid {
    use sha2::{Digest, Sha256};
    let hash = Sha256::new()
        .chain_update("allod/")
        .chain_update(kind)
        .chain_update("/")
        .chain_update(node)
        .finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// The node as a resource provider: the same id as its hypervisor's.
pub(super) fn provider(node: &str) -> Uuid {
    id_of("hypervisor", node)
}

/// All nodes.
pub async fn hypervisors(cloud: &Cloud, ctx: &Context) -> Result<Vec<Hypervisor>> {
    ctx.require("hypervisors", "list")?;
    let capacity = cloud.drivers.machines.capacity();
    let usage = cloud.drivers.disks.usage().await.unwrap_or_default();
    let node = cloud.config.node.clone();
    let (claims, servers) = cloud
        .store
        .read({
            let node = node.clone();
            move |conn| {
                let mut query = conn.prepare_cached(
                    "SELECT id, name FROM compute_servers WHERE host = ?1 AND deleted = 0 ORDER BY created_at, id",
                )?;
                let rows = query.query_map([&node], |row| Ok((super::servers::uuid(row, 0)?, row.get(1)?)))?;
                let servers: Vec<(Uuid, String)> = rows.collect::<rusqlite::Result<_>>()?;
                Ok::<_, Error>((scheduler::claims(conn, &node)?, servers))
            }
        })
        .await?;
    Ok(vec![Hypervisor {
        id: id_of("hypervisor", &node),
        service_id: id_of("nova-compute", &node),
        hostname: node,
        engine: capacity.engine,
        vcpus: capacity.vcpus,
        memory_mib: capacity.memory_mib,
        local_gib: usage.total / model::units::GIB,
        free_gib: usage.free / model::units::GIB,
        vcpus_used: claims.vcpus,
        memory_mib_used: claims.ram_mib,
        servers,
    }])
}

/// One node, by its id or (before 2.53) its number.
pub async fn hypervisor(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Hypervisor> {
    let all = hypervisors(cloud, ctx).await?;
    let number = id.parse::<usize>().ok();
    let found = all
        .into_iter()
        .enumerate()
        .find(|(n, h)| h.id.to_string() == id || number == Some(n + 1));
    found
        .map(|(_, h)| h)
        .ok_or_else(|| super::missing(format!("Hypervisor with ID '{id}' could not be found.")))
}

/// A part of the cloud that runs on a node, in Nova's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its id.
    pub id: Uuid,
    /// `nova-compute`, `nova-scheduler` or `nova-conductor`.
    pub binary: &'static str,
    /// The node.
    pub host: String,
    /// The availability zone; services without servers are in `internal`.
    pub zone: String,
}

/// The availability zone of this node.
async fn zone(cloud: &Cloud) -> Result<String> {
    let (node, settings) = (cloud.config.node.clone(), cloud.config.availability_zone.clone());
    cloud
        .store
        .read(move |conn| super::aggregates::zone_of(conn, &node, &settings))
        .await
}

/// All services.
pub async fn services(cloud: &Cloud, ctx: &Context) -> Result<Vec<Service>> {
    ctx.require("services", "list")?;
    let node = &cloud.config.node;
    let zone = zone(cloud).await?;
    let zones = [
        ("nova-compute", zone.as_str()),
        ("nova-scheduler", "internal"),
        ("nova-conductor", "internal"),
    ];
    Ok(zones
        .into_iter()
        .map(|(binary, zone)| Service {
            id: id_of(binary, node),
            binary,
            host: node.clone(),
            zone: zone.to_owned(),
        })
        .collect())
}

/// The availability zones.
pub async fn zones(cloud: &Cloud, ctx: &Context, detail: bool) -> Result<Vec<String>> {
    ctx.require("availability_zones", if detail { "detail" } else { "list" })?;
    Ok(vec![zone(cloud).await?])
}

/// Writes down what this node has for guests; the reconciler does so when it starts.
pub async fn register(cloud: &Cloud) -> Result<()> {
    crate::placement::node::register(cloud, provider(&cloud.config.node)).await
}
