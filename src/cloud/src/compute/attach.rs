//! Volumes and network interfaces that come to a server and leave it, also while it runs.
//!
//! A request writes down what is to be done (`compute_disks`, `compute_plugs`); the reconciler does it.

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::disks::{self, Disk, DiskState};
use super::ports::{self, Interface, NetRequest};
use super::servers::{Server, check_lock, find, record};
use super::state::VmState;
use super::volumes;
use crate::error::Kind;
use crate::{Cloud, Context, Error, Result};

/// The server is in one of these states and nothing is being done to it.
fn check_state(ctx: &Context, server: &Server, verb: &str, states: &[VmState]) -> Result<()> {
    check_lock(ctx, server)?;
    let what = if !states.contains(&server.vm_state) {
        format!("vm_state {}", server.vm_state.as_str())
    } else if let Some(task) = server.task_state {
        format!("task_state {}", task.as_str())
    } else {
        return Ok(());
    };
    Err(Error::Conflict(format!(
        "Cannot '{verb}' instance {} while it is in {what}",
        server.id
    )))
}

const FOR_VOLUMES: &[VmState] = &[
    VmState::Active,
    VmState::Paused,
    VmState::Stopped,
    VmState::Resized,
    VmState::ShelvedOffloaded,
];
const FOR_PORTS: &[VmState] = &[VmState::Active, VmState::Paused, VmState::Stopped];

async fn change<T, F>(cloud: &Cloud, ctx: &Context, rule: &'static str, id: &str, f: F) -> Result<T>
where
    F: Fn(&Connection, &Context, Server) -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    ctx.require("servers", rule)?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    let actor = ctx.user_id.clone();
    cloud
        .store
        .write(&actor, move |conn| f(conn, &ctx, find(conn, &ctx, &id)?))
        .await
}

/// A volume that a server is to have.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct NewVolume {
    pub volume: Uuid,
    /// What the client would like; the place is chosen by the order of coming, as with Nova's own drivers.
    pub device: Option<String>,
    pub tag: Option<String>,
    pub delete_on_termination: bool,
    /// The request's version knows of volumes that several servers have (2.60).
    pub multiattach: bool,
}

/// Gives a volume to a server.
pub async fn attach_volume(cloud: &Cloud, ctx: &Context, id: &str, new: NewVolume) -> Result<Disk> {
    change(cloud, ctx, "attach_volume", id, move |conn, ctx, server| {
        check_state(ctx, &server, "attach_volume", FOR_VOLUMES)?;
        if let Some(device) = &new.device {
            disks::check_device_name(device)?;
        }
        let position = disks::free_position(&disks::of_server(conn, server.id)?)?;
        let reserved = volumes::reserve(conn, ctx, new.volume, server.id)?;
        if reserved.shared && !new.multiattach {
            return Err(Error::BadRequest(
                "Volume multi-attach is only supported starting with compute API version 2.60.".into(),
            ));
        }
        let disk = Disk {
            server: server.id,
            volume: new.volume,
            device: disks::device(position),
            position,
            local: false,
            size: reserved.bytes,
            state: DiskState::Attaching,
            attachment: Some(reserved.attachment),
            delete_on_termination: new.delete_on_termination,
            tag: new.tag.clone(),
            request_id: Some(ctx.request_id.clone()),
        };
        disk.save(conn)?;
        record(
            conn,
            ctx,
            &server,
            ("attach_volume", "compute_attach_volume"),
            false,
        )?;
        Ok(disk)
    })
    .await
}

fn the_disk(conn: &Connection, server: &Server, volume: &str) -> Result<Disk> {
    let missing = || {
        super::missing(format!(
            "Instance {} is not attached to volume {volume}",
            server.id
        ))
    };
    let id = volume.parse().map_err(|_| missing())?;
    disks::get(conn, server.id, id)?
        .filter(|disk| !disk.local)
        .ok_or_else(missing)
}

/// Takes a volume from a server.
pub async fn detach_volume(cloud: &Cloud, ctx: &Context, id: &str, volume: &str) -> Result<()> {
    let volume = volume.to_owned();
    change(cloud, ctx, "attach_volume", id, move |conn, ctx, server| {
        let mut disk = the_disk(conn, &server, &volume)?;
        check_state(ctx, &server, "detach_volume", FOR_VOLUMES)?;
        if disk.position == 0 && server.vm_state != VmState::ShelvedOffloaded {
            return Err(Error::Forbidden("Cannot detach a root device volume".into()));
        }
        match disk.state {
            DiskState::Attached => {}
            DiskState::Attaching => {
                return Err(Error::BadRequest(format!(
                    "Invalid volume: Volume {volume} is being attached; it can be detached once that is done."
                )));
            }
            DiskState::Detaching => return Ok(()),
        }
        volumes::begin_detach(conn, disk.volume, server.id)?;
        disk.state = DiskState::Detaching;
        disk.request_id = Some(ctx.request_id.clone());
        disk.save(conn)?;
        record(
            conn,
            ctx,
            &server,
            ("detach_volume", "compute_detach_volume"),
            false,
        )
    })
    .await
}

/// A server's volumes.
pub async fn volumes_of(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Vec<Disk>> {
    ctx.require("servers", "show")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .read(move |conn| {
            let server = find(conn, &ctx, &id)?;
            let mut all = disks::of_server(conn, server.id)?;
            all.retain(|disk| !disk.local);
            Ok(all)
        })
        .await
}

/// One volume of a server.
pub async fn volume_of(cloud: &Cloud, ctx: &Context, id: &str, volume: &str) -> Result<Disk> {
    ctx.require("servers", "show")?;
    let (ctx, id, volume) = (ctx.clone(), id.to_owned(), volume.to_owned());
    cloud
        .store
        .read(move |conn| the_disk(conn, &find(conn, &ctx, &id)?, &volume))
        .await
}

/// Says whether a volume goes with its server (2.85).
pub async fn keep_volume(cloud: &Cloud, ctx: &Context, id: &str, volume: &str, goes: bool) -> Result<()> {
    let volume = volume.to_owned();
    change(cloud, ctx, "attach_volume", id, move |conn, _, server| {
        let mut disk = the_disk(conn, &server, &volume)?;
        disk.delete_on_termination = goes;
        disk.save(conn)
    })
    .await
}

/// Plugs a server into one more network. Without a port and a network: into the only one that the project has.
pub async fn attach_port(
    cloud: &Cloud,
    ctx: &Context,
    id: &str,
    request: NetRequest,
    tag: Option<String>,
) -> Result<Interface> {
    let node = cloud.config.node.clone();
    change(cloud, ctx, "attach_interface", id, move |conn, ctx, server| {
        check_state(ctx, &server, "attach_interface", FOR_PORTS)?;
        let port = ports::create_for_server(conn, ctx, server.id, &request, &[])
            .map_err(|error| as_nova(error, request.port))?;
        ports::bind(conn, &server, &node)?;
        plug(conn, ctx, server.id, port, true)?;
        if let Some(tag) = &tag {
            conn.execute(
                "INSERT OR REPLACE INTO compute_port_tags (port_id, server_id, tag) VALUES (?1, ?2, ?3)",
                params![port.to_string(), server.id.to_string(), tag],
            )?;
        }
        record(
            conn,
            ctx,
            &server,
            ("attach_interface", "compute_attach_interface"),
            false,
        )?;
        let found = ports::of_server(conn, server.id)?;
        let found = found.into_iter().find(|interface| interface.port == port);
        found.ok_or_else(|| Error::Internal(format!("port {port} vanished while it was attached")))
    })
    .await
}

/// Neutron's errors in Nova's words.
fn as_nova(error: Error, port: Option<Uuid>) -> Error {
    match error.kind() {
        Some(Kind::Conflict) if port.is_some() => Error::BadRequest(error.to_string()),
        Some(Kind::QuotaExceeded) => Error::Forbidden(error.to_string()),
        Some(Kind::NotFound) if port.is_none() => Error::BadRequest(error.to_string()),
        _ => error,
    }
}

fn plug(conn: &Connection, ctx: &Context, server: Uuid, port: Uuid, attach: bool) -> Result<()> {
    conn.prepare_cached(
        "INSERT OR REPLACE INTO compute_plugs (server_id, port_id, attach, request_id) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![
        server.to_string(),
        port.to_string(),
        attach,
        ctx.request_id
    ])?;
    Ok(())
}

/// Unplugs a port of a server.
pub async fn detach_port(cloud: &Cloud, ctx: &Context, id: &str, port: &str) -> Result<()> {
    let port = port.to_owned();
    change(cloud, ctx, "attach_interface", id, move |conn, ctx, server| {
        check_state(ctx, &server, "detach_interface", FOR_PORTS)?;
        let missing = || {
            super::missing(format!(
                "Port id {port} is not attached to the instance {}",
                server.id
            ))
        };
        let id: Uuid = port.parse().map_err(|_| missing())?;
        if !ports::of_server(conn, server.id)?.iter().any(|i| i.port == id) {
            return Err(missing());
        }
        plug(conn, ctx, server.id, id, false)?;
        record(
            conn,
            ctx,
            &server,
            ("detach_interface", "compute_detach_interface"),
            false,
        )
    })
    .await
}

/// A port that is to come to a machine, or to leave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plug {
    pub(super) port: Uuid,
    pub(super) attach: bool,
    pub(super) request_id: Option<String>,
}

/// What is to be plugged and unplugged at a server.
pub(super) fn plugs(conn: &Connection, server: Uuid) -> Result<Vec<Plug>> {
    let mut query = conn.prepare_cached(
        "SELECT port_id, attach, request_id FROM compute_plugs WHERE server_id = ?1 ORDER BY port_id",
    )?;
    Ok(query
        .query_map([server.to_string()], |row| {
            Ok(Plug {
                port: super::servers::uuid(row, 0)?,
                attach: row.get(1)?,
                request_id: row.get(2)?,
            })
        })?
        .collect::<rusqlite::Result<_>>()?)
}

/// It is done, one way or the other; unless something else is wanted of the port by now.
pub(super) fn unplugged(conn: &Connection, server: Uuid, plug: &Plug) -> Result<()> {
    conn.prepare_cached(
        "DELETE FROM compute_plugs WHERE server_id = ?1 AND port_id = ?2 AND request_id IS ?3 AND attach = ?4",
    )?
    .execute(params![
        server.to_string(),
        plug.port.to_string(),
        plug.request_id,
        plug.attach
    ])?;
    Ok(())
}

/// The tags of a server's interfaces.
pub async fn port_tags(cloud: &Cloud, server: Uuid) -> Result<std::collections::HashMap<Uuid, String>> {
    cloud
        .store
        .read(move |conn| {
            let mut query =
                conn.prepare_cached("SELECT port_id, tag FROM compute_port_tags WHERE server_id = ?1")?;
            let rows = query.query_map([server.to_string()], |row| {
                Ok((super::servers::uuid(row, 0)?, row.get(1)?))
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
}

/// Nothing of the server's disks and ports is left to do or to remember.
pub(super) fn forget(conn: &Connection, server: Uuid) -> Result<()> {
    for table in ["compute_disks", "compute_plugs", "compute_port_tags"] {
        conn.prepare_cached(&format!("DELETE FROM {table} WHERE server_id = ?1"))?
            .execute([server.to_string()])?;
    }
    Ok(())
}
