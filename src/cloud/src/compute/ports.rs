//! The calls that compute makes to the network room, and nothing else.

use std::collections::BTreeMap;
use std::net::IpAddr;

use model::machine::MachineNic;
use model::net::MacAddr;
use rusqlite::Connection;
use uuid::Uuid;

use super::metadata::SubnetFacts;
use super::servers::Server;
use crate::{Context, Error, Result};

/// A network that a server is to be plugged into.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetRequest {
    /// Make a port on this network.
    pub network: Option<Uuid>,
    /// Take this port.
    pub port: Option<Uuid>,
    /// With this address.
    pub fixed_ip: Option<IpAddr>,
}

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

/// A security group of a server, as `os-security-groups` tells it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[allow(missing_docs)]
pub struct SecurityGroup {
    pub id: Uuid,
    pub name: String,
    pub description: String,
    pub tenant_id: String,
    pub rules: Vec<serde_json::Value>,
}

impl Interface {
    /// As the machine has it.
    pub(super) fn nic(&self) -> MachineNic {
        MachineNic { port: self.port, mac: self.mac, mtu: self.mtu }
    }
}

/// Networks that a server of this caller can be plugged into without being named.
pub(super) fn available_networks(conn: &Connection, ctx: &Context) -> Result<Vec<Uuid>> {
    let _ = (conn, ctx);
    Ok(Vec::new())
}

/// The ids of security groups, given by name or id.
pub(super) fn resolve_security_groups(conn: &Connection, ctx: &Context, names: &[String]) -> Result<Vec<Uuid>> {
    let _ = (conn, ctx, names);
    Ok(Vec::new())
}

/// Makes a port, or takes one, for a server.
pub(super) fn create_for_server(
    conn: &Connection,
    ctx: &Context,
    server: &Server,
    request: &NetRequest,
    security_groups: &[Uuid],
) -> Result<()> {
    let _ = (conn, ctx, server, security_groups);
    Err(Error::not_found("Network", request.network.map(|n| n.to_string()).unwrap_or_default()))
}

/// Removes the ports that were made for a server, and unplugs those that it was given.
pub(super) fn release_for_server(conn: &Connection, server: Uuid) -> Result<()> {
    let _ = (conn, server);
    Ok(())
}

/// The interfaces of a server, in the guest's order.
pub(super) fn of_server(conn: &Connection, server: Uuid) -> Result<Vec<Interface>> {
    let _ = (conn, server);
    Ok(Vec::new())
}

/// All addresses of a server.
pub(super) fn addresses(conn: &Connection, server: Uuid) -> Result<Vec<Address>> {
    let _ = (conn, server);
    Ok(Vec::new())
}

/// The names of a server's security groups.
pub(super) fn security_group_names(conn: &Connection, server: Uuid) -> Result<Vec<String>> {
    let _ = (conn, server);
    Ok(Vec::new())
}

/// Adds a security group to all ports of a server, or removes it.
pub(super) fn change_security_group(
    conn: &Connection,
    ctx: &Context,
    server: Uuid,
    name: &str,
    add: bool,
) -> Result<()> {
    let _ = (conn, ctx, server, add);
    Err(Error::not_found("Security group", name))
}

/// What the metadata service tells of the subnets of these interfaces.
pub(super) fn subnets(conn: &Connection, interfaces: &[Interface]) -> Result<BTreeMap<Uuid, SubnetFacts>> {
    let _ = (conn, interfaces);
    Ok(BTreeMap::new())
}

/// The server's ports are on this node from now on.
pub(super) fn bind(conn: &Connection, server: Uuid, node: &str) -> Result<()> {
    let _ = (conn, server, node);
    Ok(())
}

/// The security groups of a server.
pub(super) fn security_groups(conn: &Connection, ctx: &Context, server: Uuid) -> Result<Vec<SecurityGroup>> {
    let _ = (conn, ctx, server);
    Ok(Vec::new())
}
