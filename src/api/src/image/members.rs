//! `/v2/images/{id}/members`.

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use cloud::image::members::{self, Consent};
use serde::Deserialize;
use serde_json::json;

use super::{Answer, no_content, parse_id, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::Json;

#[derive(Deserialize)]
pub(super) struct NewMember {
    member: String,
}

#[derive(Deserialize)]
pub(super) struct Reply {
    status: String,
}

pub(super) async fn list(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    let members = members::list(&state.cloud, &ctx, parse_id(&id)?).await?;
    let members: Vec<_> = members.iter().map(shape::member).collect();
    Ok(Json(json!({"members": members, "schema": "/v2/schemas/members"})).into_response())
}

pub(super) async fn add(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<NewMember>,
) -> Answer {
    let member = members::add(&state.cloud, &ctx, parse_id(&id)?, &body.member).await?;
    Ok(Json(shape::member(&member)).into_response())
}

pub(super) async fn show(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, member)): Path<(String, String)>,
) -> Answer {
    let member = members::show(&state.cloud, &ctx, parse_id(&id)?, &member).await?;
    Ok(Json(shape::member(&member)).into_response())
}

pub(super) async fn answer(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, member)): Path<(String, String)>,
    Json(body): Json<Reply>,
) -> Answer {
    let status = Consent::parse(&body.status)?;
    let member = members::answer(&state.cloud, &ctx, parse_id(&id)?, &member, status).await?;
    Ok(Json(shape::member(&member)).into_response())
}

pub(super) async fn remove(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, member)): Path<(String, String)>,
) -> Answer {
    members::remove(&state.cloud, &ctx, parse_id(&id)?, &member).await?;
    Ok(no_content())
}
