//! `/os-server-groups`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use cloud::Error;
use cloud::compute::groups::{self, Group, Policy};
use serde_json::{Value, json};

use super::check::{Object, invalid};
use super::microversion::Microversion;
use super::{Answer, empty, known_queries, limit, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

fn view(version: Microversion, group: &Group) -> Value {
    let mut view = json!({"id": group.id, "name": group.name, "members": group.members});
    if version >= Microversion::GROUP_RULES {
        view["policy"] = json!(group.policy.name());
        view["rules"] = match group.max_per_host {
            Some(max) => json!({"max_server_per_host": max}),
            None => json!({}),
        };
    } else {
        view["policies"] = json!([group.policy.name()]);
        view["metadata"] = json!({});
    }
    if version >= Microversion::GROUP_OWNER {
        view["project_id"] = json!(group.project_id);
        view["user_id"] = json!(group.user_id);
    }
    view
}

pub(super) async fn index(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    known_queries(version, &pairs, &["all_projects", "limit", "offset"])?;
    let offset = pairs
        .number("offset")?
        .map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let all = pairs.get("all_projects").is_some();
    let found = groups::list(&app.cloud, &ctx, all, offset, limit(&pairs)?).await?;
    let views: Vec<Value> = found.iter().map(|g| view(version, g)).collect();
    ok(json!({"server_groups": views}))
}

pub(super) async fn show(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    let group = groups::show(&app.cloud, &ctx, &id).await?;
    ok(json!({"server_group": view(version, &group)}))
}

fn parse(body: &Value, version: Microversion) -> Result<(String, Policy, Option<u32>), Error> {
    let group = Object::only(body, "server_group")?;
    group.required("name")?;
    let name = group.name("name")?.unwrap_or_default();
    let soft = version >= Microversion::SOFT_POLICIES;
    let policy_of = |field: &str, value: &Value| {
        let policy = value.as_str().and_then(Policy::of_name);
        let known = policy.filter(|p| soft || matches!(p, Policy::Affinity | Policy::AntiAffinity));
        known.ok_or_else(|| invalid(field, value, "It is not a policy of server groups"))
    };
    if version >= Microversion::GROUP_RULES {
        group.allow(&["name", "policy", "rules"])?;
        let policy = policy_of("server_group.policy", group.required("policy")?)?;
        let max = match group.get("rules") {
            None => None,
            Some(rules) => {
                let rules = Object::of("server_group.rules", rules)?;
                rules.allow(&["max_server_per_host"])?;
                rules.integer("max_server_per_host", 1, i64::from(i32::MAX))?
            }
        };
        return Ok((name, policy, max.and_then(|m| u32::try_from(m).ok())));
    }
    group.allow(&["name", "policies"])?;
    let value = group.required("policies")?;
    match value.as_array().map(Vec::as_slice) {
        Some([policy]) => Ok((name, policy_of("server_group.policies", policy)?, None)),
        _ => Err(invalid(
            "server_group.policies",
            value,
            "It is not a list of one policy",
        )),
    }
}

pub(super) async fn create(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Json(body): Json<Value>,
) -> Answer {
    let (name, policy, max_per_host) = parse(&body, version)?;
    let group = groups::create(&app.cloud, &ctx, name, policy, max_per_host).await?;
    ok(json!({"server_group": view(version, &group)}))
}

pub(super) async fn delete(State(app): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    groups::delete(&app.cloud, &ctx, &id).await?;
    empty(StatusCode::NO_CONTENT)
}
