//! `os-security-groups` and `os-security-group-rules`: up to 2.35, a window on the network service's groups.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use cloud::Error;
use cloud::compute::security::{self, NewRule};
use serde_json::{Value, json};

use super::check::{Object, integer_of, invalid, uuid_of};
use super::microversion::Microversion;
use super::{Answer, Failure, empty, gone, limit, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

fn there(version: Microversion) -> Result<(), Failure> {
    if version >= Microversion::NO_NETWORK_PROXIES {
        Err(gone())
    } else {
        Ok(())
    }
}

pub(super) async fn index(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    there(version)?;
    let all = pairs.flag("all_tenants")?.unwrap_or(false);
    let offset = pairs
        .number("offset")?
        .map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let mut groups = security::list(&app.cloud, &ctx, all).await?;
    groups.sort_by(|a, b| (&a.tenant_id, &a.name, a.id).cmp(&(&b.tenant_id, &b.name, b.id)));
    let page: Vec<_> = groups.into_iter().skip(offset).take(limit(&pairs)?).collect();
    ok(json!({"security_groups": page}))
}

pub(super) async fn show(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    there(version)?;
    ok(json!({"security_group": security::show(&app.cloud, &ctx, &id).await?}))
}

/// Name and description: both are needed.
fn names(body: &Value) -> Result<(String, String), Error> {
    let group = Object::only(body, "security_group")?;
    group.allow(&["name", "description"])?;
    let text = |key: &str, least: usize| -> Result<String, Error> {
        let value = group.required(key)?;
        let text = super::check::string_of(&group.path(key), value, 0, 255)?;
        if text.trim().len() < least {
            return Err(invalid(&group.path(key), value, "It cannot be empty"));
        }
        Ok(text.to_owned())
    };
    Ok((text("name", 1)?, text("description", 0)?))
}

pub(super) async fn create(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Json(body): Json<Value>,
) -> Answer {
    there(version)?;
    let (name, description) = names(&body)?;
    let group = security::create(&app.cloud, &ctx, name, description).await?;
    ok(json!({"security_group": group}))
}

pub(super) async fn update(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    there(version)?;
    let (name, description) = names(&body)?;
    let group = security::update(&app.cloud, &ctx, &id, name, description).await?;
    ok(json!({"security_group": group}))
}

pub(super) async fn delete(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    there(version)?;
    security::delete(&app.cloud, &ctx, &id).await?;
    empty(StatusCode::ACCEPTED)
}

fn rule(body: &Value) -> Result<NewRule, Error> {
    let rule = Object::only(body, "security_group_rule")?;
    rule.allow(&[
        "parent_group_id",
        "ip_protocol",
        "from_port",
        "to_port",
        "cidr",
        "group_id",
    ])?;
    let parent = rule.required("parent_group_id")?;
    let group = uuid_of(&rule.path("parent_group_id"), parent)?;
    let protocol = match rule.get("ip_protocol").filter(|v| !v.is_null()) {
        None => None,
        Some(value) => {
            let text =
                super::check::string_of(&rule.path("ip_protocol"), value, 1, 255)?.to_ascii_lowercase();
            if !["tcp", "udp", "icmp", "-1"].contains(&text.as_str()) {
                return Err(invalid(
                    &rule.path("ip_protocol"),
                    value,
                    "It is none of tcp, udp and icmp",
                ));
            }
            Some(text).filter(|t| t != "-1")
        }
    };
    let port = |key: &str| match rule.get(key).filter(|v| !v.is_null()) {
        None => Ok(None),
        Some(value) => integer_of(&rule.path(key), value, -1, 65_535).map(Some),
    };
    let ports = match (port("from_port")?, port("to_port")?) {
        (None | Some(-1), None | Some(-1)) => None,
        (Some(from), Some(to)) => {
            let number =
                |n: i64| u16::try_from(n).map_err(|_| Error::BadRequest("Invalid port range.".into()));
            Some((number(from)?, number(to)?))
        }
        _ => return Err(Error::BadRequest("Both from_port and to_port are needed.".into())),
    };
    let remote_group = match rule.get("group_id").filter(|v| !v.is_null()) {
        None => None,
        Some(value) => Some(uuid_of(&rule.path("group_id"), value)?),
    };
    let cidr = match rule
        .get("cidr")
        .filter(|v| !v.is_null() && v.as_str() != Some(""))
    {
        None => None,
        Some(value) => {
            let cidr = value.as_str().and_then(|text| text.parse().ok());
            Some(cidr.ok_or_else(|| invalid(&rule.path("cidr"), value, "It is not a range of addresses"))?)
        }
    };
    if protocol.is_none() && (remote_group.is_none() || ports.is_some()) {
        return Err(Error::BadRequest(
            "Not enough parameters to build a valid rule.".into(),
        ));
    }
    Ok(NewRule {
        group,
        protocol,
        ports,
        cidr,
        remote_group,
    })
}

pub(super) async fn create_rule(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Json(body): Json<Value>,
) -> Answer {
    there(version)?;
    let rule = security::create_rule(&app.cloud, &ctx, rule(&body)?).await?;
    ok(json!({"security_group_rule": rule}))
}

pub(super) async fn delete_rule(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    there(version)?;
    security::delete_rule(&app.cloud, &ctx, &id).await?;
    empty(StatusCode::ACCEPTED)
}

/// A group is removed by its id: without one, there is nothing to remove.
pub(super) async fn delete_none() -> Failure {
    gone()
}
