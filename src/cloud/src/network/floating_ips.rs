//! Floating IPs: public addresses that stand for private ones.

use std::net::IpAddr;

use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::errors::{bad, conflict, disallowed, invalid, missing, no_floating_ip};
use super::ports::{self, FixedIpRequest, PortRow};
use super::rows::{self, Condition, Meta, Where};
use super::{networks, quotas, routers, subnets};
use crate::{Context, Result};

/// A public address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FloatingIp {
    /// What every resource has.
    pub meta: Meta,
    /// The external network.
    pub network_id: Uuid,
    /// The public address.
    pub address: IpAddr,
    /// The port that holds the public address.
    pub own_port: Uuid,
    /// The router that translates.
    pub router_id: Option<Uuid>,
    /// The port that it stands for.
    pub port_id: Option<Uuid>,
    /// The private address that it stands for.
    pub fixed_ip: Option<IpAddr>,
    /// A name for the outside.
    pub dns_name: String,
    /// The name's domain.
    pub dns_domain: String,
    /// The switch obeys tables with this address.
    pub active: bool,
}

/// What a request says of a floating IP; `None`: nothing.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Fields {
    pub project_id: Option<String>,
    pub description: Option<String>,
    pub network_id: Option<Uuid>,
    pub subnet_id: Option<Uuid>,
    pub address: Option<IpAddr>,
    /// The inner `None`: no port.
    pub port_id: Option<Option<Uuid>>,
    pub fixed_ip: Option<Option<IpAddr>>,
    pub dns_name: Option<String>,
    pub dns_domain: Option<String>,
}

const TABLE: &str = "floating_ips";

impl FloatingIp {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(FloatingIp {
            meta: Meta::read(row)?,
            network_id: rows::parsed(row, "network_id")?,
            address: rows::parsed(row, "address")?,
            own_port: rows::parsed(row, "own_port_id")?,
            router_id: rows::parsed_optional(row, "router_id")?,
            port_id: rows::parsed_optional(row, "port_id")?,
            fixed_ip: rows::parsed_optional(row, "fixed_ip")?,
            dns_name: row.get("dns_name")?,
            dns_domain: row.get("dns_domain")?,
            active: false,
        })
    }

    fn save(&self, conn: &Connection) -> Result<()> {
        let mut columns = self.meta.columns();
        columns.extend([
            ("network_id", rows::text(self.network_id)),
            ("address", rows::text(self.address)),
            ("own_port_id", rows::text(self.own_port)),
            ("router_id", rows::optional(self.router_id)),
            ("port_id", rows::optional(self.port_id)),
            ("fixed_ip", rows::optional(self.fixed_ip)),
            ("dns_name", rows::text(&self.dns_name)),
            ("dns_domain", rows::text(&self.dns_domain)),
        ]);
        rows::save(conn, TABLE, columns)
    }

    /// `ACTIVE` or `DOWN`.
    pub fn status(&self) -> &'static str {
        if self.active && self.port_id.is_some() {
            "ACTIVE"
        } else {
            "DOWN"
        }
    }

    fn apply(&mut self, fields: &Fields) {
        let texts = [
            (&mut self.meta.description, &fields.description),
            (&mut self.dns_name, &fields.dns_name),
            (&mut self.dns_domain, &fields.dns_domain),
        ];
        for (place, value) in texts {
            if let Some(value) = value {
                place.clone_from(value);
            }
        }
    }

    /// Lets the address stand for a port's; by way of the router that leads from its subnet to this network.
    fn attach(&mut self, conn: &Connection, ctx: &Context, port: Uuid, fixed: Option<IpAddr>) -> Result<()> {
        let port = ports::get(conn, ctx, port)?;
        if !ctx.is_admin() && port.meta.project_id != self.meta.project_id {
            let message = format!(
                "Port {} is associated with a different project than Floating IP {} and therefore cannot be bound",
                port.id, self.meta.id
            );
            return Err(bad("BadRequest", format!("Bad floatingip request: {message}.")));
        }
        let candidates: Vec<_> = port.fixed_ips.iter().filter(|has| has.ip.is_ipv4()).collect();
        let target = match fixed {
            Some(ip) => port.fixed_ips.iter().find(|has| has.ip == ip).ok_or_else(|| {
                bad(
                    "BadRequest",
                    format!(
                        "Bad floatingip request: Port {} does not have fixed ip {ip}.",
                        port.id
                    ),
                )
            })?,
            None => match candidates.as_slice() {
                [one] => *one,
                [] => {
                    let message = format!(
                        "Bad floatingip request: Cannot add floating IP to port {} that has no fixed IPv4 addresses.",
                        port.id
                    );
                    return Err(bad("BadRequest", message));
                }
                _ => {
                    let message = format!(
                        "Bad floatingip request: Port {} has multiple fixed IPv4 addresses.  Must provide a specific \
                         IPv4 address when assigning a floating IP.",
                        port.id
                    );
                    return Err(bad("BadRequest", message));
                }
            },
        };
        if !target.ip.is_ipv4() {
            let message = format!(
                "Bad floatingip request: Cannot process floating IP association with {}, since that is not an IPv4 \
                 address.",
                target.ip
            );
            return Err(bad("BadRequest", message));
        }
        let router = routers::between(conn, target.subnet, self.network_id)?.ok_or_else(|| {
            missing(
                "ExternalGatewayForFloatingIPNotFound",
                format!(
                    "External network {} is not reachable from subnet {}.  Therefore, cannot associate Port {} with a \
                     Floating IP.",
                    self.network_id, target.subnet, port.id
                ),
            )
        })?;
        let others = of_port(conn, port.id)?;
        if others.iter().any(|o| {
            o.meta.id != self.meta.id && o.fixed_ip == Some(target.ip) && o.network_id == self.network_id
        }) {
            let message = format!(
                "Cannot associate floating IP {} ({}) with port {} using fixed IP {}, as that fixed IP already has a \
                 floating IP on external network {}.",
                self.address, self.meta.id, port.id, target.ip, self.network_id
            );
            return Err(conflict("FloatingIPPortAlreadyAssociated", message));
        }
        self.router_id = Some(router);
        self.port_id = Some(port.id);
        self.fixed_ip = Some(target.ip);
        Ok(())
    }

    fn detach(&mut self) {
        self.router_id = None;
        self.port_id = None;
        self.fixed_ip = None;
    }
}

/// Takes a public address for the project.
pub fn create(conn: &Connection, ctx: &Context, fields: &Fields) -> Result<FloatingIp> {
    ctx.require("floatingips", "create")?;
    let network_id = fields.network_id.ok_or_else(|| {
        bad(
            "HTTPBadRequest",
            "Failed to parse request. Required attribute 'floating_network_id' not specified",
        )
    })?;
    let network = networks::get(conn, ctx, network_id)?;
    if !network.external {
        let message =
            format!("Bad floatingip request: Network {network_id} is not a valid external network.");
        return Err(bad("BadRequest", message));
    }
    if fields.address.is_some() && !ctx.has_role("manager") && !ctx.is_admin() {
        return Err(disallowed("rule:create_floatingip:floating_ip_address"));
    }
    let project = rows::owner(ctx, fields.project_id.as_deref())?;
    quotas::charge(conn, &project, quotas::Resource::FloatingIp, 1)?;
    let meta = Meta::new(&project, "", "");
    let request = match (fields.subnet_id, fields.address) {
        (None, None) => {
            let v4 = subnets::of_network(conn, network_id)?;
            if !v4.iter().any(|subnet| subnet.cidr.network().is_ipv4()) {
                let message =
                    format!("Bad floatingip request: Network {network_id} does not contain any IPv4 subnet.");
                return Err(bad("BadRequest", message));
            }
            None
        }
        (subnet, ip) => Some(FixedIpRequest { subnet, ip }),
    };
    if let Some(FixedIpRequest {
        subnet: Some(subnet), ..
    }) = request
        && subnets::fetch(conn, subnet)?.network_id != network_id
    {
        return Err(invalid(format_args!(
            "Subnet {subnet} is not on network {network_id}"
        )));
    }
    let own = ports::create_service(
        conn,
        &network,
        "",
        ports::FLOATING_IP,
        meta.id,
        request.as_ref().map(std::slice::from_ref),
    )?;
    let address = own
        .fixed_ips
        .iter()
        .map(|has| has.ip)
        .find(IpAddr::is_ipv4)
        .ok_or_else(|| {
            let message = format!("Unable to find any IP address on external network {network_id}.");
            bad("ExternalIpAddressExhausted", message)
        })?;
    let mut floating = FloatingIp {
        meta,
        network_id,
        address,
        own_port: own.id,
        router_id: None,
        port_id: None,
        fixed_ip: None,
        dns_name: String::new(),
        dns_domain: String::new(),
        active: false,
    };
    floating.apply(fields);
    attach_as_asked(&mut floating, conn, ctx, fields)?;
    floating.save(conn)?;
    Ok(floating)
}

fn attach_as_asked(
    floating: &mut FloatingIp,
    conn: &Connection,
    ctx: &Context,
    fields: &Fields,
) -> Result<()> {
    let fixed = fields.fixed_ip.flatten();
    match fields.port_id {
        Some(Some(port)) => {
            // The same port, and no word of another address: nothing changes.
            if floating.port_id == Some(port) && (fixed.is_none() || fixed == floating.fixed_ip) {
                return Ok(());
            }
            floating.attach(conn, ctx, port, fixed)
        }
        Some(None) if fixed.is_some() => Err(bad(
            "BadRequest",
            "Bad floatingip request: fixed_ip_address cannot be specified without a port_id.",
        )),
        Some(None) => {
            floating.detach();
            Ok(())
        }
        None => match (fixed, floating.port_id) {
            (None, _) => Ok(()),
            (Some(ip), Some(port)) => floating.attach(conn, ctx, port, Some(ip)),
            (Some(_), None) => {
                let message =
                    "Bad floatingip request: fixed_ip_address cannot be specified without a port_id.";
                Err(bad("BadRequest", message))
            }
        },
    }
}

/// Lets a floating IP stand for another port, or for none.
pub fn update(conn: &Connection, ctx: &Context, id: Uuid, fields: &Fields) -> Result<FloatingIp> {
    ctx.require("floatingips", "update")?;
    let old = get(conn, ctx, id)?;
    let mut new = old.clone();
    // Neutron reads a change that says nothing at all as "of no port".
    let nothing = fields.port_id.is_none() && fields.fixed_ip.is_none() && fields.description.is_none();
    let detach = Fields {
        port_id: Some(None),
        ..Fields::default()
    };
    let fields = if nothing { &detach } else { fields };
    new.apply(fields);
    attach_as_asked(&mut new, conn, ctx, fields)?;
    if new == old {
        return Ok(old);
    }
    if new.port_id != old.port_id || new.fixed_ip != old.fixed_ip {
        // ACTIVE again once the switch has the new table.
        rows::remove(conn, "network_status", id)?;
        new.active = false;
    }
    new.meta.touch();
    new.save(conn)?;
    Ok(new)
}

/// Gives a public address back.
pub fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("floatingips", "delete")?;
    erase(conn, &get(conn, ctx, id)?)
}

fn erase(conn: &Connection, floating: &FloatingIp) -> Result<()> {
    ports::erase(conn, &ports::fetch(conn, floating.own_port)?)?;
    rows::remove(conn, "network_status", floating.meta.id)?;
    rows::remove(conn, TABLE, floating.meta.id)
}

/// The network goes: floating IPs of it that stand for nothing go with it.
pub(crate) fn delete_idle_of(conn: &Connection, network: Uuid) -> Result<()> {
    let idle = Condition::equals("network_id", network).and(Condition::new("port_id IS NULL", Vec::new()));
    for floating in rows::select(conn, TABLE, idle, FloatingIp::read)? {
        erase(conn, &floating)?;
    }
    Ok(())
}

/// The caller's floating IPs.
pub fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<FloatingIp>> {
    ctx.require("floatingips", "list")?;
    matching(conn, Condition::visible(ctx, None)?.and(which.condition()))
}

/// One of the caller's floating IPs.
pub fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<FloatingIp> {
    let seen = Condition::visible(ctx, None)?.and(Condition::equals("id", id));
    matching(conn, seen)?.pop().ok_or_else(|| no_floating_ip(id))
}

pub(crate) fn matching(conn: &Connection, condition: Condition) -> Result<Vec<FloatingIp>> {
    let mut found = rows::select(conn, TABLE, condition, FloatingIp::read)?;
    for floating in &mut found {
        floating.active = ports::is_active(conn, floating.meta.id)?;
    }
    Ok(found)
}

/// Floating IPs that stand for addresses of this port.
pub(crate) fn of_port(conn: &Connection, port: Uuid) -> Result<Vec<FloatingIp>> {
    rows::select(conn, TABLE, Condition::equals("port_id", port), FloatingIp::read)
}

/// The port that a floating IP stands for, for `port_details`.
pub fn target(conn: &Connection, floating: &FloatingIp) -> Result<Option<PortRow>> {
    floating.port_id.map(|port| ports::fetch(conn, port)).transpose()
}

/// A floating IP stands for this address of the port.
pub(crate) fn uses(conn: &Connection, port: Uuid, ip: IpAddr) -> Result<bool> {
    Ok(of_port(conn, port)?
        .iter()
        .any(|floating| floating.fixed_ip == Some(ip)))
}

/// The port goes: its floating IPs stay, without it.
pub(crate) fn detach_port(conn: &Connection, port: Uuid) -> Result<()> {
    for mut floating in of_port(conn, port)? {
        floating.detach();
        floating.meta.touch();
        floating.save(conn)?;
        rows::remove(conn, "network_status", floating.meta.id)?;
    }
    Ok(())
}

/// Some floating IP needs this router to lead to a network (or, with a subnet, from the subnet).
pub(crate) fn needs(conn: &Connection, router: Uuid, subnet: Option<Uuid>) -> Result<bool> {
    for floating in rows::select(
        conn,
        TABLE,
        Condition::equals("router_id", router),
        FloatingIp::read,
    )? {
        let Some(subnet) = subnet else { return Ok(true) };
        if let (Some(port), Some(ip)) = (floating.port_id, floating.fixed_ip)
            && ports::fetch(conn, port)?
                .fixed_ips
                .iter()
                .any(|has| has.ip == ip && has.subnet == subnet)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// All floating IPs, without their status.
pub(crate) fn all(conn: &Connection) -> Result<Vec<FloatingIp>> {
    rows::select(conn, TABLE, Condition::all(), FloatingIp::read)
}
