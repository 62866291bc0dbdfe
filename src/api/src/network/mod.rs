//! network.

use axum::Router;

use crate::AppState;

/// Routes below `/network`.
pub fn router() -> Router<AppState> {
    Router::new()
}
