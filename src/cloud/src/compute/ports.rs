//! The calls that compute makes to the network room, and nothing else.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use model::machine::MachineNic;
use model::net::MacAddr;
use rusqlite::Connection;
use uuid::Uuid;

pub use crate::network::ports::NetRequest;

use super::metadata::SubnetFacts;
use super::servers::Server;
use crate::network::{self, ports};
use crate::{Cloud, Context, Result};

/// An address of a server, as its `addresses` tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The network's name.
    pub network: String,
    /// The port's MAC address.
    pub mac: MacAddr,
    /// The address.
    pub ip: IpAddr,
    /// It is a floating IP.
    pub floating: bool,
}

/// A network interface of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The port.
    pub port: Uuid,
    /// Its network.
    pub network: Uuid,
    /// Its MAC address.
    pub mac: MacAddr,
    /// The network's MTU.
    pub mtu: u16,
    /// As Neutron calls it, such as `ACTIVE`.
    pub status: String,
    /// Its addresses, each with its subnet.
    pub fixed_ips: Vec<(Uuid, IpAddr)>,
}

impl Interface {
    /// As the machine has it.
    pub(super) fn nic(&self) -> MachineNic {
        MachineNic {
            port: self.port,
            mac: self.mac,
            mtu: self.mtu,
        }
    }
}

/// Networks that a server of this caller can be plugged into without being named.
pub(super) fn available_networks(conn: &Connection, ctx: &Context) -> Result<Vec<Uuid>> {
    network::available_networks(conn, ctx)
}

/// The ids of security groups, given by name or id.
pub(super) fn resolve_security_groups(
    conn: &Connection,
    ctx: &Context,
    names: &[String],
) -> Result<Vec<Uuid>> {
    network::security_groups::resolve(conn, ctx, names)
}

/// Makes a port, or takes one, for a server.
pub(super) fn create_for_server(
    conn: &Connection,
    ctx: &Context,
    server: Uuid,
    request: &NetRequest,
    security_groups: &[Uuid],
) -> Result<Uuid> {
    Ok(ports::create_for_server(conn, ctx, server, request, security_groups)?.id)
}

/// Removes a port that was made for a server, or unplugs one that it was given.
pub(super) fn release_port(conn: &Connection, server: Uuid, port: Uuid) -> Result<()> {
    let there = ports::of_server(conn, server)?.iter().any(|p| p.id == port);
    if there {
        ports::release_port_of_server(conn, server, port)?;
    }
    Ok(())
}

/// The server's ports are on this node from now on.
pub(super) fn bind(conn: &Connection, server: &Server, node: &str) -> Result<()> {
    ports::bind(conn, server.id, node, &server.hostname)
}

/// The server's ports are on no node.
pub(super) fn unbind(conn: &Connection, server: &Server) -> Result<()> {
    ports::bind(conn, server.id, "", &server.hostname)
}

/// Waits until the switch has the server's ports, so that the guest's first packet meets it.
pub(super) async fn wait(cloud: &Cloud, server: Uuid, limit: Duration) -> Result<()> {
    network::wait_for_server(cloud, server, limit).await
}

/// Removes the ports that were made for a server, and unplugs those that it was given.
pub(super) fn release_for_server(conn: &Connection, server: Uuid) -> Result<()> {
    ports::release_for_server(conn, server)
}

/// The interfaces of a server, in the guest's order.
pub(super) fn of_server(conn: &Connection, server: Uuid) -> Result<Vec<Interface>> {
    let ports = ports::of_server(conn, server)?;
    Ok(ports
        .into_iter()
        .map(|port| Interface {
            port: port.id,
            network: port.network_id,
            mac: port.mac,
            mtu: port.mtu,
            status: port.status().to_owned(),
            fixed_ips: port
                .fixed_ips
                .iter()
                .map(|fixed| (fixed.subnet, fixed.ip))
                .collect(),
        })
        .collect())
}

/// All addresses of a server.
pub(super) fn addresses(conn: &Connection, server: Uuid) -> Result<Vec<Address>> {
    ports::addresses(conn, server).map(flat)
}

fn flat(networks: ports::Addresses) -> Vec<Address> {
    let mut all = Vec::new();
    for (network, addresses) in networks {
        all.extend(addresses.into_iter().map(|address| Address {
            network: network.clone(),
            mac: address.mac,
            ip: address.addr,
            floating: address.floating,
        }));
    }
    all
}

/// The names of a server's security groups.
pub(super) fn security_group_names(conn: &Connection, server: Uuid) -> Result<Vec<String>> {
    Ok(ports::security_groups_of(conn, server)?
        .into_iter()
        .map(|(_, name)| name)
        .collect())
}

/// Addresses and names of security groups of many servers, for lists.
pub(super) type Shown = HashMap<Uuid, (Vec<Address>, Vec<String>)>;

/// What lists show of many servers' ports: a fixed number of queries for all of them together.
pub(super) fn shown_of_all(conn: &Connection, servers: &HashSet<Uuid>) -> Result<Shown> {
    let mut shown = Shown::new();
    for (server, networks) in ports::addresses_of_all(conn, servers)? {
        shown.entry(server).or_default().0 = flat(networks);
    }
    for (server, names) in ports::security_groups_of_all(conn, servers)? {
        shown.entry(server).or_default().1 = names;
    }
    Ok(shown)
}

/// Adds a security group to all ports of a server, or removes it.
pub(super) fn change_security_group(
    conn: &Connection,
    ctx: &Context,
    server: Uuid,
    name: &str,
    add: bool,
) -> Result<()> {
    for group in network::security_groups::resolve(conn, ctx, &[name])? {
        ports::change_group(conn, server, group, add)?;
    }
    Ok(())
}

/// What the metadata service tells of the subnets of these interfaces.
pub(super) fn subnets(conn: &Connection, interfaces: &[Interface]) -> Result<BTreeMap<Uuid, SubnetFacts>> {
    let mut facts = BTreeMap::new();
    for interface in interfaces {
        for subnet in network::subnets::of_network(conn, interface.network)? {
            facts.insert(
                subnet.meta.id,
                SubnetFacts {
                    cidr: subnet.cidr,
                    gateway: subnet.gateway_ip,
                    dns: subnet.dns_nameservers,
                    dhcp: subnet.enable_dhcp,
                },
            );
        }
    }
    Ok(facts)
}
