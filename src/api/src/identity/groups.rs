//! `/v3/groups`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use cloud::identity::{groups, users};
use serde::Deserialize;
use serde_json::json;

use super::{Answer, no_content, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

#[derive(Deserialize)]
pub(super) struct Body<T> {
    group: T,
}

pub(super) async fn list(State(state): State<AppState>, Auth(ctx): Auth, pairs: Pairs) -> Answer {
    let filter = groups::Filter {
        name: pairs.get("name").map(str::to_owned),
        domain_id: pairs.get("domain_id").map(str::to_owned),
    };
    let groups = groups::list(&state.cloud, &ctx, filter).await?;
    Ok(shape::list(&state, "groups", &pairs, groups, shape::group)?)
}

pub(super) async fn create(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Json(body): Json<Body<groups::NewGroup>>,
) -> Answer {
    let group = groups::create(&state.cloud, &ctx, body.group).await?;
    Ok((
        StatusCode::CREATED,
        Json(json!({"group": shape::group(&state, group)})),
    )
        .into_response())
}

pub(super) async fn show(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    let group = groups::show(&state.cloud, &ctx, &id).await?;
    Ok(Json(json!({"group": shape::group(&state, group)})).into_response())
}

pub(super) async fn update(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<Body<groups::GroupChange>>,
) -> Answer {
    let group = groups::update(&state.cloud, &ctx, &id, body.group).await?;
    Ok(Json(json!({"group": shape::group(&state, group)})).into_response())
}

pub(super) async fn delete(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    groups::delete(&state.cloud, &ctx, &id).await?;
    Ok(no_content())
}

pub(super) async fn members(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Answer {
    groups::show(&state.cloud, &ctx, &id).await?;
    let filter = users::Filter {
        group_id: Some(id.clone()),
        ..Default::default()
    };
    let users = users::list(&state.cloud, &ctx, filter).await?;
    Ok(shape::list(
        &state,
        &format!("groups/{id}/users"),
        &pairs,
        users,
        shape::user,
    )?)
}

pub(super) async fn is_member(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, user)): Path<(String, String)>,
) -> Answer {
    groups::check_member(&state.cloud, &ctx, &id, &user).await?;
    Ok(no_content())
}

pub(super) async fn add_member(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, user)): Path<(String, String)>,
) -> Answer {
    groups::add_member(&state.cloud, &ctx, &id, &user).await?;
    Ok(no_content())
}

pub(super) async fn remove_member(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, user)): Path<(String, String)>,
) -> Answer {
    groups::remove_member(&state.cloud, &ctx, &id, &user).await?;
    Ok(no_content())
}
