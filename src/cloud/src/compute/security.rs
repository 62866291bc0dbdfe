//! Security groups as Nova's older API shows them: a window on the network room's groups.

use ipnet::IpNet;
use model::net::Direction;
use rusqlite::Connection;
use serde_json::{Value, json};
use uuid::Uuid;

use super::servers::find;
use crate::error::Kind;
use crate::network::security_groups::{self as groups, Fields};
use crate::network::security_rules::{self as rules, Ethertype, Rule};
use crate::network::{self, Where, ports};
use crate::{Cloud, Context, Error, Result};

/// A group.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[allow(missing_docs)]
pub struct SecurityGroup {
    pub id: Uuid,
    pub name: String,
    pub description: String,
    pub tenant_id: String,
    pub rules: Vec<Value>,
}

/// A rule of it: what comes in.
fn rule_view(conn: &Connection, rule: &Rule) -> Result<Value> {
    let ports = |protocol: &str| match protocol {
        "tcp" | "udp" => (json!(1), json!(65_535)),
        _ => (json!(-1), json!(-1)),
    };
    let (from, to) = match (&rule.protocol, rule.port_min, rule.port_max) {
        (Some(protocol), None, None) => ports(protocol),
        (_, min, max) => (json!(min), json!(max)),
    };
    let mut group = json!({});
    let mut range = json!({});
    if let Some(id) = rule.remote_group_id {
        let mut query = conn.prepare_cached("SELECT name, project_id FROM security_groups WHERE id = ?1")?;
        let mut found = query.query([id.to_string()])?;
        if let Some(row) = found.next()? {
            group = json!({"name": row.get::<_, String>(0)?, "tenant_id": row.get::<_, String>(1)?});
        }
    } else {
        let any = if rule.ethertype == Ethertype::V4 {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        range = json!({"cidr": rule.remote_prefix.map_or_else(|| any.to_owned(), |cidr| cidr.to_string())});
    }
    Ok(json!({
        "id": rule.meta.id,
        "parent_group_id": rule.group_id,
        "ip_protocol": rule.protocol,
        "from_port": from,
        "to_port": to,
        "group": group,
        "ip_range": range,
    }))
}

fn view(conn: &Connection, group: groups::SecurityGroup) -> Result<SecurityGroup> {
    let ingress = group
        .rules
        .iter()
        .filter(|rule| rule.direction == Direction::Ingress);
    Ok(SecurityGroup {
        id: group.meta.id,
        rules: ingress.map(|rule| rule_view(conn, rule)).collect::<Result<_>>()?,
        name: group.meta.name,
        description: group.meta.description,
        tenant_id: group.meta.project_id,
    })
}

/// An id in a path.
fn parse(kind: &'static str, id: &str) -> Result<Uuid> {
    id.parse().map_err(|_| Error::not_found(kind, id))
}

/// What contradicts the network room's rules is a bad request to Nova's clients.
fn as_nova(error: Error) -> Error {
    match error.kind() {
        Some(Kind::Conflict) => Error::BadRequest(error.to_string()),
        Some(Kind::QuotaExceeded) => Error::QuotaExceeded(error.to_string()),
        _ => error,
    }
}

async fn write<T, F>(cloud: &Cloud, ctx: &Context, f: F) -> Result<T>
where
    F: Fn(&Connection, &Context) -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    let ctx = ctx.clone();
    let actor = ctx.user_id.clone();
    cloud.store.write(&actor, move |conn| f(conn, &ctx)).await
}

/// The project's groups, or all projects' for admins.
pub async fn list(cloud: &Cloud, ctx: &Context, all: bool) -> Result<Vec<SecurityGroup>> {
    let project = ctx.project()?.to_owned();
    // A write: a project's default group is made when it is first asked for.
    write(cloud, ctx, move |conn, ctx| {
        groups::ensure_default(conn, &project)?;
        let which = if all && ctx.is_admin() {
            Where(Vec::new())
        } else {
            Where(vec![("project_id", vec![project.clone()])])
        };
        let found = groups::list(conn, ctx, &which)?;
        found.into_iter().map(|group| view(conn, group)).collect()
    })
    .await
}

/// One group.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<SecurityGroup> {
    ctx.require("security_groups", "list")?;
    let (ctx, id) = (ctx.clone(), parse("Security group", id)?);
    cloud
        .store
        .read(move |conn| view(conn, groups::get(conn, &ctx, id)?))
        .await
}

/// Makes a group.
pub async fn create(
    cloud: &Cloud,
    ctx: &Context,
    name: String,
    description: String,
) -> Result<SecurityGroup> {
    write(cloud, ctx, move |conn, ctx| {
        let fields = Fields {
            name: Some(name.clone()),
            description: Some(description.clone()),
            ..Fields::default()
        };
        view(conn, groups::create(conn, ctx, &fields).map_err(as_nova)?)
    })
    .await
}

/// Names and describes a group anew.
pub async fn update(
    cloud: &Cloud,
    ctx: &Context,
    id: &str,
    name: String,
    description: String,
) -> Result<SecurityGroup> {
    let id = parse("Security group", id)?;
    write(cloud, ctx, move |conn, ctx| {
        let fields = Fields {
            name: Some(name.clone()),
            description: Some(description.clone()),
            ..Fields::default()
        };
        let group = groups::update(conn, ctx, id, &fields).map_err(as_nova)?;
        view(conn, groups::get(conn, ctx, group.meta.id)?)
    })
    .await
}

/// Removes a group.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str) -> Result<()> {
    let id = parse("Security group", id)?;
    write(cloud, ctx, move |conn, ctx| {
        groups::delete(conn, ctx, id).map_err(as_nova)
    })
    .await
}

/// A rule that lets something in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NewRule {
    pub group: Uuid,
    pub protocol: Option<String>,
    pub ports: Option<(u16, u16)>,
    pub cidr: Option<IpNet>,
    pub remote_group: Option<Uuid>,
}

/// Adds a rule.
pub async fn create_rule(cloud: &Cloud, ctx: &Context, new: NewRule) -> Result<Value> {
    write(cloud, ctx, move |conn, ctx| {
        let ethertype = match new.cidr {
            Some(cidr) if cidr.network().is_ipv6() => Ethertype::V6,
            _ => Ethertype::V4,
        };
        let fields = rules::Fields {
            group_id: Some(new.group),
            direction: Some(Direction::Ingress),
            ethertype: Some(ethertype),
            protocol: new.protocol.clone(),
            port_min: new.ports.map(|p| p.0),
            port_max: new.ports.map(|p| p.1),
            remote_prefix: new.cidr,
            remote_group_id: new.remote_group,
            ..rules::Fields::default()
        };
        rule_view(conn, &rules::create(conn, ctx, &fields).map_err(as_nova)?)
    })
    .await
}

/// Removes a rule.
pub async fn delete_rule(cloud: &Cloud, ctx: &Context, id: &str) -> Result<()> {
    let id = parse("Security group rule", id)?;
    write(cloud, ctx, move |conn, ctx| rules::delete(conn, ctx, id)).await
}

/// The groups of a server's ports.
pub async fn of_server(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Vec<SecurityGroup>> {
    ctx.require("servers", "show")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .read(move |conn| {
            let server = find(conn, &ctx, &id)?;
            let mut found = Vec::new();
            for (id, _) in ports::security_groups_of(conn, server.id)? {
                found.push(view(conn, network::security_groups::get(conn, &ctx, id)?)?);
            }
            Ok(found)
        })
        .await
}
