//! `/v3/users/{id}/application_credentials`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use cloud::identity::credentials;
use serde::Deserialize;
use serde_json::json;

use super::{Answer, no_content, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

#[derive(Deserialize)]
pub(super) struct Body {
    application_credential: credentials::NewCredential,
}

pub(super) async fn list(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(user): Path<String>,
    pairs: Pairs,
) -> Answer {
    let all = credentials::list(&state.cloud, &ctx, &user, pairs.get("name").map(str::to_owned)).await?;
    Ok(shape::list(
        &state,
        &format!("users/{user}/application_credentials"),
        &pairs,
        all,
        shape::credential,
    )?)
}

/// The only answer that ever holds the secret.
pub(super) async fn create(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(user): Path<String>,
    Json(body): Json<Body>,
) -> Answer {
    let (credential, secret) =
        credentials::create(&state.cloud, &ctx, &user, body.application_credential).await?;
    let mut shaped = shape::credential(&state, credential);
    shaped["secret"] = secret.expose().into();
    Ok((
        StatusCode::CREATED,
        Json(json!({"application_credential": shaped})),
    )
        .into_response())
}

pub(super) async fn show(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((user, id)): Path<(String, String)>,
) -> Answer {
    let credential = credentials::show(&state.cloud, &ctx, &user, &id).await?;
    Ok(Json(json!({"application_credential": shape::credential(&state, credential)})).into_response())
}

pub(super) async fn delete(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((user, id)): Path<(String, String)>,
) -> Answer {
    credentials::delete(&state.cloud, &ctx, &user, &id).await?;
    Ok(no_content())
}
