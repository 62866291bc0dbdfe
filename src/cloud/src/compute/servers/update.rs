//! Changing servers in ways that need no machine: names, metadata, tags; and what is read from the node.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{Details, MAX_TAGS, Server, create, details, find};
use crate::compute::now;
use crate::compute::ports::{self, Interface};
use crate::compute::state::VmState;
use crate::{Cloud, Context, Error, Result};

/// The most of a console log that is read from the node.
const MAX_CONSOLE: usize = 1 << 20;

/// Changes of a server; `None`: leave it.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Update {
    pub name: Option<String>,
    /// `Some(None)`: none from now on.
    pub description: Option<Option<String>>,
    pub hostname: Option<String>,
    pub access_ip_v4: Option<Option<String>>,
    pub access_ip_v6: Option<Option<String>>,
    pub disk_config: Option<String>,
}

/// Nova's error for a server that someone locked.
pub(in crate::compute) fn check_lock(ctx: &Context, server: &Server) -> Result<()> {
    if server.locked_by.is_some() && !ctx.is_admin() {
        return Err(Error::Conflict(format!("Instance {} is locked", server.id)));
    }
    Ok(())
}

async fn change<T, F>(cloud: &Cloud, ctx: &Context, action: &'static str, id: &str, f: F) -> Result<T>
where
    F: Fn(&rusqlite::Connection, &Context, Server) -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    ctx.require("servers", action)?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    let actor = ctx.user_id.clone();
    cloud
        .store
        .write(&actor, move |conn| f(conn, &ctx, find(conn, &ctx, &id)?))
        .await
}

/// Changes a server's attributes.
pub async fn update(cloud: &Cloud, ctx: &Context, id: &str, update: Update) -> Result<Details> {
    let admin = ctx.is_admin();
    change(cloud, ctx, "update", id, move |conn, _, mut server| {
        let Update {
            name,
            description,
            hostname,
            access_ip_v4,
            access_ip_v6,
            disk_config,
        } = update.clone();
        server.name = name.unwrap_or(server.name);
        server.description = description.unwrap_or(server.description);
        server.hostname = hostname.unwrap_or(server.hostname);
        server.access_ip_v4 = access_ip_v4.unwrap_or(server.access_ip_v4);
        server.access_ip_v6 = access_ip_v6.unwrap_or(server.access_ip_v6);
        server.disk_config = disk_config.unwrap_or(server.disk_config);
        server.updated_at = now();
        server.save(conn)?;
        details(conn, server, admin)
    })
    .await
}

/// A change of metadata.
#[derive(Debug, Clone)]
pub enum MetadataChange {
    /// Add or replace these.
    Merge(BTreeMap<String, String>),
    /// Exactly these.
    Replace(BTreeMap<String, String>),
    /// Without this one.
    Remove(String),
}

/// Changes metadata and tells all of it.
pub async fn change_metadata(
    cloud: &Cloud,
    ctx: &Context,
    id: &str,
    what: MetadataChange,
) -> Result<BTreeMap<String, String>> {
    change(cloud, ctx, "update", id, move |conn, ctx, mut server| {
        check_lock(ctx, &server)?;
        match &what {
            MetadataChange::Merge(new) => server.metadata.extend(new.clone()),
            MetadataChange::Replace(new) => server.metadata.clone_from(new),
            MetadataChange::Remove(key) => {
                if server.metadata.remove(key).is_none() {
                    return Err(crate::compute::missing("Metadata item was not found"));
                }
            }
        }
        create::check_metadata_count(conn, &server.project_id, server.metadata.len())?;
        server.updated_at = now();
        server.save(conn)?;
        Ok(server.metadata)
    })
    .await
}

/// A change of tags.
#[derive(Debug, Clone)]
pub enum TagChange {
    /// Exactly these.
    Replace(Vec<String>),
    /// With this one.
    Add(String),
    /// Without this one.
    Remove(String),
}

/// Changes tags; tells all of them, and whether one was there before.
pub async fn change_tags(
    cloud: &Cloud,
    ctx: &Context,
    id: &str,
    what: TagChange,
) -> Result<(Vec<String>, bool)> {
    change(cloud, ctx, "update", id, move |conn, ctx, mut server| {
        check_lock(ctx, &server)?;
        let mut existed = false;
        match &what {
            TagChange::Replace(tags) => server.tags.clone_from(tags),
            TagChange::Add(tag) => {
                existed = server.tags.contains(tag);
                server.tags.push(tag.clone());
            }
            TagChange::Remove(tag) => {
                if !server.tags.contains(tag) {
                    return Err(crate::compute::missing(format!(
                        "Server {} has no tag '{tag}'",
                        server.id
                    )));
                }
                server.tags.retain(|t| t != tag);
            }
        }
        server.tags.sort();
        server.tags.dedup();
        if server.tags.len() > MAX_TAGS {
            return Err(Error::BadRequest(format!(
                "The number of tags exceeded the per-server limit {MAX_TAGS}"
            )));
        }
        server.updated_at = now();
        server.save(conn)?;
        Ok((server.tags, existed))
    })
    .await
}

/// The end of the serial console's log, at most this many lines.
pub async fn console_log(cloud: &Cloud, ctx: &Context, id: &str, lines: Option<usize>) -> Result<String> {
    ctx.require("servers", "console_log")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    let server = cloud.store.read(move |conn| find(conn, &ctx, &id)).await?;
    if server.host.is_none() || server.vm_state == VmState::Building && server.launched_at.is_none() {
        return Err(Error::Conflict(format!("Instance {} is not ready", server.id)));
    }
    if lines == Some(0) {
        return Ok(String::new());
    }
    let log = cloud.drivers.machines.console_log(server.id, MAX_CONSOLE).await?;
    let text: String = String::from_utf8_lossy(&log)
        .chars()
        .filter(|&c| !c.is_control() || "\n\r\t\x1b".contains(c))
        .collect();
    Ok(match lines {
        Some(lines) => last_lines(&text, lines).to_owned(),
        None => text,
    })
}

fn last_lines(text: &str, lines: usize) -> &str {
    let body = text.strip_suffix('\n').unwrap_or(text);
    match body.rmatch_indices('\n').nth(lines.saturating_sub(1)) {
        Some((at, _)) => &text[at + 1..],
        None => text,
    }
}

/// The network interfaces of a server.
pub async fn interfaces(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Vec<Interface>> {
    ctx.require("servers", "show")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .read(move |conn| {
            let server = find(conn, &ctx, &id)?;
            ports::of_server(conn, server.id)
        })
        .await
}

/// What the guest is given at its first start, as base64.
pub async fn user_data_of(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Option<String>> {
    ctx.require("servers", "show")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .read(move |conn| super::user_data(conn, find(conn, &ctx, &id)?.id))
        .await
}

/// What `GET /servers/{id}/diagnostics` is made of.
pub async fn diagnostics(cloud: &Cloud, ctx: &Context, id: &str) -> Result<(Server, Vec<Interface>)> {
    ctx.require("servers", "diagnostics")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    let (server, interfaces) = cloud
        .store
        .read(move |conn| {
            let server = find(conn, &ctx, &id)?;
            let interfaces = ports::of_server(conn, server.id)?;
            Ok::<_, Error>((server, interfaces))
        })
        .await?;
    if server.vm_state != VmState::Active {
        let id: Uuid = server.id;
        return Err(Error::Conflict(format!(
            "Cannot 'get_diagnostics' instance {id} while it is in vm_state {}",
            server.vm_state.as_str()
        )));
    }
    Ok((server, interfaces))
}

#[cfg(test)]
mod tests {
    use super::last_lines;

    #[test]
    fn the_last_lines_of_a_log() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last_lines("a\nb\nc", 1), "c");
        assert_eq!(last_lines("a\nb\n", 9), "a\nb\n");
        assert_eq!(last_lines("", 3), "");
    }
}
