//! What the cloud has to offer: agents, availability zones, free addresses, service providers.

use std::sync::Arc;

use axum::Router;
use axum::extract::{OriginalUri, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use cloud::error::Kind;
use cloud::network::inventory::{self, Agent, Availability};
use cloud::{Error, Result};
use serde_json::{Value, json};

use super::query::{Query, View};
use super::resource::object;
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};
use crate::fault::{Fault, ForService, Service};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/agents", get(agents))
        .route("/agents/{id}", get(agent))
        .route("/availability_zones", get(zones))
        .route("/network-ip-availabilities", get(availabilities))
        .route("/network-ip-availabilities/{id}", get(availability))
        .route("/service-providers", get(providers))
}

/// Answers a list as all lists are answered.
fn listed(
    state: &AppState,
    uri: &OriginalUri,
    pairs: &Pairs,
    key: &str,
    attributes: &[&str],
    views: Vec<View>,
) -> Result<Response> {
    let url = format!("{}{}", state.cloud.config.public_url, uri.path());
    let (views, links) = Query::read(pairs, attributes, &[])?.apply(views, &url, pairs)?;
    let mut answer = View::new();
    answer.insert(key.into(), views.into_iter().map(Value::Object).collect());
    if !links.is_empty() {
        answer.insert(format!("{key}_links"), Value::Array(links));
    }
    Ok(Json(answer).into_response())
}

const AGENT: &[&str] = &[
    "id",
    "agent_type",
    "binary",
    "host",
    "topic",
    "admin_state_up",
    "alive",
    "availability_zone",
    "description",
    "configurations",
    "created_at",
    "started_at",
    "heartbeat_timestamp",
    "resources_synced",
];

fn agent_view(agent: &Agent) -> View {
    object(json!({
        "id": agent.id,
        "agent_type": agent.kind,
        "binary": agent.binary,
        "host": agent.host,
        "topic": "N/A",
        "admin_state_up": true,
        "alive": agent.alive,
        "availability_zone": agent.zone,
        "description": Value::Null,
        "configurations": {},
        "created_at": agent.since,
        "started_at": agent.since,
        "heartbeat_timestamp": agent.seen,
        "resources_synced": Value::Null,
    }))
}

async fn agents(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    uri: OriginalUri,
    pairs: Pairs,
) -> Result<Response, Fault> {
    let answer = || {
        let views = inventory::agents(&state.cloud, &ctx)
            .iter()
            .map(agent_view)
            .collect();
        listed(&state, &uri, &pairs, "agents", AGENT, views)
    };
    answer().for_service(Service::Network)
}

async fn agent(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    let found = inventory::agents(&state.cloud, &ctx);
    match found.iter().find(|agent| agent.id.to_string() == id) {
        Some(agent) => Ok(Json(json!({"agent": agent_view(agent)})).into_response()),
        None => {
            let message = format!(
                "Agent {} could not be found.",
                id.chars().take(64).collect::<String>()
            );
            let error = Error::Named {
                name: "AgentNotFound",
                kind: Kind::NotFound,
                message,
            };
            Err(Fault::new(Service::Network, error))
        }
    }
}

async fn zones(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    uri: OriginalUri,
    pairs: Pairs,
) -> Result<Response, Fault> {
    let answer = || {
        ctx.require("network_zones", "list")?;
        let zone = &state.cloud.config.availability_zone;
        let views = ["network", "router"]
            .map(|kind| object(json!({"name": zone, "resource": kind, "state": "available"})))
            .to_vec();
        listed(
            &state,
            &uri,
            &pairs,
            "availability_zones",
            &["name", "resource", "state"],
            views,
        )
    };
    answer().for_service(Service::Network)
}

const AVAILABILITY: &[&str] = &[
    "network_id",
    "network_name",
    "project_id",
    "tenant_id",
    "ip_version",
    "total_ips",
    "used_ips",
    "subnet_ip_availability",
];

/// A number of addresses: as JSON's own where it has such numbers.
fn amount(number: u128) -> Value {
    u64::try_from(number).map_or_else(|_| json!(number as f64), Value::from)
}

fn availability_view(network: &Availability) -> View {
    let subnets: Vec<Value> = network
        .subnets
        .iter()
        .map(|subnet| {
            json!({
                "subnet_id": subnet.id,
                "subnet_name": subnet.name,
                "cidr": subnet.cidr,
                "ip_version": subnet.version,
                "total_ips": amount(subnet.total),
                "used_ips": subnet.used,
            })
        })
        .collect();
    let total = network
        .subnets
        .iter()
        .fold(0u128, |sum, subnet| sum.saturating_add(subnet.total));
    object(json!({
        "network_id": network.id,
        "network_name": network.name,
        "project_id": network.project_id,
        "tenant_id": network.project_id,
        "total_ips": amount(total),
        "used_ips": network.subnets.iter().map(|subnet| subnet.used).sum::<i64>(),
        "subnet_ip_availability": subnets,
    }))
}

async fn availabilities(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    uri: OriginalUri,
    pairs: Pairs,
) -> Result<Response, Fault> {
    let cloud = Arc::clone(&state.cloud);
    let answer = async {
        // A version counts the subnets of its own alone.
        let version = pairs.number("ip_version")?;
        let mut found = cloud
            .store
            .read(move |conn| inventory::availability(conn, &ctx))
            .await?;
        if let Some(version) = version {
            for network in &mut found {
                network
                    .subnets
                    .retain(|subnet| u64::from(subnet.version) == version);
            }
        }
        let rest = Pairs(
            pairs
                .0
                .iter()
                .filter(|(key, _)| key != "ip_version")
                .cloned()
                .collect(),
        );
        let views = found.iter().map(availability_view).collect();
        listed(
            &state,
            &uri,
            &rest,
            "network_ip_availabilities",
            AVAILABILITY,
            views,
        )
    };
    answer.await.for_service(Service::Network)
}

async fn availability(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    let found = state
        .cloud
        .store
        .read(move |conn| inventory::availability(conn, &ctx))
        .await;
    let found = found.for_service(Service::Network)?;
    match found.iter().find(|network| network.id.to_string() == id) {
        Some(network) => {
            Ok(Json(json!({"network_ip_availability": availability_view(network)})).into_response())
        }
        None => Err(Fault::new(
            Service::Network,
            Error::not_found("Network", id.chars().take(64).collect::<String>()),
        )),
    }
}

async fn providers(_: Auth) -> Response {
    Json(json!({"service_providers": []})).into_response()
}
