//! Import in two steps: the bytes are staged whole, and converted when the client says so ([`super::import`]).

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use rusqlite::params;
use uuid::Uuid;

use super::data::{self, Received};
use super::limits;
use super::load;
use crate::identity::now;
use crate::{Cloud, Context, Error, Result};

/// Takes an image's bytes and keeps them until they are imported.
///
/// # Errors
/// As [`data::upload`].
pub async fn stage<S, E>(
    cloud: &Arc<Cloud>,
    ctx: &Context,
    id: Uuid,
    length: Option<u64>,
    bytes: S,
) -> Result<()>
where
    S: Stream<Item = std::result::Result<Bytes, E>> + Send + Unpin,
    E: std::fmt::Display,
{
    let (mut upload, _) = data::open(cloud, ctx, id, length).await?;
    let path = data::staged(cloud, id);
    let staged = match data::receive(&path, cloud.config.max_image_bytes, data::broken_off(bytes)).await {
        Ok(received) if received.size == 0 => Err(Error::BadRequest("The upload has no bytes.".into())),
        Ok(received) => keep(cloud, id, received).await,
        Err(error) => Err(error),
    };
    match staged {
        Ok(()) => upload.done = true,
        Err(error) => {
            upload.give_up().await;
            return Err(error);
        }
    }
    Ok(())
}

async fn keep(cloud: &Cloud, id: Uuid, received: Received) -> Result<()> {
    let size = i64::try_from(received.size).map_err(|_| Error::Internal("an image's size".into()))?;
    let now = now();
    let limit = cloud.config.max_project_image_bytes;
    cloud
        .store
        .write("image", move |conn| {
            let owner = load(conn, id)?.owner;
            limits::check_bytes(conn, limit, &owner, id, received.size)?;
            let sql = "UPDATE images SET status = 'uploading', size = ?2, checksum = ?3, os_hash_value = ?4,
                 updated_at = ?5 WHERE id = ?1 AND status = 'saving'";
            let kept = conn.execute(
                sql,
                params![id.to_string(), size, received.md5, received.sha512, now],
            )?;
            if kept == 0 {
                return Err(super::not_found(id));
            }
            Ok(())
        })
        .await
}

/// Removes what was staged before this moment (microseconds since 1970) and never imported; the images are `queued` again.
pub(super) async fn expire(cloud: &Cloud, before: i64) {
    let old = cloud.store.read(move |conn| {
        let mut sql =
            conn.prepare_cached("SELECT id FROM images WHERE status = 'uploading' AND updated_at < ?1")?;
        let rows = sql.query_map([before], |row| row.get::<_, String>(0))?;
        Ok::<_, Error>(rows.collect::<rusqlite::Result<Vec<_>>>()?)
    });
    match old.await {
        Ok(old) => {
            for id in old.iter().filter_map(|id| id.parse().ok()) {
                tracing::info!(image = %id, "staged bytes that nobody imported are removed");
                data::put_back(cloud, id).await;
            }
        }
        Err(error) => tracing::warn!(%error, "what was staged long ago could not be looked for"),
    }
}

/// The files that are staged; images whose file is gone are `queued` again.
pub(super) async fn recover(cloud: &Cloud) -> Result<HashSet<PathBuf>> {
    let rows: Vec<String> = cloud
        .store
        .read(|conn| {
            let mut sql = conn.prepare("SELECT id FROM images WHERE status = 'uploading'")?;
            let rows = sql.query_map([], |row| row.get(0))?;
            Ok::<_, Error>(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await?;
    let mut staged = HashSet::new();
    for id in rows.iter().filter_map(|id| id.parse().ok()) {
        let path = data::staged(cloud, id);
        if tokio::fs::try_exists(&path).await.unwrap_or(false) {
            staged.insert(path);
        } else {
            data::put_back(cloud, id).await;
        }
    }
    Ok(staged)
}
