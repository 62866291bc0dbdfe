//! Sharing with single projects, on the wire.

use cloud::network::rbac::{self, Fields, NETWORK, Policy, SHARED};
use cloud::network::{Connection, Meta, Where};
use cloud::{Config, Context, Result};
use serde_json::json;
use uuid::Uuid;

use super::attributes::Attributes;
use super::query::View;
use super::resource::{self, Kind};

pub(super) struct Policies;

impl Kind for Policies {
    const ONE: &'static str = "rbac_policy";
    const MANY: &'static str = "rbac_policies";
    const NOT_FOUND: &'static str = "RbacPolicyNotFound";
    const ATTRIBUTES: &'static [&'static str] = &[
        "id",
        "project_id",
        "tenant_id",
        "object_type",
        "object_id",
        "action",
        "target_tenant",
    ];
    const POST: &'static [&'static str] = &[
        "project_id",
        "tenant_id",
        "object_type",
        "object_id",
        "action",
        "target_tenant",
    ];
    const PUT: &'static [&'static str] = &["target_tenant"];
    const COLUMNS: &'static [(&'static str, &'static str)] = &[
        ("id", "id"),
        ("project_id", "project_id"),
        ("object_id", "object_id"),
        ("target_tenant", "target"),
    ];
    type Row = Policy;
    type Fields = Fields;

    fn meta(row: &Self::Row) -> &Meta {
        &row.meta
    }

    fn parse(body: &Attributes<'_>) -> Result<Fields> {
        Ok(Fields {
            project_id: body.project()?,
            object_type: body.text("object_type", 255)?,
            object_id: body.uuid("object_id")?,
            action: body.text("action", 255)?,
            target: body.text("target_tenant", 255)?,
        })
    }

    fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<Policy>> {
        rbac::list(conn, ctx, which)
    }

    fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Policy> {
        ctx.require("rbac_policies", "list")?;
        rbac::get(conn, ctx, id)
    }

    fn create(conn: &Connection, _: &Config, ctx: &Context, fields: &Fields) -> Result<Policy> {
        rbac::create(conn, ctx, fields)
    }

    fn update(conn: &Connection, _: &Config, ctx: &Context, id: Uuid, fields: &Fields) -> Result<Policy> {
        rbac::update(conn, ctx, id, fields)
    }

    fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
        rbac::delete(conn, ctx, id)
    }

    fn view(_: &Connection, _: &Config, _: &Context, rows: Vec<Policy>) -> Result<Vec<View>> {
        Ok(rows
            .iter()
            .map(|policy| {
                resource::object(json!({
                    "id": policy.meta.id,
                    "project_id": policy.meta.project_id,
                    "tenant_id": policy.meta.project_id,
                    "object_type": NETWORK,
                    "object_id": policy.object_id,
                    "action": SHARED,
                    "target_tenant": policy.target,
                }))
            })
            .collect())
    }
}
