//! The catalog, and its parts as resources. What is in it is decided by the release, not by rows.

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use cloud::identity::catalog::{INTERFACES, SERVED, Served, url};
use serde_json::{Value, json};

use super::{Answer, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

/// As it stands in a token.
pub(super) fn all(state: &AppState) -> Value {
    let config = &state.cloud.config;
    let services = SERVED.iter().map(|service| {
        let endpoints: Vec<_> = INTERFACES
            .iter()
            .zip(service.endpoints)
            .map(|(interface, id)| {
                json!({
                    "id": id,
                    "interface": interface,
                    "region": config.region,
                    "region_id": config.region,
                    "url": url(config, service),
                })
            })
            .collect();
        json!({"id": service.id, "type": service.kind, "name": service.name, "endpoints": endpoints})
    });
    services.collect()
}

pub(super) async fn catalog(State(state): State<AppState>, Auth(_): Auth) -> Answer {
    let this = shape::url(&state, "auth/catalog");
    let links = json!({"self": this, "next": null, "previous": null});
    Ok(Json(json!({"catalog": all(&state), "links": links})).into_response())
}

fn region_body(state: &AppState, id: String) -> Value {
    let this = shape::url(state, &format!("regions/{id}"));
    json!({"id": id, "description": "", "parent_region_id": null, "links": {"self": this}})
}

fn service_body(state: &AppState, service: &'static Served) -> Value {
    json!({
        "id": service.id,
        "type": service.kind,
        "name": service.name,
        "description": service.description,
        "enabled": true,
        "links": {"self": shape::url(state, &format!("services/{}", service.id))},
    })
}

fn endpoint_body(state: &AppState, (service, interface, id): (&'static Served, &str, &str)) -> Value {
    json!({
        "id": id,
        "service_id": service.id,
        "interface": interface,
        "region": state.cloud.config.region,
        "region_id": state.cloud.config.region,
        "url": url(&state.cloud.config, service),
        "enabled": true,
        "links": {"self": shape::url(state, &format!("endpoints/{id}"))},
    })
}

fn all_endpoints() -> Vec<(&'static Served, &'static str, &'static str)> {
    let of = |service: &'static Served| {
        INTERFACES
            .iter()
            .zip(service.endpoints)
            .map(move |(interface, id)| (service, *interface, id))
    };
    SERVED.iter().flat_map(of).collect()
}

pub(super) async fn regions(State(state): State<AppState>, Auth(_): Auth, pairs: Pairs) -> Answer {
    let regions = vec![state.cloud.config.region.clone()];
    Ok(shape::list(&state, "regions", &pairs, regions, region_body)?)
}

pub(super) async fn region(State(state): State<AppState>, Auth(_): Auth, Path(id): Path<String>) -> Answer {
    if id != state.cloud.config.region {
        return Err(cloud::Error::not_found("region", id).into());
    }
    Ok(Json(json!({"region": region_body(&state, id)})).into_response())
}

pub(super) async fn services(State(state): State<AppState>, Auth(_): Auth, pairs: Pairs) -> Answer {
    let wanted = |s: &&Served| {
        pairs.get("type").is_none_or(|kind| kind == s.kind)
            && pairs.get("name").is_none_or(|name| name == s.name)
    };
    let services = SERVED.iter().filter(wanted).collect();
    Ok(shape::list(&state, "services", &pairs, services, service_body)?)
}

pub(super) async fn service(State(state): State<AppState>, Auth(_): Auth, Path(id): Path<String>) -> Answer {
    let service = SERVED.iter().find(|service| service.id == id);
    let service = service.ok_or_else(|| cloud::Error::not_found("service", id))?;
    Ok(Json(json!({"service": service_body(&state, service)})).into_response())
}

pub(super) async fn endpoints(State(state): State<AppState>, Auth(_): Auth, pairs: Pairs) -> Answer {
    let region = &state.cloud.config.region;
    let mut all = all_endpoints();
    all.retain(|(service, interface, _)| {
        pairs.get("service_id").is_none_or(|id| id == service.id)
            && pairs.get("interface").is_none_or(|wanted| wanted == *interface)
            && pairs.get("region_id").is_none_or(|wanted| wanted == region)
    });
    Ok(shape::list(&state, "endpoints", &pairs, all, endpoint_body)?)
}

pub(super) async fn endpoint(State(state): State<AppState>, Auth(_): Auth, Path(id): Path<String>) -> Answer {
    let endpoint = all_endpoints().into_iter().find(|(_, _, known)| *known == id);
    let endpoint = endpoint.ok_or_else(|| cloud::Error::not_found("endpoint", id))?;
    Ok(Json(json!({"endpoint": endpoint_body(&state, endpoint)})).into_response())
}
