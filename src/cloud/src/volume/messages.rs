//! Messages: what went wrong behind a request that had been accepted, in words for its tenant.

use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::row::{self, uuid};
use crate::compute::{Micros, now};
use crate::{Cloud, Context, Error, Result};

/// How long a message is kept.
pub const KEPT_SECONDS: i64 = 30 * 24 * 3600;
/// The most messages that a project has: the oldest go first.
const MAX_PER_PROJECT: i64 = 1000;

/// What was being done, by Cinder's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Action {
    Schedule,
    CopyVolumeToImage,
    CopyImageToVolume,
    ExtendVolume,
    CreateVolume,
    CreateSnapshot,
    DeleteSnapshot,
    CreateBackup,
    DeleteBackup,
    RestoreBackup,
    RevertVolume,
    DeleteVolume,
}

impl Action {
    fn parts(self) -> (&'static str, &'static str) {
        match self {
            Action::Schedule => ("001", "schedule allocate volume"),
            Action::CopyVolumeToImage => ("003", "copy volume to image"),
            Action::CopyImageToVolume => ("005", "copy image to volume"),
            Action::ExtendVolume => ("007", "extend volume"),
            Action::CreateVolume => ("008", "create volume from backend storage"),
            Action::CreateSnapshot => ("009", "create snapshot"),
            Action::DeleteSnapshot => ("010", "delete snapshot"),
            Action::CreateBackup => ("013", "create backup"),
            Action::DeleteBackup => ("014", "delete backup"),
            Action::RestoreBackup => ("015", "restore backup"),
            // Without numbers of Cinder's.
            Action::RevertVolume => ("101", "revert volume to snapshot"),
            Action::DeleteVolume => ("102", "delete volume"),
        }
    }
}

/// Why it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail {
    /// No pool is of the type that was asked for.
    NoBackend,
    /// The pool is full.
    Full,
    /// What the tenant gave is at fault; these words say how.
    Input(String),
    /// The node is at fault.
    Unknown,
}

impl Detail {
    fn parts(&self) -> (&'static str, &str) {
        match self {
            Detail::NoBackend => (
                "003",
                "No storage could be allocated for this volume request. You may be able to try another size or volume \
                 type.",
            ),
            Detail::Full => ("007", "There is not enough space left in the pool."),
            Detail::Input(text) => ("004", text),
            Detail::Unknown => ("001", "An unknown error occurred."),
        }
    }
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Message {
    pub id: Uuid,
    pub project_id: String,
    pub request_id: String,
    pub resource_type: String,
    pub resource_id: Uuid,
    /// Cinder's number of the action.
    pub action: String,
    /// Cinder's number of the detail.
    pub detail: String,
    pub text: String,
    pub created_at: Micros,
}

impl Message {
    fn of_row(row: &Row<'_>) -> rusqlite::Result<Message> {
        Ok(Message {
            id: uuid(row, "id")?,
            project_id: row.get("project_id")?,
            request_id: row.get("request_id")?,
            resource_type: row.get("resource_type")?,
            resource_id: uuid(row, "resource_id")?,
            action: row.get("action")?,
            detail: row.get("detail")?,
            text: row.get("text")?,
            created_at: row.get("created_at")?,
        })
    }

    /// Such as `VOLUME_VOLUME_001_003`.
    pub fn event_id(&self) -> String {
        format!("VOLUME_{}_{}_{}", self.resource_type, self.action, self.detail)
    }
}

/// Leaves a message. `resource`: `VOLUME`, `VOLUME_SNAPSHOT` or `VOLUME_BACKUP`.
pub(super) fn leave(
    conn: &Connection,
    id: Uuid,
    project: &str,
    resource: (&str, Uuid),
    action: Action,
    detail: &Detail,
) -> Result<()> {
    let ((action, what), (number, why)) = (action.parts(), detail.parts());
    conn.prepare_cached(
        "INSERT OR IGNORE INTO volume_messages (id, project_id, request_id, resource_type, resource_id, action, detail, \
         text, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        id.to_string(),
        project,
        format!("req-{id}"),
        resource.0,
        resource.1.to_string(),
        action,
        number,
        format!("{what}:{why}"),
        now(),
    ])?;
    conn.prepare_cached(
        "DELETE FROM volume_messages WHERE project_id = ?1 AND (created_at < ?2 OR id IN (SELECT id FROM \
         volume_messages WHERE project_id = ?1 ORDER BY created_at DESC, id DESC LIMIT -1 OFFSET ?3))",
    )?
    .execute(params![
        project,
        now().0 - KEPT_SECONDS * 1_000_000,
        MAX_PER_PROJECT
    ])?;
    Ok(())
}

/// All messages of the caller's project, newest first.
pub async fn list(cloud: &Cloud, ctx: &Context) -> Result<Vec<Message>> {
    ctx.require("volume_messages", "list")?;
    let project = ctx.project()?.to_owned();
    cloud
        .store
        .read(move |conn| {
            let mut query = conn.prepare_cached(
                "SELECT * FROM volume_messages WHERE project_id = ?1 ORDER BY created_at DESC, id DESC",
            )?;
            let rows = query.query_map([project], Message::of_row)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
}

fn find(conn: &Connection, ctx: &Context, id: &str) -> Result<Message> {
    let uuid = row::parse_id("Message", id)?;
    let mut query = conn.prepare_cached("SELECT * FROM volume_messages WHERE id = ?1")?;
    let found = query.query_row([uuid.to_string()], Message::of_row).optional()?;
    found
        .filter(|message| ctx.sees(&message.project_id))
        .ok_or_else(|| Error::not_found("Message", id))
}

/// One message.
///
/// # Errors
/// 404.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Message> {
    ctx.require("volume_messages", "show")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    cloud.store.read(move |conn| find(conn, &ctx, &id)).await
}

/// Removes a message.
///
/// # Errors
/// 404.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str) -> Result<()> {
    ctx.require("volume_messages", "delete")?;
    let (caller, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let message = find(conn, &caller, &id)?;
            conn.execute(
                "DELETE FROM volume_messages WHERE id = ?1",
                [message.id.to_string()],
            )?;
            Ok(())
        })
        .await
}
