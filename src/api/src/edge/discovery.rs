//! What is served outside the services: the root document, health, metrics.

use axum::Extension;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

use super::Peer;
use crate::AppState;
use crate::body::Json;
use crate::fault::{Fault, Service};

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/", get(root))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
}

async fn root(State(state): State<AppState>) -> Response {
    let url = &state.cloud.config.public_url;
    let services: Vec<_> = cloud::identity::catalog::SERVED
        .iter()
        .map(|s| json!({"type": s.kind, "name": s.name, "href": format!("{url}{}", s.path)}))
        .collect();
    Json(json!({
        "name": "allod",
        "version": env!("CARGO_PKG_VERSION"),
        "region": state.cloud.config.region,
        "auth_url": format!("{url}/identity/v3"),
        "services": services,
    }))
    .into_response()
}

/// 200 once the store answers reads.
async fn healthz(State(state): State<AppState>) -> Response {
    let read = state
        .cloud
        .store
        .read(|conn| Ok::<i64, cloud::Error>(conn.query_row("SELECT 1", [], |row| row.get(0))?));
    match tokio::time::timeout(std::time::Duration::from_secs(2), read).await {
        Ok(Ok(_)) => Json(json!({"status": "ok"})).into_response(),
        Ok(Err(error)) => {
            tracing::error!(%error, "the store does not answer");
            (
                StatusCode::SERVICE_UNAVAILABLE,
                Json(json!({"status": "the store does not answer"})),
            )
                .into_response()
        }
        Err(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({"status": "the store is slow"})),
        )
            .into_response(),
    }
}

/// For the node itself, unless the operator opens it.
async fn metrics(State(state): State<AppState>, peer: Option<Extension<Peer>>) -> Response {
    let near = peer.is_none_or(|peer| peer.0.0.ip().to_canonical().is_loopback());
    if !near && !state.open_metrics {
        let why = "Metrics are for the node itself unless the configuration opens them.";
        return Fault::new(Service::Identity, cloud::Error::Forbidden(why.into())).into_response();
    }
    let text = state.metrics.scrape(&state.cloud).await;
    (
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        text,
    )
        .into_response()
}
