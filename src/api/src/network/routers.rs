//! Routers on the wire.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::put;
use cloud::network::routers::{self, Fields, GatewayRequest, Interface, InterfaceRequest};
use cloud::network::subnets::HostRoute;
use cloud::network::{Connection, Meta, Where};
use cloud::{Config, Context, Error, Result};
use serde_json::{Value, json};
use uuid::Uuid;

use super::attributes::{Attributes, parse, wrong};
use super::query::View;
use super::resource::{self, Kind, id_of};
use super::{ports, subnets};
use crate::AppState;
use crate::auth::Auth;
use crate::body::Json;
use crate::fault::{Fault, ForService, Service};

pub(super) struct Routers;

impl Kind for Routers {
    const ONE: &'static str = "router";
    const MANY: &'static str = "routers";
    const NOT_FOUND: &'static str = "RouterNotFound";
    const ATTRIBUTES: &'static [&'static str] = &[
        "id",
        "name",
        "description",
        "project_id",
        "tenant_id",
        "tags",
        "revision_number",
        "created_at",
        "updated_at",
        "admin_state_up",
        "status",
        "external_gateway_info",
        "routes",
        "availability_zones",
        "availability_zone_hints",
        "flavor_id",
        "distributed",
        "ha",
    ];
    const POST: &'static [&'static str] = &[
        "name",
        "description",
        "project_id",
        "tenant_id",
        "admin_state_up",
        "external_gateway_info",
        "availability_zone_hints",
        "distributed",
        "ha",
    ];
    const PUT: &'static [&'static str] = &[
        "name",
        "description",
        "admin_state_up",
        "external_gateway_info",
        "routes",
        "distributed",
        "ha",
    ];
    const COLUMNS: &'static [(&'static str, &'static str)] =
        &[("id", "id"), ("name", "name"), ("project_id", "project_id")];
    type Row = routers::Router;
    type Fields = Fields;

    fn meta(row: &Self::Row) -> &Meta {
        &row.meta
    }

    fn parse(body: &Attributes<'_>) -> Result<Fields> {
        Ok(Fields {
            project_id: body.project()?,
            name: body.text("name", 255)?,
            description: body.text("description", 255)?,
            admin_state_up: body.flag("admin_state_up")?,
            gateway: body.raw("external_gateway_info").map(gateway).transpose()?,
            routes: body.list("routes", |value| subnets::route("routes", value))?,
            zone_hints: body.list("availability_zone_hints", |zone| {
                parse("availability_zone_hints", zone, "string")
            })?,
            distributed: body.flag("distributed")?,
            ha: body.flag("ha")?,
        })
    }

    fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<routers::Router>> {
        routers::list(conn, ctx, which)
    }

    fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<routers::Router> {
        ctx.require("routers", "list")?;
        routers::get(conn, ctx, id)
    }

    fn create(conn: &Connection, config: &Config, ctx: &Context, fields: &Fields) -> Result<routers::Router> {
        routers::create(conn, config, ctx, fields)
    }

    fn update(
        conn: &Connection,
        config: &Config,
        ctx: &Context,
        id: Uuid,
        fields: &Fields,
    ) -> Result<routers::Router> {
        routers::update(conn, config, ctx, id, fields)
    }

    fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
        routers::delete(conn, ctx, id)
    }

    fn view(_: &Connection, config: &Config, ctx: &Context, rows: Vec<routers::Router>) -> Result<Vec<View>> {
        Ok(rows.iter().map(|router| view(config, ctx, router)).collect())
    }
}

fn view(config: &Config, ctx: &Context, router: &routers::Router) -> View {
    let gateway = router.gateway.as_ref().map(|gateway| {
        json!({
            "network_id": gateway.network,
            "enable_snat": router.enable_snat,
            "external_fixed_ips": ports::fixed_ips(&gateway.fixed_ips),
        })
    });
    let mut view = resource::common(&router.meta);
    view.extend(resource::object(json!({
        "admin_state_up": router.admin_state_up,
        "status": "ACTIVE",
        "external_gateway_info": gateway,
        "routes": router.routes,
        "availability_zones": [config.availability_zone],
        "availability_zone_hints": router.zone_hints,
        "flavor_id": Value::Null,
    })));
    if ctx.is_admin() {
        view.insert("distributed".into(), false.into());
        view.insert("ha".into(), false.into());
    }
    view
}

/// `external_gateway_info`: null or nothing in it takes the gateway away.
fn gateway(value: &Value) -> Result<Option<GatewayRequest>> {
    const NAME: &str = "external_gateway_info";
    if value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty) {
        return Ok(None);
    }
    let part = Attributes::part(
        NAME,
        value,
        &["network_id", "enable_snat", "external_fixed_ips", "qos_policy_id"],
    )?;
    if part.raw("qos_policy_id").is_some_and(|policy| !policy.is_null()) {
        return Err(wrong(NAME, "there are no QoS policies"));
    }
    let Some(network) = part.uuid("network_id")? else {
        return match part.raw("network_id") {
            Some(_) => Ok(None),
            None => Err(wrong(NAME, "it needs a network_id")),
        };
    };
    Ok(Some(GatewayRequest {
        network,
        enable_snat: part.flag("enable_snat")?,
        fixed_ips: part
            .list("external_fixed_ips", ports::fixed_ip)?
            .filter(|list| !list.is_empty()),
    }))
}

/// The actions of a router.
pub(super) fn actions() -> Router<AppState> {
    Router::new()
        .route("/routers/{id}/add_router_interface", put(add_interface))
        .route("/routers/{id}/remove_router_interface", put(remove_interface))
        .route("/routers/{id}/add_extraroutes", put(add_routes))
        .route("/routers/{id}/remove_extraroutes", put(remove_routes))
}

async fn add_interface(
    state: State<AppState>,
    auth: Auth,
    id: Path<String>,
    body: Json<Value>,
) -> Result<Response, Fault> {
    change_interface(state, auth, id, body, routers::add_interface).await
}

async fn remove_interface(
    state: State<AppState>,
    auth: Auth,
    id: Path<String>,
    body: Json<Value>,
) -> Result<Response, Fault> {
    change_interface(state, auth, id, body, routers::remove_interface).await
}

type ChangeInterface = fn(&Connection, &Context, Uuid, InterfaceRequest) -> Result<Interface>;

async fn change_interface(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<Value>,
    change: ChangeInterface,
) -> Result<Response, Fault> {
    let answer = async {
        let id = id_of::<Routers>(&id)?;
        let part = Attributes::part("router", &body, &["subnet_id", "port_id"])?;
        let request = match (part.uuid("subnet_id")?, part.uuid("port_id")?) {
            (Some(subnet), Some(port)) => InterfaceRequest::Both(port, subnet),
            (Some(subnet), None) => InterfaceRequest::Subnet(subnet),
            (None, Some(port)) => InterfaceRequest::Port(port),
            (None, None) => {
                let message = "Bad router request: Either subnet_id or port_id must be specified.";
                return Err(Error::BadRequest(message.into()));
            }
        };
        let actor = ctx.user_id.clone();
        state
            .cloud
            .store
            .write(&actor, move |conn| change(conn, &ctx, id, request))
            .await
    };
    let interface = answer.await.for_service(Service::Network)?;
    let project = &interface.router.meta.project_id;
    Ok(Json(json!({
        "id": interface.router.meta.id,
        "project_id": project,
        "tenant_id": project,
        "port_id": interface.port,
        "network_id": interface.network,
        "subnet_id": interface.subnets.first(),
        "subnet_ids": interface.subnets,
        "tags": interface.router.meta.tags,
    }))
    .into_response())
}

async fn add_routes(
    state: State<AppState>,
    auth: Auth,
    id: Path<String>,
    body: Json<Value>,
) -> Result<Response, Fault> {
    change_routes(state, auth, id, body, true).await
}

async fn remove_routes(
    state: State<AppState>,
    auth: Auth,
    id: Path<String>,
    body: Json<Value>,
) -> Result<Response, Fault> {
    change_routes(state, auth, id, body, false).await
}

async fn change_routes(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<Value>,
    add: bool,
) -> Result<Response, Fault> {
    let cloud = Arc::clone(&state.cloud);
    let answer = async {
        let id = id_of::<Routers>(&id)?;
        let body = body.get("router").ok_or_else(|| {
            Error::BadRequest("Resource body required: unable to find 'router' in request body".into())
        })?;
        let part = Attributes::part("router", body, &["routes"])?;
        let routes = part
            .list("routes", |value| subnets::route("routes", value))?
            .unwrap_or_default();
        let actor = ctx.user_id.clone();
        state
            .cloud
            .store
            .write(&actor, move |conn| {
                let none: &[HostRoute] = &[];
                let (added, removed) = if add {
                    (routes.as_slice(), none)
                } else {
                    (none, routes.as_slice())
                };
                let router = routers::change_routes(conn, &cloud.config, &ctx, id, added, removed)?;
                Ok::<_, Error>(view(&cloud.config, &ctx, &router))
            })
            .await
    };
    Ok(Json(json!({"router": answer.await.for_service(Service::Network)?})).into_response())
}
