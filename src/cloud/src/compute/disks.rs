//! Disks of servers beside a local root disk: volumes of the block storage service, and blank local ones.
//!
//! ```text
//!   attach                       the machine has it
//!     │                                  │
//!     ▼                                  ▼
//!  attaching ── reconciler ──────────▶ attached ──── detach ──▶ detaching ── reconciler ──▶ no row
//!     │                                  ▲                        ▲ │
//!     │                                  └──── it cannot be done ─┼─┘
//!     └── it cannot be done, and the machine is to let go of it ──┘
//! ```

use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::servers::uuid;
use crate::{Error, Result};

/// How far a disk is in coming or going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskState {
    /// The machine is to get it.
    Attaching,
    /// The machine has it.
    Attached,
    /// The machine is to let go of it.
    Detaching,
}

impl DiskState {
    fn name(self) -> &'static str {
        match self {
            DiskState::Attaching => "attaching",
            DiskState::Attached => "attached",
            DiskState::Detaching => "detaching",
        }
    }

    fn of_name(name: &str) -> DiskState {
        match name {
            "attaching" => DiskState::Attaching,
            "detaching" => DiskState::Detaching,
            _ => DiskState::Attached,
        }
    }
}

/// A disk of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Disk {
    pub server: Uuid,
    pub volume: Uuid,
    /// Such as `/dev/vdb`.
    pub device: String,
    /// The guest's order; 0 is what it boots from.
    pub position: u32,
    /// It is a blank one that lives and dies with the server.
    pub local: bool,
    pub size: u64,
    pub state: DiskState,
    /// The attachment's id in the block storage service.
    pub attachment: Option<Uuid>,
    pub delete_on_termination: bool,
    pub tag: Option<String>,
    /// The request that asked for its coming or going.
    pub request_id: Option<String>,
}

/// As many as there are letters.
const MAX_DISKS: u32 = 26;

/// The name of the device at a place.
pub(super) fn device(position: u32) -> String {
    let letter = u8::try_from(position).map_or('z', |p| char::from(b'a' + p.min(25)));
    format!("/dev/vd{letter}")
}

const COLUMNS: &str = "server_id, volume_id, device, position, local, size_bytes, state, attachment_id, \
                       delete_on_termination, tag, request_id";

fn of_row(row: &Row<'_>) -> rusqlite::Result<Disk> {
    let state: String = row.get(6)?;
    let attachment: Option<String> = row.get(7)?;
    Ok(Disk {
        server: uuid(row, 0)?,
        volume: uuid(row, 1)?,
        device: row.get(2)?,
        position: row.get(3)?,
        local: row.get(4)?,
        size: row.get(5)?,
        state: DiskState::of_name(&state),
        attachment: attachment.and_then(|text| text.parse().ok()),
        delete_on_termination: row.get(8)?,
        tag: row.get(9)?,
        request_id: row.get(10)?,
    })
}

impl Disk {
    /// Inserts the row, or makes it equal to this.
    pub(super) fn save(&self, conn: &Connection) -> Result<()> {
        conn.prepare_cached(&format!(
            "INSERT OR REPLACE INTO compute_disks ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"
        ))?
        .execute(params![
            self.server.to_string(),
            self.volume.to_string(),
            self.device,
            self.position,
            self.local,
            self.size,
            self.state.name(),
            self.attachment.map(|id| id.to_string()),
            self.delete_on_termination,
            self.tag,
            self.request_id,
        ])?;
        Ok(())
    }

    /// Removes the row.
    pub(super) fn remove(&self, conn: &Connection) -> Result<()> {
        conn.prepare_cached("DELETE FROM compute_disks WHERE server_id = ?1 AND volume_id = ?2")?
            .execute([self.server.to_string(), self.volume.to_string()])?;
        Ok(())
    }
}

/// A server's disks, in the guest's order.
pub(super) fn of_server(conn: &Connection, server: Uuid) -> Result<Vec<Disk>> {
    let mut query = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM compute_disks WHERE server_id = ?1 ORDER BY position, volume_id"
    ))?;
    Ok(query
        .query_map([server.to_string()], of_row)?
        .collect::<rusqlite::Result<_>>()?)
}

/// The disks of many servers.
pub(super) fn of_servers(conn: &Connection, servers: &[String]) -> Result<Vec<Disk>> {
    let mut query = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM compute_disks WHERE server_id IN (SELECT value FROM json_each(?1)) \
         ORDER BY server_id, position"
    ))?;
    Ok(query
        .query_map([super::servers::to_json(&servers)?], of_row)?
        .collect::<rusqlite::Result<_>>()?)
}

/// One disk of a server.
pub(super) fn get(conn: &Connection, server: Uuid, volume: Uuid) -> Result<Option<Disk>> {
    let mut query = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM compute_disks WHERE server_id = ?1 AND volume_id = ?2"
    ))?;
    Ok(query
        .query_row([server.to_string(), volume.to_string()], of_row)
        .optional()?)
}

/// The first free place for one more disk.
pub(super) fn free_position(disks: &[Disk]) -> Result<u32> {
    (1..MAX_DISKS)
        .find(|position| disks.iter().all(|disk| disk.position != *position))
        .ok_or_else(|| {
            Error::Forbidden(format!(
                "The maximum allowed number of disk devices ({MAX_DISKS}) to attach to a single instance has been \
                 exceeded."
            ))
        })
}

/// A name that a client gives: a device's path.
pub(super) fn check_device_name(name: &str) -> Result<()> {
    let rest = name.strip_prefix("/dev/").unwrap_or(name);
    let right = (1..=255).contains(&rest.len())
        && rest
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if right {
        Ok(())
    } else {
        Err(Error::BadRequest(format!(
            "The supplied device path ({}) is invalid.",
            name.chars().take(64).collect::<String>()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_by_their_places() {
        assert_eq!(device(0), "/dev/vda");
        assert_eq!(device(1), "/dev/vdb");
        assert_eq!(device(25), "/dev/vdz");
        assert_eq!(device(999), "/dev/vdz");
        assert!(check_device_name("/dev/vdb").is_ok() && check_device_name("vdb").is_ok());
        assert!(check_device_name("/dev/../sda").is_err() && check_device_name("").is_err());
    }

    #[test]
    fn a_server_has_as_many_disks_as_there_are_letters() {
        let mut disks = Vec::new();
        for expected in 1..MAX_DISKS {
            let position = free_position(&disks).unwrap();
            assert_eq!(position, expected);
            disks.push(Disk {
                server: Uuid::nil(),
                volume: Uuid::new_v4(),
                device: device(position),
                position,
                local: true,
                size: 1,
                state: DiskState::Attached,
                attachment: None,
                delete_on_termination: true,
                tag: None,
                request_id: None,
            });
        }
        assert!(free_position(&disks).is_err());
        disks.remove(3);
        assert_eq!(free_position(&disks).unwrap(), 4);
    }
}
