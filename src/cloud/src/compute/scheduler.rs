//! Which node a server runs on.
//!
//! Placement's rows are the inventory: a node is claimed there in the same transaction that puts the server on it, so two
//! servers never get the last room, and what operators set there (ratios, reserves) holds here.

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::groups::{self, Policy};
use super::servers::Server;
use super::{disks, hosts};
use crate::Result;
use crate::placement::allocations;
use crate::placement::names::{DISK_GB, MEMORY_MB, VCPU};

/// What Nova says when no node has room.
pub(super) const NO_VALID_HOST: &str = "No valid host was found. There are not enough hosts available.";

/// What is claimed on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) vcpus: u64,
    pub(super) ram_mib: u64,
}

/// What is claimed on this node.
pub(super) fn claims(conn: &Connection, node: &str) -> Result<Claims> {
    let provider = hosts::provider(node).to_string();
    let mut query = conn.prepare_cached(
        "SELECT COALESCE(SUM(used), 0) FROM placement_allocations WHERE provider_id = ?1 AND resource_class = ?2",
    )?;
    let mut sum = |class: &str| query.query_row([provider.as_str(), class], |row| row.get::<_, u64>(0));
    Ok(Claims {
        vcpus: sum(VCPU)?,
        ram_mib: sum(MEMORY_MB)?,
    })
}

/// What the server takes of its node: what it needs now, and what it must be able to go back to.
fn needs(conn: &Connection, server: &Server) -> Result<[(&'static str, u64); 3]> {
    let (vcpus, ram) = server.most();
    let mut bytes = server.root_bytes_in_all();
    for disk in disks::of_server(conn, server.id)? {
        if disk.local {
            bytes = bytes.saturating_add(disk.size);
        }
    }
    Ok([
        (VCPU, vcpus.into()),
        (MEMORY_MB, ram),
        (DISK_GB, bytes.div_ceil(model::units::GIB)),
    ])
}

fn claim(conn: &Connection, server: &Server, provider: Uuid) -> Result<bool> {
    let who = (server.id, server.project_id.as_str(), server.user_id.as_str());
    allocations::claim(conn, who, provider, needs(conn, server)?)
}

/// The server's group allows the node.
fn group_allows(conn: &Connection, server: &Server, node: &str) -> Result<bool> {
    let Some(group) = server.server_group else {
        return Ok(true);
    };
    let Some(group) = groups::get(conn, group)? else {
        return Ok(true);
    };
    let mut query = conn.prepare_cached(
        "SELECT COUNT(*), COUNT(CASE WHEN host = ?2 THEN 1 END) FROM compute_servers \
         WHERE server_group = ?1 AND deleted = 0 AND host IS NOT NULL AND id <> ?3",
    )?;
    let (all, here): (u32, u32) = query.query_row(
        params![group.id.to_string(), node, server.id.to_string()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    Ok(match group.policy {
        Policy::Affinity => all == here,
        Policy::AntiAffinity => here < group.max_per_host.unwrap_or(1),
        Policy::SoftAffinity | Policy::SoftAntiAffinity => true,
    })
}

/// Claims this node for the server; `false`: it has no room, or the server's group forbids it.
pub(super) fn place(conn: &Connection, node: &str, server: &Server) -> Result<bool> {
    Ok(group_allows(conn, server, node)? && claim(conn, server, hosts::provider(node))?)
}

/// The server needs more or less of its node than before; `false`: there is no room for more.
pub(super) fn reclaim(conn: &Connection, server: &Server) -> Result<bool> {
    match &server.host {
        Some(node) => claim(conn, server, hosts::provider(node)),
        None => Ok(true),
    }
}

/// The server has left its node.
pub(super) fn release(conn: &Connection, server: &Server) -> Result<()> {
    allocations::release(conn, server.id)
}
