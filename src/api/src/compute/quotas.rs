//! `/limits`, `/os-quota-sets`, `/os-simple-tenant-usage`.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use cloud::compute::quotas::{self, Quota, Resource};
use cloud::compute::usage::{self, ServerUsage};
use cloud::compute::{Micros, now};
use cloud::{Context, Error};
use serde_json::{Map, Value, json};

use super::check::{Object, boolean_of, integer_of};
use super::microversion::Microversion;
use super::views::Links;
use super::{Answer, empty, known_queries, limit, marker, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

/// What Nova before 2.36 tells of networks; Neutron's quotas are the ones that count.
const NETWORK_PROXIES: [(&str, i64); 4] = [
    ("fixed_ips", -1),
    ("floating_ips", -1),
    ("security_groups", -1),
    ("security_group_rules", -1),
];

fn injected(resource: Resource) -> bool {
    matches!(
        resource,
        Resource::InjectedFiles | Resource::InjectedFileContentBytes | Resource::InjectedFilePathBytes
    )
}

pub(super) async fn limits(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    known_queries(version, &pairs, &["tenant_id", "reserved"])?;
    let quotas = usage::limits(&app.cloud, &ctx, pairs.get("tenant_id")).await?;
    let mut absolute = Map::new();
    let mut put = |key: &str, value: i64| absolute.insert(key.to_owned(), json!(value));
    for (resource, quota) in &quotas {
        let (most, used) = match resource {
            Resource::Instances => ("maxTotalInstances", Some("totalInstancesUsed")),
            Resource::Cores => ("maxTotalCores", Some("totalCoresUsed")),
            Resource::Ram => ("maxTotalRAMSize", Some("totalRAMUsed")),
            Resource::MetadataItems => ("maxServerMeta", None),
            Resource::KeyPairs => ("maxTotalKeypairs", None),
            Resource::ServerGroups => ("maxServerGroups", Some("totalServerGroupsUsed")),
            Resource::ServerGroupMembers => ("maxServerGroupMembers", None),
            Resource::InjectedFiles => ("maxPersonality", None),
            Resource::InjectedFileContentBytes => ("maxPersonalitySize", None),
            Resource::InjectedFilePathBytes => continue,
        };
        if injected(*resource) && version >= Microversion::NO_PERSONALITY {
            continue;
        }
        put(most, quota.limit);
        if let Some(used) = used {
            put(used, quota.in_use);
        }
        if *resource == Resource::MetadataItems && version < Microversion::NO_IMAGE_META {
            put("maxImageMeta", quota.limit);
        }
    }
    if version < Microversion::NO_NETWORK_PROXIES {
        for key in [
            "maxTotalFloatingIps",
            "maxSecurityGroups",
            "maxSecurityGroupRules",
        ] {
            put(key, -1);
        }
        for key in ["totalFloatingIpsUsed", "totalSecurityGroupsUsed"] {
            put(key, 0);
        }
    }
    ok(json!({"limits": {"rate": [], "absolute": absolute}}))
}

/// A quota set as this version shows it; `value` makes the figure of each limit.
fn set_view(
    version: Microversion,
    project: Option<&str>,
    quotas: &BTreeMap<Resource, Quota>,
    value: impl Fn(Quota) -> Value,
) -> Value {
    let mut set = Map::new();
    if let Some(project) = project {
        set.insert("id".into(), json!(project));
    }
    for (resource, quota) in quotas {
        if !(injected(*resource) && version >= Microversion::NO_PERSONALITY) {
            set.insert(resource.name().into(), value(*quota));
        }
    }
    if version < Microversion::NO_NETWORK_PROXIES {
        for (name, limit) in NETWORK_PROXIES {
            set.insert(name.into(), value(Quota { limit, in_use: 0 }));
        }
    }
    json!({"quota_set": set})
}

fn plain(quota: Quota) -> Value {
    json!(quota.limit)
}

pub(super) async fn show(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(project): Path<String>,
    pairs: Pairs,
) -> Answer {
    known_queries(version, &pairs, &["user_id"])?;
    let quotas = quotas::show(&app.cloud, &ctx, &project).await?;
    ok(set_view(version, Some(&project), &quotas, plain))
}

pub(super) async fn detail(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(project): Path<String>,
    pairs: Pairs,
) -> Answer {
    known_queries(version, &pairs, &["user_id"])?;
    let quotas = quotas::show(&app.cloud, &ctx, &project).await?;
    let value = |quota: Quota| json!({"limit": quota.limit, "in_use": quota.in_use, "reserved": 0});
    ok(set_view(version, Some(&project), &quotas, value))
}

pub(super) async fn defaults(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(project): Path<String>,
) -> Answer {
    let quotas = quotas::defaults(&app.cloud, &ctx).await?;
    ok(set_view(version, Some(&project), &quotas, plain))
}

/// A quota class as this version shows it.
fn class_view(version: Microversion, name: Option<&str>, quotas: &BTreeMap<Resource, Quota>) -> Value {
    let mut view = set_view(version, name, quotas, plain);
    if let (Some(set), true) = (
        view["quota_set"].as_object_mut(),
        version < Microversion::QUOTA_CLASSES,
    ) {
        set.remove("server_groups");
        set.remove("server_group_members");
    }
    json!({"quota_class_set": view["quota_set"].take()})
}

pub(super) async fn class(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(name): Path<String>,
) -> Answer {
    let quotas = quotas::class(&app.cloud, &ctx, &name).await?;
    ok(class_view(version, Some(&name), &quotas))
}

pub(super) async fn update_class(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(name): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    ctx.require("quota_class_sets", "update")?;
    let (limits, _) = parse(&body, version, "quota_class_set")?;
    let quotas = quotas::update_class(&app.cloud, &ctx, &name, limits).await?;
    ok(class_view(version, None, &quotas))
}

fn parse(
    body: &Value,
    version: Microversion,
    name: &'static str,
) -> Result<(BTreeMap<Resource, i64>, bool), Error> {
    let set = Object::only(body, name)?;
    let mut limits = BTreeMap::new();
    let mut force = false;
    for (key, value) in body.get(name).and_then(Value::as_object).into_iter().flatten() {
        let field = set.path(key);
        let proxy = NETWORK_PROXIES.iter().any(|(name, _)| name == key);
        match Resource::of_name(key) {
            Some(resource) if !(injected(resource) && version >= Microversion::NO_PERSONALITY) => {
                limits.insert(resource, integer_of(&field, value, -1, 0x7FFF_FFFF)?);
            }
            _ if key == "force" => force = boolean_of(&field, value)?,
            // The CLI sends them beside what it means for Neutron.
            _ if proxy && version < Microversion::NO_NETWORK_PROXIES => {
                integer_of(&field, value, -1, 0x7FFF_FFFF)?;
            }
            _ if key == "tenant_id" => {}
            _ => set.allow(&["force"])?,
        }
    }
    Ok((limits, force))
}

pub(super) async fn update(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(project): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    ctx.require("quota_sets", "update")?;
    let (limits, force) = parse(&body, version, "quota_set")?;
    let quotas = quotas::update(&app.cloud, &ctx, &project, limits, force).await?;
    ok(set_view(version, None, &quotas, plain))
}

pub(super) async fn reset(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    Path(project): Path<String>,
) -> Answer {
    quotas::reset(&app.cloud, &ctx, &project).await?;
    empty(StatusCode::ACCEPTED)
}

fn usage_view(usage: &ServerUsage) -> Value {
    json!({
        "instance_id": usage.id,
        "name": usage.name,
        "tenant_id": usage.project_id,
        "flavor": usage.flavor,
        "vcpus": usage.vcpus,
        "memory_mb": usage.memory_mib,
        "local_gb": usage.local_gib,
        "state": usage.state,
        "started_at": usage.started_at.naive(),
        "ended_at": usage.ended_at.map(|t| t.naive()),
        "uptime": usage.uptime,
        "hours": usage.hours,
    })
}

fn summary(project: &str, usages: &[ServerUsage], period: (Micros, Micros), detailed: bool) -> Value {
    let sum = |f: &dyn Fn(&ServerUsage) -> f64| json!(usages.iter().map(|u| f(u) * u.hours).sum::<f64>());
    let mut view = json!({
        "tenant_id": project,
        "start": period.0.naive(),
        "stop": period.1.naive(),
        "total_hours": sum(&|_| 1.0),
        "total_vcpus_usage": sum(&|u| f64::from(u.vcpus)),
        "total_memory_mb_usage": sum(&|u| u.memory_mib as f64),
        "total_local_gb_usage": sum(&|u| u.local_gib as f64),
    });
    if detailed {
        view["server_usages"] = Value::Array(usages.iter().map(usage_view).collect());
    }
    view
}

/// `start` and `end`; nothing said: the last four weeks, as Nova has it.
fn period(pairs: &Pairs) -> Result<(Micros, Micros), Error> {
    let time = |key: &str, default: Micros| match pairs.get(key) {
        None => Ok(default),
        Some(text) => Micros::parse(text).ok_or_else(|| Error::BadRequest("Invalid date format".into())),
    };
    let now = now();
    let end = time("end", now)?;
    let start = time("start", Micros(now.0 - 28 * 24 * 3_600_000_000))?;
    if end < start {
        return Err(Error::BadRequest(
            "Invalid start time. The start time cannot occur after the end time.".into(),
        ));
    }
    Ok((start, end))
}

const USAGE_QUERIES: &[&str] = &["start", "end", "detailed", "limit", "marker"];

/// One page of servers' uses, and the marker of the next.
async fn page_of(
    app: &AppState,
    ctx: &Context,
    version: Microversion,
    pairs: &Pairs,
    project: Option<&str>,
) -> Result<
    (
        BTreeMap<String, Vec<ServerUsage>>,
        Option<String>,
        (Micros, Micros),
    ),
    super::Failure,
> {
    known_queries(version, pairs, USAGE_QUERIES)?;
    let period = period(pairs)?;
    let all = usage::usage(&app.cloud, ctx, project, period.0, period.1).await?;
    if version < Microversion::USAGE_PAGES {
        return Ok((all, None, period));
    }
    let limit = limit(pairs)?;
    let mut list: Vec<ServerUsage> = all.into_values().flatten().collect();
    if let Some(marker) = marker(pairs) {
        let at = list.iter().position(|u| u.id.to_string() == marker);
        let at = at.ok_or_else(|| Error::BadRequest(format!("marker [{marker}] not found")))?;
        list.drain(..=at);
    }
    list.truncate(limit);
    let last = list
        .last()
        .map(|u| u.id.to_string())
        .filter(|_| list.len() == limit);
    let mut page: BTreeMap<String, Vec<ServerUsage>> = BTreeMap::new();
    for usage in list {
        page.entry(usage.project_id.clone()).or_default().push(usage);
    }
    Ok((page, last, period))
}

pub(super) async fn usage_list(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    let (page, last, period) = page_of(&app, &ctx, version, &pairs, None).await?;
    let detailed = pairs.get("detailed") == Some("1");
    let views: Vec<Value> = page
        .iter()
        .map(|(id, u)| summary(id, u, period, detailed))
        .collect();
    let mut body = json!({"tenant_usages": views});
    let links = Links::new(&app);
    links.next(
        &mut body,
        "tenant_usages_links",
        "os-simple-tenant-usage",
        &pairs,
        last.as_deref(),
    );
    ok(body)
}

pub(super) async fn usage(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(project): Path<String>,
    pairs: Pairs,
) -> Answer {
    let (page, last, period) = page_of(&app, &ctx, version, &pairs, Some(&project)).await?;
    let view = match page.get(&project) {
        Some(usages) => summary(&project, usages, period, true),
        None => json!({}),
    };
    let mut body = json!({"tenant_usage": view});
    let collection = format!("os-simple-tenant-usage/{project}");
    Links::new(&app).next(
        &mut body,
        "tenant_usage_links",
        &collection,
        &pairs,
        last.as_deref(),
    );
    ok(body)
}
