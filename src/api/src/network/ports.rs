//! Ports on the wire.

use cloud::network::ports::{self, AddressPair, DhcpOption, Fields, FixedIpRequest, PortRow};
use cloud::network::{Connection, Meta, Where};
use cloud::{Config, Context, Result};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::attributes::{Attributes, parse, prefix, wrong};
use super::query::View;
use super::resource::{self, Kind};

/// The domain of ports on networks that name none.
const DEFAULT_DOMAIN: &str = "openstacklocal.";

pub(super) struct Ports;

impl Kind for Ports {
    const ONE: &'static str = "port";
    const MANY: &'static str = "ports";
    const NOT_FOUND: &'static str = "PortNotFound";
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
        "mac_address",
        "fixed_ips",
        "admin_state_up",
        "status",
        "device_id",
        "device_owner",
        "security_groups",
        "allowed_address_pairs",
        "extra_dhcp_opts",
        "port_security_enabled",
        "dns_name",
        "dns_domain",
        "dns_assignment",
        "ip_allocation",
        "binding:vnic_type",
        "binding:host_id",
        "binding:profile",
        "binding:vif_type",
        "binding:vif_details",
    ];
    const MORE_FILTERS: &'static [&'static str] = &["ip_address", "subnet_id"];
    const POST: &'static [&'static str] = &[
        "name",
        "description",
        "project_id",
        "tenant_id",
        "network_id",
        "mac_address",
        "fixed_ips",
        "admin_state_up",
        "device_id",
        "device_owner",
        "security_groups",
        "allowed_address_pairs",
        "extra_dhcp_opts",
        "port_security_enabled",
        "dns_name",
        "binding:vnic_type",
        "binding:host_id",
        "binding:profile",
    ];
    const PUT: &'static [&'static str] = &[
        "name",
        "description",
        "mac_address",
        "fixed_ips",
        "admin_state_up",
        "device_id",
        "device_owner",
        "security_groups",
        "allowed_address_pairs",
        "extra_dhcp_opts",
        "port_security_enabled",
        "dns_name",
        "binding:vnic_type",
        "binding:host_id",
        "binding:profile",
    ];
    const COLUMNS: &'static [(&'static str, &'static str)] = &[
        ("id", "id"),
        ("name", "name"),
        ("project_id", "project_id"),
        ("network_id", "network_id"),
        ("device_id", "device_id"),
        ("device_owner", "device_owner"),
    ];
    type Row = PortRow;
    type Fields = Fields;

    fn meta(row: &Self::Row) -> &Meta {
        &row.meta
    }

    fn parse(body: &Attributes<'_>) -> Result<Fields> {
        if let Some(kind) = body.text_or_null("binding:vnic_type", 64)?
            && kind != "normal"
        {
            return Err(wrong(
                "binding:vnic_type",
                format_args!("'{kind}' is not in ['normal']"),
            ));
        }
        Ok(Fields {
            project_id: body.project()?,
            network_id: body.uuid("network_id")?,
            name: body.text("name", 255)?,
            description: body.text("description", 255)?,
            admin_state_up: body.flag("admin_state_up")?,
            mac: body.parsed("mac_address", "MAC address")?,
            fixed_ips: body.list("fixed_ips", fixed_ip)?,
            security_groups: body.list("security_groups", |value| parse("security_groups", value, "UUID"))?,
            address_pairs: body.list("allowed_address_pairs", pair)?,
            device_id: body.text("device_id", 255)?,
            device_owner: body.text("device_owner", 255)?,
            port_security_enabled: body.flag("port_security_enabled")?,
            dns_name: body.text("dns_name", 255)?,
            dhcp_options: body.list("extra_dhcp_opts", dhcp_option)?,
            host: body.text_or_null("binding:host_id", 255)?,
            profile: match body.raw("binding:profile") {
                None => None,
                Some(Value::Null) => Some(Map::new()),
                Some(Value::Object(profile)) => Some(profile.clone()),
                Some(_) => return Err(wrong("binding:profile", "it is not a dictionary")),
            },
        })
    }

    fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<PortRow>> {
        ports::list(conn, ctx, which)
    }

    fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<PortRow> {
        ctx.require("ports", "list")?;
        ports::get(conn, ctx, id)
    }

    fn create(conn: &Connection, _: &Config, ctx: &Context, fields: &Fields) -> Result<PortRow> {
        ports::create(conn, ctx, fields)
    }

    fn update(conn: &Connection, _: &Config, ctx: &Context, id: Uuid, fields: &Fields) -> Result<PortRow> {
        ports::update(conn, ctx, id, fields)
    }

    fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
        ports::delete(conn, ctx, id)
    }

    fn view(_: &Connection, config: &Config, ctx: &Context, rows: Vec<PortRow>) -> Result<Vec<View>> {
        Ok(rows.into_iter().map(|port| view(config, ctx, &port)).collect())
    }
}

/// `[{"subnet_id", "ip_address"}]` of a port or a router's gateway.
pub(super) fn fixed_ips(addresses: &[cloud::network::FixedIp]) -> Value {
    addresses
        .iter()
        .map(|a| json!({"subnet_id": a.subnet, "ip_address": a.ip}))
        .collect()
}

fn view(config: &Config, ctx: &Context, port: &PortRow) -> View {
    let domain = if port.dns_domain.is_empty() {
        DEFAULT_DOMAIN
    } else {
        &port.dns_domain
    };
    let assignment: Vec<Value> = port
        .fixed_ips
        .iter()
        .map(|address| {
            let by_address = || format!("host-{}", address.ip.to_string().replace(['.', ':'], "-"));
            let hostname = Some(port.dns_name.clone())
                .filter(|name| !name.is_empty())
                .unwrap_or_else(by_address);
            let fqdn = if hostname.ends_with('.') {
                hostname.clone()
            } else {
                format!("{hostname}.{}.", domain.trim_end_matches('.'))
            };
            json!({"ip_address": address.ip, "hostname": hostname, "fqdn": fqdn})
        })
        .collect();
    let mut view = resource::common(&port.meta);
    view.extend(resource::object(json!({
        "network_id": port.network_id,
        "mac_address": port.mac,
        "fixed_ips": fixed_ips(&port.fixed_ips),
        "admin_state_up": port.admin_state_up,
        "status": port.status(),
        "device_id": port.device_id,
        "device_owner": port.device_owner,
        "security_groups": port.security_groups,
        "allowed_address_pairs": port.address_pairs,
        "extra_dhcp_opts": port.dhcp_options,
        "port_security_enabled": port.port_security_enabled,
        "dns_name": port.dns_name,
        "dns_domain": "",
        "dns_assignment": assignment,
        "ip_allocation": if port.fixed_ips.is_empty() { "none" } else { "immediate" },
        "binding:vnic_type": "normal",
    })));
    if ctx.is_admin() {
        let host = match (port.server, port.host.as_str()) {
            (Some(_), "") => config.node.as_str(),
            (_, host) => host,
        };
        let (kind, details) = match (port.server, host) {
            (Some(_), _) => ("vhostuser", json!({"port_filter": true})),
            (None, "") => ("unbound", json!({})),
            (None, _) => ("ovs", json!({"port_filter": true})),
        };
        view.extend(resource::object(json!({
            "binding:host_id": host,
            "binding:profile": port.profile,
            "binding:vif_type": kind,
            "binding:vif_details": details,
        })));
    }
    view
}

/// A `{"subnet_id", "ip_address"}`, either of which may be missing.
pub(super) fn fixed_ip(value: &Value) -> Result<FixedIpRequest> {
    let part = Attributes::part("fixed_ips", value, &["subnet_id", "ip_address"])?;
    Ok(FixedIpRequest {
        subnet: part.uuid("subnet_id")?,
        ip: part.address("ip_address")?,
    })
}

fn pair(value: &Value) -> Result<AddressPair> {
    let part = Attributes::part(
        "allowed_address_pairs",
        value,
        &["ip_address", "mac_address", "active"],
    )?;
    let address = part.raw("ip_address").ok_or_else(|| {
        let message = "AllowedAddressPair must contain ip_address";
        cloud::Error::Named {
            name: "AllowedAddressPairsMissingIP",
            kind: cloud::error::Kind::BadRequest,
            message: message.into(),
        }
    })?;
    prefix("allowed_address_pairs", address)?;
    Ok(AddressPair {
        ip_address: address.as_str().unwrap_or_default().to_owned(),
        mac_address: part.parsed("mac_address", "MAC address")?,
    })
}

fn dhcp_option(value: &Value) -> Result<DhcpOption> {
    let part = Attributes::part("extra_dhcp_opts", value, &["opt_name", "opt_value", "ip_version"])?;
    let opt_name = part.text("opt_name", 64)?.filter(|name| !name.is_empty());
    let ip_version: u8 = part.number("ip_version")?.unwrap_or(4);
    if ip_version != 4 && ip_version != 6 {
        return Err(wrong("extra_dhcp_opts", "ip_version is not in [4, 6]"));
    }
    Ok(DhcpOption {
        opt_name: opt_name.ok_or_else(|| wrong("extra_dhcp_opts", "an option has an opt_name"))?,
        opt_value: part.text_or_null("opt_value", 255)?,
        ip_version,
    })
}
