//! Routers: between tenants' networks, and to the outside.

use rusqlite::{Connection, Row};
use uuid::Uuid;

mod interfaces;

pub use interfaces::{Interface, InterfaceRequest, add_interface, remove_interface};
pub(crate) use interfaces::{between, interfaces};

use super::errors::{bad, conflict, disallowed, invalid, named, no_router};
use super::ports::{self, FixedIpRequest};
use super::rows::{self, Condition, Meta, Where};
use super::subnets::{self, HostRoute, Subnet};
use super::{floating_ips, ipam, networks, quotas, ranges, security_groups};
use crate::error::Kind;
use crate::{Config, Context, Result};

/// The most static routes of a router (Neutron's own limit).
const MAX_ROUTES: usize = 30;

/// A router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Router {
    /// What every resource has.
    pub meta: Meta,
    /// Packets pass at all.
    pub admin_state_up: bool,
    /// Its leg on an external network.
    pub gateway: Option<Gateway>,
    /// What leaves without a floating IP gets the gateway's address as its source.
    pub enable_snat: bool,
    /// Static routes, sorted.
    pub routes: Vec<HostRoute>,
    /// Availability zones that were asked for.
    pub zone_hints: Vec<String>,
}

/// A router's leg on an external network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// The port.
    pub port: Uuid,
    /// The external network.
    pub network: Uuid,
    /// Its addresses there.
    pub fixed_ips: Vec<ipam::FixedIp>,
}

/// `external_gateway_info` of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayRequest {
    /// The external network.
    pub network: Uuid,
    /// `enable_snat`, if said.
    pub enable_snat: Option<bool>,
    /// Addresses, if said.
    pub fixed_ips: Option<Vec<FixedIpRequest>>,
}

/// What a request says of a router; `None`: nothing.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Fields {
    pub project_id: Option<String>,
    pub name: Option<String>,
    pub description: Option<String>,
    pub admin_state_up: Option<bool>,
    /// The inner `None`: no gateway.
    pub gateway: Option<Option<GatewayRequest>>,
    pub routes: Option<Vec<HostRoute>>,
    pub zone_hints: Option<Vec<String>>,
    pub distributed: Option<bool>,
    pub ha: Option<bool>,
}

const TABLE: &str = "routers";

impl Router {
    fn read(row: &Row<'_>) -> rusqlite::Result<(Self, Option<Uuid>)> {
        let router = Router {
            meta: Meta::read(row)?,
            admin_state_up: row.get("admin_state_up")?,
            gateway: None,
            enable_snat: row.get("enable_snat")?,
            routes: rows::json(row, "routes")?,
            zone_hints: rows::json(row, "zone_hints")?,
        };
        Ok((router, rows::parsed_optional(row, "gateway_port_id")?))
    }

    fn save(&self, conn: &Connection) -> Result<()> {
        let mut columns = self.meta.columns();
        columns.extend([
            ("admin_state_up", self.admin_state_up.into()),
            (
                "gateway_port_id",
                rows::optional(self.gateway.as_ref().map(|gateway| gateway.port)),
            ),
            ("enable_snat", self.enable_snat.into()),
            ("routes", rows::to_json(&self.routes)),
            ("zone_hints", rows::to_json(&self.zone_hints)),
        ]);
        rows::save(conn, TABLE, columns)
    }

    fn apply(&mut self, conn: &Connection, config: &Config, ctx: &Context, fields: &Fields) -> Result<()> {
        if let Some(name) = &fields.name {
            self.meta.name.clone_from(name);
        }
        if let Some(description) = &fields.description {
            self.meta.description.clone_from(description);
        }
        self.admin_state_up = fields.admin_state_up.unwrap_or(self.admin_state_up);
        if fields.distributed == Some(true) || fields.ha == Some(true) {
            return Err(invalid(
                "Routers here are neither distributed nor highly available by request",
            ));
        }
        if let Some(hints) = &fields.zone_hints {
            if let Some(zone) = hints.iter().find(|zone| **zone != config.availability_zone) {
                let message = format!("AvailabilityZone {zone} could not be found.");
                return Err(named(Kind::NotFound, "AvailabilityZoneNotFound", message));
            }
            self.zone_hints.clone_from(hints);
        }
        match &fields.gateway {
            Some(Some(request)) => self.set_gateway(conn, ctx, request)?,
            Some(None) => self.clear_gateway(conn)?,
            None => {}
        }
        if let Some(routes) = &fields.routes {
            self.routes = self.check_routes(conn, routes)?;
        }
        Ok(())
    }

    fn set_gateway(&mut self, conn: &Connection, ctx: &Context, request: &GatewayRequest) -> Result<()> {
        let network = networks::get(conn, ctx, request.network)?;
        if !network.external {
            let message = format!(
                "Bad router request: Network {} is not an external network.",
                request.network
            );
            return Err(bad("BadRequest", message));
        }
        self.enable_snat = request.enable_snat.unwrap_or(true);
        let same = self.gateway.as_ref().is_some_and(|gateway| {
            let content = |wanted: &FixedIpRequest| {
                gateway.fixed_ips.iter().any(|has| {
                    wanted.ip.is_none_or(|ip| ip == has.ip) && wanted.subnet.is_none_or(|id| id == has.subnet)
                })
            };
            gateway.network == request.network && request.fixed_ips.iter().flatten().all(content)
        });
        if same {
            return Ok(());
        }
        for interface in interfaces(conn, self.meta.id)? {
            if interface.network_id == network.meta.id {
                let message = format!("Network {} is one of the router's own networks", network.meta.id);
                return Err(bad("BadRequest", format!("Bad router request: {message}.")));
            }
        }
        for subnet in subnets::of_network(conn, network.meta.id)? {
            self.check_overlap(conn, &subnet)?;
        }
        self.clear_gateway(conn)?;
        let requests = request.fixed_ips.as_deref();
        let port = ports::create_service(conn, &network, "", ports::ROUTER_GATEWAY, self.meta.id, requests)?;
        if port.fixed_ips.is_empty() {
            let message = format!(
                "Bad router request: No IPs available for external network {}.",
                network.meta.id
            );
            return Err(bad("BadRequest", message));
        }
        self.gateway = Some(Gateway {
            port: port.id,
            network: network.meta.id,
            fixed_ips: port.fixed_ips,
        });
        Ok(())
    }

    fn clear_gateway(&mut self, conn: &Connection) -> Result<()> {
        let Some(gateway) = self.gateway.take() else {
            return Ok(());
        };
        if floating_ips::needs(conn, self.meta.id, None)? {
            let message = format!(
                "Gateway cannot be updated for router {}, since a gateway to external network {} is required by one or \
                 more floating IPs.",
                self.meta.id, gateway.network
            );
            return Err(conflict("RouterExternalGatewayInUseByFloatingIp", message));
        }
        ports::erase(conn, &ports::fetch(conn, gateway.port)?)
    }

    /// Static routes lead to an address on one of the router's subnets that is not the router's own.
    fn check_routes(&self, conn: &Connection, routes: &[HostRoute]) -> Result<Vec<HostRoute>> {
        if routes.len() > MAX_ROUTES {
            let message = format!(
                "Unable to complete operation for {}. The number of routes exceeds the maximum {MAX_ROUTES}.",
                self.meta.id
            );
            return Err(bad("RoutesExhausted", message));
        }
        let mut own = self
            .gateway
            .iter()
            .flat_map(|gateway| gateway.fixed_ips.clone())
            .collect::<Vec<_>>();
        own.extend(
            interfaces(conn, self.meta.id)?
                .into_iter()
                .flat_map(|port| port.fixed_ips),
        );
        let mut connected = Vec::new();
        for address in &own {
            connected.push(subnets::fetch(conn, address.subnet)?);
        }
        let mut checked = routes.to_vec();
        for route in &mut checked {
            route.destination = route.destination.trunc();
            let reason = if subnets::containing(&connected, route.nexthop).is_none() {
                format!("the nexthop is not connected with router {}", self.meta.id)
            } else if own.iter().any(|has| has.ip == route.nexthop) {
                format!("the nexthop is used by router {}", self.meta.id)
            } else {
                continue;
            };
            let message = format!(
                "Invalid format for routes: [{} via {}], {reason}",
                route.destination, route.nexthop
            );
            return Err(bad("InvalidRoutes", message));
        }
        checked.sort();
        checked.dedup();
        Ok(checked)
    }

    /// No two subnets of a router have an address in common.
    fn check_overlap(&self, conn: &Connection, new: &Subnet) -> Result<()> {
        let mut own = interfaces(conn, self.meta.id)?
            .into_iter()
            .flat_map(|port| port.fixed_ips)
            .collect::<Vec<_>>();
        own.extend(self.gateway.iter().flat_map(|gateway| gateway.fixed_ips.clone()));
        for address in own {
            let other = subnets::fetch(conn, address.subnet)?;
            if other.meta.id == new.meta.id {
                let message = format!(
                    "Bad router request: Router already has a port on subnet {}.",
                    new.meta.id
                );
                return Err(bad("BadRequest", message));
            }
            if ranges::overlap(other.cidr, new.cidr) {
                let message = format!(
                    "Bad router request: Cidr {} of subnet {} overlaps with cidr {} of subnet {}.",
                    new.cidr, new.meta.id, other.cidr, other.meta.id
                );
                return Err(bad("BadRequest", message));
            }
        }
        Ok(())
    }
}

/// Makes a router.
pub fn create(conn: &Connection, config: &Config, ctx: &Context, fields: &Fields) -> Result<Router> {
    ctx.require("routers", "create")?;
    check_rights(ctx, "create", fields)?;
    let project = rows::owner(ctx, fields.project_id.as_deref())?;
    quotas::charge(conn, &project, quotas::Resource::Router, 1)?;
    security_groups::ensure_default(conn, &project)?;
    let mut router = Router {
        meta: Meta::new(&project, "", ""),
        admin_state_up: true,
        gateway: None,
        enable_snat: true,
        routes: Vec::new(),
        zone_hints: Vec::new(),
    };
    router.apply(conn, config, ctx, fields)?;
    router.meta.revision = 1;
    router.save(conn)?;
    Ok(router)
}

/// What only an admin may say.
fn check_rights(ctx: &Context, verb: &str, fields: &Fields) -> Result<()> {
    let gateway = fields.gateway.iter().flatten();
    let snat = gateway.clone().any(|request| request.enable_snat == Some(false));
    let addresses = gateway
        .clone()
        .flat_map(|request| request.fixed_ips.iter().flatten())
        .any(|ip| ip.ip.is_some());
    let asked = [
        ("external_gateway_info:enable_snat", snat),
        ("external_gateway_info:external_fixed_ips", addresses),
        ("distributed", fields.distributed.is_some()),
        ("ha", fields.ha.is_some()),
    ];
    match asked.iter().find(|(_, asked)| *asked && !ctx.is_admin()) {
        Some((name, _)) => Err(disallowed(&format!("rule:{verb}_router:{name}"))),
        None => Ok(()),
    }
}

/// Changes a router. Saying what is so already changes nothing.
pub fn update(
    conn: &Connection,
    config: &Config,
    ctx: &Context,
    id: Uuid,
    fields: &Fields,
) -> Result<Router> {
    ctx.require("routers", "update")?;
    let old = get(conn, ctx, id)?;
    let mut asked = fields.clone();
    // Clients send the whole gateway back: rights concern changes alone.
    if let (Some(Some(request)), Some(has)) = (&mut asked.gateway, &old.gateway) {
        request.enable_snat = request.enable_snat.filter(|snat| *snat != old.enable_snat);
        request.fixed_ips = request.fixed_ips.take().filter(|ips| {
            !ips.iter()
                .all(|ip| has.fixed_ips.iter().any(|h| ip.ip == Some(h.ip)))
        });
    }
    check_rights(ctx, "update", &asked)?;
    let mut new = old.clone();
    new.apply(conn, config, ctx, fields)?;
    if new == old {
        return Ok(old);
    }
    new.meta.touch();
    new.save(conn)?;
    Ok(new)
}

/// Adds and removes static routes, leaving the others alone.
pub fn change_routes(
    conn: &Connection,
    config: &Config,
    ctx: &Context,
    id: Uuid,
    add: &[HostRoute],
    remove: &[HostRoute],
) -> Result<Router> {
    let mut routes = get(conn, ctx, id)?.routes;
    routes.retain(|route| !remove.contains(route));
    routes.extend(add);
    update(
        conn,
        config,
        ctx,
        id,
        &Fields {
            routes: Some(routes),
            ..Fields::default()
        },
    )
}

/// Removes a router; refused while it has interfaces.
pub fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("routers", "delete")?;
    let mut router = get(conn, ctx, id)?;
    if !interfaces(conn, id)?.is_empty() {
        return Err(conflict("RouterInUse", format!("Router {id} still has ports")));
    }
    router.clear_gateway(conn)?;
    rows::remove(conn, TABLE, id)
}

/// The caller's routers.
pub fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<Router>> {
    ctx.require("routers", "list")?;
    matching(conn, Condition::visible(ctx, None)?.and(which.condition()))
}

/// One of the caller's routers.
pub fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Router> {
    let seen = Condition::visible(ctx, None)?.and(Condition::equals("id", id));
    matching(conn, seen)?.pop().ok_or_else(|| no_router(id))
}

/// One router, whoever asks.
pub(crate) fn fetch(conn: &Connection, id: Uuid) -> Result<Router> {
    matching(conn, Condition::equals("id", id))?
        .pop()
        .ok_or_else(|| no_router(id))
}

pub(crate) fn matching(conn: &Connection, condition: Condition) -> Result<Vec<Router>> {
    let mut routers = Vec::new();
    for (mut router, port) in rows::select(conn, TABLE, condition, Router::read)? {
        if let Some(port) = port {
            let port = ports::fetch(conn, port)?;
            router.gateway = Some(Gateway {
                port: port.id,
                network: port.network_id,
                fixed_ips: port.fixed_ips,
            });
        }
        routers.push(router);
    }
    Ok(routers)
}
