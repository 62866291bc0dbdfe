//! Sharing with single projects: an owner lets another project use its network (Neutron's RBAC policies).
//!
//! A network that is shared with everyone has a policy for `*`, and a policy for `*` shares it with everyone: the two
//! are one.

use std::collections::HashSet;

use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::errors::{bad, conflict, disallowed, invalid, missing};
use super::networks::{self, Network};
use super::quotas::{self, Resource};
use super::rows::{self, Condition, Meta, Where};
use crate::{Context, Result};

/// Every project.
pub const EVERYONE: &str = "*";
/// The one kind of object that can be shared so.
pub const NETWORK: &str = "network";
/// The one thing that others may do with it.
pub const SHARED: &str = "access_as_shared";

/// A policy: this project may use that network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What every resource has.
    pub meta: Meta,
    /// The network.
    pub object_id: Uuid,
    /// The project, or [`EVERYONE`].
    pub target: String,
}

/// What a request says of a policy; `None`: nothing.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Fields {
    pub project_id: Option<String>,
    pub object_type: Option<String>,
    pub object_id: Option<Uuid>,
    pub action: Option<String>,
    pub target: Option<String>,
}

const TABLE: &str = "network_rbac";

impl Policy {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Policy {
            meta: Meta::read(row)?,
            object_id: rows::parsed(row, "object_id")?,
            target: row.get("target")?,
        })
    }

    fn save(&self, conn: &Connection) -> Result<()> {
        let mut columns = self.meta.columns();
        columns.extend([
            ("object_id", rows::text(self.object_id)),
            ("target", rows::text(&self.target)),
        ]);
        rows::save(conn, TABLE, columns)
    }
}

fn find(conn: &Connection, network: Uuid, target: &str) -> Result<Option<Policy>> {
    let condition = Condition::equals("object_id", network).and(Condition::equals("target", target));
    rows::find(conn, TABLE, condition, Policy::read)
}

fn check_target(ctx: &Context, verb: &str, target: &str) -> Result<()> {
    if target == EVERYONE && !ctx.is_admin() {
        return Err(disallowed(&format!("rule:{verb}_rbac_policy:target_tenant")));
    }
    Ok(())
}

/// Shares a network.
pub fn create(conn: &Connection, ctx: &Context, fields: &Fields) -> Result<Policy> {
    ctx.require("rbac_policies", "create")?;
    let required = |attribute: &str| {
        let message = format!("Failed to parse request. Required attribute '{attribute}' not specified");
        bad("HTTPBadRequest", message)
    };
    let kind = fields
        .object_type
        .as_deref()
        .ok_or_else(|| required("object_type"))?;
    if kind != NETWORK {
        let message = format!("Invalid input for object_type. Reason: '{kind}' is not in ['{NETWORK}'].");
        return Err(bad("HTTPBadRequest", message));
    }
    let action = fields.action.as_deref().ok_or_else(|| required("action"))?;
    if action != SHARED {
        let message = format!("Invalid action '{action}' for object type '{kind}'. Valid actions: {SHARED}");
        return Err(bad("InvalidInput", message));
    }
    let target = fields
        .target
        .as_deref()
        .ok_or_else(|| required("target_tenant"))?;
    let object_id = fields.object_id.ok_or_else(|| required("object_id"))?;
    let mut network = networks::get(conn, ctx, object_id)?;
    if !network.is_owned_by(ctx) {
        return Err(invalid(
            "Only admins can manipulate policies on objects they do not own",
        ));
    }
    check_target(ctx, "create", target)?;
    let project = rows::owner(ctx, fields.project_id.as_deref())?;
    quotas::charge(conn, &project, Resource::RbacPolicy, 1)?;
    if find(conn, object_id, target)?.is_some() {
        let message = "An RBAC policy already exists with those values.";
        return Err(conflict("DuplicateRBACEntry", message));
    }
    let policy = Policy {
        meta: Meta::new(&project, "", ""),
        object_id,
        target: target.to_owned(),
    };
    policy.save(conn)?;
    share(conn, &mut network, &policy.target, true)?;
    Ok(policy)
}

/// A policy for everyone is the network's own attribute, too.
fn share(conn: &Connection, network: &mut Network, target: &str, shared: bool) -> Result<()> {
    if target == EVERYONE && network.shared != shared {
        network.shared = shared;
        network.meta.touch();
        network.save(conn)?;
    }
    Ok(())
}

/// Brings the policy for everyone to what the network's own attribute says.
pub(super) fn follow(conn: &Connection, network: &Network) -> Result<()> {
    match (network.shared, find(conn, network.meta.id, EVERYONE)?) {
        (true, None) => Policy {
            meta: Meta::new(&network.meta.project_id, "", ""),
            object_id: network.meta.id,
            target: EVERYONE.to_owned(),
        }
        .save(conn),
        (false, Some(policy)) => rows::remove(conn, TABLE, policy.meta.id),
        _ => Ok(()),
    }
}

/// Refuses to take a network from those who have something on it and no other policy to stay by.
fn check_unused(conn: &Connection, network: &Network, policy: &Policy) -> Result<()> {
    let others = Condition::new(
        "project_id<>? AND project_id<>''",
        vec![rows::text(&network.meta.project_id)],
    );
    let theirs = match policy.target.as_str() {
        EVERYONE => others.and(Condition::new(
            "project_id NOT IN (SELECT target FROM network_rbac WHERE object_id=?)",
            vec![rows::text(network.meta.id)],
        )),
        _ if network.shared => return Ok(()),
        target => others.and(Condition::equals("project_id", target)),
    };
    let used = Condition::equals("network_id", network.meta.id).and(theirs);
    if rows::count(conn, "ports", used.clone())? + rows::count(conn, "subnets", used)? == 0 {
        return Ok(());
    }
    let message = format!(
        "RBAC policy on object {} cannot be removed because other objects depend on it.",
        network.meta.id
    );
    Err(conflict("RbacPolicyInUse", message))
}

/// Shares with another project instead.
pub fn update(conn: &Connection, ctx: &Context, id: Uuid, fields: &Fields) -> Result<Policy> {
    ctx.require("rbac_policies", "update")?;
    let old = get(conn, ctx, id)?;
    let Some(target) = fields.target.as_ref().filter(|target| **target != old.target) else {
        return Ok(old);
    };
    check_target(ctx, "update", target)?;
    let mut network = networks::fetch(conn, old.object_id)?;
    check_unused(conn, &network, &old)?;
    if find(conn, old.object_id, target)?.is_some() {
        let message = "An RBAC policy already exists with those values.";
        return Err(conflict("DuplicateRBACEntry", message));
    }
    let mut new = old.clone();
    new.target.clone_from(target);
    new.meta.touch();
    new.save(conn)?;
    share(conn, &mut network, &old.target, false)?;
    share(conn, &mut network, &new.target, true)?;
    Ok(new)
}

/// Shares no more; refused while the other has something there.
pub fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("rbac_policies", "delete")?;
    let policy = get(conn, ctx, id)?;
    let mut network = networks::fetch(conn, policy.object_id)?;
    check_unused(conn, &network, &policy)?;
    rows::remove(conn, TABLE, id)?;
    share(conn, &mut network, &policy.target, false)
}

/// The policies that the caller's project made.
pub fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<Policy>> {
    ctx.require("rbac_policies", "list")?;
    let seen = Condition::visible(ctx, None)?.and(which.condition());
    rows::select(conn, TABLE, seen, Policy::read)
}

/// One of these.
pub fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Policy> {
    let seen = Condition::visible(ctx, None)?.and(Condition::equals("id", id));
    rows::find(conn, TABLE, seen, Policy::read)?.ok_or_else(|| {
        let message = format!("RBAC policy of type network with ID {id} not found");
        missing("RbacPolicyNotFound", message)
    })
}

/// The networks that are shared with the caller's project by itself.
pub fn shared_with(conn: &Connection, ctx: &Context) -> Result<HashSet<Uuid>> {
    let Ok(project) = ctx.project() else {
        return Ok(HashSet::new());
    };
    let mut statement = conn.prepare_cached("SELECT object_id FROM network_rbac WHERE target=?1")?;
    let found = statement.query_map([project], |row| rows::parsed(row, "object_id"))?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// Everyone, or the caller's project, may use the network beside its owner.
pub(crate) fn is_shared(conn: &Connection, ctx: &Context, network: &Network) -> Result<bool> {
    Ok(network.shared || find(conn, network.meta.id, ctx.project()?)?.is_some())
}

/// With a network its policies go.
pub(super) fn remove_of(conn: &Connection, network: Uuid) -> Result<()> {
    conn.prepare_cached("DELETE FROM network_rbac WHERE object_id=?1")?
        .execute([network.to_string()])?;
    Ok(())
}
