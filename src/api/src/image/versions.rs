//! Which versions there are, asked without a token.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::AppState;
use crate::body::Json;

/// Clients decide by the highest what they may ask for. As in Glance, which names 2.14 and 2.16 only where images are cached,
/// and from 2.17 on lets clients set locations: neither is here.
const VERSIONS: [&str; 15] = [
    "v2.15", "v2.13", "v2.12", "v2.11", "v2.10", "v2.9", "v2.8", "v2.7", "v2.6", "v2.5", "v2.4", "v2.3",
    "v2.2", "v2.1", "v2.0",
];

fn document(state: &AppState) -> Value {
    let href = format!("{}/image/v2/", state.cloud.config.public_url);
    let versions = VERSIONS.iter().enumerate().map(|(place, id)| {
        let status = if place == 0 { "CURRENT" } else { "SUPPORTED" };
        json!({"id": id, "status": status, "links": [{"rel": "self", "href": href}]})
    });
    json!({"versions": versions.collect::<Vec<_>>()})
}

pub(super) async fn choose(State(state): State<AppState>) -> Response {
    (StatusCode::MULTIPLE_CHOICES, Json(document(&state))).into_response()
}

pub(super) async fn list(State(state): State<AppState>) -> Response {
    Json(document(&state)).into_response()
}
