//! Which node a server runs on.
//!
//! A node is claimed in the same transaction that looks at what is claimed already, so two servers never get the last
//! room.

use rusqlite::{Connection, params};

use super::groups::{self, Policy};
use super::servers::Server;
use crate::Result;
use crate::driver::Capacity;

/// Virtual processors that are given out for each real one.
const CPU_RATIO: f64 = 16.0;
/// Memory that is given out for each byte that there is.
const RAM_RATIO: f64 = 1.0;

/// What Nova says when no node has room.
pub(super) const NO_VALID_HOST: &str = "No valid host was found. There are not enough hosts available.";

/// What is claimed on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) servers: u64,
    pub(super) vcpus: u64,
    pub(super) ram_mib: u64,
}

/// What the servers on this node have claimed.
pub(super) fn claims(conn: &Connection, node: &str) -> Result<Claims> {
    let mut query = conn.prepare_cached(
        "SELECT COUNT(*), TOTAL(vcpus), TOTAL(ram_mib) FROM compute_servers WHERE host = ?1 AND deleted = 0",
    )?;
    Ok(query.query_row([node], |row| {
        Ok(Claims {
            servers: row.get::<_, i64>(0)?.unsigned_abs(),
            vcpus: row.get::<_, f64>(1)? as u64,
            ram_mib: row.get::<_, f64>(2)? as u64,
        })
    })?)
}

/// The server fits on the node beside what is claimed there.
fn fits(capacity: &Capacity, claims: Claims, server: &Server) -> bool {
    let vcpus = f64::from(capacity.vcpus) * CPU_RATIO;
    let ram = capacity.memory_mib as f64 * RAM_RATIO;
    // Over-commit is between servers: one alone never has more processors than the node.
    server.flavor.vcpus <= capacity.vcpus.max(1)
        && (claims.vcpus + u64::from(server.flavor.vcpus)) as f64 <= vcpus
        && (claims.ram_mib + server.flavor.ram) as f64 <= ram
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

/// This node can take the server.
pub(super) fn admits(conn: &Connection, node: &str, capacity: &Capacity, server: &Server) -> Result<bool> {
    Ok(fits(capacity, claims(conn, node)?, server) && group_allows(conn, server, node)?)
}
