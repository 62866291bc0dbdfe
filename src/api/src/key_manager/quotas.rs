//! `/v1/quotas` and `/v1/project-quotas`.

use axum::Router;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::get;
use cloud::Error;
use cloud::secret::{Limits, Resource, quota};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Answer, no_content, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/quotas", get(own))
        .route("/project-quotas", get(list))
        .route("/project-quotas/{project}", get(show).put(update).delete(reset))
}

#[derive(Deserialize)]
struct Body {
    project_quotas: Map<String, Value>,
}

/// There are no certificate authorities, so their number is no matter; clients want to see it all the same.
const CAS: &str = "cas";

fn view(limits: &Limits) -> Value {
    let mut view: Map<String, Value> = limits
        .iter()
        .map(|(resource, limit)| (resource.name().to_owned(), (*limit).into()))
        .collect();
    view.insert(CAS.into(), (-1).into());
    view.into()
}

async fn own(State(state): State<AppState>, Auth(ctx): Auth) -> Answer {
    let limits = quota::own(&state.cloud, &ctx).await?;
    Ok(Json(json!({"quotas": view(&limits)})).into_response())
}

async fn list(State(state): State<AppState>, Auth(ctx): Auth, pairs: Pairs) -> Answer {
    let part = shape::part(&pairs)?;
    let (all, total) = quota::list(&state.cloud, &ctx, part).await?;
    let views = all
        .iter()
        .map(|(project, limits)| json!({"project_id": project, "project_quotas": view(limits)}))
        .collect();
    let path = ("project-quotas", "project_quotas");
    Ok(Json(shape::list(&state, path, &pairs, part, views, total)).into_response())
}

async fn show(State(state): State<AppState>, Auth(ctx): Auth, Path(project): Path<String>) -> Answer {
    let limits = quota::show(&state.cloud, &ctx, &project).await?;
    Ok(Json(json!({"project_quotas": view(&limits)})).into_response())
}

async fn update(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(project): Path<String>,
    Json(body): Json<Body>,
) -> Answer {
    let mut limits = Limits::new();
    for (name, value) in body.project_quotas.iter().filter(|(name, _)| *name != CAS) {
        let wrong = || {
            let name: String = name.chars().take(64).collect();
            Error::BadRequest(format!(
                "Provided object does not match schema 'Project Quotas': {name}."
            ))
        };
        let resource = Resource::named(name).ok_or_else(wrong)?;
        limits.insert(resource, value.as_i64().ok_or_else(wrong)?);
    }
    quota::update(&state.cloud, &ctx, &project, limits).await?;
    Ok(no_content())
}

async fn reset(State(state): State<AppState>, Auth(ctx): Auth, Path(project): Path<String>) -> Answer {
    quota::reset(&state.cloud, &ctx, &project).await?;
    Ok(no_content())
}
