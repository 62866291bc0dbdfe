//! Who has which address. One row per address, keyed by (subnet, address): nothing is ever given twice.

use std::net::IpAddr;

use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

use super::errors::conflict;
use super::ranges::{self, Pool};
use super::rows;
use super::subnets::Subnet;
use crate::Result;

/// An address that a port (or a subnet's DHCP server) has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedIp {
    /// The subnet that it is from.
    pub subnet: Uuid,
    /// The address.
    pub ip: IpAddr,
}

/// Gives this very address away.
pub(crate) fn take(
    conn: &Connection,
    subnet: &Subnet,
    ip: IpAddr,
    owner: Uuid,
    position: usize,
) -> Result<FixedIp> {
    let id = subnet.meta.id;
    if holder(conn, id, ip)?.is_some() {
        let message = format!(
            "Unable to complete operation for network {}. The IP address {ip} is in use.",
            subnet.network_id
        );
        return Err(conflict("IpAddressInUse", message));
    }
    let position = i64::try_from(position).unwrap_or(i64::MAX);
    conn.prepare_cached(
        "INSERT INTO network_allocations (subnet_id, address, owner_id, position) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute((id.to_string(), ranges::key(ip), owner.to_string(), position))?;
    Ok(FixedIp { subnet: id, ip })
}

/// Takes an address back.
pub(crate) fn give_back(conn: &Connection, address: FixedIp) -> Result<()> {
    conn.prepare_cached("DELETE FROM network_allocations WHERE subnet_id=?1 AND address=?2")?
        .execute((address.subnet.to_string(), ranges::key(address.ip)))?;
    Ok(())
}

/// Takes all addresses of an owner back.
pub(crate) fn give_back_all(conn: &Connection, owner: Uuid) -> Result<()> {
    conn.prepare_cached("DELETE FROM network_allocations WHERE owner_id=?1")?
        .execute([owner.to_string()])?;
    Ok(())
}

/// Tells an address its place among its owner's.
pub(crate) fn place(conn: &Connection, address: FixedIp, position: usize) -> Result<()> {
    let position = i64::try_from(position).unwrap_or(i64::MAX);
    conn.prepare_cached("UPDATE network_allocations SET position=?3 WHERE subnet_id=?1 AND address=?2")?
        .execute((address.subnet.to_string(), ranges::key(address.ip), position))?;
    Ok(())
}

/// Who has the address.
pub(crate) fn holder(conn: &Connection, subnet: Uuid, ip: IpAddr) -> Result<Option<Uuid>> {
    let found = conn
        .prepare_cached("SELECT owner_id FROM network_allocations WHERE subnet_id=?1 AND address=?2")?
        .query_row((subnet.to_string(), ranges::key(ip)), |row| {
            rows::parsed(row, "owner_id")
        })
        .optional()?;
    Ok(found)
}

/// The addresses of an owner, in order.
pub(crate) fn of_owner(conn: &Connection, owner: Uuid) -> Result<Vec<FixedIp>> {
    let mut statement = conn.prepare_cached(
        "SELECT subnet_id, address FROM network_allocations WHERE owner_id=?1 ORDER BY position, address",
    )?;
    let found = statement.query_map([owner.to_string()], read)?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// All addresses with their owners, in order.
pub(crate) fn all(conn: &Connection) -> Result<Vec<(Uuid, FixedIp)>> {
    let mut statement = conn.prepare_cached(
        "SELECT subnet_id, address, owner_id FROM network_allocations ORDER BY owner_id, position, address",
    )?;
    let found = statement.query_map([], |row| Ok((rows::parsed(row, "owner_id")?, read(row)?)))?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// Addresses of the subnet that are given away, its DHCP server's included.
pub(crate) fn used(conn: &Connection, subnet: Uuid) -> Result<i64> {
    let sql = "SELECT count(*) FROM network_allocations WHERE subnet_id=?1";
    Ok(conn
        .prepare_cached(sql)?
        .query_row([subnet.to_string()], |row| row.get(0))?)
}

/// An address of these pools that nobody has: the one behind the last one given (an address that was just given back
/// rests a while), or else the first gap.
pub(crate) fn free(conn: &Connection, subnet: Uuid, pools: &[Pool]) -> Result<Option<IpAddr>> {
    let id = subnet.to_string();
    for pool in pools {
        let ends = (&id, ranges::key(pool.start), ranges::key(pool.end));
        let last: Option<Vec<u8>> = conn
            .prepare_cached(
                "SELECT max(address) FROM network_allocations WHERE subnet_id=?1 AND address BETWEEN ?2 AND ?3",
            )?
            .query_row(ends, |row| row.get(0))?;
        match last.as_deref().and_then(ranges::from_key) {
            None => return Ok(Some(pool.start)),
            Some(last) if last < pool.end => {
                return Ok(Some(ranges::address(ranges::number(last) + 1, last)));
            }
            Some(_) => {}
        }
        let mut statement = conn.prepare_cached(
            "SELECT address FROM network_allocations WHERE subnet_id=?1 AND address BETWEEN ?2 AND ?3 ORDER BY address",
        )?;
        let mut taken = statement.query((&id, ranges::key(pool.start), ranges::key(pool.end)))?;
        let mut next = ranges::number(pool.start);
        while let Some(row) = taken.next()? {
            let taken: Vec<u8> = row.get(0)?;
            if ranges::from_key(&taken).is_some_and(|ip| ranges::number(ip) > next) {
                return Ok(Some(ranges::address(next, pool.start)));
            }
            next += 1;
        }
    }
    Ok(None)
}

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<FixedIp> {
    let bytes: Vec<u8> = row.get("address")?;
    let ip = ranges::from_key(&bytes).ok_or(rusqlite::Error::IntegralValueOutOfRange(1, 0))?;
    Ok(FixedIp {
        subnet: rows::parsed(row, "subnet_id")?,
        ip,
    })
}
