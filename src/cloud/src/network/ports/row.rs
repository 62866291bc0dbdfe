//! A port as its rows have it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use ipnet::IpNet;
use model::net::MacAddr;
use rusqlite::{Connection, OptionalExtension, Row};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{FLOATING_IP, FixedIpRequest, ROUTER_GATEWAY, ROUTER_INTERFACE, TABLE};
use crate::Result;
use crate::network::errors::{bad, conflict, invalid};
use crate::network::ipam::{self, FixedIp};
use crate::network::networks;
use crate::network::rows::{self, Condition, Meta};

const MAX_PAIRS: usize = 64;
const MAX_OPTIONS: usize = 32;

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
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
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
    pub(super) fn save(&self, conn: &Connection) -> Result<()> {
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

    pub(super) fn apply(&mut self, fields: &Fields) -> Result<()> {
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
pub(super) fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.is_empty() || (name.len() <= 253 && name.strip_suffix('.').unwrap_or(name).split('.').all(label))
}

pub(super) fn check_pairs(pairs: &[AddressPair], own: MacAddr) -> Result<Vec<AddressPair>> {
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

/// Ports that meet the condition, whole.
pub(crate) fn matching(conn: &Connection, condition: Condition) -> Result<Vec<PortRow>> {
    let mut ports = rows::select(conn, TABLE, condition, PortRow::read)?;
    let mut networks: HashMap<Uuid, (u16, String)> = HashMap::new();
    for port in &mut ports {
        let (mtu, domain) = match networks.entry(port.network_id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let network = networks::fetch(conn, port.network_id)?;
                new.insert((network.mtu, network.dns_domain))
            }
        };
        port.mtu = *mtu;
        port.dns_domain.clone_from(domain);
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
