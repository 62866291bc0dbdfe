//! compute.

use axum::Router;

use crate::AppState;

/// Routes below `/compute`.
pub fn router() -> Router<AppState> {
    Router::new()
}
