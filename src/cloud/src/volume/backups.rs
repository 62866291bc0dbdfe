//! Backups: whole copies of volumes in a folder of their own.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::create::Place;
use super::quotas::{self, Wanted};
use super::row::{self, Origin, Pairs, Volume, json, uuid, uuid_or_null};
use super::snapshots;
use super::status::{BackupStatus, SnapshotStatus, Status, Task};
use super::types;
use crate::compute::{Micros, now};
use crate::{Cloud, Context, Error, Result};

/// What a volume was beside its bytes when it was backed up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Kept {
    pub metadata: Pairs,
    pub image_metadata: Pairs,
    pub bootable: bool,
}

/// A row of `volume_backups`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Backup {
    pub id: Uuid,
    pub project_id: String,
    pub user_id: String,
    pub volume_id: Uuid,
    pub snapshot_id: Option<Uuid>,
    pub name: Option<String>,
    pub description: Option<String>,
    /// In GiB.
    pub size: u32,
    pub status: BackupStatus,
    /// What the reconciler has to do.
    pub task: Option<Task>,
    /// Where it lies: a name of the tenant's.
    pub container: Option<String>,
    pub metadata: Pairs,
    pub volume: Kept,
    pub availability_zone: String,
    pub host: String,
    pub fail_reason: Option<String>,
    /// From when its data are.
    pub data_timestamp: Micros,
    /// Bytes that it takes.
    pub stored: Option<u64>,
    /// Over the volume's bytes.
    pub sha256: Option<String>,
    pub created_at: Micros,
    pub updated_at: Option<Micros>,
}

impl Backup {
    pub(super) fn of_row(row: &Row<'_>) -> rusqlite::Result<Backup> {
        Ok(Backup {
            id: uuid(row, "id")?,
            project_id: row.get("project_id")?,
            user_id: row.get("user_id")?,
            volume_id: uuid(row, "volume_id")?,
            snapshot_id: uuid_or_null(row, "snapshot_id")?,
            name: row.get("name")?,
            description: row.get("description")?,
            size: row.get("size")?,
            status: row.get("status")?,
            task: row.get("task")?,
            container: row.get("container")?,
            metadata: json(row, "metadata")?,
            volume: json(row, "volume")?,
            availability_zone: row.get("availability_zone")?,
            host: row.get("host")?,
            fail_reason: row.get("fail_reason")?,
            data_timestamp: row.get("data_timestamp")?,
            stored: row.get("stored")?,
            sha256: row.get("sha256")?,
            created_at: row.get("created_at")?,
            updated_at: row.get("updated_at")?,
        })
    }

    pub(super) fn save(&self, conn: &Connection) -> Result<()> {
        const COLUMNS: [&str; 21] = [
            "id",
            "project_id",
            "user_id",
            "volume_id",
            "snapshot_id",
            "name",
            "description",
            "size",
            "status",
            "task",
            "container",
            "metadata",
            "volume",
            "availability_zone",
            "host",
            "fail_reason",
            "data_timestamp",
            "stored",
            "sha256",
            "created_at",
            "updated_at",
        ];
        conn.prepare_cached(&row::save_sql("volume_backups", &COLUMNS))?
            .execute(params![
                self.id.to_string(),
                self.project_id,
                self.user_id,
                self.volume_id.to_string(),
                self.snapshot_id.map(|id| id.to_string()),
                self.name,
                self.description,
                self.size,
                self.status,
                self.task,
                self.container,
                row::to_json(&self.metadata)?,
                row::to_json(&self.volume)?,
                self.availability_zone,
                self.host,
                self.fail_reason,
                self.data_timestamp,
                self.stored,
                self.sha256,
                self.created_at,
                self.updated_at,
            ])?;
        Ok(())
    }
}

/// The row, whoever asks.
pub(super) fn get(conn: &Connection, id: Uuid) -> Result<Option<Backup>> {
    let mut query = conn.prepare_cached("SELECT * FROM volume_backups WHERE id = ?1")?;
    Ok(query.query_row([id.to_string()], Backup::of_row).optional()?)
}

/// The backup, if it is there and the caller sees it.
pub(super) fn find(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Backup> {
    get(conn, id)?
        .filter(|backup| ctx.sees(&backup.project_id))
        .ok_or_else(|| Error::not_found("Backup", id))
}

fn find_text(conn: &Connection, ctx: &Context, id: &str) -> Result<Backup> {
    find(conn, ctx, row::parse_id("Backup", id)?)
}

/// What a client asks for.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct NewBackup {
    pub volume: String,
    pub snapshot: Option<String>,
    pub name: Option<String>,
    pub description: Option<String>,
    pub container: Option<String>,
    pub metadata: Pairs,
    /// Only what changed since the last one: not offered.
    pub incremental: bool,
    /// Also of a volume that a server has.
    pub force: bool,
    pub availability_zone: Option<String>,
}

/// Makes a backup; the reconciler writes its bytes.
///
/// # Errors
/// 404, 400 in the wrong state, 413 over quota.
pub async fn create(cloud: &Cloud, ctx: &Context, new: NewBackup) -> Result<Backup> {
    ctx.require("backups", "create")?;
    let caller = ctx.clone();
    let (node, zone) = (cloud.config.node.clone(), cloud.config.availability_zone.clone());
    let id = Uuid::new_v4();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut volume = row::find_text(conn, &caller, &new.volume)?;
            if new.incremental {
                return Err(Error::BadRequest(
                    "Invalid backup: No backups available to do an incremental backup: this cloud's backups are whole."
                        .into(),
                ));
            }
            if let Some(asked) = &new.availability_zone
                && *asked != zone
            {
                return Err(Error::BadRequest(format!(
                    "Invalid input received: Availability zone '{asked}' is invalid."
                )));
            }
            let mut from = now();
            let snapshot = match &new.snapshot {
                Some(id) => {
                    let mut snapshot = snapshots::find(conn, &caller, row::parse_id("Snapshot", id)?)?;
                    if snapshot.volume_id != volume.id {
                        return Err(Error::BadRequest(format!(
                            "Invalid snapshot: Snapshot {id} is not of volume {}.",
                            volume.id
                        )));
                    }
                    if snapshot.status != SnapshotStatus::Available {
                        return Err(Error::BadRequest(format!(
                            "Invalid snapshot: Snapshot to be backed up must be available, but the current status is \
                             \"{}\".",
                            snapshot.status.name()
                        )));
                    }
                    from = snapshot.created_at;
                    snapshot.status = SnapshotStatus::BackingUp;
                    snapshot.save(conn)?;
                    Some(snapshot)
                }
                None => {
                    let fits = match volume.status {
                        Status::Available => true,
                        Status::InUse => new.force,
                        _ => false,
                    };
                    if !fits {
                        return Err(Error::BadRequest(format!(
                            "Invalid volume: Volume to be backed up must be available or in-use, but the current \
                             status is \"{}\".{}",
                            volume.status.name(),
                            if volume.status == Status::InUse {
                                " Set the 'force' flag to true to back up a volume that is in use."
                            } else {
                                ""
                            }
                        )));
                    }
                    volume.previous_status = Some(volume.status);
                    volume.status = Status::BackingUp;
                    volume.updated_at = Some(now());
                    volume.save(conn)?;
                    None
                }
            };
            let size = snapshot.as_ref().map_or(volume.size, |s| s.size);
            quotas::check(
                conn,
                caller.project()?,
                &volume.type_id.to_string(),
                Wanted::Backup(size),
            )?;
            let backup = Backup {
                id,
                project_id: caller.project()?.to_owned(),
                user_id: caller.user_id.clone(),
                volume_id: volume.id,
                snapshot_id: snapshot.map(|s| s.id),
                name: new.name.clone(),
                description: new.description.clone(),
                size,
                status: BackupStatus::Creating,
                task: Some(Task::Create),
                container: new.container.clone().or_else(|| Some("backups".into())),
                metadata: new.metadata.clone(),
                volume: Kept {
                    metadata: volume.metadata.clone(),
                    image_metadata: volume.image_metadata.clone(),
                    bootable: volume.bootable,
                },
                availability_zone: zone.clone(),
                host: node.clone(),
                fail_reason: None,
                data_timestamp: from,
                stored: None,
                sha256: None,
                created_at: now(),
                updated_at: None,
            };
            backup.save(conn)?;
            Ok(backup)
        })
        .await
}

/// One backup.
///
/// # Errors
/// 404.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Backup> {
    ctx.require("backups", "show")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    cloud.store.read(move |conn| find_text(conn, &ctx, &id)).await
}

async fn change<F>(cloud: &Cloud, ctx: &Context, id: &str, change: F) -> Result<Backup>
where
    F: Fn(&Connection, &mut Backup) -> Result<()> + Send + 'static,
{
    let (caller, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut backup = find_text(conn, &caller, &id)?;
            change(conn, &mut backup)?;
            backup.updated_at = Some(now());
            backup.save(conn)?;
            Ok(backup)
        })
        .await
}

/// Changes name, description and metadata.
///
/// # Errors
/// 404.
pub async fn update(
    cloud: &Cloud,
    ctx: &Context,
    id: &str,
    name: Option<Option<String>>,
    description: Option<Option<String>>,
    metadata: Option<Pairs>,
) -> Result<Backup> {
    ctx.require("backups", "update")?;
    change(cloud, ctx, id, move |_, backup| {
        if let Some(name) = &name {
            backup.name.clone_from(name);
        }
        if let Some(description) = &description {
            backup.description.clone_from(description);
        }
        if let Some(metadata) = &metadata {
            backup.metadata.clone_from(metadata);
        }
        Ok(())
    })
    .await
}

/// Removes a backup; the reconciler removes its bytes. `force` (for administrators): from whatever state.
///
/// # Errors
/// 404, 400 in the wrong state.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str, force: bool) -> Result<()> {
    ctx.require("backups", if force { "force_delete" } else { "delete" })?;
    change(cloud, ctx, id, move |conn, backup| {
        let fits = matches!(
            backup.status,
            BackupStatus::Available | BackupStatus::Error | BackupStatus::ErrorDeleting
        );
        if !fits && !force {
            return Err(Error::BadRequest(
                "Invalid backup: Backup status must be available or error".into(),
            ));
        }
        if backup.task == Some(Task::Create) {
            release(conn, backup)?;
        }
        backup.status = BackupStatus::Deleting;
        backup.task = Some(Task::Delete);
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
    ctx.require("backups", "reset_status")?;
    let status = match status {
        "available" => BackupStatus::Available,
        "error" => BackupStatus::Error,
        other => {
            return Err(Error::BadRequest(format!(
                "Invalid input for field/attribute status. Value: {other}. It is not one of ['available', 'error']"
            )));
        }
    };
    change(cloud, ctx, id, move |conn, backup| {
        if backup.task == Some(Task::Create) {
            release(conn, backup)?;
        }
        if backup.task == Some(Task::Create) {
            backup.task = None;
        }
        // What was never written whole is not shown as if it were.
        if status == BackupStatus::Available && backup.sha256.is_none() {
            return Err(Error::BadRequest(
                "Invalid backup: its data are not there.".into(),
            ));
        }
        backup.status = status;
        Ok(())
    })
    .await
    .map(drop)
}

/// Lets go of what a backup was made of.
pub(super) fn release(conn: &Connection, backup: &Backup) -> Result<()> {
    match backup.snapshot_id {
        Some(id) => {
            if let Some(mut snapshot) = snapshots::get(conn, id)?
                && snapshot.status == SnapshotStatus::BackingUp
            {
                snapshot.status = SnapshotStatus::Available;
                snapshot.save(conn)?;
            }
        }
        None => {
            if let Some(mut volume) = row::get(conn, backup.volume_id)?
                && volume.status == Status::BackingUp
            {
                volume.status = volume.previous_status.take().unwrap_or(Status::Available);
                volume.updated_at = Some(now());
                volume.save(conn)?;
            }
        }
    }
    Ok(())
}

/// A backup is not being read any more.
pub(super) fn restored(conn: &Connection, id: Uuid) -> Result<()> {
    if let Some(mut backup) = get(conn, id)?
        && backup.status == BackupStatus::Restoring
    {
        backup.status = BackupStatus::Available;
        backup.updated_at = Some(now());
        backup.save(conn)?;
    }
    Ok(())
}

/// Writes a backup to a volume: to this one, or to a new one of this name.
///
/// # Errors
/// 404, 400 in the wrong state or for a volume that is too small, 413 over quota.
pub async fn restore(
    cloud: &Cloud,
    ctx: &Context,
    id: &str,
    volume: Option<String>,
    name: Option<String>,
) -> Result<(Backup, Volume)> {
    ctx.require("backups", "restore")?;
    let (caller, id, place) = (ctx.clone(), id.to_owned(), Place::of(cloud));
    let new_id = Uuid::new_v4();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let backup = find_text(conn, &caller, &id)?;
            if backup.status != BackupStatus::Available {
                return Err(Error::BadRequest(
                    "Invalid backup: Backup status must be available".into(),
                ));
            }
            let volume = match &volume {
                Some(volume) => {
                    let mut volume = row::find_text(conn, &caller, volume)?;
                    if volume.status != Status::Available {
                        return Err(Error::BadRequest(
                            "Invalid volume: Volume to be restored to must be available".into(),
                        ));
                    }
                    if volume.size < backup.size {
                        return Err(Error::BadRequest(format!(
                            "Invalid volume: volume size {} is too small to restore backup of size {}.",
                            volume.size, backup.size
                        )));
                    }
                    volume.status = Status::RestoringBackup;
                    volume.task = Some(Task::Restore);
                    volume.previous_status = Some(Status::Available);
                    volume.target_id = Some(backup.id);
                    volume.updated_at = Some(now());
                    volume
                }
                None => {
                    let project = caller.project()?;
                    let kind = types::default_of(conn, &caller)?;
                    quotas::check(conn, project, &kind.id.to_string(), Wanted::Volume(backup.size))?;
                    Volume {
                        id: new_id,
                        project_id: project.to_owned(),
                        user_id: caller.user_id.clone(),
                        name: name
                            .clone()
                            .or_else(|| Some(format!("restore_backup_{}", backup.id))),
                        description: backup.description.clone(),
                        size: backup.size,
                        status: Status::Creating,
                        task: Some(Task::Create),
                        previous_status: None,
                        bootable: backup.volume.bootable,
                        multiattach: false,
                        read_only: None,
                        type_id: kind.id,
                        availability_zone: place.zone().to_owned(),
                        host: place.node().to_owned(),
                        metadata: backup.volume.metadata.clone(),
                        image_metadata: backup.volume.image_metadata.clone(),
                        origin: Origin::Backup(backup.id),
                        new_size: None,
                        target_id: None,
                        created_at: now(),
                        updated_at: None,
                        launched_at: None,
                    }
                }
            };
            volume.save(conn)?;
            let mut backup = backup;
            backup.status = BackupStatus::Restoring;
            backup.updated_at = Some(now());
            backup.save(conn)?;
            Ok((backup, volume))
        })
        .await
}

/// Backups that a caller sees, newest first; of all projects where `None`.
pub(super) fn visible(conn: &Connection, project: Option<&str>) -> Result<Vec<Backup>> {
    let mut query = conn.prepare_cached(
        "SELECT * FROM volume_backups WHERE (?1 IS NULL OR project_id = ?1) ORDER BY created_at DESC, id DESC",
    )?;
    let rows = query.query_map([project], Backup::of_row)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// What [`export`] tells of a backup; [`import`] takes it.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    id: Uuid,
    volume_id: Uuid,
    size: u32,
    name: Option<String>,
    description: Option<String>,
    volume: Kept,
    data_timestamp: Micros,
    stored: Option<u64>,
    sha256: Option<String>,
}

/// A backup's record as JSON, with which [`import`] finds its bytes again when its row is lost.
///
/// # Errors
/// 404, 400 for a backup that is not whole.
pub async fn export(cloud: &Cloud, ctx: &Context, id: &str) -> Result<String> {
    ctx.require("backups", "export")?;
    let backup = show(cloud, ctx, id).await?;
    if backup.status != BackupStatus::Available {
        return Err(Error::BadRequest(format!(
            "Invalid backup: Backup status must be available and not {}.",
            backup.status.name()
        )));
    }
    row::to_json(&Record {
        id: backup.id,
        volume_id: backup.volume_id,
        size: backup.size,
        name: backup.name,
        description: backup.description,
        volume: backup.volume,
        data_timestamp: backup.data_timestamp,
        stored: backup.stored,
        sha256: backup.sha256,
    })
}

/// Makes the row of a backup whose bytes are there, from its record.
///
/// # Errors
/// 400 for a record that is none or whose bytes are not there, or if the row is there.
pub async fn import(cloud: &Cloud, ctx: &Context, record: &str) -> Result<Backup> {
    ctx.require("backups", "import")?;
    let wrong = |why: &str| Error::BadRequest(format!("Invalid input received: the backup's record {why}."));
    let record: Record = serde_json::from_str(record).map_err(|_| wrong("cannot be read"))?;
    if !cloud.drivers.disks.list_backups().await?.contains(&record.id) {
        return Err(wrong("names bytes that are not there"));
    }
    let project = ctx.project()?.to_owned();
    let backup = Backup {
        id: record.id,
        project_id: project,
        user_id: ctx.user_id.clone(),
        volume_id: record.volume_id,
        snapshot_id: None,
        name: record.name,
        description: record.description,
        size: record.size,
        status: BackupStatus::Available,
        task: None,
        container: Some("backups".into()),
        metadata: Pairs::new(),
        volume: record.volume,
        availability_zone: cloud.config.availability_zone.clone(),
        host: cloud.config.node.clone(),
        fail_reason: None,
        data_timestamp: record.data_timestamp,
        stored: record.stored,
        sha256: record.sha256,
        created_at: now(),
        updated_at: None,
    };
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            if get(conn, backup.id)?.is_some() {
                return Err(Error::BadRequest(format!(
                    "Invalid backup: Backup {} already exists in database.",
                    backup.id
                )));
            }
            backup.save(conn)?;
            Ok(backup.clone())
        })
        .await
}
