//! Barbican v1 under `/key-manager`.

mod acls;
mod consumers;
mod containers;
mod metadata;
mod orders;
mod quotas;
mod secrets;
mod shape;
#[cfg(test)]
mod tests;
mod versions;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use uuid::Uuid;

use crate::AppState;
use crate::fault::{Fault, Service};

/// What a handler of this service returns.
type Answer = Result<Response, Refusal>;

/// Any error on its way out of this service.
struct Refusal(Fault);

impl From<cloud::Error> for Refusal {
    fn from(error: cloud::Error) -> Self {
        Refusal(Fault::new(Service::KeyManager, error))
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Refusal(fault)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

fn no_content() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// An id in a path or at the end of a reference.
fn parse_id(resource: &'static str, id: &str) -> Result<Uuid, cloud::Error> {
    id.parse()
        .map_err(|_| cloud::Error::not_found(resource, id.chars().take(64).collect::<String>()))
}

/// Routes below `/key-manager`.
pub fn router() -> Router<AppState> {
    let v1 = Router::new()
        .merge(secrets::routes())
        .merge(metadata::routes())
        .merge(containers::routes())
        .merge(consumers::routes())
        .merge(acls::routes())
        .merge(orders::routes())
        .merge(quotas::routes())
        .layer(from_fn(versions::negotiate));
    Router::new()
        .route("/", get(versions::all))
        .route("/v1", get(versions::v1))
        .nest("/v1", v1)
}
