//! Quotas on the wire.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use cloud::network::quotas::{self, Limits, Resource};
use cloud::{Context, Error, Result};
use serde_json::{Map, Value, json};

use super::attributes::wrong;
use crate::AppState;
use crate::auth::Auth;
use crate::body::Json;
use crate::fault::{Fault, ForService, Service};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/quotas", get(list))
        .route("/quotas/tenant", get(own))
        .route("/quotas/project", get(own))
        .route("/quotas/{project}", get(show).put(update).delete(reset))
        .route("/quotas/{project}/default", get(defaults))
        .route("/quotas/{project}/details", get(details))
        .route("/quotas/{project}/details.json", get(details))
}

fn view(limits: &Limits) -> Map<String, Value> {
    limits
        .iter()
        .map(|(resource, limit)| (resource.name().to_owned(), (*limit).into()))
        .collect()
}

async fn list(State(state): State<AppState>, Auth(ctx): Auth) -> Result<Response, Fault> {
    let found = state
        .cloud
        .store
        .read(move |conn| quotas::list(conn, &ctx))
        .await
        .for_service(Service::Network)?;
    let views = found.iter().map(|(project, limits)| {
        let mut view = view(limits);
        view.insert("project_id".into(), project.as_str().into());
        view.insert("tenant_id".into(), project.as_str().into());
        Value::Object(view)
    });
    Ok(Json(json!({"quotas": views.collect::<Vec<_>>()})).into_response())
}

async fn own(Auth(ctx): Auth) -> Result<Response, Fault> {
    let project = ctx.project().for_service(Service::Network)?;
    Ok(Json(json!({"tenant": {"tenant_id": project, "project_id": project}})).into_response())
}

async fn limits(state: &AppState, ctx: Context, project: String) -> Result<Limits, Fault> {
    let found = state
        .cloud
        .store
        .read(move |conn| quotas::show(conn, &ctx, &project))
        .await;
    found.for_service(Service::Network)
}

async fn show(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(project): Path<String>,
) -> Result<Response, Fault> {
    Ok(Json(json!({"quota": view(&limits(&state, ctx, project).await?)})).into_response())
}

async fn defaults(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(project): Path<String>,
) -> Result<Response, Fault> {
    limits(&state, ctx, project).await?;
    let defaults = Resource::ALL
        .into_iter()
        .map(|resource| (resource, resource.default_limit()))
        .collect();
    Ok(Json(json!({"quota": view(&defaults)})).into_response())
}

async fn details(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(project): Path<String>,
) -> Result<Response, Fault> {
    let read = state.cloud.store.read(move |conn| {
        let mut view = Map::new();
        for (resource, limit) in quotas::show(conn, &ctx, &project)? {
            let used = quotas::used(conn, &project, resource)?;
            view.insert(
                resource.name().into(),
                json!({"limit": limit, "used": used, "reserved": 0}),
            );
        }
        Ok::<_, Error>(view)
    });
    Ok(Json(json!({"quota": read.await.for_service(Service::Network)?})).into_response())
}

async fn update(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(project): Path<String>,
    Json(body): Json<Value>,
) -> Result<Response, Fault> {
    let answer = async {
        let changes = changes(&body)?;
        let actor = ctx.user_id.clone();
        state
            .cloud
            .store
            .write(&actor, move |conn| quotas::update(conn, &ctx, &project, &changes))
            .await
    };
    Ok(Json(json!({"quota": view(&answer.await.for_service(Service::Network)?)})).into_response())
}

fn changes(body: &Value) -> Result<Limits> {
    let object = body.get("quota").and_then(Value::as_object).ok_or_else(|| {
        Error::BadRequest("Resource body required: unable to find 'quota' in request body".into())
    })?;
    let mut limits = Limits::new();
    // `force` and `check_limit` are about usage, which does not matter to a new limit here.
    let ignored = ["project_id", "tenant_id", "force", "check_limit"];
    for (name, value) in object
        .iter()
        .filter(|(name, _)| !ignored.contains(&name.as_str()))
    {
        let known = Resource::named(name).ok_or_else(|| {
            Error::BadRequest(format!(
                "Unrecognized attribute(s) '{}'",
                name.chars().take(64).collect::<String>()
            ))
        })?;
        let number = value
            .as_i64()
            .or_else(|| value.as_str().and_then(|text| text.parse().ok()));
        limits.insert(known, number.ok_or_else(|| wrong(name, "it is not an integer"))?);
    }
    Ok(limits)
}

async fn reset(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(project): Path<String>,
) -> Result<StatusCode, Fault> {
    let actor = ctx.user_id.clone();
    let written = state
        .cloud
        .store
        .write(&actor, move |conn| quotas::reset(conn, &ctx, &project))
        .await;
    written.for_service(Service::Network)?;
    Ok(StatusCode::NO_CONTENT)
}
