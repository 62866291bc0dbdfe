//! What compute asks before it makes a server from an image.

use rusqlite::Connection;
use uuid::Uuid;

use super::{Image, Status, find};
use crate::{Cloud, Context, Error, Result};

/// The image, if the caller sees it and it is complete; for use inside a transaction.
///
/// # Errors
/// 400 in Nova's words if there is none, or it is not active.
pub fn find_for_boot(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Image> {
    let image = find(conn, ctx, id).map_err(|error| match error.kind() {
        Some(crate::error::Kind::NotFound) => Error::BadRequest(format!("Can not find requested image {id}")),
        _ => error,
    })?;
    if image.status != Status::Active {
        let text = format!(
            "Image {id} could not be used: it is {}, not active.",
            image.status.name()
        );
        return Err(Error::BadRequest(text));
    }
    Ok(image)
}

/// The image, if the caller sees it and it is complete.
///
/// # Errors
/// As [`find_for_boot`].
pub async fn get_for_boot(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<Image> {
    let ctx = ctx.clone();
    cloud.store.read(move |conn| find_for_boot(conn, &ctx, id)).await
}
