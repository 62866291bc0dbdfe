//! Where routers are plugged in.

use std::net::IpAddr;

use rusqlite::Connection;
use uuid::Uuid;

use super::{Router, fetch, get};
use crate::network::errors::{bad, conflict, disallowed, missing};
use crate::network::ports::{self, FixedIpRequest, PortRow};
use crate::network::rows::{self, Condition};
use crate::network::{floating_ips, networks, rbac, subnets};
use crate::{Context, Result};

/// What an interface is asked to be on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterfaceRequest {
    /// The gateway address of this subnet.
    Subnet(Uuid),
    /// This port.
    Port(Uuid),
    /// This port, which has an address of this subnet (removal only).
    Both(Uuid, Uuid),
}

/// An interface that was added or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The router.
    pub router: Router,
    /// The port.
    pub port: Uuid,
    /// The network.
    pub network: Uuid,
    /// The subnets that this was about.
    pub subnets: Vec<Uuid>,
}

/// Plugs a router into a subnet or a port.
pub fn add_interface(
    conn: &Connection,
    ctx: &Context,
    id: Uuid,
    request: InterfaceRequest,
) -> Result<Interface> {
    ctx.require("routers", "add_interface")?;
    let mut router = get(conn, ctx, id)?;
    let (port, subnets) = match request {
        InterfaceRequest::Subnet(subnet) => add_by_subnet(conn, ctx, &router, subnet)?,
        InterfaceRequest::Port(port) => add_by_port(conn, ctx, &router, port)?,
        InterfaceRequest::Both(..) => {
            return Err(bad(
                "BadRequest",
                "Bad router request: Cannot specify both subnet-id and port-id.",
            ));
        }
    };
    router.meta.touch();
    router.save(conn)?;
    Ok(Interface {
        router,
        port: port.id,
        network: port.network_id,
        subnets,
    })
}

fn add_by_subnet(
    conn: &Connection,
    ctx: &Context,
    router: &Router,
    id: Uuid,
) -> Result<(PortRow, Vec<Uuid>)> {
    let subnet = subnets::get(conn, ctx, id)?;
    let network = networks::get(conn, ctx, subnet.network_id)?;
    if !network.is_owned_by(ctx) && !rbac::is_shared(conn, ctx, &network)? {
        return Err(disallowed("rule:add_router_interface"));
    }
    let Some(gateway) = subnet.gateway_ip else {
        let message = "Bad router request: Subnet for router interface must have a gateway IP.";
        return Err(bad("BadRequest", message));
    };
    router.check_overlap(conn, &subnet)?;
    check_not_gateway(router, network.meta.id)?;
    let request = FixedIpRequest {
        subnet: Some(id),
        ip: Some(gateway),
    };
    // A further IPv6 subnet of a network joins the port that is there.
    if gateway.is_ipv6() {
        let there = interfaces(conn, router.meta.id)?.into_iter().find(|port| {
            port.network_id == network.meta.id && port.fixed_ips.iter().any(|address| address.ip.is_ipv6())
        });
        if let Some(mut port) = there {
            ports::extend(conn, &mut port, request)?;
            return Ok((port, vec![id]));
        }
    }
    let project = &router.meta.project_id;
    let port = ports::create_service(
        conn,
        &network,
        project,
        ports::ROUTER_INTERFACE,
        router.meta.id,
        Some(&[request]),
    )?;
    Ok((port, vec![id]))
}

fn add_by_port(conn: &Connection, ctx: &Context, router: &Router, id: Uuid) -> Result<(PortRow, Vec<Uuid>)> {
    let mut port = ports::get(conn, ctx, id)?;
    if !port.device_id.is_empty() || port.server.is_some() {
        return Err(ports::in_use(&port));
    }
    rows::check_owner(ctx, &port.meta, "rule:add_router_interface")?;
    if port.fixed_ips.is_empty() {
        return Err(bad(
            "BadRequest",
            "Bad router request: Router port must have at least one fixed IP.",
        ));
    }
    if port
        .fixed_ips
        .iter()
        .filter(|address| address.ip.is_ipv4())
        .count()
        > 1
    {
        let message = "Bad router request: Cannot have multiple IPv4 subnets on router port.";
        return Err(bad("BadRequest", message));
    }
    check_not_gateway(router, port.network_id)?;
    for address in &port.fixed_ips {
        router.check_overlap(conn, &subnets::fetch(conn, address.subnet)?)?;
    }
    ports::adopt(conn, &mut port, ports::ROUTER_INTERFACE, router.meta.id)?;
    let subnets = port.fixed_ips.iter().map(|address| address.subnet).collect();
    Ok((port, subnets))
}

fn check_not_gateway(router: &Router, network: Uuid) -> Result<()> {
    if router
        .gateway
        .as_ref()
        .is_some_and(|gateway| gateway.network == network)
    {
        let message = format!("Bad router request: Network {network} is the router's external network.");
        return Err(bad("BadRequest", message));
    }
    Ok(())
}

/// Unplugs a router from a subnet or a port.
pub fn remove_interface(
    conn: &Connection,
    ctx: &Context,
    id: Uuid,
    request: InterfaceRequest,
) -> Result<Interface> {
    ctx.require("routers", "remove_interface")?;
    let mut router = get(conn, ctx, id)?;
    let own = interfaces(conn, id)?;
    let on = |port: &PortRow, subnet: Uuid| port.fixed_ips.iter().any(|address| address.subnet == subnet);
    let (mut port, subnets) = match request {
        InterfaceRequest::Port(port) => {
            let found = own
                .into_iter()
                .find(|p| p.id == port)
                .ok_or_else(|| no_interface(id, port))?;
            let subnets = found
                .fixed_ips
                .iter()
                .map(|address| address.subnet)
                .collect::<Vec<_>>();
            (found, subnets)
        }
        InterfaceRequest::Subnet(subnet) => {
            subnets::get(conn, ctx, subnet)?;
            let found = own.into_iter().find(|port| on(port, subnet)).ok_or_else(|| {
                let message = format!("Router {id} has no interface on subnet {subnet}");
                missing("RouterInterfaceNotFoundForSubnet", message)
            })?;
            (found, vec![subnet])
        }
        InterfaceRequest::Both(port, subnet) => {
            let found = own
                .into_iter()
                .find(|p| p.id == port)
                .ok_or_else(|| no_interface(id, port))?;
            if !on(&found, subnet) {
                let message = format!("Subnet on port {port} does not match the requested subnet {subnet}.");
                return Err(bad("SubnetMismatchForPort", message));
            }
            let subnets = found
                .fixed_ips
                .iter()
                .map(|address| address.subnet)
                .collect::<Vec<_>>();
            (found, subnets)
        }
    };
    for subnet in &subnets {
        if floating_ips::needs(conn, id, Some(*subnet))? {
            let message = format!(
                "Router interface for subnet {subnet} on router {id} cannot be deleted, as it is required by one or \
                 more floating IPs."
            );
            return Err(conflict("RouterInterfaceInUseByFloatingIP", message));
        }
        let cidr = subnets::fetch(conn, *subnet)?.cidr;
        if router.routes.iter().any(|route| cidr.contains(&route.nexthop)) {
            let message = format!(
                "Router interface for subnet {subnet} on router {id} cannot be deleted, as it is required by one or \
                 more routes."
            );
            return Err(conflict("RouterInterfaceInUseByRoute", message));
        }
    }
    if port.fixed_ips.len() > subnets.len() {
        for subnet in &subnets {
            ports::shrink(conn, &mut port, *subnet)?;
        }
    } else {
        ports::erase(conn, &port)?;
    }
    router.meta.touch();
    router.save(conn)?;
    Ok(Interface {
        router,
        port: port.id,
        network: port.network_id,
        subnets,
    })
}

fn no_interface(router: Uuid, port: Uuid) -> crate::Error {
    let message = format!("Router {router} does not have an interface with id {port}");
    missing("RouterInterfaceNotFound", message)
}

/// The ports by which the router is on tenants' networks.
pub(crate) fn interfaces(conn: &Connection, router: Uuid) -> Result<Vec<PortRow>> {
    let own = Condition::equals("device_id", router)
        .and(Condition::equals("device_owner", ports::ROUTER_INTERFACE));
    ports::matching(conn, own)
}

/// The router that leads from a subnet to an external network: if there are several, the one that is the subnet's
/// gateway.
pub(crate) fn between(conn: &Connection, subnet: Uuid, external: Uuid) -> Result<Option<Uuid>> {
    let subnet = subnets::fetch(conn, subnet)?;
    let on = Condition::equals("network_id", subnet.network_id)
        .and(Condition::equals("device_owner", ports::ROUTER_INTERFACE));
    let mut found: Option<(bool, Uuid)> = None;
    for port in ports::matching(conn, on)? {
        let address: Option<IpAddr> = port
            .fixed_ips
            .iter()
            .find(|address| address.subnet == subnet.meta.id)
            .map(|address| address.ip);
        let (Some(address), Ok(router)) = (address, port.device_id.parse::<Uuid>()) else {
            continue;
        };
        if fetch(conn, router)?
            .gateway
            .is_some_and(|gateway| gateway.network == external)
        {
            let is_gateway = subnet.gateway_ip == Some(address);
            if found.is_none_or(|(best, _)| is_gateway && !best) {
                found = Some((is_gateway, router));
            }
        }
    }
    Ok(found.map(|(_, router)| router))
}
