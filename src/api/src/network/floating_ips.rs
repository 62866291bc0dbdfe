//! Floating IPs on the wire.

use cloud::network::floating_ips::{self, Fields, FloatingIp};
use cloud::network::{Connection, Meta, Where};
use cloud::{Config, Context, Result};
use serde_json::{Value, json};
use uuid::Uuid;

use super::attributes::Attributes;
use super::query::View;
use super::resource::{self, Kind};

pub(super) struct FloatingIps;

impl Kind for FloatingIps {
    const ONE: &'static str = "floatingip";
    const MANY: &'static str = "floatingips";
    const NOT_FOUND: &'static str = "FloatingIPNotFound";
    const ATTRIBUTES: &'static [&'static str] = &[
        "id",
        "description",
        "project_id",
        "tenant_id",
        "tags",
        "revision_number",
        "created_at",
        "updated_at",
        "floating_network_id",
        "floating_ip_address",
        "router_id",
        "port_id",
        "fixed_ip_address",
        "status",
        "port_details",
        "dns_name",
        "dns_domain",
    ];
    const POST: &'static [&'static str] = &[
        "description",
        "project_id",
        "tenant_id",
        "floating_network_id",
        "floating_ip_address",
        "subnet_id",
        "port_id",
        "fixed_ip_address",
        "dns_name",
        "dns_domain",
    ];
    const PUT: &'static [&'static str] = &["description", "port_id", "fixed_ip_address"];
    const COLUMNS: &'static [(&'static str, &'static str)] = &[
        ("id", "id"),
        ("project_id", "project_id"),
        ("port_id", "port_id"),
        ("floating_ip_address", "address"),
        ("floating_network_id", "network_id"),
    ];
    type Row = FloatingIp;
    type Fields = Fields;

    fn meta(row: &Self::Row) -> &Meta {
        &row.meta
    }

    fn parse(body: &Attributes<'_>) -> Result<Fields> {
        Ok(Fields {
            project_id: body.project()?,
            description: body.text("description", 255)?,
            network_id: body.uuid("floating_network_id")?,
            subnet_id: body.uuid("subnet_id")?,
            address: body.address("floating_ip_address")?,
            port_id: body.settable("port_id", "UUID")?,
            fixed_ip: body.settable("fixed_ip_address", "IP address")?,
            dns_name: body.text("dns_name", 255)?,
            dns_domain: body.text("dns_domain", 255)?,
        })
    }

    fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<FloatingIp>> {
        floating_ips::list(conn, ctx, which)
    }

    fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<FloatingIp> {
        ctx.require("floatingips", "list")?;
        floating_ips::get(conn, ctx, id)
    }

    fn create(conn: &Connection, _: &Config, ctx: &Context, fields: &Fields) -> Result<FloatingIp> {
        floating_ips::create(conn, ctx, fields)
    }

    fn update(conn: &Connection, _: &Config, ctx: &Context, id: Uuid, fields: &Fields) -> Result<FloatingIp> {
        floating_ips::update(conn, ctx, id, fields)
    }

    fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
        floating_ips::delete(conn, ctx, id)
    }

    fn view(conn: &Connection, _: &Config, _: &Context, rows: Vec<FloatingIp>) -> Result<Vec<View>> {
        rows.into_iter()
            .map(|floating| {
                let details = floating_ips::target(conn, &floating)?.map(|port| {
                    json!({
                        "name": port.meta.name,
                        "network_id": port.network_id,
                        "mac_address": port.mac,
                        "admin_state_up": port.admin_state_up,
                        "status": port.status(),
                        "device_id": port.device_id,
                        "device_owner": port.device_owner,
                    })
                });
                let mut view = resource::common(&floating.meta);
                view.remove("name");
                view.extend(resource::object(json!({
                    "floating_network_id": floating.network_id,
                    "floating_ip_address": floating.address,
                    "router_id": floating.router_id,
                    "port_id": floating.port_id,
                    "fixed_ip_address": floating.fixed_ip,
                    "status": floating.status(),
                    "port_details": details.unwrap_or(Value::Null),
                    "dns_name": floating.dns_name,
                    "dns_domain": floating.dns_domain,
                })));
                Ok(view)
            })
            .collect()
    }
}
