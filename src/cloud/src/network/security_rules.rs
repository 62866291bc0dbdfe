//! Rules of security groups. Every rule allows something; all else is dropped.

use ipnet::IpNet;
use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::errors::{bad, conflict, no_rule};
use super::quotas;
use super::rows::{self, Condition, Meta, Where};
use super::security_groups;
use crate::{Context, Result};

/// Names of protocols with their numbers (neutron-lib's `IP_PROTOCOL_MAP`; numbers by IANA).
const PROTOCOLS: &[(&str, u8)] = &[
    ("ah", 51),
    ("dccp", 33),
    ("egp", 8),
    ("esp", 50),
    ("gre", 47),
    ("hopopt", 0),
    ("icmp", 1),
    ("icmpv6", 58),
    ("igmp", 2),
    ("ip", 0),
    ("ipip", 4),
    ("ipv6-encap", 41),
    ("ipv6-frag", 44),
    ("ipv6-icmp", 58),
    ("ipv6-nonxt", 59),
    ("ipv6-opts", 60),
    ("ipv6-route", 43),
    ("ospf", 89),
    ("pgm", 113),
    ("rsvp", 46),
    ("sctp", 132),
    ("tcp", 6),
    ("udp", 17),
    ("udplite", 136),
    ("vrrp", 112),
];

/// Protocols with ports.
const WITH_PORTS: [u8; 5] = [33, 132, 6, 17, 136];
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Protocols that IPv4 does not have: extension headers, and ICMPv6.
const V6_ONLY: [u8; 6] = [41, 43, 44, ICMPV6, 59, 60];

pub use model::net::Direction;

/// The kind of packets that a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ethertype {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Ethertype {
    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Ethertype::V4 => "IPv4",
            Ethertype::V6 => "IPv6",
        }
    }

    /// The type of this name, whatever its case.
    pub fn named(name: &str) -> Option<Self> {
        [Ethertype::V4, Ethertype::V6]
            .into_iter()
            .find(|e| e.name().eq_ignore_ascii_case(name))
    }

    /// 4 or 6.
    pub fn version(self) -> u8 {
        match self {
            Ethertype::V4 => 4,
            Ethertype::V6 => 6,
        }
    }
}

/// The direction as the API names it.
pub fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What every resource has.
    pub meta: Meta,
    /// Its group.
    pub group_id: Uuid,
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
    pub remote_group_id: Option<Uuid>,
}

/// What a request says of a rule.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Fields {
    pub project_id: Option<String>,
    pub description: Option<String>,
    pub group_id: Option<Uuid>,
    pub direction: Option<Direction>,
    pub ethertype: Option<Ethertype>,
    pub protocol: Option<String>,
    pub port_min: Option<u16>,
    pub port_max: Option<u16>,
    pub remote_prefix: Option<IpNet>,
    pub remote_group_id: Option<Uuid>,
}

const TABLE: &str = "security_group_rules";

impl Rule {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let direction: String = row.get("direction")?;
        let ethertype: String = row.get("ethertype")?;
        Ok(Rule {
            meta: Meta::read(row)?,
            group_id: rows::parsed(row, "group_id")?,
            direction: if direction == "egress" {
                Direction::Egress
            } else {
                Direction::Ingress
            },
            ethertype: if ethertype == "IPv6" {
                Ethertype::V6
            } else {
                Ethertype::V4
            },
            protocol: row.get("protocol")?,
            port_min: row.get("port_min")?,
            port_max: row.get("port_max")?,
            remote_prefix: rows::parsed_optional(row, "remote_prefix")?,
            remote_group_id: rows::parsed_optional(row, "remote_group_id")?,
        })
    }

    pub(crate) fn save(&self, conn: &Connection) -> Result<()> {
        let mut columns = self.meta.columns();
        columns.extend([
            ("group_id", rows::text(self.group_id)),
            ("direction", rows::text(direction_name(self.direction))),
            ("ethertype", rows::text(self.ethertype.name())),
            ("protocol", rows::optional(self.protocol.as_ref())),
            ("port_min", self.port_min.into()),
            ("port_max", self.port_max.into()),
            ("remote_prefix", rows::optional(self.remote_prefix)),
            ("remote_group_id", rows::optional(self.remote_group_id)),
        ]);
        rows::save(conn, TABLE, columns)
    }

    /// The protocol's number in packets of this kind; `icmp` means ICMPv6 in an IPv6 rule.
    pub fn protocol_number(&self) -> Option<u8> {
        // Protocol 0 is "IP", which is any.
        let number = number_of(self.protocol.as_deref()?).filter(|number| *number != 0)?;
        Some(if number == ICMP && self.ethertype == Ethertype::V6 {
            ICMPV6
        } else {
            number
        })
    }

    /// The two let the same packets pass.
    pub(crate) fn equals(&self, other: &Rule) -> bool {
        let prefix = |rule: &Rule| {
            rule.remote_prefix
                .map(|prefix| prefix.trunc())
                .filter(|p| p.prefix_len() > 0)
        };
        self.direction == other.direction
            && self.ethertype == other.ethertype
            && self.protocol_number() == other.protocol_number()
            && (self.port_min, self.port_max) == (other.port_min, other.port_max)
            && self.remote_group_id == other.remote_group_id
            && prefix(self) == prefix(other)
    }

    pub(crate) fn check(&self) -> Result<()> {
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let number = match &self.protocol {
            None => None,
            Some(name) => Some(number_of(name).ok_or_else(|| {
                let names: Vec<&str> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
                let message = format!(
                    "Security group rule protocol {name} not supported. Only protocol values {} and integer \
                     representations [0 to 255] are supported.",
                    names.join(", ")
                );
                bad("SecurityGroupRuleInvalidProtocol", message)
            })?),
        };
        if self.ethertype == Ethertype::V4
            && (number.is_some_and(|number| V6_ONLY.contains(&number)) || protocol.starts_with("ipv6-"))
        {
            let message = format!("Invalid ethertype IPv4 for protocol {protocol}.");
            return Err(bad("SecurityGroupEthertypeConflictWithProtocol", message));
        }
        self.check_ports(number, protocol)?;
        if self.remote_prefix.is_some() && self.remote_group_id.is_some() {
            let message =
                "Only one of remote_ip_prefix or remote_group_id or remote_address_group_id may be provided.";
            return Err(bad("SecurityGroupMultipleRemoteEntites", message));
        }
        if let Some(prefix) = self.remote_prefix
            && prefix.network().is_ipv4() != (self.ethertype == Ethertype::V4)
        {
            let message = format!(
                "Conflicting value ethertype {} for CIDR {prefix}",
                self.ethertype.name()
            );
            return Err(bad("SecurityGroupRuleParameterConflict", message));
        }
        Ok(())
    }

    fn check_ports(&self, number: Option<u8>, protocol: &str) -> Result<()> {
        let (min, max) = (self.port_min, self.port_max);
        if min.is_none() && max.is_none() {
            return Ok(());
        }
        match number {
            None => {
                let message = "Must also specify protocol if port range is given.";
                Err(bad("SecurityGroupProtocolRequiredWithPorts", message))
            }
            Some(ICMP | ICMPV6) => {
                for (field, attr, value) in [("type", "port_range_min", min), ("code", "port_range_max", max)]
                {
                    if let Some(value) = value.filter(|value| *value > 255) {
                        let message =
                            format!("Invalid value for ICMP {field} ({attr}) {value}. It must be 0 to 255.");
                        return Err(bad("SecurityGroupInvalidIcmpValue", message));
                    }
                }
                match (min, max) {
                    (None, Some(code)) => {
                        let message = format!(
                            "ICMP code (port-range-max) {code} is provided but ICMP type (port-range-min) is missing."
                        );
                        Err(bad("SecurityGroupMissingIcmpType", message))
                    }
                    _ => Ok(()),
                }
            }
            Some(number) if WITH_PORTS.contains(&number) => match (min, max) {
                (Some(0), _) | (_, Some(0)) => {
                    Err(bad("SecurityGroupInvalidPortValue", "Invalid value for port 0"))
                }
                (Some(min), Some(max)) if min <= max => Ok(()),
                _ => {
                    let message = "For TCP/UDP protocols, port_range_min must be <= port_range_max";
                    Err(bad("SecurityGroupInvalidPortRange", message))
                }
            },
            Some(_) => {
                let message = format!(
                    "Ports cannot be specified for protocol {protocol}. Ports are only supported for dccp, sctp, tcp, \
                     udp, udplite."
                );
                Err(bad("SecurityGroupInvalidProtocolForPort", message))
            }
        }
    }
}

fn number_of(protocol: &str) -> Option<u8> {
    let by_name = PROTOCOLS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(protocol))
        .map(|(_, number)| *number);
    by_name.or_else(|| protocol.parse().ok())
}

/// Adds a rule to a group.
pub fn create(conn: &Connection, ctx: &Context, fields: &Fields) -> Result<Rule> {
    ctx.require("security_group_rules", "create")?;
    let required = |attribute: &str| {
        bad(
            "HTTPBadRequest",
            format!("Failed to parse request. Required attribute '{attribute}' not specified"),
        )
    };
    let group_id = fields.group_id.ok_or_else(|| required("security_group_id"))?;
    let direction = fields.direction.ok_or_else(|| required("direction"))?;
    let group = security_groups::get(conn, ctx, group_id)?;
    let project = match fields.project_id.as_deref() {
        Some(project) => rows::owner(ctx, Some(project))?,
        None => group.meta.project_id.clone(),
    };
    quotas::charge(conn, &project, quotas::Resource::SecurityGroupRule, 1)?;
    let any = |protocol: &String| protocol.eq_ignore_ascii_case("any");
    let mut rule = Rule {
        meta: Meta::new(&project, "", fields.description.as_deref().unwrap_or_default()),
        group_id,
        direction,
        ethertype: fields.ethertype.unwrap_or(Ethertype::V4),
        protocol: fields
            .protocol
            .clone()
            .filter(|protocol| !any(protocol))
            .map(|p| p.to_ascii_lowercase()),
        port_min: fields.port_min,
        port_max: fields.port_max,
        remote_prefix: fields.remote_prefix,
        remote_group_id: fields.remote_group_id,
    };
    rule.check()?;
    if let Some(remote) = rule.remote_group_id {
        security_groups::get(conn, ctx, remote)?;
    }
    if let Some(same) = group.rules.iter().find(|other| other.equals(&rule)) {
        let message = format!("Security group rule already exists. Rule id is {}.", same.meta.id);
        return Err(conflict("SecurityGroupRuleExists", message));
    }
    rule.meta.revision = 0;
    rule.save(conn)?;
    security_groups::bump(conn, group_id)?;
    Ok(rule)
}

/// Describes a rule anew: nothing else of a rule can change. Saying what is so already changes nothing.
pub fn describe(conn: &Connection, ctx: &Context, id: Uuid, fields: &Fields) -> Result<Rule> {
    ctx.require("security_group_rules", "create")?;
    let mut rule = get(conn, ctx, id)?;
    if let Some(description) = fields
        .description
        .as_ref()
        .filter(|text| **text != rule.meta.description)
    {
        rule.meta.description.clone_from(description);
        rule.meta.touch();
        rule.save(conn)?;
    }
    Ok(rule)
}

/// Removes a rule.
pub fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("security_group_rules", "delete")?;
    let rule = get(conn, ctx, id)?;
    rows::remove(conn, TABLE, id)?;
    security_groups::bump(conn, rule.group_id)
}

/// The caller's rules, and all of its groups.
fn visible(ctx: &Context) -> Result<Condition> {
    if ctx.is_admin() {
        return Ok(Condition::all());
    }
    let project = rows::text(ctx.project()?);
    let sql = "(project_id=? OR group_id IN (SELECT id FROM security_groups WHERE project_id=?))";
    Ok(Condition::new(sql, vec![project.clone(), project]))
}

/// The rules that the caller sees.
pub fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<Rule>> {
    ctx.require("security_group_rules", "list")?;
    rows::select(conn, TABLE, visible(ctx)?.and(which.condition()), Rule::read)
}

/// One of the rules that the caller sees.
pub fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Rule> {
    let seen = visible(ctx)?.and(Condition::equals("id", id));
    rows::find(conn, TABLE, seen, Rule::read)?.ok_or_else(|| no_rule(id))
}

pub(crate) fn of_group(conn: &Connection, group: Uuid) -> Result<Vec<Rule>> {
    rows::select(conn, TABLE, Condition::equals("group_id", group), Rule::read)
}

pub(crate) fn all(conn: &Connection) -> Result<Vec<Rule>> {
    rows::select(conn, TABLE, Condition::all(), Rule::read)
}

/// Removes the rules of a group, and those of others that speak of it.
pub(crate) fn erase_of(conn: &Connection, group: Uuid) -> Result<()> {
    conn.prepare_cached("DELETE FROM security_group_rules WHERE group_id=?1 OR remote_group_id=?1")?
        .execute([group.to_string()])?;
    Ok(())
}
