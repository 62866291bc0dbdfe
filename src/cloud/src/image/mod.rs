//! Images (Glance's rules).
//!
//! ```text
//!            stage                    import
//!  queued ───────────▶ uploading ──────────────┐
//!    │                                         ▼
//!    │       upload begins       all bytes are there        converted
//!  queued ─────────────────▶ saving ───────────────▶ importing ───────────▶ active ◀──▶ deactivated
//!    │  ▲                       │                        ▲ │                  │
//!    └──┼───── web-download ────┼────────────────────────┘ │                  │
//!       └── it breaks off, is too large, is hostile ───────┘                  │ delete (from every state)
//!                                                                             ▼
//!                                                         pending_delete, which no one sees, and gone
//! ```
//!
//! Whoever moves an image to `saving` owns it until it is `active` or `queued` again: see [`data`].
//!
//! **What a download gives.** Guests boot from a raw form, made on arrival in a jailed step. `size`, `checksum`,
//! `os_hash_value` and `disk_format` describe the bytes that were uploaded, and a download gives exactly these: a
//! raw or ISO image's raw form begins with them; the file of any other format is kept beside it.

pub mod boot;
pub mod catalogue;
pub mod data;
pub(crate) mod from_volume;
pub mod import;
mod limits;
pub mod list;
pub mod members;
pub mod metadefs;
pub mod properties;
pub mod snapshots;
pub mod staging;
pub mod tasks;
pub mod update;

use std::collections::{BTreeMap, BTreeSet};

use model::disk::ImageFormat;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use crate::policy::{Rule, Who, rule};
use crate::{Cloud, Context, Error, Result};
pub use boot::{find_for_boot, get_for_boot};
pub use data::{recover, spawn};

/// Who may do what. That an image is the caller's own, or is seen by it, each function checks beside.
pub const POLICY: &[Rule] = &[
    rule("images", "list", Who::Reader),
    rule("images", "show", Who::Reader),
    rule("images", "download", Who::Reader),
    rule("images", "create", Who::Member),
    rule("images", "upload", Who::Member),
    rule("images", "update", Who::Member),
    rule("images", "delete", Who::Member),
    rule("images", "deactivate", Who::Member),
    rule("images", "reactivate", Who::Member),
    rule("images", "publicize", Who::Admin),
    rule("images", "change_owner", Who::Admin),
    rule("metadefs", "list", Who::Reader),
    rule("metadefs", "show", Who::Reader),
    rule("metadefs", "create", Who::Admin),
    rule("metadefs", "update", Who::Admin),
    rule("metadefs", "delete", Who::Admin),
    rule("image_catalogue", "list", Who::Admin),
    rule("image_stores", "detail", Who::Admin),
    rule("images", "usage", Who::Reader),
    rule("image_tasks", "list", Who::Admin),
    rule("image_tasks", "show", Who::Admin),
    rule("image_tasks", "create", Who::Admin),
    rule("image_members", "list", Who::Reader),
    rule("image_members", "show", Who::Reader),
    rule("image_members", "create", Who::Member),
    rule("image_members", "update", Who::Member),
    rule("image_members", "delete", Who::Member),
];

/// Tables.
pub const SCHEMA: &str = include_str!("schema.sql");
/// Tasks, which came later.
pub const SCHEMA_TASKS: &str = include_str!("schema_tasks.sql");
/// The catalogue of vendors' images.
pub const SCHEMA_CATALOGUE: &str = include_str!("schema_catalogue.sql");
/// Metadata definitions.
pub const SCHEMA_METADEFS: &str = include_str!("schema_metadefs.sql");

/// The most images that one project may own.
pub const MAX_PER_PROJECT: i64 = 1000;

/// Where an image is in its life; see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// It waits for its bytes.
    Queued,
    /// They arrive.
    Saving,
    /// They are there, and wait for the word to be converted.
    Uploading,
    /// They are converted.
    Importing,
    /// Servers can be made from it.
    Active,
    /// Its use was stopped; only administrators get its bytes.
    Deactivated,
    /// It goes.
    PendingDelete,
}

impl Status {
    const ALL: [(Status, &'static str); 7] = [
        (Status::Queued, "queued"),
        (Status::Saving, "saving"),
        (Status::Uploading, "uploading"),
        (Status::Importing, "importing"),
        (Status::Active, "active"),
        (Status::Deactivated, "deactivated"),
        (Status::PendingDelete, "pending_delete"),
    ];

    /// As Glance writes it.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(status, _)| *status == self)
            .map_or("", |(_, name)| name)
    }

    fn parse(name: &str) -> Option<Status> {
        Self::ALL
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(status, _)| *status)
    }
}

/// Who sees an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Visibility {
    /// Everyone.
    Public,
    /// Its owner.
    Private,
    /// Its owner and its members.
    Shared,
    /// Everyone who knows its id.
    Community,
}

impl Visibility {
    const ALL: [(Visibility, &'static str); 4] = [
        (Visibility::Public, "public"),
        (Visibility::Private, "private"),
        (Visibility::Shared, "shared"),
        (Visibility::Community, "community"),
    ];

    /// As Glance writes it.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(visibility, _)| *visibility == self)
            .map_or("", |(_, name)| name)
    }

    /// The visibility of this name.
    ///
    /// # Errors
    /// 400.
    pub fn parse(name: &str) -> Result<Visibility> {
        let found = Self::ALL
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(visibility, _)| *visibility);
        found.ok_or_else(|| Error::BadRequest(format!("Invalid visibility value: {name}")))
    }
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its id.
    pub id: Uuid,
    /// The project that owns it.
    pub owner: String,
    /// Its name; many may have the same.
    pub name: Option<String>,
    /// Where it is in its life.
    pub status: Status,
    /// Who sees it.
    pub visibility: Visibility,
    /// The format of the uploaded bytes.
    pub disk_format: Option<ImageFormat>,
    /// `bare`, once it is set.
    pub container_format: Option<String>,
    /// Uploaded bytes.
    pub size: Option<u64>,
    /// Their MD5 in hexadecimal digits, which old clients compare.
    pub checksum: Option<String>,
    /// Their SHA-512 in hexadecimal digits.
    pub os_hash_value: Option<String>,
    /// What a guest sees, in bytes.
    pub virtual_size: Option<u64>,
    /// The uploaded bytes are kept beside the raw form.
    pub original: bool,
    /// The smallest root disk in GiB.
    pub min_disk: u32,
    /// The smallest memory in MiB.
    pub min_ram: u32,
    /// It cannot be deleted.
    pub protected: bool,
    /// Lists leave it out.
    pub hidden: bool,
    /// Short texts to find it by.
    pub tags: BTreeSet<String>,
    /// Whatever else its owner says of it.
    pub properties: BTreeMap<String, String>,
    /// Microseconds since 1970.
    pub created_at: i64,
    /// Microseconds since 1970.
    pub updated_at: i64,
}

/// Formats by the names that Glance has for them.
pub const FORMATS: [(ImageFormat, &str); 6] = [
    (ImageFormat::Raw, "raw"),
    (ImageFormat::Qcow2, "qcow2"),
    (ImageFormat::Iso, "iso"),
    (ImageFormat::Vmdk, "vmdk"),
    (ImageFormat::Vhd, "vhd"),
    (ImageFormat::Vhdx, "vhdx"),
];

/// Glance's name of a format.
pub fn format_name(format: ImageFormat) -> &'static str {
    FORMATS
        .iter()
        .find(|(known, _)| *known == format)
        .map_or("raw", |(_, name)| name)
}

/// The format of this name.
///
/// # Errors
/// 400 that names those there are.
pub fn parse_format(name: &str) -> Result<ImageFormat> {
    let found = FORMATS
        .iter()
        .find(|(_, known)| *known == name)
        .map(|(format, _)| *format);
    found.ok_or_else(|| {
        let text = format!(
            "Invalid disk format '{name}' for image. This cloud takes {}.",
            FORMATS.map(|(_, known)| known).join(", ")
        );
        Error::BadRequest(text)
    })
}

impl Image {
    /// It belongs to the project that the caller works for.
    fn is_own(&self, ctx: &Context) -> bool {
        ctx.project().is_ok_and(|project| project == self.owner)
    }

    /// The caller may see it, given its own membership of it.
    fn is_seen(&self, ctx: &Context, member: Option<members::Consent>) -> bool {
        ctx.is_admin()
            || self.is_own(ctx)
            || match self.visibility {
                Visibility::Public | Visibility::Community => true,
                Visibility::Shared => member.is_some(),
                Visibility::Private => false,
            }
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Image> {
    let bad = |text: String| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, text.into());
    let text = |column: &str| row.get::<_, String>(column);
    let (id, status, visibility) = (text("id")?, text("status")?, text("visibility")?);
    let format: Option<String> = row.get("disk_format")?;
    Ok(Image {
        id: id.parse().map_err(|_| bad(id.clone()))?,
        owner: row.get("owner")?,
        name: row.get("name")?,
        status: Status::parse(&status).ok_or_else(|| bad(status))?,
        visibility: Visibility::parse(&visibility).map_err(|e| bad(e.to_string()))?,
        disk_format: format
            .map(|name| parse_format(&name).map_err(|e| bad(e.to_string())))
            .transpose()?,
        container_format: row.get("container_format")?,
        size: row.get::<_, Option<i64>>("size")?.map(i64::unsigned_abs),
        checksum: row.get("checksum")?,
        os_hash_value: row.get("os_hash_value")?,
        virtual_size: row.get::<_, Option<i64>>("virtual_size")?.map(i64::unsigned_abs),
        original: row.get("original")?,
        min_disk: row.get("min_disk")?,
        min_ram: row.get("min_ram")?,
        protected: row.get("protected")?,
        hidden: row.get("hidden")?,
        tags: text("tags")?.lines().map(str::to_owned).collect(),
        properties: serde_json::from_str(&text("properties")?).map_err(|e| bad(e.to_string()))?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

/// The row, whoever asks; images that are going are gone.
fn load(conn: &Connection, id: Uuid) -> Result<Image> {
    let mut sql = conn.prepare_cached("SELECT * FROM images WHERE id = ?1 AND status != 'pending_delete'")?;
    let row = sql.query_row([id.to_string()], from_row).optional()?;
    row.ok_or_else(|| not_found(id))
}

fn not_found(id: Uuid) -> Error {
    Error::Named {
        name: "ImageNotFound",
        kind: crate::error::Kind::NotFound,
        message: format!("No image found with ID {id}"),
    }
}

/// The row, if the caller sees it.
fn find(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Image> {
    let image = load(conn, id)?;
    let member = members::consent_of(conn, ctx, id)?;
    if image.is_seen(ctx, member) {
        Ok(image)
    } else {
        Err(not_found(id))
    }
}

/// The row, if the caller may change it.
fn find_own(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Image> {
    let image = find(conn, ctx, id)?;
    if ctx.is_admin() || image.is_own(ctx) {
        return Ok(image);
    }
    Err(Error::Forbidden(
        "You are not authorized to complete this action: the image is not yours.".into(),
    ))
}

/// Writes all but id, owner's count and what an upload finds out.
fn save(conn: &Connection, image: &Image, now: i64) -> Result<()> {
    let tags: Vec<&str> = image.tags.iter().map(String::as_str).collect();
    let properties = serde_json::to_string(&image.properties).map_err(|e| Error::Internal(e.to_string()))?;
    conn.execute(
        "UPDATE images SET owner = ?2, name = ?3, visibility = ?4, disk_format = ?5, container_format = ?6,
             min_disk = ?7, min_ram = ?8, protected = ?9, hidden = ?10, tags = ?11, properties = ?12,
             updated_at = ?13 WHERE id = ?1",
        params![
            image.id.to_string(),
            image.owner,
            image.name,
            image.visibility.name(),
            image.disk_format.map(format_name),
            image.container_format,
            image.min_disk,
            image.min_ram,
            image.protected,
            image.hidden,
            tags.join("\n"),
            properties,
            now
        ],
    )?;
    Ok(())
}

/// One image.
///
/// # Errors
/// 404 if there is none that the caller sees.
pub async fn show(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<Image> {
    ctx.require("images", "show")?;
    let ctx = ctx.clone();
    cloud.store.read(move |conn| find(conn, &ctx, id)).await
}

/// What a project has, and may have: used, limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of images, in MiB, begun ones whole.
    pub size_mib: (u64, u64),
    /// Of these what is staged.
    pub staged_mib: (u64, u64),
    /// Images.
    pub images: (u64, u64),
    /// Uploads under way.
    pub uploads: (u64, u64),
}

/// What the caller's project has.
///
/// # Errors
/// 403.
pub async fn usage(cloud: &Cloud, ctx: &Context) -> Result<Usage> {
    ctx.require("images", "usage")?;
    let project = ctx.project()?.to_owned();
    let bytes = cloud.config.max_project_image_bytes >> 20;
    cloud
        .store
        .read(move |conn| {
            let sql =
                "SELECT coalesce(sum(size), 0), coalesce(sum(size) FILTER (WHERE status = 'uploading'), 0),
                 count(*) FILTER (WHERE status != 'pending_delete'),
                 count(*) FILTER (WHERE status IN ('saving', 'importing')) FROM images WHERE owner = ?1";
            let mut sql = conn.prepare_cached(sql)?;
            let counts: [i64; 4] = sql.query_row([project], |row| {
                Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?])
            })?;
            let [size, staged, images, uploads] = counts.map(i64::unsigned_abs);
            Ok(Usage {
                size_mib: (size.div_ceil(1 << 20), bytes),
                staged_mib: (staged.div_ceil(1 << 20), bytes),
                images: (images, MAX_PER_PROJECT.unsigned_abs()),
                uploads: (uploads, limits::UPLOADS_PER_PROJECT as u64),
            })
        })
        .await
}

#[cfg(test)]
mod tests;
