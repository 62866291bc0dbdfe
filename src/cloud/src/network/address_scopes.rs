//! Address scopes: pools of one scope share one plan of addresses, so that none of theirs overlap.

use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::errors::{bad, conflict, disallowed, missing};
use super::quotas::{self, Resource};
use super::rows::{self, Condition, Meta, Where};
use crate::{Context, Result};

/// An address scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressScope {
    /// What every resource has.
    pub meta: Meta,
    /// 4 or 6.
    pub ip_version: u8,
    /// Every project may use it.
    pub shared: bool,
}

/// What a request says of a scope; `None`: nothing.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Fields {
    pub project_id: Option<String>,
    pub name: Option<String>,
    pub ip_version: Option<u8>,
    pub shared: Option<bool>,
}

const TABLE: &str = "address_scopes";

fn seen(ctx: &Context) -> Result<Condition> {
    Condition::visible(ctx, Some("shared=1"))
}

impl AddressScope {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(AddressScope {
            meta: Meta::read(row)?,
            ip_version: row.get("ip_version")?,
            shared: row.get("shared")?,
        })
    }

    fn save(&self, conn: &Connection) -> Result<()> {
        let mut columns = self.meta.columns();
        columns.extend([
            ("ip_version", self.ip_version.into()),
            ("shared", self.shared.into()),
        ]);
        rows::save(conn, TABLE, columns)
    }
}

fn check_rights(ctx: &Context, verb: &str, fields: &Fields) -> Result<()> {
    let asked = if verb == "create" {
        fields.shared == Some(true)
    } else {
        fields.shared.is_some()
    };
    if asked && !ctx.is_admin() {
        return Err(disallowed(&format!("rule:{verb}_address_scope:shared")));
    }
    Ok(())
}

/// Makes a scope.
pub fn create(conn: &Connection, ctx: &Context, fields: &Fields) -> Result<AddressScope> {
    ctx.require("address_scopes", "create")?;
    check_rights(ctx, "create", fields)?;
    let project = rows::owner(ctx, fields.project_id.as_deref())?;
    quotas::charge(conn, &project, Resource::AddressScope, 1)?;
    let ip_version = fields.ip_version.ok_or_else(|| {
        let message = "Failed to parse request. Required attribute 'ip_version' not specified";
        bad("HTTPBadRequest", message)
    })?;
    let scope = AddressScope {
        meta: Meta::new(&project, fields.name.as_deref().unwrap_or_default(), ""),
        ip_version,
        shared: fields.shared.unwrap_or(false),
    };
    scope.save(conn)?;
    Ok(scope)
}

/// Changes a scope. Saying what is so already changes nothing.
pub fn update(conn: &Connection, ctx: &Context, id: Uuid, fields: &Fields) -> Result<AddressScope> {
    ctx.require("address_scopes", "update")?;
    let old = get(conn, ctx, id)?;
    rows::check_owner(ctx, &old.meta, "rule:update_address_scope")?;
    check_rights(ctx, "update", fields)?;
    let mut new = old.clone();
    if let Some(name) = &fields.name {
        new.meta.name.clone_from(name);
    }
    new.shared = fields.shared.unwrap_or(old.shared);
    if new == old {
        return Ok(old);
    }
    if old.shared && !new.shared {
        let message =
            format!("Unable to update address scope {id} : Shared address scope can't be unshared.");
        return Err(bad("AddressScopeUpdateError", message));
    }
    new.meta.touch();
    new.save(conn)?;
    Ok(new)
}

/// Removes a scope; refused while pools are in it.
pub fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("address_scopes", "delete")?;
    let scope = get(conn, ctx, id)?;
    rows::check_owner(ctx, &scope.meta, "rule:delete_address_scope")?;
    if rows::count(conn, "subnet_pools", Condition::equals("address_scope_id", id))? > 0 {
        let message = format!(
            "Unable to complete operation on address scope {id}. There are one or more subnet pools in use on the \
             address scope"
        );
        return Err(conflict("AddressScopeInUse", message));
    }
    rows::remove(conn, TABLE, id)
}

/// The scopes that the caller sees: its own and shared ones.
pub fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<AddressScope>> {
    ctx.require("address_scopes", "list")?;
    rows::select(conn, TABLE, seen(ctx)?.and(which.condition()), AddressScope::read)
}

/// One scope that the caller sees.
pub fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<AddressScope> {
    let condition = seen(ctx)?.and(Condition::equals("id", id));
    rows::find(conn, TABLE, condition, AddressScope::read)?.ok_or_else(|| {
        let message = format!("Address scope {id} could not be found");
        missing("AddressScopeNotFound", message)
    })
}
