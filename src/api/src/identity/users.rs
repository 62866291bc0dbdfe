//! `/v3/users`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use cloud::identity::{Secret, groups, projects, users};
use serde::Deserialize;
use serde_json::json;

use super::{Answer, no_content, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

#[derive(Deserialize)]
pub(super) struct Body<T> {
    user: T,
}

#[derive(Deserialize)]
pub(super) struct NewPassword {
    password: Secret,
    original_password: Secret,
}

pub(super) async fn list(State(state): State<AppState>, Auth(ctx): Auth, pairs: Pairs) -> Answer {
    let filter = users::Filter {
        name: pairs.get("name").map(str::to_owned),
        domain_id: pairs.get("domain_id").map(str::to_owned),
        enabled: pairs.flag("enabled")?,
        group_id: None,
    };
    let users = users::list(&state.cloud, &ctx, filter).await?;
    Ok(shape::list(&state, "users", &pairs, users, shape::user)?)
}

pub(super) async fn create(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Json(body): Json<Body<users::NewUser>>,
) -> Answer {
    let user = users::create(&state.cloud, &ctx, body.user).await?;
    Ok((
        StatusCode::CREATED,
        Json(json!({"user": shape::user(&state, user)})),
    )
        .into_response())
}

pub(super) async fn show(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    let user = users::show(&state.cloud, &ctx, &id).await?;
    Ok(Json(json!({"user": shape::user(&state, user)})).into_response())
}

pub(super) async fn update(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<Body<users::UserChange>>,
) -> Answer {
    let user = users::update(&state.cloud, &ctx, &id, body.user).await?;
    Ok(Json(json!({"user": shape::user(&state, user)})).into_response())
}

pub(super) async fn delete(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    users::delete(&state.cloud, &ctx, &id).await?;
    Ok(no_content())
}

/// Needs no token: the old password is the proof, as for someone whose password has expired.
pub(super) async fn change_password(
    State(state): State<AppState>,
    Path(id): Path<String>,
    Json(body): Json<Body<NewPassword>>,
) -> Answer {
    users::change_own_password(&state.cloud, &id, body.user.original_password, body.user.password).await?;
    Ok(no_content())
}

pub(super) async fn projects(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Answer {
    let projects = projects::of_user(&state.cloud, &ctx, &id).await?;
    Ok(shape::list(
        &state,
        &format!("users/{id}/projects"),
        &pairs,
        projects,
        shape::project,
    )?)
}

pub(super) async fn groups(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Answer {
    let groups = groups::of_user(&state.cloud, &ctx, &id).await?;
    Ok(shape::list(
        &state,
        &format!("users/{id}/groups"),
        &pairs,
        groups,
        shape::group,
    )?)
}
