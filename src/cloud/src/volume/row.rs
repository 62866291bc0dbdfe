//! Rows of volumes, and who sees them.

use std::collections::BTreeMap;

use model::disk::VolumeSource;
use model::units::GIB;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::status::{Status, Task};
use crate::compute::Micros;
use crate::{Context, Error, Result};

/// Keys and values that clients keep with a resource.
pub type Pairs = BTreeMap<String, String>;

/// What a volume was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nothing: it began with zeros.
    Empty,
    /// An image.
    Image(Uuid),
    /// Another volume.
    Volume(Uuid),
    /// A snapshot.
    Snapshot(Uuid),
    /// A backup.
    Backup(Uuid),
}

impl Origin {
    fn parts(self) -> (&'static str, Option<Uuid>) {
        match self {
            Origin::Empty => ("empty", None),
            Origin::Image(id) => ("image", Some(id)),
            Origin::Volume(id) => ("volume", Some(id)),
            Origin::Snapshot(id) => ("snapshot", Some(id)),
            Origin::Backup(id) => ("backup", Some(id)),
        }
    }

    fn of_parts(kind: &str, id: Option<Uuid>) -> Option<Origin> {
        Some(match (kind, id) {
            ("empty", None) => Origin::Empty,
            ("image", Some(id)) => Origin::Image(id),
            ("volume", Some(id)) => Origin::Volume(id),
            ("snapshot", Some(id)) => Origin::Snapshot(id),
            ("backup", Some(id)) => Origin::Backup(id),
            _ => return None,
        })
    }

    /// For the node: a backup is written over an empty volume.
    pub(super) fn source(self) -> VolumeSource {
        match self {
            Origin::Empty | Origin::Backup(_) => VolumeSource::Empty,
            Origin::Image(id) => VolumeSource::Image(id),
            Origin::Volume(id) => VolumeSource::Volume(id),
            Origin::Snapshot(id) => VolumeSource::Snapshot(id),
        }
    }
}

impl From<VolumeSource> for Origin {
    fn from(source: VolumeSource) -> Self {
        match source {
            VolumeSource::Empty => Origin::Empty,
            VolumeSource::Image(id) => Origin::Image(id),
            VolumeSource::Volume(id) => Origin::Volume(id),
            VolumeSource::Snapshot(id) => Origin::Snapshot(id),
        }
    }
}

/// A row of `volume_volumes`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Volume {
    pub id: Uuid,
    pub project_id: String,
    pub user_id: String,
    pub name: Option<String>,
    pub description: Option<String>,
    /// In GiB.
    pub size: u32,
    pub status: Status,
    /// What the reconciler has to do.
    pub task: Option<Task>,
    /// What it goes back to.
    pub previous_status: Option<Status>,
    pub bootable: bool,
    pub multiattach: bool,
    /// Whether attachments are read-only; `None`: nobody has said.
    pub read_only: Option<bool>,
    pub type_id: Uuid,
    pub availability_zone: String,
    /// The node that has its bytes.
    pub host: String,
    pub metadata: Pairs,
    /// What its image said of itself.
    pub image_metadata: Pairs,
    pub origin: Origin,
    /// In GiB, while it is extended.
    pub new_size: Option<u32>,
    /// The image that it is uploaded to, or the backup that is restored to it.
    pub target_id: Option<Uuid>,
    pub created_at: Micros,
    pub updated_at: Option<Micros>,
    pub launched_at: Option<Micros>,
}

const COLUMNS: [&str; 24] = [
    "id",
    "project_id",
    "user_id",
    "name",
    "description",
    "size",
    "status",
    "task",
    "previous_status",
    "bootable",
    "multiattach",
    "read_only",
    "type_id",
    "availability_zone",
    "host",
    "metadata",
    "image_metadata",
    "origin",
    "origin_id",
    "new_size",
    "target_id",
    "created_at",
    "updated_at",
    "launched_at",
];

fn broken(text: &str) -> rusqlite::Error {
    let text: String = text.chars().take(64).collect();
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, text.into())
}

/// A column with a UUID's text.
pub(super) fn uuid(row: &Row<'_>, column: &str) -> rusqlite::Result<Uuid> {
    let text: String = row.get(column)?;
    text.parse().map_err(|_| broken(&text))
}

/// The same, or null.
pub(super) fn uuid_or_null(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Uuid>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| text.parse().map_err(|_| broken(&text)))
        .transpose()
}

/// A column of JSON.
pub(super) fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|_| broken(&text))
}

/// A value for a column of JSON.
pub(super) fn to_json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Internal(format!("a column as JSON: {error}")))
}

/// An id as clients give it: 404 if it is none, since nothing has such an id.
pub(super) fn parse_id(resource: &'static str, id: &str) -> Result<Uuid> {
    Some(id)
        .filter(|id| id.len() == 36)
        .and_then(|id| id.parse().ok())
        .ok_or_else(|| Error::not_found(resource, id))
}

impl Volume {
    pub(super) fn of_row(row: &Row<'_>) -> rusqlite::Result<Volume> {
        let kind: String = row.get("origin")?;
        Ok(Volume {
            id: uuid(row, "id")?,
            project_id: row.get("project_id")?,
            user_id: row.get("user_id")?,
            name: row.get("name")?,
            description: row.get("description")?,
            size: row.get("size")?,
            status: row.get("status")?,
            task: row.get("task")?,
            previous_status: row.get("previous_status")?,
            bootable: row.get("bootable")?,
            multiattach: row.get("multiattach")?,
            read_only: row.get("read_only")?,
            type_id: uuid(row, "type_id")?,
            availability_zone: row.get("availability_zone")?,
            host: row.get("host")?,
            metadata: json(row, "metadata")?,
            image_metadata: json(row, "image_metadata")?,
            origin: Origin::of_parts(&kind, uuid_or_null(row, "origin_id")?).ok_or_else(|| broken(&kind))?,
            new_size: row.get("new_size")?,
            target_id: uuid_or_null(row, "target_id")?,
            created_at: row.get("created_at")?,
            updated_at: row.get("updated_at")?,
            launched_at: row.get("launched_at")?,
        })
    }

    /// Inserts the row, or makes it equal to this.
    pub(super) fn save(&self, conn: &Connection) -> Result<()> {
        let (origin, origin_id) = self.origin.parts();
        conn.prepare_cached(&save_sql("volume_volumes", &COLUMNS))?
            .execute(params![
                self.id.to_string(),
                self.project_id,
                self.user_id,
                self.name,
                self.description,
                self.size,
                self.status,
                self.task,
                self.previous_status,
                self.bootable,
                self.multiattach,
                self.read_only,
                self.type_id.to_string(),
                self.availability_zone,
                self.host,
                to_json(&self.metadata)?,
                to_json(&self.image_metadata)?,
                origin,
                origin_id.map(|id| id.to_string()),
                self.new_size,
                self.target_id.map(|id| id.to_string()),
                self.created_at,
                self.updated_at,
                self.launched_at,
            ])?;
        Ok(())
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.size) * GIB
    }
}

/// An insertion that replaces a row of the same id (the first column).
pub(super) fn save_sql(table: &str, columns: &[&str]) -> String {
    let places: Vec<String> = (1..=columns.len()).map(|n| format!("?{n}")).collect();
    let sets: Vec<String> = columns
        .iter()
        .skip(1)
        .map(|c| format!("{c} = excluded.{c}"))
        .collect();
    format!(
        "INSERT INTO {table} ({}) VALUES ({}) ON CONFLICT (id) DO UPDATE SET {}",
        columns.join(", "),
        places.join(", "),
        sets.join(", ")
    )
}

/// The row, whoever asks.
pub fn get(conn: &Connection, id: Uuid) -> Result<Option<Volume>> {
    let mut query = conn.prepare_cached("SELECT * FROM volume_volumes WHERE id = ?1")?;
    Ok(query.query_row([id.to_string()], Volume::of_row).optional()?)
}

/// The volume, if it is there and the caller sees it.
///
/// # Errors
/// 404.
pub fn find(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Volume> {
    get(conn, id)?
        .filter(|volume| ctx.sees(&volume.project_id))
        .ok_or_else(|| Error::not_found("Volume", id))
}

/// The same, by an id as clients give it.
pub(super) fn find_text(conn: &Connection, ctx: &Context, id: &str) -> Result<Volume> {
    find(conn, ctx, parse_id("Volume", id)?)
}
