//! Which versions there are, asked without a token; and what this Glance can do.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Answer;
use crate::AppState;
use crate::auth::Auth;
use crate::body::Json;

/// Clients decide by the highest what they may ask for: 2.9 knows hashes (2.7) and hidden images (2.7), and is the
/// last before stores by name.
const VERSIONS: [&str; 9] = [
    "v2.9", "v2.7", "v2.6", "v2.5", "v2.4", "v2.3", "v2.2", "v2.1", "v2.0",
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

/// What was staged can be imported; the cloud fetches nothing by itself.
pub(super) async fn import_methods(Auth(_): Auth) -> Answer {
    let methods =
        json!({"description": "Import methods available.", "type": "array", "value": ["glance-direct"]});
    Ok(Json(json!({"import-methods": methods})).into_response())
}
