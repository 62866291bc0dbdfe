//! Volumes: showing, changing and removing them.

use rusqlite::Connection;
use uuid::Uuid;

use super::attachments::{self, Attachment};
use super::backups;
use super::row::{self, Origin, Pairs, Volume};
use super::snapshots::{self, Metadata};
use super::status::{Status, Task};
use crate::compute::now;
use crate::image::from_volume;
use crate::{Cloud, Context, Error, Result};

/// A volume with what its view needs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Details {
    pub volume: Volume,
    pub attachments: Vec<Attachment>,
    /// Its type's name.
    pub volume_type: Option<String>,
    /// Its bytes are encrypted.
    pub encrypted: bool,
}

/// Adds what views need.
pub(super) fn details(conn: &Connection, volume: Volume) -> Result<Details> {
    Ok(Details {
        attachments: attachments::of_volume(conn, volume.id)?,
        volume_type: super::types::name_of(conn, &volume.type_id.to_string())?,
        encrypted: crate::encryption::is_encrypted(conn, volume.id)?,
        volume,
    })
}

/// One volume.
///
/// # Errors
/// 404.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Details> {
    ctx.require("volumes", "show")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .read(move |conn| details(conn, row::find_text(conn, &ctx, &id)?))
        .await
}

/// Changes a volume's row.
pub(super) async fn change<F>(cloud: &Cloud, ctx: &Context, id: &str, change: F) -> Result<Volume>
where
    F: Fn(&Connection, &mut Volume) -> Result<()> + Send + 'static,
{
    let (caller, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut volume = row::find_text(conn, &caller, &id)?;
            change(conn, &mut volume)?;
            volume.updated_at = Some(now());
            volume.save(conn)?;
            Ok(volume)
        })
        .await
}

/// What of a volume is to be changed.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Update {
    pub name: Option<Option<String>>,
    pub description: Option<Option<String>>,
    pub metadata: Option<Pairs>,
}

/// Changes name, description and metadata.
///
/// # Errors
/// 404.
pub async fn update(cloud: &Cloud, ctx: &Context, id: &str, update: Update) -> Result<Details> {
    ctx.require("volumes", "update")?;
    change(cloud, ctx, id, move |_, volume| {
        if let Some(name) = &update.name {
            volume.name.clone_from(name);
        }
        if let Some(description) = &update.description {
            volume.description.clone_from(description);
        }
        if let Some(metadata) = &update.metadata {
            Metadata::Replace(metadata.clone()).apply(&mut volume.metadata)?;
        }
        Ok(())
    })
    .await?;
    show(cloud, ctx, id).await
}

/// Which of a volume's pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// What clients keep with it.
    Volume,
    /// What its image said of itself.
    Image,
}

/// Changes metadata, and returns them all.
///
/// # Errors
/// 404, 413.
pub async fn set_metadata(
    cloud: &Cloud,
    ctx: &Context,
    id: &str,
    of: Of,
    metadata: Metadata,
) -> Result<Pairs> {
    ctx.require("volumes", "update")?;
    let volume = change(cloud, ctx, id, move |_, volume| {
        if volume.status == Status::Maintenance || volume.status == Status::Uploading {
            return Err(Error::BadRequest(format!(
                "Invalid volume: Volume {} metadata cannot be updated in status {}.",
                volume.id,
                volume.status.name()
            )));
        }
        match of {
            Of::Volume => metadata.apply(&mut volume.metadata),
            Of::Image => metadata.apply(&mut volume.image_metadata),
        }
    })
    .await?;
    Ok(match of {
        Of::Volume => volume.metadata,
        Of::Image => volume.image_metadata,
    })
}

/// Removes a volume; the reconciler removes its bytes. `cascade`: its snapshots, too. `force` (for administrators): from whatever
/// state.
///
/// # Errors
/// 404, 400 in the wrong state, while it is attached or while it has snapshots.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str, cascade: bool, force: bool) -> Result<()> {
    ctx.require("volumes", if force { "force_delete" } else { "delete" })?;
    change(cloud, ctx, id, move |conn, volume| {
        remove(conn, volume, cascade, force)
    })
    .await
    .map(drop)
}

/// The same inside a transaction, for a server of this project that takes its volumes with it: its attachment is ended, and the
/// volume removed. One that the server did not have any more, that is another project's by now, or that cannot go, stays.
///
/// # Errors
/// If the database cannot be written.
pub fn delete_with_server(conn: &Connection, volume: Uuid, server: Uuid, project: &str) -> Result<()> {
    if !attachments::detached(conn, volume, server)? {
        return Ok(());
    }
    let Some(mut volume) = row::get(conn, volume)?.filter(|volume| volume.project_id == project) else {
        return Ok(());
    };
    // One whose bytes are still being made goes as well.
    let making = volume.status == Status::Creating;
    match remove(conn, &mut volume, false, making) {
        Ok(()) => {
            volume.updated_at = Some(now());
            volume.save(conn)
        }
        Err(error @ Error::BadRequest(_)) => {
            tracing::warn!(volume = %volume.id, %error, "a server's volume stays");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn remove(conn: &Connection, volume: &mut Volume, cascade: bool, force: bool) -> Result<()> {
    if volume.task == Some(Task::Delete) && volume.status == Status::Deleting {
        return Ok(());
    }
    let snapshots = snapshots::of_volume(conn, volume.id)?;
    let fits = matches!(
        volume.status,
        Status::Available
            | Status::Error
            | Status::ErrorRestoring
            | Status::ErrorExtending
            | Status::ErrorManaging
            | Status::ErrorDeleting
    );
    let attached = !attachments::of_volume(conn, volume.id)?.is_empty() && volume.status != Status::Error;
    if volume.launched_at.is_some() && attachments::holder(conn, volume.id)?.is_some() {
        return Err(Error::BadRequest(format!(
            "Invalid volume: Volume {} is attached to a server.",
            volume.id
        )));
    }
    if !force && (!fits || attached || (!cascade && !snapshots.is_empty())) {
        return Err(Error::BadRequest(
            "Invalid volume: Volume status must be available or error or error_restoring or error_extending or \
             error_managing and must not be migrating, attached, belong to a group, have snapshots, awaiting a \
             transfer, or be disassociated from snapshots after volume transfer."
                .into(),
        ));
    }
    if !cascade && !snapshots.is_empty() {
        return Err(Error::BadRequest(
            "Invalid volume: Volume still has dependent snapshots.".into(),
        ));
    }
    for mut snapshot in snapshots {
        use super::status::SnapshotStatus as S;
        if !matches!(
            snapshot.status,
            S::Available | S::Error | S::ErrorDeleting | S::Deleting
        ) && !force
        {
            return Err(Error::BadRequest(
                "Invalid volume: Failed to update snapshot.".into(),
            ));
        }
        snapshot.status = S::Deleting;
        snapshot.task = Some(Task::Delete);
        snapshot.save(conn)?;
    }
    conn.prepare_cached("DELETE FROM volume_attachments WHERE volume_id = ?1")?
        .execute([volume.id.to_string()])?;
    conn.prepare_cached("DELETE FROM volume_transfers WHERE volume_id = ?1")?
        .execute([volume.id.to_string()])?;
    // What it is being made of is free again, and what was to be made of it will not come.
    match (volume.task, volume.target_id, volume.origin) {
        (Some(Task::Restore), Some(backup), _) | (Some(Task::Create), _, Origin::Backup(backup)) => {
            backups::restored(conn, backup)?;
        }
        (Some(Task::Upload), Some(image), _) => from_volume::give_up(conn, image)?,
        _ => {}
    }
    volume.status = Status::Deleting;
    volume.previous_status = None;
    volume.task = Some(Task::Delete);
    Ok(())
}
