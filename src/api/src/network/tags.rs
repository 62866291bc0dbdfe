//! Tags on the wire.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use cloud::network::tags::{self, Change, Tagged};
use cloud::{Context, Error, Result};
use serde_json::{Value, json};
use uuid::Uuid;

use super::attributes::{Attributes, parse};
use super::floating_ips::FloatingIps;
use super::networks::Networks;
use super::ports::Ports;
use super::resource::id_of;
use super::routers::Routers;
use super::security_groups::SecurityGroups;
use super::subnet_pools::SubnetPools;
use super::subnets::Subnets;
use crate::AppState;
use crate::auth::Auth;
use crate::body::Json;
use crate::fault::{Fault, ForService, Service};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route(
            "/{kind}/{id}/tags",
            get(list).put(set).post(add_many).delete(clear),
        )
        .route("/{kind}/{id}/tags/{tag}", get(has).put(add).delete(remove))
}

/// What a path speaks of.
fn target(kind: &str, id: &str) -> Result<(Tagged, Uuid)> {
    Ok(match kind {
        "networks" => (Tagged::Networks, id_of::<Networks>(id)?),
        "subnets" => (Tagged::Subnets, id_of::<Subnets>(id)?),
        "subnetpools" => (Tagged::SubnetPools, id_of::<SubnetPools>(id)?),
        "ports" => (Tagged::Ports, id_of::<Ports>(id)?),
        "routers" => (Tagged::Routers, id_of::<Routers>(id)?),
        "floatingips" => (Tagged::FloatingIps, id_of::<FloatingIps>(id)?),
        "security-groups" => (Tagged::SecurityGroups, id_of::<SecurityGroups>(id)?),
        _ => {
            return Err(Error::Named {
                name: "HTTPNotFound",
                kind: cloud::error::Kind::NotFound,
                message: "The resource could not be found.".into(),
            });
        }
    })
}

async fn read(state: &AppState, ctx: Context, kind: &str, id: &str) -> Result<Vec<String>> {
    let (kind, id) = target(kind, id)?;
    state
        .cloud
        .store
        .read(move |conn| tags::list(conn, &ctx, kind, id))
        .await
}

async fn write(state: &AppState, ctx: Context, kind: &str, id: &str, change: Change) -> Result<Vec<String>> {
    let (kind, id) = target(kind, id)?;
    let actor = ctx.user_id.clone();
    state
        .cloud
        .store
        .write(&actor, move |conn| tags::change(conn, &ctx, kind, id, &change))
        .await
}

fn sent(body: &Value) -> Result<Vec<String>> {
    let part = Attributes::part("tags", body, &["tags"])?;
    let tags = part.list("tags", |tag| parse("tags", tag, "string"))?;
    tags.ok_or_else(|| Error::BadRequest("Unable to find 'tags' in request body".into()))
}

async fn list(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((kind, id)): Path<(String, String)>,
) -> Result<Response, Fault> {
    let tags = read(&state, ctx, &kind, &id)
        .await
        .for_service(Service::Network)?;
    Ok(Json(json!({"tags": tags})).into_response())
}

async fn set(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((kind, id)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Result<Response, Fault> {
    let written = async { write(&state, ctx, &kind, &id, Change::Set(sent(&body)?)).await };
    Ok(Json(json!({"tags": written.await.for_service(Service::Network)?})).into_response())
}

async fn add_many(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((kind, id)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Result<Response, Fault> {
    let written = async { write(&state, ctx, &kind, &id, Change::Add(sent(&body)?)).await };
    let tags = written.await.for_service(Service::Network)?;
    Ok((StatusCode::CREATED, Json(json!({"tags": tags}))).into_response())
}

async fn clear(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((kind, id)): Path<(String, String)>,
) -> Result<StatusCode, Fault> {
    write(&state, ctx, &kind, &id, Change::Set(Vec::new()))
        .await
        .for_service(Service::Network)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn has(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((kind, id, tag)): Path<(String, String, String)>,
) -> Result<StatusCode, Fault> {
    let tags = read(&state, ctx, &kind, &id)
        .await
        .for_service(Service::Network)?;
    if tags.contains(&tag) {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Fault::new(Service::Network, tags::no_tag(&tag)))
}

async fn add(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((kind, id, tag)): Path<(String, String, String)>,
) -> Result<StatusCode, Fault> {
    write(&state, ctx, &kind, &id, Change::Add(vec![tag]))
        .await
        .for_service(Service::Network)?;
    Ok(StatusCode::CREATED)
}

async fn remove(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((kind, id, tag)): Path<(String, String, String)>,
) -> Result<StatusCode, Fault> {
    write(&state, ctx, &kind, &id, Change::Remove(tag))
        .await
        .for_service(Service::Network)?;
    Ok(StatusCode::NO_CONTENT)
}
