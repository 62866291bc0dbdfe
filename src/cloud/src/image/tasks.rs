//! What is done with images behind the tenants' backs, and how it ended: they read here why an import failed.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;
use uuid::Uuid;

use super::find;
use crate::identity::now;
use crate::{Cloud, Context, Error, Result};

/// How long a task that has ended is remembered, in microseconds; as in Glance.
const REMEMBERED: i64 = 48 * 60 * 60 * 1_000_000;
/// The most tasks of one project; of those that have ended the oldest make place.
const MAX_PER_PROJECT: i64 = 1000;

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Imports an image that is there.
    Import,
    /// Makes an image, and fetches it.
    Create,
}

impl Kind {
    /// As Glance writes it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Import => "api_image_import",
            Kind::Create => "import",
        }
    }
}

/// A task.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Task {
    pub id: Uuid,
    /// [`Kind::name`].
    pub kind: String,
    /// `processing`, `success` or `failure`.
    pub status: String,
    /// The project.
    pub owner: String,
    pub user_id: String,
    pub image_id: Option<String>,
    pub request_id: String,
    /// What was asked for.
    pub input: Value,
    /// What came of it.
    pub result: Option<Value>,
    /// Why it failed.
    pub message: String,
    /// Microseconds since 1970, as the others.
    pub created_at: i64,
    pub updated_at: i64,
    /// When it is forgotten.
    pub expires_at: Option<i64>,
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Task> {
    let bad = |text: String| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, text.into());
    let json = |text: String| serde_json::from_str(&text).map_err(|e| bad(e.to_string()));
    let id: String = row.get("id")?;
    Ok(Task {
        id: id.parse().map_err(|_| bad(id.clone()))?,
        kind: row.get("type")?,
        status: row.get("status")?,
        owner: row.get("owner")?,
        user_id: row.get("user_id")?,
        image_id: row.get("image_id")?,
        request_id: row.get("request_id")?,
        input: json(row.get("input")?)?,
        result: row.get::<_, Option<String>>("result")?.map(json).transpose()?,
        message: row.get("message")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
        expires_at: row.get("expires_at")?,
    })
}

/// What begins.
pub(super) struct New<'a> {
    pub kind: Kind,
    pub owner: &'a str,
    pub image: Uuid,
    pub input: &'a Value,
}

/// A task begins, inside the write that begins what it does.
pub(super) fn begin(conn: &Connection, ctx: &Context, new: &New<'_>) -> Result<Uuid> {
    let (id, now) = (Uuid::new_v4(), now());
    conn.prepare_cached(
        "INSERT INTO image_tasks (id, type, status, owner, user_id, image_id, request_id, input, message, created_at,
             updated_at) VALUES (?1, ?2, 'processing', ?3, ?4, ?5, ?6, ?7, '', ?8, ?8)",
    )?
    .execute(params![
        id.to_string(),
        new.kind.name(),
        new.owner,
        ctx.user_id,
        new.image.to_string(),
        ctx.request_id,
        new.input.to_string(),
        now
    ])?;
    conn.prepare_cached(
        "DELETE FROM image_tasks WHERE id IN (SELECT id FROM image_tasks WHERE owner = ?1 AND expires_at IS NOT NULL
             ORDER BY created_at DESC LIMIT -1 OFFSET ?2)",
    )?
    .execute(params![new.owner, MAX_PER_PROJECT])?;
    Ok(id)
}

/// A task has ended: with a result, or with the reason why not.
pub(super) async fn end(cloud: &Cloud, id: Uuid, end: Result<Value>) {
    let (status, result, message) = match &end {
        Ok(result) => ("success", Some(result.to_string()), String::new()),
        Err(error) => ("failure", None, told(error)),
    };
    let now = now();
    let written = cloud.store.write("image", move |conn| {
        let sql =
            "UPDATE image_tasks SET status = ?2, result = ?3, message = ?4, updated_at = ?5, expires_at = ?6
             WHERE id = ?1 AND status = 'processing'";
        conn.prepare_cached(sql)?.execute(params![
            id.to_string(),
            status,
            result,
            message,
            now,
            now + REMEMBERED
        ])?;
        Ok::<_, Error>(())
    });
    if let Err(error) = written.await {
        tracing::error!(task = %id, %error, "a task's end could not be written down; the next start does it");
    }
}

/// An error in the tenant's words.
pub(super) fn told(error: &Error) -> String {
    match error {
        Error::Internal(_) => "The cloud has failed; its operator finds the reason in the log.".to_owned(),
        other => other.to_string(),
    }
}

/// At the daemon's start, after its images are `queued` again: what the last one did not end has failed, and what it made to
/// fill goes.
pub(super) async fn recover(cloud: &Cloud) -> Result<()> {
    let now = now();
    cloud
        .store
        .write("image", move |conn| {
            conn.execute(
                "UPDATE images SET status = 'pending_delete', updated_at = ?1 WHERE status = 'queued' AND id IN
                 (SELECT image_id FROM image_tasks WHERE status = 'processing' AND type = 'import')",
                [now],
            )?;
            conn.execute(
                "UPDATE image_tasks SET status = 'failure', message = ?1, updated_at = ?2, expires_at = ?3
                 WHERE status = 'processing'",
                params!["The cloud was restarted meanwhile; try again.", now, now + REMEMBERED],
            )?;
            Ok(())
        })
        .await
}

/// Forgets what has ended long ago.
pub(super) async fn expire(cloud: &Cloud) -> Result<()> {
    let now = now();
    cloud
        .store
        .write("image", move |conn| {
            conn.execute("DELETE FROM image_tasks WHERE expires_at < ?1", [now])?;
            Ok(())
        })
        .await
}

/// An image's tasks, the newest first: those of the caller's project.
///
/// # Errors
/// 404, 403.
pub async fn of_image(cloud: &Cloud, ctx: &Context, image: Uuid) -> Result<Vec<Task>> {
    ctx.require("images", "show")?;
    let ctx = ctx.clone();
    cloud
        .store
        .read(move |conn| {
            find(conn, &ctx, image)?;
            let sql = "SELECT * FROM image_tasks WHERE image_id = ?1 ORDER BY created_at DESC, id";
            let mut sql = conn.prepare_cached(sql)?;
            let rows = sql.query_map([image.to_string()], from_row)?;
            let mut tasks = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            tasks.retain(|task| ctx.sees(&task.owner));
            Ok(tasks)
        })
        .await
}

/// All tasks, the newest first.
///
/// # Errors
/// 403.
pub async fn list(cloud: &Cloud, ctx: &Context) -> Result<Vec<Task>> {
    ctx.require("image_tasks", "list")?;
    cloud
        .store
        .read(move |conn| {
            let mut sql = conn.prepare_cached("SELECT * FROM image_tasks ORDER BY created_at DESC, id")?;
            let rows = sql.query_map([], from_row)?;
            Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        })
        .await
}

/// One task.
///
/// # Errors
/// 404, 403.
pub async fn show(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<Task> {
    ctx.require("image_tasks", "show")?;
    cloud
        .store
        .read(move |conn| {
            let mut sql = conn.prepare_cached("SELECT * FROM image_tasks WHERE id = ?1")?;
            let task = sql.query_row([id.to_string()], from_row).optional()?;
            task.ok_or_else(|| Error::not_found("Task", id))
        })
        .await
}
