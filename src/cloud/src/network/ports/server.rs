//! Ports of servers: what `compute` asks for, inside its own writes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use model::net::MacAddr;
use rusqlite::Connection;
use uuid::Uuid;

use super::{Fields, FixedIpRequest, PortRow, SERVER, erase, get, in_use, matching};
use crate::error::Kind;
use crate::network::errors::{bad, conflict, disallowed, named};
use crate::network::floating_ips::{self, FloatingIp};
use crate::network::networks;
use crate::network::rows::{self, Condition};
use crate::{Context, Result};

/// One entry of a server's `networks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetRequest {
    /// A new port on this network; `None` with no port: on the only one that the project has.
    pub network: Option<Uuid>,
    /// This port.
    pub port: Option<Uuid>,
    /// With this address.
    pub fixed_ip: Option<IpAddr>,
}

/// An address of a server, as Nova shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub addr: IpAddr,
    /// 4 or 6.
    pub version: u8,
    /// The port's Ethernet address.
    pub mac: MacAddr,
    /// It is a floating one.
    pub floating: bool,
}

/// Plugs a server in: binds the port that is named, or makes one. Without groups a new port has the project's default.
/// A port that existed keeps its own groups.
pub fn create_for_server(
    conn: &Connection,
    ctx: &Context,
    server: Uuid,
    request: &NetRequest,
    security_groups: &[Uuid],
) -> Result<PortRow> {
    let mut port = match request.port {
        Some(id) => existing(conn, ctx, id, request)?,
        None => {
            let network = match request.network {
                Some(network) => network,
                None => the_only_network(conn, ctx)?,
            };
            let fixed_ips = request.fixed_ip.map(|ip| {
                vec![FixedIpRequest {
                    subnet: None,
                    ip: Some(ip),
                }]
            });
            let network = networks::get(conn, ctx, network)?;
            if network.external && !network.shared && !ctx.is_admin() {
                let message = format!(
                    "It is not allowed to create an interface on external network {}",
                    network.meta.id
                );
                return Err(named(Kind::Forbidden, "ExternalNetworkAttachForbidden", message));
            }
            let groups = (!security_groups.is_empty() && network.port_security_enabled)
                .then(|| security_groups.to_vec());
            let fields = Fields {
                network_id: Some(network.meta.id),
                fixed_ips,
                security_groups: groups,
                ..Fields::default()
            };
            super::create(conn, ctx, &fields)?
        }
    };
    port.nic = of_server(conn, server)?
        .iter()
        .map(|port| port.nic + 1)
        .max()
        .unwrap_or(0);
    port.server = Some(server);
    port.device_id = server.to_string();
    port.device_owner = SERVER.to_owned();
    port.keep = request.port.is_some();
    port.meta.touch();
    port.save(conn)?;
    Ok(port)
}

fn existing(conn: &Connection, ctx: &Context, id: Uuid, request: &NetRequest) -> Result<PortRow> {
    let port = get(conn, ctx, id)?;
    rows::check_owner(ctx, &port.meta, "rule:update_port")?;
    if port.server.is_some() || !port.device_id.is_empty() || port.is_service() {
        return Err(in_use(&port));
    }
    if request.network.is_some_and(|network| network != port.network_id) {
        return Err(bad(
            "PortNotFoundOnNetwork",
            format!("Port {id} is not on the network that was named."),
        ));
    }
    if request
        .fixed_ip
        .is_some_and(|ip| !port.fixed_ips.iter().any(|has| has.ip == ip))
    {
        return Err(disallowed("rule:update_port:fixed_ips"));
    }
    Ok(port)
}

fn the_only_network(conn: &Connection, ctx: &Context) -> Result<Uuid> {
    match networks::available_networks(conn, ctx)?.as_slice() {
        [network] => Ok(*network),
        [] => Err(bad(
            "NetworkNotFound",
            "No network is available to the project: make one, or name one.",
        )),
        _ => {
            let message = "Multiple possible networks found, use a Network ID to be more specific.";
            Err(conflict("NetworkAmbiguous", message))
        }
    }
}

/// Unplugs a server: ports that were made for it go, the others are free again.
pub fn release_for_server(conn: &Connection, server: Uuid) -> Result<()> {
    for port in of_server(conn, server)? {
        release(conn, port)?;
    }
    Ok(())
}

/// Unplugs one port of a server.
pub fn release_port_of_server(conn: &Connection, server: Uuid, port: Uuid) -> Result<()> {
    let found = of_server(conn, server)?.into_iter().find(|p| p.id == port);
    release(conn, found.ok_or_else(|| crate::network::errors::no_port(port))?)
}

fn release(conn: &Connection, mut port: PortRow) -> Result<()> {
    if !port.keep {
        return erase(conn, &port);
    }
    port.server = None;
    port.device_id = String::new();
    port.device_owner = String::new();
    port.keep = false;
    port.host = String::new();
    port.meta.touch();
    port.save(conn)?;
    rows::remove(conn, "network_status", port.id)
}

/// The ports of a server, in the order in which they were plugged in.
pub fn of_server(conn: &Connection, server: Uuid) -> Result<Vec<PortRow>> {
    let mut ports = matching(conn, Condition::equals("server_id", server))?;
    ports.sort_by_key(|port| port.nic);
    Ok(ports)
}

/// Addresses by the names of their networks.
pub type Addresses = BTreeMap<String, Vec<Address>>;

/// A server's addresses, fixed and floating ones.
pub fn addresses(conn: &Connection, server: Uuid) -> Result<Addresses> {
    let mut found = Addresses::new();
    for port in of_server(conn, server)? {
        let floating = floating_ips::of_port(conn, port.id)?;
        add_addresses(
            &mut found,
            &networks::fetch(conn, port.network_id)?.meta.name,
            &port,
            &floating,
        );
    }
    Ok(found)
}

/// The addresses of many servers, for lists: a fixed number of queries for all of them together.
pub fn addresses_of_all(conn: &Connection, servers: &HashSet<Uuid>) -> Result<HashMap<Uuid, Addresses>> {
    let names: HashMap<Uuid, String> = networks::all(conn)?
        .into_iter()
        .map(|network| (network.meta.id, network.meta.name))
        .collect();
    let mut floating: HashMap<Uuid, Vec<FloatingIp>> = HashMap::new();
    for one in floating_ips::all(conn)? {
        if let Some(port) = one.port_id {
            floating.entry(port).or_default().push(one);
        }
    }
    let mut ports = matching(conn, Condition::new("server_id<>''", Vec::new()))?;
    ports.sort_by_key(|port| port.nic);
    let mut found: HashMap<Uuid, Addresses> = HashMap::new();
    for port in ports {
        if let Some(server) = port.server.filter(|server| servers.contains(server))
            && let Some(network) = names.get(&port.network_id)
        {
            let floating = floating.get(&port.id).map(Vec::as_slice).unwrap_or_default();
            add_addresses(found.entry(server).or_default(), network, &port, floating);
        }
    }
    Ok(found)
}

fn add_addresses(found: &mut Addresses, network: &str, port: &PortRow, floating: &[FloatingIp]) {
    let address = |addr: IpAddr, floating| Address {
        addr,
        version: if addr.is_ipv4() { 4 } else { 6 },
        mac: port.mac,
        floating,
    };
    let addresses = found.entry(network.to_owned()).or_default();
    for fixed in &port.fixed_ips {
        addresses.push(address(fixed.ip, false));
        let public = floating.iter().filter(|f| f.fixed_ip == Some(fixed.ip));
        addresses.extend(public.map(|f| address(f.address, true)));
    }
}

/// The server's ports are on this node from now on, and this is the name that DHCP tells; a name that a port was given
/// by its owner stays.
pub fn bind(conn: &Connection, server: Uuid, node: &str, hostname: &str) -> Result<()> {
    for old in of_server(conn, server)? {
        let mut port = old.clone();
        node.clone_into(&mut port.host);
        if port.dns_name.is_empty() && super::row::is_dns_name(hostname) {
            hostname.clone_into(&mut port.dns_name);
        }
        if port != old {
            port.meta.touch();
            port.save(conn)?;
        }
    }
    Ok(())
}

/// The security groups of a server's ports, each once, in the order of their names.
pub fn security_groups_of(conn: &Connection, server: Uuid) -> Result<Vec<(Uuid, String)>> {
    let mut statement = conn.prepare_cached(
        "SELECT DISTINCT g.id, g.name FROM ports p JOIN port_security_groups b ON b.port_id=p.id
         JOIN security_groups g ON g.id=b.group_id WHERE p.server_id=?1 ORDER BY g.name, g.id",
    )?;
    let found = statement.query_map([server.to_string()], |row| {
        Ok((rows::parsed(row, "id")?, row.get("name")?))
    })?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// The names of the security groups of many servers, for lists: one query for all of them together.
pub fn security_groups_of_all(
    conn: &Connection,
    servers: &HashSet<Uuid>,
) -> Result<HashMap<Uuid, Vec<String>>> {
    let mut statement = conn.prepare_cached(
        "SELECT DISTINCT p.server_id, g.id, g.name FROM ports p JOIN port_security_groups b ON b.port_id=p.id
         JOIN security_groups g ON g.id=b.group_id WHERE p.server_id<>'' ORDER BY g.name, g.id",
    )?;
    let mut rows = statement.query([])?;
    let mut found: HashMap<Uuid, Vec<String>> = HashMap::new();
    while let Some(row) = rows.next()? {
        let server = rows::parsed(row, "server_id")?;
        if servers.contains(&server) {
            found.entry(server).or_default().push(row.get("name")?);
        }
    }
    Ok(found)
}

/// Puts all ports of a server that have port security into a group, or takes them out of it.
///
/// # Errors
/// 404 if a group to be left is none of the server's.
pub fn change_group(conn: &Connection, server: Uuid, group: Uuid, add: bool) -> Result<()> {
    let mut found = false;
    for old in of_server(conn, server)? {
        if !old.port_security_enabled || (add && old.fixed_ips.is_empty()) {
            continue;
        }
        let mut port = old.clone();
        found |= port.security_groups.contains(&group);
        port.security_groups.retain(|other| *other != group);
        if add {
            port.security_groups.push(group);
            port.security_groups.sort();
        }
        if port.security_groups != old.security_groups {
            port.meta.touch();
            port.save(conn)?;
        }
    }
    if add || found {
        Ok(())
    } else {
        Err(crate::network::errors::no_group(group))
    }
}
