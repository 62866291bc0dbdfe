//! What the node is asked to do with bytes, and the rows that say which keys are still needed for them.

use std::collections::HashSet;

use rusqlite::{Connection, params};
use tracing::info;
use uuid::Uuid;

use super::keys::{self, NAME};
use crate::driver::{DriverError, VolumeSource};
use crate::identity::Identity;
use crate::volume::type_encryption;
use crate::{Cloud, Error, Result};

type Done<T = ()> = std::result::Result<T, DriverError>;

fn told(error: Error) -> DriverError {
    DriverError::Failed(error.to_string())
}

/// The lineages of a file.
fn of(conn: &Connection, file: Uuid) -> Result<Vec<Uuid>> {
    let mut sql = conn.prepare_cached("SELECT lineage FROM encryption_files WHERE file_id = ?1")?;
    let texts: Vec<String> = sql
        .query_map([file.to_string()], |row| row.get(0))?
        .collect::<std::result::Result<_, _>>()?;
    texts.iter().map(|text| keys::parse(text)).collect()
}

/// A volume, snapshot or backup is encrypted.
///
/// # Errors
/// If the store cannot be read.
pub fn is_encrypted(conn: &Connection, file: Uuid) -> Result<bool> {
    Ok(!of(conn, file)?.is_empty())
}

/// All that is encrypted, of a project or of all, by ids.
///
/// # Errors
/// If the store cannot be read.
pub(crate) fn encrypted(conn: &Connection, project: Option<&str>) -> Result<HashSet<String>> {
    let mut sql =
        conn.prepare_cached("SELECT file_id FROM encryption_files WHERE ?1 IS NULL OR project_id = ?1")?;
    let ids = sql.query_map([project], |row| row.get(0))?;
    Ok(ids.collect::<std::result::Result<_, _>>()?)
}

fn add(conn: &Connection, file: Uuid, lineage: Uuid, project: &str) -> Result<()> {
    conn.prepare_cached(
        "INSERT OR IGNORE INTO encryption_files (file_id, lineage, project_id) VALUES (?1, ?2, ?3)",
    )?
    .execute(params![file.to_string(), lineage.to_string(), project])?;
    Ok(())
}

/// A file gets another's lineages, if that has any, in the same project.
fn inherit(conn: &Connection, file: Uuid, from: Uuid) -> Result<Option<Uuid>> {
    conn.prepare_cached(
        "INSERT OR IGNORE INTO encryption_files (file_id, lineage, project_id)
         SELECT ?1, lineage, project_id FROM encryption_files WHERE file_id = ?2",
    )?
    .execute(params![file.to_string(), from.to_string()])?;
    Ok(of(conn, from)?.first().copied())
}

/// Removes lineages, or this one alone, from projects that have nothing left of them; those of images if they were not used since
/// then. Lineages that no project has any more are told.
fn prune(conn: &Connection, lineage: Option<Uuid>, since: i64) -> Result<Vec<Uuid>> {
    let mut sql = conn.prepare_cached(
        "DELETE FROM encryption_lineages WHERE (?1 IS NULL OR lineage = ?1)
         AND NOT EXISTS (
             SELECT 1 FROM encryption_files AS f
             WHERE f.lineage = encryption_lineages.lineage AND f.project_id = encryption_lineages.project_id)
         AND (image_id IS NULL OR used_at < ?2) RETURNING lineage",
    )?;
    let texts: Vec<String> = sql
        .query_map(params![lineage.map(|id| id.to_string()), since], |row| row.get(0))?
        .collect::<std::result::Result<_, _>>()?;
    let mut gone = Vec::new();
    for text in texts {
        let mut left = conn.prepare_cached("SELECT 1 FROM encryption_lineages WHERE lineage = ?1")?;
        if !left.exists([&text])? {
            let lineage = keys::parse(&text)?;
            info!(target: "audit", event = "disk key removed", %lineage);
            gone.push(lineage);
        }
    }
    Ok(gone)
}

/// Removes all lineages that nothing is left of; those of images if they were not used since then. What is gone is told.
pub(super) fn remove_unused(conn: &Connection, since: i64) -> Result<Vec<Uuid>> {
    prune(conn, None, since)
}

/// Removes the rows of a file, but for those of a lineage that it keeps. Lineages that nothing is left of lose their keys; these
/// are told. That of an image stays for a while: what comes next of the image in this project need not have it encrypted again.
fn remove(conn: &Connection, file: Uuid, keep: &[Uuid]) -> Result<Vec<Uuid>> {
    let mut gone = Vec::new();
    for lineage in of(conn, file)? {
        if keep.contains(&lineage) {
            continue;
        }
        conn.prepare_cached("DELETE FROM encryption_files WHERE file_id = ?1 AND lineage = ?2")?
            .execute(params![file.to_string(), lineage.to_string()])?;
        keys::touch(conn, lineage)?;
        gone.extend(prune(conn, Some(lineage), i64::MIN)?);
    }
    Ok(gone)
}

/// A file's rows go, and what the node keeps for lineages that go with them.
async fn forget(cloud: &Cloud, file: Uuid, keep: Vec<Uuid>) -> Done {
    let gone = cloud
        .store
        .write(NAME, move |conn| remove(conn, file, &keep))
        .await
        .map_err(told)?;
    for lineage in gone {
        cloud.drivers.disks.delete_lineage(lineage).await?;
    }
    Ok(())
}

/// A file of a lineage is this project's from now on, which gets the key.
fn give(conn: &Connection, identity: &Identity, file: Uuid, lineage: Uuid, project: &str) -> Result<()> {
    keys::share(conn, identity, lineage, project)?;
    conn.prepare_cached("UPDATE encryption_files SET project_id = ?3 WHERE file_id = ?1 AND lineage = ?2")?
        .execute(params![file.to_string(), lineage.to_string(), project])?;
    Ok(())
}

/// The lineage of a volume that is to be made; `None`: it is not to be encrypted.
fn assign(
    conn: &Connection,
    identity: &Identity,
    project: &str,
    volume: Uuid,
    source: VolumeSource,
    encrypt: bool,
) -> Result<Option<Uuid>> {
    let image = match source {
        VolumeSource::Volume(from) | VolumeSource::Snapshot(from) => {
            let lineage = inherit(conn, volume, from)?;
            // A clone may be another project's: its key is to be there, too.
            for lineage in of(conn, volume)? {
                give(conn, identity, volume, lineage, project)?;
            }
            return Ok(lineage);
        }
        VolumeSource::Empty => None,
        VolumeSource::Image(image) => Some(image),
    };
    if let Some(lineage) = of(conn, volume)?.first() {
        return Ok(Some(*lineage));
    }
    if !encrypt && !type_encryption::asked_for(conn, volume)? {
        return Ok(None);
    }
    let known = match image {
        Some(image) => keys::lineage_of_image(conn, project, image)?,
        None => None,
    };
    let lineage = match known {
        Some(lineage) => {
            keys::touch(conn, lineage)?;
            lineage
        }
        None => keys::found(conn, identity, project, image)?,
    };
    add(conn, volume, lineage, project)?;
    Ok(Some(lineage))
}

/// Makes a volume of a project's, as [`crate::driver::Disks::create_volume`] does, encrypted unless the operator does not want it. A clone
/// is what it is a clone of.
///
/// # Errors
/// The node's, or if its key cannot be made.
pub async fn create_volume(
    cloud: &Cloud,
    project: &str,
    volume: Uuid,
    size: u64,
    source: VolumeSource,
) -> Done {
    let (identity, project) = (cloud.identity.clone(), project.to_owned());
    let encrypt = cloud.config.encrypt_volumes;
    let lineage = cloud
        .store
        .write(NAME, move |conn| {
            assign(conn, &identity, &project, volume, source, encrypt)
        })
        .await
        .map_err(told)?;
    let disks = &cloud.drivers.disks;
    disks.create_volume(volume, size, source, lineage).await
}

/// Removes a volume's bytes, and its key if nothing else has it.
///
/// # Errors
/// The node's. The key stays then.
pub async fn delete_volume(cloud: &Cloud, volume: Uuid) -> Done {
    cloud.drivers.disks.delete_volume(volume).await?;
    forget(cloud, volume, Vec::new()).await
}

async fn follow(cloud: &Cloud, file: Uuid, from: Uuid) -> Done<Vec<Uuid>> {
    cloud
        .store
        .write(NAME, move |conn| {
            inherit(conn, file, from)?;
            of(conn, from)
        })
        .await
        .map_err(told)
}

/// [`crate::driver::Disks::snapshot_volume`].
///
/// # Errors
/// The node's.
pub async fn snapshot_volume(cloud: &Cloud, volume: Uuid, snapshot: Uuid) -> Done {
    follow(cloud, snapshot, volume).await?;
    cloud.drivers.disks.snapshot_volume(volume, snapshot).await
}

/// [`crate::driver::Disks::delete_snapshot`].
///
/// # Errors
/// The node's.
pub async fn delete_snapshot(cloud: &Cloud, snapshot: Uuid) -> Done {
    cloud.drivers.disks.delete_snapshot(snapshot).await?;
    forget(cloud, snapshot, Vec::new()).await
}

/// [`crate::driver::Disks::revert_volume`]: the volume has the snapshot's key afterwards.
///
/// # Errors
/// The node's.
pub async fn revert_volume(cloud: &Cloud, volume: Uuid, snapshot: Uuid) -> Done {
    let keep = follow(cloud, volume, snapshot).await?;
    cloud.drivers.disks.revert_volume(volume, snapshot).await?;
    forget(cloud, volume, keep).await
}

/// [`crate::driver::Disks::back_up`].
///
/// # Errors
/// The node's.
pub async fn back_up(cloud: &Cloud, source: VolumeSource, backup: Uuid) -> Done<model::disk::BackedUp> {
    if let VolumeSource::Volume(from) | VolumeSource::Snapshot(from) = source {
        follow(cloud, backup, from).await?;
    }
    cloud.drivers.disks.back_up(source, backup).await
}

/// [`crate::driver::Disks::restore_backup`]: the volume has the backup's key afterwards, or, if that was made of a volume without
/// encryption, none.
///
/// # Errors
/// The node's.
pub async fn restore_backup(cloud: &Cloud, backup: Uuid, volume: Uuid) -> Done {
    let keep = follow(cloud, volume, backup).await?;
    cloud.drivers.disks.restore_backup(backup, volume).await?;
    forget(cloud, volume, keep).await
}

/// [`crate::driver::Disks::delete_backup`].
///
/// # Errors
/// The node's.
pub async fn delete_backup(cloud: &Cloud, backup: Uuid) -> Done {
    cloud.drivers.disks.delete_backup(backup).await?;
    forget(cloud, backup, Vec::new()).await
}

/// A file belongs to another project from now on, which gets its key; the old one loses it unless it has something else of the
/// lineage.
pub(crate) fn transfer(conn: &Connection, identity: &Identity, file: Uuid, project: &str) -> Result<()> {
    for lineage in of(conn, file)? {
        give(conn, identity, file, lineage, project)?;
        // The new project has it by now, so that no key goes.
        prune(conn, Some(lineage), i64::MAX)?;
    }
    Ok(())
}
