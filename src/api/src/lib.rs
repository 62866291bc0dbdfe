//! The HTTP edge: TLS, routing, one folder per OpenStack service, faults.
//!
//! A handler does three things: check the request, call one function of `cloud`, shape the answer.

pub mod auth;
pub mod fault;

pub mod compute;
pub mod identity;
pub mod image;
pub mod network;

use std::sync::Arc;

use axum::Router;

/// What every handler can reach.
#[derive(Clone)]
pub struct AppState {
    /// The cloud.
    pub cloud: Arc<cloud::Cloud>,
}

/// All services under their paths.
pub fn router(state: AppState) -> Router {
    Router::new()
        .nest("/identity", identity::router())
        .nest("/image", image::router())
        .nest("/compute", compute::router())
        .nest("/network", network::router())
        .with_state(state)
}
