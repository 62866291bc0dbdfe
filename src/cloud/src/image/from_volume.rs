//! Images that are made from volumes.

use std::collections::BTreeMap;

use model::disk::{Converted, ImageFormat};
use rusqlite::{Connection, params};
use uuid::Uuid;

use super::{Image, MAX_PER_PROJECT, Status, Visibility, load, properties, save};
use crate::identity::now;
use crate::{Cloud, Context, Error, Result};

/// What the image shall be.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct New<'a> {
    pub id: Uuid,
    pub name: String,
    pub visibility: Visibility,
    pub protected: bool,
    /// What the volume's own image said of itself.
    pub properties: &'a BTreeMap<String, String>,
}

/// What an image's own attributes say, and a volume keeps beside free properties.
const ATTRIBUTES: [&str; 10] = [
    "image_id",
    "image_name",
    "checksum",
    "container_format",
    "disk_format",
    "min_disk",
    "min_ram",
    "size",
    "signature_verified",
    "status",
];

/// Makes an image that waits for a volume's bytes.
///
/// # Errors
/// 413 for too many.
pub(crate) fn begin(conn: &Connection, ctx: &Context, new: New<'_>) -> Result<Image> {
    let owner = ctx.project()?.to_owned();
    let sql = "SELECT count(*) FROM images WHERE owner = ?1 AND status != 'pending_delete'";
    let count: i64 = conn.prepare_cached(sql)?.query_row([&owner], |row| row.get(0))?;
    if count >= MAX_PER_PROJECT {
        return Err(Error::QuotaExceeded(format!(
            "A project has at most {MAX_PER_PROJECT} images."
        )));
    }
    let now = now();
    conn.execute(
        "INSERT INTO images (id, owner, status, visibility, original, min_disk, min_ram, protected, hidden,
             tags, properties, created_at, updated_at)
         VALUES (?1, ?2, 'saving', 'private', 0, 0, 0, 0, 0, '', '{}', ?3, ?3)",
        params![new.id.to_string(), owner, now],
    )?;
    let mut image = load(conn, new.id)?;
    let number = |key: &str| new.properties.get(key).and_then(|n| n.parse().ok()).unwrap_or(0);
    image.name = Some(new.name);
    image.visibility = new.visibility;
    image.protected = new.protected;
    image.disk_format = Some(ImageFormat::Raw);
    image.container_format = Some("bare".into());
    image.min_disk = number("min_disk");
    image.min_ram = number("min_ram");
    image.properties = new
        .properties
        .iter()
        .filter(|(key, _)| !ATTRIBUTES.contains(&key.as_str()) && !properties::is_reserved(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    save(conn, &image, now)?;
    load(conn, new.id)
}

/// What is told of an image's bytes.
#[derive(Debug, Clone)]
pub(crate) struct Sums {
    size: u64,
    md5: String,
    sha512: String,
}

/// Reads an image's raw form and adds it up.
///
/// # Errors
/// If it cannot be read.
pub(crate) async fn sums(cloud: &Cloud, id: Uuid, converted: &Converted) -> Result<Sums> {
    let path = cloud.drivers.disks.image_path(id);
    let size = converted.virtual_size;
    let sums = tokio::task::spawn_blocking(move || {
        use md5::Md5;
        use sha2::{Digest, Sha512};
        use std::io::Read;

        let mut file = std::fs::File::open(&path)?.take(size);
        let (mut md5, mut sha512) = (Md5::new(), Sha512::new());
        let mut block = vec![0; 1 << 20];
        loop {
            let read = file.read(&mut block)?;
            if read == 0 {
                break;
            }
            md5.update(&block[..read]);
            sha512.update(&block[..read]);
        }
        Ok::<_, std::io::Error>((
            super::data::hex(&md5.finalize()),
            super::data::hex(&sha512.finalize()),
        ))
    });
    let sums = sums.await.map_err(|error| Error::Internal(error.to_string()))?;
    let (md5, sha512) = sums.map_err(|error| Error::Internal(format!("image {id}: {error}")))?;
    Ok(Sums { size, md5, sha512 })
}

/// The volume's bytes are there. False if the image is gone by now.
///
/// # Errors
/// If the database cannot be written.
pub(crate) fn finish(conn: &Connection, id: Uuid, sums: &Sums) -> Result<bool> {
    let size = i64::try_from(sums.size).map_err(|_| Error::Internal("an image's size".into()))?;
    let changed = conn.execute(
        "UPDATE images SET status = 'active', size = ?2, virtual_size = ?2, checksum = ?3, os_hash_value = ?4,
             updated_at = ?5 WHERE id = ?1 AND status IN ('queued', 'saving', 'importing')",
        params![id.to_string(), size, sums.md5, sums.sha512, now()],
    )?;
    Ok(changed > 0 || load(conn, id).is_ok_and(|image| image.status == Status::Active))
}

/// The volume's bytes will not come.
///
/// # Errors
/// If the database cannot be written.
pub(crate) fn give_up(conn: &Connection, id: Uuid) -> Result<()> {
    conn.execute(
        "UPDATE images SET status = 'pending_delete' WHERE id = ?1 AND status IN ('queued', 'saving', 'importing')",
        [id.to_string()],
    )?;
    Ok(())
}
