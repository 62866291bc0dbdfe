//! The steps, each of which may be repeated.

use model::units::GIB;
use rusqlite::Connection;
use uuid::Uuid;

use super::{Item, Job, NAME, TABLES};
use crate::compute::actions::volume_extended;
use crate::compute::now;
use crate::driver::DriverError;
use crate::encryption;
use crate::image::from_volume;
use crate::volume::backups::{self, Backup};
use crate::volume::messages::{self, Action, Detail};
use crate::volume::row::{self, Origin, Volume};
use crate::volume::snapshots::{self, Snapshot};
use crate::volume::status::{AttachStatus, BackupStatus, SnapshotStatus, Status, Task};
use crate::volume::{attachments, pool, types};
use crate::{Cloud, Context, Error, Result};

/// Rows that have something to be done, and for which nothing has to be awaited.
pub(super) async fn waiting(cloud: &Cloud) -> Result<Vec<Job>> {
    cloud
        .store
        .read(|conn| {
            let mut jobs = Vec::new();
            for (table, item, long) in TABLES {
                let sql = format!(
                    "SELECT id, iif({long}, project_id, NULL) AS long FROM {table} WHERE task IS NOT NULL \
                     ORDER BY created_at, id"
                );
                let mut query = conn.prepare_cached(&sql)?;
                let rows = query.query_map([], |row| {
                    Ok(Job {
                        item: item(row::uuid(row, "id")?),
                        long: row.get("long")?,
                    })
                })?;
                for job in rows {
                    let job = job?;
                    if !is_needed(conn, job.item)? {
                        jobs.push(job);
                    }
                }
            }
            Ok(jobs)
        })
        .await
}

/// Something is being made of what is to be removed: that comes first.
fn is_needed(conn: &Connection, item: Item) -> Result<bool> {
    let id = item.id().to_string();
    let sql = match item {
        Item::Volume(_) => {
            "SELECT 1 FROM volume_volumes v WHERE v.id = ?1 AND v.task = 'delete' AND (\
             EXISTS (SELECT 1 FROM volume_volumes o WHERE o.origin_id = ?1 AND o.task = 'create') OR \
             EXISTS (SELECT 1 FROM volume_snapshots s WHERE s.volume_id = ?1 AND s.task = 'create') OR \
             EXISTS (SELECT 1 FROM volume_backups b WHERE b.volume_id = ?1 AND b.snapshot_id IS NULL \
             AND b.task = 'create'))"
        }
        Item::Snapshot(_) => {
            "SELECT 1 FROM volume_snapshots s WHERE s.id = ?1 AND s.task = 'delete' AND (\
             EXISTS (SELECT 1 FROM volume_volumes o WHERE o.origin_id = ?1 AND o.task = 'create') OR \
             EXISTS (SELECT 1 FROM volume_volumes o WHERE o.target_id = ?1 AND o.task = 'revert') OR \
             EXISTS (SELECT 1 FROM volume_backups b WHERE b.snapshot_id = ?1 AND b.task = 'create'))"
        }
        Item::Backup(_) => {
            "SELECT 1 FROM volume_backups b WHERE b.id = ?1 AND b.task = 'delete' AND (\
             EXISTS (SELECT 1 FROM volume_volumes o WHERE o.origin_id = ?1 AND o.task = 'create') OR \
             EXISTS (SELECT 1 FROM volume_volumes o WHERE o.target_id = ?1 AND o.task = 'restore'))"
        }
    };
    Ok(conn.prepare_cached(sql)?.exists([id])?)
}

/// Does what one row says. An error means: try again later.
pub(super) async fn perform(cloud: &Cloud, item: Item) -> Result<()> {
    match item {
        Item::Volume(id) => {
            let Some(volume) = cloud.store.read(move |conn| row::get(conn, id)).await? else {
                return Ok(());
            };
            match volume.task {
                Some(Task::Create) => create_volume(cloud, &volume).await,
                Some(Task::Extend) => extend(cloud, &volume).await,
                Some(Task::Upload) => upload(cloud, &volume).await,
                Some(Task::Restore) => restore(cloud, &volume).await,
                Some(Task::Revert) => revert(cloud, &volume).await,
                Some(Task::Delete) => delete_volume(cloud, &volume).await,
                None => Ok(()),
            }
        }
        Item::Snapshot(id) => {
            let Some(snapshot) = cloud.store.read(move |conn| snapshots::get(conn, id)).await? else {
                return Ok(());
            };
            match snapshot.task {
                Some(Task::Create) => create_snapshot(cloud, &snapshot).await,
                Some(Task::Delete) => delete_snapshot(cloud, &snapshot).await,
                _ => Ok(()),
            }
        }
        Item::Backup(id) => {
            let Some(backup) = cloud.store.read(move |conn| backups::get(conn, id)).await? else {
                return Ok(());
            };
            match backup.task {
                Some(Task::Create) => create_backup(cloud, &backup).await,
                Some(Task::Delete) => delete_backup(cloud, &backup).await,
                _ => Ok(()),
            }
        }
    }
}

/// For the tenant; what the node said is for the log.
fn detail(error: &DriverError) -> Detail {
    match error {
        DriverError::BadInput(text) => Detail::Input(text.clone()),
        DriverError::Full(_) => Detail::Full,
        DriverError::Failed(_) => Detail::Unknown,
    }
}

fn log(item: Item, task: Task, error: &DriverError) {
    tracing::warn!(?item, task = task.name(), %error, "volume: it could not be done");
}

/// Changes a volume's row, unless something else has to be done with it by now.
async fn settle<F>(cloud: &Cloud, volume: &Volume, change: F) -> Result<()>
where
    F: Fn(&Connection, &mut Volume) -> Result<()> + Send + 'static,
{
    let (id, task) = (volume.id, volume.task);
    cloud
        .store
        .write(NAME, move |conn| {
            let Some(mut volume) = row::get(conn, id)? else {
                return Ok(());
            };
            if volume.task != task {
                return Ok(());
            }
            volume.task = None;
            volume.updated_at = Some(now());
            change(conn, &mut volume)?;
            volume.save(conn)
        })
        .await
}

/// The state that a volume goes back to.
fn back(conn: &Connection, volume: &mut Volume, working: Status) -> Result<()> {
    let previous = volume.previous_status.take();
    // An administrator may have set another one by hand.
    if volume.status == working {
        volume.status = match previous {
            Some(status) => status,
            None => attachments::from_attachments(&attachments::of_volume(conn, volume.id)?),
        };
    }
    Ok(())
}

fn tell(conn: &Connection, volume: &Volume, message: Uuid, action: Action, detail: &Detail) -> Result<()> {
    let whose = ("VOLUME", volume.id);
    messages::leave(conn, message, &volume.project_id, whose, action, detail)
}

async fn create_volume(cloud: &Cloud, volume: &Volume) -> Result<()> {
    let (kind, node) = (volume.type_id, pool::host_name(&volume.host));
    let fits = cloud.store.read(move |conn| {
        let specs = types::get(conn, kind)?
            .map(|kind| kind.extra_specs)
            .unwrap_or_default();
        let host = node.split('#').next().unwrap_or_default().to_owned();
        let mut disabled = conn
            .prepare_cached("SELECT 1 FROM volume_services WHERE host = ?1 AND binary = 'cinder-volume'")?;
        Ok::<_, Error>(pool::offers(&specs) && !disabled.exists([host])?)
    });
    let (action, made) = if fits.await? {
        let action = match volume.origin {
            Origin::Image(_) => Action::CopyImageToVolume,
            Origin::Backup(_) => Action::RestoreBackup,
            _ => Action::CreateVolume,
        };
        (
            action,
            make(cloud, volume).await.map_err(|error| {
                log(Item::Volume(volume.id), Task::Create, &error);
                detail(&error)
            }),
        )
    } else {
        (Action::Schedule, Err(Detail::NoBackend))
    };
    if made.is_err() {
        // Nothing half made stays; the row stays as an error.
        if let Err(error) = encryption::delete_volume(cloud, volume.id).await {
            log(Item::Volume(volume.id), Task::Create, &error);
        }
    }
    let message = Uuid::new_v4();
    settle(cloud, volume, move |conn, volume| {
        match &made {
            Ok(()) => {
                volume.launched_at = Some(now());
                volume.status = attachments::from_attachments(&attachments::of_volume(conn, volume.id)?);
            }
            Err(detail) => {
                volume.status = Status::Error;
                tell(conn, volume, message, action, detail)?;
            }
        }
        match volume.origin {
            Origin::Backup(backup) => backups::restored(conn, backup),
            _ => Ok(()),
        }
    })
    .await
}

async fn make(cloud: &Cloud, volume: &Volume) -> Result<(), DriverError> {
    let (project, source) = (&volume.project_id, volume.origin.source());
    encryption::create_volume(cloud, project, volume.id, volume.bytes(), source).await?;
    match volume.origin {
        Origin::Backup(backup) => encryption::restore_backup(cloud, backup, volume.id).await,
        _ => Ok(()),
    }
}

async fn extend(cloud: &Cloud, volume: &Volume) -> Result<()> {
    let size = volume.new_size.unwrap_or(volume.size);
    let bytes = u64::from(size) * GIB;
    let drivers = &cloud.drivers;
    let mut grown = drivers.disks.grow_volume(volume.id, bytes).await;
    if grown.is_ok() {
        grown = drivers.machines.resize_disk(volume.id, bytes).await;
    }
    if let Err(error) = &grown {
        log(Item::Volume(volume.id), Task::Extend, error);
    }
    let ctx = Context::system();
    let message = Uuid::new_v4();
    settle(cloud, volume, move |conn, volume| {
        volume.new_size = None;
        match &grown {
            Ok(()) => {
                volume.size = size;
                for attachment in attachments::of_volume(conn, volume.id)? {
                    if let (Some(server), AttachStatus::Attached) = (attachment.server, attachment.status) {
                        volume_extended(conn, &ctx, server, volume.id)?;
                    }
                }
                back(conn, volume, Status::Extending)
            }
            Err(error) => {
                volume.previous_status = None;
                volume.status = Status::ErrorExtending;
                tell(conn, volume, message, Action::ExtendVolume, &detail(error))
            }
        }
    })
    .await
}

async fn upload(cloud: &Cloud, volume: &Volume) -> Result<()> {
    let Some(image) = volume.target_id else {
        return settle(cloud, volume, |conn, volume| {
            back(conn, volume, Status::Uploading)
        })
        .await;
    };
    let disks = &cloud.drivers.disks;
    let copied = match disks.image_from_volume(volume.id, image).await {
        Ok(converted) => from_volume::sums(cloud, image, &converted)
            .await
            .map_err(|error| DriverError::Failed(error.to_string())),
        Err(error) => Err(error),
    };
    if let Err(error) = &copied {
        log(Item::Volume(volume.id), Task::Upload, error);
    }
    // The image may have been deleted meanwhile; then its bytes go, too.
    let there = copied.clone().ok();
    let kept = cloud.store.write(NAME, move |conn| match &there {
        Some(sums) => from_volume::finish(conn, image, sums),
        None => from_volume::give_up(conn, image).map(|()| false),
    });
    if !kept.await?
        && let Err(error) = disks.delete_image(image).await
    {
        log(Item::Volume(volume.id), Task::Upload, &error);
    }
    let message = Uuid::new_v4();
    settle(cloud, volume, move |conn, volume| {
        volume.target_id = None;
        if let Err(error) = &copied {
            tell(conn, volume, message, Action::CopyVolumeToImage, &detail(error))?;
        }
        back(conn, volume, Status::Uploading)
    })
    .await
}

async fn restore(cloud: &Cloud, volume: &Volume) -> Result<()> {
    let restored_from = volume.target_id;
    let written = match restored_from {
        Some(backup) => encryption::restore_backup(cloud, backup, volume.id).await,
        None => Err(DriverError::Failed("no backup is named".into())),
    };
    if let Err(error) = &written {
        log(Item::Volume(volume.id), Task::Restore, error);
    }
    let message = Uuid::new_v4();
    settle(cloud, volume, move |conn, volume| {
        volume.target_id = None;
        match &written {
            Ok(()) => back(conn, volume, Status::RestoringBackup)?,
            Err(error) => {
                volume.previous_status = None;
                volume.status = Status::ErrorRestoring;
                tell(conn, volume, message, Action::RestoreBackup, &detail(error))?;
            }
        }
        restored_from.map_or(Ok(()), |backup| backups::restored(conn, backup))
    })
    .await
}

async fn revert(cloud: &Cloud, volume: &Volume) -> Result<()> {
    let from = volume.target_id;
    let written = match from {
        Some(snapshot) => encryption::revert_volume(cloud, volume.id, snapshot).await,
        None => Err(DriverError::Failed("no snapshot is named".into())),
    };
    if let Err(error) = &written {
        log(Item::Volume(volume.id), Task::Revert, error);
    }
    let message = Uuid::new_v4();
    settle(cloud, volume, move |conn, volume| {
        volume.target_id = None;
        if let Some(id) = from
            && let Some(mut snapshot) = snapshots::get(conn, id)?
            && snapshot.status == SnapshotStatus::Restoring
        {
            snapshot.status = SnapshotStatus::Available;
            snapshot.save(conn)?;
        }
        if let Err(error) = &written {
            tell(conn, volume, message, Action::RevertVolume, &detail(error))?;
        }
        // A clone takes its volume's place whole or not at all: after a failure it is as it was.
        back(conn, volume, Status::Reverting)
    })
    .await
}

async fn delete_volume(cloud: &Cloud, volume: &Volume) -> Result<()> {
    match encryption::delete_volume(cloud, volume.id).await {
        Ok(()) => {
            let (id, task) = (volume.id, volume.task);
            cloud
                .store
                .write(NAME, move |conn| {
                    let text = id.to_string();
                    match row::get(conn, id)? {
                        Some(volume) if volume.task == task => {
                            conn.execute("DELETE FROM volume_volumes WHERE id = ?1", [&text])?;
                            conn.execute("DELETE FROM volume_attachments WHERE volume_id = ?1", [&text])?;
                            conn.execute("DELETE FROM volume_transfers WHERE volume_id = ?1", [&text])?;
                            Ok(())
                        }
                        _ => Ok(()),
                    }
                })
                .await
        }
        Err(error) => {
            log(Item::Volume(volume.id), Task::Delete, &error);
            let (message, detail) = (Uuid::new_v4(), detail(&error));
            settle(cloud, volume, move |conn, volume| {
                volume.status = Status::ErrorDeleting;
                tell(conn, volume, message, Action::DeleteVolume, &detail)
            })
            .await
        }
    }
}

async fn settle_snapshot<F>(cloud: &Cloud, snapshot: &Snapshot, change: F) -> Result<()>
where
    F: Fn(&Connection, &mut Snapshot) -> Result<()> + Send + 'static,
{
    let (id, task) = (snapshot.id, snapshot.task);
    cloud
        .store
        .write(NAME, move |conn| {
            let Some(mut snapshot) = snapshots::get(conn, id)? else {
                return Ok(());
            };
            if snapshot.task != task {
                return Ok(());
            }
            snapshot.task = None;
            snapshot.updated_at = Some(now());
            change(conn, &mut snapshot)?;
            snapshot.save(conn)
        })
        .await
}

async fn create_snapshot(cloud: &Cloud, snapshot: &Snapshot) -> Result<()> {
    let made = encryption::snapshot_volume(cloud, snapshot.volume_id, snapshot.id).await;
    if let Err(error) = &made {
        log(Item::Snapshot(snapshot.id), Task::Create, error);
    }
    let message = Uuid::new_v4();
    settle_snapshot(cloud, snapshot, move |conn, snapshot| match &made {
        Ok(()) => {
            snapshot.status = SnapshotStatus::Available;
            Ok(())
        }
        Err(error) => {
            snapshot.status = SnapshotStatus::Error;
            let whose = ("VOLUME_SNAPSHOT", snapshot.id);
            let action = Action::CreateSnapshot;
            messages::leave(conn, message, &snapshot.project_id, whose, action, &detail(error))
        }
    })
    .await
}

async fn delete_snapshot(cloud: &Cloud, snapshot: &Snapshot) -> Result<()> {
    match encryption::delete_snapshot(cloud, snapshot.id).await {
        Ok(()) => {
            let id = snapshot.id;
            cloud
                .store
                .write(NAME, move |conn| {
                    let sql = "DELETE FROM volume_snapshots WHERE id = ?1 AND task = 'delete'";
                    conn.execute(sql, [id.to_string()])?;
                    Ok(())
                })
                .await
        }
        Err(error) => {
            log(Item::Snapshot(snapshot.id), Task::Delete, &error);
            let (message, detail) = (Uuid::new_v4(), detail(&error));
            settle_snapshot(cloud, snapshot, move |conn, snapshot| {
                snapshot.status = SnapshotStatus::ErrorDeleting;
                let whose = ("VOLUME_SNAPSHOT", snapshot.id);
                let action = Action::DeleteSnapshot;
                messages::leave(conn, message, &snapshot.project_id, whose, action, &detail)
            })
            .await
        }
    }
}

async fn settle_backup<F>(cloud: &Cloud, backup: &Backup, change: F) -> Result<()>
where
    F: Fn(&Connection, &mut Backup) -> Result<()> + Send + 'static,
{
    let (id, task) = (backup.id, backup.task);
    cloud
        .store
        .write(NAME, move |conn| {
            let Some(mut backup) = backups::get(conn, id)? else {
                return Ok(());
            };
            if backup.task != task {
                return Ok(());
            }
            backup.task = None;
            backup.updated_at = Some(now());
            change(conn, &mut backup)?;
            backup.save(conn)
        })
        .await
}

async fn create_backup(cloud: &Cloud, backup: &Backup) -> Result<()> {
    let source = match backup.snapshot_id {
        Some(snapshot) => Origin::Snapshot(snapshot),
        None => Origin::Volume(backup.volume_id),
    };
    let made = encryption::back_up(cloud, source.source(), backup.id).await;
    if let Err(error) = &made {
        log(Item::Backup(backup.id), Task::Create, error);
    }
    let message = Uuid::new_v4();
    settle_backup(cloud, backup, move |conn, backup| {
        backups::release(conn, backup)?;
        match &made {
            Ok(done) => {
                backup.status = BackupStatus::Available;
                backup.stored = Some(done.stored);
                backup.sha256 = Some(done.sha256.clone());
                Ok(())
            }
            Err(error) => {
                backup.status = BackupStatus::Error;
                backup.fail_reason = Some(match error {
                    DriverError::BadInput(text) => text.clone(),
                    DriverError::Full(_) => "There is not enough space for backups.".into(),
                    DriverError::Failed(_) => "The node could not write it.".into(),
                });
                let whose = ("VOLUME_BACKUP", backup.id);
                let action = Action::CreateBackup;
                messages::leave(conn, message, &backup.project_id, whose, action, &detail(error))
            }
        }
    })
    .await
}

async fn delete_backup(cloud: &Cloud, backup: &Backup) -> Result<()> {
    match encryption::delete_backup(cloud, backup.id).await {
        Ok(()) => {
            let id = backup.id;
            cloud
                .store
                .write(NAME, move |conn| {
                    let sql = "DELETE FROM volume_backups WHERE id = ?1 AND task = 'delete'";
                    conn.execute(sql, [id.to_string()])?;
                    Ok(())
                })
                .await
        }
        Err(error) => {
            log(Item::Backup(backup.id), Task::Delete, &error);
            let (message, detail) = (Uuid::new_v4(), detail(&error));
            settle_backup(cloud, backup, move |conn, backup| {
                backup.status = BackupStatus::ErrorDeleting;
                let whose = ("VOLUME_BACKUP", backup.id);
                let action = Action::DeleteBackup;
                messages::leave(conn, message, &backup.project_id, whose, action, &detail)
            })
            .await
        }
    }
}
