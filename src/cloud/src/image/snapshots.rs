//! Images that the cloud itself makes, of servers and volumes: a row first, the bytes when a reconciler comes to it.

use std::collections::BTreeMap;

use model::disk::{Converted, ImageFormat};
use rusqlite::{Connection, params};
use uuid::Uuid;

use super::{Image, MAX_PER_PROJECT, Status, Visibility, format_name, load, properties, save};
use crate::identity::now;
use crate::{Cloud, Context, Error, Result};

/// What is known of an image before it has bytes.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Reserve {
    pub id: Uuid,
    pub name: String,
    pub min_disk: u32,
    pub min_ram: u32,
    pub properties: BTreeMap<String, String>,
}

/// Makes the image's row for the caller's project, inside its write. `saving` until [`finish`], or at once `active` and without
/// bytes (an image that only names volume snapshots).
///
/// # Errors
/// 403, 413 for too many.
pub fn reserve(conn: &Connection, ctx: &Context, new: &Reserve, with_bytes: bool) -> Result<Image> {
    ctx.require("images", "create")?;
    let owner = ctx.project()?.to_owned();
    let sql = "SELECT count(*) FROM images WHERE owner = ?1 AND status != 'pending_delete'";
    let count: i64 = conn.prepare_cached(sql)?.query_row([&owner], |row| row.get(0))?;
    if count >= MAX_PER_PROJECT {
        return Err(Error::QuotaExceeded(format!(
            "A project has at most {MAX_PER_PROJECT} images."
        )));
    }
    let now = now();
    let status = if with_bytes {
        Status::Saving
    } else {
        Status::Active
    };
    conn.prepare_cached(
        "INSERT INTO images (id, owner, status, visibility, original, min_disk, min_ram, protected, hidden, tags,
             properties, created_at, updated_at) VALUES (?1, ?2, ?3, 'private', 0, 0, 0, 0, 0, '', '{}', ?4, ?4)",
    )?
    .execute(params![new.id.to_string(), owner, status.name(), now])?;
    let mut image = load(conn, new.id)?;
    image.name = Some(new.name.clone());
    image.visibility = Visibility::Private;
    image.disk_format = Some(ImageFormat::Raw);
    image.container_format = Some("bare".to_owned());
    image.min_disk = new.min_disk;
    image.min_ram = new.min_ram;
    image.properties = new.properties.clone();
    image.properties.retain(|key, _| !properties::is_reserved(key));
    save(conn, &image, now)?;
    if !with_bytes {
        conn.execute("UPDATE images SET size = 0 WHERE id = ?1", [new.id.to_string()])?;
    }
    load(conn, new.id)
}

/// The image still waits for its bytes (`queued`: the daemon was restarted in between).
pub fn is_awaited(conn: &Connection, id: Uuid) -> Result<bool> {
    match load(conn, id) {
        Ok(image) => Ok(matches!(
            image.status,
            Status::Queued | Status::Saving | Status::Importing
        )),
        Err(error) if error.kind() == Some(crate::error::Kind::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The image can be used.
pub fn is_there(conn: &Connection, id: Uuid) -> Result<bool> {
    match load(conn, id) {
        Ok(image) => Ok(image.status == Status::Active),
        Err(error) if error.kind() == Some(crate::error::Kind::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The bytes are there ([`crate::driver::Disks::image_from_volume`]): the image is `active`. Was it deleted meanwhile, they go.
///
/// # Errors
/// If the store cannot be written.
pub async fn finish(cloud: &Cloud, id: Uuid, converted: &Converted) -> Result<()> {
    let size = i64::try_from(converted.virtual_size)
        .map_err(|_| Error::Internal("an image's size does not fit".into()))?;
    let (format, now) = (format_name(converted.format), now());
    let there = cloud
        .store
        .write("image", move |conn| {
            let changed = conn.execute(
                "UPDATE images SET status = 'active', size = ?2, virtual_size = ?2, disk_format = ?3, updated_at = ?4
                 WHERE id = ?1 AND status IN ('queued', 'saving', 'importing')",
                params![id.to_string(), size, format, now],
            )?;
            Ok::<_, Error>(changed > 0 || load(conn, id).is_ok())
        })
        .await?;
    if !there {
        cloud.drivers.disks.delete_image(id).await?;
    }
    clear(cloud, id).await
}

/// Removes what is left of an image that was deleted while it waited for its bytes.
///
/// # Errors
/// If the store cannot be written.
pub async fn clear(cloud: &Cloud, id: Uuid) -> Result<()> {
    super::data::purge(cloud, id).await
}

/// An image that will get no bytes any more goes, as if its owner had deleted it.
pub fn give_up(conn: &Connection, id: Uuid) -> Result<()> {
    conn.execute(
        "UPDATE images SET status = 'pending_delete', updated_at = ?2
         WHERE id = ?1 AND status IN ('queued', 'saving', 'importing')",
        params![id.to_string(), now()],
    )?;
    Ok(())
}

/// Removes an image that the cloud itself made and no one else is to keep.
pub fn discard(conn: &Connection, id: Uuid) -> Result<()> {
    conn.execute(
        "UPDATE images SET status = 'pending_delete', updated_at = ?2 WHERE id = ?1",
        params![id.to_string(), now()],
    )?;
    Ok(())
}
