//! How much of each resource a project may have.

use std::collections::BTreeMap;

use rusqlite::Connection;

use super::errors::{disallowed, invalid, named};
use super::rows::{self, Condition};
use crate::error::Kind;
use crate::{Context, Result};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Resource {
    Network,
    Subnet,
    Port,
    Router,
    FloatingIp,
    SecurityGroup,
    SecurityGroupRule,
    SubnetPool,
    AddressScope,
    RbacPolicy,
}

use Resource::{
    AddressScope, FloatingIp, Network, Port, RbacPolicy, Router, SecurityGroup, SecurityGroupRule, Subnet,
    SubnetPool,
};

impl Resource {
    /// All of them.
    pub const ALL: [Resource; 10] = [
        Network,
        Subnet,
        Port,
        Router,
        FloatingIp,
        SecurityGroup,
        SecurityGroupRule,
        SubnetPool,
        AddressScope,
        RbacPolicy,
    ];

    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Network => "network",
            Subnet => "subnet",
            Port => "port",
            Router => "router",
            FloatingIp => "floatingip",
            SecurityGroup => "security_group",
            SecurityGroupRule => "security_group_rule",
            SubnetPool => "subnetpool",
            AddressScope => "address_scope",
            RbacPolicy => "rbac_policy",
        }
    }

    /// The resource of this name.
    pub fn named(name: &str) -> Option<Resource> {
        Resource::ALL.into_iter().find(|resource| resource.name() == name)
    }

    fn table(self) -> &'static str {
        match self {
            Network => "networks",
            Subnet => "subnets",
            Port => "ports",
            Router => "routers",
            FloatingIp => "floating_ips",
            SecurityGroup => "security_groups",
            SecurityGroupRule => "security_group_rules",
            SubnetPool => "subnet_pools",
            AddressScope => "address_scopes",
            RbacPolicy => "network_rbac",
        }
    }

    /// What a project may have if nobody said otherwise: Neutron's own figures, and a bound where it has none.
    pub fn default_limit(self) -> i64 {
        match self {
            Network | Subnet | SecurityGroupRule | SubnetPool | AddressScope => 100,
            Port => 500,
            Router | SecurityGroup | RbacPolicy => 10,
            FloatingIp => 50,
        }
    }
}

/// The limits of a project, -1 for "as much as there is".
pub type Limits = BTreeMap<Resource, i64>;

/// The project's limits, or 403 if they are not the caller's to see.
pub fn show(conn: &Connection, ctx: &Context, project: &str) -> Result<Limits> {
    ctx.require("network_quotas", "show")?;
    if !ctx.sees(project) {
        return Err(disallowed("rule:get_quota"));
    }
    limits(conn, project)
}

/// The limits of every project that has its own.
pub fn list(conn: &Connection, ctx: &Context) -> Result<Vec<(String, Limits)>> {
    ctx.require("network_quotas", "list")?;
    let mut statement =
        conn.prepare_cached("SELECT DISTINCT project_id FROM network_quotas ORDER BY project_id")?;
    let projects: Vec<String> = statement
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    projects
        .into_iter()
        .map(|project| Ok((project.clone(), limits(conn, &project)?)))
        .collect()
}

/// How much the project uses.
pub fn used(conn: &Connection, project: &str, resource: Resource) -> Result<i64> {
    rows::count(conn, resource.table(), Condition::equals("project_id", project))
}

/// Sets some of a project's limits.
pub fn update(conn: &Connection, ctx: &Context, project: &str, changes: &Limits) -> Result<Limits> {
    ctx.require("network_quotas", "update")?;
    for (resource, limit) in changes {
        if *limit < -1 || *limit > i64::from(i32::MAX) {
            return Err(invalid(format_args!(
                "Quota limit {limit} for {} is neither -1 nor between 0 and {}",
                resource.name(),
                i32::MAX
            )));
        }
        conn.prepare_cached(
            "INSERT INTO network_quotas (project_id, resource, amount) VALUES (?1, ?2, ?3)
             ON CONFLICT (project_id, resource) DO UPDATE SET amount=excluded.amount",
        )?
        .execute((project, resource.name(), limit))?;
    }
    limits(conn, project)
}

/// Back to the defaults.
pub fn reset(conn: &Connection, ctx: &Context, project: &str) -> Result<()> {
    ctx.require("network_quotas", "update")?;
    conn.prepare_cached("DELETE FROM network_quotas WHERE project_id=?1")?
        .execute([project])?;
    Ok(())
}

/// Refuses `more` of the resource if the project has no room for it.
pub(crate) fn charge(conn: &Connection, project: &str, resource: Resource, more: i64) -> Result<()> {
    let limit = limits(conn, project)?.remove(&resource).unwrap_or(-1);
    // The cloud's own resources belong to no project.
    if project.is_empty() || limit < 0 || used(conn, project, resource)? + more <= limit {
        return Ok(());
    }
    let message = format!("Quota exceeded for resources: ['{}'].", resource.name());
    Err(named(Kind::QuotaExceeded, "OverQuota", message))
}

fn limits(conn: &Connection, project: &str) -> Result<Limits> {
    let mut limits: Limits = Resource::ALL
        .into_iter()
        .map(|resource| (resource, resource.default_limit()))
        .collect();
    let mut statement =
        conn.prepare_cached("SELECT resource, amount FROM network_quotas WHERE project_id=?1")?;
    let mut found = statement.query([project])?;
    while let Some(row) = found.next()? {
        if let Some(resource) = Resource::named(&row.get::<_, String>(0)?) {
            limits.insert(resource, row.get(1)?);
        }
    }
    Ok(limits)
}
