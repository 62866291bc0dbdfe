//! Networks on the wire.

use cloud::network::networks::{self, Fields, Network};
use cloud::network::{Connection, Meta, Where, rbac, subnet_pools, subnets};
use cloud::{Config, Context, Result};
use serde_json::{Value, json};
use uuid::Uuid;

use super::attributes::{Attributes, parse};
use super::query::View;
use super::resource::{self, Kind};

pub(super) struct Networks;

impl Kind for Networks {
    const ONE: &'static str = "network";
    const MANY: &'static str = "networks";
    const NOT_FOUND: &'static str = "NetworkNotFound";
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
        "admin_state_up",
        "status",
        "subnets",
        "shared",
        "router:external",
        "is_default",
        "mtu",
        "port_security_enabled",
        "dns_domain",
        "availability_zones",
        "availability_zone_hints",
        "ipv4_address_scope",
        "ipv6_address_scope",
        "provider:network_type",
        "provider:physical_network",
        "provider:segmentation_id",
    ];
    const POST: &'static [&'static str] = &[
        "name",
        "description",
        "project_id",
        "tenant_id",
        "admin_state_up",
        "shared",
        "router:external",
        "is_default",
        "mtu",
        "port_security_enabled",
        "dns_domain",
        "availability_zone_hints",
        "provider:network_type",
        "provider:physical_network",
        "provider:segmentation_id",
    ];
    const PUT: &'static [&'static str] = &[
        "name",
        "description",
        "admin_state_up",
        "shared",
        "router:external",
        "is_default",
        "mtu",
        "port_security_enabled",
        "dns_domain",
        "provider:network_type",
        "provider:physical_network",
        "provider:segmentation_id",
    ];
    const COLUMNS: &'static [(&'static str, &'static str)] =
        &[("id", "id"), ("name", "name"), ("project_id", "project_id")];
    type Row = Network;
    type Fields = Fields;

    fn meta(row: &Self::Row) -> &Meta {
        &row.meta
    }

    fn parse(body: &Attributes<'_>) -> Result<Fields> {
        Ok(Fields {
            project_id: body.project()?,
            name: body.text("name", 255)?,
            description: body.text("description", 255)?,
            admin_state_up: body.flag("admin_state_up")?,
            shared: body.flag("shared")?,
            external: body.flag("router:external")?,
            is_default: body.flag("is_default")?,
            mtu: body.number("mtu")?,
            port_security_enabled: body.flag("port_security_enabled")?,
            dns_domain: body.text("dns_domain", 255)?,
            zone_hints: body.list("availability_zone_hints", |zone| {
                parse("availability_zone_hints", zone, "string")
            })?,
            provider_type: body.text_or_null("provider:network_type", 32)?,
            provider_physical: body.text_or_null("provider:physical_network", 64)?,
            segmentation_id: body.number("provider:segmentation_id")?,
        })
    }

    fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<Network>> {
        networks::list(conn, ctx, which)
    }

    fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Network> {
        ctx.require("networks", "list")?;
        networks::get(conn, ctx, id)
    }

    fn create(conn: &Connection, config: &Config, ctx: &Context, fields: &Fields) -> Result<Network> {
        networks::create(conn, config, ctx, fields)
    }

    fn update(
        conn: &Connection,
        config: &Config,
        ctx: &Context,
        id: Uuid,
        fields: &Fields,
    ) -> Result<Network> {
        networks::update(conn, config, ctx, id, fields)
    }

    fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
        networks::delete(conn, ctx, id)
    }

    fn view(conn: &Connection, config: &Config, ctx: &Context, rows: Vec<Network>) -> Result<Vec<View>> {
        let mut subnets = subnets::ids_by_network(conn)?;
        let scopes = subnet_pools::scopes(conn)?;
        let ours = rbac::shared_with(conn, ctx)?;
        Ok(rows
            .into_iter()
            .map(|network| {
                let mut view = resource::common(&network.meta);
                view.extend(resource::object(json!({
                    "admin_state_up": network.admin_state_up,
                    "status": "ACTIVE",
                    "subnets": subnets.remove(&network.meta.id).unwrap_or_default(),
                    "shared": network.shared || ours.contains(&network.meta.id),
                    "router:external": network.external,
                    "is_default": network.is_default,
                    "mtu": network.mtu,
                    "port_security_enabled": network.port_security_enabled,
                    "dns_domain": network.dns_domain,
                    "availability_zones": [config.availability_zone],
                    "availability_zone_hints": network.zone_hints,
                    "ipv4_address_scope": scopes.get(&(network.meta.id, 4)),
                    "ipv6_address_scope": scopes.get(&(network.meta.id, 6)),
                })));
                if ctx.is_admin() {
                    view.extend(resource::object(if network.uplink.is_empty() {
                        json!({
                            "provider:network_type": "geneve",
                            "provider:physical_network": Value::Null,
                            "provider:segmentation_id": network.vni,
                        })
                    } else {
                        json!({
                            "provider:network_type": "flat",
                            "provider:physical_network": network.uplink,
                            "provider:segmentation_id": Value::Null,
                        })
                    }));
                }
                view
            })
            .collect())
    }
}
