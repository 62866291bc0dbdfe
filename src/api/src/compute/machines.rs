//! What is asked of a server's machine, and what other services tell Nova of it.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use cloud::Error;
use cloud::compute::servers;
use serde_json::{Value, json};

use super::check::{Object, uuid_of};
use super::microversion::Microversion;
use super::{Answer, Failure, gone, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::Json;
use crate::fault::{Fault, Service};

/// Machines here have no NUMA nodes of their own.
pub(super) async fn topology(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    if version < Microversion::TOPOLOGY {
        return Err(gone());
    }
    ctx.require("servers", "topology")?;
    servers::show(&app.cloud, &ctx, &id).await?;
    ok(json!({"nodes": [], "pagesize_kb": null}))
}

/// Servers stay on their node: none is being migrated.
pub(super) async fn migrations(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    if version < Microversion::SERVER_MIGRATIONS {
        return Err(gone());
    }
    ctx.require("servers", "migrations")?;
    servers::show(&app.cloud, &ctx, &id).await?;
    ok(json!({"migrations": []}))
}

pub(super) async fn migration(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path((id, migration)): Path<(String, String)>,
) -> Answer {
    if version < Microversion::SERVER_MIGRATIONS {
        return Err(gone());
    }
    ctx.require("servers", "migrations")?;
    servers::show(&app.cloud, &ctx, &id).await?;
    Err(Failure(Fault::http(
        Service::Compute,
        StatusCode::NOT_FOUND,
        format!("In-progress live migration {migration} is not found for server {id}."),
    )))
}

/// No guest has told a password.
pub(super) async fn password(State(app): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    servers::show(&app.cloud, &ctx, &id).await?;
    ok(json!({"password": ""}))
}

/// There is none to forget.
pub(super) async fn forget_password(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
) -> Answer {
    ctx.require("servers", "action")?;
    servers::show(&app.cloud, &ctx, &id).await?;
    super::empty(StatusCode::NO_CONTENT)
}

/// Consoles to look at are not served: what a server writes to its serial one is read by `os-getConsoleOutput`.
pub(super) async fn remote_console(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    if version < Microversion::REMOTE_CONSOLES {
        return Err(gone());
    }
    let console = Object::only(&body, "remote_console")?;
    console.allow(&["protocol", "type"])?;
    console.required("protocol")?;
    let kind = console.required("type")?.as_str().unwrap_or_default().to_owned();
    ctx.require("servers", "action")?;
    servers::show(&app.cloud, &ctx, &id).await?;
    let kind: String = kind.chars().take(32).collect();
    Err(Error::BadRequest(format!("Unavailable console type {kind}.")).into())
}

/// Names that other services may tell.
const EVENTS: &[&str] = &[
    "network-changed",
    "network-vif-plugged",
    "network-vif-unplugged",
    "network-vif-deleted",
    "volume-extended",
    "power-update",
    "accelerator-request-bound",
    "volume-reimaged",
];

/// Other services' events: this cloud's own services need none, so what is told changes nothing.
pub(super) async fn external_events(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    Json(body): Json<Value>,
) -> Answer {
    ctx.require("servers", "external_events")?;
    let request = Object::only(&body, "events")
        .err()
        .filter(|_| !body.get("events").is_some_and(Value::is_array));
    if let Some(error) = request {
        return Err(error.into());
    }
    let mut views = Vec::new();
    let mut known = 0;
    for (index, event) in body["events"].as_array().into_iter().flatten().enumerate() {
        let event = Object::of(format!("events[{index}]"), event)?;
        event.allow(&["name", "server_uuid", "status", "tag"])?;
        let name = event.required("name")?;
        if !name.as_str().is_some_and(|name| EVENTS.contains(&name)) {
            return Err(
                super::check::invalid(&event.path("name"), name, "It is not the name of an event").into(),
            );
        }
        let server = uuid_of(&event.path("server_uuid"), event.required("server_uuid")?)?;
        let status = event.string("status", 1, 255)?.unwrap_or("completed");
        let found = servers::show(&app.cloud, &ctx, &server.to_string()).await;
        let (code, status) = match &found {
            Ok(details) if details.server.host.is_some() => (200, status),
            Ok(_) => (422, "failed"),
            Err(_) => (404, "failed"),
        };
        known += usize::from(code == 200);
        let mut view = json!({"name": name, "server_uuid": server, "status": status, "code": code});
        if let Some(tag) = event.string("tag", 1, 255)? {
            view["tag"] = json!(tag);
        }
        views.push(view);
    }
    let status = if known == views.len() {
        StatusCode::OK
    } else if known == 0 {
        return Err(Failure(Fault::http(
            Service::Compute,
            StatusCode::NOT_FOUND,
            "No instances found for any event",
        )));
    } else {
        StatusCode::MULTI_STATUS
    };
    Ok((status, Json(json!({"events": views}))).into_response())
}
