//! Which versions there are; asked without a token.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::AppState;
use crate::body::Json;

fn document(state: &AppState) -> Value {
    json!({
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": format!("{}/identity/v3/", state.cloud.config.public_url)}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    })
}

pub(super) async fn all(State(state): State<AppState>) -> Response {
    let body = json!({"versions": {"values": [document(&state)]}});
    (StatusCode::MULTIPLE_CHOICES, Json(body)).into_response()
}

pub(super) async fn v3(State(state): State<AppState>) -> Response {
    Json(json!({"version": document(&state)})).into_response()
}
