//! Subnets: address ranges of networks.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use rusqlite::{Connection, Row};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::errors::{bad, conflict, invalid, no_subnet};
use super::ipam;
use super::networks;
use super::ports;
use super::quotas;
use super::ranges::{self, Pool};
use super::rows::{self, Condition, Meta, Where};
use super::subnet_pools::{self, SubnetPool};
use crate::{Context, Result};

/// The most name servers, and the most host routes, of a subnet (Neutron's own limits are 5 and 20).
const MAX_DNS: usize = 5;
const MAX_ROUTES: usize = 20;

/// An address range of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// What every resource has.
    pub meta: Meta,
    /// The network.
    pub network_id: Uuid,
    /// The pool that its range is from.
    pub subnet_pool_id: Option<Uuid>,
    /// The range.
    pub cidr: IpNet,
    /// The default gateway.
    pub gateway_ip: Option<IpAddr>,
    /// DHCP answers here.
    pub enable_dhcp: bool,
    /// The address that is kept for the DHCP server where there is no gateway whose address it could use.
    pub dhcp_server: Option<IpAddr>,
    /// Where ports' addresses come from.
    pub pools: Vec<Pool>,
    /// Name servers that DHCP tells.
    pub dns_nameservers: Vec<IpAddr>,
    /// More routes that DHCP tells.
    pub host_routes: Vec<HostRoute>,
    /// Who sends router advertisements (IPv6).
    pub ipv6_ra_mode: Option<Ipv6Mode>,
    /// How hosts get their addresses (IPv6).
    pub ipv6_address_mode: Option<Ipv6Mode>,
}

/// A route as the API shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostRoute {
    /// Where to.
    pub destination: IpNet,
    /// By way of.
    pub nexthop: IpAddr,
}

/// Neutron's three ways of IPv6 addressing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6Mode {
    /// Addresses by SLAAC, the rest by router advertisements.
    Slaac,
    /// Addresses by DHCPv6.
    DhcpStateful,
    /// Addresses by SLAAC, the rest by DHCPv6.
    DhcpStateless,
}

impl Ipv6Mode {
    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Ipv6Mode::Slaac => "slaac",
            Ipv6Mode::DhcpStateful => "dhcpv6-stateful",
            Ipv6Mode::DhcpStateless => "dhcpv6-stateless",
        }
    }

    /// The mode of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Ipv6Mode::Slaac, Ipv6Mode::DhcpStateful, Ipv6Mode::DhcpStateless]
            .into_iter()
            .find(|m| m.name() == name)
    }
}

/// What a request says of a subnet; `None`: nothing.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Fields {
    pub project_id: Option<String>,
    pub network_id: Option<Uuid>,
    pub name: Option<String>,
    pub description: Option<String>,
    pub ip_version: Option<u8>,
    pub cidr: Option<IpNet>,
    /// The inner `None`: no gateway.
    pub gateway_ip: Option<Option<IpAddr>>,
    pub enable_dhcp: Option<bool>,
    pub pools: Option<Vec<Pool>>,
    pub dns_nameservers: Option<Vec<IpAddr>>,
    pub host_routes: Option<Vec<HostRoute>>,
    pub ipv6_ra_mode: Option<Ipv6Mode>,
    pub ipv6_address_mode: Option<Ipv6Mode>,
    pub subnet_pool_id: Option<Uuid>,
    pub use_default_pool: Option<bool>,
    pub prefixlen: Option<u8>,
}

const TABLE: &str = "subnets";
const SEEN: &str = "network_id IN (SELECT id FROM networks WHERE shared=1 OR external=1)
     OR network_id IN (SELECT object_id FROM network_rbac WHERE target=?)";

impl Subnet {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let mode = |column| -> rusqlite::Result<Option<Ipv6Mode>> {
            Ok(row
                .get::<_, Option<String>>(column)?
                .as_deref()
                .and_then(Ipv6Mode::named))
        };
        Ok(Subnet {
            meta: Meta::read(row)?,
            network_id: rows::parsed(row, "network_id")?,
            subnet_pool_id: rows::parsed_optional(row, "subnet_pool_id")?,
            cidr: rows::parsed(row, "cidr")?,
            gateway_ip: rows::parsed_optional(row, "gateway_ip")?,
            enable_dhcp: row.get("enable_dhcp")?,
            dhcp_server: rows::parsed_optional(row, "dhcp_server")?,
            pools: rows::json(row, "pools")?,
            dns_nameservers: rows::json(row, "dns_nameservers")?,
            host_routes: rows::json(row, "host_routes")?,
            ipv6_ra_mode: mode("ipv6_ra_mode")?,
            ipv6_address_mode: mode("ipv6_address_mode")?,
        })
    }

    pub(crate) fn save(&self, conn: &Connection) -> Result<()> {
        let mut columns = self.meta.columns();
        columns.extend([
            ("network_id", rows::text(self.network_id)),
            ("subnet_pool_id", rows::optional(self.subnet_pool_id)),
            ("cidr", rows::text(self.cidr)),
            ("gateway_ip", rows::optional(self.gateway_ip)),
            ("enable_dhcp", self.enable_dhcp.into()),
            ("dhcp_server", rows::optional(self.dhcp_server)),
            ("pools", rows::to_json(&self.pools)),
            ("dns_nameservers", rows::to_json(&self.dns_nameservers)),
            ("host_routes", rows::to_json(&self.host_routes)),
            (
                "ipv6_ra_mode",
                rows::optional(self.ipv6_ra_mode.map(Ipv6Mode::name)),
            ),
            (
                "ipv6_address_mode",
                rows::optional(self.ipv6_address_mode.map(Ipv6Mode::name)),
            ),
        ]);
        rows::save(conn, TABLE, columns)
    }

    /// 4 or 6.
    pub fn ip_version(&self) -> u8 {
        if self.cidr.network().is_ipv4() { 4 } else { 6 }
    }

    /// Hosts take their addresses by themselves (SLAAC).
    pub(crate) fn is_automatic(&self) -> bool {
        matches!(
            self.ipv6_address_mode,
            Some(Ipv6Mode::Slaac | Ipv6Mode::DhcpStateless)
        )
    }

    /// What both a new and a changed subnet take over from a request.
    fn apply(&mut self, fields: &Fields) -> Result<()> {
        if let Some(name) = &fields.name {
            self.meta.name.clone_from(name);
        }
        if let Some(description) = &fields.description {
            self.meta.description.clone_from(description);
        }
        self.enable_dhcp = fields.enable_dhcp.unwrap_or(self.enable_dhcp);
        if let Some(gateway) = fields.gateway_ip {
            self.gateway_ip = gateway;
            if let Some(gateway) = gateway {
                self.check_family(gateway, "gateway_ip")?;
                // A gateway outside the range is a tenant's own affair in Neutron; here nothing could answer for it.
                if gateway.is_ipv4() && !ranges::is_host(self.cidr, gateway) {
                    return Err(invalid("Gateway is not valid on subnet"));
                }
            }
        }
        if let Some(servers) = &fields.dns_nameservers {
            if servers.len() > MAX_DNS {
                let message = format!(
                    "Unable to complete operation for {}. The number of DNS nameservers exceeds the limit {MAX_DNS}.",
                    self.meta.id
                );
                return Err(bad("DNSNameServersExhausted", message));
            }
            for server in servers {
                self.check_family(*server, "dns_nameserver")?;
            }
            self.dns_nameservers.clone_from(servers);
        }
        if let Some(routes) = &fields.host_routes {
            if routes.len() > MAX_ROUTES {
                let message = format!(
                    "Unable to complete operation for {}. The number of host routes exceeds the limit {MAX_ROUTES}.",
                    self.meta.id
                );
                return Err(bad("HostRoutesExhausted", message));
            }
            for route in routes {
                self.check_family(route.nexthop, "nexthop")?;
                self.check_family(route.destination.network(), "destination")?;
            }
            self.host_routes.clone_from(routes);
        }
        match &fields.pools {
            Some(pools) => self.pools = ranges::check_pools(self.cidr, self.gateway_ip, pools.clone())?,
            None => ranges::check_gateway(self.gateway_ip, &self.pools)?,
        }
        Ok(())
    }

    fn check_family(&self, ip: IpAddr, what: &str) -> Result<()> {
        if ip.is_ipv4() == self.cidr.network().is_ipv4() {
            return Ok(());
        }
        Err(invalid(format_args!(
            "{what} '{ip}' does not match the ip_version '{}'",
            self.ip_version()
        )))
    }

    /// Keeps an address for the DHCP server exactly where it needs one of its own.
    fn keep_dhcp_server(&mut self, conn: &Connection) -> Result<()> {
        let needed = self.enable_dhcp && self.gateway_ip.is_none() && self.cidr.network().is_ipv4();
        match (needed, self.dhcp_server) {
            (true, None) => {
                let (first, last) = ranges::hosts(self.cidr);
                let ip = self.first_free(
                    conn,
                    &[Pool {
                        start: first,
                        end: last,
                    }],
                )?;
                ipam::take(conn, self, ip, self.meta.id, 0)?;
                self.dhcp_server = Some(ip);
            }
            (false, Some(_)) => {
                ipam::give_back_all(conn, self.meta.id)?;
                self.dhcp_server = None;
            }
            _ => {}
        }
        Ok(())
    }

    /// The lowest address of the whole range that nobody has, first of all one that no pool gives away.
    fn first_free(&self, conn: &Connection, range: &[Pool]) -> Result<IpAddr> {
        let (first, last) = ranges::hosts(self.cidr);
        let mut next = ranges::number(first);
        // Outside the pools there are few addresses before the first pool; look at those only.
        while next <= ranges::number(last) {
            let ip = ranges::address(next, first);
            if self.pools.iter().any(|pool| pool.contains(ip)) {
                break;
            }
            if ipam::holder(conn, self.meta.id, ip)?.is_none() {
                return Ok(ip);
            }
            next += 1;
        }
        ipam::free(conn, self.meta.id, range)?.ok_or_else(|| exhausted(self.network_id))
    }
}

/// `IpAddressGenerationFailure`, as Neutron words it.
pub(crate) fn exhausted(network: Uuid) -> crate::Error {
    let message = format!("No more IP addresses available on network {network}.");
    conflict("IpAddressGenerationFailure", message)
}

/// Makes a subnet.
pub fn create(conn: &Connection, ctx: &Context, fields: &Fields) -> Result<Subnet> {
    ctx.require("subnets", "create")?;
    let network_id = fields.network_id.ok_or_else(|| required("network_id"))?;
    let network = networks::get(conn, ctx, network_id)?;
    if !network.is_owned_by(ctx) {
        return Err(super::errors::disallowed("rule:create_subnet"));
    }
    let project = match fields.project_id.as_deref() {
        Some(project) => rows::owner(ctx, Some(project))?,
        None => network.meta.project_id.clone(),
    };
    quotas::charge(conn, &project, quotas::Resource::Subnet, 1)?;
    let pool = pool_of(conn, ctx, fields)?;
    let siblings = of_network(conn, network_id)?;
    check_siblings(conn, ctx, &siblings, pool.as_ref(), fields)?;
    let wanted = fields.cidr.map(|cidr| cidr.trunc());
    let cidr = match (&pool, wanted) {
        (Some(pool), wanted) => subnet_pools::allocate(conn, pool, &project, wanted, fields.prefixlen)?,
        (None, Some(cidr)) => cidr,
        (None, None) => return Err(request("a subnetpool must be specified in the absence of a cidr")),
    };
    let v4 = cidr.network().is_ipv4();
    if fields.ip_version.is_some_and(|version| (version == 4) != v4) {
        let version = fields.ip_version.unwrap_or_default();
        return Err(invalid(format_args!(
            "cidr '{cidr}' does not match the ip_version '{version}'"
        )));
    }
    if cidr.prefix_len() == 0 || cidr.network().is_multicast() || cidr.network().is_loopback() {
        return Err(invalid(format_args!("Invalid CIDR {cidr} given as IP prefix")));
    }
    check_modes(fields, v4, cidr)?;
    networks::check_mtu(&network, if v4 { 4 } else { 6 })?;
    for other in siblings {
        if ranges::overlap(other.cidr, cidr) {
            return Err(invalid(format_args!(
                "Requested subnet with cidr: {cidr} for network: {network_id} overlaps with another subnet"
            )));
        }
    }
    let gateway = match fields.gateway_ip {
        Some(gateway) => gateway,
        None if cidr.prefix_len() >= cidr.max_prefix_len() => None,
        None => Some(ranges::hosts(cidr).0),
    };
    let mut subnet = Subnet {
        meta: Meta::new(&project, "", ""),
        network_id,
        subnet_pool_id: pool.map(|pool| pool.meta.id),
        cidr,
        gateway_ip: None,
        enable_dhcp: true,
        dhcp_server: None,
        pools: Vec::new(),
        dns_nameservers: Vec::new(),
        host_routes: Vec::new(),
        ipv6_ra_mode: fields.ipv6_ra_mode,
        ipv6_address_mode: fields.ipv6_address_mode,
    };
    let fields = Fields {
        gateway_ip: Some(gateway),
        ..fields.clone()
    };
    subnet.apply(&fields)?;
    if fields.pools.is_none() {
        subnet.pools = ranges::default_pools(cidr, gateway);
    }
    subnet.keep_dhcp_server(conn)?;
    subnet.save(conn)?;
    networks::bump(conn, network_id)?;
    if subnet.is_automatic() {
        ports::join_automatic(conn, &subnet)?;
    }
    Ok(subnet)
}

fn required(attribute: &str) -> crate::Error {
    bad(
        "HTTPBadRequest",
        format!("Failed to parse request. Required attribute '{attribute}' not specified"),
    )
}

fn request(reason: &str) -> crate::Error {
    bad("BadRequest", format!("Bad subnets request: {reason}."))
}

/// The pool that a new subnet's range comes from.
fn pool_of(conn: &Connection, ctx: &Context, fields: &Fields) -> Result<Option<SubnetPool>> {
    if fields.cidr.is_some() && fields.prefixlen.is_some() {
        return Err(request("cidr and prefixlen must not be supplied together"));
    }
    let default = fields.use_default_pool == Some(true);
    let pool = match fields.subnet_pool_id {
        Some(_) if default => {
            return Err(request(
                "subnetpool_id and use_default_subnetpool cannot both be specified",
            ));
        }
        Some(id) => subnet_pools::get(conn, ctx, id)?,
        None if default => subnet_pools::default_of(conn, ctx, fields.ip_version.unwrap_or(4))?,
        None if fields.prefixlen.is_some() => {
            return Err(request("prefixlen can only be specified with a subnetpool"));
        }
        None => return Ok(None),
    };
    if fields
        .ip_version
        .is_some_and(|version| version != pool.ip_version())
    {
        return Err(request(&format!(
            "Cannot allocate IPv{} subnet from IPv{} subnet pool",
            fields.ip_version.unwrap_or_default(),
            pool.ip_version()
        )));
    }
    if fields.cidr.is_none() && fields.pools.is_some() {
        return Err(request(
            "allocation_pools allowed only for specific subnet requests",
        ));
    }
    if fields.cidr.is_none() && matches!(fields.gateway_ip, Some(Some(_))) {
        return Err(request("gateway_ip allowed only for specific subnet requests"));
    }
    Ok(Some(pool))
}

/// Subnets of one IP version on one network come from one pool, or all from none.
fn check_siblings(
    conn: &Connection,
    ctx: &Context,
    siblings: &[Subnet],
    pool: Option<&SubnetPool>,
    fields: &Fields,
) -> Result<()> {
    let version = match (pool, fields.cidr) {
        (Some(pool), _) => pool.ip_version(),
        (None, Some(cidr)) if cidr.network().is_ipv4() => 4,
        (None, _) => 6,
    };
    let id = pool.map(|pool| pool.meta.id);
    for other in siblings.iter().filter(|other| other.ip_version() == version) {
        let scope = |id: Option<Uuid>| -> Result<Option<Uuid>> {
            Ok(match id {
                Some(id) => subnet_pools::get(conn, ctx, id)
                    .ok()
                    .and_then(|pool| pool.address_scope_id),
                None => None,
            })
        };
        if other.subnet_pool_id != id && (scope(other.subnet_pool_id)?.is_some() || scope(id)?.is_some()) {
            let message =
                "Subnets on the same network are from the same address scope, and so from its pools.";
            return Err(bad("NetworkAddressScopeAffinityError", message));
        }
        if let (Some(theirs), Some(ours)) = (other.subnet_pool_id, id)
            && theirs != ours
        {
            let message = "Subnets hosted on the same network must be allocated from the same subnet pool.";
            return Err(bad("NetworkSubnetPoolAffinityError", message));
        }
    }
    Ok(())
}

fn check_modes(fields: &Fields, v4: bool, cidr: IpNet) -> Result<()> {
    let (ra, address) = (fields.ipv6_ra_mode, fields.ipv6_address_mode);
    if ra.is_none() && address.is_none() {
        return Ok(());
    }
    if v4 {
        return Err(invalid(
            "ipv6_ra_mode or ipv6_address_mode cannot be set when ip_version is not 6",
        ));
    }
    if fields.enable_dhcp == Some(false) {
        return Err(invalid(
            "ipv6_ra_mode or ipv6_address_mode cannot be set when enable_dhcp is set to False",
        ));
    }
    if let (Some(ra), Some(address)) = (ra, address)
        && ra != address
    {
        return Err(invalid(format_args!(
            "ipv6_ra_mode set to '{}' with ipv6_address_mode set to '{}' is not valid. If both attributes are set, \
             they must be the same value",
            ra.name(),
            address.name()
        )));
    }
    let automatic = |mode: Option<Ipv6Mode>| matches!(mode, Some(Ipv6Mode::Slaac | Ipv6Mode::DhcpStateless));
    if (automatic(ra) || automatic(address)) && cidr.prefix_len() != 64 {
        return Err(invalid(format_args!(
            "Invalid CIDR {cidr} for IPv6 address mode. OpenStack uses the EUI-64 \
             address format, which requires the prefix to be /64"
        )));
    }
    Ok(())
}

/// Changes a subnet. Saying what is so already changes nothing.
pub fn update(conn: &Connection, ctx: &Context, id: Uuid, fields: &Fields) -> Result<Subnet> {
    ctx.require("subnets", "update")?;
    let old = get(conn, ctx, id)?;
    rows::check_owner(ctx, &old.meta, "rule:update_subnet")?;
    let mut new = old.clone();
    new.apply(fields)?;
    if new == old {
        return Ok(old);
    }
    if let (Some(before), true) = (old.gateway_ip, new.gateway_ip != old.gateway_ip)
        && let Some(holder) = ipam::holder(conn, id, before)?
        && ports::fetch(conn, holder)?.device_owner == ports::ROUTER_INTERFACE
    {
        let message =
            format!("Current gateway ip {before} already in use by port {holder}. Unable to update.");
        return Err(conflict("GatewayIpInUse", message));
    }
    new.keep_dhcp_server(conn)?;
    new.meta.touch();
    new.save(conn)?;
    Ok(new)
}

/// Removes a subnet; refused while ports have addresses of it, unless hosts took these by themselves.
pub fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("subnets", "delete")?;
    let subnet = get(conn, ctx, id)?;
    rows::check_owner(ctx, &subnet.meta, "rule:delete_subnet")?;
    if subnet.is_automatic() {
        ports::leave_automatic(conn, &subnet)?;
    }
    let ports = rows::count(
        conn,
        "network_allocations",
        Condition::equals("subnet_id", id).and(Condition::new("owner_id<>?", vec![rows::text(id)])),
    )?;
    if ports > 0 {
        let message = format!(
            "Unable to complete operation on subnet {id}: One or more ports have an IP allocation from this subnet."
        );
        return Err(conflict("SubnetInUse", message));
    }
    erase(conn, &subnet)?;
    networks::bump(conn, subnet.network_id)
}

/// Removes a subnet that no port has an address of.
pub(crate) fn erase(conn: &Connection, subnet: &Subnet) -> Result<()> {
    ipam::give_back_all(conn, subnet.meta.id)?;
    rows::remove(conn, TABLE, subnet.meta.id)
}

/// The subnets that the caller sees: its own, and those of shared and external networks.
pub fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<Subnet>> {
    ctx.require("subnets", "list")?;
    rows::select(
        conn,
        TABLE,
        Condition::visible(ctx, Some(SEEN))?.and(which.condition()),
        Subnet::read,
    )
}

/// One subnet that the caller sees.
pub fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Subnet> {
    let seen = Condition::visible(ctx, Some(SEEN))?.and(Condition::equals("id", id));
    rows::find(conn, TABLE, seen, Subnet::read)?.ok_or_else(|| no_subnet(id))
}

/// One subnet, whoever asks.
pub(crate) fn fetch(conn: &Connection, id: Uuid) -> Result<Subnet> {
    rows::find(conn, TABLE, Condition::equals("id", id), Subnet::read)?.ok_or_else(|| no_subnet(id))
}

/// The subnets of a network.
pub fn of_network(conn: &Connection, network: Uuid) -> Result<Vec<Subnet>> {
    rows::select(
        conn,
        TABLE,
        Condition::equals("network_id", network),
        Subnet::read,
    )
}

/// The subnets whose ranges are from a pool, whoever owns them.
pub(crate) fn of_pool(conn: &Connection, pool: Uuid) -> Result<Vec<Subnet>> {
    rows::select(
        conn,
        TABLE,
        Condition::equals("subnet_pool_id", pool),
        Subnet::read,
    )
}

/// The ids of networks that are shared, and of external ones.
pub fn on_open_networks(conn: &Connection) -> Result<(HashSet<Uuid>, HashSet<Uuid>)> {
    let ids = |sql: &str| -> Result<HashSet<Uuid>> {
        let mut statement = conn.prepare_cached(sql)?;
        let found = statement.query_map([], |row| rows::parsed(row, "id"))?;
        Ok(found.collect::<rusqlite::Result<_>>()?)
    };
    Ok((
        ids("SELECT id FROM networks WHERE shared=1")?,
        ids("SELECT id FROM networks WHERE external=1")?,
    ))
}

/// The ids of all subnets, by network.
pub fn ids_by_network(conn: &Connection) -> Result<std::collections::HashMap<Uuid, Vec<Uuid>>> {
    let mut statement = conn.prepare_cached("SELECT id, network_id FROM subnets ORDER BY created_at, id")?;
    let mut found = statement.query([])?;
    let mut map = std::collections::HashMap::<Uuid, Vec<Uuid>>::new();
    while let Some(row) = found.next()? {
        map.entry(rows::parsed(row, "network_id")?)
            .or_default()
            .push(rows::parsed(row, "id")?);
    }
    Ok(map)
}

/// An address with its subnet, if it is in one of these.
pub(crate) fn containing(subnets: &[Subnet], ip: IpAddr) -> Option<&Subnet> {
    subnets.iter().find(|subnet| subnet.cidr.contains(&ip))
}
