//! What is done to volumes by name: extend, retype, attach by hand, and so on.

use rusqlite::Connection;
use uuid::Uuid;

use super::attachments;
use super::quotas::{self, Wanted};
use super::row::{self, Volume};
use super::snapshots;
use super::status::{AttachStatus, SnapshotStatus, Status, Task};
use super::volumes::change;
use super::{pool, types};
use crate::image::from_volume;
use crate::{Cloud, Context, Error, Result};

fn invalid_volume(text: impl std::fmt::Display) -> Error {
    Error::BadRequest(format!("Invalid volume: {text}"))
}

fn expect(volume: &Volume, wanted: &[Status], what: &str) -> Result<()> {
    if wanted.contains(&volume.status) {
        return Ok(());
    }
    let names: Vec<&str> = wanted.iter().map(|status| status.name()).collect();
    Err(invalid_volume(format!(
        "Volume {} status must be {} to {what}, but current status is: {}.",
        volume.id,
        names.join(" or "),
        volume.status.name()
    )))
}

/// A volume or a snapshot is being made of it, of the size that the request saw.
fn is_read(conn: &Connection, volume: Uuid) -> Result<bool> {
    let mut query = conn.prepare_cached(
        "SELECT 1 FROM volume_volumes WHERE origin_id = ?1 AND task = 'create' \
         UNION ALL SELECT 1 FROM volume_snapshots WHERE volume_id = ?1 AND task = 'create'",
    )?;
    Ok(query.exists([volume.to_string()])?)
}

/// Makes a volume larger; `online`: also while a server has it.
///
/// # Errors
/// 404, 400 in the wrong state, while it is read, or for a size that is not larger; 413 over quota.
pub async fn extend(cloud: &Cloud, ctx: &Context, id: &str, size: u32, online: bool) -> Result<()> {
    ctx.require("volumes", "extend")?;
    change(cloud, ctx, id, move |conn, volume| {
        match volume.status {
            Status::Available => {}
            Status::InUse if online => {}
            _ => expect(volume, &[Status::Available], "extend")?,
        }
        if is_read(conn, volume.id)? {
            return Err(invalid_volume(format!(
                "Volume {} cannot be extended while a volume or a snapshot is being made of it.",
                volume.id
            )));
        }
        if size <= volume.size {
            return Err(Error::BadRequest(format!(
                "Invalid input received: New size for extend must be greater than current size. (current: {}, \
                 extended: {size}).",
                volume.size
            )));
        }
        quotas::per_volume(conn, &volume.project_id, size)?;
        let kind = volume.type_id.to_string();
        quotas::check(conn, &volume.project_id, &kind, Wanted::Growth(size - volume.size))?;
        volume.previous_status = Some(volume.status);
        volume.status = Status::Extending;
        volume.task = Some(Task::Extend);
        volume.new_size = Some(size);
        Ok(())
    })
    .await
    .map(drop)
}

/// Says that servers can boot from a volume, or not.
///
/// # Errors
/// 404.
pub async fn set_bootable(cloud: &Cloud, ctx: &Context, id: &str, bootable: bool) -> Result<()> {
    ctx.require("volumes", "update")?;
    change(cloud, ctx, id, move |_, volume| {
        volume.bootable = bootable;
        Ok(())
    })
    .await
    .map(drop)
}

/// Says that servers may only read a volume, or not.
///
/// # Errors
/// 404, 400 unless it is available.
pub async fn set_read_only(cloud: &Cloud, ctx: &Context, id: &str, read_only: bool) -> Result<()> {
    ctx.require("volumes", "update")?;
    change(cloud, ctx, id, move |_, volume| {
        expect(volume, &[Status::Available], "update readonly flag")?;
        volume.read_only = Some(read_only);
        Ok(())
    })
    .await
    .map(drop)
}

/// Gives a volume another type.
///
/// # Errors
/// 404, 400 in the wrong state, for the same type, or for a type that this node's pool cannot be; 413 over the type's quota.
pub async fn retype(cloud: &Cloud, ctx: &Context, id: &str, new_type: &str) -> Result<()> {
    ctx.require("volumes", "retype")?;
    let (caller, new_type) = (ctx.clone(), new_type.to_owned());
    change(cloud, ctx, id, move |conn, volume| {
        expect(volume, &[Status::Available, Status::InUse], "retype")?;
        let kind = types::find_by_name(conn, &caller, &new_type)?;
        if kind.id == volume.type_id {
            return Err(Error::BadRequest(format!(
                "Invalid input received: New volume_type same as original: {}.",
                kind.id
            )));
        }
        if !pool::offers(&kind.extra_specs) {
            return Err(Error::BadRequest(format!(
                "Invalid input received: No storage of this cloud is of type {}.",
                kind.name
            )));
        }
        quotas::check(
            conn,
            &volume.project_id,
            &kind.id.to_string(),
            Wanted::Retyped(volume.size),
        )?;
        volume.type_id = kind.id;
        Ok(())
    })
    .await
    .map(drop)
}

/// Sets a volume's states by hand.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Reset {
    pub status: Option<Status>,
    /// False: no server has it (any more).
    pub attached: Option<bool>,
}

/// See [`Reset`].
///
/// # Errors
/// 404, 409 for what would let others have a volume that a server has.
pub async fn reset_status(cloud: &Cloud, ctx: &Context, id: &str, reset: Reset) -> Result<()> {
    ctx.require("volumes", "reset_status")?;
    change(cloud, ctx, id, move |conn, volume| {
        // Nor may anyone else take what a server has.
        if reset.attached == Some(false)
            || matches!(reset.status, Some(Status::Available | Status::AwaitingTransfer))
        {
            attachments::expect_free(conn, volume.id)?;
        }
        if reset.attached == Some(false) {
            conn.prepare_cached("DELETE FROM volume_attachments WHERE volume_id = ?1")?
                .execute([volume.id.to_string()])?;
        }
        if let Some(status) = reset.status {
            volume.status = status;
            volume.previous_status = None;
        }
        Ok(())
    })
    .await
    .map(drop)
}

/// What a volume is copied to.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Upload {
    pub image_name: String,
    /// Also while a server has it.
    pub force: bool,
    pub visibility: crate::image::Visibility,
    pub protected: bool,
}

/// Copies a volume to a new image.
///
/// # Errors
/// 404, 400 in the wrong state, what images' rules say.
pub async fn upload(
    cloud: &Cloud,
    ctx: &Context,
    id: &str,
    upload: Upload,
) -> Result<(Volume, crate::image::Image)> {
    ctx.require("volumes", "upload")?;
    ctx.require("images", "create")?;
    if upload.visibility == crate::image::Visibility::Public {
        ctx.require("images", "publicize")?;
    }
    let (caller, id) = (ctx.clone(), id.to_owned());
    let image_id = Uuid::new_v4();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut volume = row::find_text(conn, &caller, &id)?;
            let fits = match volume.status {
                Status::Available => true,
                Status::InUse => upload.force,
                _ => false,
            };
            if !fits {
                return Err(invalid_volume(format!(
                    "Volume {} status must be available{}, but current status is: {}.",
                    volume.id,
                    if upload.force { " or in-use" } else { "" },
                    volume.status.name()
                )));
            }
            let image = from_volume::begin(
                conn,
                &caller,
                from_volume::New {
                    id: image_id,
                    name: upload.image_name.clone(),
                    visibility: upload.visibility,
                    protected: upload.protected,
                    properties: &volume.image_metadata,
                },
            )?;
            volume.previous_status = Some(volume.status);
            volume.status = Status::Uploading;
            volume.task = Some(Task::Upload);
            volume.target_id = Some(image.id);
            volume.updated_at = Some(crate::compute::now());
            volume.save(conn)?;
            Ok((volume, image))
        })
        .await
}

/// Writes the newest snapshot of a volume over it.
///
/// # Errors
/// 404, 400 in the wrong state, for an older snapshot, or one of another size.
pub async fn revert(cloud: &Cloud, ctx: &Context, id: &str, snapshot: &str) -> Result<()> {
    ctx.require("volumes", "revert")?;
    let (caller, snapshot) = (ctx.clone(), snapshot.to_owned());
    change(cloud, ctx, id, move |conn, volume| {
        let mut snapshot = snapshots::find(conn, &caller, row::parse_id("Snapshot", &snapshot)?)?;
        let newest = snapshots::of_volume(conn, volume.id)?.pop();
        if newest.is_none_or(|newest| newest.id != snapshot.id) {
            return Err(Error::BadRequest(format!(
                "Invalid input received: Snapshot {} is not the latest snapshot of volume {}.",
                snapshot.id, volume.id
            )));
        }
        expect(volume, &[Status::Available], "be reverted to a snapshot")?;
        if snapshot.status != SnapshotStatus::Available {
            return Err(Error::BadRequest(format!(
                "Invalid snapshot: Can't revert to a snapshot that is {}.",
                snapshot.status.name()
            )));
        }
        if snapshot.size != volume.size {
            return Err(invalid_volume(format!(
                "Can't revert volume {} to its latest snapshot {}: their sizes differ.",
                volume.id, snapshot.id
            )));
        }
        snapshot.status = SnapshotStatus::Restoring;
        snapshot.save(conn)?;
        volume.previous_status = Some(volume.status);
        volume.status = Status::Reverting;
        volume.task = Some(Task::Revert);
        volume.target_id = Some(snapshot.id);
        Ok(())
    })
    .await
    .map(drop)
}

/// What was once done by compute over the API: the state of attachments by hand.
#[derive(Debug, Clone)]
pub enum Hand {
    /// Keep it for someone.
    Reserve,
    /// Do not.
    Unreserve,
    /// A server or a host has it now.
    Attach {
        /// The server.
        server: Option<Uuid>,
        /// The host.
        host: Option<String>,
        /// Such as `/dev/vdb`.
        device: String,
        /// It can only be read.
        read_only: bool,
    },
    /// It is to be taken away.
    BeginDetaching,
    /// It is not.
    RollDetaching,
    /// It was taken away.
    Detach {
        /// This one, where there are more.
        attachment: Option<Uuid>,
        /// Whatever state the volume is in (for administrators): it is available afterwards.
        force: bool,
    },
}

/// See [`Hand`].
///
/// # Errors
/// 404, 400 in the wrong state, 409 for a volume that a server has: it is let go of by compute alone.
pub async fn by_hand(cloud: &Cloud, ctx: &Context, id: &str, hand: Hand) -> Result<()> {
    ctx.require("volumes", "attach")?;
    if matches!(hand, Hand::Detach { force: true, .. }) {
        ctx.require("volumes", "force_detach")?;
    }
    let (caller, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let volume = row::find_text(conn, &caller, &id)?;
            if !matches!(hand, Hand::Reserve | Hand::Attach { .. }) {
                attachments::expect_free(conn, volume.id)?;
            }
            carry_out(conn, &caller, &volume, &hand)
        })
        .await
}

/// Nobody has it any more, whatever its state was.
fn free(conn: &Connection, volume: &Volume) -> Result<()> {
    if let Some(mut volume) = row::get(conn, volume.id)?
        && volume.task.is_none()
    {
        volume.status = Status::Available;
        volume.updated_at = Some(crate::compute::now());
        volume.save(conn)?;
    }
    Ok(())
}

fn carry_out(conn: &Connection, ctx: &Context, volume: &Volume, hand: &Hand) -> Result<()> {
    let all = attachments::of_volume(conn, volume.id)?;
    match hand {
        Hand::Reserve => {
            let made = attachments::reserve(conn, ctx, volume.id, None)?;
            // Whoever asks so is about to attach it.
            attachments::attaching(conn, made.id, None)
        }
        Hand::Unreserve => {
            let reserved = all
                .iter()
                .find(|a| matches!(a.status, AttachStatus::Reserved | AttachStatus::Attaching));
            match reserved {
                Some(attachment) => attachments::remove(conn, attachment.id),
                None => Ok(()),
            }
        }
        Hand::Attach {
            server,
            host,
            device,
            read_only,
        } => {
            if volume.read_only == Some(true) && !read_only {
                return Err(Error::BadRequest(format!(
                    "Invalid volume attaching mode 'rw' for read-only volume {}.",
                    volume.id
                )));
            }
            if let Some(server) = server {
                crate::compute::servers::find(conn, ctx, &server.to_string())?;
            }
            let open = all.iter().find(|a| {
                matches!(a.status, AttachStatus::Reserved | AttachStatus::Attaching) && a.server.is_none()
            });
            let id = match open {
                Some(attachment) => attachment.id,
                None => attachments::reserve(conn, ctx, volume.id, None)?.id,
            };
            attachments::name_server(conn, id, *server, *read_only)?;
            attachments::attached(conn, id, Some(device), host.as_deref())
        }
        Hand::BeginDetaching => {
            expect(volume, &[Status::InUse], "detach")?;
            attachments::set_all(conn, volume.id, AttachStatus::Attached, AttachStatus::Detaching)
        }
        Hand::RollDetaching => {
            attachments::set_all(conn, volume.id, AttachStatus::Detaching, AttachStatus::Attached)
        }
        Hand::Detach {
            attachment: id,
            force,
        } => {
            // Detached already.
            let done = all.is_empty() && volume.status == Status::Available;
            if !force && !done {
                expect(volume, &[Status::InUse, Status::Detaching], "detach")?;
            }
            let attachment = match id {
                Some(id) => all.iter().find(|a| a.id == *id),
                None if *force => {
                    for attachment in &all {
                        attachments::remove(conn, attachment.id)?;
                    }
                    return free(conn, volume);
                }
                None if all.len() > 1 => {
                    return Err(invalid_volume(
                        "Detach volume failed: More than one attachment, but no attachment_id provided.",
                    ));
                }
                None => all.first(),
            };
            if let Some(attachment) = attachment {
                attachments::remove(conn, attachment.id)?;
            }
            if *force && attachments::of_volume(conn, volume.id)?.is_empty() {
                free(conn, volume)?;
            }
            Ok(())
        }
    }
}
