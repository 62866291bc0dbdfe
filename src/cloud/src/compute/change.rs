//! What makes another machine of a server: resize, rebuild, rescue, shelving; and images of it.
//!
//! Each function checks the request and writes down what is to be done; the reconciler does it.

use std::collections::BTreeMap;

use model::units::GIB;
use rusqlite::{Connection, params};
use uuid::Uuid;

use super::flavors::{self, Flavor};
use super::images::{self, Image};
use super::keypairs::{self, ServerKey};
use super::servers::{
    Exchange, Rescue as RescueDisk, Server, check_metadata_count, disk_of_image, record, root_size,
};
use super::state::{Phase, Power, Task, VmState, Wanted};
use super::{Micros, boot, disks, quotas, scheduler, volumes};
use crate::error::Kind;
use crate::image::snapshots::{self, Reserve};
use crate::{Context, Error, Result};

/// What a rebuild changes beside the image; `None`: leave it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Rebuild {
    pub image: Uuid,
    /// For the new root volume, if one is needed.
    pub root: Uuid,
    pub name: Option<String>,
    pub hostname: Option<String>,
    pub description: Option<Option<String>>,
    pub metadata: Option<BTreeMap<String, String>>,
    pub key_name: Option<Option<String>>,
    /// Base64.
    pub user_data: Option<Option<String>>,
    pub access_ip_v4: Option<Option<String>>,
    pub access_ip_v6: Option<Option<String>>,
    pub disk_config: Option<String>,
    /// The root volume of a server that was booted from one may be written anew (2.93).
    pub reimage: bool,
}

/// Where a shelved server comes back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unshelve {
    /// The availability zone, which it stays in (2.77); `Some(None)`: any, from now on (2.91).
    pub zone: Option<Option<String>>,
    /// The node, which only admins name (2.91).
    pub host: Option<String>,
}

/// An image that is to be made of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewImage {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Its properties.
    pub metadata: BTreeMap<String, String>,
    /// It is one of a series of backups.
    pub backup: Option<Backup>,
}

/// A series of images, of which only the latest are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// The series, such as `daily`.
    pub kind: String,
    /// How many are kept.
    pub rotation: usize,
}

/// Sets what is to be done next.
fn ask(
    conn: &Connection,
    ctx: &Context,
    server: &mut Server,
    wanted: Wanted,
    task: Task,
    (name, event): (&str, &str),
) -> Result<()> {
    server.wanted = wanted;
    server.task_state = Some(task);
    server.generation += 1;
    record(conn, ctx, server, (name, event), false)
}

fn ran(server: &Server) -> bool {
    server.vm_state == VmState::Active || server.vm_state == VmState::Error
}

/// Gives the server another flavor, for a word on which it then waits.
pub(super) fn resize(
    conn: &Connection,
    ctx: &Context,
    server: &mut Server,
    flavor: &str,
    disk_config: Option<&str>,
    new_root: Uuid,
) -> Result<()> {
    let flavor = flavors::find(conn, ctx, flavor).map_err(|error| match error.kind() {
        Some(Kind::NotFound) => Error::BadRequest("Unable to locate requested flavor.".into()),
        _ => error,
    })?;
    if flavor.id == server.flavor.id {
        return Err(Error::BadRequest(
            "When resizing, instances must change flavor!".into(),
        ));
    }
    if server.exchange.is_some() {
        // Only after an admin has reset its state.
        return Err(Error::Conflict(format!(
            "Instance {} still has what an earlier change left: reboot it hard first",
            server.id
        )));
    }
    let root_bytes = resized_root(server, &flavor)?;
    quotas::check_resize(conn, &server.project_id, &server.flavor, &flavor)?;
    server.exchange = Some(Exchange {
        phase: Phase::Prepared,
        ran: server.vm_state == VmState::Active,
        root: (root_bytes != server.root_bytes).then_some((new_root, root_bytes)),
        flavor: Some(flavor),
        reimage: None,
    });
    if let Some(disk_config) = disk_config {
        disk_config.clone_into(&mut server.disk_config);
    }
    if !scheduler::reclaim(conn, server)? {
        return Err(Error::BadRequest(scheduler::NO_VALID_HOST.into()));
    }
    super::migrations::begin(conn, ctx, server)?;
    let wanted = server.wanted;
    ask(
        conn,
        ctx,
        server,
        wanted,
        Task::ResizePrep,
        ("resize", "conductor_migrate_server"),
    )
}

/// The root disk's size with another flavor.
fn resized_root(server: &Server, flavor: &Flavor) -> Result<u64> {
    if flavor.ephemeral != server.flavor.ephemeral || flavor.swap != server.flavor.swap {
        return Err(Error::BadRequest(
            "Ephemeral and swap disks cannot be resized: take a flavor with the same ones.".into(),
        ));
    }
    if server.volume_backed {
        return Ok(server.root_bytes);
    }
    if flavor.disk == 0 {
        if server.flavor.disk != 0 {
            return Err(Error::BadRequest(
                "Resize to zero disk flavor is not allowed.".into(),
            ));
        }
        return Ok(server.root_bytes);
    }
    let bytes = flavor.disk.saturating_mul(GIB);
    if bytes < server.root_bytes {
        return Err(Error::BadRequest(format!(
            "The flavor's disk is smaller than the server's: {} GiB cannot become {} GiB, a disk does not shrink.",
            server.root_bytes.div_ceil(GIB),
            flavor.disk
        )));
    }
    Ok(bytes)
}

/// The other flavor is kept.
pub(super) fn confirm(conn: &Connection, ctx: &Context, server: &mut Server) -> Result<()> {
    let wanted = if matches!(server.power_state, Power::Running | Power::Paused) {
        Wanted::Active
    } else {
        Wanted::Stopped
    };
    super::migrations::advance(conn, server, "confirming")?;
    ask(
        conn,
        ctx,
        server,
        wanted,
        Task::ResizeConfirming,
        ("confirmResize", "compute_confirm_resize"),
    )
}

/// Confirms the resizes that were finished before this time.
pub(super) fn confirm_old(conn: &Connection, before: Micros) -> Result<()> {
    let mut query = conn.prepare_cached(
        "SELECT s.id FROM compute_servers s JOIN compute_migrations m ON m.server_id = s.id \
         WHERE s.vm_state = 'resized' AND s.task_state IS NULL AND s.deleted = 0 AND m.status = 'finished' \
         AND m.updated_at < ?1 ORDER BY s.id",
    )?;
    let old: Vec<Uuid> = query
        .query_map([before], |row| super::servers::uuid(row, 0))?
        .collect::<rusqlite::Result<_>>()?;
    let ctx = Context::system();
    for id in old {
        if let Some(mut server) = super::servers::get(conn, id)? {
            confirm(conn, &ctx, &mut server)?;
            server.save(conn)?;
        }
    }
    Ok(())
}

/// Back to the flavor that it had.
pub(super) fn revert(conn: &Connection, ctx: &Context, server: &mut Server) -> Result<()> {
    let wanted = if server.exchange.as_ref().is_none_or(|e| e.ran) {
        Wanted::Active
    } else {
        Wanted::Stopped
    };
    super::migrations::advance(conn, server, "reverting")?;
    ask(
        conn,
        ctx,
        server,
        wanted,
        Task::ResizeReverting,
        ("revertResize", "compute_revert_resize"),
    )
}

/// The same server with a new root disk.
pub(super) fn rebuild(conn: &Connection, ctx: &Context, server: &mut Server, new: &Rebuild) -> Result<()> {
    if server.host.is_none() {
        return Err(Error::Conflict(format!(
            "Cannot 'rebuild' instance {} while it is in vm_state {}",
            server.id,
            server.vm_state.as_str()
        )));
    }
    let image = images::find(conn, ctx, new.image)?;
    let mut exchange = Exchange {
        phase: Phase::Prepared,
        ran: ran(server),
        flavor: None,
        root: None,
        reimage: None,
    };
    if server.volume_backed {
        volume_backed_rebuild(conn, server, new, &image, &mut exchange)?;
        if exchange.reimage.is_some() {
            server.boot = boot::of_properties(conn, ctx, &image.properties)?;
        }
    } else {
        let bytes = root_size(&server.flavor, &image)?.max(if server.flavor.disk > 0 {
            server.root_bytes
        } else {
            0
        });
        // A change that failed may have left its other root volume.
        let left = server.exchange.as_ref().and_then(|left| left.root);
        exchange.root = Some((left.map_or(new.root, |(volume, _)| volume), bytes));
        server.image_id = Some(image.id);
        server.boot = boot::of_properties(conn, ctx, &image.properties)?;
    }
    server.exchange = Some(exchange);
    if !scheduler::reclaim(conn, server)? {
        return Err(Error::BadRequest(scheduler::NO_VALID_HOST.into()));
    }
    if let Some(metadata) = &new.metadata {
        check_metadata_count(conn, &server.project_id, metadata.len())?;
        server.metadata.clone_from(metadata);
    }
    if let Some(name) = &new.key_name {
        server.key = match name {
            None => None,
            Some(name) => {
                let pair = keypairs::find(conn, &ctx.user_id, name)
                    .map_err(|_| Error::BadRequest("Invalid key_name provided.".into()))?;
                Some(ServerKey {
                    name: pair.name,
                    kind: pair.kind,
                    public_key: pair.public_key,
                })
            }
        };
    }
    if let Some(data) = &new.user_data {
        conn.execute(
            "DELETE FROM compute_user_data WHERE server_id = ?1",
            [server.id.to_string()],
        )?;
        if let Some(data) = data {
            conn.execute(
                "INSERT INTO compute_user_data (server_id, data) VALUES (?1, ?2)",
                params![server.id.to_string(), data],
            )?;
        }
    }
    let new = new.clone();
    server.name = new.name.unwrap_or(std::mem::take(&mut server.name));
    server.hostname = new.hostname.unwrap_or(std::mem::take(&mut server.hostname));
    server.description = new.description.unwrap_or(server.description.take());
    server.access_ip_v4 = new.access_ip_v4.unwrap_or(server.access_ip_v4.take());
    server.access_ip_v6 = new.access_ip_v6.unwrap_or(server.access_ip_v6.take());
    server.disk_config = new.disk_config.unwrap_or(std::mem::take(&mut server.disk_config));
    let wanted = if ran(server) {
        Wanted::Active
    } else {
        Wanted::Stopped
    };
    ask(
        conn,
        ctx,
        server,
        wanted,
        Task::Rebuilding,
        ("rebuild", "rebuild_server"),
    )
}

/// A root volume is left as it is when its image is named; another image is written over it from 2.93 on.
fn volume_backed_rebuild(
    conn: &Connection,
    server: &Server,
    new: &Rebuild,
    image: &Image,
    exchange: &mut Exchange,
) -> Result<()> {
    let same = volumes::image_of(conn, server.root_volume)? == Some(new.image);
    if !new.reimage {
        if same {
            return Ok(());
        }
        return Err(Error::BadRequest(
            "Unable to rebuild with a different image for a volume-backed server.".into(),
        ));
    }
    if image.virtual_size > server.root_bytes {
        return Err(Error::BadRequest(
            "The volume is too small for the requested image.".into(),
        ));
    }
    exchange.reimage = Some(image.id);
    Ok(())
}

/// The server runs from a disk made of an image, its own root disk beside it.
pub(super) fn rescue(
    conn: &Connection,
    ctx: &Context,
    server: &mut Server,
    image: Option<Uuid>,
    volume: Uuid,
) -> Result<()> {
    let Some(id) = image.or(server.image_id) else {
        return Err(Error::BadRequest(format!(
            "Instance {} cannot be rescued: Cannot rescue a volume-backed instance without an image: name \
             rescue_image_ref",
            server.id
        )));
    };
    let image = images::find(conn, ctx, id)?;
    server.rescue = Some(RescueDisk {
        // A rescue that failed may have left its disk.
        volume: server.rescue.as_ref().map_or(volume, |left| left.volume),
        bytes: disk_of_image(&image)?,
        image: id,
        boot: boot::of_properties(conn, ctx, &image.properties)?,
    });
    if !scheduler::reclaim(conn, server)? {
        return Err(Error::BadRequest(scheduler::NO_VALID_HOST.into()));
    }
    ask(
        conn,
        ctx,
        server,
        Wanted::Active,
        Task::Rescuing,
        ("rescue", "compute_rescue_instance"),
    )
}

/// Back to its own disk.
pub(super) fn unrescue(conn: &Connection, ctx: &Context, server: &mut Server) -> Result<()> {
    ask(
        conn,
        ctx,
        server,
        Wanted::Active,
        Task::Unrescuing,
        ("unrescue", "compute_unrescue_instance"),
    )
}

/// What an image of a server is to say of it.
fn properties(
    conn: &Connection,
    ctx: &Context,
    server: &Server,
) -> Result<(BTreeMap<String, String>, Reserve)> {
    let mut properties = BTreeMap::new();
    let mut reserve = Reserve {
        min_disk: u32::try_from(server.root_bytes.div_ceil(GIB)).unwrap_or(u32::MAX),
        ..Reserve::default()
    };
    // Those of the image that it was made from hold for its image, too.
    if let Some(base) = server.image_id {
        if let Ok(image) = crate::image::find_for_boot(conn, ctx, base) {
            properties.extend(image.properties);
            reserve.min_ram = image.min_ram;
            reserve.min_disk = reserve.min_disk.max(image.min_disk);
        }
        properties.insert("base_image_ref".into(), base.to_string());
    }
    for (key, value) in [
        ("image_type", "snapshot".to_owned()),
        ("image_location", "snapshot".to_owned()),
        ("image_state", "available".to_owned()),
        ("instance_uuid", server.id.to_string()),
        ("user_id", ctx.user_id.clone()),
        ("owner_id", server.project_id.clone()),
    ] {
        properties.insert(key.into(), value);
    }
    Ok((properties, reserve))
}

/// Makes an image of the server's root disk; of a server that was booted from a volume one that names snapshots of its
/// volumes.
pub(super) fn create_image(
    conn: &Connection,
    ctx: &Context,
    server: &mut Server,
    new: &NewImage,
) -> Result<()> {
    check_metadata_count(conn, &server.project_id, new.metadata.len())?;
    let (mut properties, reserve) = properties(conn, ctx, server)?;
    properties.extend(new.metadata.clone());
    if let Some(backup) = &new.backup {
        if server.volume_backed {
            return Err(Error::BadRequest(
                "Backup is not supported for volume-backed instances.".into(),
            ));
        }
        properties.insert("image_type".into(), "backup".into());
        properties.insert("backup_type".into(), backup.kind.clone());
        rotate(conn, server, backup)?;
        if backup.rotation == 0 {
            // None is kept, so none is made.
            return record(conn, ctx, server, ("createBackup", "api_backup_instance"), true);
        }
    }
    if server.volume_backed {
        let mappings = volumes::snapshot_all(conn, ctx, server, &new.name)?;
        properties.insert("bdm_v2".into(), "True".into());
        properties.insert("root_device_name".into(), disks::device(0));
        properties.insert("block_device_mapping".into(), mappings);
        snapshots::reserve(
            conn,
            ctx,
            &Reserve {
                id: new.id,
                name: new.name.clone(),
                properties,
                ..reserve
            },
            false,
        )?;
        return record(conn, ctx, server, ("createImage", "api_snapshot_instance"), true);
    }
    snapshots::reserve(
        conn,
        ctx,
        &Reserve {
            id: new.id,
            name: new.name.clone(),
            properties,
            ..reserve
        },
        true,
    )?;
    server.snapshot = Some(new.id);
    let wanted = server.wanted;
    let name = match new.backup {
        Some(_) => ("createBackup", "compute_backup_instance"),
        None => ("createImage", "compute_snapshot_instance"),
    };
    ask(conn, ctx, server, wanted, Task::ImageSnapshot, name)
}

/// Removes the oldest backups of a series, so that with a new one no more are left than are kept.
fn rotate(conn: &Connection, server: &Server, backup: &Backup) -> Result<()> {
    let mut query = conn.prepare_cached(
        "SELECT id FROM images WHERE owner = ?1 AND status <> 'pending_delete' AND protected = 0 \
         AND json_extract(properties, '$.instance_uuid') = ?2 AND json_extract(properties, '$.image_type') = 'backup' \
         AND json_extract(properties, '$.backup_type') = ?3 ORDER BY created_at DESC, id DESC",
    )?;
    let old: Vec<Uuid> = query
        .query_map(
            params![server.project_id, server.id.to_string(), backup.kind],
            |row| super::servers::uuid(row, 0),
        )?
        .collect::<rusqlite::Result<_>>()?;
    for image in old.into_iter().skip(backup.rotation.saturating_sub(1)) {
        snapshots::discard(conn, image)?;
    }
    Ok(())
}

/// The server is kept as an image, and its node is free of it.
pub(super) fn shelve(conn: &Connection, ctx: &Context, server: &mut Server, image: Uuid) -> Result<()> {
    if let Some(left) = server.shelved_image.take() {
        snapshots::discard(conn, left)?;
    }
    if !server.volume_backed {
        let (properties, reserve) = properties(conn, ctx, server)?;
        snapshots::reserve(
            conn,
            ctx,
            &Reserve {
                id: image,
                name: format!("{}-shelved", server.name),
                properties,
                ..reserve
            },
            true,
        )?;
        server.shelved_image = Some(image);
    }
    ask(
        conn,
        ctx,
        server,
        Wanted::Stopped,
        Task::Shelving,
        ("shelve", "compute_shelve_instance"),
    )
}

/// The server comes back.
pub(super) fn unshelve(conn: &Connection, ctx: &Context, server: &mut Server, how: &Unshelve) -> Result<()> {
    if let Some(zone) = &how.zone {
        server.availability_zone.clone_from(zone);
    }
    ask(
        conn,
        ctx,
        server,
        Wanted::Active,
        Task::Unshelving,
        ("unshelve", "unshelve_server"),
    )
}
