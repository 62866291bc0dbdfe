//! identity.

use axum::Router;

use crate::AppState;

/// Routes below `/identity`.
pub fn router() -> Router<AppState> {
    Router::new()
}
