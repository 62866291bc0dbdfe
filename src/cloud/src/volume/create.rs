//! New volumes.

use model::units::GIB;
use rusqlite::Connection;
use uuid::Uuid;

use super::attachments::{self, Attachment};
use super::quotas::{self, Wanted};
use super::row::{self, Origin, Pairs, Volume};
use super::status::{AttachStatus, BackupStatus, SnapshotStatus, Status, Task};
use super::{backups, snapshots, types};
use crate::compute::now;
use crate::image::Image;
use crate::{Cloud, Context, Error, Result};

/// The largest volume, in GiB: what 2^63 bytes and Cinder's own schema allow at least.
pub const MAX_SIZE: u32 = i32::MAX as u32;

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct NewVolume {
    /// Its name.
    pub name: Option<String>,
    /// Its description.
    pub description: Option<String>,
    /// In GiB; `None`: as large as what it is made of.
    pub size: Option<u32>,
    /// What it is made of.
    pub origin: Origin,
    /// Name or id of its type.
    pub volume_type: Option<String>,
    /// Where it shall be.
    pub availability_zone: Option<String>,
    /// Keys and values.
    pub metadata: Pairs,
    /// It shall be attachable to more than one server.
    pub multiattach: bool,
}

impl Default for NewVolume {
    fn default() -> Self {
        NewVolume {
            name: None,
            description: None,
            size: None,
            origin: Origin::Empty,
            volume_type: None,
            availability_zone: None,
            metadata: Pairs::new(),
            multiattach: false,
        }
    }
}

/// What a volume inherits.
#[derive(Default)]
struct Inherited {
    /// In GiB.
    least: u32,
    bootable: bool,
    image_metadata: Pairs,
    type_id: Option<Uuid>,
}

fn invalid(text: impl std::fmt::Display) -> Error {
    Error::BadRequest(format!("Invalid input received: {text}"))
}

/// Makes a volume; the reconciler makes its bytes.
///
/// # Errors
/// 400, 404 for what is named and is not there, 413 over quota.
pub async fn create(cloud: &Cloud, ctx: &Context, new: NewVolume) -> Result<Volume> {
    ctx.require("volumes", "create")?;
    let (caller, node) = (ctx.clone(), Place::of(cloud));
    cloud
        .store
        .write(&ctx.user_id, move |conn| insert(conn, &caller, &node, &new))
        .await
}

/// Where new volumes go.
#[derive(Debug, Clone)]
pub struct Place {
    node: String,
    zone: String,
}

impl Place {
    /// This node.
    pub fn of(cloud: &Cloud) -> Self {
        Place {
            node: cloud.config.node.clone(),
            zone: cloud.config.availability_zone.clone(),
        }
    }

    pub(super) fn node(&self) -> &str {
        &self.node
    }

    pub(super) fn zone(&self) -> &str {
        &self.zone
    }
}

/// Makes a volume for a server inside the server's own transaction, with the attachment that keeps it for this server. The
/// reconciler makes its bytes; then the attachment's `volume_status` is [`Status::Reserved`], or [`Status::Error`] if it failed.
///
/// # Errors
/// As [`create`].
pub fn create_for_server(
    conn: &Connection,
    ctx: &Context,
    place: &Place,
    new: &NewVolume,
    server: Uuid,
) -> Result<Attachment> {
    let volume = insert(conn, ctx, place, new)?;
    attachments::insert(conn, &volume, Some(server), AttachStatus::Reserved)
}

fn insert(conn: &Connection, ctx: &Context, place: &Place, new: &NewVolume) -> Result<Volume> {
    let inherited = inherit(conn, ctx, new)?;
    let size = match (new.size, inherited.least) {
        (Some(size), _) => size,
        (None, 0) => {
            return Err(invalid("Volume size '0' must be an integer and greater than 0"));
        }
        (None, least) => least,
    };
    if size == 0 || size > MAX_SIZE {
        return Err(invalid(format!(
            "Volume size '{size}' must be an integer and greater than 0"
        )));
    }
    if size < inherited.least {
        let least = inherited.least;
        return Err(invalid(match new.origin {
            Origin::Snapshot(_) => format!(
                "Volume size '{size}'GB cannot be smaller than the snapshot size {least}GB. They must be >= original \
                 snapshot size."
            ),
            Origin::Volume(_) => format!(
                "Volume size '{size}'GB cannot be smaller than original volume size  {least}GB. They must be >= \
                 original volume size."
            ),
            Origin::Backup(_) => {
                format!("Volume size '{size}'GB cannot be smaller than the backup size {least}GB.")
            }
            Origin::Image(_) | Origin::Empty => {
                format!("Size of specified image {least}GB is larger than volume size {size}GB.")
            }
        }));
    }
    if let Some(zone) = &new.availability_zone
        && *zone != place.zone
    {
        return Err(invalid(format!("Availability zone '{zone}' is invalid.")));
    }
    let kind = match (&new.volume_type, inherited.type_id) {
        (Some(name), _) => types::find_by_name(conn, ctx, name)?,
        (None, Some(id)) => match types::get(conn, id)? {
            Some(kind) => kind,
            None => types::default_of(conn, ctx)?,
        },
        (None, None) => types::default_of(conn, ctx)?,
    };
    let shared = kind.extra_specs.get("multiattach").is_some_and(|v| is_true(v));
    if new.multiattach || shared {
        return Err(invalid(
            "volumes of this cloud can be attached to one server at a time.",
        ));
    }
    let project = ctx.project()?;
    quotas::check(conn, project, &kind.id.to_string(), Wanted::Volume(size))?;
    let volume = Volume {
        id: Uuid::new_v4(),
        project_id: project.to_owned(),
        user_id: ctx.user_id.clone(),
        name: new.name.clone(),
        description: new.description.clone(),
        size,
        status: Status::Creating,
        task: Some(Task::Create),
        previous_status: None,
        bootable: inherited.bootable,
        multiattach: false,
        read_only: None,
        type_id: kind.id,
        availability_zone: place.zone.clone(),
        host: place.node.clone(),
        metadata: new.metadata.clone(),
        image_metadata: inherited.image_metadata,
        origin: new.origin,
        new_size: None,
        target_id: None,
        created_at: now(),
        updated_at: None,
        launched_at: None,
    };
    volume.save(conn)?;
    Ok(volume)
}

/// `<is> True`, as extra specs write it, or `true`.
pub(super) fn is_true(text: &str) -> bool {
    text.trim()
        .trim_start_matches("<is>")
        .trim()
        .eq_ignore_ascii_case("true")
}

fn inherit(conn: &Connection, ctx: &Context, new: &NewVolume) -> Result<Inherited> {
    Ok(match new.origin {
        Origin::Empty => Inherited::default(),
        Origin::Image(id) => of_image(conn, ctx, id, new.size)?,
        Origin::Volume(id) => {
            let source = row::find(conn, ctx, id)?;
            if !matches!(source.status, Status::Available | Status::InUse) {
                return Err(invalid(format!(
                    "Originating volume status must be one of 'available, in-use' values, but volume {id} is {}.",
                    source.status.name()
                )));
            }
            Inherited {
                least: source.size,
                bootable: source.bootable,
                image_metadata: source.image_metadata,
                type_id: Some(source.type_id),
            }
        }
        Origin::Snapshot(id) => {
            let source = snapshots::find(conn, ctx, id)?;
            if source.status != SnapshotStatus::Available {
                return Err(invalid(format!(
                    "Originating snapshot status must be one of 'available' values, but snapshot {id} is {}.",
                    source.status.name()
                )));
            }
            Inherited {
                least: source.size,
                bootable: source.bootable,
                image_metadata: source.image_metadata,
                type_id: Some(source.type_id),
            }
        }
        Origin::Backup(id) => {
            let source = backups::find(conn, ctx, id)?;
            if source.status != BackupStatus::Available {
                return Err(invalid(format!(
                    "Originating backup status must be one of 'available' values, but backup {id} is {}.",
                    source.status.name()
                )));
            }
            Inherited {
                least: source.size,
                ..Inherited::default()
            }
        }
    })
}

fn of_image(conn: &Connection, ctx: &Context, id: Uuid, size: Option<u32>) -> Result<Inherited> {
    let image = crate::image::find_for_boot(conn, ctx, id).map_err(|error| match error {
        // In Cinder's words.
        Error::BadRequest(_) => invalid(format!("Image {id} could not be found, or is not active.")),
        other => other,
    })?;
    if let Some(size) = size
        && size < image.min_disk
    {
        return Err(invalid(format!(
            "Volume size {size}GB cannot be smaller than the image minDisk size {}GB.",
            image.min_disk
        )));
    }
    let bytes = image.virtual_size.or(image.size).unwrap_or_default();
    Ok(Inherited {
        least: u32::try_from(bytes.div_ceil(GIB)).unwrap_or(u32::MAX).max(1),
        bootable: true,
        image_metadata: said_of(&image),
        type_id: None,
    })
}

/// What an image says of itself.
fn said_of(image: &Image) -> Pairs {
    let mut metadata: Pairs = image
        .properties
        .iter()
        .filter(|(key, _)| !key.starts_with("owner_specified."))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut note = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            metadata.insert(key.to_owned(), value);
        }
    };
    note("image_id", Some(image.id.to_string()));
    note("image_name", image.name.clone());
    note("checksum", image.checksum.clone());
    note("container_format", image.container_format.clone());
    note(
        "disk_format",
        image
            .disk_format
            .map(|format| crate::image::format_name(format).to_owned()),
    );
    note("min_disk", Some(image.min_disk.to_string()));
    note("min_ram", Some(image.min_ram.to_string()));
    note("size", image.size.map(|size| size.to_string()));
    metadata
}

/// This image has been written over a volume: the volume says of itself what the image says.
///
/// # Errors
/// If the database cannot be read or written.
pub fn reimaged(conn: &Connection, volume: Uuid, image: Uuid) -> Result<()> {
    let Some(mut volume) = row::get(conn, volume)? else {
        return Ok(());
    };
    // It may have been deleted since its bytes were taken.
    volume.image_metadata = match crate::image::find_for_boot(conn, &Context::system(), image) {
        Ok(image) => said_of(&image),
        Err(error) if error.kind().is_some() => Pairs::from([("image_id".to_owned(), image.to_string())]),
        Err(error) => return Err(error),
    };
    volume.bootable = true;
    volume.updated_at = Some(now());
    volume.save(conn)
}
