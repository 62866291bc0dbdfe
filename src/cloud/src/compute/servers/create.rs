//! Making servers: one transaction decides and reserves everything; the reconciler does the rest.

use std::collections::BTreeMap;

use model::machine::Boot;
use model::units::{GIB, MIB};
use rusqlite::{Connection, params};
use uuid::Uuid;

use super::{MAX_TAGS, Server, record};
use crate::compute::disks::{self, Disk, DiskState};
use crate::compute::images::{self, Image};
use crate::compute::keypairs::{self, ServerKey};
use crate::compute::ports::{self, NetRequest};
use crate::compute::quotas::{self, Resource};
use crate::compute::state::{Power, Task, VmState, Wanted};
use crate::compute::volumes::{self, MadeOf, Place, Reserved};
use crate::compute::{aggregates, boot, flavors, groups, now};
use crate::error::Kind;
use crate::{Cloud, Context, Error, Result};

/// The most servers that one request may make.
const MAX_COUNT: u32 = 1000;

/// Which networks a server is plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Networks {
    /// Nothing was said (before 2.37): the project's one network, if it has one.
    Unsaid,
    /// `auto` (2.37): the project's one network; having none is an error.
    Auto,
    /// `none` (2.37).
    None,
    /// These.
    List(Vec<TaggedNetwork>),
}

/// A network of a new server, and what its interface is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaggedNetwork {
    /// The network.
    pub request: NetRequest,
    /// The interface's tag (2.32, 2.42).
    pub tag: Option<String>,
}

/// What a disk of a new server is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockSource {
    /// Nothing.
    Blank,
    /// An image.
    Image(Uuid),
    /// A snapshot of a volume.
    Snapshot(Uuid),
    /// It is this volume.
    Volume(Uuid),
}

/// An entry of `block_device_mapping_v2`, beside that of a local root disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct BlockDevice {
    pub source: BlockSource,
    /// A volume of the block storage service; else a local disk, which is blank.
    pub volume: bool,
    pub size_gib: Option<u32>,
    /// The server boots from it.
    pub boot: bool,
    /// A local disk for swap, whose size is the flavor's.
    pub swap: bool,
    pub delete_on_termination: bool,
    pub tag: Option<String>,
    pub volume_type: Option<String>,
}

/// What is asked for.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Create {
    pub name: String,
    pub description: Option<String>,
    pub hostname: Option<String>,
    /// `None`: boot from a volume of `devices`.
    pub image: Option<Uuid>,
    pub devices: Vec<BlockDevice>,
    pub flavor: String,
    pub networks: Networks,
    /// Names or ids; empty: the project's default group.
    pub security_groups: Vec<String>,
    pub key_name: Option<String>,
    /// Base64, checked.
    pub user_data: Option<String>,
    pub config_drive: bool,
    pub metadata: BTreeMap<String, String>,
    pub tags: Vec<String>,
    pub min_count: u32,
    pub max_count: u32,
    pub availability_zone: Option<String>,
    /// A node that an admin names.
    pub host: Option<String>,
    pub access_ip_v4: Option<String>,
    pub access_ip_v6: Option<String>,
    pub disk_config: String,
    pub server_group: Option<Uuid>,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// The servers' ids.
    pub servers: Vec<Uuid>,
    /// Common to all of them.
    pub reservation_id: String,
    /// Names of the security groups that were asked for.
    pub security_groups: Vec<String>,
}

/// Makes servers' rows and ports. They are `BUILD` when this returns.
pub async fn create(cloud: &Cloud, ctx: &Context, mut create: Create) -> Result<Created> {
    ctx.require("servers", "create")?;
    let project = ctx.project()?.to_owned();
    check_zone(cloud, ctx, &mut create)?;
    if create.min_count == 0 || create.min_count > create.max_count {
        return Err(Error::BadRequest("min_count must be <= max_count".into()));
    }
    if create.max_count > MAX_COUNT {
        return Err(Error::BadRequest(format!(
            "At most {MAX_COUNT} servers can be made at once."
        )));
    }
    check_several(&create)?;
    create.tags.sort();
    create.tags.dedup();
    if create.tags.len() > MAX_TAGS {
        return Err(Error::BadRequest(format!(
            "A server has at most {MAX_TAGS} tags."
        )));
    }
    let ids: Vec<(Uuid, Uuid)> = (0..create.max_count)
        .map(|_| (Uuid::new_v4(), Uuid::new_v4()))
        .collect();
    let reservation: String = ids[0].1.simple().to_string().chars().take(8).collect();
    let reservation_id = format!("r-{reservation}");
    let names = create.security_groups.clone();
    let place = Place::of(cloud);
    let (node, settings) = (cloud.config.node.clone(), cloud.config.availability_zone.clone());
    let ctx = ctx.clone();
    let actor = ctx.user_id.clone();
    let servers = cloud
        .store
        .write(&actor, {
            let reservation_id = reservation_id.clone();
            move |conn| {
                if let Some(zone) = &create.availability_zone {
                    aggregates::check_zone(conn, &node, &settings, zone)?;
                }
                insert(conn, &ctx, &project, &create, &ids, &reservation_id, &place)
            }
        })
        .await?;
    Ok(Created {
        servers,
        reservation_id,
        security_groups: names,
    })
}

/// `zone` or, for admins, `zone:host` and `zone:host:node`.
fn check_zone(cloud: &Cloud, ctx: &Context, create: &mut Create) -> Result<()> {
    if let Some(zone) = &create.availability_zone {
        let mut parts = zone.split(':');
        let name = parts.next().unwrap_or_default().to_owned();
        let host = parts.find(|p| !p.is_empty()).map(str::to_owned);
        create.availability_zone = Some(name).filter(|n| !n.is_empty());
        create.host = create.host.take().or(host);
    }
    if let Some(host) = &create.host {
        ctx.require("servers", "create_on_host")?;
        if *host != cloud.config.node {
            return Err(Error::BadRequest(format!(
                "Compute host {host} could not be found."
            )));
        }
    }
    Ok(())
}

/// What cannot be shared by several servers.
fn check_several(create: &Create) -> Result<()> {
    if let (Networks::List(list), 2..) = (&create.networks, create.max_count) {
        if list.iter().any(|n| n.request.port.is_some()) {
            return Err(Error::BadRequest(
                "Unable to launch multiple instances with a single configured port ID. Please launch your instance \
                 one by one with different ports."
                    .into(),
            ));
        }
        if list.iter().any(|n| n.request.fixed_ip.is_some()) {
            return Err(Error::BadRequest(
                "Invalid fixed IP Address in server create request: it cannot be given to multiple instances.".into(),
            ));
        }
    }
    Ok(())
}

fn insert(
    conn: &Connection,
    ctx: &Context,
    project: &str,
    create: &Create,
    ids: &[(Uuid, Uuid)],
    reservation_id: &str,
    place: &Place,
) -> Result<Vec<Uuid>> {
    let flavor = flavors::find(conn, ctx, &create.flavor).map_err(as_bad_request)?;
    let mut image = create.image.map(|id| images::find(conn, ctx, id)).transpose()?;
    // An image of a server that was booted from a volume names snapshots of its volumes.
    let mapped = match &image {
        Some(image) => images::mapping(image)?,
        None => None,
    };
    let devices = match mapped {
        Some(mut mapped) => {
            image = None;
            mapped.extend(create.devices.iter().filter(|d| !d.boot).cloned());
            mapped
        }
        None => create.devices.clone(),
    };
    check_devices(conn, ctx, create, &flavor, image.is_some(), &devices)?;
    let root_bytes = image
        .as_ref()
        .map(|image| root_size(&flavor, image))
        .transpose()?;
    let key = match &create.key_name {
        Some(name) => {
            let pair = keypairs::find(conn, &ctx.user_id, name)
                .map_err(|_| Error::BadRequest("Invalid key_name provided.".into()))?;
            Some(ServerKey {
                name: pair.name,
                kind: pair.kind,
                public_key: pair.public_key,
            })
        }
        None => None,
    };
    check_metadata_count(conn, project, create.metadata.len())?;
    let count = quotas::fit(
        conn,
        project,
        flavor.vcpus,
        flavor.ram,
        create.min_count,
        create.max_count,
    )?;
    if let Some(group) = create.server_group {
        groups::check_room(conn, ctx, group, count)?;
    }
    let networks = resolve_networks(conn, ctx, &create.networks)?;
    let groups =
        ports::resolve_security_groups(conn, ctx, &create.security_groups).map_err(as_bad_request)?;
    let now = now();
    let mut made = Vec::with_capacity(count as usize);
    for (index, &(id, root_volume)) in (0..count).zip(ids) {
        let suffix = if create.max_count > 1 {
            format!("-{}", index + 1)
        } else {
            String::new()
        };
        let name = format!("{}{suffix}", create.name);
        let hostname = match &create.hostname {
            Some(hostname) => format!("{hostname}{suffix}"),
            None => default_hostname(&name, id),
        };
        let disks = make_disks(conn, ctx, place, id, &flavor, &devices)?;
        let boot = disks.iter().find(|disk| disk.position == 0);
        let server = Server {
            id,
            project_id: project.to_owned(),
            user_id: ctx.user_id.clone(),
            name,
            description: create.description.clone(),
            hostname,
            flavor: flavor.clone(),
            image_id: image.as_ref().map(|image| image.id),
            root_volume: boot.map_or(root_volume, |disk| disk.volume),
            root_bytes: boot.map(|disk| disk.size).or(root_bytes).unwrap_or_default(),
            key: key.clone(),
            config_drive: create.config_drive,
            metadata: create.metadata.clone(),
            tags: create.tags.clone(),
            availability_zone: create.availability_zone.clone(),
            access_ip_v4: create.access_ip_v4.clone(),
            access_ip_v6: create.access_ip_v6.clone(),
            reservation_id: reservation_id.to_owned(),
            launch_index: index,
            disk_config: create.disk_config.clone(),
            server_group: create.server_group,
            locked_by: None,
            locked_reason: None,
            wanted: Wanted::Active,
            generation: 1,
            observed_generation: 0,
            vm_state: VmState::Building,
            task_state: Some(Task::Scheduling),
            power_state: Power::NoState,
            host: None,
            zone: None,
            fault: None,
            created_at: now,
            updated_at: now,
            launched_at: None,
            terminated_at: None,
            deleted: false,
            volume_backed: boot.is_some(),
            exchange: None,
            rescue: None,
            snapshot: None,
            shelved_image: None,
            boot: match (&image, boot) {
                (Some(image), _) => boot::of_properties(conn, ctx, &image.properties)?,
                (None, Some(disk)) => {
                    boot::of_properties(conn, ctx, &volumes::image_metadata(conn, disk.volume)?)?
                }
                (None, None) => Boot::Bios,
            },
        };
        server.save(conn)?;
        for disk in &disks {
            disk.save(conn)?;
        }
        if let Some(data) = &create.user_data {
            conn.prepare_cached("INSERT INTO compute_user_data (server_id, data) VALUES (?1, ?2)")?
                .execute(params![id.to_string(), data])?;
        }
        for request in &networks {
            let port =
                ports::create_for_server(conn, ctx, id, &request.request, &groups).map_err(as_bad_request)?;
            if let Some(tag) = &request.tag {
                conn.execute(
                    "INSERT OR REPLACE INTO compute_port_tags (port_id, server_id, tag) VALUES (?1, ?2, ?3)",
                    params![port.to_string(), id.to_string(), tag],
                )?;
            }
        }
        record(
            conn,
            ctx,
            &server,
            ("create", "compute__do_build_and_run_instance"),
            false,
        )?;
        made.push(id);
    }
    Ok(made)
}

/// The server has one disk to boot from, and no more local ones than its flavor allows.
fn check_devices(
    conn: &Connection,
    ctx: &Context,
    create: &Create,
    flavor: &flavors::Flavor,
    image: bool,
    devices: &[BlockDevice],
) -> Result<()> {
    let invalid = |why: &str| Error::BadRequest(format!("Block Device Mapping is Invalid: {why}"));
    let boots = devices.iter().filter(|device| device.boot).count();
    if boots + usize::from(image) != 1 {
        return Err(invalid(
            "Boot sequence for the instance and image/block device mapping combination is not valid.",
        ));
    }
    let (mut ephemeral, mut swaps) = (0_u64, 0);
    for device in devices {
        if device.volume {
            if let (BlockSource::Volume(_), 2..) = (device.source, create.max_count) {
                return Err(Error::BadRequest(
                    "Cannot attach one or more volumes to multiple instances".into(),
                ));
            }
            if device.boot
                && let BlockSource::Image(id) = device.source
                && images::find(conn, ctx, id)?.min_ram > flavor.ram
            {
                return Err(Error::BadRequest(
                    "Flavor's memory is too small for requested image.".into(),
                ));
            }
        } else if device.swap {
            swaps += 1;
        } else {
            ephemeral = ephemeral.saturating_add(device.size_gib.map_or(flavor.ephemeral, u64::from));
        }
    }
    if ephemeral > flavor.ephemeral {
        return Err(invalid(
            "Ephemeral disks requested are larger than the instance type allows. If no size is given in one block \
             device mapping, flavor ephemeral size will be used.",
        ));
    }
    if swaps > 1 || (swaps == 1 && flavor.swap == 0) {
        return Err(invalid(
            "Swap drive requested is larger than instance type allows.",
        ));
    }
    Ok(())
}

/// The disks of a new server beside a local root disk: volumes that are kept or made for it, and its flavor's blank ones.
fn make_disks(
    conn: &Connection,
    ctx: &Context,
    place: &Place,
    server: Uuid,
    flavor: &flavors::Flavor,
    devices: &[BlockDevice],
) -> Result<Vec<Disk>> {
    let mut made: Vec<Disk> = Vec::new();
    let add = |made: &mut Vec<Disk>, device: Option<&BlockDevice>, what: What| -> Result<()> {
        let position = if device.is_some_and(|d| d.boot) {
            0
        } else {
            disks::free_position(made)?
        };
        let (volume, size, attachment) = match what {
            What::Local(bytes) => (Uuid::new_v4(), bytes, None),
            What::Volume(reserved) => (reserved.volume, reserved.bytes, Some(reserved.attachment)),
        };
        made.push(Disk {
            server,
            volume,
            device: disks::device(position),
            position,
            local: attachment.is_none(),
            size,
            state: if attachment.is_some() {
                DiskState::Attaching
            } else {
                DiskState::Attached
            },
            attachment,
            delete_on_termination: device.is_none_or(|d| d.delete_on_termination),
            tag: device.and_then(|d| d.tag.clone()),
            request_id: None,
        });
        Ok(())
    };
    let local = |device: &&BlockDevice| !device.volume && !device.swap;
    if flavor.ephemeral > 0 && !devices.iter().any(|d| local(&d)) {
        add(&mut made, None, What::Local(flavor.ephemeral.saturating_mul(GIB)))?;
    }
    for device in devices.iter().filter(local) {
        let gib = device.size_gib.map_or(flavor.ephemeral, u64::from);
        if gib > 0 {
            add(&mut made, Some(device), What::Local(gib.saturating_mul(GIB)))?;
        }
    }
    if flavor.swap > 0 {
        let device = devices.iter().find(|d| d.swap);
        add(&mut made, device, What::Local(flavor.swap.saturating_mul(MIB)))?;
    }
    for device in devices.iter().filter(|d| d.volume) {
        let new = |made_of| (made_of, device.size_gib, device.volume_type.as_deref());
        let reserved = match device.source {
            BlockSource::Volume(id) => volumes::reserve(conn, ctx, id, server),
            BlockSource::Blank => volumes::make(conn, ctx, place, new(MadeOf::Blank), server),
            BlockSource::Image(id) => volumes::make(conn, ctx, place, new(MadeOf::Image(id)), server),
            BlockSource::Snapshot(id) => volumes::make(conn, ctx, place, new(MadeOf::Snapshot(id)), server),
        };
        let reserved = reserved.map_err(as_bad_request)?;
        if device.boot && !reserved.bootable {
            return Err(Error::BadRequest(format!(
                "Block Device Mapping is Invalid: Volume {} is not bootable.",
                reserved.volume
            )));
        }
        add(&mut made, Some(device), What::Volume(reserved))?;
    }
    Ok(made)
}

/// What a new disk is.
enum What {
    /// A local one of this many bytes.
    Local(u64),
    /// A volume.
    Volume(Reserved),
}

/// What a request names and is not there makes it a bad request, as Nova has it.
fn as_bad_request(error: Error) -> Error {
    if error.kind() == Some(Kind::NotFound) {
        Error::BadRequest(error.to_string())
    } else {
        error
    }
}

pub(in crate::compute) fn check_metadata_count(conn: &Connection, project: &str, count: usize) -> Result<()> {
    let limit = quotas::limit(conn, project, Resource::MetadataItems)?;
    if limit >= 0 && i64::try_from(count).unwrap_or(i64::MAX) > limit {
        return Err(Error::QuotaExceeded(format!(
            "Maximum number of metadata items exceeds {limit}"
        )));
    }
    Ok(())
}

fn resolve_networks(conn: &Connection, ctx: &Context, networks: &Networks) -> Result<Vec<TaggedNetwork>> {
    let list = match networks {
        Networks::None => return Ok(Vec::new()),
        Networks::List(list) if !list.is_empty() => return Ok(list.clone()),
        Networks::Unsaid | Networks::Auto | Networks::List(_) => ports::available_networks(conn, ctx)?,
    };
    match list[..] {
        [] if *networks == Networks::Auto => Err(Error::BadRequest(
            "Unable to automatically allocate a network: the project has none. Make a network and a subnet first, or \
             ask for networks 'none'."
                .into(),
        )),
        [] => Ok(Vec::new()),
        [network] => Ok(vec![TaggedNetwork {
            request: NetRequest { network: Some(network), port: None, fixed_ip: None },
            tag: None,
        }]),
        _ => Err(Error::Conflict(
            "Multiple possible networks found, use a Network ID to be more specific.".into(),
        )),
    }
}

/// The largest disk that an image decides the size of, in GiB: as large as the largest of the flavors that are shipped.
const MAX_DISK_OF_IMAGE: u64 = 100;

/// The size in bytes of a disk that no flavor has a size for. What the image's owner would like (`min_disk`) costs them
/// nothing, so it does not count.
pub(in crate::compute) fn disk_of_image(image: &Image) -> Result<u64> {
    let gib = image.virtual_size.div_ceil(GIB).max(1);
    if gib > MAX_DISK_OF_IMAGE {
        return Err(Error::BadRequest(format!(
            "Image {} has {gib} GiB, and a disk whose size no flavor says has at most {MAX_DISK_OF_IMAGE} GiB: name a \
             smaller image, choose a flavor with a disk, or boot from a volume.",
            image.id
        )));
    }
    Ok(gib * GIB)
}

/// The root disk's size in bytes.
pub(in crate::compute) fn root_size(flavor: &flavors::Flavor, image: &Image) -> Result<u64> {
    if image.min_ram > flavor.ram {
        return Err(Error::BadRequest(
            "Flavor's memory is too small for requested image.".into(),
        ));
    }
    if flavor.disk == 0 {
        return disk_of_image(image);
    }
    let size = flavor.disk.saturating_mul(GIB);
    if image.virtual_size > size {
        return Err(Error::BadRequest(format!(
            "Flavor's disk is too small for requested image. Flavor disk is {size} bytes, image is {} bytes.",
            image.virtual_size
        )));
    }
    if image.min_disk > flavor.disk {
        return Err(Error::BadRequest(format!(
            "Flavor's disk is smaller than the minimum size specified in image metadata. Flavor disk is {size} bytes, \
             minimum size is {} bytes.",
            image.min_disk.saturating_mul(GIB)
        )));
    }
    debug_assert!(size.is_multiple_of(MIB));
    Ok(size)
}

/// A host name that DNS takes, made from the server's name (RFC 1123 §2.1).
pub(super) fn default_hostname(name: &str, id: Uuid) -> String {
    let mut hostname = String::with_capacity(63);
    for c in name.chars() {
        match c {
            'a'..='z' | '0'..='9' | '-' => hostname.push(c),
            'A'..='Z' => hostname.push(c.to_ascii_lowercase()),
            ' ' | '_' | '.' => hostname.push('-'),
            _ => {}
        }
        if hostname.len() == 63 {
            break;
        }
    }
    let trimmed = hostname.trim_matches('-');
    if trimmed.is_empty() {
        format!("server-{id}")
    } else {
        trimmed.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_ones_that_dns_takes() {
        let id = Uuid::nil();
        assert_eq!(default_hostname("My web_server.1", id), "my-web-server-1");
        assert_eq!(default_hostname("--x--", id), "x");
        assert_eq!(
            default_hostname("日本", id),
            "server-00000000-0000-0000-0000-000000000000"
        );
        assert_eq!(default_hostname(&"a".repeat(200), id).len(), 63);
    }

    #[test]
    fn without_a_disk_in_the_flavor_the_bytes_of_the_image_decide() {
        let mut flavor = crate::compute::servers::sample("vm").flavor;
        let mut image = Image {
            id: Uuid::nil(),
            virtual_size: GIB + 1,
            min_disk: 2_147_483_647,
            min_ram: 0,
            properties: BTreeMap::new(),
        };
        assert!(root_size(&flavor, &image).is_err());
        flavor.disk = 0;
        assert_eq!(root_size(&flavor, &image).unwrap(), 2 * GIB);
        image.virtual_size = 100 * GIB;
        assert_eq!(root_size(&flavor, &image).unwrap(), 100 * GIB);
        for bytes in [100 * GIB + 1, u64::MAX] {
            image.virtual_size = bytes;
            assert!(matches!(root_size(&flavor, &image), Err(Error::BadRequest(_))));
        }
    }
}
