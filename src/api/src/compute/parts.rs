//! What hangs below one server: metadata, tags, addresses, interfaces, history.

use axum::extract::{Path, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::IntoResponse;
use cloud::compute::actions::{self, Entry, Page};
use cloud::compute::servers::{self, MetadataChange, TagChange};
use cloud::compute::{Micros, state::VmState};
use cloud::{Context, Error};
use serde_json::{Value, json};

use super::check::{Object, metadata_of};
use super::create::tag_of;
use super::microversion::Microversion;
use super::views::{Links, addresses_view};
use super::{Answer, Failure, MAX_LIMIT, empty, gone, known_queries, limit, marker, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

pub(super) async fn metadata(State(app): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    let details = servers::show(&app.cloud, &ctx, &id).await?;
    ok(json!({"metadata": details.server.metadata}))
}

async fn change_metadata(app: &AppState, ctx: &Context, id: &str, change: MetadataChange) -> Answer {
    let all = servers::change_metadata(&app.cloud, ctx, id, change).await?;
    ok(json!({"metadata": all}))
}

fn parse_metadata(body: &Value) -> Result<std::collections::BTreeMap<String, String>, Error> {
    let request = Object::body(body)?;
    request.allow(&["metadata"])?;
    metadata_of("metadata", request.required("metadata")?)
}

pub(super) async fn merge_metadata(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    change_metadata(&app, &ctx, &id, MetadataChange::Merge(parse_metadata(&body)?)).await
}

pub(super) async fn replace_metadata(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    change_metadata(&app, &ctx, &id, MetadataChange::Replace(parse_metadata(&body)?)).await
}

pub(super) async fn metadata_item(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    Path((id, key)): Path<(String, String)>,
) -> Answer {
    let details = servers::show(&app.cloud, &ctx, &id).await?;
    match details.server.metadata.get(&key) {
        Some(value) => ok(json!({"meta": {key: value}})),
        None => Err(Failure(crate::fault::Fault::http(
            crate::fault::Service::Compute,
            StatusCode::NOT_FOUND,
            "Metadata item was not found",
        ))),
    }
}

pub(super) async fn set_metadata_item(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    Path((id, key)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Answer {
    let request = Object::body(&body)?;
    request.allow(&["meta"])?;
    let pairs = metadata_of("meta", request.required("meta")?)?;
    if pairs.len() != 1 {
        return Err(Error::BadRequest("Request body contains too many items".into()).into());
    }
    if !pairs.contains_key(&key) {
        return Err(Error::BadRequest("Request body and URI mismatch".into()).into());
    }
    servers::change_metadata(&app.cloud, &ctx, &id, MetadataChange::Merge(pairs.clone())).await?;
    ok(json!({"meta": pairs}))
}

pub(super) async fn remove_metadata_item(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    Path((id, key)): Path<(String, String)>,
) -> Answer {
    servers::change_metadata(&app.cloud, &ctx, &id, MetadataChange::Remove(key)).await?;
    empty(StatusCode::NO_CONTENT)
}

fn with_tags(version: Microversion) -> Result<(), Failure> {
    if version < Microversion::TAGS {
        Err(gone())
    } else {
        Ok(())
    }
}

pub(super) async fn tags(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    with_tags(version)?;
    let details = servers::show(&app.cloud, &ctx, &id).await?;
    ok(json!({"tags": details.server.tags}))
}

pub(super) async fn replace_tags(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    with_tags(version)?;
    let request = Object::body(&body)?;
    request.allow(&["tags"])?;
    request.required("tags")?;
    let tags = request.array("tags")?.into_iter().flatten();
    let tags = tags
        .map(|tag| tag_of("tags", tag))
        .collect::<Result<Vec<_>, _>>()?;
    let (tags, _) = servers::change_tags(&app.cloud, &ctx, &id, TagChange::Replace(tags)).await?;
    ok(json!({"tags": tags}))
}

pub(super) async fn remove_tags(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    with_tags(version)?;
    servers::change_tags(&app.cloud, &ctx, &id, TagChange::Replace(Vec::new())).await?;
    empty(StatusCode::NO_CONTENT)
}

pub(super) async fn has_tag(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path((id, tag)): Path<(String, String)>,
) -> Answer {
    with_tags(version)?;
    let details = servers::show(&app.cloud, &ctx, &id).await?;
    if details.server.tags.contains(&tag) {
        return empty(StatusCode::NO_CONTENT);
    }
    Err(Failure(crate::fault::Fault::http(
        crate::fault::Service::Compute,
        StatusCode::NOT_FOUND,
        format!("Server {id} has no tag '{tag}'"),
    )))
}

pub(super) async fn add_tag(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path((id, tag)): Path<(String, String)>,
) -> Answer {
    with_tags(version)?;
    let tag = tag_of("tag", &json!(tag))?;
    let (_, existed) = servers::change_tags(&app.cloud, &ctx, &id, TagChange::Add(tag.clone())).await?;
    if existed {
        return empty(StatusCode::NO_CONTENT);
    }
    let mut response = StatusCode::CREATED.into_response();
    if let Ok(location) = HeaderValue::from_str(&Links::new(&app).own(&format!("servers/{id}/tags"), &tag)) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

pub(super) async fn remove_tag(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path((id, tag)): Path<(String, String)>,
) -> Answer {
    with_tags(version)?;
    servers::change_tags(&app.cloud, &ctx, &id, TagChange::Remove(tag)).await?;
    empty(StatusCode::NO_CONTENT)
}

pub(super) async fn ips(State(app): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    let details = servers::show(&app.cloud, &ctx, &id).await?;
    ok(json!({"addresses": addresses_view(&details.addresses, false)}))
}

pub(super) async fn ips_of_network(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    Path((id, network)): Path<(String, String)>,
) -> Answer {
    let details = servers::show(&app.cloud, &ctx, &id).await?;
    let mut all = addresses_view(&details.addresses, false);
    match all.get_mut(&network) {
        Some(list) => ok(json!({network: list.take()})),
        None => Err(Failure(crate::fault::Fault::http(
            crate::fault::Service::Compute,
            StatusCode::NOT_FOUND,
            "Instance is not a member of specified network",
        ))),
    }
}

pub(super) async fn security_groups(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
) -> Answer {
    let groups = cloud::compute::security::of_server(&app.cloud, &ctx, &id).await?;
    ok(json!({"security_groups": groups}))
}

fn entry_view(version: Microversion, id: &str, entry: &Entry) -> Value {
    let mut view = json!({
        "action": entry.action,
        "instance_uuid": id,
        "request_id": entry.request_id,
        "user_id": entry.user_id,
        "project_id": entry.project_id,
        "start_time": entry.started_at.naive(),
        "message": entry.result.as_deref().filter(|r| *r == "Error").map(|_| "Error"),
    });
    if version >= Microversion::ACTION_PAGES {
        view["updated_at"] = json!(entry.updated_at.naive());
    }
    view
}

pub(super) async fn history(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Answer {
    known_queries(
        version,
        &pairs,
        &["limit", "marker", "changes-since", "changes-before"],
    )?;
    let paged = version >= Microversion::ACTION_PAGES;
    let mut page = Page {
        limit: MAX_LIMIT,
        ..Page::default()
    };
    if paged {
        let time = |key: &str| match pairs.get(key) {
            None => Ok(None),
            Some(text) => match Micros::parse(text) {
                Some(time) => Ok(Some(time)),
                None => Err(Error::BadRequest(format!(
                    "Invalid input for query parameters {key}: not a 'date-time'"
                ))),
            },
        };
        page.limit = limit(&pairs)?;
        page.marker = marker(&pairs);
        page.changes_since = time("changes-since")?;
        if version >= Microversion::CHANGES_BEFORE {
            page.changes_before = time("changes-before")?;
        }
    }
    let limit = page.limit;
    let deleted_too = version >= Microversion::DELETED_HISTORY;
    let entries = actions::history(&app.cloud, &ctx, &id, deleted_too, page).await?;
    let views: Vec<Value> = entries.iter().map(|e| entry_view(version, &id, e)).collect();
    let mut body = json!({"instanceActions": views});
    if paged {
        let last = entries
            .last()
            .map(|e| e.request_id.as_str())
            .filter(|_| entries.len() == limit);
        let collection = format!("servers/{id}/os-instance-actions");
        Links::new(&app).next(&mut body, "links", &collection, &pairs, last);
    }
    ok(body)
}

pub(super) async fn history_entry(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path((id, request)): Path<(String, String)>,
) -> Answer {
    let deleted_too = version >= Microversion::DELETED_HISTORY;
    let entry = actions::history_entry(&app.cloud, &ctx, &id, deleted_too, &request).await?;
    let mut view = entry_view(version, &id, &entry);
    if ctx.is_admin() || version >= Microversion::ACTION_EVENTS {
        let mut event = json!({
            "event": entry.event,
            "start_time": entry.started_at.naive(),
            "finish_time": entry.finished_at.map(|t| t.naive()),
            "result": entry.result,
        });
        if ctx.is_admin() {
            event["traceback"] = Value::Null;
        }
        if version >= Microversion::EVENT_HOST {
            event["hostId"] = json!(entry.host_id());
            if ctx.is_admin() {
                event["host"] = json!(entry.host);
            }
        }
        if version >= Microversion::EVENT_DETAILS {
            event["details"] = json!(entry.message);
        }
        view["events"] = json!([event]);
    }
    ok(json!({"instanceAction": view}))
}

/// Nova's driver-independent form (2.48); before it, every driver had its own.
pub(super) async fn diagnostics(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    let (server, interfaces) = servers::diagnostics(&app.cloud, &ctx, &id).await?;
    if version < Microversion::DIAGNOSTICS {
        return ok(json!({"memory": server.flavor.ram * 1024}));
    }
    let nics: Vec<Value> = interfaces.iter().map(|i| json!({"mac_address": i.mac})).collect();
    ok(json!({
        "state": if server.vm_state == VmState::Active { "running" } else { "shutdown" },
        "driver": "libvirt",
        "hypervisor": app.cloud.drivers.machines.capacity().engine,
        "hypervisor_os": "linux",
        "uptime": null,
        "config_drive": server.config_drive,
        "num_cpus": server.flavor.vcpus,
        "num_nics": nics.len(),
        "num_disks": 1,
        "cpu_details": [],
        "nic_details": nics,
        "disk_details": [],
        "memory_details": {"maximum": server.flavor.ram, "used": null},
    }))
}
