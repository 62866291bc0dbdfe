//! Security groups on the wire.

use axum::Router;
use axum::extract::{OriginalUri, State};
use axum::response::Response;
use axum::routing::get;
use cloud::network::security_groups::{self, Fields, SecurityGroup};
use cloud::network::{Connection, Meta, Where};
use cloud::{Config, Context, Result};
use serde_json::{Value, json};
use uuid::Uuid;

use super::attributes::Attributes;
use super::query::View;
use super::resource::{self, Kind};
use super::security_rules::{self, SecurityRules};
use crate::AppState;
use crate::auth::Auth;
use crate::body::Pairs;
use crate::fault::{Fault, ForService, Service};

pub(super) struct SecurityGroups;

impl Kind for SecurityGroups {
    const ONE: &'static str = "security_group";
    const MANY: &'static str = "security_groups";
    const NOT_FOUND: &'static str = "SecurityGroupNotFound";
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
        "stateful",
        "shared",
        "security_group_rules",
    ];
    const POST: &'static [&'static str] = &["name", "description", "project_id", "tenant_id", "stateful"];
    const PUT: &'static [&'static str] = &["name", "description", "stateful"];
    const COLUMNS: &'static [(&'static str, &'static str)] =
        &[("id", "id"), ("name", "name"), ("project_id", "project_id")];
    type Row = SecurityGroup;
    type Fields = Fields;

    fn meta(row: &Self::Row) -> &Meta {
        &row.meta
    }

    fn parse(body: &Attributes<'_>) -> Result<Fields> {
        Ok(Fields {
            project_id: body.project()?,
            name: body.text("name", 255)?,
            description: body.text("description", 255)?,
            stateful: body.flag("stateful")?,
        })
    }

    fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<SecurityGroup>> {
        security_groups::list(conn, ctx, which)
    }

    fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<SecurityGroup> {
        ctx.require("security_groups", "list")?;
        security_groups::get(conn, ctx, id)
    }

    fn create(conn: &Connection, _: &Config, ctx: &Context, fields: &Fields) -> Result<SecurityGroup> {
        security_groups::create(conn, ctx, fields)
    }

    fn update(
        conn: &Connection,
        _: &Config,
        ctx: &Context,
        id: Uuid,
        fields: &Fields,
    ) -> Result<SecurityGroup> {
        security_groups::update(conn, ctx, id, fields)
    }

    fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
        security_groups::delete(conn, ctx, id)
    }

    fn view(_: &Connection, _: &Config, _: &Context, rows: Vec<SecurityGroup>) -> Result<Vec<View>> {
        Ok(rows
            .iter()
            .map(|group| {
                let rules = group
                    .rules
                    .iter()
                    .map(|rule| Value::Object(security_rules::view(rule, group.is_default)));
                let mut view = resource::common(&group.meta);
                view.extend(resource::object(json!({
                    "stateful": group.stateful,
                    "shared": false,
                    "security_group_rules": rules.collect::<Vec<_>>(),
                })));
                view
            })
            .collect())
    }
}

/// Lists of groups and of rules, which make the project's default group if it is not there yet.
pub(super) fn routes() -> Router<AppState> {
    let groups = get(list::<SecurityGroups>).post(resource::create::<SecurityGroups>);
    let rules = get(list::<SecurityRules>).post(resource::create::<SecurityRules>);
    Router::new()
        .route("/security-groups", groups)
        .route("/security-group-rules", rules)
        .route("/security-groups/{id}", resource::single::<SecurityGroups>())
        .route("/security-group-rules/{id}", resource::single::<SecurityRules>())
}

async fn list<K: Kind>(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    uri: OriginalUri,
    pairs: Pairs,
) -> Result<Response, Fault> {
    // An administrator that asks for another project's groups sees its default group as well.
    let filter = pairs.get("project_id").or(pairs.get("tenant_id"));
    let project = match filter {
        Some(project) if ctx.is_admin() && !project.is_empty() && project.len() <= 64 => Ok(project),
        _ => ctx.project(),
    };
    if let Ok(project) = project {
        let project = project.to_owned();
        ensure_default(&state, project)
            .await
            .for_service(Service::Network)?;
    }
    resource::list::<K>(State(state), Auth(ctx), uri, pairs).await
}

async fn ensure_default(state: &AppState, project: String) -> Result<()> {
    let wanted = project.clone();
    let found = state
        .cloud
        .store
        .read(move |conn| security_groups::default_of(conn, &wanted))
        .await?;
    if found.is_none() {
        state
            .cloud
            .store
            .write("network", move |conn| {
                security_groups::ensure_default(conn, &project)
            })
            .await?;
    }
    Ok(())
}
