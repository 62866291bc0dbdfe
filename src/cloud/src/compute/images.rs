//! What compute needs to know of an image.

use rusqlite::Connection;
use uuid::Uuid;

use crate::{Context, Error, Result};

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
    let _ = (conn, ctx);
    Err(Error::BadRequest(format!("Can not find requested image {id}")))
}
