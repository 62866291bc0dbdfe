//! Rules of security groups on the wire.

use cloud::network::security_groups;
use cloud::network::security_rules::{self, Direction, Ethertype, Fields, Rule, direction_name};
use cloud::network::{Connection, Meta, Where};
use cloud::{Config, Context, Error, Result};
use serde_json::{Value, json};
use uuid::Uuid;

use super::attributes::{Attributes, prefix, wrong};
use super::query::View;
use super::resource::{self, Kind, id_of};
use super::security_groups::SecurityGroups;

pub(super) struct SecurityRules;

impl Kind for SecurityRules {
    const ONE: &'static str = "security_group_rule";
    const MANY: &'static str = "security_group_rules";
    const NOT_FOUND: &'static str = "SecurityGroupRuleNotFound";
    const ATTRIBUTES: &'static [&'static str] = &[
        "id",
        "description",
        "project_id",
        "tenant_id",
        "revision_number",
        "created_at",
        "updated_at",
        "security_group_id",
        "direction",
        "ethertype",
        "protocol",
        "port_range_min",
        "port_range_max",
        "remote_ip_prefix",
        "remote_group_id",
        "remote_address_group_id",
        "normalized_cidr",
        "belongs_to_default_sg",
    ];
    const POST: &'static [&'static str] = &[
        "description",
        "project_id",
        "tenant_id",
        "security_group_id",
        "direction",
        "ethertype",
        "protocol",
        "port_range_min",
        "port_range_max",
        "remote_ip_prefix",
        "remote_group_id",
        "remote_address_group_id",
    ];
    const PUT: &'static [&'static str] = &["description"];
    const COLUMNS: &'static [(&'static str, &'static str)] = &[
        ("id", "id"),
        ("project_id", "project_id"),
        ("security_group_id", "group_id"),
        ("direction", "direction"),
    ];
    type Row = Rule;
    type Fields = Fields;

    fn meta(row: &Self::Row) -> &Meta {
        &row.meta
    }

    fn parse(body: &Attributes<'_>) -> Result<Fields> {
        let direction = match body.text("direction", 16)?.as_deref() {
            None => None,
            Some("ingress") => Some(Direction::Ingress),
            Some("egress") => Some(Direction::Egress),
            Some(other) => {
                return Err(wrong(
                    "direction",
                    format_args!("'{other}' is not in ['ingress', 'egress']"),
                ));
            }
        };
        let ethertype = match body.text_or_null("ethertype", 16)? {
            None => None,
            Some(name) => Some(Ethertype::named(&name).ok_or_else(|| Error::Named {
                name: "SecurityGroupRuleInvalidEtherType",
                kind: cloud::error::Kind::BadRequest,
                message: format!(
                    "Security group rule for ethertype '{name}' not supported. Allowed values are ['IPv4', 'IPv6']."
                ),
            })?),
        };
        let protocol = match body.raw("protocol") {
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => body.text_or_null("protocol", 40)?.filter(|name| !name.is_empty()),
        };
        if let Some(group) = body.text_or_null("remote_address_group_id", 64)? {
            return Err(Error::Named {
                name: "AddressGroupNotFound",
                kind: cloud::error::Kind::NotFound,
                message: format!("Address group {group} could not be found."),
            });
        }
        Ok(Fields {
            project_id: body.project()?,
            description: body.text_or_null("description", 255)?,
            group_id: group(body, "security_group_id")?,
            direction,
            ethertype,
            protocol,
            port_min: port(body, "port_range_min")?,
            port_max: port(body, "port_range_max")?,
            remote_prefix: match body.raw("remote_ip_prefix") {
                None | Some(Value::Null) => None,
                Some(Value::String(text)) if text.is_empty() => None,
                Some(value) => Some(prefix("remote_ip_prefix", value)?),
            },
            remote_group_id: group(body, "remote_group_id")?,
        })
    }

    fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<Rule>> {
        security_rules::list(conn, ctx, which)
    }

    fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Rule> {
        ctx.require("security_group_rules", "list")?;
        security_rules::get(conn, ctx, id)
    }

    fn create(conn: &Connection, _: &Config, ctx: &Context, fields: &Fields) -> Result<Rule> {
        security_rules::create(conn, ctx, fields)
    }

    fn update(conn: &Connection, _: &Config, ctx: &Context, id: Uuid, fields: &Fields) -> Result<Rule> {
        security_rules::describe(conn, ctx, id, fields)
    }

    fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
        security_rules::delete(conn, ctx, id)
    }

    fn view(conn: &Connection, _: &Config, _: &Context, rows: Vec<Rule>) -> Result<Vec<View>> {
        let defaults = security_groups::default_ids(conn)?;
        Ok(rows
            .iter()
            .map(|rule| view(rule, defaults.contains(&rule.group_id)))
            .collect())
    }
}

/// A group: what is no id at all is no group, as Neutron has it.
fn group(body: &Attributes<'_>, name: &str) -> Result<Option<Uuid>> {
    body.text_or_null(name, 255)?
        .map(|id| id_of::<SecurityGroups>(&id))
        .transpose()
}

fn port(body: &Attributes<'_>, name: &str) -> Result<Option<u16>> {
    body.number(name).map_err(|_| {
        let value = body.raw(name).map(Value::to_string).unwrap_or_default();
        Error::Named {
            name: "SecurityGroupInvalidPortValue",
            kind: cloud::error::Kind::BadRequest,
            message: format!(
                "Invalid value for port {}",
                value.chars().take(64).collect::<String>()
            ),
        }
    })
}

pub(super) fn view(rule: &Rule, of_default: bool) -> View {
    let mut view = resource::common(&rule.meta);
    view.remove("name");
    view.remove("tags");
    view.extend(resource::object(json!({
        "security_group_id": rule.group_id,
        "direction": direction_name(rule.direction),
        "ethertype": rule.ethertype.name(),
        "protocol": rule.protocol,
        "port_range_min": rule.port_min,
        "port_range_max": rule.port_max,
        "remote_ip_prefix": rule.remote_prefix,
        "remote_group_id": rule.remote_group_id,
        "remote_address_group_id": Value::Null,
        "normalized_cidr": rule.remote_prefix.map(|prefix| prefix.trunc()),
        "belongs_to_default_sg": of_default,
    })));
    view
}
