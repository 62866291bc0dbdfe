//! The history of resizes, as `os-migrations` shows it. Servers do not move to another node: there is one.

use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use super::servers::{Server, uuid};
use super::{Micros, now};
use crate::{Cloud, Context, Result};

/// A resize.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Migration {
    pub number: i64,
    pub id: Uuid,
    pub server: Uuid,
    pub project_id: String,
    pub user_id: String,
    pub host: String,
    /// `migrating`, `finished`, `confirming`, `confirmed`, `reverting`, `reverted` or `error`.
    pub status: String,
    pub created_at: Micros,
    pub updated_at: Micros,
}

const COLUMNS: &str = "number, id, server_id, project_id, user_id, host, status, created_at, updated_at";

fn of_row(row: &Row<'_>) -> rusqlite::Result<Migration> {
    Ok(Migration {
        number: row.get(0)?,
        id: uuid(row, 1)?,
        server: uuid(row, 2)?,
        project_id: row.get(3)?,
        user_id: row.get(4)?,
        host: row.get(5)?,
        status: row.get(6)?,
        created_at: row.get(7)?,
        updated_at: row.get(8)?,
    })
}

/// A resize begins.
pub(super) fn begin(conn: &Connection, ctx: &Context, server: &Server) -> Result<()> {
    let last: i64 = conn.query_row(
        "SELECT COALESCE(MAX(number), 0) FROM compute_migrations",
        [],
        |row| row.get(0),
    )?;
    conn.prepare_cached(&format!(
        "INSERT INTO compute_migrations ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'migrating', ?7, ?7)"
    ))?
    .execute(params![
        last + 1,
        Uuid::new_v4().to_string(),
        server.id.to_string(),
        server.project_id,
        ctx.user_id,
        server.host,
        now(),
    ])?;
    Ok(())
}

/// The server's latest resize has come so far, if it is still open.
pub(super) fn advance(conn: &Connection, server: &Server, status: &str) -> Result<()> {
    conn.prepare_cached(
        "UPDATE compute_migrations SET status = ?2, updated_at = ?3 WHERE server_id = ?1 \
         AND status NOT IN ('confirmed', 'reverted', 'error')",
    )?
    .execute(params![server.id.to_string(), status, now()])?;
    Ok(())
}

/// Which migrations a list shows.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Filter {
    pub server: Option<Uuid>,
    pub host: Option<String>,
    pub status: Option<String>,
    pub project_id: Option<String>,
    pub user_id: Option<String>,
    pub changes_since: Option<Micros>,
    pub changes_before: Option<Micros>,
}

/// Migrations, latest first.
pub async fn list(cloud: &Cloud, ctx: &Context, filter: Filter) -> Result<Vec<Migration>> {
    ctx.require("servers", "migrations")?;
    cloud
        .store
        .read(move |conn| {
            let mut query = conn.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM compute_migrations WHERE (?1 IS NULL OR server_id = ?1) \
                 AND (?2 IS NULL OR host = ?2) AND (?3 IS NULL OR status = ?3) AND (?4 IS NULL OR project_id = ?4) \
                 AND (?5 IS NULL OR user_id = ?5) AND updated_at >= ?6 AND updated_at <= ?7 ORDER BY number DESC"
            ))?;
            let found = query.query_map(
                params![
                    filter.server.map(|id| id.to_string()),
                    filter.host,
                    filter.status,
                    filter.project_id,
                    filter.user_id,
                    filter.changes_since.unwrap_or(Micros(i64::MIN)),
                    filter.changes_before.unwrap_or(Micros(i64::MAX)),
                ],
                of_row,
            )?;
            Ok(found.collect::<rusqlite::Result<_>>()?)
        })
        .await
}
