//! Snapshots of volumes.

use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::quotas::{self, Wanted};
use super::row::{self, Pairs, Volume, json, uuid};
use super::status::{SnapshotStatus, Status, Task};
use crate::compute::{Micros, now};
use crate::{Cloud, Context, Error, Result};

/// A row of `volume_snapshots`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Snapshot {
    pub id: Uuid,
    pub project_id: String,
    pub user_id: String,
    pub volume_id: Uuid,
    pub type_id: Uuid,
    pub name: Option<String>,
    pub description: Option<String>,
    /// In GiB.
    pub size: u32,
    pub status: SnapshotStatus,
    /// What the reconciler has to do.
    pub task: Option<Task>,
    pub metadata: Pairs,
    /// How far it is, where somebody has said so.
    pub progress: Option<String>,
    /// Of the volume, when it was made.
    pub bootable: bool,
    /// Of the volume, when it was made.
    pub image_metadata: Pairs,
    pub created_at: Micros,
    pub updated_at: Option<Micros>,
}

impl Snapshot {
    pub(super) fn of_row(row: &Row<'_>) -> rusqlite::Result<Snapshot> {
        Ok(Snapshot {
            id: uuid(row, "id")?,
            project_id: row.get("project_id")?,
            user_id: row.get("user_id")?,
            volume_id: uuid(row, "volume_id")?,
            type_id: uuid(row, "type_id")?,
            name: row.get("name")?,
            description: row.get("description")?,
            size: row.get("size")?,
            status: row.get("status")?,
            task: row.get("task")?,
            metadata: json(row, "metadata")?,
            progress: row.get("progress")?,
            bootable: row.get("bootable")?,
            image_metadata: json(row, "image_metadata")?,
            created_at: row.get("created_at")?,
            updated_at: row.get("updated_at")?,
        })
    }

    pub(super) fn save(&self, conn: &Connection) -> Result<()> {
        const COLUMNS: [&str; 16] = [
            "id",
            "project_id",
            "user_id",
            "volume_id",
            "type_id",
            "name",
            "description",
            "size",
            "status",
            "task",
            "metadata",
            "progress",
            "bootable",
            "image_metadata",
            "created_at",
            "updated_at",
        ];
        conn.prepare_cached(&row::save_sql("volume_snapshots", &COLUMNS))?
            .execute(params![
                self.id.to_string(),
                self.project_id,
                self.user_id,
                self.volume_id.to_string(),
                self.type_id.to_string(),
                self.name,
                self.description,
                self.size,
                self.status,
                self.task,
                row::to_json(&self.metadata)?,
                self.progress,
                self.bootable,
                row::to_json(&self.image_metadata)?,
                self.created_at,
                self.updated_at,
            ])?;
        Ok(())
    }
}

/// The row, whoever asks.
pub(super) fn get(conn: &Connection, id: Uuid) -> Result<Option<Snapshot>> {
    let mut query = conn.prepare_cached("SELECT * FROM volume_snapshots WHERE id = ?1")?;
    Ok(query.query_row([id.to_string()], Snapshot::of_row).optional()?)
}

/// The snapshot, if it is there and the caller sees it.
pub(super) fn find(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Snapshot> {
    get(conn, id)?
        .filter(|snapshot| ctx.sees(&snapshot.project_id))
        .ok_or_else(|| Error::not_found("Snapshot", id))
}

fn find_text(conn: &Connection, ctx: &Context, id: &str) -> Result<Snapshot> {
    find(conn, ctx, row::parse_id("Snapshot", id)?)
}

/// Snapshots of a volume.
pub(super) fn of_volume(conn: &Connection, volume: Uuid) -> Result<Vec<Snapshot>> {
    let mut query =
        conn.prepare_cached("SELECT * FROM volume_snapshots WHERE volume_id = ?1 ORDER BY created_at, id")?;
    let rows = query.query_map([volume.to_string()], Snapshot::of_row)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Makes a snapshot; `force`: also of a volume that a server has.
///
/// # Errors
/// 404, 400 for a volume in the wrong state, 413 over quota.
pub async fn create(
    cloud: &Cloud,
    ctx: &Context,
    volume: &str,
    name: Option<String>,
    description: Option<String>,
    metadata: Pairs,
    force: bool,
) -> Result<Snapshot> {
    ctx.require("snapshots", "create")?;
    let (caller, volume) = (ctx.clone(), volume.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let volume = row::find_text(conn, &caller, &volume)?;
            insert(
                conn,
                &caller,
                volume,
                (name.clone(), description.clone()),
                &metadata,
                force,
            )
        })
        .await
}

/// Makes a snapshot of a volume that a server has, inside the server's own transaction; returns its id.
///
/// # Errors
/// As [`create`].
pub fn create_for_server(conn: &Connection, ctx: &Context, volume: Uuid, name: &str) -> Result<Uuid> {
    ctx.require("snapshots", "create")?;
    let volume = row::find(conn, ctx, volume)?;
    let names = (Some(name.to_owned()), Some(String::new()));
    Ok(insert(conn, ctx, volume, names, &Pairs::new(), true)?.id)
}

fn insert(
    conn: &Connection,
    ctx: &Context,
    volume: Volume,
    (name, description): (Option<String>, Option<String>),
    metadata: &Pairs,
    force: bool,
) -> Result<Snapshot> {
    let fits = match volume.status {
        Status::Available => true,
        Status::InUse => force,
        _ => false,
    };
    if !fits {
        return Err(Error::BadRequest(format!(
            "Invalid volume: Volume {} status must be available, but current status is: {}.",
            volume.id,
            volume.status.name()
        )));
    }
    let project = ctx.project()?;
    let kind = volume.type_id.to_string();
    quotas::check(conn, project, &kind, Wanted::Snapshot(volume.size))?;
    let snapshot = Snapshot {
        id: Uuid::new_v4(),
        project_id: volume.project_id.clone(),
        user_id: ctx.user_id.clone(),
        volume_id: volume.id,
        type_id: volume.type_id,
        name,
        description,
        size: volume.size,
        status: SnapshotStatus::Creating,
        task: Some(Task::Create),
        metadata: metadata.clone(),
        progress: None,
        bootable: volume.bootable,
        image_metadata: volume.image_metadata,
        created_at: now(),
        updated_at: None,
    };
    snapshot.save(conn)?;
    Ok(snapshot)
}

/// One snapshot.
///
/// # Errors
/// 404.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Snapshot> {
    ctx.require("snapshots", "show")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    cloud.store.read(move |conn| find_text(conn, &ctx, &id)).await
}

/// Changes a snapshot's row.
async fn change<F>(cloud: &Cloud, ctx: &Context, id: &str, change: F) -> Result<Snapshot>
where
    F: Fn(&Connection, &mut Snapshot) -> Result<()> + Send + 'static,
{
    let (caller, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut snapshot = find_text(conn, &caller, &id)?;
            change(conn, &mut snapshot)?;
            snapshot.updated_at = Some(now());
            snapshot.save(conn)?;
            Ok(snapshot)
        })
        .await
}

/// Changes name and description.
///
/// # Errors
/// 404.
pub async fn update(
    cloud: &Cloud,
    ctx: &Context,
    id: &str,
    name: Option<Option<String>>,
    description: Option<Option<String>>,
) -> Result<Snapshot> {
    ctx.require("snapshots", "update")?;
    change(cloud, ctx, id, move |_, snapshot| {
        if let Some(name) = &name {
            snapshot.name.clone_from(name);
        }
        if let Some(description) = &description {
            snapshot.description.clone_from(description);
        }
        Ok(())
    })
    .await
}

/// How metadata are changed.
#[derive(Debug, Clone)]
pub enum Metadata {
    /// These are laid over what is there.
    Merge(Pairs),
    /// These alone remain.
    Replace(Pairs),
    /// This one goes.
    Remove(String),
}

/// The most keys of one resource.
const MAX_PAIRS: usize = 128;

impl Metadata {
    /// Carries it out.
    ///
    /// # Errors
    /// 404 for a key to be removed that is not there, 413 for too many.
    pub(super) fn apply(&self, pairs: &mut Pairs) -> Result<()> {
        match self {
            Metadata::Merge(new) => pairs.extend(new.clone()),
            Metadata::Replace(new) => pairs.clone_from(new),
            Metadata::Remove(key) => {
                pairs.remove(key).ok_or_else(|| Error::Named {
                    name: "VolumeMetadataNotFound",
                    kind: crate::error::Kind::NotFound,
                    message: format!("There is no metadata with key {key}."),
                })?;
            }
        }
        if pairs.len() > MAX_PAIRS {
            return Err(Error::TooLarge(format!(
                "A resource has at most {MAX_PAIRS} metadata items."
            )));
        }
        Ok(())
    }
}

/// Changes metadata, and returns them all.
///
/// # Errors
/// 404, 413.
pub async fn set_metadata(cloud: &Cloud, ctx: &Context, id: &str, metadata: Metadata) -> Result<Pairs> {
    ctx.require("snapshots", "update")?;
    change(cloud, ctx, id, move |_, snapshot| {
        metadata.apply(&mut snapshot.metadata)
    })
    .await
    .map(|snapshot| snapshot.metadata)
}

/// Removes a snapshot; the reconciler removes its bytes. `force` (for administrators): from whatever state.
///
/// # Errors
/// 404, 400 in the wrong state.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str, force: bool) -> Result<()> {
    ctx.require("snapshots", if force { "force_delete" } else { "delete" })?;
    change(cloud, ctx, id, move |_, snapshot| {
        let fits = matches!(
            snapshot.status,
            SnapshotStatus::Available | SnapshotStatus::Error | SnapshotStatus::ErrorDeleting
        );
        if !fits && !force {
            return Err(Error::BadRequest(
                "Invalid snapshot: Snapshot status must be available or error, and must not be part of a group.".into(),
            ));
        }
        snapshot.status = SnapshotStatus::Deleting;
        snapshot.task = Some(Task::Delete);
        Ok(())
    })
    .await
    .map(drop)
}

/// Sets the state by hand.
///
/// # Errors
/// 404, 400 for a state that cannot be set.
pub async fn reset_status(cloud: &Cloud, ctx: &Context, id: &str, status: &str) -> Result<()> {
    ctx.require("snapshots", "reset_status")?;
    let status = SnapshotStatus::parse(&status.to_ascii_lowercase())
        .filter(|status| *status != SnapshotStatus::BackingUp)
        .ok_or_else(|| {
            Error::BadRequest(format!(
                "Invalid input for field/attribute status. Value: {status}. It is no snapshot's status."
            ))
        })?;
    change(cloud, ctx, id, move |_, snapshot| {
        snapshot.status = status;
        Ok(())
    })
    .await
    .map(drop)
}

/// The status that a driver reports: `creating` becomes `available` or `error`, and so on.
///
/// # Errors
/// 404, 400 for a change that makes no sense.
pub async fn update_status(
    cloud: &Cloud,
    ctx: &Context,
    id: &str,
    status: &str,
    progress: Option<String>,
) -> Result<()> {
    ctx.require("snapshots", "update_status")?;
    let wanted = SnapshotStatus::parse(status);
    let asked = status.to_owned();
    change(cloud, ctx, id, move |_, snapshot| {
        use SnapshotStatus::{Available, Creating, Deleting, Error as Failed, ErrorDeleting};
        let allowed: &[SnapshotStatus] = match snapshot.status {
            Creating => &[Creating, Available, Failed],
            Deleting => &[Deleting, ErrorDeleting],
            _ => &[],
        };
        match wanted.filter(|status| allowed.contains(status)) {
            Some(status) => {
                snapshot.status = status;
                snapshot.progress = progress.clone().or_else(|| snapshot.progress.take());
                Ok(())
            }
            None => Err(Error::BadRequest(format!(
                "Provided snapshot status {asked} not allowed for snapshot with status {}.",
                snapshot.status.name()
            ))),
        }
    })
    .await
    .map(drop)
}

/// Snapshots that a caller sees, newest first; of all projects where `None`.
pub(super) fn visible(conn: &Connection, project: Option<&str>) -> Result<Vec<Snapshot>> {
    let mut query = conn.prepare_cached(
        "SELECT * FROM volume_snapshots WHERE (?1 IS NULL OR project_id = ?1) ORDER BY created_at DESC, id DESC",
    )?;
    let rows = query.query_map([project], Snapshot::of_row)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
