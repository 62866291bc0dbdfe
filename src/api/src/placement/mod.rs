//! Placement's API, 1.0 to 1.39.

mod allocations;
mod candidates;
mod microversion;
mod names;
mod providers;
mod query;
#[cfg(test)]
mod tests;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use crate::AppState;
use crate::body::Json;
use crate::fault::{Fault, Service};
use microversion::Microversion;

/// What handlers answer.
type Answer = Result<Response, Failure>;

/// A fault in Placement's words.
#[derive(Debug)]
struct Failure(Fault);

impl From<cloud::Error> for Failure {
    fn from(error: cloud::Error) -> Self {
        Failure(Fault::new(Service::Placement, error))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

/// 404, for what a version does not have.
fn gone() -> Failure {
    Failure(Fault::http(
        Service::Placement,
        StatusCode::NOT_FOUND,
        "The resource could not be found.",
    ))
}

/// 400.
fn bad(message: impl Into<String>) -> Failure {
    cloud::Error::BadRequest(message.into()).into()
}

/// JSON, which from 1.15 on says that it may not be kept, and how old it is.
fn answer(version: Microversion, status: StatusCode, body: Value) -> Answer {
    let mut response = (status, Json(body)).into_response();
    stamp(version, &mut response);
    Ok(response)
}

fn ok(version: Microversion, body: Value) -> Answer {
    answer(version, StatusCode::OK, body)
}

fn stamp(version: Microversion, response: &mut Response) {
    if version >= Microversion::CACHE_HEADERS {
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        let now = cloud::compute::now().http_date();
        if let Ok(now) = HeaderValue::from_str(&now) {
            headers.insert(header::LAST_MODIFIED, now);
        }
    }
}

/// A status alone.
fn empty(version: Microversion, status: StatusCode) -> Answer {
    let mut response = status.into_response();
    if status != StatusCode::NO_CONTENT {
        stamp(version, &mut response);
    }
    Ok(response)
}

/// The version document, for whoever asks.
async fn root(State(app): State<AppState>) -> Response {
    let href = format!("{}/placement/", app.cloud.config.public_url);
    Json(json!({"versions": [{
        "id": "v1.0",
        "status": "CURRENT",
        "min_version": microversion::MIN.text(),
        "max_version": microversion::MAX.text(),
        "links": [{"rel": "self", "href": href}],
    }]}))
    .into_response()
}

/// Routes below `/placement`.
pub fn router() -> Router<AppState> {
    Router::new()
        .route("/", get(root))
        .route(
            "/resource_providers",
            get(providers::index).post(providers::create),
        )
        .route(
            "/resource_providers/{id}",
            get(providers::show)
                .put(providers::update)
                .delete(providers::delete),
        )
        .route(
            "/resource_providers/{id}/inventories",
            get(providers::inventories)
                .post(providers::add_inventory)
                .put(providers::replace_inventories)
                .delete(providers::remove_inventories),
        )
        .route(
            "/resource_providers/{id}/inventories/{class}",
            get(providers::inventory)
                .put(providers::update_inventory)
                .delete(providers::remove_inventory),
        )
        .route("/resource_providers/{id}/usages", get(providers::usages))
        .route(
            "/resource_providers/{id}/aggregates",
            get(providers::aggregates).put(providers::set_aggregates),
        )
        .route(
            "/resource_providers/{id}/traits",
            get(providers::traits)
                .put(providers::set_traits)
                .delete(providers::remove_traits),
        )
        .route(
            "/resource_providers/{id}/allocations",
            get(allocations::of_provider),
        )
        .route("/resource_classes", get(names::classes).post(names::create_class))
        .route(
            "/resource_classes/{name}",
            get(names::class)
                .put(names::put_class)
                .delete(names::delete_class),
        )
        .route("/traits", get(names::traits))
        .route(
            "/traits/{name}",
            get(names::one_trait)
                .put(names::put_trait)
                .delete(names::delete_trait),
        )
        .route("/allocations", post(allocations::set_many))
        .route(
            "/allocations/{consumer}",
            get(allocations::show)
                .put(allocations::set)
                .delete(allocations::delete),
        )
        .route("/allocation_candidates", get(candidates::index))
        .route("/usages", get(allocations::usages))
        .route("/reshaper", post(allocations::reshape))
        .fallback(|| async { gone() })
        .layer(from_fn(microversion::negotiate))
}
