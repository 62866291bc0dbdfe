//! Attachments as clients make them by the API (3.27 and later).

use rusqlite::Connection;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::attachments::{self, Attachment};
use super::row;
use super::status::AttachStatus;
use crate::{Cloud, Context, Error, Result};

fn find(conn: &Connection, ctx: &Context, id: &str) -> Result<Attachment> {
    let missing = || Error::Named {
        name: "VolumeAttachmentNotFound",
        kind: crate::error::Kind::NotFound,
        message: format!("Volume attachment could not be found with filter: attachment_id = {id}."),
    };
    let uuid = row::parse_id("Volume attachment", id).map_err(|_| missing())?;
    attachments::get(conn, uuid)?
        .filter(|attachment| ctx.sees(&attachment.project_id))
        .ok_or_else(missing)
}

/// One attachment.
///
/// # Errors
/// 404.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Attachment> {
    ctx.require("volume_attachments", "show")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    cloud.store.read(move |conn| find(conn, &ctx, &id)).await
}

/// Keeps a volume for a server; with a connector the attachment begins at once.
///
/// # Errors
/// 404, also for a server that the caller does not see; 400 in the wrong state.
pub async fn create(
    cloud: &Cloud,
    ctx: &Context,
    volume: &str,
    server: Option<Uuid>,
    connector: Option<Map<String, Value>>,
    mode: Option<String>,
) -> Result<Attachment> {
    ctx.require("volume_attachments", "create")?;
    let (caller, volume) = (ctx.clone(), volume.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let volume = row::find_text(conn, &caller, &volume)?;
            if volume.read_only == Some(true) && mode.as_deref() == Some("rw") {
                return Err(Error::BadRequest(format!(
                    "Invalid volume attaching mode 'rw' for read-only volume {}.",
                    volume.id
                )));
            }
            if let Some(server) = server {
                crate::compute::servers::find(conn, &caller, &server.to_string())?;
            }
            let made = attachments::reserve(conn, &caller, volume.id, server)?;
            attachments::name_server(conn, made.id, server, mode.as_deref() == Some("ro"))?;
            if let Some(connector) = &connector {
                attachments::attaching(conn, made.id, Some(connector.clone()))?;
            }
            find(conn, &caller, &made.id.to_string())
        })
        .await
}

async fn change<F>(cloud: &Cloud, ctx: &Context, action: &str, id: &str, change: F) -> Result<Attachment>
where
    F: Fn(&Connection, &Attachment) -> Result<()> + Send + 'static,
{
    ctx.require("volume_attachments", action)?;
    let (caller, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let attachment = find(conn, &caller, &id)?;
            change(conn, &attachment)?;
            // As it is now; of one that was removed, as it was.
            Ok(attachments::get(conn, attachment.id)?.unwrap_or(attachment))
        })
        .await
}

/// The server's side is known.
///
/// # Errors
/// 404, 400.
pub async fn update(
    cloud: &Cloud,
    ctx: &Context,
    id: &str,
    connector: Map<String, Value>,
) -> Result<Attachment> {
    change(cloud, ctx, "update", id, move |conn, attachment| {
        attachments::attaching(conn, attachment.id, Some(connector.clone()))
    })
    .await
}

/// The server has the volume.
///
/// # Errors
/// 404, 400 if it was only reserved.
pub async fn complete(cloud: &Cloud, ctx: &Context, id: &str) -> Result<()> {
    change(cloud, ctx, "update", id, |conn, attachment| {
        if attachment.status == AttachStatus::Reserved && attachment.connector.is_none() {
            return Err(Error::BadRequest(format!(
                "Invalid volume: Attachment {} has no connector yet.",
                attachment.id
            )));
        }
        attachments::attached(conn, attachment.id, None, None)
    })
    .await
    .map(drop)
}

/// Ends an attachment. One that a server of this cloud really has, whatever its state, is compute's to end.
///
/// # Errors
/// 404, 409 for a volume that a server has.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Vec<Attachment>> {
    let gone = change(cloud, ctx, "delete", id, |conn, attachment| {
        attachments::expect_free(conn, attachment.volume)?;
        attachments::remove(conn, attachment.id)
    })
    .await?;
    cloud
        .store
        .read(move |conn| attachments::of_volume(conn, gone.volume))
        .await
}
