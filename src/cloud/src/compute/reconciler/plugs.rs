//! Volumes and ports that come to a server at rest and leave it.

use super::{NAME, Shared};
use crate::compute::attach::{self, Plug};
use crate::compute::disks::{self, Disk, DiskState};
use crate::compute::servers::Server;
use crate::compute::{actions, ports, volumes};
use crate::driver::DriverError;
use crate::{Error, Result};

/// Brings what was asked to come to a server at rest, and lets go of what was asked to leave it; tells whether there was
/// anything to do. What cannot be done is taken back: the server itself stays as it is.
pub(super) async fn plug(shared: &Shared, server: &Server) -> Result<bool> {
    let id = server.id;
    let (disks, plugs) = shared
        .cloud
        .store
        .read(move |conn| Ok::<_, Error>((disks::of_server(conn, id)?, attach::plugs(conn, id)?)))
        .await?;
    let (mut found, mut freed) = (false, Ok(()));
    for disk in disks {
        // Those of a server that was never built come with its start.
        let built = server.launched_at.is_some();
        match disk.state {
            DiskState::Attaching if built || disk.request_id.is_some() => {
                found = true;
                plug_disk(shared, server, disk).await?;
            }
            DiskState::Detaching => {
                found = true;
                freed = freed.and(unplug_disk(shared, server, disk).await);
            }
            _ => {}
        }
    }
    for plug in plugs {
        found = true;
        plug_port(shared, server, &plug).await?;
    }
    freed.map(|()| found)
}

async fn plug_disk(shared: &Shared, server: &Server, disk: Disk) -> Result<()> {
    let id = server.id;
    let volumes = shared
        .cloud
        .store
        .read(move |conn| volumes::machine_disks(conn, id))
        .await?;
    let done = match volumes.iter().find(|volume| volume.volume == disk.volume) {
        Some(volume) => shared.cloud.drivers.machines.attach_disk(id, volume).await,
        None => Err(DriverError::BadInput("its volume is gone".into())),
    };
    let error = tell(server, "attach volume", done);
    let server = server.clone();
    shared
        .cloud
        .store
        .write(NAME, move |conn| {
            let Some(mut row) = disks::get(conn, id, disk.volume)? else {
                return Ok(());
            };
            match &error {
                None => {
                    if let Some(attachment) = row.attachment {
                        let host = server.host.as_deref().unwrap_or_default();
                        volumes::attached(conn, attachment, &row.device, host)?;
                    }
                    row.state = DiskState::Attached;
                    row.save(conn)?;
                }
                // The machine may have it all the same: it is free once the machine has let go of it.
                Some(_) => {
                    row.state = DiskState::Detaching;
                    row.request_id = None;
                    row.save(conn)?;
                }
            }
            actions::finish_one(conn, &server, disk.request_id.as_deref(), result(&error))
        })
        .await
}

async fn unplug_disk(shared: &Shared, server: &Server, disk: Disk) -> Result<()> {
    let id = server.id;
    let done = shared.cloud.drivers.machines.detach_disk(id, disk.volume).await;
    let error = tell(server, "detach volume", done);
    // No one asked for it: it never came, and is not to stay.
    if let (Some(error), None) = (&error, &disk.request_id) {
        return Err(Error::Internal(error.clone()));
    }
    let server = server.clone();
    shared
        .cloud
        .store
        .write(NAME, move |conn| {
            let Some(mut row) = disks::get(conn, id, disk.volume)? else {
                return Ok(());
            };
            if error.is_some() {
                volumes::roll_detaching(conn, row.volume, id)?;
                row.state = DiskState::Attached;
                row.save(conn)?;
            } else {
                volumes::detached(conn, row.volume, id)?;
                row.remove(conn)?;
            }
            actions::finish_one(conn, &server, disk.request_id.as_deref(), result(&error))
        })
        .await
}

async fn plug_port(shared: &Shared, server: &Server, plug: &Plug) -> Result<()> {
    let id = server.id;
    let machines = &shared.cloud.drivers.machines;
    let done = if plug.attach {
        let interfaces = shared
            .cloud
            .store
            .read(move |conn| ports::of_server(conn, id))
            .await?;
        match interfaces.iter().find(|i| i.port == plug.port) {
            Some(interface) => {
                // The machine's socket is one that the switch must have made.
                let _ = ports::wait(&shared.cloud, id, shared.settings.wait_for_ports).await;
                machines.attach_port(id, &interface.nic()).await
            }
            None => Ok(()),
        }
    } else {
        machines.detach_port(id, plug.port).await
    };
    let error = tell(
        server,
        if plug.attach { "attach port" } else { "detach port" },
        done,
    );
    let (server, plug) = (server.clone(), plug.clone());
    shared
        .cloud
        .store
        .write(NAME, move |conn| {
            attach::unplugged(conn, id, &plug)?;
            // A port that did not come goes, and one that went goes.
            if plug.attach == error.is_some() {
                ports::release_port(conn, id, plug.port)?;
                conn.prepare_cached("DELETE FROM compute_port_tags WHERE port_id = ?1")?
                    .execute([plug.port.to_string()])?;
            }
            actions::finish_one(conn, &server, plug.request_id.as_deref(), result(&error))
        })
        .await
}

/// What a driver said of something that may fail without harm to the server; `None`: it is done.
fn tell(server: &Server, what: &str, done: Result<(), DriverError>) -> Option<String> {
    let error = done.err()?;
    tracing::warn!(server = %server.id, %error, "{what} failed");
    Some(error.to_string())
}

fn result(error: &Option<String>) -> Result<(), &str> {
    error.as_deref().map_or(Ok(()), Err)
}
