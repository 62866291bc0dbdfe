//! The HTTP edge: TLS, routing, one folder per OpenStack service, faults.
//!
//! A handler does three things: check the request, call one function of `cloud`, shape the answer.

pub mod auth;
pub mod body;
pub mod edge;
pub mod fault;
pub mod metrics;
pub mod page;

pub mod compute;
pub mod identity;
pub mod image;
pub mod key_manager;
pub mod network;
pub mod placement;
pub mod volume;

use std::sync::Arc;

use axum::Router;

pub use edge::{Limits, serve, serve_with};

/// What every handler can reach.
#[derive(Clone)]
pub struct AppState {
    /// The cloud.
    pub cloud: Arc<cloud::Cloud>,
    /// Counters for `/metrics`.
    pub metrics: metrics::Metrics,
    /// `/metrics` is answered to others than the node itself.
    pub open_metrics: bool,
}

impl AppState {
    /// Everything new, `/metrics` for the node alone.
    pub fn new(cloud: Arc<cloud::Cloud>) -> Self {
        AppState {
            cloud,
            metrics: metrics::Metrics::default(),
            open_metrics: false,
        }
    }
}

/// All services under their paths, with all that every request passes.
pub fn router(state: AppState) -> Router {
    edge::wrap(services().with_state(state.clone()), state)
}

/// All services under their paths.
fn services() -> Router<AppState> {
    Router::new()
        .merge(edge::routes())
        .nest("/identity", identity::router())
        .nest("/image", image::router())
        .nest("/compute", compute::router())
        .nest("/network", network::router())
        .nest("/placement", placement::router())
        .nest("/key-manager", key_manager::router())
        .nest("/volume", volume::router())
}

#[cfg(test)]
mod tests;
