//! Glance v2 under `/image`.

mod data;
mod filter;
mod images;
mod import;
mod members;
mod metadefs;
mod patch;
mod schemas;
mod shape;
mod versions;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use uuid::Uuid;

use crate::AppState;
use crate::fault::{Fault, Service};

/// What a handler of this service returns.
type Answer = Result<Response, Refusal>;

/// Any error on its way out of this service.
struct Refusal(Fault);

impl From<cloud::Error> for Refusal {
    fn from(error: cloud::Error) -> Self {
        Refusal(Fault::new(Service::Image, error))
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

/// Clients try names where ids belong; these are then not found.
fn parse_id(id: &str) -> Result<Uuid, cloud::Error> {
    let parsed = if id.len() == 36 {
        Uuid::try_parse(id).ok()
    } else {
        None
    };
    parsed.ok_or_else(|| cloud::Error::not_found("Image", id))
}

/// Routes below `/image`.
pub fn router() -> Router<AppState> {
    let data = put(data::upload)
        .get(data::download)
        .layer(DefaultBodyLimit::disable());
    Router::new()
        .route("/", get(versions::choose))
        .route("/versions", get(versions::list))
        .route("/v2/images", get(images::list).post(images::create))
        .route(
            "/v2/images/{id}",
            get(images::show).patch(images::update).delete(images::delete),
        )
        .route("/v2/images/{id}/file", data)
        .route(
            "/v2/images/{id}/stage",
            put(data::stage).layer(DefaultBodyLimit::disable()),
        )
        .route("/v2/images/{id}/import", post(import::begin))
        .route("/v2/images/{id}/tasks", get(import::of_image))
        .route("/v2/images/{id}/actions/deactivate", post(images::deactivate))
        .route("/v2/images/{id}/actions/reactivate", post(images::reactivate))
        .route(
            "/v2/images/{id}/tags/{tag}",
            put(images::add_tag).delete(images::remove_tag),
        )
        .route("/v2/images/{id}/members", get(members::list).post(members::add))
        .route(
            "/v2/images/{id}/members/{member}",
            get(members::show).put(members::answer).delete(members::remove),
        )
        .route("/v2/schemas/image", get(schemas::image))
        .route("/v2/schemas/images", get(schemas::images))
        .route("/v2/schemas/member", get(schemas::member))
        .route("/v2/schemas/members", get(schemas::members))
        .route("/v2/schemas/task", get(schemas::task))
        .route("/v2/schemas/tasks", get(schemas::tasks))
        .route("/v2/tasks", get(import::list).post(import::create))
        .route("/v2/tasks/{id}", get(import::show))
        .route(
            "/v2/metadefs/namespaces",
            get(metadefs::list).post(metadefs::create),
        )
        .route(
            "/v2/metadefs/namespaces/{namespace}",
            get(metadefs::show).put(metadefs::update).delete(metadefs::delete),
        )
        .route("/v2/metadefs/resource_types", get(metadefs::resource_types))
        .route(
            "/v2/metadefs/namespaces/{namespace}/resource_types",
            get(metadefs::associations).post(metadefs::associate),
        )
        .route(
            "/v2/metadefs/namespaces/{namespace}/resource_types/{name}",
            delete(metadefs::dissociate),
        )
        .route(
            "/v2/metadefs/namespaces/{namespace}/{kind}",
            get(metadefs::list_items)
                .post(metadefs::add_item)
                .delete(metadefs::remove_items),
        )
        .route(
            "/v2/metadefs/namespaces/{namespace}/{kind}/{name}",
            get(metadefs::show_item)
                .post(metadefs::add_tag)
                .put(metadefs::update_item)
                .delete(metadefs::remove_item),
        )
        .route("/v2/schemas/metadefs/{name}", get(metadefs::schema))
        .route("/v2/info/import", get(import::methods))
        .route("/v2/info/stores", get(import::stores))
        .route("/v2/info/stores/detail", get(import::stores_detail))
        .route("/v2/info/catalogue", get(import::catalogue))
        .route("/v2/info/usage", get(import::usage))
        .route("/v2/stores/{store}/{id}", delete(import::delete_from_store))
}
