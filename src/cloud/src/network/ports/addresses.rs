//! Which addresses a port gets.

use std::net::IpAddr;

use rusqlite::Connection;
use uuid::Uuid;

use super::PortRow;
use crate::Result;
use crate::network::errors::conflict;
use crate::network::errors::{bad, invalid};
use crate::network::floating_ips;
use crate::network::ipam::{self, FixedIp};
use crate::network::ranges;
use crate::network::rows::Condition;
use crate::network::subnets::{self, Subnet};

/// The most addresses of one port.
const MAX_ADDRESSES: usize = 16;

/// An address that a request asks for: any of a subnet, a certain one, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FixedIpRequest {
    /// From this subnet.
    pub subnet: Option<Uuid>,
    /// This address.
    pub ip: Option<IpAddr>,
}

/// Gives a new port its addresses. Without requests: one IPv4 address, one IPv6 address that DHCP would give, and one of
/// every subnet whose hosts number themselves.
pub(super) fn assign(
    conn: &Connection,
    port: &PortRow,
    requests: Option<&[FixedIpRequest]>,
) -> Result<Vec<FixedIp>> {
    let subnets = subnets::of_network(conn, port.network_id)?;
    let Some(requests) = requests else {
        return by_default(conn, port, &subnets);
    };
    if requests.len() > MAX_ADDRESSES {
        return Err(invalid(format_args!(
            "Exceeded maximum amount of fixed ips per port: {MAX_ADDRESSES}"
        )));
    }
    let mut given = Vec::new();
    for request in requests {
        given.push(give(conn, port, &subnets, *request, given.len())?);
    }
    Ok(given)
}

fn by_default(conn: &Connection, port: &PortRow, subnets: &[Subnet]) -> Result<Vec<FixedIp>> {
    let mut given = Vec::new();
    for v4 in [true, false] {
        let family: Vec<&Subnet> = subnets
            .iter()
            .filter(|s| s.cidr.network().is_ipv4() == v4 && !s.is_automatic())
            .collect();
        let mut found = None;
        for subnet in &family {
            if let Some(ip) = ipam::free(conn, subnet.meta.id, &subnet.pools)? {
                found = Some(ipam::take(conn, subnet, ip, port.id, given.len())?);
                break;
            }
        }
        match found {
            Some(address) => given.push(address),
            None if family.is_empty() => {}
            None => return Err(subnets::exhausted(port.network_id)),
        }
    }
    for subnet in subnets.iter().filter(|subnet| subnet.is_automatic()) {
        let ip = ranges::eui64(subnet.cidr, port.mac);
        given.push(ipam::take(conn, subnet, ip, port.id, given.len())?);
    }
    Ok(given)
}

/// Gives a port other addresses; those that it keeps are not touched.
pub(super) fn reassign(
    conn: &Connection,
    port: &PortRow,
    requests: &[FixedIpRequest],
) -> Result<Vec<FixedIp>> {
    if requests.len() > MAX_ADDRESSES {
        return Err(invalid(format_args!(
            "Exceeded maximum amount of fixed ips per port: {MAX_ADDRESSES}"
        )));
    }
    let subnets = subnets::of_network(conn, port.network_id)?;
    let mut before = port.fixed_ips.clone();
    // Certain addresses claim theirs first; "any of this subnet" is content with what is there.
    let mut kept: Vec<Option<FixedIp>> = vec![None; requests.len()];
    for certain in [true, false] {
        for (request, kept) in requests.iter().zip(&mut kept) {
            let matches = |has: &FixedIp| match (request.ip, request.subnet) {
                (Some(ip), subnet) => certain && has.ip == ip && subnet.is_none_or(|s| s == has.subnet),
                (None, Some(subnet)) => !certain && has.subnet == subnet,
                (None, None) => false,
            };
            if let Some(index) = before.iter().position(matches) {
                *kept = Some(before.remove(index));
            }
        }
    }
    for gone in before {
        if floating_ips::uses(conn, port.id, gone.ip)? {
            let message = format!(
                "Unable to complete the operation on port {} because the port still has an associated floating IP.",
                port.id
            );
            return Err(conflict("FipAssociated", message));
        }
        ipam::give_back(conn, gone)?;
    }
    let mut given = Vec::new();
    for (request, kept) in requests.iter().zip(kept) {
        let position = given.len();
        match kept {
            Some(address) => {
                ipam::place(conn, address, position)?;
                given.push(address);
            }
            None => given.push(give(conn, port, &subnets, *request, position)?),
        }
    }
    Ok(given)
}

/// Gives a port one more address.
pub(super) fn add(conn: &Connection, port: &PortRow, request: FixedIpRequest) -> Result<FixedIp> {
    let subnets = subnets::of_network(conn, port.network_id)?;
    give(conn, port, &subnets, request, port.fixed_ips.len())
}

fn give(
    conn: &Connection,
    port: &PortRow,
    subnets: &[Subnet],
    request: FixedIpRequest,
    position: usize,
) -> Result<FixedIp> {
    let subnet = match (request.subnet, request.ip) {
        (Some(id), _) => subnets
            .iter()
            .find(|subnet| subnet.meta.id == id)
            .ok_or_else(|| {
                invalid(format_args!(
                    "Failed to create port on network {}, because fixed_ips included invalid subnet {id}",
                    port.network_id
                ))
            })?,
        (None, Some(ip)) => subnets::containing(subnets, ip).ok_or_else(|| {
            let message =
                format!("IP address {ip} is not a valid IP for any of the subnets on the specified network.");
            bad("InvalidIpForNetwork", message)
        })?,
        (None, None) => return Err(invalid("IP allocation requires subnet_id or ip_address")),
    };
    let ip = match request.ip {
        Some(ip) if ranges::is_host(subnet.cidr, ip) => ip,
        Some(ip) => {
            let message = format!("IP address {ip} is not a valid IP for the specified subnet.");
            return Err(bad("InvalidIpForSubnet", message));
        }
        None if subnet.is_automatic() => ranges::eui64(subnet.cidr, port.mac),
        None => ipam::free(conn, subnet.meta.id, &subnet.pools)?
            .ok_or_else(|| subnets::exhausted(subnet.network_id))?,
    };
    ipam::take(conn, subnet, ip, port.id, position)
}

/// Ports that were there before a subnet whose hosts number themselves have an address on it, too.
pub(crate) fn join_automatic(conn: &Connection, subnet: &Subnet) -> Result<()> {
    for mut port in super::matching(conn, Condition::equals("network_id", subnet.network_id))? {
        if port.is_service() || port.fixed_ips.is_empty() {
            continue;
        }
        let ip = ranges::eui64(subnet.cidr, port.mac);
        if ipam::holder(conn, subnet.meta.id, ip)?.is_none() {
            ipam::take(conn, subnet, ip, port.id, port.fixed_ips.len())?;
            port.meta.touch();
            port.save(conn)?;
        }
    }
    Ok(())
}

/// The opposite: ports have their address on it no longer. Routers stay.
pub(crate) fn leave_automatic(conn: &Connection, subnet: &Subnet) -> Result<()> {
    for mut port in super::matching(conn, Condition::equals("network_id", subnet.network_id))? {
        if !port.is_service()
            && port
                .fixed_ips
                .iter()
                .any(|address| address.subnet == subnet.meta.id)
        {
            super::shrink(conn, &mut port, subnet.meta.id)?;
        }
    }
    Ok(())
}
