//! Subnet pools on the wire.

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::put;
use cloud::network::subnet_pools::{self, Fields, SubnetPool};
use cloud::network::{Connection, IpNet, Meta, Where};
use cloud::{Config, Context, Error, Result};
use serde_json::{Value, json};
use uuid::Uuid;

use super::attributes::{Attributes, prefix, wrong};
use super::query::View;
use super::resource::{self, Kind, id_of};
use crate::AppState;
use crate::auth::Auth;
use crate::body::Json;
use crate::fault::{Fault, ForService, Service};

pub(super) struct SubnetPools;

impl Kind for SubnetPools {
    const ONE: &'static str = "subnetpool";
    const MANY: &'static str = "subnetpools";
    const NOT_FOUND: &'static str = "SubnetPoolNotFound";
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
        "prefixes",
        "default_prefixlen",
        "min_prefixlen",
        "max_prefixlen",
        "ip_version",
        "shared",
        "is_default",
        "default_quota",
        "address_scope_id",
    ];
    const POST: &'static [&'static str] = &[
        "name",
        "description",
        "project_id",
        "tenant_id",
        "prefixes",
        "default_prefixlen",
        "min_prefixlen",
        "max_prefixlen",
        "shared",
        "is_default",
        "default_quota",
        "address_scope_id",
    ];
    const PUT: &'static [&'static str] = &[
        "name",
        "description",
        "prefixes",
        "default_prefixlen",
        "min_prefixlen",
        "max_prefixlen",
        "is_default",
        "default_quota",
        "address_scope_id",
    ];
    const COLUMNS: &'static [(&'static str, &'static str)] = &[
        ("id", "id"),
        ("name", "name"),
        ("project_id", "project_id"),
        ("address_scope_id", "address_scope_id"),
    ];
    type Row = SubnetPool;
    type Fields = Fields;

    fn meta(row: &Self::Row) -> &Meta {
        &row.meta
    }

    fn parse(body: &Attributes<'_>) -> Result<Fields> {
        let quota = match body.raw("default_quota") {
            None => None,
            Some(_) => Some(body.number::<i64>("default_quota")?),
        };
        if quota.flatten().is_some_and(|quota| quota < 0) {
            return Err(wrong("default_quota", "the value is negative"));
        }
        Ok(Fields {
            project_id: body.project()?,
            name: body.text("name", 255)?,
            description: body.text("description", 255)?,
            prefixes: prefixes(body)?,
            default_prefixlen: body.number("default_prefixlen")?,
            min_prefixlen: body.number("min_prefixlen")?,
            max_prefixlen: body.number("max_prefixlen")?,
            shared: body.flag("shared")?,
            is_default: body.flag("is_default")?,
            default_quota: quota,
            address_scope_id: body.settable("address_scope_id", "UUID")?,
        })
    }

    fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<SubnetPool>> {
        subnet_pools::list(conn, ctx, which)
    }

    fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<SubnetPool> {
        ctx.require("subnetpools", "list")?;
        subnet_pools::get(conn, ctx, id)
    }

    fn create(conn: &Connection, _: &Config, ctx: &Context, fields: &Fields) -> Result<SubnetPool> {
        subnet_pools::create(conn, ctx, fields)
    }

    fn update(conn: &Connection, _: &Config, ctx: &Context, id: Uuid, fields: &Fields) -> Result<SubnetPool> {
        subnet_pools::update(conn, ctx, id, fields)
    }

    fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
        subnet_pools::delete(conn, ctx, id)
    }

    fn view(_: &Connection, _: &Config, _: &Context, rows: Vec<SubnetPool>) -> Result<Vec<View>> {
        Ok(rows
            .iter()
            .map(|pool| {
                let mut view = resource::common(&pool.meta);
                // Neutron writes these lengths as texts, and clients read them so.
                view.extend(resource::object(json!({
                    "prefixes": pool.prefixes,
                    "default_prefixlen": pool.default_prefixlen.to_string(),
                    "min_prefixlen": pool.min_prefixlen.to_string(),
                    "max_prefixlen": pool.max_prefixlen.to_string(),
                    "ip_version": pool.ip_version(),
                    "shared": pool.shared,
                    "is_default": pool.is_default,
                    "default_quota": pool.default_quota,
                    "address_scope_id": pool.address_scope_id,
                })));
                view
            })
            .collect())
    }
}

fn prefixes(body: &Attributes<'_>) -> Result<Option<Vec<IpNet>>> {
    body.list("prefixes", |value| prefix("prefixes", value))
}

/// The actions of a pool.
pub(super) fn actions() -> Router<AppState> {
    Router::new()
        .route("/subnetpools/{id}/add_prefixes", put(add_prefixes))
        .route("/subnetpools/{id}/remove_prefixes", put(remove_prefixes))
        .route("/subnetpools/{id}/onboard_network_subnets", put(onboard))
}

async fn add_prefixes(
    state: State<AppState>,
    auth: Auth,
    id: Path<String>,
    body: Json<Value>,
) -> Result<Response, Fault> {
    change_prefixes(state, auth, id, body, subnet_pools::add_prefixes).await
}

async fn remove_prefixes(
    state: State<AppState>,
    auth: Auth,
    id: Path<String>,
    body: Json<Value>,
) -> Result<Response, Fault> {
    change_prefixes(state, auth, id, body, subnet_pools::remove_prefixes).await
}

type ChangePrefixes = fn(&Connection, &Context, Uuid, &[IpNet]) -> Result<SubnetPool>;

async fn change_prefixes(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<Value>,
    change: ChangePrefixes,
) -> Result<Response, Fault> {
    let answer = async {
        let id = id_of::<SubnetPools>(&id)?;
        let part = Attributes::part("subnetpool", &body, &["prefixes"])?;
        let wanted = prefixes(&part)?
            .filter(|prefixes| !prefixes.is_empty())
            .ok_or_else(|| Error::BadRequest("Unable to find 'prefixes' in request body".into()))?;
        let actor = ctx.user_id.clone();
        state
            .cloud
            .store
            .write(&actor, move |conn| change(conn, &ctx, id, &wanted))
            .await
    };
    let pool = answer.await.for_service(Service::Network)?;
    Ok(Json(json!({"prefixes": pool.prefixes})).into_response())
}

async fn onboard(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Result<Response, Fault> {
    let answer = async {
        let id = id_of::<SubnetPools>(&id)?;
        let part = Attributes::part("subnetpool", &body, &["network_id"])?;
        let network = part
            .uuid("network_id")?
            .ok_or_else(|| Error::BadRequest("Unable to find 'network_id' in request body".into()))?;
        let actor = ctx.user_id.clone();
        state
            .cloud
            .store
            .write(&actor, move |conn| subnet_pools::onboard(conn, &ctx, id, network))
            .await
    };
    answer.await.for_service(Service::Network)?;
    Ok(Json(json!({})).into_response())
}
