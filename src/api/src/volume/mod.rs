//! Cinder's API, 3.0 to 3.71, with the project in the path or without.

mod actions;
mod admin;
mod attachments;
mod backups;
mod listing;
pub mod microversion;
mod quotas;
mod snapshots;
#[cfg(test)]
mod tests;
mod transfers;
mod type_encryption;
mod types;
mod versions;
mod volumes;

use axum::Router;
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use cloud::{Context, Error};
use serde_json::Value;

use crate::AppState;
use crate::auth::Auth;
use crate::body::Json;
use crate::fault::{Fault, Service};
use microversion::Microversion;

/// What handlers answer.
type Answer = Result<Response, Failure>;

/// A fault in Cinder's words.
#[derive(Debug)]
struct Failure(Fault);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure(Fault::new(Service::Volume, error))
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure(fault)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

/// 404, as Cinder answers endpoints that a version does not have.
fn gone() -> Failure {
    Failure(Fault::http(
        Service::Volume,
        StatusCode::NOT_FOUND,
        "The resource could not be found.",
    ))
}

/// The endpoint has been there since this version.
fn since(version: Microversion, first: Microversion) -> Result<(), Failure> {
    if version < first { Err(gone()) } else { Ok(()) }
}

/// A status and JSON.
fn json(status: StatusCode, body: Value) -> Answer {
    Ok((status, Json(body)).into_response())
}

/// 200 and JSON.
fn ok(body: Value) -> Answer {
    json(StatusCode::OK, body)
}

/// 202 and JSON.
fn accepted(body: Value) -> Answer {
    json(StatusCode::ACCEPTED, body)
}

/// A status alone.
fn empty(status: StatusCode) -> Answer {
    Ok(status.into_response())
}

/// The caller and the ids in the path.
struct Call {
    ctx: Context,
    version: Microversion,
    /// As the client wrote the path up to and with the project, or the version.
    base: String,
    params: Vec<(String, String)>,
}

impl Call {
    /// The id of what is called.
    fn id(&self) -> &str {
        self.param("id")
    }

    fn param(&self, name: &str) -> &str {
        self.params
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value.as_str())
    }
}

impl FromRequestParts<AppState> for Call {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Failure> {
        let Auth(ctx) = Auth::from_request_parts(parts, state).await?;
        let Ok(version) = Microversion::from_request_parts(parts, state).await;
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| Error::BadRequest("Malformed request url".into()))?;
        let params: Vec<(String, String)> = params
            .iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let mut base = format!("{}/volume/v3", state.cloud.config.public_url);
        if let Some((_, project)) = params.iter().find(|(key, _)| key == "project") {
            if ctx.project().ok() != Some(project.as_str()) {
                return Err(Error::BadRequest("Malformed request url".into()).into());
            }
            base = format!("{base}/{project}");
        }
        Ok(Call {
            ctx,
            version,
            base,
            params,
        })
    }
}

/// Routes below the project, or the version.
fn resources() -> Router<AppState> {
    Router::new()
        .route("/extensions", get(versions::extensions))
        .route("/extensions/{id}", get(versions::extension))
        .route("/volumes", get(volumes::index).post(volumes::create))
        .route("/volumes/detail", get(volumes::detail))
        .route("/volumes/summary", get(volumes::summary))
        .route(
            "/volumes/{id}",
            get(volumes::show).put(volumes::update).delete(volumes::delete),
        )
        .route("/volumes/{id}/action", post(actions::volume))
        .route(
            "/volumes/{id}/metadata",
            get(volumes::metadata)
                .post(volumes::merge_metadata)
                .put(volumes::replace_metadata),
        )
        .route(
            "/volumes/{id}/metadata/{key}",
            get(volumes::metadata_item)
                .put(volumes::set_metadata_item)
                .delete(volumes::remove_metadata_item),
        )
        .route("/volumes/{id}/encryption", get(volumes::encryption))
        .route("/volumes/{id}/encryption/{key}", get(volumes::encryption_key))
        .route("/snapshots", get(snapshots::index).post(snapshots::create))
        .route("/snapshots/detail", get(snapshots::detail))
        .route(
            "/snapshots/{id}",
            get(snapshots::show)
                .put(snapshots::update)
                .delete(snapshots::delete),
        )
        .route("/snapshots/{id}/action", post(actions::snapshot))
        .route(
            "/snapshots/{id}/metadata",
            get(snapshots::metadata)
                .post(snapshots::merge_metadata)
                .put(snapshots::replace_metadata),
        )
        .route(
            "/snapshots/{id}/metadata/{key}",
            get(snapshots::metadata_item)
                .put(snapshots::set_metadata_item)
                .delete(snapshots::remove_metadata_item),
        )
        .route("/backups", get(backups::index).post(backups::create))
        .route("/backups/detail", get(backups::detail))
        .route(
            "/backups/{id}",
            get(backups::show).put(backups::update).delete(backups::delete),
        )
        .route("/backups/{id}/action", post(actions::backup))
        .route("/backups/{id}/restore", post(backups::restore))
        .route("/backups/{id}/export_record", get(backups::export))
        .route("/backups/import_record", post(backups::import))
        .route("/attachments", get(attachments::index).post(attachments::create))
        .route("/attachments/detail", get(attachments::detail))
        .route(
            "/attachments/{id}",
            get(attachments::show)
                .put(attachments::update)
                .delete(attachments::delete),
        )
        .route("/attachments/{id}/action", post(attachments::action))
        .route("/types", get(types::index).post(types::create))
        .route(
            "/types/{id}",
            get(types::show).put(types::update).delete(types::delete),
        )
        .route("/types/{id}/action", post(types::action))
        .route("/types/{id}/os-volume-type-access", get(types::access))
        .route(
            "/types/{id}/extra_specs",
            get(types::specs).post(types::set_specs),
        )
        .route(
            "/types/{id}/extra_specs/{key}",
            get(types::spec).put(types::set_spec).delete(types::unset_spec),
        )
        .route(
            "/types/{id}/encryption",
            get(type_encryption::show).post(type_encryption::create),
        )
        .route(
            "/types/{id}/encryption/{key}",
            get(type_encryption::item)
                .put(type_encryption::update)
                .delete(type_encryption::delete),
        )
        .route("/default-types", get(types::defaults))
        .route(
            "/default-types/{id}",
            get(types::default)
                .put(types::set_default)
                .delete(types::unset_default),
        )
        .route("/qos-specs", get(types::qos_index).post(types::qos_create))
        .route(
            "/qos-specs/{id}",
            get(types::qos_show)
                .put(types::qos_update)
                .delete(types::qos_delete),
        )
        .route("/qos-specs/{id}/delete_keys", put(types::qos_delete_keys))
        .route("/qos-specs/{id}/associations", get(types::qos_associations))
        .route("/qos-specs/{id}/associate", get(types::qos_associate))
        .route("/qos-specs/{id}/disassociate", get(types::qos_disassociate))
        .route(
            "/qos-specs/{id}/disassociate_all",
            get(types::qos_disassociate_all),
        )
        .merge(transfers::routes("/os-volume-transfer"))
        .merge(transfers::routes("/volume-transfers"))
        .route("/messages", get(admin::messages))
        .route(
            "/messages/{id}",
            get(admin::message).delete(admin::delete_message),
        )
        .route("/limits", get(quotas::limits))
        .route(
            "/os-quota-sets/{id}",
            get(quotas::show).put(quotas::update).delete(quotas::reset),
        )
        .route("/os-quota-sets/{id}/defaults", get(quotas::defaults))
        .route(
            "/os-quota-class-sets/{id}",
            get(quotas::class).put(quotas::update_class),
        )
        .route("/os-availability-zone", get(admin::zones))
        .route("/os-services", get(admin::services))
        .route("/os-services/{id}", put(admin::update_service))
        .route("/os-hosts", get(admin::hosts))
        .route("/os-hosts/{id}", get(admin::host))
        .route("/scheduler-stats/get_pools", get(admin::pools))
        .route("/capabilities/{id}", get(admin::capabilities))
        .route("/resource_filters", get(admin::resource_filters))
}

/// Routes below `/volume`.
pub fn router() -> Router<AppState> {
    let v3 = Router::new().merge(resources()).nest("/{project}", resources());
    Router::new()
        .route("/", get(versions::all))
        .route("/v3", get(versions::one))
        .route("/v3/", get(versions::one))
        .nest("/v3", v3)
        .layer(from_fn(microversion::negotiate))
}
