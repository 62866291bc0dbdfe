//! Subnet pools: prefixes from which subnets get their ranges, so that no two of a pool overlap.

use ipnet::IpNet;
use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::errors::{bad, conflict, disallowed, invalid, missing, named};
use super::quotas::{self, Resource};
use super::rows::{self, Condition, Meta, Where};
use super::subnets::Subnet;
use super::{address_scopes, networks, prefixes, ranges, subnets};
use crate::error::Kind;
use crate::{Context, Result};

/// The most prefixes of one pool.
const MAX_PREFIXES: usize = 100;

/// A subnet pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetPool {
    /// What every resource has.
    pub meta: Meta,
    /// What it has to give, in as few prefixes as that needs.
    pub prefixes: Vec<IpNet>,
    /// The length of a subnet's prefix if nobody says otherwise.
    pub default_prefixlen: u8,
    /// The shortest prefix, which is the largest subnet.
    pub min_prefixlen: u8,
    /// The longest prefix.
    pub max_prefixlen: u8,
    /// Every project may use it.
    pub shared: bool,
    /// The one that is meant where a subnet of its IP version asks for "the default".
    pub is_default: bool,
    /// How much one project may have of it: IPv4 addresses, or IPv6 /64s.
    pub default_quota: Option<i64>,
    /// The scope that it belongs to.
    pub address_scope_id: Option<Uuid>,
}

/// What a request says of a pool; `None`: nothing.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Fields {
    pub project_id: Option<String>,
    pub name: Option<String>,
    pub description: Option<String>,
    pub prefixes: Option<Vec<IpNet>>,
    pub default_prefixlen: Option<u8>,
    pub min_prefixlen: Option<u8>,
    pub max_prefixlen: Option<u8>,
    pub shared: Option<bool>,
    pub is_default: Option<bool>,
    /// The inner `None`: no limit.
    pub default_quota: Option<Option<i64>>,
    /// The inner `None`: no scope.
    pub address_scope_id: Option<Option<Uuid>>,
}

const TABLE: &str = "subnet_pools";

fn seen(ctx: &Context) -> Result<Condition> {
    Condition::visible(ctx, Some("shared=1"))
}

impl SubnetPool {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(SubnetPool {
            meta: Meta::read(row)?,
            prefixes: rows::json(row, "prefixes")?,
            default_prefixlen: row.get("default_prefixlen")?,
            min_prefixlen: row.get("min_prefixlen")?,
            max_prefixlen: row.get("max_prefixlen")?,
            shared: row.get("shared")?,
            is_default: row.get("is_default")?,
            default_quota: row.get("default_quota")?,
            address_scope_id: rows::parsed_optional(row, "address_scope_id")?,
        })
    }

    fn save(&self, conn: &Connection) -> Result<()> {
        let mut columns = self.meta.columns();
        columns.extend([
            ("ip_version", self.ip_version().into()),
            ("prefixes", rows::to_json(&self.prefixes)),
            ("default_prefixlen", self.default_prefixlen.into()),
            ("min_prefixlen", self.min_prefixlen.into()),
            ("max_prefixlen", self.max_prefixlen.into()),
            ("shared", self.shared.into()),
            ("is_default", self.is_default.into()),
            ("default_quota", self.default_quota.into()),
            ("address_scope_id", rows::optional(self.address_scope_id)),
        ]);
        rows::save(conn, TABLE, columns)
    }

    /// 4 or 6.
    pub fn ip_version(&self) -> u8 {
        match self.prefixes.first() {
            Some(IpNet::V6(_)) => 6,
            _ => 4,
        }
    }

    fn apply(&mut self, fields: &Fields) {
        if let Some(name) = &fields.name {
            self.meta.name.clone_from(name);
        }
        if let Some(description) = &fields.description {
            self.meta.description.clone_from(description);
        }
        self.min_prefixlen = fields.min_prefixlen.unwrap_or(self.min_prefixlen);
        self.max_prefixlen = fields.max_prefixlen.unwrap_or(self.max_prefixlen);
        self.default_prefixlen = fields.default_prefixlen.unwrap_or(self.default_prefixlen);
        self.shared = fields.shared.unwrap_or(self.shared);
        self.is_default = fields.is_default.unwrap_or(self.is_default);
        self.default_quota = fields.default_quota.unwrap_or(self.default_quota);
        self.address_scope_id = fields.address_scope_id.unwrap_or(self.address_scope_id);
    }

    /// Lengths that fit each other, and a scope that takes the pool.
    fn check(&self, conn: &Connection, ctx: &Context) -> Result<()> {
        let longest = if self.ip_version() == 4 { 32 } else { 128 };
        let bounds = [
            (
                "min_prefixlen",
                self.min_prefixlen,
                "max_prefixlen",
                self.max_prefixlen,
            ),
            (
                "min_prefixlen",
                self.min_prefixlen,
                "default_prefixlen",
                self.default_prefixlen,
            ),
            (
                "default_prefixlen",
                self.default_prefixlen,
                "max_prefixlen",
                self.max_prefixlen,
            ),
            ("max_prefixlen", self.max_prefixlen, "longest prefix", longest),
        ];
        for (smaller, a, larger, b) in bounds {
            if a > b {
                let message = format!("Illegal prefix bounds: {smaller}={a}, {larger}={b}.");
                return Err(bad("IllegalSubnetPoolPrefixBounds", message));
            }
        }
        if self.default_quota.is_some_and(|quota| quota < 0) {
            return Err(invalid("default_quota is negative"));
        }
        if self.is_default {
            let others = Condition::new("is_default=1", Vec::new())
                .and(Condition::new("ip_version=?", vec![self.ip_version().into()]))
                .and(Condition::new("id<>?", vec![rows::text(self.meta.id)]));
            if rows::count(conn, TABLE, others)? > 0 {
                return Err(invalid(
                    "A default subnetpool for this IP family has already been set. Only one default may exist per IP \
                     family",
                ));
            }
        }
        self.check_scope(conn, ctx)
    }

    fn check_scope(&self, conn: &Connection, ctx: &Context) -> Result<()> {
        let Some(id) = self.address_scope_id else {
            return Ok(());
        };
        let illegal = |name, why: String| {
            let message = format!(
                "Illegal subnetpool association: subnetpool {} cannot be associated with address scope {id}{why}",
                self.meta.id
            );
            Err(bad(name, message))
        };
        let scope = address_scopes::get(conn, ctx, id)?;
        // A shared scope is for looking at: only its owner decides what is in it.
        let own = ctx.is_admin() || scope.meta.project_id == ctx.project()?;
        if !own || (self.shared && !scope.shared) {
            return illegal("IllegalSubnetPoolAssociationToAddressScope", ".".into());
        }
        if scope.ip_version != self.ip_version() {
            let why = format!(" because subnetpool ip_version is not {}.", scope.ip_version);
            return illegal("IllegalSubnetPoolIpVersionAssociationToAddressScope", why);
        }
        let others = Condition::equals("address_scope_id", id)
            .and(Condition::new("id<>?", vec![rows::text(self.meta.id)]));
        for other in rows::select(conn, TABLE, others, SubnetPool::read)? {
            let overlaps = |prefix: &IpNet| other.prefixes.iter().any(|o| ranges::overlap(*o, *prefix));
            if self.prefixes.iter().any(overlaps) {
                let message = "Failed to associate address scope: subnetpools within an address scope must have \
                               unique prefixes.";
                return Err(conflict("AddressScopePrefixConflict", message));
            }
        }
        Ok(())
    }
}

/// Prefixes of one IP version, joined where they can be.
fn check_prefixes(prefixes: &[IpNet]) -> Result<Vec<IpNet>> {
    let Some(first) = prefixes.first() else {
        let message = "Unspecified minimum subnet pool prefix.";
        return Err(bad("SubnetPoolMinPrefix", message));
    };
    let v4 = first.network().is_ipv4();
    if prefixes.iter().any(|prefix| prefix.network().is_ipv4() != v4) {
        let message = "Cannot mix IPv4 and IPv6 prefixes in a subnet pool.";
        return Err(bad("PrefixVersionMismatch", message));
    }
    if prefixes.len() > MAX_PREFIXES {
        return Err(invalid(format_args!(
            "A subnet pool has at most {MAX_PREFIXES} prefixes"
        )));
    }
    Ok(prefixes::compact(prefixes))
}

fn check_rights(ctx: &Context, verb: &str, fields: &Fields) -> Result<()> {
    if ctx.is_admin() {
        return Ok(());
    }
    let asked = [
        ("shared", fields.shared == Some(true)),
        ("is_default", fields.is_default == Some(true)),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        Some((name, _)) => Err(disallowed(&format!("rule:{verb}_subnetpool:{name}"))),
        None => Ok(()),
    }
}

/// Makes a pool.
pub fn create(conn: &Connection, ctx: &Context, fields: &Fields) -> Result<SubnetPool> {
    ctx.require("subnetpools", "create")?;
    check_rights(ctx, "create", fields)?;
    let project = rows::owner(ctx, fields.project_id.as_deref())?;
    quotas::charge(conn, &project, Resource::SubnetPool, 1)?;
    let prefixes = check_prefixes(fields.prefixes.as_deref().unwrap_or_default())?;
    let v4 = prefixes[0].network().is_ipv4();
    let min = fields.min_prefixlen.unwrap_or(if v4 { 8 } else { 64 });
    let mut pool = SubnetPool {
        meta: Meta::new(&project, "", ""),
        prefixes,
        default_prefixlen: min,
        min_prefixlen: min,
        max_prefixlen: if v4 { 32 } else { 128 },
        shared: false,
        is_default: false,
        default_quota: None,
        address_scope_id: None,
    };
    pool.apply(fields);
    pool.check(conn, ctx)?;
    pool.save(conn)?;
    Ok(pool)
}

/// Changes a pool. Prefixes can only be added here. Saying what is so already changes nothing.
pub fn update(conn: &Connection, ctx: &Context, id: Uuid, fields: &Fields) -> Result<SubnetPool> {
    ctx.require("subnetpools", "update")?;
    check_rights(ctx, "update", fields)?;
    let old = own(conn, ctx, id)?;
    let mut new = old.clone();
    new.apply(fields);
    if let Some(wanted) = &fields.prefixes {
        new.prefixes = check_prefixes(wanted)?;
        if !old
            .prefixes
            .iter()
            .all(|had| prefixes::covers(&new.prefixes, *had))
        {
            let message =
                "Illegal subnetpool update : Existing prefixes must be a subset of the new prefixes.";
            return Err(bad("IllegalSubnetPoolUpdate", message));
        }
    }
    store(conn, ctx, &old, new)
}

fn store(conn: &Connection, ctx: &Context, old: &SubnetPool, mut new: SubnetPool) -> Result<SubnetPool> {
    if new == *old {
        return Ok(new);
    }
    new.check(conn, ctx)?;
    new.meta.touch();
    new.save(conn)?;
    Ok(new)
}

/// Gives a pool more prefixes.
pub fn add_prefixes(conn: &Connection, ctx: &Context, id: Uuid, more: &[IpNet]) -> Result<SubnetPool> {
    ctx.require("subnetpools", "add_prefixes")?;
    let old = own(conn, ctx, id)?;
    let all: Vec<IpNet> = old.prefixes.iter().chain(more).copied().collect();
    let new = SubnetPool {
        prefixes: check_prefixes(&all)?,
        ..old.clone()
    };
    store(conn, ctx, &old, new)
}

/// Takes prefixes from a pool that no subnet is from.
pub fn remove_prefixes(conn: &Connection, ctx: &Context, id: Uuid, gone: &[IpNet]) -> Result<SubnetPool> {
    ctx.require("subnetpools", "remove_prefixes")?;
    let old = own(conn, ctx, id)?;
    let used = subnets::of_pool(conn, id)?;
    let is_used = |prefix: &IpNet| used.iter().any(|subnet| ranges::overlap(subnet.cidr, *prefix));
    if let Some(prefix) = gone.iter().find(|prefix| is_used(prefix)) {
        let message = format!("Illegal subnetpool update : Prefix {prefix} is in use by a subnet.");
        return Err(bad("IllegalSubnetPoolPrefixUpdate", message));
    }
    let left = prefixes::without(&old.prefixes, gone);
    let new = SubnetPool {
        prefixes: check_prefixes(&left)?,
        ..old.clone()
    };
    store(conn, ctx, &old, new)
}

/// Takes a network's subnets into a pool as if they had come from it.
pub fn onboard(conn: &Connection, ctx: &Context, id: Uuid, network: Uuid) -> Result<SubnetPool> {
    ctx.require("subnetpools", "onboard_network_subnets")?;
    let old = own(conn, ctx, id)?;
    let network = networks::get(conn, ctx, network)?;
    rows::check_owner(ctx, &network.meta, "rule:onboard_network_subnets")?;
    let version = old.ip_version();
    let theirs: Vec<Subnet> = subnets::of_network(conn, network.meta.id)?
        .into_iter()
        .filter(|subnet| subnet.ip_version() == version)
        .collect();
    let taken = subnets::of_pool(conn, id)?;
    for subnet in &theirs {
        let other = subnet.subnet_pool_id.is_some_and(|pool| pool != id);
        let overlaps =
            |known: &Subnet| known.meta.id != subnet.meta.id && ranges::overlap(known.cidr, subnet.cidr);
        if other || taken.iter().any(overlaps) {
            let message = format!(
                "Illegal subnetpool update : subnet {} is from another pool, or overlaps with one of this pool.",
                subnet.meta.id
            );
            return Err(bad("IllegalSubnetPoolUpdate", message));
        }
    }
    let all: Vec<IpNet> = old
        .prefixes
        .iter()
        .copied()
        .chain(theirs.iter().map(|subnet| subnet.cidr))
        .collect();
    let new = SubnetPool {
        prefixes: check_prefixes(&all)?,
        ..old.clone()
    };
    let new = store(conn, ctx, &old, new)?;
    for mut subnet in theirs
        .into_iter()
        .filter(|subnet| subnet.subnet_pool_id.is_none())
    {
        subnet.subnet_pool_id = Some(id);
        subnet.meta.touch();
        subnet.save(conn)?;
    }
    Ok(new)
}

/// Removes a pool; refused while subnets are from it.
pub fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("subnetpools", "delete")?;
    own(conn, ctx, id)?;
    if !subnets::of_pool(conn, id)?.is_empty() {
        let message = "Unable to delete subnet pool: Subnet pool has existing allocations.";
        return Err(bad("SubnetPoolDeleteError", message));
    }
    rows::remove(conn, TABLE, id)
}

/// The pools that the caller sees: its own and shared ones.
pub fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<SubnetPool>> {
    ctx.require("subnetpools", "list")?;
    rows::select(conn, TABLE, seen(ctx)?.and(which.condition()), SubnetPool::read)
}

/// One pool that the caller sees.
pub fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<SubnetPool> {
    let condition = seen(ctx)?.and(Condition::equals("id", id));
    rows::find(conn, TABLE, condition, SubnetPool::read)?.ok_or_else(|| {
        missing(
            "SubnetPoolNotFound",
            format!("Subnet pool {id} could not be found."),
        )
    })
}

fn own(conn: &Connection, ctx: &Context, id: Uuid) -> Result<SubnetPool> {
    let pool = get(conn, ctx, id)?;
    rows::check_owner(ctx, &pool.meta, "rule:update_subnetpool")?;
    Ok(pool)
}

/// The pool of this IP version that is meant where a request asks for "the default".
pub(crate) fn default_of(conn: &Connection, ctx: &Context, ip_version: u8) -> Result<SubnetPool> {
    let condition = seen(ctx)?
        .and(Condition::new("is_default=1", Vec::new()))
        .and(Condition::new("ip_version=?", vec![ip_version.into()]));
    rows::find(conn, TABLE, condition, SubnetPool::read)?.ok_or_else(|| {
        let message = format!("Bad subnets request: No default subnetpool found for IPv{ip_version}.");
        bad("BadRequest", message)
    })
}

/// The scopes of networks, by network and IP version.
pub fn scopes(conn: &Connection) -> Result<std::collections::HashMap<(Uuid, u8), Uuid>> {
    let sql = "SELECT s.network_id, p.ip_version, p.address_scope_id FROM subnets s
               JOIN subnet_pools p ON p.id = s.subnet_pool_id WHERE p.address_scope_id IS NOT NULL";
    let mut statement = conn.prepare_cached(sql)?;
    let found = statement.query_map([], |row| {
        let network = rows::parsed(row, "network_id")?;
        Ok((
            (network, row.get("ip_version")?),
            rows::parsed(row, "address_scope_id")?,
        ))
    })?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// A range for a new subnet of this project: the one that it wants, or a free one.
pub(crate) fn allocate(
    conn: &Connection,
    pool: &SubnetPool,
    project: &str,
    wanted: Option<IpNet>,
    length: Option<u8>,
) -> Result<IpNet> {
    let length = wanted.map_or(length.unwrap_or(pool.default_prefixlen), |cidr| cidr.prefix_len());
    if length < pool.min_prefixlen {
        let message = format!(
            "Unable to allocate subnet with prefix length {length}, minimum allowed prefix is {}.",
            pool.min_prefixlen
        );
        return Err(bad("MinPrefixSubnetAllocationError", message));
    }
    if length > pool.max_prefixlen {
        let message = format!(
            "Unable to allocate subnet with prefix length {length}, maximum allowed prefix is {}.",
            pool.max_prefixlen
        );
        return Err(bad("MaxPrefixSubnetAllocationError", message));
    }
    let given = subnets::of_pool(conn, pool.meta.id)?;
    charge(pool, &given, project, length)?;
    let taken: Vec<IpNet> = given.iter().map(|subnet| subnet.cidr).collect();
    let free = prefixes::without(&pool.prefixes, &taken);
    match wanted {
        Some(cidr) if prefixes::covers(&free, cidr) => Ok(cidr),
        Some(_) => {
            let message = "Failed to allocate subnet: Cannot allocate requested subnet from the available set of \
                           prefixes.";
            Err(conflict("SubnetAllocationError", message))
        }
        None => prefixes::pick(&free, length).ok_or_else(|| {
            let message = format!(
                "Failed to allocate subnet: Insufficient prefix space to allocate subnet size /{length}."
            );
            conflict("SubnetAllocationError", message)
        }),
    }
}

/// Refuses a project more of the pool than its quota.
fn charge(pool: &SubnetPool, given: &[Subnet], project: &str, length: u8) -> Result<()> {
    let Some(quota) = pool.default_quota else {
        return Ok(());
    };
    let unit = if pool.ip_version() == 4 { 32 } else { 64u8 };
    let units = |length: u8| 1u128 << unit.saturating_sub(length);
    let theirs = given.iter().filter(|subnet| subnet.meta.project_id == project);
    let used: u128 = theirs.map(|subnet| units(subnet.cidr.prefix_len())).sum();
    if used + units(length) <= u128::from(quota.unsigned_abs()) {
        return Ok(());
    }
    let message = "Per-tenant subnet pool prefix quota exceeded.";
    Err(named(Kind::QuotaExceeded, "SubnetPoolQuotaExceeded", message))
}
