//! What compute needs to know of an image.

use rusqlite::Connection;
use uuid::Uuid;

use crate::{Context, Result};

/// An image that a server can be made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) id: Uuid,
    /// What the guest sees, in bytes.
    pub(super) virtual_size: u64,
    /// In GiB.
    pub(super) min_disk: u64,
    /// In MiB.
    pub(super) min_ram: u64,
}

/// The image of this id, if the caller may use it and it is complete.
pub(super) fn find(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Image> {
    let image = crate::image::find_for_boot(conn, ctx, id)?;
    Ok(Image {
        id: image.id,
        virtual_size: image.virtual_size.or(image.size).unwrap_or_default(),
        min_disk: image.min_disk.into(),
        min_ram: image.min_ram.into(),
    })
}
