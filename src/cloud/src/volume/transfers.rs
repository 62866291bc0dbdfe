//! Transfers: a volume is offered to whoever has the key.

use rusqlite::{Connection, OptionalExtension, Row, params};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::quotas::{self, Wanted};
use super::row::{self, uuid};
use super::snapshots;
use super::status::{SnapshotStatus, Status};
use crate::compute::{Micros, now};
use crate::encryption;
use crate::{Cloud, Context, Error, Result};

/// An offer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Transfer {
    pub id: Uuid,
    pub volume_id: Uuid,
    /// Who offers it.
    pub project_id: String,
    pub name: Option<String>,
    /// Its snapshots stay.
    pub no_snapshots: bool,
    pub created_at: Micros,
    salt: String,
    hash: String,
}

impl Transfer {
    fn of_row(row: &Row<'_>) -> rusqlite::Result<Transfer> {
        Ok(Transfer {
            id: uuid(row, "id")?,
            volume_id: uuid(row, "volume_id")?,
            project_id: row.get("project_id")?,
            name: row.get("name")?,
            no_snapshots: row.get("no_snapshots")?,
            created_at: row.get("created_at")?,
            salt: row.get("salt")?,
            hash: row.get("hash")?,
        })
    }
}

fn hash(salt: &str, key: &str) -> String {
    let digest = Sha256::new().chain_update(salt).chain_update(key).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn get(conn: &Connection, id: &str) -> Result<Transfer> {
    let uuid = row::parse_id("Transfer", id)?;
    let mut query = conn.prepare_cached("SELECT * FROM volume_transfers WHERE id = ?1")?;
    let found = query.query_row([uuid.to_string()], Transfer::of_row).optional()?;
    found.ok_or_else(|| Error::not_found("Transfer", id))
}

fn find(conn: &Connection, ctx: &Context, id: &str) -> Result<Transfer> {
    let transfer = get(conn, id)?;
    if ctx.sees(&transfer.project_id) {
        Ok(transfer)
    } else {
        Err(Error::not_found("Transfer", id))
    }
}

/// Offers a volume. Beside the offer: its key, which is told this once.
///
/// # Errors
/// 404, 400 unless the volume is available.
pub async fn create(
    cloud: &Cloud,
    ctx: &Context,
    volume: &str,
    name: Option<String>,
    no_snapshots: bool,
) -> Result<(Transfer, String)> {
    ctx.require("volume_transfers", "create")?;
    let (caller, volume) = (ctx.clone(), volume.to_owned());
    let random = || Uuid::new_v4().simple().to_string();
    let (id, salt, key) = (Uuid::new_v4(), random(), random()[..16].to_owned());
    let hash = hash(&salt, &key);
    let made = cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut volume = row::find_text(conn, &caller, &volume)?;
            if volume.status != Status::Available {
                return Err(Error::BadRequest("Invalid volume: status must be available".into()));
            }
            if !no_snapshots
                && snapshots::of_volume(conn, volume.id)?
                    .iter()
                    .any(|snapshot| snapshot.status != SnapshotStatus::Available)
            {
                return Err(Error::BadRequest(
                    "Invalid snapshot: snapshots of a volume to be transferred must be available.".into(),
                ));
            }
            volume.status = Status::AwaitingTransfer;
            volume.updated_at = Some(now());
            volume.save(conn)?;
            conn.execute(
                "INSERT INTO volume_transfers (id, volume_id, project_id, name, salt, hash, no_snapshots, created_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    id.to_string(),
                    volume.id.to_string(),
                    volume.project_id,
                    name,
                    salt,
                    hash,
                    no_snapshots,
                    now()
                ],
            )?;
            get(conn, &id.to_string())
        })
        .await?;
    Ok((made, key))
}

/// One offer of the caller's project.
///
/// # Errors
/// 404.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Transfer> {
    ctx.require("volume_transfers", "show")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    cloud.store.read(move |conn| find(conn, &ctx, &id)).await
}

/// All offers of the caller's project, newest first; for administrators of all.
pub async fn list(cloud: &Cloud, ctx: &Context, all_projects: bool) -> Result<Vec<Transfer>> {
    ctx.require("volume_transfers", "list")?;
    let project = if all_projects && ctx.is_admin() {
        None
    } else {
        Some(ctx.project()?.to_owned())
    };
    cloud
        .store
        .read(move |conn| {
            let mut query = conn.prepare_cached(
                "SELECT * FROM volume_transfers WHERE (?1 IS NULL OR project_id = ?1) \
                 ORDER BY created_at DESC, id DESC",
            )?;
            let rows = query.query_map([project], Transfer::of_row)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
}

/// Takes an offer back.
///
/// # Errors
/// 404.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str) -> Result<()> {
    ctx.require("volume_transfers", "delete")?;
    let (caller, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let transfer = find(conn, &caller, &id)?;
            end(conn, &transfer)?;
            if let Some(mut volume) = row::get(conn, transfer.volume_id)?
                && volume.status == Status::AwaitingTransfer
            {
                volume.status = Status::Available;
                volume.updated_at = Some(now());
                volume.save(conn)?;
            }
            Ok(())
        })
        .await
}

fn end(conn: &Connection, transfer: &Transfer) -> Result<()> {
    conn.execute(
        "DELETE FROM volume_transfers WHERE id = ?1",
        [transfer.id.to_string()],
    )?;
    Ok(())
}

/// Takes an offered volume into the caller's project.
///
/// # Errors
/// 404, 400 for a wrong key, 413 over quota.
pub async fn accept(cloud: &Cloud, ctx: &Context, id: &str, key: &str) -> Result<Transfer> {
    ctx.require("volume_transfers", "accept")?;
    let (caller, id, key) = (ctx.clone(), id.to_owned(), key.to_owned());
    let identity = cloud.identity.clone();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            // Whoever has the key may see it.
            let transfer = get(conn, &id)?;
            let given = hash(&transfer.salt, &key);
            if !bool::from(given.as_bytes().ct_eq(transfer.hash.as_bytes())) {
                return Err(Error::BadRequest(format!(
                    "Invalid auth key: Attempt to transfer {} with invalid auth key.",
                    transfer.id
                )));
            }
            let project = caller.project()?;
            let mut volume = row::get(conn, transfer.volume_id)?
                .ok_or_else(|| Error::not_found("Volume", transfer.volume_id))?;
            if volume.status != Status::AwaitingTransfer {
                return Err(Error::BadRequest(format!(
                    "Invalid volume: Transfer {}: Volume {} expected in awaiting-transfer state.",
                    transfer.id, volume.id
                )));
            }
            let kind = volume.type_id.to_string();
            if volume.project_id != project {
                quotas::check(conn, project, &kind, Wanted::Volume(volume.size))?;
            }
            // What is written counts for what is checked next.
            project.clone_into(&mut volume.project_id);
            volume.user_id.clone_from(&caller.user_id);
            volume.status = Status::Available;
            volume.updated_at = Some(now());
            volume.save(conn)?;
            encryption::transfer(conn, &identity, volume.id, project)?;
            let snapshots = snapshots::of_volume(conn, volume.id)?;
            for mut snapshot in snapshots {
                if transfer.no_snapshots {
                    continue;
                }
                if snapshot.project_id != project {
                    let kind = snapshot.type_id.to_string();
                    quotas::check(conn, project, &kind, Wanted::Snapshot(snapshot.size))?;
                }
                project.clone_into(&mut snapshot.project_id);
                snapshot.user_id.clone_from(&caller.user_id);
                snapshot.updated_at = Some(now());
                snapshot.save(conn)?;
                encryption::transfer(conn, &identity, snapshot.id, project)?;
            }
            end(conn, &transfer)?;
            Ok(transfer)
        })
        .await
}
