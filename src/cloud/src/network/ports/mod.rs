//! Ports: where something is plugged into a network.
//!
//! A port's life, as its status tells it:
//! ```text
//!            create            the switch has it           unplugged, down, or the
//!   (none) ─────────▶ DOWN ───────────────────────▶ ACTIVE ───────────────────────▶ DOWN
//!                      │    (reconciler, after apply)  │      tables could not be applied
//!                      └────────── delete ─────────────┘
//! ```
//! Ports of servers are bound with [`create_for_server`]; routers and floating IPs own theirs, and nobody else may
//! change or remove those.

mod addresses;
mod server;

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use model::net::MacAddr;
use rusqlite::{Connection, OptionalExtension, Row};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use addresses::FixedIpRequest;
pub(crate) use addresses::join_automatic;
pub use server::{
    Address, NetRequest, addresses, bind, change_group, create_for_server, of_server, release_for_server,
    release_port_of_server, security_groups_of,
};

use super::errors::{bad, conflict, disallowed, invalid, named, no_port};
use super::ipam::{self, FixedIp};
use super::networks::{self, Network};
use super::rows::{self, Condition, Meta, Where};
use super::{floating_ips, quotas, security_groups};
use crate::error::Kind;
use crate::{Context, Result};

/// Owner of a router's interface on a tenant's network.
pub const ROUTER_INTERFACE: &str = "network:router_interface";
/// Owner of a router's leg on an external network.
pub const ROUTER_GATEWAY: &str = "network:router_gateway";
/// Owner of a floating IP's address on an external network.
pub const FLOATING_IP: &str = "network:floatingip";
/// Owner of a server's port.
pub const SERVER: &str = "compute:nova";

const TABLE: &str = "ports";
const MAX_PAIRS: usize = 64;
const MAX_OPTIONS: usize = 32;
const MAX_GROUPS: usize = 64;

/// A port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRow {
    /// What every resource has.
    pub meta: Meta,
    /// The port's id; the same as in `meta`.
    pub id: Uuid,
    /// The network.
    pub network_id: Uuid,
    /// Its Ethernet address, the only one of this value on the network.
    pub mac: MacAddr,
    /// The network's MTU.
    pub mtu: u16,
    /// The network's domain.
    pub dns_domain: String,
    /// Its addresses, in order.
    pub fixed_ips: Vec<FixedIp>,
    /// Frames pass at all.
    pub admin_state_up: bool,
    /// What it belongs to, as the API tells it.
    pub device_id: String,
    /// What kind of thing that is.
    pub device_owner: String,
    /// The server that it is plugged into: unlike `device_id`, no tenant can write it.
    pub server: Option<Uuid>,
    /// Its place among the server's ports.
    pub nic: u32,
    /// It existed before its server, and outlives it.
    pub keep: bool,
    /// Anti-spoofing and security groups apply.
    pub port_security_enabled: bool,
    /// Groups whose rules apply, sorted.
    pub security_groups: Vec<Uuid>,
    /// More addresses that it may send from.
    pub address_pairs: Vec<AddressPair>,
    /// Options for DHCP.
    pub dhcp_options: Vec<DhcpOption>,
    /// The name that DHCP tells.
    pub dns_name: String,
    /// The node that an admin bound it to; empty: the node of its server.
    pub host: String,
    /// `binding:profile`.
    pub profile: serde_json::Map<String, serde_json::Value>,
    /// The switch obeys tables with this port.
    pub active: bool,
}

/// More addresses that a port may send from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPair {
    /// An address or a range, as it was given.
    pub ip_address: String,
    /// The Ethernet address that goes with it; a missing one is the port's own.
    pub mac_address: Option<MacAddr>,
}

impl AddressPair {
    /// The range.
    pub fn prefix(&self) -> Option<IpNet> {
        self.ip_address
            .parse()
            .ok()
            .or_else(|| self.ip_address.parse::<IpAddr>().ok().map(IpNet::from))
    }
}

/// An option for DHCP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpOption {
    /// Its name.
    pub opt_name: String,
    /// Its value.
    pub opt_value: Option<String>,
    /// 4 or 6.
    pub ip_version: u8,
}

/// What a request says of a port; `None`: nothing.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Fields {
    pub project_id: Option<String>,
    pub network_id: Option<Uuid>,
    pub name: Option<String>,
    pub description: Option<String>,
    pub admin_state_up: Option<bool>,
    pub mac: Option<MacAddr>,
    pub fixed_ips: Option<Vec<FixedIpRequest>>,
    pub security_groups: Option<Vec<Uuid>>,
    pub address_pairs: Option<Vec<AddressPair>>,
    pub device_id: Option<String>,
    pub device_owner: Option<String>,
    pub port_security_enabled: Option<bool>,
    pub dns_name: Option<String>,
    pub dhcp_options: Option<Vec<DhcpOption>>,
    pub host: Option<String>,
    pub profile: Option<serde_json::Map<String, serde_json::Value>>,
}

impl PortRow {
    /// The row alone: addresses, groups and status are in other tables.
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let meta = Meta::read(row)?;
        let server: String = row.get("server_id")?;
        Ok(PortRow {
            id: meta.id,
            meta,
            network_id: rows::parsed(row, "network_id")?,
            mac: rows::parsed(row, "mac")?,
            mtu: 0,
            dns_domain: String::new(),
            fixed_ips: Vec::new(),
            admin_state_up: row.get("admin_state_up")?,
            device_id: row.get("device_id")?,
            device_owner: row.get("device_owner")?,
            server: server.parse().ok(),
            nic: row.get("nic")?,
            keep: row.get("keep")?,
            port_security_enabled: row.get("port_security_enabled")?,
            security_groups: Vec::new(),
            address_pairs: rows::json(row, "address_pairs")?,
            dhcp_options: rows::json(row, "dhcp_options")?,
            dns_name: row.get("dns_name")?,
            host: row.get("host")?,
            profile: rows::json(row, "profile")?,
            active: false,
        })
    }

    /// Writes the row and the groups; addresses are `addresses`' matter.
    fn save(&self, conn: &Connection) -> Result<()> {
        let mut columns = self.meta.columns();
        columns.extend([
            ("network_id", rows::text(self.network_id)),
            ("mac", rows::text(self.mac)),
            ("admin_state_up", self.admin_state_up.into()),
            ("device_id", rows::text(&self.device_id)),
            ("device_owner", rows::text(&self.device_owner)),
            (
                "server_id",
                rows::text(self.server.map(|id| id.to_string()).unwrap_or_default()),
            ),
            ("nic", self.nic.into()),
            ("keep", self.keep.into()),
            ("port_security_enabled", self.port_security_enabled.into()),
            ("address_pairs", rows::to_json(&self.address_pairs)),
            ("dhcp_options", rows::to_json(&self.dhcp_options)),
            ("dns_name", rows::text(&self.dns_name)),
            ("host", rows::text(&self.host)),
            ("profile", rows::to_json(&self.profile)),
        ]);
        rows::save(conn, TABLE, columns)?;
        let before = groups_of(conn, self.id)?;
        let id = self.id.to_string();
        for gone in before
            .iter()
            .filter(|group| !self.security_groups.contains(group))
        {
            conn.prepare_cached("DELETE FROM port_security_groups WHERE port_id=?1 AND group_id=?2")?
                .execute((&id, gone.to_string()))?;
        }
        for new in self
            .security_groups
            .iter()
            .filter(|group| !before.contains(group))
        {
            conn.prepare_cached("INSERT INTO port_security_groups (port_id, group_id) VALUES (?1, ?2)")?
                .execute((&id, new.to_string()))?;
        }
        Ok(())
    }

    /// The cloud made it for a router or a floating IP.
    pub(crate) fn is_service(&self) -> bool {
        [ROUTER_INTERFACE, ROUTER_GATEWAY, FLOATING_IP].contains(&self.device_owner.as_str())
    }

    /// `ACTIVE` or `DOWN`.
    pub fn status(&self) -> &'static str {
        if self.active && self.admin_state_up {
            "ACTIVE"
        } else {
            "DOWN"
        }
    }

    fn apply(&mut self, fields: &Fields) -> Result<()> {
        let texts = [
            (&mut self.meta.name, &fields.name),
            (&mut self.meta.description, &fields.description),
            (&mut self.device_id, &fields.device_id),
            (&mut self.device_owner, &fields.device_owner),
            (&mut self.host, &fields.host),
        ];
        for (place, value) in texts {
            if let Some(value) = value {
                place.clone_from(value);
            }
        }
        self.admin_state_up = fields.admin_state_up.unwrap_or(self.admin_state_up);
        self.port_security_enabled = fields.port_security_enabled.unwrap_or(self.port_security_enabled);
        if let Some(name) = &fields.dns_name {
            if !is_dns_name(name) {
                return Err(invalid(format_args!(
                    "'{name}' is not a valid DNS name for dns_name"
                )));
            }
            self.dns_name.clone_from(name);
        }
        if let Some(options) = &fields.dhcp_options {
            self.merge_options(options)?;
        }
        if let Some(profile) = &fields.profile {
            self.profile.clone_from(profile);
        }
        if let Some(pairs) = &fields.address_pairs {
            self.address_pairs = check_pairs(pairs, self.mac)?;
        }
        if !self.address_pairs.is_empty() && !self.port_security_enabled {
            let message = "Port Security must be enabled in order to have allowed address pairs on a port.";
            return Err(conflict("AddressPairAndPortSecurityRequired", message));
        }
        Ok(())
    }

    /// As Neutron: an option without a value removes it, the others stay.
    fn merge_options(&mut self, options: &[DhcpOption]) -> Result<()> {
        for option in options {
            let same = |o: &DhcpOption| o.opt_name == option.opt_name && o.ip_version == option.ip_version;
            match self.dhcp_options.iter_mut().find(|o| same(o)) {
                Some(old) if option.opt_value.is_some() => old.opt_value.clone_from(&option.opt_value),
                Some(_) => self.dhcp_options.retain(|o| !same(o)),
                None if option.opt_value.is_some() => self.dhcp_options.push(option.clone()),
                None => {}
            }
        }
        if self.dhcp_options.len() > MAX_OPTIONS {
            return Err(invalid(format_args!(
                "A port has at most {MAX_OPTIONS} extra_dhcp_opts"
            )));
        }
        Ok(())
    }
}

/// A host's name by RFC 1123 §2.1, or a fully qualified one, or none.
fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.is_empty() || (name.len() <= 253 && name.strip_suffix('.').unwrap_or(name).split('.').all(label))
}

fn check_pairs(pairs: &[AddressPair], own: MacAddr) -> Result<Vec<AddressPair>> {
    if pairs.len() > MAX_PAIRS {
        let message = format!("The number of allowed address pair exceeds the maximum {MAX_PAIRS}.");
        return Err(bad("AllowedAddressPairExhausted", message));
    }
    let mut checked: Vec<AddressPair> = Vec::new();
    for pair in pairs {
        if pair.prefix().is_none() {
            return Err(invalid(format_args!(
                "'{}' is not a valid IP address or subnet",
                pair.ip_address
            )));
        }
        let pair = AddressPair {
            ip_address: pair.ip_address.clone(),
            mac_address: Some(pair.mac_address.unwrap_or(own)),
        };
        if checked.contains(&pair) {
            let message = format!(
                "Request contains duplicate address pair: mac_address {} ip_address {}.",
                pair.mac_address.unwrap_or(own),
                pair.ip_address
            );
            return Err(bad("DuplicateAddressPairInRequest", message));
        }
        checked.push(pair);
    }
    Ok(checked)
}

/// What only the network's owner or an admin may say.
fn check_rights(ctx: &Context, verb: &str, network: &Network, fields: &Fields) -> Result<()> {
    if let Some(owner) = fields.device_owner.as_deref() {
        let ours = [ROUTER_INTERFACE, ROUTER_GATEWAY, FLOATING_IP].contains(&owner);
        if ours || (owner.starts_with("network:") && !ctx.is_admin()) {
            return Err(disallowed(&format!("rule:{verb}_port:device_owner")));
        }
    }
    let admin = [
        ("binding:host_id", fields.host.is_some()),
        ("binding:profile", fields.profile.is_some()),
    ];
    let addresses = fields
        .fixed_ips
        .iter()
        .flatten()
        .any(|request| request.ip.is_some());
    let owner = [
        ("mac_address", fields.mac.is_some()),
        ("fixed_ips:ip_address", addresses),
        ("port_security_enabled", fields.port_security_enabled.is_some()),
        ("allowed_address_pairs", fields.address_pairs.is_some()),
    ];
    let forbidden = admin
        .iter()
        .find(|(_, asked)| *asked && !ctx.is_admin())
        .or_else(|| {
            owner
                .iter()
                .find(|(_, asked)| *asked && !network.is_owned_by(ctx))
        });
    match forbidden {
        Some((name, _)) => Err(disallowed(&format!("rule:{verb}_port:{name}"))),
        None => Ok(()),
    }
}

/// Makes a port.
pub fn create(conn: &Connection, ctx: &Context, fields: &Fields) -> Result<PortRow> {
    ctx.require("ports", "create")?;
    let network_id = fields.network_id.ok_or_else(|| {
        bad(
            "HTTPBadRequest",
            "Failed to parse request. Required attribute 'network_id' not specified",
        )
    })?;
    let network = networks::get(conn, ctx, network_id)?;
    if !network.is_owned_by(ctx) && !network.shared {
        // Visible all the same: an external network, which is for routers and floating IPs.
        return Err(disallowed("rule:create_port"));
    }
    check_rights(ctx, "create", &network, fields)?;
    let project = rows::owner(ctx, fields.project_id.as_deref())?;
    quotas::charge(conn, &project, quotas::Resource::Port, 1)?;
    let mut port = blank(conn, &network, &project, fields.mac)?;
    port.port_security_enabled = network.port_security_enabled;
    port.apply(fields)?;
    let default = security_groups::ensure_default(conn, &project)?;
    port.fixed_ips = addresses::assign(conn, &port, fields.fixed_ips.as_deref())?;
    let groups = fields.security_groups.as_deref();
    port.security_groups = match groups {
        Some(groups) => check_groups(conn, ctx, groups)?,
        None if port.port_security_enabled && !port.fixed_ips.is_empty() => vec![default],
        None => Vec::new(),
    };
    check_security(&port)?;
    port.save(conn)?;
    Ok(port)
}

/// A port of a router or a floating IP: without port security, and without quota.
pub(crate) fn create_service(
    conn: &Connection,
    network: &Network,
    project: &str,
    owner: &'static str,
    device: Uuid,
    fixed_ips: Option<&[FixedIpRequest]>,
) -> Result<PortRow> {
    let mut port = blank(conn, network, project, None)?;
    port.device_owner = owner.to_owned();
    port.device_id = device.to_string();
    port.fixed_ips = addresses::assign(conn, &port, fixed_ips)?;
    port.save(conn)?;
    Ok(port)
}

fn blank(conn: &Connection, network: &Network, project: &str, mac: Option<MacAddr>) -> Result<PortRow> {
    let meta = Meta::new(project, "", "");
    Ok(PortRow {
        id: meta.id,
        meta,
        network_id: network.meta.id,
        mac: free_mac(conn, network.meta.id, mac)?,
        mtu: network.mtu,
        dns_domain: network.dns_domain.clone(),
        fixed_ips: Vec::new(),
        admin_state_up: true,
        device_id: String::new(),
        device_owner: String::new(),
        server: None,
        nic: 0,
        keep: false,
        port_security_enabled: false,
        security_groups: Vec::new(),
        address_pairs: Vec::new(),
        dhcp_options: Vec::new(),
        dns_name: String::new(),
        host: String::new(),
        profile: serde_json::Map::new(),
        active: false,
    })
}

fn free_mac(conn: &Connection, network: Uuid, wanted: Option<MacAddr>) -> Result<MacAddr> {
    let is_free = |mac: MacAddr| -> Result<bool> {
        let same = Condition::equals("network_id", network).and(Condition::equals("mac", mac));
        Ok(rows::count(conn, TABLE, same)? == 0)
    };
    if let Some(mac) = wanted {
        if mac.is_multicast() || mac.0 == [0; 6] {
            return Err(invalid(format_args!(
                "'{mac}' is not a valid MAC address of a port"
            )));
        }
        if is_free(mac)? {
            return Ok(mac);
        }
        let message =
            format!("Unable to complete operation for network {network}. The mac address {mac} is in use.");
        return Err(conflict("MacAddressInUse", message));
    }
    for _ in 0..16 {
        let [a, b, c, ..] = *Uuid::new_v4().as_bytes();
        let mac = MacAddr([0xfa, 0x16, 0x3e, a, b, c]);
        if is_free(mac)? {
            return Ok(mac);
        }
    }
    let message = format!("Unable to generate unique mac on network {network}.");
    Err(named(Kind::Unavailable, "MacAddressGenerationFailure", message))
}

fn check_groups(conn: &Connection, ctx: &Context, groups: &[Uuid]) -> Result<Vec<Uuid>> {
    if groups.len() > MAX_GROUPS {
        return Err(invalid(format_args!(
            "A port has at most {MAX_GROUPS} security groups"
        )));
    }
    let mut checked = groups.to_vec();
    checked.sort();
    checked.dedup();
    for group in &checked {
        security_groups::get(conn, ctx, *group)?;
    }
    Ok(checked)
}

/// Security groups need port security and an address.
fn check_security(port: &PortRow) -> Result<()> {
    if port.security_groups.is_empty() {
        return Ok(());
    }
    if !port.port_security_enabled {
        let message = "Port has security group associated. Cannot disable port security or IP address until security \
                       group is removed.";
        return Err(conflict("PortSecurityPortHasSecurityGroup", message));
    }
    if port.fixed_ips.is_empty() {
        let message =
            "Port security must be enabled and port must have an IP address in order to use security groups.";
        return Err(bad("PortSecurityAndIPRequiredForSecurityGroups", message));
    }
    Ok(())
}

/// Changes a port. Saying what is so already changes nothing.
pub fn update(conn: &Connection, ctx: &Context, id: Uuid, fields: &Fields) -> Result<PortRow> {
    ctx.require("ports", "update")?;
    let old = get(conn, ctx, id)?;
    rows::check_owner(ctx, &old.meta, "rule:update_port")?;
    let network = networks::fetch(conn, old.network_id)?;
    let changed = without_echoes(fields, &old);
    check_rights(ctx, "update", &network, &changed)?;
    let mut new = old.clone();
    new.apply(&changed)?;
    if let Some(mac) = changed.mac {
        if old.server.is_some() {
            let message = format!(
                "Unable to complete operation on port {id}, port is already bound, port type: vhostuser, old_mac {}, \
                 new_mac {mac}.",
                old.mac
            );
            return Err(conflict("PortBound", message));
        }
        new.mac = free_mac(conn, old.network_id, Some(mac))?;
    }
    if old.server.is_some() && (new.device_id != old.device_id || new.device_owner != old.device_owner) {
        return Err(in_use(&old));
    }
    if old.is_service() && changed.fixed_ips.is_some() {
        let message = format!(
            "Operation update is not supported for device_owner {} on port {id}.",
            old.device_owner
        );
        return Err(conflict("UnsupportedPortDeviceOwner", message));
    }
    if let Some(requests) = changed.fixed_ips.as_deref() {
        new.fixed_ips = addresses::reassign(conn, &old, requests)?;
    }
    if let Some(groups) = changed.security_groups.as_deref() {
        new.security_groups = check_groups(conn, ctx, groups)?;
    }
    check_security(&new)?;
    if new == old {
        return Ok(old);
    }
    new.meta.touch();
    new.save(conn)?;
    Ok(new)
}

/// The request without what it repeats unchanged: clients send whole ports back, and rights concern changes alone.
fn without_echoes(fields: &Fields, old: &PortRow) -> Fields {
    let mut fields = fields.clone();
    fields.mac = fields.mac.filter(|mac| *mac != old.mac);
    fields.device_owner = fields.device_owner.filter(|owner| *owner != old.device_owner);
    fields.host = fields.host.filter(|host| *host != old.host);
    fields.profile = fields.profile.filter(|profile| *profile != old.profile);
    fields.port_security_enabled = fields
        .port_security_enabled
        .filter(|on| *on != old.port_security_enabled);
    fields.fixed_ips = fields.fixed_ips.filter(|requests| {
        requests.len() != old.fixed_ips.len()
            || !requests.iter().zip(&old.fixed_ips).all(|(request, has)| {
                request.ip == Some(has.ip) && request.subnet.is_none_or(|subnet| subnet == has.subnet)
            })
    });
    fields.address_pairs = fields
        .address_pairs
        .filter(|pairs| match check_pairs(pairs, old.mac) {
            Ok(pairs) => pairs != old.address_pairs,
            Err(_) => true,
        });
    fields
}

/// `PortInUse`, as Neutron words it.
pub(crate) fn in_use(port: &PortRow) -> crate::Error {
    let message = format!(
        "Unable to complete operation on port {} for network {}. Port already has an attached device {}.",
        port.id, port.network_id, port.device_id
    );
    conflict("PortInUse", message)
}

/// Removes a port; floating IPs on it stay without one.
pub fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("ports", "delete")?;
    let port = get(conn, ctx, id)?;
    if port.is_service() {
        let message = format!(
            "Port {id} cannot be deleted directly via the port API: has device owner {}.",
            port.device_owner
        );
        return Err(conflict("ServicePortInUse", message));
    }
    erase(conn, &port)
}

/// Removes a port, whoever asks.
pub(crate) fn erase(conn: &Connection, port: &PortRow) -> Result<()> {
    floating_ips::detach_port(conn, port.id)?;
    ipam::give_back_all(conn, port.id)?;
    let id = port.id.to_string();
    conn.prepare_cached("DELETE FROM port_security_groups WHERE port_id=?1")?
        .execute([&id])?;
    rows::remove(conn, "network_status", port.id)?;
    rows::remove(conn, TABLE, port.id)
}

/// Plugs a port that nobody uses into something of the cloud's own, such as a router.
pub(crate) fn adopt(conn: &Connection, port: &mut PortRow, owner: &'static str, device: Uuid) -> Result<()> {
    port.device_owner = owner.to_owned();
    port.device_id = device.to_string();
    port.port_security_enabled = false;
    port.security_groups = Vec::new();
    port.address_pairs = Vec::new();
    port.meta.touch();
    port.save(conn)
}

/// A port has another address now.
pub(crate) fn extend(conn: &Connection, port: &mut PortRow, request: FixedIpRequest) -> Result<FixedIp> {
    let added = addresses::add(conn, port, request)?;
    port.fixed_ips.push(added);
    port.meta.touch();
    port.save(conn)?;
    Ok(added)
}

/// A port has an address no longer.
pub(crate) fn shrink(conn: &Connection, port: &mut PortRow, subnet: Uuid) -> Result<()> {
    for gone in port.fixed_ips.iter().filter(|ip| ip.subnet == subnet) {
        ipam::give_back(conn, *gone)?;
    }
    port.fixed_ips.retain(|ip| ip.subnet != subnet);
    port.meta.touch();
    port.save(conn)
}

fn visible(ctx: &Context) -> Result<Condition> {
    if ctx.is_admin() {
        return Ok(Condition::all());
    }
    let project = rows::text(ctx.project()?);
    let sql = "(project_id=? OR network_id IN (SELECT id FROM networks WHERE project_id=?))";
    Ok(Condition::new(sql, vec![project.clone(), project]))
}

/// The ports that the caller sees: its own, and all on its own networks.
pub fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<PortRow>> {
    ctx.require("ports", "list")?;
    matching(conn, visible(ctx)?.and(which.condition()))
}

/// One port that the caller sees.
pub fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<PortRow> {
    matching(conn, visible(ctx)?.and(Condition::equals("id", id)))?
        .pop()
        .ok_or_else(|| no_port(id))
}

/// One port, whoever asks.
pub(crate) fn fetch(conn: &Connection, id: Uuid) -> Result<PortRow> {
    matching(conn, Condition::equals("id", id))?
        .pop()
        .ok_or_else(|| no_port(id))
}

/// Ports that meet the condition, whole.
pub(crate) fn matching(conn: &Connection, condition: Condition) -> Result<Vec<PortRow>> {
    let mut ports = rows::select(conn, TABLE, condition, PortRow::read)?;
    let mut networks: HashMap<Uuid, (u16, String)> = HashMap::new();
    for port in &mut ports {
        if !networks.contains_key(&port.network_id) {
            let network = networks::fetch(conn, port.network_id)?;
            networks.insert(port.network_id, (network.mtu, network.dns_domain));
        }
        if let Some((mtu, domain)) = networks.get(&port.network_id) {
            port.mtu = *mtu;
            port.dns_domain.clone_from(domain);
        }
    }
    // Few ports: a look-up for each. Many: every other table once.
    if ports.len() <= 32 {
        for port in &mut ports {
            port.fixed_ips = ipam::of_owner(conn, port.id)?;
            port.security_groups = groups_of(conn, port.id)?;
            port.active = is_active(conn, port.id)?;
        }
        return Ok(ports);
    }
    let mut addresses: HashMap<Uuid, Vec<FixedIp>> = HashMap::new();
    for (owner, address) in ipam::all(conn)? {
        addresses.entry(owner).or_default().push(address);
    }
    let mut groups: HashMap<Uuid, Vec<Uuid>> = HashMap::new();
    let mut statement =
        conn.prepare_cached("SELECT port_id, group_id FROM port_security_groups ORDER BY port_id, group_id")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        groups
            .entry(rows::parsed(row, "port_id")?)
            .or_default()
            .push(rows::parsed(row, "group_id")?);
    }
    let active = active_ids(conn)?;
    for port in &mut ports {
        port.fixed_ips = addresses.remove(&port.id).unwrap_or_default();
        port.security_groups = groups.remove(&port.id).unwrap_or_default();
        port.active = active.get(&port.id).copied().unwrap_or(false);
    }
    Ok(ports)
}

/// What the reconciler found, by port or floating IP.
pub(crate) fn active_ids(conn: &Connection) -> Result<HashMap<Uuid, bool>> {
    let mut statement = conn.prepare_cached("SELECT id, active FROM network_status")?;
    let found = statement.query_map([], |row| Ok((rows::parsed(row, "id")?, row.get("active")?)))?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

pub(crate) fn is_active(conn: &Connection, id: Uuid) -> Result<bool> {
    let found = conn
        .prepare_cached("SELECT active FROM network_status WHERE id=?1")?
        .query_row([id.to_string()], |row| row.get(0))
        .optional()?;
    Ok(found.unwrap_or(false))
}

fn groups_of(conn: &Connection, port: Uuid) -> Result<Vec<Uuid>> {
    let mut statement =
        conn.prepare_cached("SELECT group_id FROM port_security_groups WHERE port_id=?1 ORDER BY group_id")?;
    let found = statement.query_map([port.to_string()], |row| rows::parsed(row, "group_id"))?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}
