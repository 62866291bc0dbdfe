//! Lists, and what may be looked for in them.

use rusqlite::Connection;

use super::attachments::{self, Attachment};
use super::backups::{self, Backup};
use super::row::{self, Volume};
use super::snapshots::{self, Snapshot};
use super::types;
use super::volumes::Details;
use crate::{Cloud, Context, Error, Result};

/// Whose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whose {
    /// All projects'; for administrators, others see their own.
    pub all_projects: bool,
    /// This project's; for administrators.
    pub project_id: Option<String>,
}

impl Whose {
    /// The project to look in; `None`: all.
    fn project(&self, ctx: &Context) -> Result<Option<String>> {
        if self.all_projects && ctx.is_admin() {
            return Ok(self.project_id.clone());
        }
        ctx.project().map(|project| Some(project.to_owned()))
    }
}

/// All volumes, newest first, with what their views need, in a fixed number of queries.
pub async fn volumes(cloud: &Cloud, ctx: &Context, whose: &Whose) -> Result<Vec<Details>> {
    ctx.require("volumes", "list")?;
    let project = whose.project(ctx)?;
    cloud
        .store
        .read(move |conn| {
            let mut attached: std::collections::HashMap<_, Vec<Attachment>> = Default::default();
            for attachment in attachments::visible(conn, project.as_deref())? {
                attached.entry(attachment.volume).or_default().push(attachment);
            }
            let names: std::collections::HashMap<String, String> =
                types::ids_and_names(conn)?.into_iter().collect();
            let found = visible(conn, project.as_deref())?;
            let encrypted = crate::encryption::encrypted(conn, project.as_deref())?;
            Ok::<_, Error>(
                found
                    .into_iter()
                    .map(|volume| Details {
                        attachments: attached.remove(&volume.id).unwrap_or_default(),
                        volume_type: names.get(&volume.type_id.to_string()).cloned(),
                        encrypted: encrypted.contains(&volume.id.to_string()),
                        volume,
                    })
                    .collect(),
            )
        })
        .await
}

fn visible(conn: &Connection, project: Option<&str>) -> Result<Vec<Volume>> {
    let mut query = conn.prepare_cached(
        "SELECT * FROM volume_volumes WHERE (?1 IS NULL OR project_id = ?1) ORDER BY created_at DESC, id DESC",
    )?;
    let rows = query.query_map([project], row::Volume::of_row)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// All snapshots, newest first.
pub async fn snapshots(cloud: &Cloud, ctx: &Context, whose: &Whose) -> Result<Vec<Snapshot>> {
    ctx.require("snapshots", "list")?;
    let project = whose.project(ctx)?;
    cloud
        .store
        .read(move |conn| snapshots::visible(conn, project.as_deref()))
        .await
}

/// All backups, newest first.
pub async fn backups(cloud: &Cloud, ctx: &Context, whose: &Whose) -> Result<Vec<Backup>> {
    ctx.require("backups", "list")?;
    let project = whose.project(ctx)?;
    cloud
        .store
        .read(move |conn| backups::visible(conn, project.as_deref()))
        .await
}

/// All attachments, newest first.
pub async fn attachments(cloud: &Cloud, ctx: &Context, whose: &Whose) -> Result<Vec<Attachment>> {
    ctx.require("volume_attachments", "list")?;
    let project = whose.project(ctx)?;
    cloud
        .store
        .read(move |conn| attachments::visible(conn, project.as_deref()))
        .await
}
