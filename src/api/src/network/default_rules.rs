//! Rules that new security groups begin with, on the wire.

use axum::Router;
use axum::routing::get;
use cloud::network::default_rules::{self, DefaultRule, Fields};
use cloud::network::{Connection, Meta, Where};
use cloud::{Config, Context, Error, Result};
use serde_json::{Value, json};
use uuid::Uuid;

use super::attributes::Attributes;
use super::query::View;
use super::resource::{self, Kind};
use super::security_rules::{self, SecurityRules};
use crate::AppState;

pub(super) struct DefaultRules;

impl Kind for DefaultRules {
    const ONE: &'static str = "default_security_group_rule";
    const MANY: &'static str = "default_security_group_rules";
    const NOT_FOUND: &'static str = "DefaultSecurityGroupRuleNotFound";
    const ATTRIBUTES: &'static [&'static str] = &[
        "id",
        "description",
        "revision_number",
        "created_at",
        "updated_at",
        "direction",
        "ethertype",
        "protocol",
        "port_range_min",
        "port_range_max",
        "remote_ip_prefix",
        "remote_group_id",
        "remote_address_group_id",
        "used_in_default_sg",
        "used_in_non_default_sg",
    ];
    const POST: &'static [&'static str] = &[
        "description",
        "project_id",
        "tenant_id",
        "direction",
        "ethertype",
        "protocol",
        "port_range_min",
        "port_range_max",
        "remote_ip_prefix",
        "remote_group_id",
        "remote_address_group_id",
        "used_in_default_sg",
        "used_in_non_default_sg",
    ];
    const PUT: &'static [&'static str] = &[];
    const COLUMNS: &'static [(&'static str, &'static str)] = &[("id", "id"), ("direction", "direction")];
    type Row = DefaultRule;
    type Fields = Fields;

    fn meta(row: &Self::Row) -> &Meta {
        &row.meta
    }

    fn parse(body: &Attributes<'_>) -> Result<Fields> {
        // What both kinds of rules share reads one way.
        let mut remote = None;
        if let Some(text) = body.text_or_null("remote_group_id", 255)? {
            let parsed = text.parse().map_err(|_| {
                resource::id_of::<super::security_groups::SecurityGroups>(&text)
                    .err()
                    .unwrap_or_else(|| Error::BadRequest("remote_group_id is no id".into()))
            });
            remote = Some(parsed?);
        }
        let shared = SecurityRules::parse(&body.without("remote_group_id"))?;
        Ok(Fields {
            description: shared.description,
            direction: shared.direction,
            ethertype: shared.ethertype,
            protocol: shared.protocol,
            port_min: shared.port_min,
            port_max: shared.port_max,
            remote_prefix: shared.remote_prefix,
            remote,
            in_default: body.flag("used_in_default_sg")?,
            in_custom: body.flag("used_in_non_default_sg")?,
        })
    }

    fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<DefaultRule>> {
        default_rules::list(conn, ctx, which)
    }

    fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<DefaultRule> {
        default_rules::get(conn, ctx, id)
    }

    fn create(conn: &Connection, _: &Config, ctx: &Context, fields: &Fields) -> Result<DefaultRule> {
        default_rules::create(conn, ctx, fields)
    }

    /// A rule does not change: the route is not there, and nothing can be said in it.
    fn update(conn: &Connection, _: &Config, ctx: &Context, id: Uuid, _: &Fields) -> Result<DefaultRule> {
        default_rules::get(conn, ctx, id)
    }

    fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
        default_rules::delete(conn, ctx, id)
    }

    fn view(_: &Connection, _: &Config, _: &Context, rows: Vec<DefaultRule>) -> Result<Vec<View>> {
        Ok(rows
            .iter()
            .map(|rule| {
                let mut view = security_rules::view(&rule.in_group("", Uuid::nil()), false);
                view.extend(resource::common(&rule.meta));
                view.retain(|key, _| Self::ATTRIBUTES.contains(&key.as_str()));
                let remote = rule.remote.map(|remote| remote.to_string());
                view.insert("remote_group_id".into(), remote.map_or(Value::Null, Value::from));
                view.insert("used_in_default_sg".into(), json!(rule.in_default));
                view.insert("used_in_non_default_sg".into(), json!(rule.in_custom));
                view
            })
            .collect())
    }
}

pub(super) fn routes() -> Router<AppState> {
    const PATH: &str = "/default-security-group-rules";
    Router::new()
        .route(
            PATH,
            get(resource::list::<DefaultRules>).post(resource::create::<DefaultRules>),
        )
        .route(
            &format!("{PATH}/{{id}}"),
            get(resource::show::<DefaultRules>).delete(resource::delete::<DefaultRules>),
        )
}
