//! The catalogue of vendors' images: unmodified, public, kept fresh.
//!
//! ```text
//!              the vendor's list of digests names another one than ours
//!   (nothing) ────────────▶ fetching ────────────▶ current ────────────▶ superseded ────────────▶ gone
//!                 ▲            │    its bytes have        a newer one is      retention is over,
//!                 └────────────┘    that digest           there: hidden       no server names it
//!                  anything else
//! ```
//!
//! Bytes whose digest is not the one that the vendor's list has are never an image. Whatever cannot be had is `unavailable`, with
//! the reason; what is there stays, and nothing waits for it. The rows of what is being fetched are written with the image's, so
//! that a daemon that dies leaves nothing that the next one does not clear up.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256, Sha512};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::data::{self, Upload};
use super::{Image, Status, Visibility, import, limits, load, save};
use crate::config::{Algorithm, CatalogueEntry};
use crate::identity::now;
use crate::worker::Activity;
use crate::{Cloud, Context, Error, Result};

/// The largest list of digests.
const MAX_LIST: usize = 1 << 20;
/// After an entry was not available.
const RETRY: Duration = Duration::from_secs(15 * 60);
/// As [`crate::worker`] lists the loop.
const WORKER: &str = "image/catalogue";

/// What is known of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The entry's name.
    pub name: String,
    /// `available`, `fetching`, `unavailable` or `retired`.
    pub state: String,
    /// Why it is not available, or not fresh.
    pub reason: String,
    /// When it was last looked at; microseconds since 1970.
    pub checked_at: i64,
    /// When it was last found to be fresh.
    pub fresh_at: Option<i64>,
    /// The image that is there, if one is.
    pub image: Option<Uuid>,
}

/// All entries that were ever looked at.
///
/// # Errors
/// 403.
pub async fn list(cloud: &Cloud, ctx: &Context) -> Result<Vec<Known>> {
    ctx.require("image_catalogue", "list")?;
    known(cloud).await
}

/// The same, for metrics.
///
/// # Errors
/// If the store cannot be read.
pub async fn known(cloud: &Cloud) -> Result<Vec<Known>> {
    cloud
        .store
        .read(|conn| {
            let sql = "SELECT c.*, i.image_id FROM image_catalogue c LEFT JOIN image_catalogue_images i
                 ON i.name = c.name AND i.fetching = 0 AND i.superseded_at IS NULL ORDER BY c.name";
            let mut sql = conn.prepare_cached(sql)?;
            let rows = sql.query_map([], |row| {
                Ok(Known {
                    name: row.get("name")?,
                    state: row.get("state")?,
                    reason: row.get("reason")?,
                    checked_at: row.get("checked_at")?,
                    fresh_at: row.get("fresh_at")?,
                    image: row
                        .get::<_, Option<String>>("image_id")?
                        .and_then(|id| id.parse().ok()),
                })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
}

/// Starts the loop that keeps the catalogue fresh. Without a catalogue it clears up once; images that are there stay.
pub fn spawn(cloud: Arc<Cloud>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            cloud
                .workers
                .set(WORKER, Activity::Busy("looking for new images".into()));
            let settings = &cloud.config.catalogue;
            let (wait, activity) = match refresh(&cloud).await {
                Ok(None) => (settings.refresh, Activity::Idle),
                Ok(Some(error)) => (RETRY.min(settings.refresh), failed(error)),
                Err(error) => {
                    tracing::error!(%error, "the catalogue of images cannot be looked after");
                    (RETRY, failed(error.to_string()))
                }
            };
            if settings.entries.is_empty() && matches!(activity, Activity::Idle) {
                return cloud.workers.remove(WORKER);
            }
            cloud.workers.set(WORKER, activity);
            tokio::time::sleep(wait).await;
        }
    })
}

fn failed(error: String) -> Activity {
    let next_try = SystemTime::now() + RETRY;
    Activity::Failed { error, next_try }
}

/// Looks after all entries, one after the other, and tells why the last that is not fresh is not.
///
/// # Errors
/// If the store cannot be read or written.
pub async fn refresh(cloud: &Arc<Cloud>) -> Result<Option<String>> {
    clear(cloud).await?;
    let mut stale = None;
    for entry in &cloud.config.catalogue.entries {
        if entry
            .until
            .is_some_and(|until| OffsetDateTime::now_utc().date() > until)
        {
            supersede(cloud, &entry.name).await?;
            tell(
                cloud,
                &entry.name,
                "retired",
                "its vendor no longer cares for it",
                false,
            )
            .await?;
            continue;
        }
        match look_after(cloud, entry).await {
            Ok(()) => tell(cloud, &entry.name, "available", "", true).await?,
            Err(error) => {
                let reason = super::tasks::told(&error);
                tracing::warn!(image = entry.name, %error, "an image of the catalogue is not available, or not fresh");
                tell(cloud, &entry.name, "unavailable", &reason, false).await?;
                stale = Some(format!("{}: {reason}", entry.name));
            }
        }
    }
    retire(cloud).await?;
    Ok(stale)
}

/// Brings one entry to what its vendor has.
async fn look_after(cloud: &Arc<Cloud>, entry: &CatalogueEntry) -> Result<()> {
    let list = text(cloud, &entry.checksums).await?;
    let missing = || Error::BadRequest("The vendor's list of digests does not name the image.".into());
    let digest = digest_of(&list, &entry.file_name(), entry.algorithm).ok_or_else(missing)?;
    let (name, wanted) = (entry.name.clone(), digest.clone());
    let same = cloud.store.read(move |conn| {
        let sql = "SELECT 1 FROM image_catalogue_images c JOIN images i ON i.id = c.image_id
             WHERE c.name = ?1 AND c.digest = ?2 AND c.fetching = 0 AND c.superseded_at IS NULL
             AND i.status IN ('active', 'deactivated')";
        Ok::<_, Error>(conn.prepare_cached(sql)?.exists([&name, &wanted])?)
    });
    if same.await? {
        return Ok(());
    }
    tell(cloud, &entry.name, "fetching", "", false).await?;
    fetch(cloud, entry, digest).await
}

/// A small text of the web.
async fn text(cloud: &Cloud, uri: &str) -> Result<String> {
    let mut file = cloud.drivers.web.get(uri).await?;
    let mut text = Vec::new();
    while let Some(chunk) = file.bytes.next().await {
        text.extend_from_slice(&chunk?);
        if text.len() > MAX_LIST {
            return Err(Error::BadRequest(
                "The vendor's list of digests is too long.".into(),
            ));
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A file's digest in a list: `digest  file` or `digest *file` (coreutils), `SHA256 (file) = digest` (BSD). Of lists with digests
/// of several kinds only those of the right length count; of two different ones, none.
fn digest_of(list: &str, file: &str, algorithm: Algorithm) -> Option<String> {
    let of_line = |line: &str| {
        let (digest, name) = match line.split_once(") = ") {
            Some((name, digest)) => (digest, name.split_once(" (")?.1),
            None => {
                let (digest, name) = line.split_once([' ', '\t'])?;
                (digest, name.trim_start_matches([' ', '\t', '*']))
            }
        };
        let right = digest.len() == algorithm.digits() && digest.bytes().all(|b| b.is_ascii_hexdigit());
        (right && name.trim_start_matches("./") == file).then(|| digest.to_ascii_lowercase())
    };
    let mut found = list.lines().filter_map(|line| of_line(line.trim()));
    let first = found.next()?;
    found.all(|other| other == first).then_some(first)
}

/// The digest that an entry's list has, of bytes as they pass by.
enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    fn digest(&self) -> String {
        match self {
            Hasher::Sha256(hasher) => data::hex(&hasher.clone().finalize()),
            Hasher::Sha512(hasher) => data::hex(&hasher.clone().finalize()),
        }
    }
}

/// Fetches an entry's image, and shows it in the place of the one before it.
async fn fetch(cloud: &Arc<Cloud>, entry: &CatalogueEntry, digest: String) -> Result<()> {
    let file = cloud.drivers.web.get(&entry.url).await?;
    // Of a vendor that does not say, at least this is true.
    let built = file.modified.unwrap_or_else(now).min(now());
    let image = reserve(cloud, entry, digest.clone(), built).await?;
    let id = image.id;
    let begun = limits::place(&image.owner);
    let mut upload = match begun {
        Ok(place) => Upload::of(cloud.clone(), id, place),
        Err(error) => {
            clear(cloud).await?;
            return Err(error);
        }
    };
    let hasher = Arc::new(Mutex::new(Hasher::new(entry.algorithm)));
    let hashing = hasher.clone();
    let bytes = file.bytes.map(move |chunk| {
        let chunk = chunk?;
        hashing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .update(&chunk);
        Ok::<_, Error>(chunk)
    });
    let received = match import::stage(cloud, id, file.length, bytes.boxed()).await {
        Ok(received) => {
            let found = hasher.lock().unwrap_or_else(PoisonError::into_inner).digest();
            match found == digest {
                true => Ok(received),
                false => Err(Error::BadRequest(format!(
                    "Its digest is {found}, the vendor's list says {digest}: it is not used."
                ))),
            }
        }
        Err(error) => Err(error),
    };
    let done = match received {
        Ok(received) => upload.convert(entry.disk_format, received).await,
        Err(error) => {
            upload.give_up().await;
            Err(error)
        }
    };
    match done {
        Ok(()) => show(cloud, entry, id).await,
        Err(error) => {
            clear(cloud).await?;
            Err(error)
        }
    }
}

/// `2026-11-20`
fn day(micros: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(micros.div_euclid(1_000_000));
    time.ok()
        .and_then(|time| time.format(format_description!("[year]-[month]-[day]")).ok())
        .unwrap_or_default()
}

/// The image's row, which only administrators see, and the note that it is being fetched.
async fn reserve(cloud: &Cloud, entry: &CatalogueEntry, digest: String, built: i64) -> Result<Image> {
    let (entry, id, now) = (entry.clone(), Uuid::new_v4(), now());
    cloud
        .store
        .write("image", move |conn| {
            let sql = "SELECT id FROM projects WHERE domain_id = 'default' AND name = 'service'";
            let owner: Option<String> = conn.query_row(sql, [], |row| row.get(0)).optional()?;
            let owner = owner.ok_or_else(|| Error::Unavailable("There is no project named service.".into()))?;
            conn.execute(
                "INSERT INTO images (id, owner, status, visibility, original, min_disk, min_ram, protected, hidden, tags,
                     properties, created_at, updated_at)
                 VALUES (?1, ?2, 'importing', 'private', 0, 0, 0, 0, 1, '', '{}', ?3, ?3)",
                params![id.to_string(), owner, now],
            )?;
            let mut image = load(conn, id)?;
            image.name = Some(entry.name.clone());
            image.disk_format = Some(entry.disk_format);
            image.container_format = Some("bare".into());
            image.min_disk = entry.min_disk;
            image.min_ram = entry.min_ram;
            image.properties = entry.properties.clone();
            let mut set = |key: &str, value: String| image.properties.insert(key.to_owned(), value);
            set("image_source", entry.url.clone());
            set("image_build_date", day(built));
            set("hash_algo", entry.algorithm.name().to_owned());
            set("hash_value", digest.clone());
            set("provided_until", entry.until.map_or("none".to_owned(), |until| until.to_string()));
            save(conn, &image, now)?;
            conn.execute(
                "INSERT INTO image_catalogue_images (image_id, name, digest, fetching) VALUES (?1, ?2, ?3, 1)",
                [&id.to_string(), &entry.name, &digest],
            )?;
            load(conn, id)
        })
        .await
}

/// The new image is everyone's, and the ones before it are hidden: in one write.
async fn show(cloud: &Cloud, entry: &CatalogueEntry, id: Uuid) -> Result<()> {
    let (name, now) = (entry.name.clone(), now());
    cloud
        .store
        .write("image", move |conn| {
            hide(conn, &name, now)?;
            let shown = conn.execute(
                "UPDATE images SET visibility = ?2, hidden = 0, updated_at = ?3 WHERE id = ?1 AND status = 'active'",
                params![id.to_string(), Visibility::Public.name(), now],
            )?;
            if shown == 0 {
                return Err(super::not_found(id));
            }
            conn.execute("UPDATE image_catalogue_images SET fetching = 0 WHERE image_id = ?1", [id.to_string()])?;
            Ok(())
        })
        .await
}

/// What is there of an entry is superseded.
fn hide(conn: &Connection, name: &str, now: i64) -> Result<()> {
    let of_entry = "SELECT image_id FROM image_catalogue_images
         WHERE name = ?1 AND fetching = 0 AND superseded_at IS NULL";
    conn.execute(
        &format!("UPDATE images SET hidden = 1, updated_at = ?2 WHERE id IN ({of_entry})"),
        params![name, now],
    )?;
    conn.execute(
        "UPDATE image_catalogue_images SET superseded_at = ?2
         WHERE name = ?1 AND fetching = 0 AND superseded_at IS NULL",
        params![name, now],
    )?;
    Ok(())
}

async fn supersede(cloud: &Cloud, name: &str) -> Result<()> {
    let (name, now) = (name.to_owned(), now());
    cloud
        .store
        .write("image", move |conn| hide(conn, &name, now))
        .await
}

/// Writes down how an entry is.
async fn tell(cloud: &Cloud, name: &str, state: &'static str, reason: &str, fresh: bool) -> Result<()> {
    let (name, reason, now) = (name.to_owned(), reason.to_owned(), now());
    cloud
        .store
        .write("image", move |conn| {
            conn.execute(
                "INSERT INTO image_catalogue (name, state, reason, checked_at, fresh_at)
                 VALUES (?1, ?2, ?3, ?4, CASE WHEN ?5 THEN ?4 END)
                 ON CONFLICT (name) DO UPDATE SET state = ?2, reason = ?3, checked_at = ?4,
                     fresh_at = CASE WHEN ?5 THEN ?4 ELSE fresh_at END",
                params![name, state, reason, now, fresh],
            )?;
            Ok(())
        })
        .await
}

/// What was being fetched and is no longer goes. What a catalogue no longer has is superseded; without a catalogue all stays.
async fn clear(cloud: &Cloud) -> Result<()> {
    let now = now();
    let names: Vec<String> = cloud
        .config
        .catalogue
        .entries
        .iter()
        .map(|entry| entry.name.clone())
        .collect();
    cloud
        .store
        .write("image", move |conn| {
            conn.execute(
                "UPDATE images SET status = 'pending_delete', updated_at = ?1 WHERE id IN
                 (SELECT image_id FROM image_catalogue_images WHERE fetching = 1)",
                [now],
            )?;
            conn.execute(
                "DELETE FROM image_catalogue_images WHERE fetching = 1 OR NOT EXISTS
                 (SELECT 1 FROM images WHERE id = image_id AND status != 'pending_delete')",
                [],
            )?;
            if names.is_empty() {
                return Ok(());
            }
            let mut sql = conn.prepare_cached("SELECT name FROM image_catalogue")?;
            let rows = sql.query_map([], |row| row.get::<_, String>(0))?;
            for name in rows.collect::<rusqlite::Result<Vec<_>>>()? {
                if !names.contains(&name) {
                    hide(conn, &name, now)?;
                    conn.execute("DELETE FROM image_catalogue WHERE name = ?1", [&name])?;
                }
            }
            Ok(())
        })
        .await
}

/// Superseded images go after the retention, unless a server was made of them or starts with them, or someone protected them.
async fn retire(cloud: &Cloud) -> Result<()> {
    let retention = i64::try_from(cloud.config.catalogue.retention.as_micros()).unwrap_or(i64::MAX);
    let (now, before) = (now(), now().saturating_sub(retention));
    cloud
        .store
        .write("image", move |conn| {
            let sql = "SELECT image_id FROM image_catalogue_images c WHERE superseded_at <= ?1
                 AND NOT EXISTS (SELECT 1 FROM compute_servers s WHERE s.image_id = c.image_id)";
            let mut sql = conn.prepare_cached(sql)?;
            let rows = sql.query_map([before], |row| row.get::<_, String>(0))?;
            for id in rows.collect::<rusqlite::Result<Vec<_>>>()? {
                let Ok(id) = id.parse::<Uuid>() else { continue };
                let image = load(conn, id)
                    .ok()
                    .filter(|image| image.status != Status::PendingDelete);
                let kept = match &image {
                    Some(image) => image.protected || crate::compute::boot::needs(conn, id)?,
                    None => false,
                };
                if kept {
                    continue;
                }
                if image.is_some() {
                    data::set_status(conn, id, Status::PendingDelete, now)?;
                }
                conn.execute(
                    "DELETE FROM image_catalogue_images WHERE image_id = ?1",
                    [id.to_string()],
                )?;
            }
            Ok(())
        })
        .await
}

#[cfg(test)]
mod tests;
