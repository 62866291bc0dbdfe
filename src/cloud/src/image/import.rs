//! Imports: an image's bytes are taken from where they were staged, or from the web, and converted. Both return at once; a
//! task tells how it goes on.
//!
//! `web-download` is an upload that the cloud sends itself: it counts among the project's uploads, and goes through the same
//! staging file, limits, digests and conversion. What is fetched is in [`crate::driver::Web`]'s hands.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use model::disk::ImageFormat;
use rusqlite::{Connection, params};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::data::{self, Received, Upload};
use super::limits::{self, Place};
use super::tasks::{self, Kind};
use super::{Image, Status, find_own, update};
use crate::identity::now;
use crate::{Cloud, Context, Error, Result};

/// The only store, as clients name it.
pub const STORE: &str = "local";
/// How often a download looks whether its image is still there.
const LOOK: Duration = Duration::from_secs(2);

/// Where the bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// `glance-direct`: they were staged.
    Staged,
    /// `web-download`: from this URI.
    Web(String),
}

/// The methods' names.
pub const METHODS: [&str; 2] = ["glance-direct", "web-download"];

/// Begins an import, and returns its task. `input` is what the task shows of the request.
///
/// # Errors
/// 404, 403, 400, 409 unless the image waits for it, 503 if there are too many uploads.
pub async fn import(
    cloud: &Arc<Cloud>,
    ctx: &Context,
    id: Uuid,
    method: Method,
    input: Value,
) -> Result<Uuid> {
    ctx.require("images", "upload")?;
    if let Method::Web(uri) = &method {
        cloud.drivers.web.check(uri)?;
    }
    let begun = begin(
        cloud.clone(),
        ctx.clone(),
        id,
        method,
        input,
        Kind::Import,
        data::place(ctx)?,
    );
    spawned(begun).await
}

/// Makes an image of these attributes and fetches it from the web; if that fails, the image goes again.
///
/// # Errors
/// As [`import`] and [`update::create`].
pub async fn create(
    cloud: &Arc<Cloud>,
    ctx: &Context,
    attributes: Map<String, Value>,
    uri: String,
    input: Value,
) -> Result<Uuid> {
    ctx.require("image_tasks", "create")?;
    cloud.drivers.web.check(&uri)?;
    let place = data::place(ctx)?;
    let (cloud, ctx) = (cloud.clone(), ctx.clone());
    spawned(async move {
        let image = update::create(&cloud, &ctx, attributes).await?.id;
        let begun = begin(
            cloud.clone(),
            ctx,
            image,
            Method::Web(uri),
            input,
            Kind::Create,
            place,
        )
        .await;
        if begun.is_err() {
            discard(&cloud, image).await;
        }
        begun
    })
    .await
}

/// In a task of its own: what has begun goes on, also if the client goes away and this future is dropped.
async fn spawned(begun: impl Future<Output = Result<Uuid>> + Send + 'static) -> Result<Uuid> {
    let begun = tokio::spawn(begun).await;
    begun.map_err(|error| Error::Internal(format!("image import: {error}")))?
}

async fn begin(
    cloud: Arc<Cloud>,
    ctx: Context,
    id: Uuid,
    method: Method,
    input: Value,
    kind: Kind,
    place: Place,
) -> Result<Uuid> {
    let (caller, limit) = (ctx.user_id.clone(), cloud.config.max_project_image_bytes);
    let staged = method == Method::Staged;
    let (task, format, received) = cloud
        .store
        .write(&caller, move |conn| {
            let image = find_own(conn, &ctx, id)?;
            let (format, received) = match staged {
                true => staged_bytes(&image)?,
                false => (data::awaits_bytes(&image, Status::Importing)?, None),
            };
            limits::check_bytes(conn, limit, &image.owner, id, image.size.unwrap_or(1))?;
            data::set_status(conn, id, Status::Importing, now())?;
            mark(conn, id, STORE, "")?;
            let new = tasks::New {
                kind,
                owner: &image.owner,
                image: id,
                input: &input,
            };
            Ok::<_, Error>((tasks::begin(conn, &ctx, &new)?, format, received))
        })
        .await?;
    let upload = Upload::of(cloud.clone(), id, place);
    tokio::spawn(async move {
        let done = match (method, received) {
            (Method::Web(uri), _) => from_web(upload, format, &uri).await,
            (Method::Staged, Some(received)) => upload.convert(format, received).await,
            (Method::Staged, None) => Err(Error::Internal("nothing is staged".into())),
        };
        if let Err(error) = &done {
            tracing::info!(image = %id, %error, "an import has failed");
            if kind == Kind::Create {
                discard(&cloud, id).await;
            }
        }
        let result = match kind {
            Kind::Import => json!(null),
            Kind::Create => json!({"image_id": id}),
        };
        tasks::end(&cloud, task, done.map(|()| result)).await;
    });
    Ok(task)
}

/// What was staged.
fn staged_bytes(image: &Image) -> Result<(ImageFormat, Option<Received>)> {
    if image.status != Status::Uploading {
        return Err(Error::Conflict(
            "Image needs to be staged before 'glance-direct' method can be used".into(),
        ));
    }
    let broken = || {
        Error::Internal(format!(
            "image {} was staged without its size or digests",
            image.id
        ))
    };
    let received = Received {
        size: image.size.ok_or_else(broken)?,
        md5: image.checksum.clone().ok_or_else(broken)?,
        sha512: image.os_hash_value.clone().ok_or_else(broken)?,
    };
    Ok((image.disk_format.ok_or_else(broken)?, Some(received)))
}

async fn from_web(mut upload: Upload, format: ImageFormat, uri: &str) -> Result<()> {
    let (cloud, id) = (upload.cloud().clone(), upload.id());
    let received = tokio::select! {
        received = fetch(&cloud, id, uri) => received,
        () = gone(&cloud, id) => Err(super::not_found(id)),
    };
    match received {
        Ok(received) => upload.convert(format, received).await,
        Err(error) => {
            upload.give_up().await;
            Err(error)
        }
    }
}

/// Fetches an image's bytes into its staging file.
async fn fetch(cloud: &Cloud, id: Uuid, uri: &str) -> Result<Received> {
    let (length, bytes) = open(cloud, uri).await?;
    stage(cloud, id, length, bytes).await
}

/// A file of the web: how long it is, and its bytes.
pub(super) async fn open(
    cloud: &Cloud,
    uri: &str,
) -> Result<(Option<u64>, BoxStream<'static, Result<Bytes>>)> {
    let file = cloud.drivers.web.get(uri).await?;
    let bytes = file.bytes.map(|chunk| chunk.map_err(Error::from));
    Ok((file.length, bytes.boxed()))
}

/// Takes the bytes of a file of the web into an image's staging file: all of them, and no more than may be.
pub(super) async fn stage(
    cloud: &Cloud,
    id: Uuid,
    length: Option<u64>,
    bytes: BoxStream<'static, Result<Bytes>>,
) -> Result<Received> {
    let limit = cloud.config.max_image_bytes;
    if length.is_some_and(|length| length > limit) {
        return Err(data::too_large(limit));
    }
    if let Some(length) = length {
        let total = cloud.config.max_project_image_bytes;
        let checked = cloud.store.read(move |conn| {
            let owner = super::load(conn, id)?.owner;
            limits::check_bytes(conn, total, &owner, id, length)
        });
        checked.await?;
    }
    let received = data::receive(&data::staged(cloud, id), limit, bytes).await?;
    match length {
        _ if received.size == 0 => Err(Error::BadRequest("The file has no bytes.".into())),
        Some(length) if length != received.size => Err(Error::BadRequest(format!(
            "The file has {} bytes; {length} were announced.",
            received.size
        ))),
        _ => Ok(received),
    }
}

/// Comes back when an image is no longer being imported: someone has deleted it.
pub(super) async fn gone(cloud: &Cloud, id: Uuid) {
    loop {
        tokio::time::sleep(LOOK).await;
        let there = cloud.store.read(move |conn| {
            let mut sql =
                conn.prepare_cached("SELECT 1 FROM images WHERE id = ?1 AND status = 'importing'")?;
            Ok::<_, Error>(sql.exists([id.to_string()])?)
        });
        if matches!(there.await, Ok(false)) {
            return;
        }
    }
}

/// An image that a task made and could not fill.
async fn discard(cloud: &Cloud, id: Uuid) {
    let going = cloud.store.write("image", move |conn| {
        conn.execute(
            "UPDATE images SET status = 'pending_delete', updated_at = ?2 WHERE id = ?1 AND status = 'queued'",
            params![id.to_string(), now()],
        )?;
        Ok::<_, Error>(())
    });
    let done = match going.await {
        Ok(()) => data::purge(cloud, id).await,
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        tracing::warn!(image = %id, %error, "an image that could not be fetched is still there");
    }
}

/// Says in an image's properties, as Glance does, what an import is at, and where it has failed.
fn mark(conn: &Connection, id: Uuid, importing: &str, failed: &str) -> Result<()> {
    let sql = "UPDATE images SET properties = json_set(properties, '$.os_glance_importing_to_stores', ?2,
         '$.os_glance_failed_import', ?3) WHERE id = ?1";
    conn.prepare_cached(sql)?
        .execute(params![id.to_string(), importing, failed])?;
    Ok(())
}

/// An import, if this image is in one, has ended.
pub(super) fn mark_end(conn: &Connection, id: Uuid, done: bool) -> Result<()> {
    let sql = "SELECT 1 FROM images WHERE id = ?1
         AND json_extract(properties, '$.os_glance_importing_to_stores') != ''";
    match conn.prepare_cached(sql)?.exists([id.to_string()])? {
        true => mark(conn, id, "", if done { "" } else { STORE }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;
