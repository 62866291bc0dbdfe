//! An image's bytes: they arrive in a staging file, are hashed on the way, and are converted in a jailed step.

use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use md5::Md5;
use model::disk::{Converted, ImageFormat};
use rusqlite::params;
use sha2::{Digest, Sha512};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncSeekExt, AsyncWriteExt, BufWriter};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::limits::{self, Place};
use super::{Image, Status, find, find_own, format_name, load};
use crate::identity::now;
use crate::worker::Activity;
use crate::{Cloud, Context, Error, Result};

/// Conversions at once; more wait.
const CONVERSIONS: usize = 2;
/// The disk's free space is looked at after so many bytes.
const LOOK_AFTER: u64 = 64 << 20;
/// Staged bytes that nobody imports are removed after this long, in microseconds.
const STAGED: i64 = 24 * 60 * 60 * 1_000_000;
/// How often that is looked for.
const LOOK_FOR_STAGED: Duration = Duration::from_secs(15 * 60);
/// After a deletion failed.
const RETRY: Duration = Duration::from_secs(30);
/// As [`crate::worker`] lists the loop.
const WORKER: &str = "image";

static CONVERTING: Semaphore = Semaphore::const_new(CONVERSIONS);

pub(super) fn staged(cloud: &Cloud, id: Uuid) -> PathBuf {
    cloud.config.staging_dir.join(format!("{id}.upload"))
}

/// Where an uploaded file is kept that the raw form does not begin with.
fn original(cloud: &Cloud, id: Uuid) -> PathBuf {
    cloud.config.staging_dir.join("originals").join(id.to_string())
}

/// The raw form begins with the uploaded bytes.
fn is_plain(format: ImageFormat) -> bool {
    matches!(format, ImageFormat::Raw | ImageFormat::Iso)
}

/// Takes an image's bytes and returns once it is active. However it ends, an image is not left half done.
///
/// # Errors
/// 404, 403, 409 unless it is queued, 400 for bytes that are not what they should be, 413 for too many, 503 if
/// there are too many uploads or there is no space.
pub async fn upload<S, E>(
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
    let (mut upload, format) = open(cloud, ctx, id, length).await?;
    let received = match receive(
        &staged(cloud, id),
        cloud.config.max_image_bytes,
        broken_off(bytes),
    )
    .await
    {
        // A client that has nothing to send leaves the image as it was: some send an empty file where there is none.
        Ok(received) if received.size == 0 => {
            upload.give_up().await;
            return Ok(());
        }
        Ok(received) => received,
        Err(error) => {
            upload.give_up().await;
            return Err(error);
        }
    };
    let task = tokio::spawn(upload.convert(format, received));
    task.await
        .map_err(|error| Error::Internal(format!("image conversion: {error}")))?
}

/// A place among the uploads, if there is one left for the caller's project.
pub(super) fn place(ctx: &Context) -> Result<Place> {
    limits::place(ctx.project().unwrap_or(&ctx.user_id))
}

/// Begins an upload.
pub(super) async fn open(
    cloud: &Arc<Cloud>,
    ctx: &Context,
    id: Uuid,
    length: Option<u64>,
) -> Result<(Upload, ImageFormat)> {
    ctx.require("images", "upload")?;
    let limit = cloud.config.max_image_bytes;
    if length.is_some_and(|length| length > limit) {
        return Err(too_large(limit));
    }
    // Tasks of their own: what has begun ends, also if the client goes away and this future is dropped. Then nobody
    // takes the upload over, and it puts the image back.
    let task = tokio::spawn(begin(cloud.clone(), ctx.clone(), id, length, place(ctx)?));
    task.await
        .map_err(|error| Error::Internal(format!("image upload: {error}")))?
}

/// The format of the bytes that an image waits for, before it becomes `next`.
pub(super) fn awaits_bytes(image: &Image, next: Status) -> Result<ImageFormat> {
    if image.status != Status::Queued {
        return Err(Error::Conflict(format!(
            "Image status transition from {} to {} is not allowed",
            image.status.name(),
            next.name()
        )));
    }
    let format = image.disk_format.filter(|_| image.container_format.is_some());
    format.ok_or_else(|| {
        Error::BadRequest("Properties disk_format, container_format must be set prior to saving data.".into())
    })
}

/// Puts an image into the hands of one upload.
async fn begin(
    cloud: Arc<Cloud>,
    ctx: Context,
    id: Uuid,
    length: Option<u64>,
    place: Place,
) -> Result<(Upload, ImageFormat)> {
    let (caller, now) = (ctx.user_id.clone(), now());
    let limit = cloud.config.max_project_image_bytes;
    let format = cloud
        .store
        .write(&caller, move |conn| {
            let image = find_own(conn, &ctx, id)?;
            let format = awaits_bytes(&image, Status::Saving)?;
            limits::check_bytes(conn, limit, &image.owner, id, length.unwrap_or(1))?;
            set_status(conn, id, Status::Saving, now)?;
            Ok::<_, Error>(format)
        })
        .await?;
    Ok((Upload::of(cloud, id, place), format))
}

/// The bytes that arrived.
pub(super) struct Received {
    pub(super) size: u64,
    pub(super) md5: String,
    pub(super) sha512: String,
}

/// What a client's broken connection is.
pub(super) fn broken_off<S, E>(bytes: S) -> impl Stream<Item = Result<Bytes>> + Send + Unpin
where
    S: Stream<Item = std::result::Result<Bytes, E>> + Send + Unpin,
    E: std::fmt::Display,
{
    bytes.map(|chunk| chunk.map_err(|error| Error::BadRequest(format!("The upload broke off: {error}"))))
}

pub(super) async fn receive<S>(path: &Path, limit: u64, mut bytes: S) -> Result<Received>
where
    S: Stream<Item = Result<Bytes>> + Send + Unpin,
{
    if let Some(dir) = path.parent() {
        tokio::fs::create_dir_all(dir)
            .await
            .map_err(|error| storage(path, &error))?;
    }
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .await
        .map_err(|error| storage(path, &error))?;
    limits::check_space(path)?;
    let mut file = BufWriter::with_capacity(256 * 1024, file);
    let mut look = LOOK_AFTER;
    let (mut size, mut md5, mut sha512) = (0_u64, Md5::new(), Sha512::new());
    while let Some(chunk) = bytes.next().await {
        let chunk = chunk?;
        size += chunk.len() as u64;
        if size > limit {
            return Err(too_large(limit));
        }
        if size >= look {
            limits::check_space(path)?;
            look = size + LOOK_AFTER;
        }
        md5.update(&chunk);
        sha512.update(&chunk);
        file.write_all(&chunk)
            .await
            .map_err(|error| storage(path, &error))?;
    }
    file.flush().await.map_err(|error| storage(path, &error))?;
    Ok(Received {
        size,
        md5: hex(&md5.finalize()),
        sha512: hex(&sha512.finalize()),
    })
}

pub(super) fn too_large(limit: u64) -> Error {
    Error::TooLarge(format!(
        "Denying attempt to upload image larger than {limit} bytes."
    ))
}

fn storage(path: &Path, error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::StorageFull {
        tracing::error!(path = %path.display(), "no space for uploaded images: free some on this disk");
        return Error::Unavailable("There is not enough disk space on the image storage media.".into());
    }
    Error::Internal(format!("{}: {error}", path.display()))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

pub(super) fn set_status(conn: &rusqlite::Connection, id: Uuid, status: Status, now: i64) -> Result<()> {
    let sql = "UPDATE images SET status = ?2, updated_at = ?3 WHERE id = ?1";
    conn.execute(sql, params![id.to_string(), status.name(), now])?;
    Ok(())
}

/// An image between `queued` and `active`. Dropped before its end, it puts everything back.
pub(super) struct Upload {
    cloud: Arc<Cloud>,
    id: Uuid,
    pub(super) done: bool,
    _place: Place,
}

impl Upload {
    /// One of an image that is this one's to convert.
    pub(super) fn of(cloud: Arc<Cloud>, id: Uuid, place: Place) -> Upload {
        Upload {
            cloud,
            id,
            done: false,
            _place: place,
        }
    }

    pub(super) fn cloud(&self) -> &Arc<Cloud> {
        &self.cloud
    }

    pub(super) fn id(&self) -> Uuid {
        self.id
    }

    /// Puts everything back.
    pub(super) async fn give_up(&mut self) {
        put_back(&self.cloud, self.id).await;
        self.done = true;
    }

    pub(super) async fn convert(mut self, format: ImageFormat, received: Received) -> Result<()> {
        let (cloud, id) = (self.cloud.clone(), self.id);
        let result = import(&cloud, id, format, &received).await;
        let result = match result {
            Ok(converted) => finish(&cloud, id, received, converted, !is_plain(format)).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            let _ = cloud.drivers.disks.delete_image(id).await;
            put_back(&cloud, id).await;
        }
        self.done = true;
        result
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        // The client went away. (Without a runtime the daemon is ending, and puts things
        // back when it starts again.)
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (cloud, id) = (self.cloud.clone(), self.id);
            runtime.spawn(async move { put_back(&cloud, id).await });
        }
    }
}

async fn import(cloud: &Cloud, id: Uuid, format: ImageFormat, received: &Received) -> Result<Converted> {
    let importing = cloud.store.write("image", move |conn| {
        let image = load(conn, id)?;
        set_status(conn, image.id, Status::Importing, now())
    });
    importing.await?;
    let path = staged(cloud, id);
    if !is_plain(format) {
        // A second name: the conversion removes the first.
        let kept = original(cloud, id);
        let dir = kept.parent().unwrap_or(Path::new("/")).to_owned();
        tokio::fs::create_dir_all(&dir)
            .await
            .map_err(|error| storage(&dir, &error))?;
        let _ = tokio::fs::remove_file(&kept).await;
        tokio::fs::hard_link(&path, &kept)
            .await
            .map_err(|error| storage(&kept, &error))?;
        let file = File::open(&kept).await.map_err(|error| storage(&kept, &error))?;
        file.sync_all().await.map_err(|error| storage(&kept, &error))?;
    }
    let _permit = CONVERTING
        .acquire()
        .await
        .map_err(|error| Error::Internal(error.to_string()))?;
    let converted = cloud.drivers.disks.import_image(id, &path, format).await?;
    if converted.format != format && !(is_plain(format) && is_plain(converted.format)) {
        return Err(Error::BadRequest(format!(
            "The image's bytes are {}, its disk_format says {}.",
            format_name(converted.format),
            format_name(format)
        )));
    }
    if is_plain(format) && converted.virtual_size < received.size {
        return Err(Error::Internal(format!(
            "image {id} lost bytes in its conversion"
        )));
    }
    Ok(converted)
}

async fn finish(
    cloud: &Cloud,
    id: Uuid,
    received: Received,
    converted: Converted,
    original: bool,
) -> Result<()> {
    let size = i64::try_from(received.size).map_err(|_| Error::Internal("an image's size".into()))?;
    let limit = cloud.config.max_project_image_bytes;
    let virtual_size =
        i64::try_from(converted.virtual_size).map_err(|_| Error::Internal("an image's size".into()))?;
    let now = now();
    cloud
        .store
        .write("image", move |conn| {
            let image = load(conn, id)?;
            limits::check_bytes(conn, limit, &image.owner, id, received.size)?;
            conn.execute(
                "UPDATE images SET status = 'active', size = ?2, checksum = ?3, os_hash_value = ?4,
                     virtual_size = ?5, original = ?6, updated_at = ?7 WHERE id = ?1",
                params![
                    id.to_string(),
                    size,
                    received.md5,
                    received.sha512,
                    virtual_size,
                    original,
                    now
                ],
            )?;
            super::import::mark_end(conn, id, true)
        })
        .await
}

/// After a failed upload: `queued` again, or gone if it was deleted meanwhile.
pub(super) async fn put_back(cloud: &Cloud, id: Uuid) {
    let _ = tokio::fs::remove_file(staged(cloud, id)).await;
    let _ = tokio::fs::remove_file(original(cloud, id)).await;
    let now = now();
    let queued = cloud.store.write("image", move |conn| {
        let sql = "UPDATE images SET status = 'queued', updated_at = ?2, size = NULL, checksum = NULL,
             os_hash_value = NULL WHERE id = ?1 AND status IN ('saving', 'uploading', 'importing')";
        let put_back = conn.execute(sql, params![id.to_string(), now])? > 0;
        super::import::mark_end(conn, id, false)?;
        Ok::<_, Error>(put_back)
    });
    let done = match queued.await {
        Ok(true) => Ok(()),
        Ok(false) => purge(cloud, id).await,
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        tracing::error!(image = %id, %error, "a failed upload could not be cleared up; the next start does it");
    }
}

/// Removes what is left of an image that is `pending_delete`.
pub(super) async fn purge(cloud: &Cloud, id: Uuid) -> Result<()> {
    let going = cloud.store.read(move |conn| {
        let mut sql =
            conn.prepare_cached("SELECT 1 FROM images WHERE id = ?1 AND status = 'pending_delete'")?;
        Ok::<_, Error>(sql.exists([id.to_string()])?)
    });
    if !going.await? {
        return Ok(());
    }
    cloud.drivers.disks.delete_image(id).await?;
    let _ = tokio::fs::remove_file(original(cloud, id)).await;
    let _ = tokio::fs::remove_file(staged(cloud, id)).await;
    cloud
        .store
        .write("image", move |conn| {
            conn.execute("DELETE FROM image_members WHERE image_id = ?1", [id.to_string()])?;
            conn.execute(
                "DELETE FROM images WHERE id = ?1 AND status = 'pending_delete'",
                [id.to_string()],
            )?;
            Ok(())
        })
        .await
}

/// Removes what every image that is `pending_delete` left; all are tried, the first failure is told.
async fn purge_all(cloud: &Cloud) -> Result<()> {
    let going = cloud.store.read(|conn| {
        let mut sql = conn.prepare_cached("SELECT id FROM images WHERE status = 'pending_delete'")?;
        let rows = sql.query_map([], |row| row.get::<_, String>(0))?;
        Ok::<_, Error>(rows.collect::<rusqlite::Result<Vec<_>>>()?)
    });
    let mut failed = Ok(());
    for id in going.await?.iter().filter_map(|id| id.parse().ok()) {
        failed = failed.and(purge(cloud, id).await);
    }
    failed
}

/// Starts the loop that removes what a deletion could not remove at once; it ends when the task is aborted.
pub fn spawn(cloud: Arc<Cloud>) -> JoinHandle<()> {
    let mut events = cloud.store.subscribe();
    tokio::spawn(async move {
        loop {
            match purge_all(&cloud).await {
                Ok(()) => {
                    cloud.workers.set(WORKER, Activity::Idle);
                    loop {
                        match tokio::time::timeout(LOOK_FOR_STAGED, events.recv()).await {
                            Ok(Ok(event)) if !event.touches("images") => {}
                            Ok(Ok(_) | Err(RecvError::Lagged(_))) => break,
                            Ok(Err(RecvError::Closed)) => return,
                            Err(_) => {
                                super::staging::expire(&cloud, now() - STAGED).await;
                                if let Err(error) = super::tasks::expire(&cloud).await {
                                    tracing::warn!(%error, "old tasks could not be forgotten");
                                }
                            }
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a deleted image's bytes could not be removed");
                    let next_try = SystemTime::now() + RETRY;
                    cloud.workers.set(
                        WORKER,
                        Activity::Failed {
                            error: error.to_string(),
                            next_try,
                        },
                    );
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    })
}

/// At the daemon's start, before it takes requests: uploads that the last one did not end are `queued` again. What was
/// staged as a whole stays.
///
/// # Errors
/// If the store cannot be read or written, or bytes cannot be removed.
pub async fn recover(cloud: &Cloud) -> Result<()> {
    let rows: Vec<String> = cloud
        .store
        .read(|conn| {
            let mut sql = conn.prepare("SELECT id FROM images WHERE status IN ('saving', 'importing')")?;
            let rows = sql.query_map([], |row| row.get(0))?;
            Ok::<_, Error>(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await?;
    for id in rows.iter().filter_map(|id| id.parse().ok()) {
        cloud.drivers.disks.delete_image(id).await?;
        put_back(cloud, id).await;
    }
    super::tasks::recover(cloud).await?;
    let staged = super::staging::recover(cloud).await?;
    // What no row knows of.
    let mut files = match tokio::fs::read_dir(&cloud.config.staging_dir).await {
        Ok(files) => files,
        Err(_) => return Ok(()),
    };
    while let Ok(Some(file)) = files.next_entry().await {
        if file.path().extension().is_some_and(|end| end == "upload") && !staged.contains(&file.path()) {
            let _ = tokio::fs::remove_file(file.path()).await;
        }
    }
    Ok(())
}

/// A file that gives exactly the uploaded bytes, as far as its first `size`.
pub struct Download {
    /// The image.
    pub image: Image,
    /// How many bytes there are in all.
    pub size: u64,
    /// The file, at its beginning.
    pub file: File,
}

/// The bytes of an image; `None` while it has none.
///
/// # Errors
/// 404, 403 while it is deactivated.
pub async fn download(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<Option<Download>> {
    ctx.require("images", "download")?;
    let caller = ctx.clone();
    let image: Image = cloud.store.read(move |conn| find(conn, &caller, id)).await?;
    match image.status {
        Status::Active => {}
        Status::Deactivated if ctx.is_admin() => {}
        Status::Deactivated => {
            return Err(Error::Forbidden(
                "The requested image has been deactivated. Image data download is forbidden.".into(),
            ));
        }
        _ => return Ok(None),
    }
    let path = if image.original {
        original(cloud, id)
    } else {
        cloud.drivers.disks.image_path(id)
    };
    let size = image.size.unwrap_or(0);
    if size == 0 {
        // Of a server that boots from a volume: it names a snapshot, and has no bytes of its own.
        return Ok(None);
    }
    let file = File::open(&path).await.map_err(|error| storage(&path, &error))?;
    Ok(Some(Download { image, size, file }))
}

impl Download {
    /// Goes to this byte.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub async fn seek(&mut self, to: u64) -> Result<()> {
        let done = self.file.seek(SeekFrom::Start(to)).await;
        done.map(|_| ())
            .map_err(|error| Error::Internal(format!("image {}: {error}", self.image.id)))
    }
}
