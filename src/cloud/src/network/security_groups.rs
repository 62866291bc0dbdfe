//! Security groups: what may reach and leave a port.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::default_rules;
use super::errors::{conflict, invalid, no_group};
use super::quotas;
use super::rows::{self, Condition, Meta, Where};
use super::security_rules::{self, Rule};
use crate::{Context, Result};

/// A security group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroup {
    /// What every resource has.
    pub meta: Meta,
    /// Answers to what was allowed pass by themselves. Always so here.
    pub stateful: bool,
    /// The one that a project's ports have when nobody says otherwise.
    pub is_default: bool,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// What a request says of a group; `None`: nothing.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Fields {
    pub project_id: Option<String>,
    pub name: Option<String>,
    pub description: Option<String>,
    pub stateful: Option<bool>,
}

const TABLE: &str = "security_groups";
/// The name of every project's default group.
pub const DEFAULT: &str = "default";

impl SecurityGroup {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(SecurityGroup {
            meta: Meta::read(row)?,
            stateful: row.get("stateful")?,
            is_default: row.get("is_default")?,
            rules: Vec::new(),
        })
    }

    fn save(&self, conn: &Connection) -> Result<()> {
        let mut columns = self.meta.columns();
        columns.extend([
            ("stateful", self.stateful.into()),
            ("is_default", self.is_default.into()),
        ]);
        rows::save(conn, TABLE, columns)
    }

    fn make(conn: &Connection, project: &str, name: &str, description: &str) -> Result<Self> {
        let is_default = name == DEFAULT;
        let mut group = SecurityGroup {
            meta: Meta::new(project, name, description),
            stateful: true,
            is_default,
            rules: Vec::new(),
        };
        group.meta.revision = 1;
        group.save(conn)?;
        let rules = default_rules::all(conn)?.into_iter().filter(|rule| {
            if is_default {
                rule.in_default
            } else {
                rule.in_custom
            }
        });
        for rule in rules {
            let rule = rule.in_group(project, group.meta.id);
            rule.save(conn)?;
            group.rules.push(rule);
        }
        Ok(group)
    }
}

/// Makes a group, which begins with the default rules.
pub fn create(conn: &Connection, ctx: &Context, fields: &Fields) -> Result<SecurityGroup> {
    ctx.require("security_groups", "create")?;
    let project = rows::owner(ctx, fields.project_id.as_deref())?;
    ensure_default(conn, &project)?;
    let name = fields.name.as_deref().unwrap_or_default();
    if name.eq_ignore_ascii_case(DEFAULT) {
        return Err(conflict(
            "SecurityGroupDefaultAlreadyExists",
            "Default security group already exists.",
        ));
    }
    check_stateful(fields)?;
    quotas::charge(conn, &project, quotas::Resource::SecurityGroup, 1)?;
    let rules = default_rules::all(conn)?
        .iter()
        .filter(|rule| rule.in_custom)
        .count();
    let rules = i64::try_from(rules).unwrap_or(i64::MAX);
    quotas::charge(conn, &project, quotas::Resource::SecurityGroupRule, rules)?;
    SecurityGroup::make(
        conn,
        &project,
        name,
        fields.description.as_deref().unwrap_or_default(),
    )
}

fn check_stateful(fields: &Fields) -> Result<()> {
    if fields.stateful == Some(false) {
        return Err(invalid("Security groups are always stateful here"));
    }
    Ok(())
}

/// The project's default group, made when it is first needed.
pub fn ensure_default(conn: &Connection, project: &str) -> Result<Uuid> {
    match default_of(conn, project)? {
        Some(id) => Ok(id),
        None => Ok(
            SecurityGroup::make(conn, project, DEFAULT, "Default security group")?
                .meta
                .id,
        ),
    }
}

/// The project's default group, if it was needed before.
pub fn default_of(conn: &Connection, project: &str) -> Result<Option<Uuid>> {
    let condition = Condition::equals("project_id", project).and(Condition::new("is_default=1", Vec::new()));
    Ok(rows::find(conn, TABLE, condition, SecurityGroup::read)?.map(|group| group.meta.id))
}

/// The ids of all projects' default groups.
pub fn default_ids(conn: &Connection) -> Result<HashSet<Uuid>> {
    let mut statement = conn.prepare_cached("SELECT id FROM security_groups WHERE is_default=1")?;
    let found = statement.query_map([], |row| rows::parsed(row, "id"))?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// Changes a group. Saying what is so already changes nothing.
pub fn update(conn: &Connection, ctx: &Context, id: Uuid, fields: &Fields) -> Result<SecurityGroup> {
    ctx.require("security_groups", "update")?;
    let old = get(conn, ctx, id)?;
    check_stateful(fields)?;
    let mut new = old.clone();
    if let Some(name) = &fields.name {
        if *name != old.meta.name && old.is_default {
            return Err(conflict(
                "SecurityGroupCannotUpdateDefault",
                "Updating default security group not allowed.",
            ));
        }
        if *name != old.meta.name && name.eq_ignore_ascii_case(DEFAULT) {
            return Err(conflict(
                "SecurityGroupDefaultAlreadyExists",
                "Default security group already exists.",
            ));
        }
        new.meta.name.clone_from(name);
    }
    if let Some(description) = &fields.description {
        new.meta.description.clone_from(description);
    }
    if new == old {
        return Ok(old);
    }
    new.meta.touch();
    new.save(conn)?;
    Ok(new)
}

/// Removes a group with its rules, and the rules of others that speak of it; refused while ports are in it.
pub fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("security_groups", "delete")?;
    let group = get(conn, ctx, id)?;
    if group.is_default && !ctx.is_admin() {
        let message = "Insufficient rights for removing default security group.";
        return Err(conflict("SecurityGroupCannotRemoveDefault", message));
    }
    if rows::count(conn, "port_security_groups", Condition::equals("group_id", id))? > 0 {
        return Err(conflict(
            "SecurityGroupInUse",
            format!("Security Group {id} in use."),
        ));
    }
    security_rules::erase_of(conn, id)?;
    rows::remove(conn, TABLE, id)
}

/// The caller's groups.
pub fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<SecurityGroup>> {
    ctx.require("security_groups", "list")?;
    matching(conn, Condition::visible(ctx, None)?.and(which.condition()))
}

/// One of the caller's groups.
pub fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<SecurityGroup> {
    let seen = Condition::visible(ctx, None)?.and(Condition::equals("id", id));
    matching(conn, seen)?.pop().ok_or_else(|| no_group(id))
}

/// All groups.
pub(crate) fn all(conn: &Connection) -> Result<Vec<SecurityGroup>> {
    matching(conn, Condition::all())
}

fn matching(conn: &Connection, condition: Condition) -> Result<Vec<SecurityGroup>> {
    let mut groups = rows::select(conn, TABLE, condition, SecurityGroup::read)?;
    if groups.len() <= 8 {
        for group in &mut groups {
            group.rules = security_rules::of_group(conn, group.meta.id)?;
        }
        return Ok(groups);
    }
    let mut by_group = HashMap::<Uuid, Vec<Rule>>::new();
    for rule in security_rules::all(conn)? {
        by_group.entry(rule.group_id).or_default().push(rule);
    }
    for group in &mut groups {
        group.rules = by_group.remove(&group.meta.id).unwrap_or_default();
    }
    Ok(groups)
}

/// A change of a group's rules is one of the group.
pub(crate) fn bump(conn: &Connection, id: Uuid) -> Result<()> {
    let found = rows::find(conn, TABLE, Condition::equals("id", id), SecurityGroup::read)?;
    let mut group = found.ok_or_else(|| no_group(id))?;
    group.meta.touch();
    group.save(conn)
}

/// The groups that names or ids mean to the caller, in the given order.
pub fn resolve<S: AsRef<str>>(conn: &Connection, ctx: &Context, names_or_ids: &[S]) -> Result<Vec<Uuid>> {
    let project = ctx.project()?;
    let mut found = Vec::new();
    for wanted in names_or_ids {
        let wanted = wanted.as_ref();
        if wanted == DEFAULT {
            ensure_default(conn, project)?;
        }
        let by_id = match wanted.parse::<Uuid>() {
            Ok(id) => get(conn, ctx, id).ok(),
            Err(_) => None,
        };
        let id = match by_id {
            Some(group) => group.meta.id,
            None => {
                let named = Condition::equals("project_id", project).and(Condition::equals("name", wanted));
                match rows::select(conn, TABLE, named, SecurityGroup::read)?.as_slice() {
                    [group] => group.meta.id,
                    [] => return Err(no_group(wanted)),
                    _ => {
                        let message = format!(
                            "Multiple security_group matches found for name '{wanted}', use an ID to be more specific."
                        );
                        return Err(conflict("NoUniqueMatch", message));
                    }
                }
            }
        };
        if !found.contains(&id) {
            found.push(id);
        }
    }
    Ok(found)
}
