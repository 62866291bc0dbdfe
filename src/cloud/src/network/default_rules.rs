//! Rules that every new security group begins with. The operator sets them; see the schema for those of a new cloud.

use ipnet::IpNet;
use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::errors::{bad, conflict, invalid, missing};
use super::rows::{self, Condition, Meta, Where};
use super::security_rules::{Direction, Ethertype, Rule, direction_name};
use crate::{Context, Result};

/// The most rules, so that groups stay small.
const MAX_RULES: i64 = 100;
/// How the API names the group that a rule will be in.
pub const PARENT: &str = "PARENT";

/// Whose packets a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remote {
    /// Members of the group that the rule will be in.
    Parent,
    /// Members of this group.
    Group(Uuid),
}

impl std::fmt::Display for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Remote::Parent => f.write_str(PARENT),
            Remote::Group(id) => id.fmt(f),
        }
    }
}

impl std::str::FromStr for Remote {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        match text {
            PARENT => Ok(Remote::Parent),
            id => id.parse().map(Remote::Group),
        }
    }
}

/// A rule that new groups begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRule {
    /// What every resource has.
    pub meta: Meta,
    /// Seen from the port.
    pub direction: Direction,
    /// The kind of packets.
    pub ethertype: Ethertype,
    /// A name or a number, as it was given; `None`: any.
    pub protocol: Option<String>,
    /// First port, or ICMP type.
    pub port_min: Option<u16>,
    /// Last port, or ICMP code.
    pub port_max: Option<u16>,
    /// The other side's range, as it was given.
    pub remote_prefix: Option<IpNet>,
    /// The other side's group.
    pub remote: Option<Remote>,
    /// Projects' default groups begin with it.
    pub in_default: bool,
    /// All other groups do.
    pub in_custom: bool,
}

/// What a request says of a rule.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Fields {
    pub description: Option<String>,
    pub direction: Option<Direction>,
    pub ethertype: Option<Ethertype>,
    pub protocol: Option<String>,
    pub port_min: Option<u16>,
    pub port_max: Option<u16>,
    pub remote_prefix: Option<IpNet>,
    pub remote: Option<Remote>,
    pub in_default: Option<bool>,
    pub in_custom: Option<bool>,
}

const TABLE: &str = "default_security_group_rules";

impl DefaultRule {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let direction: String = row.get("direction")?;
        let ethertype: String = row.get("ethertype")?;
        Ok(DefaultRule {
            meta: Meta::read(row)?,
            direction: match direction.as_str() {
                "egress" => Direction::Egress,
                _ => Direction::Ingress,
            },
            ethertype: Ethertype::named(&ethertype).unwrap_or(Ethertype::V4),
            protocol: row.get("protocol")?,
            port_min: row.get("port_min")?,
            port_max: row.get("port_max")?,
            remote_prefix: rows::parsed_optional(row, "remote_prefix")?,
            remote: rows::parsed_optional(row, "remote")?,
            in_default: row.get("in_default")?,
            in_custom: row.get("in_custom")?,
        })
    }

    fn save(&self, conn: &Connection) -> Result<()> {
        let mut columns = self.meta.columns();
        columns.extend([
            ("direction", rows::text(direction_name(self.direction))),
            ("ethertype", rows::text(self.ethertype.name())),
            ("protocol", rows::optional(self.protocol.as_ref())),
            ("port_min", self.port_min.into()),
            ("port_max", self.port_max.into()),
            ("remote_prefix", rows::optional(self.remote_prefix)),
            ("remote", rows::optional(self.remote)),
            ("in_default", self.in_default.into()),
            ("in_custom", self.in_custom.into()),
        ]);
        rows::save(conn, TABLE, columns)
    }

    /// The rule as a member of this group.
    pub fn in_group(&self, project: &str, group: Uuid) -> Rule {
        Rule {
            meta: Meta::new(project, "", &self.meta.description),
            group_id: group,
            direction: self.direction,
            ethertype: self.ethertype,
            protocol: self.protocol.clone(),
            port_min: self.port_min,
            port_max: self.port_max,
            remote_prefix: self.remote_prefix,
            remote_group_id: self.remote.map(|remote| match remote {
                Remote::Parent => group,
                Remote::Group(id) => id,
            }),
        }
    }
}

/// Adds a rule; groups that are there already do not change.
pub fn create(conn: &Connection, ctx: &Context, fields: &Fields) -> Result<DefaultRule> {
    ctx.require("default_security_group_rules", "create")?;
    let direction = fields.direction.ok_or_else(|| {
        let message = "Failed to parse request. Required attribute 'direction' not specified";
        bad("HTTPBadRequest", message)
    })?;
    let rule = DefaultRule {
        meta: Meta::new("", "", fields.description.as_deref().unwrap_or_default()),
        direction,
        ethertype: fields.ethertype.unwrap_or(Ethertype::V4),
        protocol: fields
            .protocol
            .as_ref()
            .filter(|protocol| !protocol.eq_ignore_ascii_case("any"))
            .map(|protocol| protocol.to_ascii_lowercase()),
        port_min: fields.port_min,
        port_max: fields.port_max,
        remote_prefix: fields.remote_prefix,
        remote: fields.remote,
        in_default: fields.in_default.unwrap_or(false),
        in_custom: fields.in_custom.unwrap_or(true),
    };
    let parent = Uuid::nil();
    rule.in_group("", parent).check()?;
    if let Some(Remote::Group(id)) = rule.remote {
        super::security_groups::get(conn, ctx, id)?;
    }
    let known = all(conn)?;
    let same = |other: &&DefaultRule| {
        other.in_group("", parent).equals(&rule.in_group("", parent))
            && ((other.in_default && rule.in_default) || (other.in_custom && rule.in_custom))
    };
    if let Some(other) = known.iter().find(same) {
        let message = format!(
            "Default security group rule already exists. Rule id is {}.",
            other.meta.id
        );
        return Err(conflict("DefaultSecurityGroupRuleExists", message));
    }
    if rows::count(conn, TABLE, Condition::all())? >= MAX_RULES {
        return Err(invalid(format_args!(
            "There are at most {MAX_RULES} default rules"
        )));
    }
    rule.save(conn)?;
    Ok(rule)
}

/// Removes a rule; groups that are there already do not change.
pub fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("default_security_group_rules", "delete")?;
    fetch(conn, id)?;
    rows::remove(conn, TABLE, id)
}

/// All rules: everyone may know what a new group allows.
pub fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<DefaultRule>> {
    ctx.require("default_security_group_rules", "list")?;
    rows::select(conn, TABLE, which.condition(), DefaultRule::read)
}

/// One rule.
pub fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<DefaultRule> {
    ctx.require("default_security_group_rules", "list")?;
    fetch(conn, id)
}

fn fetch(conn: &Connection, id: Uuid) -> Result<DefaultRule> {
    rows::find(conn, TABLE, Condition::equals("id", id), DefaultRule::read)?.ok_or_else(|| {
        let message = format!("Default security group rule {id} does not exist");
        missing("DefaultSecurityGroupRuleNotFound", message)
    })
}

pub(crate) fn all(conn: &Connection) -> Result<Vec<DefaultRule>> {
    rows::select(conn, TABLE, Condition::all(), DefaultRule::read)
}
