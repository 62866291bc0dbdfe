//! What there is: the switch as Neutron's agent, and how many addresses are left.

use std::time::SystemTime;

use ipnet::IpNet;
use rusqlite::Connection;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::{WORKER, ipam, networks, subnets};
use crate::worker::Activity;
use crate::{Cloud, Context, Result};

/// A node's switch, as Neutron shows its agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Derived from the node's name: the same after every start.
    pub id: Uuid,
    /// What it is.
    pub kind: &'static str,
    /// What runs.
    pub binary: &'static str,
    /// The node.
    pub host: String,
    /// The node's availability zone.
    pub zone: String,
    /// The switch obeys the newest tables, or will in a moment.
    pub alive: bool,
    /// Since when it is as it is.
    pub since: String,
    /// When it was looked at: now.
    pub seen: String,
}

/// The switch of this node. As in Neutron, those who may not see agents see an empty list.
pub fn agents(cloud: &Cloud, ctx: &Context) -> Vec<Agent> {
    if ctx.require("network_agents", "list").is_err() {
        return Vec::new();
    }
    let text = |at: SystemTime| {
        let at = OffsetDateTime::from(at)
            .replace_nanosecond(0)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        at.format(&Rfc3339).unwrap_or_default()
    };
    let worker = cloud
        .workers
        .list()
        .into_iter()
        .find(|worker| worker.name == WORKER);
    let alive = worker
        .as_ref()
        .is_some_and(|worker| !matches!(worker.activity, Activity::Failed { .. }));
    let now = SystemTime::now();
    let digest = Sha256::digest(format!("switch of {}", cloud.config.node));
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    vec![Agent {
        id: uuid::Builder::from_custom_bytes(id).into_uuid(),
        kind: "Allod switch",
        binary: "allod-switch",
        host: cloud.config.node.clone(),
        zone: cloud.config.availability_zone.clone(),
        alive,
        since: text(worker.map_or(now, |worker| worker.since)),
        seen: text(now),
    }]
}

/// How many addresses of a network are given away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Availability {
    /// The network.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub project_id: String,
    /// Its subnets.
    pub subnets: Vec<SubnetAvailability>,
}

/// How many addresses of a subnet are given away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetAvailability {
    /// The subnet.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Its range.
    pub cidr: IpNet,
    /// 4 or 6.
    pub version: u8,
    /// Addresses in its pools.
    pub total: u128,
    /// Addresses that are given away.
    pub used: i64,
}

/// All networks with their subnets' addresses. As in Neutron, those who may not see them see an empty list.
pub fn availability(conn: &Connection, ctx: &Context) -> Result<Vec<Availability>> {
    if ctx.require("network_ip_availability", "list").is_err() {
        return Ok(Vec::new());
    }
    networks::all(conn)?
        .into_iter()
        .map(|network| {
            let subnets = subnets::of_network(conn, network.meta.id)?
                .into_iter()
                .map(|subnet| {
                    Ok(SubnetAvailability {
                        id: subnet.meta.id,
                        version: subnet.ip_version(),
                        total: subnet
                            .pools
                            .iter()
                            .fold(0, |sum, pool| pool.size().saturating_add(sum)),
                        used: ipam::used(conn, subnet.meta.id)?,
                        name: subnet.meta.name,
                        cidr: subnet.cidr,
                    })
                });
            Ok(Availability {
                id: network.meta.id,
                subnets: subnets.collect::<Result<_>>()?,
                name: network.meta.name,
                project_id: network.meta.project_id,
            })
        })
        .collect()
}
