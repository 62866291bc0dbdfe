//! Version documents and the (frozen, hence empty) list of extensions.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::microversion::{MAX, MIN};
use super::{Answer, gone, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::Json;

fn version(app: &AppState) -> Value {
    json!({
        "id": "v2.1",
        "status": "CURRENT",
        "version": format!("2.{}", MAX.0),
        "min_version": format!("2.{}", MIN.0),
        "updated": "2013-07-23T11:33:21Z",
        "links": [{"rel": "self", "href": format!("{}/compute/v2.1/", app.cloud.config.public_url)}],
    })
}

/// 2.0: the same as 2.1, whatever microversion a request asks for.
fn old_version(app: &AppState) -> Value {
    json!({
        "id": "v2.0",
        "status": "SUPPORTED",
        "version": "",
        "min_version": "",
        "updated": "2011-01-21T11:33:21Z",
        "links": [{"rel": "self", "href": format!("{}/compute/v2/", app.cloud.config.public_url)}],
    })
}

/// `GET /compute/`.
pub(super) async fn all(State(app): State<AppState>) -> Response {
    let versions = [old_version(&app), version(&app)];
    (StatusCode::OK, Json(json!({"versions": versions}))).into_response()
}

/// `GET /compute/v2/`.
pub(super) async fn old(State(app): State<AppState>) -> Response {
    detailed(old_version(&app), "version=2")
}

/// `GET /compute/v2.1/`.
pub(super) async fn one(State(app): State<AppState>) -> Response {
    detailed(version(&app), "version=2.1")
}

fn detailed(mut version: Value, media: &str) -> Response {
    if let Some(links) = version["links"].as_array_mut() {
        let docs = json!({"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"});
        links.push(docs);
    }
    let media = format!("application/vnd.openstack.compute+json;{media}");
    version["media-types"] = json!([{"base": "application/json", "type": media}]);
    Json(json!({"version": version})).into_response()
}

/// `GET /extensions`: what once were extensions has long been part of the API.
pub(super) async fn extensions(Auth(_): Auth) -> Answer {
    ok(json!({"extensions": []}))
}

/// `GET /extensions/{alias}`.
pub(super) async fn extension(Auth(_): Auth, Path(_): Path<String>) -> Answer {
    Err(gone())
}
