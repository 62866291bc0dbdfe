//! `/v1/secrets/{id}/acl` and `/v1/containers/{id}/acl`.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use cloud::Error;
use cloud::secret::{Acl, AclChange, acl};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Answer, parse_id, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::Json;

pub(super) fn routes() -> Router<AppState> {
    let one = || get(show).put(set).patch(merge).delete(remove);
    Router::new().route("/{kind}/{id}/acl", one())
}

/// There is one operation: reading.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(default)]
    read: Option<Read>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    #[serde(default)]
    users: Option<Vec<String>>,
    #[serde(default, rename = "project-access")]
    project_access: Option<bool>,
}

/// What a path speaks of, and whether that is a container.
fn target(kind: &str, id: &str) -> Result<(Uuid, bool), Error> {
    match kind {
        "secrets" => Ok((parse_id("Secret", id)?, false)),
        "containers" => Ok((parse_id("Container", id)?, true)),
        _ => Err(Error::not_found("Resource", "acl")),
    }
}

fn view(acl: &Acl) -> Value {
    let mut read = json!({"project-access": acl.project_access});
    if let Some((created, updated)) = acl.times {
        read["users"] = json!(acl.users);
        read["created"] = shape::time(created).into();
        read["updated"] = shape::time(updated).into();
    }
    json!({"read": read})
}

async fn show(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((kind, id)): Path<(String, String)>,
) -> Answer {
    let (id, container) = target(&kind, &id)?;
    let acl = acl::show(&state.cloud, &ctx, id, container).await?;
    Ok(Json(view(&acl)).into_response())
}

async fn set(state: State<AppState>, auth: Auth, path: Path<(String, String)>, body: Json<Body>) -> Answer {
    change(state, auth, path, body, false).await
}

async fn merge(state: State<AppState>, auth: Auth, path: Path<(String, String)>, body: Json<Body>) -> Answer {
    change(state, auth, path, body, true).await
}

async fn change(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((kind, id)): Path<(String, String)>,
    Json(body): Json<Body>,
    merge: bool,
) -> Answer {
    let (id, container) = target(&kind, &id)?;
    let change = body.read.map_or_else(AclChange::default, |read| AclChange {
        project_access: read.project_access,
        users: read.users,
    });
    acl::set(&state.cloud, &ctx, id, container, change, merge).await?;
    let reference = shape::url(&state, format_args!("{kind}/{id}/acl"));
    Ok(Json(json!({"acl_ref": reference})).into_response())
}

async fn remove(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((kind, id)): Path<(String, String)>,
) -> Answer {
    let (id, container) = target(&kind, &id)?;
    acl::remove(&state.cloud, &ctx, id, container).await?;
    Ok(StatusCode::OK.into_response())
}
