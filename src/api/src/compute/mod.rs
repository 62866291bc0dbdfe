//! Nova's API, 2.1 to 2.96.

mod actions;
mod aggregates;
pub(crate) mod check;
mod create;
mod devices;
mod flavors;
mod groups;
mod hosts;
mod images;
mod keypairs;
mod list;
mod machines;
pub mod microversion;
mod parts;
mod plugs;
mod quotas;
mod security;
mod servers;
#[cfg(test)]
mod tests;
mod versions;
mod views;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::Value;

use crate::AppState;
use crate::body::{Json, Pairs};
use crate::fault::{Fault, Service};
use microversion::Microversion;

/// The longest page of a list, as Nova's `max_limit`.
const MAX_LIMIT: usize = 1000;

/// What handlers answer.
type Answer = Result<Response, Failure>;

/// A fault in Nova's words.
#[derive(Debug)]
struct Failure(Fault);

impl From<cloud::Error> for Failure {
    fn from(error: cloud::Error) -> Self {
        Failure(Fault::new(Service::Compute, error))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

/// 404, as Nova answers endpoints that a version does not have.
fn gone() -> Failure {
    Failure(Fault::http(
        Service::Compute,
        StatusCode::NOT_FOUND,
        "The resource could not be found.",
    ))
}

/// 200 and JSON.
fn ok(body: Value) -> Answer {
    Ok(Json(body).into_response())
}

/// A status alone.
fn empty(status: StatusCode) -> Answer {
    Ok(status.into_response())
}

/// From 2.75 a query parameter that is not known is an error; before, it is ignored.
fn known_queries(version: Microversion, pairs: &Pairs, known: &[&str]) -> Result<(), cloud::Error> {
    if version < Microversion::STRICT_QUERIES {
        return Ok(());
    }
    match pairs.0.iter().find(|(key, _)| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some((key, _)) => Err(cloud::Error::BadRequest(format!(
            "Additional properties are not allowed ('{}' was unexpected)",
            key.chars().take(64).collect::<String>()
        ))),
    }
}

/// `limit`: at most [`MAX_LIMIT`], also where nothing was said.
fn limit(pairs: &Pairs) -> Result<usize, cloud::Error> {
    let number = pairs.number("limit")?;
    Ok(number.map_or(MAX_LIMIT, |n| {
        usize::try_from(n).unwrap_or(MAX_LIMIT).min(MAX_LIMIT)
    }))
}

/// `marker`, if it is not empty.
fn marker(pairs: &Pairs) -> Option<String> {
    pairs.get("marker").filter(|m| !m.is_empty()).map(str::to_owned)
}

/// Routes below `/compute`.
pub fn router() -> Router<AppState> {
    let v21 = Router::new()
        .route("/images", get(images::index).delete(security::delete_none))
        .route("/images/detail", get(images::detail))
        .route("/images/{id}", get(images::show).delete(images::delete))
        .route(
            "/images/{id}/metadata",
            get(images::metadata)
                .post(images::merge_metadata)
                .put(images::replace_metadata),
        )
        .route(
            "/images/{id}/metadata/{key}",
            get(images::metadata_item)
                .put(images::set_metadata_item)
                .delete(images::remove_metadata_item),
        )
        .route("/extensions", get(versions::extensions))
        .route("/extensions/{alias}", get(versions::extension))
        .route("/flavors", get(flavors::index).post(flavors::create))
        .route("/flavors/detail", get(flavors::detail))
        .route(
            "/flavors/{id}",
            get(flavors::show).put(flavors::update).delete(flavors::delete),
        )
        .route("/flavors/{id}/action", post(flavors::action))
        .route("/flavors/{id}/os-flavor-access", get(flavors::access))
        .route(
            "/flavors/{id}/os-extra_specs",
            get(flavors::specs).post(flavors::set_specs),
        )
        .route(
            "/flavors/{id}/os-extra_specs/{key}",
            get(flavors::spec)
                .put(flavors::set_spec)
                .delete(flavors::unset_spec),
        )
        .route("/os-keypairs", get(keypairs::index).post(keypairs::create))
        .route(
            "/os-keypairs/{name}",
            get(keypairs::show).delete(keypairs::delete),
        )
        .route("/servers", get(servers::index).post(servers::create))
        .route("/servers/detail", get(servers::detail))
        .route(
            "/servers/{id}",
            get(servers::show).put(servers::update).delete(servers::delete),
        )
        .route("/servers/{id}/action", post(actions::act))
        .route(
            "/servers/{id}/metadata",
            get(parts::metadata)
                .post(parts::merge_metadata)
                .put(parts::replace_metadata),
        )
        .route(
            "/servers/{id}/metadata/{key}",
            get(parts::metadata_item)
                .put(parts::set_metadata_item)
                .delete(parts::remove_metadata_item),
        )
        .route(
            "/servers/{id}/tags",
            get(parts::tags)
                .put(parts::replace_tags)
                .delete(parts::remove_tags),
        )
        .route(
            "/servers/{id}/tags/{tag}",
            get(parts::has_tag).put(parts::add_tag).delete(parts::remove_tag),
        )
        .route("/servers/{id}/ips", get(parts::ips))
        .route("/servers/{id}/ips/{network}", get(parts::ips_of_network))
        .route(
            "/servers/{id}/os-interface",
            get(plugs::interfaces).post(plugs::attach_interface),
        )
        .route(
            "/servers/{id}/os-interface/{port}",
            get(plugs::interface).delete(plugs::detach_interface),
        )
        .route("/servers/{id}/os-security-groups", get(parts::security_groups))
        .route(
            "/servers/{id}/os-volume_attachments",
            get(plugs::volumes).post(plugs::attach_volume),
        )
        .route(
            "/servers/{id}/os-volume_attachments/{volume}",
            get(plugs::volume)
                .put(plugs::update_volume)
                .delete(plugs::detach_volume),
        )
        .route("/servers/{id}/os-instance-actions", get(parts::history))
        .route(
            "/servers/{id}/os-instance-actions/{request}",
            get(parts::history_entry),
        )
        .route("/servers/{id}/diagnostics", get(parts::diagnostics))
        .route("/servers/{id}/topology", get(machines::topology))
        .route("/servers/{id}/migrations", get(machines::migrations))
        .route("/servers/{id}/migrations/{migration}", get(machines::migration))
        .route(
            "/servers/{id}/os-server-password",
            get(machines::password).delete(machines::forget_password),
        )
        .route("/servers/{id}/remote-consoles", post(machines::remote_console))
        .route("/os-server-external-events", post(machines::external_events))
        .route(
            "/os-security-groups",
            get(security::index)
                .post(security::create)
                .delete(security::delete_none),
        )
        .route(
            "/os-security-groups/{id}",
            get(security::show).put(security::update).delete(security::delete),
        )
        .route("/os-security-group-rules", post(security::create_rule))
        .route(
            "/os-security-group-rules/{id}",
            axum::routing::delete(security::delete_rule),
        )
        .route("/os-server-groups", get(groups::index).post(groups::create))
        .route("/os-server-groups/{id}", get(groups::show).delete(groups::delete))
        .route("/os-availability-zone", get(hosts::zones))
        .route("/os-availability-zone/detail", get(hosts::zones_detail))
        .route("/os-hypervisors", get(hosts::hypervisors))
        .route("/os-hypervisors/detail", get(hosts::hypervisors_detail))
        .route("/os-hypervisors/statistics", get(hosts::statistics))
        .route("/os-hypervisors/{id}", get(hosts::hypervisor))
        .route("/os-hypervisors/{id}/uptime", get(hosts::uptime))
        .route("/os-hypervisors/{pattern}/search", get(hosts::search))
        .route("/os-hypervisors/{pattern}/servers", get(hosts::search_servers))
        .route("/os-services", get(hosts::services))
        .route("/os-aggregates", get(aggregates::index).post(aggregates::create))
        .route(
            "/os-aggregates/{id}",
            get(aggregates::show)
                .put(aggregates::update)
                .delete(aggregates::delete),
        )
        .route("/os-aggregates/{id}/action", post(aggregates::act))
        .route("/os-aggregates/{id}/images", post(aggregates::cache))
        .route(
            "/os-quota-class-sets/{name}",
            get(quotas::class).put(quotas::update_class),
        )
        .route("/os-migrations", get(hosts::migrations))
        .route("/limits", get(quotas::limits))
        .route(
            "/os-quota-sets/{project}",
            get(quotas::show).put(quotas::update).delete(quotas::reset),
        )
        .route("/os-quota-sets/{project}/defaults", get(quotas::defaults))
        .route("/os-quota-sets/{project}/detail", get(quotas::detail))
        .route("/os-simple-tenant-usage", get(quotas::usage_list))
        .route("/os-simple-tenant-usage/{project}", get(quotas::usage));
    Router::new()
        .route("/", get(versions::all))
        .route("/v2.1", get(versions::one))
        .route("/v2", get(versions::old))
        .nest("/v2", v21.clone())
        .nest("/v2.1", v21)
        .layer(from_fn(microversion::negotiate))
}
