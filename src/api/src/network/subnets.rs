//! Subnets on the wire.

use std::net::IpAddr;

use cloud::network::subnets::{self, Fields, HostRoute, Ipv6Mode, Subnet};
use cloud::network::{Connection, Meta, Pool, Where};
use cloud::{Config, Context, Result};
use serde_json::{Value, json};
use uuid::Uuid;

use super::attributes::{Attributes, parse, prefix, wrong};
use super::query::View;
use super::resource::{self, Kind};

pub(super) struct Subnets;

impl Kind for Subnets {
    const ONE: &'static str = "subnet";
    const MANY: &'static str = "subnets";
    const NOT_FOUND: &'static str = "SubnetNotFound";
    const ATTRIBUTES: &'static [&'static str] = &[
        "id",
        "name",
        "description",
        "project_id",
        "tenant_id",
        "tags",
        "revision_number",
        "created_at",
        "updated_at",
        "network_id",
        "ip_version",
        "cidr",
        "gateway_ip",
        "enable_dhcp",
        "allocation_pools",
        "dns_nameservers",
        "host_routes",
        "ipv6_ra_mode",
        "ipv6_address_mode",
        "subnetpool_id",
        "router:external",
    ];
    const MORE_FILTERS: &'static [&'static str] = &["shared"];
    const POST: &'static [&'static str] = &[
        "name",
        "description",
        "project_id",
        "tenant_id",
        "network_id",
        "ip_version",
        "cidr",
        "gateway_ip",
        "enable_dhcp",
        "allocation_pools",
        "dns_nameservers",
        "host_routes",
        "ipv6_ra_mode",
        "ipv6_address_mode",
        "subnetpool_id",
        "use_default_subnetpool",
        "prefixlen",
    ];
    const PUT: &'static [&'static str] = &[
        "name",
        "description",
        "gateway_ip",
        "enable_dhcp",
        "allocation_pools",
        "dns_nameservers",
        "host_routes",
    ];
    const COLUMNS: &'static [(&'static str, &'static str)] = &[
        ("id", "id"),
        ("name", "name"),
        ("project_id", "project_id"),
        ("network_id", "network_id"),
        ("subnetpool_id", "subnet_pool_id"),
    ];
    type Row = Subnet;
    type Fields = Fields;

    fn meta(row: &Self::Row) -> &Meta {
        &row.meta
    }

    fn parse(body: &Attributes<'_>) -> Result<Fields> {
        let version: Option<u8> = body.number("ip_version")?;
        if version.is_some_and(|version| version != 4 && version != 6) {
            return Err(wrong("ip_version", "the value is not in [4, 6]"));
        }
        let mode = |name: &str| -> Result<Option<Ipv6Mode>> {
            let Some(text) = body.text_or_null(name, 32)? else {
                return Ok(None);
            };
            let found = Ipv6Mode::named(&text);
            let reason = "the value is not in ['dhcpv6-stateful', 'dhcpv6-stateless', 'slaac']";
            found.map(Some).ok_or_else(|| wrong(name, reason))
        };
        Ok(Fields {
            project_id: body.project()?,
            network_id: body.uuid("network_id")?,
            name: body.text("name", 255)?,
            description: body.text("description", 255)?,
            ip_version: version,
            cidr: match body.raw("cidr") {
                None | Some(Value::Null) => None,
                Some(value) => Some(prefix("cidr", value)?),
            },
            gateway_ip: body.settable("gateway_ip", "IP address")?,
            enable_dhcp: body.flag("enable_dhcp")?,
            pools: match body.raw("allocation_pools") {
                Some(Value::Null) => None,
                _ => body.list("allocation_pools", pool)?,
            },
            dns_nameservers: body.list("dns_nameservers", |value| {
                parse::<IpAddr>("dns_nameservers", value, "nameserver")
            })?,
            host_routes: body.list("host_routes", |value| route("host_routes", value))?,
            ipv6_ra_mode: mode("ipv6_ra_mode")?,
            ipv6_address_mode: mode("ipv6_address_mode")?,
            subnet_pool_id: body.uuid("subnetpool_id")?,
            use_default_pool: body.flag("use_default_subnetpool")?,
            prefixlen: body.number("prefixlen")?,
        })
    }

    fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<Subnet>> {
        subnets::list(conn, ctx, which)
    }

    fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Subnet> {
        ctx.require("subnets", "list")?;
        subnets::get(conn, ctx, id)
    }

    fn create(conn: &Connection, _: &Config, ctx: &Context, fields: &Fields) -> Result<Subnet> {
        subnets::create(conn, ctx, fields)
    }

    fn update(conn: &Connection, _: &Config, ctx: &Context, id: Uuid, fields: &Fields) -> Result<Subnet> {
        subnets::update(conn, ctx, id, fields)
    }

    fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
        subnets::delete(conn, ctx, id)
    }

    fn view(conn: &Connection, _: &Config, _: &Context, rows: Vec<Subnet>) -> Result<Vec<View>> {
        let (shared, external) = subnets::on_open_networks(conn)?;
        Ok(rows
            .into_iter()
            .map(|subnet| {
                let mut view = resource::common(&subnet.meta);
                view.extend(resource::object(json!({
                    "network_id": subnet.network_id,
                    "ip_version": subnet.ip_version(),
                    "cidr": subnet.cidr,
                    "gateway_ip": subnet.gateway_ip,
                    "enable_dhcp": subnet.enable_dhcp,
                    "allocation_pools": subnet.pools,
                    "dns_nameservers": subnet.dns_nameservers,
                    "host_routes": subnet.host_routes,
                    "ipv6_ra_mode": subnet.ipv6_ra_mode.map(Ipv6Mode::name),
                    "ipv6_address_mode": subnet.ipv6_address_mode.map(Ipv6Mode::name),
                    "subnetpool_id": subnet.subnet_pool_id,
                    "shared": shared.contains(&subnet.network_id),
                    "router:external": external.contains(&subnet.network_id),
                })));
                view
            })
            .collect())
    }
}

fn pool(value: &Value) -> Result<Pool> {
    let part = Attributes::part("allocation_pools", value, &["start", "end"])?;
    match (part.address("start")?, part.address("end")?) {
        (Some(start), Some(end)) => Ok(Pool { start, end }),
        _ => Err(wrong("allocation_pools", "a pool has a start and an end")),
    }
}

/// A `{"destination", "nexthop"}`.
pub(super) fn route(attribute: &str, value: &Value) -> Result<HostRoute> {
    let part = Attributes::part(attribute, value, &["destination", "nexthop"])?;
    match (part.raw("destination"), part.address("nexthop")?) {
        (Some(destination), Some(nexthop)) => Ok(HostRoute {
            destination: prefix(attribute, destination)?,
            nexthop,
        }),
        _ => Err(wrong(attribute, "a route has a destination and a nexthop")),
    }
}
