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
mod row;
mod server;

use model::net::MacAddr;
use rusqlite::Connection;
use uuid::Uuid;

pub use addresses::FixedIpRequest;
pub(crate) use addresses::{join_automatic, leave_automatic};
pub use row::{AddressPair, DhcpOption, Fields, PortRow};
pub(crate) use row::{active_ids, is_active, matching};
pub use server::{
    Address, Addresses, NetRequest, addresses, addresses_of_all, bind, change_group, create_for_server,
    of_server, release_for_server, release_port_of_server, security_groups_of, security_groups_of_all,
};

use super::errors::{bad, conflict, disallowed, invalid, named, no_port};
use super::ipam::{self, FixedIp};
use super::networks::{self, Network};
use super::rows::{self, Condition, Meta, Where};
use super::{floating_ips, quotas, rbac, security_groups};
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
const MAX_GROUPS: usize = 64;

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
    if !network.is_owned_by(ctx) && !rbac::is_shared(conn, ctx, &network)? {
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
        None if port.port_security_enabled => vec![default],
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
    if checked.len() < groups.len() {
        return Err(invalid("Duplicate items in the list of security_groups"));
    }
    for group in &checked {
        security_groups::get(conn, ctx, *group)?;
    }
    Ok(checked)
}

/// Security groups need port security.
fn check_security(port: &PortRow) -> Result<()> {
    if port.security_groups.is_empty() {
        return Ok(());
    }
    if !port.port_security_enabled {
        let message = "Port has security group associated. Cannot disable port security or IP address until security \
                       group is removed.";
        return Err(conflict("PortSecurityPortHasSecurityGroup", message));
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
    // Whose a service's port is decides where packets go: its service alone changes that.
    if old.is_service()
        && (changed.fixed_ips.is_some()
            || new.device_id != old.device_id
            || new.device_owner != old.device_owner)
    {
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
        let same = |(request, has): (&FixedIpRequest, &FixedIp)| {
            *request != FixedIpRequest::default()
                && request.ip.is_none_or(|ip| ip == has.ip)
                && request.subnet.is_none_or(|subnet| subnet == has.subnet)
        };
        requests.len() != old.fixed_ips.len() || !requests.iter().zip(&old.fixed_ips).all(same)
    });
    fields.address_pairs = fields
        .address_pairs
        .filter(|pairs| match row::check_pairs(pairs, old.mac) {
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
