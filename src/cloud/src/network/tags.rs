//! Tags on any resource.

use rusqlite::Connection;
use uuid::Uuid;

use super::errors::{invalid, missing};
use super::rows::{self, Meta};
use super::{floating_ips, networks, ports, routers, security_groups, subnet_pools, subnets};
use crate::{Context, Result};

/// The most tags of one resource, and the longest tag, as in Neutron.
const MAX_TAGS: usize = 50;
const MAX_LENGTH: usize = 255;

/// Resources that have tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Tagged {
    Networks,
    Subnets,
    SubnetPools,
    Ports,
    Routers,
    FloatingIps,
    SecurityGroups,
}

impl Tagged {
    fn table(self) -> &'static str {
        match self {
            Tagged::Networks => "networks",
            Tagged::Subnets => "subnets",
            Tagged::SubnetPools => "subnet_pools",
            Tagged::Ports => "ports",
            Tagged::Routers => "routers",
            Tagged::FloatingIps => "floating_ips",
            Tagged::SecurityGroups => "security_groups",
        }
    }

    fn meta(self, conn: &Connection, ctx: &Context, id: Uuid) -> Result<Meta> {
        Ok(match self {
            Tagged::Networks => networks::get(conn, ctx, id)?.meta,
            Tagged::Subnets => subnets::get(conn, ctx, id)?.meta,
            Tagged::SubnetPools => subnet_pools::get(conn, ctx, id)?.meta,
            Tagged::Ports => ports::get(conn, ctx, id)?.meta,
            Tagged::Routers => routers::get(conn, ctx, id)?.meta,
            Tagged::FloatingIps => floating_ips::get(conn, ctx, id)?.meta,
            Tagged::SecurityGroups => security_groups::get(conn, ctx, id)?.meta,
        })
    }
}

/// A change of a resource's tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// These and no others.
    Set(Vec<String>),
    /// These, too.
    Add(Vec<String>),
    /// Not this one, which must be there.
    Remove(String),
}

/// The tags of a resource that the caller sees.
pub fn list(conn: &Connection, ctx: &Context, kind: Tagged, id: Uuid) -> Result<Vec<String>> {
    ctx.require("network_tags", "list")?;
    Ok(kind.meta(conn, ctx, id)?.tags)
}

/// Changes the tags of one of the caller's resources, and returns them. Saying what is so already changes nothing.
pub fn change(
    conn: &Connection,
    ctx: &Context,
    kind: Tagged,
    id: Uuid,
    change: &Change,
) -> Result<Vec<String>> {
    ctx.require("network_tags", "update")?;
    let mut meta = kind.meta(conn, ctx, id)?;
    rows::check_owner(ctx, &meta, "rule:update_tags")?;
    let mut tags = match change {
        Change::Set(tags) => tags.clone(),
        Change::Add(tags) => meta.tags.iter().chain(tags).cloned().collect(),
        Change::Remove(tag) => {
            if !meta.tags.contains(tag) {
                return Err(no_tag(tag));
            }
            meta.tags.iter().filter(|other| *other != tag).cloned().collect()
        }
    };
    tags.sort();
    tags.dedup();
    if tags.len() > MAX_TAGS
        || tags
            .iter()
            .any(|tag| tag.is_empty() || tag.chars().count() > MAX_LENGTH)
    {
        return Err(invalid(format_args!(
            "A resource has at most {MAX_TAGS} tags of 1 to {MAX_LENGTH} characters"
        )));
    }
    if tags != meta.tags {
        meta.tags = tags;
        meta.touch();
        let sql = format!(
            "UPDATE {} SET tags=?2, revision=?3, updated_at=?4 WHERE id=?1",
            kind.table()
        );
        conn.prepare_cached(&sql)?.execute((
            id.to_string(),
            rows::to_json(&meta.tags),
            meta.revision,
            &meta.updated_at,
        ))?;
    }
    Ok(meta.tags)
}

/// `TagNotFound`, as Neutron words it.
pub fn no_tag(tag: &str) -> crate::Error {
    missing("TagNotFound", format!("Tag {tag} could not be found."))
}
