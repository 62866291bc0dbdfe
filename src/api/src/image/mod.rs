//! image.

use axum::Router;

use crate::AppState;

/// Routes below `/image`.
pub fn router() -> Router<AppState> {
    Router::new()
}
