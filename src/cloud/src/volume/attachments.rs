//! Attachments: which server has which volume.
//!
//! ```text
//!            reserve        attaching          attached         begin_detach         detached
//!  (none) ──────────▶ reserved ───▶ attaching ─────────▶ attached ───────────▶ detaching ─────────▶ (none)
//!                        │             │                     ▲                     │
//!                        └─────────────┴──── roll_back ──▶ (none)                  └─ roll_detaching
//! ```
//! The volume's own state follows from its attachments: `in-use` while one is attached, else `attaching`, `detaching` or
//! `reserved`, and `available` without any. All functions work inside the caller's transaction and do no I/O. They may be
//! repeated: an attachment that is gone stays gone.

use model::machine::MachineDisk;
use model::units::GIB;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::limits;
use super::row::{self, Volume, uuid, uuid_or_null};
use super::status::{AttachStatus, Status};
use crate::compute::{Micros, now};
use crate::{Context, Error, Result};

/// An attachment, with what a machine's description needs of its volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Its id.
    pub id: Uuid,
    /// The volume.
    pub volume: Uuid,
    /// The volume's project.
    pub project_id: String,
    /// The server, if one is named.
    pub server: Option<Uuid>,
    /// Its state.
    pub status: AttachStatus,
    /// The server cannot write.
    pub read_only: bool,
    /// Such as `/dev/vdb`.
    pub device: Option<String>,
    /// The server's node.
    pub host: Option<String>,
    /// What the client said of the server's side.
    pub connector: Option<Map<String, Value>>,
    /// When it was reserved.
    pub created_at: Micros,
    /// Since when the server has the volume.
    pub attached_at: Option<Micros>,
    /// The volume's state: while it is [`Status::Creating`] its bytes are not there yet.
    pub volume_status: Status,
    /// The volume's size in bytes.
    pub bytes: u64,
}

const SELECT: &str = "SELECT a.*, v.status AS volume_status, v.size AS volume_size FROM volume_attachments a \
     JOIN volume_volumes v ON v.id = a.volume_id";

impl Attachment {
    fn of_row(row: &Row<'_>) -> rusqlite::Result<Attachment> {
        let connector: Option<String> = row.get("connector")?;
        Ok(Attachment {
            id: uuid(row, "id")?,
            volume: uuid(row, "volume_id")?,
            project_id: row.get("project_id")?,
            server: uuid_or_null(row, "server_id")?,
            status: row.get("status")?,
            read_only: row.get("read_only")?,
            device: row.get("device")?,
            host: row.get("host")?,
            connector: connector.and_then(|text| serde_json::from_str(&text).ok()),
            created_at: row.get("created_at")?,
            attached_at: row.get("attached_at")?,
            volume_status: row.get("volume_status")?,
            bytes: row.get::<_, u64>("volume_size")? * GIB,
        })
    }

    /// As a machine's description has it.
    ///
    /// # Errors
    /// If the volume's limits cannot be read.
    pub fn disk(&self, conn: &Connection) -> Result<MachineDisk> {
        Ok(MachineDisk {
            volume: self.volume,
            size: self.bytes,
            read_only: self.read_only,
            limits: limits::of_volume(conn, self.volume)?.unwrap_or_default(),
        })
    }

    fn save(&self, conn: &Connection) -> Result<()> {
        const COLUMNS: [&str; 11] = [
            "id",
            "volume_id",
            "project_id",
            "server_id",
            "status",
            "read_only",
            "device",
            "host",
            "connector",
            "created_at",
            "attached_at",
        ];
        conn.prepare_cached(&row::save_sql("volume_attachments", &COLUMNS))?
            .execute(params![
                self.id.to_string(),
                self.volume.to_string(),
                self.project_id,
                self.server.map(|id| id.to_string()),
                self.status,
                self.read_only,
                self.device,
                self.host,
                self.connector.as_ref().map(row::to_json).transpose()?,
                self.created_at,
                self.attached_at,
            ])?;
        Ok(())
    }
}

/// The attachment of this id.
pub fn get(conn: &Connection, id: Uuid) -> Result<Option<Attachment>> {
    let mut query = conn.prepare_cached(&format!("{SELECT} WHERE a.id = ?1"))?;
    Ok(query.query_row([id.to_string()], Attachment::of_row).optional()?)
}

fn all(conn: &Connection, column: &str, id: Uuid) -> Result<Vec<Attachment>> {
    let mut query = conn.prepare_cached(&format!(
        "{SELECT} WHERE a.{column} = ?1 ORDER BY a.created_at, a.id"
    ))?;
    let rows = query.query_map([id.to_string()], Attachment::of_row)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// All attachments of a server, in the order in which they were made.
pub fn of_server(conn: &Connection, server: Uuid) -> Result<Vec<Attachment>> {
    all(conn, "server_id", server)
}

/// All attachments of a volume.
pub fn of_volume(conn: &Connection, volume: Uuid) -> Result<Vec<Attachment>> {
    all(conn, "volume_id", volume)
}

/// All attachments that a caller sees, for lists.
pub(super) fn visible(conn: &Connection, project: Option<&str>) -> Result<Vec<Attachment>> {
    let mut query = conn.prepare_cached(&format!(
        "{SELECT} WHERE (?1 IS NULL OR a.project_id = ?1) ORDER BY a.created_at DESC, a.id DESC"
    ))?;
    let rows = query.query_map([project], Attachment::of_row)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn one(conn: &Connection, volume: Uuid, server: Uuid) -> Result<Option<Attachment>> {
    let attachments = of_volume(conn, volume)?;
    Ok(attachments.into_iter().find(|a| a.server == Some(server)))
}

/// The server that has the volume, is being given it, or is being relieved of it: only compute lets go of it then, for the guest
/// may have it open.
pub(super) fn holder(conn: &Connection, volume: Uuid) -> Result<Option<Uuid>> {
    let mut query = conn.prepare_cached("SELECT server_id FROM compute_disks WHERE volume_id = ?1")?;
    Ok(query
        .query_row([volume.to_string()], |row| uuid(row, "server_id"))
        .optional()?)
}

/// No server has the volume, so that attachments may be changed by hand.
///
/// # Errors
/// 409 in Cinder's words.
pub(super) fn expect_free(conn: &Connection, volume: Uuid) -> Result<()> {
    match holder(conn, volume)? {
        None => Ok(()),
        Some(server) => Err(Error::Conflict(format!(
            "ConflictNovaUsingAttachment: Detach volume from instance {server} using the Compute API."
        ))),
    }
}

/// Keeps a volume for a server (or for whoever comes, if none is named).
///
/// # Errors
/// 404 if the caller does not see the volume; 400 if it is not available, unless it may be attached more than once and this server
/// does not have it yet; 400 if it belongs to another project than the caller's.
pub fn reserve(conn: &Connection, ctx: &Context, volume: Uuid, server: Option<Uuid>) -> Result<Attachment> {
    let volume = row::find(conn, ctx, volume)?;
    let others = of_volume(conn, volume.id)?;
    let shared = volume.multiattach
        && matches!(
            volume.status,
            Status::InUse | Status::Reserved | Status::Attaching | Status::Detaching
        );
    if volume.status != Status::Available && !shared {
        return Err(Error::BadRequest(format!(
            "Invalid volume: Volume {} status must be available or downloading to reserve, but the current status is {}.",
            volume.id,
            volume.status.name()
        )));
    }
    if server.is_some() && others.iter().any(|other| other.server == server) {
        return Err(Error::BadRequest(format!(
            "Invalid volume: Volume {} is attached to this server already.",
            volume.id
        )));
    }
    let attachment = insert(conn, &volume, server, AttachStatus::Reserved)?;
    follow(conn, volume.id)?;
    Ok(attachment)
}

/// Writes an attachment down; the volume's state is the caller's matter.
pub(super) fn insert(
    conn: &Connection,
    volume: &Volume,
    server: Option<Uuid>,
    status: AttachStatus,
) -> Result<Attachment> {
    let attachment = Attachment {
        id: Uuid::new_v4(),
        volume: volume.id,
        project_id: volume.project_id.clone(),
        server,
        status,
        read_only: volume.read_only.unwrap_or(false),
        device: None,
        host: None,
        connector: None,
        created_at: now(),
        attached_at: None,
        volume_status: volume.status,
        bytes: volume.bytes(),
    };
    attachment.save(conn)?;
    Ok(attachment)
}

/// The server is being given the volume. `connector`: what is known of the server's side.
pub fn attaching(conn: &Connection, attachment: Uuid, connector: Option<Map<String, Value>>) -> Result<()> {
    let Some(mut attachment) = get(conn, attachment)? else {
        return Ok(());
    };
    if let Some(connector) = connector {
        let text = |key: &str| connector.get(key).and_then(Value::as_str).map(str::to_owned);
        attachment.host = text("host").or(attachment.host);
        attachment.device = text("mountpoint").or(attachment.device);
        if text("mode").as_deref() == Some("ro") {
            attachment.read_only = true;
        }
        attachment.connector = Some(connector);
    }
    if attachment.status == AttachStatus::Reserved {
        attachment.status = AttachStatus::Attaching;
    }
    attachment.save(conn)?;
    follow(conn, attachment.volume)
}

/// The server has the volume, as this device. An attachment that is gone stays gone.
pub fn attached(conn: &Connection, attachment: Uuid, device: Option<&str>, host: Option<&str>) -> Result<()> {
    let Some(mut attachment) = get(conn, attachment)? else {
        return Ok(());
    };
    attachment.status = AttachStatus::Attached;
    attachment.device = device.map(str::to_owned).or(attachment.device);
    attachment.host = host.map(str::to_owned).or(attachment.host);
    attachment.attached_at = attachment.attached_at.or(Some(now()));
    attachment.save(conn)?;
    follow(conn, attachment.volume)
}

/// The volume is to be taken from the server.
///
/// # Errors
/// 400 if the server does not have it.
pub fn begin_detach(conn: &Connection, volume: Uuid, server: Uuid) -> Result<()> {
    let found = one(conn, volume, server)?;
    let mut attachment = found
        .filter(|a| matches!(a.status, AttachStatus::Attached | AttachStatus::Detaching))
        .ok_or_else(|| {
            Error::BadRequest(format!(
                "Invalid volume: Unable to detach volume {volume}: it is not attached to server {server}."
            ))
        })?;
    attachment.status = AttachStatus::Detaching;
    attachment.save(conn)?;
    follow(conn, volume)
}

/// The server keeps the volume after all.
pub fn roll_detaching(conn: &Connection, volume: Uuid, server: Uuid) -> Result<()> {
    if let Some(mut attachment) = one(conn, volume, server)?
        && attachment.status == AttachStatus::Detaching
    {
        attachment.status = AttachStatus::Attached;
        attachment.save(conn)?;
    }
    follow(conn, volume)
}

/// The server does not have the volume any more, from whatever state; tells whether it had it until now.
pub fn detached(conn: &Connection, volume: Uuid, server: Uuid) -> Result<bool> {
    let found = one(conn, volume, server)?;
    if let Some(attachment) = &found {
        remove(conn, attachment.id)?;
    }
    Ok(found.is_some())
}

/// The server did not get the volume.
pub fn roll_back(conn: &Connection, attachment: Uuid) -> Result<()> {
    remove(conn, attachment)
}

/// Ends an attachment, from whatever state.
pub(super) fn remove(conn: &Connection, id: Uuid) -> Result<()> {
    let Some(attachment) = get(conn, id)? else {
        return Ok(());
    };
    conn.prepare_cached("DELETE FROM volume_attachments WHERE id = ?1")?
        .execute([id.to_string()])?;
    follow(conn, attachment.volume)
}

/// Lets a volume's state follow from its attachments.
pub(super) fn follow(conn: &Connection, volume: Uuid) -> Result<()> {
    let Some(mut volume) = row::get(conn, volume)? else {
        return Ok(());
    };
    let status = from_attachments(&of_volume(conn, volume.id)?);
    match volume.status {
        Status::Available | Status::Reserved | Status::Attaching | Status::Detaching | Status::InUse => {
            if volume.status == status {
                return Ok(());
            }
            volume.status = status;
        }
        // At work, or set aside: it goes back to what holds by then.
        _ => match volume.previous_status {
            Some(previous) if previous != status => volume.previous_status = Some(status),
            _ => return Ok(()),
        },
    }
    volume.updated_at = Some(now());
    volume.save(conn)
}

/// The state of a volume with these attachments and no work under way.
pub(super) fn from_attachments(attachments: &[Attachment]) -> Status {
    let any = |status| attachments.iter().any(|a| a.status == status);
    if any(AttachStatus::Attached) {
        Status::InUse
    } else if any(AttachStatus::Detaching) {
        Status::Detaching
    } else if any(AttachStatus::Attaching) {
        Status::Attaching
    } else if any(AttachStatus::Reserved) {
        Status::Reserved
    } else {
        Status::Available
    }
}

/// Says whose an attachment is.
pub(super) fn name_server(conn: &Connection, id: Uuid, server: Option<Uuid>, read_only: bool) -> Result<()> {
    let Some(mut attachment) = get(conn, id)? else {
        return Ok(());
    };
    attachment.server = server.or(attachment.server);
    attachment.read_only |= read_only;
    attachment.save(conn)
}

/// Moves all of a volume's attachments from one state to another.
pub(super) fn set_all(conn: &Connection, volume: Uuid, from: AttachStatus, to: AttachStatus) -> Result<()> {
    for mut attachment in of_volume(conn, volume)? {
        if attachment.status == from {
            attachment.status = to;
            attachment.save(conn)?;
        }
    }
    follow(conn, volume)
}
