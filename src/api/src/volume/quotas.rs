//! Quotas and limits.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use cloud::Error;
use cloud::volume::quotas::{self, Quotas};
use serde_json::{Map, Value, json};

use super::microversion::Microversion as V;
use super::{Answer, Call, empty, ok};
use crate::AppState;
use crate::body::{Json, Pairs};
use crate::compute::check::{Object, integer_of};

fn limits_view(quotas: &Quotas) -> Map<String, Value> {
    quotas
        .iter()
        .map(|(name, quota)| (name.clone(), quota.limit.into()))
        .collect()
}

fn usage_view(quotas: &Quotas) -> Map<String, Value> {
    quotas
        .iter()
        .map(|(name, quota)| {
            let body = json!({"limit": quota.limit, "in_use": quota.in_use, "reserved": 0});
            (name.clone(), body)
        })
        .collect()
}

fn with_id(mut body: Map<String, Value>, id: &str) -> Value {
    body.insert("id".into(), id.into());
    Value::Object(body)
}

pub(super) async fn show(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    let quotas = quotas::show(&app.cloud, &call.ctx, call.id()).await?;
    let usage = match pairs.get("usage") {
        None => false,
        Some(_) => pairs.flag("usage")?.unwrap_or(false),
    };
    let body = if usage {
        usage_view(&quotas)
    } else {
        limits_view(&quotas)
    };
    ok(json!({"quota_set": with_id(body, call.id())}))
}

fn changes(body: &Value, name: &'static str) -> Result<BTreeMap<String, i64>, Error> {
    let object = Object::body(body)?;
    object.allow(&[name])?;
    let given = object.required(name)?;
    Object::of(name, given)?;
    let fields = given.as_object().into_iter().flatten();
    fields
        .filter(|(key, _)| {
            ![
                "tenant_id",
                "project_id",
                "id",
                "force",
                "skip_validation",
                "class_name",
            ]
            .contains(&key.as_str())
        })
        .map(|(key, value)| {
            let limit = integer_of(&format!("{name}.{key}"), value, -1, i64::from(i32::MAX))?;
            Ok((key.clone(), limit))
        })
        .collect()
}

pub(super) async fn update(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    call.ctx.require("volume_quota_sets", "update")?;
    let changes = changes(&body, "quota_set")?;
    let quotas = quotas::update(&app.cloud, &call.ctx, call.id(), changes).await?;
    ok(json!({"quota_set": limits_view(&quotas)}))
}

pub(super) async fn reset(State(app): State<AppState>, call: Call) -> Answer {
    quotas::reset(&app.cloud, &call.ctx, call.id()).await?;
    empty(StatusCode::OK)
}

fn defaults_view(defaults: BTreeMap<String, i64>) -> Map<String, Value> {
    defaults
        .into_iter()
        .map(|(name, limit)| (name, limit.into()))
        .collect()
}

pub(super) async fn defaults(State(app): State<AppState>, call: Call) -> Answer {
    let defaults = quotas::defaults(&app.cloud, &call.ctx).await?;
    ok(json!({"quota_set": with_id(defaults_view(defaults), call.id())}))
}

pub(super) async fn class(State(app): State<AppState>, call: Call) -> Answer {
    call.ctx.require("volume_quota_sets", "update")?;
    let defaults = quotas::defaults(&app.cloud, &call.ctx).await?;
    ok(json!({"quota_class_set": with_id(defaults_view(defaults), call.id())}))
}

pub(super) async fn update_class(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    call.ctx.require("volume_quota_sets", "update")?;
    let changes = changes(&body, "quota_class_set")?;
    if call.id() != "default" {
        return Err(Error::BadRequest("There is one class of quotas, named default.".into()).into());
    }
    let defaults = quotas::update_defaults(&app.cloud, &call.ctx, changes).await?;
    ok(json!({"quota_class_set": defaults_view(defaults)}))
}

pub(super) async fn limits(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    call.ctx.require("volume_limits", "show")?;
    let asked = ["project_id", "tenant_id"].iter().find_map(|key| pairs.get(key));
    let project = match asked {
        Some(project) if call.version >= V::LIMITS_PROJECT && call.ctx.is_admin() => project.to_owned(),
        _ => call.ctx.project()?.to_owned(),
    };
    let quotas = quotas::show(&app.cloud, &call.ctx, &project).await?;
    let of = |name: &str| quotas.get(name).copied();
    let limit = |name: &str| of(name).map_or(-1, |quota| quota.limit);
    let used = |name: &str| of(name).map_or(0, |quota| quota.in_use);
    ok(json!({"limits": {"rate": [], "absolute": {
        "maxTotalVolumes": limit("volumes"),
        "totalVolumesUsed": used("volumes"),
        "maxTotalVolumeGigabytes": limit("gigabytes"),
        "totalGigabytesUsed": used("gigabytes"),
        "maxTotalSnapshots": limit("snapshots"),
        "totalSnapshotsUsed": used("snapshots"),
        "maxTotalBackups": limit("backups"),
        "totalBackupsUsed": used("backups"),
        "maxTotalBackupGigabytes": limit("backup_gigabytes"),
        "totalBackupGigabytesUsed": used("backup_gigabytes"),
    }}}))
}
