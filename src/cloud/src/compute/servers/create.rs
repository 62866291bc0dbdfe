//! Making servers: one transaction decides and reserves everything; the reconciler does the rest.

use std::collections::BTreeMap;

use model::units::{GIB, MIB};
use rusqlite::{Connection, params};
use uuid::Uuid;

use super::{MAX_TAGS, Server, record};
use crate::compute::images::{self, Image};
use crate::compute::keypairs::{self, ServerKey};
use crate::compute::ports::{self, NetRequest};
use crate::compute::quotas::{self, Resource};
use crate::compute::state::{Power, Task, VmState, Wanted};
use crate::compute::{flavors, groups, now};
use crate::error::Kind;
use crate::{Cloud, Context, Error, Result};

/// The most servers that one request may make.
const MAX_COUNT: u32 = 1000;

/// Which networks a server is plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Networks {
    /// Nothing was said (before 2.37): the project's one network, if it has one.
    Unsaid,
    /// `auto` (2.37): the project's one network; having none is an error.
    Auto,
    /// `none` (2.37).
    None,
    /// These.
    List(Vec<NetRequest>),
}

/// What is asked for.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Create {
    pub name: String,
    pub description: Option<String>,
    pub hostname: Option<String>,
    pub image: Uuid,
    pub flavor: String,
    pub networks: Networks,
    /// Names or ids; empty: the project's default group.
    pub security_groups: Vec<String>,
    pub key_name: Option<String>,
    /// Base64, checked.
    pub user_data: Option<String>,
    pub config_drive: bool,
    pub metadata: BTreeMap<String, String>,
    pub tags: Vec<String>,
    pub min_count: u32,
    pub max_count: u32,
    pub availability_zone: Option<String>,
    /// A node that an admin names.
    pub host: Option<String>,
    pub access_ip_v4: Option<String>,
    pub access_ip_v6: Option<String>,
    pub disk_config: String,
    pub server_group: Option<Uuid>,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// The servers' ids.
    pub servers: Vec<Uuid>,
    /// Common to all of them.
    pub reservation_id: String,
    /// Names of the security groups that were asked for.
    pub security_groups: Vec<String>,
}

/// Makes servers' rows and ports. They are `BUILD` when this returns.
pub async fn create(cloud: &Cloud, ctx: &Context, mut create: Create) -> Result<Created> {
    ctx.require("servers", "create")?;
    let project = ctx.project()?.to_owned();
    check_zone(cloud, ctx, &mut create)?;
    if create.min_count == 0 || create.min_count > create.max_count {
        return Err(Error::BadRequest("min_count must be <= max_count".into()));
    }
    if create.max_count > MAX_COUNT {
        return Err(Error::BadRequest(format!(
            "At most {MAX_COUNT} servers can be made at once."
        )));
    }
    check_several(&create)?;
    create.tags.sort();
    create.tags.dedup();
    if create.tags.len() > MAX_TAGS {
        return Err(Error::BadRequest(format!(
            "A server has at most {MAX_TAGS} tags."
        )));
    }
    let ids: Vec<(Uuid, Uuid)> = (0..create.max_count)
        .map(|_| (Uuid::new_v4(), Uuid::new_v4()))
        .collect();
    let reservation: String = ids[0].1.simple().to_string().chars().take(8).collect();
    let reservation_id = format!("r-{reservation}");
    let names = create.security_groups.clone();
    let ctx = ctx.clone();
    let actor = ctx.user_id.clone();
    let servers = cloud
        .store
        .write(&actor, {
            let reservation_id = reservation_id.clone();
            move |conn| insert(conn, &ctx, &project, &create, &ids, &reservation_id)
        })
        .await?;
    Ok(Created {
        servers,
        reservation_id,
        security_groups: names,
    })
}

/// `zone` or, for admins, `zone:host` and `zone:host:node`.
fn check_zone(cloud: &Cloud, ctx: &Context, create: &mut Create) -> Result<()> {
    if let Some(zone) = &create.availability_zone {
        let mut parts = zone.split(':');
        let name = parts.next().unwrap_or_default().to_owned();
        let host = parts.find(|p| !p.is_empty()).map(str::to_owned);
        if !name.is_empty() && name != cloud.config.availability_zone {
            return Err(Error::BadRequest(
                "The requested availability zone is not available".into(),
            ));
        }
        create.availability_zone = Some(name).filter(|n| !n.is_empty());
        create.host = create.host.take().or(host);
    }
    if let Some(host) = &create.host {
        ctx.require("servers", "create_on_host")?;
        if *host != cloud.config.node {
            return Err(Error::BadRequest(format!(
                "Compute host {host} could not be found."
            )));
        }
    }
    Ok(())
}

/// What cannot be shared by several servers.
fn check_several(create: &Create) -> Result<()> {
    if let (Networks::List(list), 2..) = (&create.networks, create.max_count) {
        if list.iter().any(|n| n.port.is_some()) {
            return Err(Error::BadRequest(
                "Unable to launch multiple instances with a single configured port ID. Please launch your instance \
                 one by one with different ports."
                    .into(),
            ));
        }
        if list.iter().any(|n| n.fixed_ip.is_some()) {
            return Err(Error::BadRequest(
                "Invalid fixed IP Address in server create request: it cannot be given to multiple instances.".into(),
            ));
        }
    }
    Ok(())
}

fn insert(
    conn: &Connection,
    ctx: &Context,
    project: &str,
    create: &Create,
    ids: &[(Uuid, Uuid)],
    reservation_id: &str,
) -> Result<Vec<Uuid>> {
    let flavor = flavors::find(conn, ctx, &create.flavor).map_err(as_bad_request)?;
    let image = images::find(conn, ctx, create.image)?;
    let root_bytes = root_size(&flavor, &image)?;
    let key = match &create.key_name {
        Some(name) => {
            let pair = keypairs::find(conn, &ctx.user_id, name)
                .map_err(|_| Error::BadRequest("Invalid key_name provided.".into()))?;
            Some(ServerKey {
                name: pair.name,
                kind: pair.kind,
                public_key: pair.public_key,
            })
        }
        None => None,
    };
    check_metadata_count(conn, project, create.metadata.len())?;
    let count = quotas::fit(
        conn,
        project,
        flavor.vcpus,
        flavor.ram,
        create.min_count,
        create.max_count,
    )?;
    if let Some(group) = create.server_group {
        groups::check_room(conn, ctx, group, count)?;
    }
    let networks = resolve_networks(conn, ctx, &create.networks)?;
    let groups =
        ports::resolve_security_groups(conn, ctx, &create.security_groups).map_err(as_bad_request)?;
    let now = now();
    let mut made = Vec::with_capacity(count as usize);
    for (index, &(id, root_volume)) in (0..count).zip(ids) {
        let suffix = if create.max_count > 1 {
            format!("-{}", index + 1)
        } else {
            String::new()
        };
        let name = format!("{}{suffix}", create.name);
        let hostname = match &create.hostname {
            Some(hostname) => format!("{hostname}{suffix}"),
            None => default_hostname(&name, id),
        };
        let server = Server {
            id,
            project_id: project.to_owned(),
            user_id: ctx.user_id.clone(),
            name,
            description: create.description.clone(),
            hostname,
            flavor: flavor.clone(),
            image_id: Some(image.id),
            root_volume,
            root_bytes,
            key: key.clone(),
            config_drive: create.config_drive,
            metadata: create.metadata.clone(),
            tags: create.tags.clone(),
            availability_zone: create.availability_zone.clone(),
            access_ip_v4: create.access_ip_v4.clone(),
            access_ip_v6: create.access_ip_v6.clone(),
            reservation_id: reservation_id.to_owned(),
            launch_index: index,
            disk_config: create.disk_config.clone(),
            server_group: create.server_group,
            locked_by: None,
            locked_reason: None,
            wanted: Wanted::Active,
            generation: 1,
            observed_generation: 0,
            vm_state: VmState::Building,
            task_state: Some(Task::Scheduling),
            power_state: Power::NoState,
            host: None,
            zone: None,
            fault: None,
            created_at: now,
            updated_at: now,
            launched_at: None,
            terminated_at: None,
            deleted: false,
        };
        server.save(conn)?;
        if let Some(data) = &create.user_data {
            conn.prepare_cached("INSERT INTO compute_user_data (server_id, data) VALUES (?1, ?2)")?
                .execute(params![id.to_string(), data])?;
        }
        for request in &networks {
            ports::create_for_server(conn, ctx, id, request, &groups).map_err(as_bad_request)?;
        }
        record(
            conn,
            ctx,
            &server,
            ("create", "compute__do_build_and_run_instance"),
            false,
        )?;
        made.push(id);
    }
    Ok(made)
}

/// What a request names and is not there makes it a bad request, as Nova has it.
fn as_bad_request(error: Error) -> Error {
    if error.kind() == Some(Kind::NotFound) {
        Error::BadRequest(error.to_string())
    } else {
        error
    }
}

pub(super) fn check_metadata_count(conn: &Connection, project: &str, count: usize) -> Result<()> {
    let limit = quotas::limit(conn, project, Resource::MetadataItems)?;
    if limit >= 0 && i64::try_from(count).unwrap_or(i64::MAX) > limit {
        return Err(Error::QuotaExceeded(format!(
            "Maximum number of metadata items exceeds {limit}"
        )));
    }
    Ok(())
}

fn resolve_networks(conn: &Connection, ctx: &Context, networks: &Networks) -> Result<Vec<NetRequest>> {
    let list = match networks {
        Networks::None => return Ok(Vec::new()),
        Networks::List(list) if !list.is_empty() => return Ok(list.clone()),
        Networks::Unsaid | Networks::Auto | Networks::List(_) => ports::available_networks(conn, ctx)?,
    };
    match list[..] {
        [] if *networks == Networks::Auto => Err(Error::BadRequest(
            "Unable to automatically allocate a network: the project has none. Make a network and a subnet first, or \
             ask for networks 'none'."
                .into(),
        )),
        [] => Ok(Vec::new()),
        [network] => Ok(vec![NetRequest { network: Some(network), port: None, fixed_ip: None }]),
        _ => Err(Error::Conflict(
            "Multiple possible networks found, use a Network ID to be more specific.".into(),
        )),
    }
}

/// The root disk's size in bytes.
fn root_size(flavor: &flavors::Flavor, image: &Image) -> Result<u64> {
    if image.min_ram > flavor.ram {
        return Err(Error::BadRequest(
            "Flavor's memory is too small for requested image.".into(),
        ));
    }
    if flavor.disk == 0 {
        let gib = image.virtual_size.div_ceil(GIB).max(image.min_disk).max(1);
        return gib
            .checked_mul(GIB)
            .ok_or_else(|| Error::BadRequest("The image is too large.".into()));
    }
    let size = flavor.disk.saturating_mul(GIB);
    if image.virtual_size > size {
        return Err(Error::BadRequest(format!(
            "Flavor's disk is too small for requested image. Flavor disk is {size} bytes, image is {} bytes.",
            image.virtual_size
        )));
    }
    if image.min_disk > flavor.disk {
        return Err(Error::BadRequest(format!(
            "Flavor's disk is smaller than the minimum size specified in image metadata. Flavor disk is {size} bytes, \
             minimum size is {} bytes.",
            image.min_disk.saturating_mul(GIB)
        )));
    }
    debug_assert!(size.is_multiple_of(MIB));
    Ok(size)
}

/// A host name that DNS takes, made from the server's name (RFC 1123 §2.1).
pub(super) fn default_hostname(name: &str, id: Uuid) -> String {
    let mut hostname = String::with_capacity(63);
    for c in name.chars() {
        match c {
            'a'..='z' | '0'..='9' | '-' => hostname.push(c),
            'A'..='Z' => hostname.push(c.to_ascii_lowercase()),
            ' ' | '_' | '.' => hostname.push('-'),
            _ => {}
        }
        if hostname.len() == 63 {
            break;
        }
    }
    let trimmed = hostname.trim_matches('-');
    if trimmed.is_empty() {
        format!("server-{id}")
    } else {
        trimmed.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_ones_that_dns_takes() {
        let id = Uuid::nil();
        assert_eq!(default_hostname("My web_server.1", id), "my-web-server-1");
        assert_eq!(default_hostname("--x--", id), "x");
        assert_eq!(
            default_hostname("日本", id),
            "server-00000000-0000-0000-0000-000000000000"
        );
        assert_eq!(default_hostname(&"a".repeat(200), id).len(), 63);
    }
}
