//! `/v1/secrets/{id}/metadata`.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use cloud::Error;
use cloud::secret::meta::{self, Put};
use serde::Deserialize;
use serde_json::json;

use super::{Answer, no_content, parse_id, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::Json;

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/secrets/{id}/metadata", get(list).put(replace).post(add))
        .route(
            "/secrets/{id}/metadata/{key}",
            get(show).put(change).delete(remove),
        )
}

#[derive(Deserialize)]
struct All {
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct One {
    key: String,
    value: String,
}

async fn list(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    let all = meta::list(&state.cloud, &ctx, parse_id("Secret", &id)?).await?;
    Ok(Json(json!({"metadata": all})).into_response())
}

async fn replace(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<All>,
) -> Answer {
    let id = parse_id("Secret", &id)?;
    meta::replace(&state.cloud, &ctx, id, body.metadata).await?;
    let reference = shape::url(&state, format_args!("secrets/{id}/metadata"));
    Ok((StatusCode::CREATED, Json(json!({"metadata_ref": reference}))).into_response())
}

async fn add(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<One>,
) -> Answer {
    let id = parse_id("Secret", &id)?;
    meta::put(&state.cloud, &ctx, id, Put::New, &body.key, &body.value).await?;
    let at = shape::url(&state, format_args!("secrets/{id}/metadata"));
    let view = json!({"key": body.key.to_lowercase(), "value": body.value});
    let mut response = (StatusCode::CREATED, Json(view)).into_response();
    if let Ok(at) = HeaderValue::from_str(&at) {
        response.headers_mut().insert(header::LOCATION, at);
    }
    Ok(response)
}

async fn show(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, key)): Path<(String, String)>,
) -> Answer {
    let all = meta::list(&state.cloud, &ctx, parse_id("Secret", &id)?).await?;
    let key = key.to_lowercase();
    let value = all.get(&key);
    let value = value.ok_or_else(|| Error::not_found("Secret metadata", &key))?;
    Ok(Json(json!({"key": key, "value": value})).into_response())
}

async fn change(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, key)): Path<(String, String)>,
    Json(body): Json<One>,
) -> Answer {
    if key != body.key {
        return Err(Error::BadRequest("The key in the path and in the body are not the same.".into()).into());
    }
    let id = parse_id("Secret", &id)?;
    meta::put(&state.cloud, &ctx, id, Put::Known, &key, &body.value).await?;
    Ok(Json(json!({"key": key.to_lowercase(), "value": body.value})).into_response())
}

async fn remove(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, key)): Path<(String, String)>,
) -> Answer {
    meta::remove(&state.cloud, &ctx, parse_id("Secret", &id)?, &key).await?;
    Ok(no_content())
}
