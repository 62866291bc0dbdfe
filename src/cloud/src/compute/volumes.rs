//! The calls that compute makes to the block storage room, and nothing else.

use model::machine::MachineDisk;
use rusqlite::Connection;
use serde_json::{Map, json};
use uuid::Uuid;

use super::disks;
use super::servers::Server;
use crate::volume::attachments;
use crate::volume::status::Status;
use crate::volume::{self, NewVolume, Origin};
use crate::{Cloud, Context, Error, Result};

/// A volume that is kept for a server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reserved {
    pub(super) volume: Uuid,
    pub(super) attachment: Uuid,
    pub(super) bytes: u64,
    /// Other servers may have it, too.
    pub(super) shared: bool,
    pub(super) bootable: bool,
}

/// Whether a server's volumes have their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ready {
    Yes,
    NotYet,
    /// This one never will.
    Never(Uuid),
}

/// Where new volumes go.
#[derive(Debug, Clone)]
pub(super) struct Place(volume::Place);

impl Place {
    pub(super) fn of(cloud: &Cloud) -> Self {
        Place(volume::Place::of(cloud))
    }
}

fn reserved(conn: &Connection, attachment: &attachments::Attachment) -> Result<Reserved> {
    let volume =
        volume::get(conn, attachment.volume)?.ok_or_else(|| Error::not_found("Volume", attachment.volume))?;
    Ok(Reserved {
        volume: attachment.volume,
        attachment: attachment.id,
        bytes: attachment.bytes,
        shared: volume.multiattach,
        bootable: volume.bootable,
    })
}

/// The image that a volume was made of.
pub(super) fn image_of(conn: &Connection, id: Uuid) -> Result<Option<Uuid>> {
    let volume = volume::get(conn, id)?;
    Ok(volume.and_then(|volume| volume.image_metadata.get("image_id")?.parse().ok()))
}

/// What a volume's image said of itself.
pub(super) fn image_metadata(conn: &Connection, id: Uuid) -> Result<volume::Pairs> {
    let volume = volume::get(conn, id)?;
    Ok(volume.map(|volume| volume.image_metadata).unwrap_or_default())
}

/// This image is what the volume has now.
pub(super) fn reimaged(conn: &Connection, volume: Uuid, image: Uuid) -> Result<()> {
    volume::reimaged(conn, volume, image)
}

/// Keeps a volume for a server, which it is given next.
pub(super) fn reserve(conn: &Connection, ctx: &Context, volume: Uuid, server: Uuid) -> Result<Reserved> {
    let attachment = attachments::reserve(conn, ctx, volume, Some(server))?;
    attachments::attaching(conn, attachment.id, None)?;
    reserved(conn, &attachment)
}

/// What a volume is made of for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MadeOf {
    /// Nothing.
    Blank,
    /// An image.
    Image(Uuid),
    /// A snapshot of a volume.
    Snapshot(Uuid),
}

/// Makes a volume for a server.
pub(super) fn make(
    conn: &Connection,
    ctx: &Context,
    place: &Place,
    (of, size, volume_type): (MadeOf, Option<u32>, Option<&str>),
    server: Uuid,
) -> Result<Reserved> {
    let new = NewVolume {
        // Nova gives them no name.
        name: Some(String::new()),
        description: Some(String::new()),
        size,
        origin: match of {
            MadeOf::Blank => Origin::Empty,
            MadeOf::Image(id) => Origin::Image(id),
            MadeOf::Snapshot(id) => Origin::Snapshot(id),
        },
        volume_type: volume_type.map(str::to_owned),
        ..NewVolume::default()
    };
    let attachment = volume::create_for_server(conn, ctx, &place.0, &new, server)?;
    reserved(conn, &attachment)
}

/// The server has it.
pub(super) fn attached(conn: &Connection, attachment: Uuid, device: &str, host: &str) -> Result<()> {
    attachments::attached(conn, attachment, Some(device), Some(host))
}

/// The server is to let go of it.
pub(super) fn begin_detach(conn: &Connection, volume: Uuid, server: Uuid) -> Result<()> {
    attachments::begin_detach(conn, volume, server)
}

/// The server keeps it after all.
pub(super) fn roll_detaching(conn: &Connection, volume: Uuid, server: Uuid) -> Result<()> {
    attachments::roll_detaching(conn, volume, server)
}

/// The server does not have it any more, or did not get it.
pub(super) fn detached(conn: &Connection, volume: Uuid, server: Uuid) -> Result<()> {
    attachments::detached(conn, volume, server).map(drop)
}

/// A volume goes with its server, if the server has it and it is of the same project.
pub(super) fn delete_with_server(conn: &Connection, volume: Uuid, server: &Server) -> Result<()> {
    volume::delete_with_server(conn, volume, server.id, &server.project_id)
}

/// Whether a server's volumes have their bytes.
pub(super) fn ready(conn: &Connection, server: Uuid) -> Result<Ready> {
    let mut ready = Ready::Yes;
    for attachment in attachments::of_server(conn, server)? {
        match attachment.volume_status {
            Status::Creating | Status::Downloading => ready = Ready::NotYet,
            Status::Error => return Ok(Ready::Never(attachment.volume)),
            _ => {}
        }
    }
    Ok(ready)
}

/// A server's volumes as its machine has them.
pub(super) fn machine_disks(conn: &Connection, server: Uuid) -> Result<Vec<MachineDisk>> {
    let all = attachments::of_server(conn, server)?;
    all.iter().map(|attachment| attachment.disk(conn)).collect()
}

/// Snapshots of all volumes of a server, as an image's `block_device_mapping` has them.
pub(super) fn snapshot_all(conn: &Connection, ctx: &Context, server: &Server, name: &str) -> Result<String> {
    let mut mappings = Vec::new();
    for disk in disks::of_server(conn, server.id)?.iter().filter(|d| !d.local) {
        let snapshot =
            volume::snapshots::create_for_server(conn, ctx, disk.volume, &format!("snapshot for {name}"))?;
        let mut mapping = Map::new();
        for (key, value) in [
            ("source_type", json!("snapshot")),
            ("destination_type", json!("volume")),
            ("snapshot_id", json!(snapshot)),
            ("volume_size", json!(disk.size / model::units::GIB)),
            ("device_name", json!(disk.device)),
            (
                "boot_index",
                if disk.position == 0 { json!(0) } else { json!(null) },
            ),
            ("delete_on_termination", json!(disk.delete_on_termination)),
            ("tag", json!(disk.tag)),
            ("device_type", json!("disk")),
            ("disk_bus", json!("virtio")),
        ] {
            mapping.insert(key.to_owned(), value);
        }
        mappings.push(json!(mapping));
    }
    Ok(json!(mappings).to_string())
}
