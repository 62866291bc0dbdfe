//! Address scopes on the wire.

use cloud::network::address_scopes::{self, AddressScope, Fields};
use cloud::network::{Connection, Meta, Where};
use cloud::{Config, Context, Result};
use serde_json::json;
use uuid::Uuid;

use super::attributes::{Attributes, wrong};
use super::query::View;
use super::resource::{self, Kind};

pub(super) struct AddressScopes;

impl Kind for AddressScopes {
    const ONE: &'static str = "address_scope";
    const MANY: &'static str = "address_scopes";
    const NOT_FOUND: &'static str = "AddressScopeNotFound";
    const ATTRIBUTES: &'static [&'static str] =
        &["id", "name", "project_id", "tenant_id", "ip_version", "shared"];
    const POST: &'static [&'static str] = &["name", "project_id", "tenant_id", "ip_version", "shared"];
    const PUT: &'static [&'static str] = &["name", "shared"];
    const COLUMNS: &'static [(&'static str, &'static str)] =
        &[("id", "id"), ("name", "name"), ("project_id", "project_id")];
    type Row = AddressScope;
    type Fields = Fields;

    fn meta(row: &Self::Row) -> &Meta {
        &row.meta
    }

    fn parse(body: &Attributes<'_>) -> Result<Fields> {
        let ip_version: Option<u8> = body.number("ip_version")?;
        if ip_version.is_some_and(|version| version != 4 && version != 6) {
            return Err(wrong("ip_version", "the value is not in [4, 6]"));
        }
        Ok(Fields {
            project_id: body.project()?,
            name: body.text("name", 255)?,
            ip_version,
            shared: body.flag("shared")?,
        })
    }

    fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<AddressScope>> {
        address_scopes::list(conn, ctx, which)
    }

    fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<AddressScope> {
        ctx.require("address_scopes", "list")?;
        address_scopes::get(conn, ctx, id)
    }

    fn create(conn: &Connection, _: &Config, ctx: &Context, fields: &Fields) -> Result<AddressScope> {
        address_scopes::create(conn, ctx, fields)
    }

    fn update(
        conn: &Connection,
        _: &Config,
        ctx: &Context,
        id: Uuid,
        fields: &Fields,
    ) -> Result<AddressScope> {
        address_scopes::update(conn, ctx, id, fields)
    }

    fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
        address_scopes::delete(conn, ctx, id)
    }

    fn view(_: &Connection, _: &Config, _: &Context, rows: Vec<AddressScope>) -> Result<Vec<View>> {
        Ok(rows
            .iter()
            .map(|scope| {
                let mut view = resource::common(&scope.meta);
                view.retain(|key, _| Self::ATTRIBUTES.contains(&key.as_str()));
                view.insert("ip_version".into(), json!(scope.ip_version));
                view.insert("shared".into(), json!(scope.shared));
                view
            })
            .collect())
    }
}
