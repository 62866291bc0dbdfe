//! Servers: their rows, and the rules for making, showing and changing them.

mod create;
mod list;
mod update;

use std::collections::{BTreeMap, HashMap, HashSet};

use model::machine::Boot;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::disks::{self, Disk};
use super::flavors::Flavor;
use super::keypairs::ServerKey;
use super::ports::{self, Address};
use super::state::{Phase, Power, Task, VmState, Wanted, status};
use super::{Micros, now};
use crate::{Cloud, Context, Error, Result};

pub use super::ports::{Interface, NetRequest};
pub use create::{BlockDevice, BlockSource, Create, Created, Networks, TaggedNetwork, create};
pub(super) use create::{check_metadata_count, disk_of_image, root_size};
pub use list::{Filter, Sort, SortKey, TagFilter, list};
pub(super) use update::check_lock;
pub use update::{
    MetadataChange, TagChange, Update, change_metadata, change_tags, console_log, diagnostics, interfaces,
    update, user_data_of,
};

/// The most tags that a server may have.
pub const MAX_TAGS: usize = 50;

/// Why a server is in `ERROR`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// 500, or 400 where the tenant's data is at fault.
    pub code: u16,
    /// When.
    pub created: Micros,
    /// For the tenant.
    pub message: String,
    /// For admins.
    pub details: Option<String>,
}

/// Who locked a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockedBy {
    /// Someone of its project.
    Owner,
    /// An admin of another project: the owner cannot unlock it.
    Admin,
}

/// A row of `compute_servers`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Server {
    pub id: Uuid,
    pub project_id: String,
    pub user_id: String,
    pub name: String,
    pub description: Option<String>,
    pub hostname: String,
    /// As it was when the server was made.
    pub flavor: Flavor,
    pub image_id: Option<Uuid>,
    pub root_volume: Uuid,
    pub root_bytes: u64,
    /// As it was when the server was made.
    pub key: Option<ServerKey>,
    pub config_drive: bool,
    pub metadata: BTreeMap<String, String>,
    /// Sorted.
    pub tags: Vec<String>,
    /// The one that was asked for.
    pub availability_zone: Option<String>,
    pub access_ip_v4: Option<String>,
    pub access_ip_v6: Option<String>,
    pub reservation_id: String,
    pub launch_index: u32,
    /// `AUTO` or `MANUAL`.
    pub disk_config: String,
    pub server_group: Option<Uuid>,
    pub locked_by: Option<LockedBy>,
    pub locked_reason: Option<String>,
    pub wanted: Wanted,
    pub generation: u64,
    pub observed_generation: u64,
    pub vm_state: VmState,
    pub task_state: Option<Task>,
    pub power_state: Power,
    /// The node.
    pub host: Option<String>,
    /// The availability zone of the node.
    pub zone: Option<String>,
    pub fault: Option<Fault>,
    pub created_at: Micros,
    pub updated_at: Micros,
    pub launched_at: Option<Micros>,
    pub terminated_at: Option<Micros>,
    pub deleted: bool,
    /// The root volume is one of the block storage service.
    pub volume_backed: bool,
    /// What flavor and root volume are exchanged for, or were.
    pub exchange: Option<Exchange>,
    /// It runs, or is to run, from this rescue disk.
    pub rescue: Option<Rescue>,
    /// The image that its root volume becomes now.
    pub snapshot: Option<Uuid>,
    /// The image that it is kept as while it is shelved.
    pub shelved_image: Option<Uuid>,
    /// What it starts with.
    pub boot: Boot,
}

/// The other flavor and root volume of a server that is resized or rebuilt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exchange {
    /// How far it has come.
    pub phase: Phase,
    /// It ran before.
    pub ran: bool,
    /// The flavor that the server does not have; `None`: it is not exchanged.
    pub flavor: Option<Flavor>,
    /// The root volume that the server does not use, with its size in bytes; `None`: it is not exchanged.
    pub root: Option<(Uuid, u64)>,
    /// Write this image over the root volume, which is one of the block storage service.
    #[serde(default)]
    pub reimage: Option<Uuid>,
}

/// The disk that a server is rescued with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rescue {
    /// The volume.
    pub volume: Uuid,
    /// Its size.
    pub bytes: u64,
    /// What it is made of.
    pub image: Uuid,
    /// What it starts with.
    #[serde(default)]
    pub boot: Boot,
}

const COLUMNS: &str = "id, project_id, user_id, name, description, hostname, flavor, image_id, root_volume, \
     root_bytes, key_pair, config_drive, metadata, tags, availability_zone, access_ip_v4, access_ip_v6, \
     reservation_id, launch_index, disk_config, server_group, locked_by, locked_reason, wanted, generation, \
     observed_generation, vm_state, task_state, power_state, host, fault, created_at, updated_at, launched_at, \
     terminated_at, deleted, zone, volume_backed, exchange, rescue, snapshot, shelved_image, boot";

fn broken(column: usize, text: &str) -> rusqlite::Error {
    let text = format!(
        "'{}' is not a value of this column",
        text.chars().take(64).collect::<String>()
    );
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, text.into())
}

/// A column of JSON.
pub(super) fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text = row
        .get_ref(column)?
        .as_str()
        .map_err(|e| broken(column, &e.to_string()))?;
    serde_json::from_str(text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

fn json_or_null<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    if row.get_ref(column)? == rusqlite::types::ValueRef::Null {
        Ok(None)
    } else {
        json(row, column).map(Some)
    }
}

/// A value as a column of JSON.
pub(super) fn to_json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Internal(format!("a column as JSON: {e}")))
}

/// A column with a UUID's text.
pub(super) fn uuid(row: &Row<'_>, column: usize) -> rusqlite::Result<Uuid> {
    let text: String = row.get(column)?;
    text.parse().map_err(|_| broken(column, &text))
}

fn uuid_or_null(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Uuid>> {
    let text: Option<String> = row.get(column)?;
    text.map(|t| t.parse().map_err(|_| broken(column, &t)))
        .transpose()
}

fn parsed<T>(row: &Row<'_>, column: usize, parse: impl Fn(&str) -> Option<T>) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    parse(&text).ok_or_else(|| broken(column, &text))
}

impl Server {
    fn of_row(row: &Row<'_>) -> rusqlite::Result<Server> {
        let task: Option<String> = row.get(27)?;
        let locked_by: Option<String> = row.get(21)?;
        Ok(Server {
            id: uuid(row, 0)?,
            project_id: row.get(1)?,
            user_id: row.get(2)?,
            name: row.get(3)?,
            description: row.get(4)?,
            hostname: row.get(5)?,
            flavor: json(row, 6)?,
            image_id: uuid_or_null(row, 7)?,
            root_volume: uuid(row, 8)?,
            root_bytes: row.get(9)?,
            key: json_or_null(row, 10)?,
            config_drive: row.get(11)?,
            metadata: json(row, 12)?,
            tags: json(row, 13)?,
            availability_zone: row.get(14)?,
            access_ip_v4: row.get(15)?,
            access_ip_v6: row.get(16)?,
            reservation_id: row.get(17)?,
            launch_index: row.get(18)?,
            disk_config: row.get(19)?,
            server_group: uuid_or_null(row, 20)?,
            locked_by: locked_by.map(|by| {
                if by == "admin" {
                    LockedBy::Admin
                } else {
                    LockedBy::Owner
                }
            }),
            locked_reason: row.get(22)?,
            wanted: parsed(row, 23, Wanted::parse)?,
            generation: row.get(24)?,
            observed_generation: row.get(25)?,
            vm_state: parsed(row, 26, VmState::parse)?,
            task_state: match task {
                Some(text) => Some(Task::parse(&text).ok_or_else(|| broken(27, &text))?),
                None => None,
            },
            power_state: Power::of_number(row.get(28)?),
            host: row.get(29)?,
            fault: json_or_null(row, 30)?,
            created_at: row.get(31)?,
            updated_at: row.get(32)?,
            launched_at: row.get(33)?,
            terminated_at: row.get(34)?,
            deleted: row.get(35)?,
            zone: row.get(36)?,
            volume_backed: row.get(37)?,
            exchange: json_or_null(row, 38)?,
            rescue: json_or_null(row, 39)?,
            snapshot: uuid_or_null(row, 40)?,
            shelved_image: uuid_or_null(row, 41)?,
            boot: json_or_null(row, 42)?.unwrap_or_default(),
        })
    }

    /// Inserts the row, or makes it equal to this.
    pub(super) fn save(&self, conn: &Connection) -> Result<()> {
        let most = self.most();
        let places: Vec<String> = (1..=43).map(|n| format!("?{n}")).collect();
        let locked_by = self
            .locked_by
            .map(|by| if by == LockedBy::Admin { "admin" } else { "owner" });
        let sets: Vec<String> = COLUMNS
            .split(", ")
            .skip(1)
            .map(|c| format!("{c} = excluded.{c}", c = c.trim()))
            .collect();
        conn.prepare_cached(&format!(
            "INSERT INTO compute_servers ({COLUMNS}, vcpus, ram_mib) VALUES ({}, ?44, ?45) \
             ON CONFLICT (id) DO UPDATE SET vcpus = excluded.vcpus, ram_mib = excluded.ram_mib, {}",
            places.join(", "),
            sets.join(", ")
        ))?
        .execute(params![
            self.id.to_string(),
            self.project_id,
            self.user_id,
            self.name,
            self.description,
            self.hostname,
            to_json(&self.flavor)?,
            self.image_id.map(|id| id.to_string()),
            self.root_volume.to_string(),
            self.root_bytes,
            self.key.as_ref().map(to_json).transpose()?,
            self.config_drive,
            to_json(&self.metadata)?,
            to_json(&self.tags)?,
            self.availability_zone,
            self.access_ip_v4,
            self.access_ip_v6,
            self.reservation_id,
            self.launch_index,
            self.disk_config,
            self.server_group.map(|id| id.to_string()),
            locked_by,
            self.locked_reason,
            self.wanted.as_str(),
            self.generation,
            self.observed_generation,
            self.vm_state.as_str(),
            self.task_state.map(Task::as_str),
            self.power_state as u8,
            self.host,
            self.fault.as_ref().map(to_json).transpose()?,
            self.created_at,
            self.updated_at,
            self.launched_at,
            self.terminated_at,
            self.deleted,
            self.zone,
            self.volume_backed,
            self.exchange.as_ref().map(to_json).transpose()?,
            self.rescue.as_ref().map(to_json).transpose()?,
            self.snapshot.map(|id| id.to_string()),
            self.shelved_image.map(|id| id.to_string()),
            (self.boot != Boot::Bios)
                .then(|| to_json(&self.boot))
                .transpose()?,
            most.0,
            most.1,
        ])?;
        Ok(())
    }

    /// Nova's `status`.
    pub fn status(&self) -> &'static str {
        if self.deleted {
            "DELETED"
        } else {
            status(self.vm_state, self.task_state)
        }
    }

    /// The availability zone that it is in, or will be.
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref().or(self.availability_zone.as_deref())
    }

    /// What the state machine needs to know.
    pub(super) fn state(&self) -> super::state::Row {
        super::state::Row {
            wanted: self.wanted,
            vm: self.vm_state,
            task: self.task_state,
            launched: self.launched_at.is_some(),
            deleted: self.deleted,
            placed: self.host.is_some(),
            phase: self.exchange.as_ref().map(|e| e.phase),
            ran: self.exchange.as_ref().is_none_or(|e| e.ran),
            rescue: self.rescue.is_some(),
        }
    }

    /// Virtual processors and memory that the server needs at most: between a resize and the word on it, the larger of
    /// both flavors', so that a way back is always free.
    pub(super) fn most(&self) -> (u32, u64) {
        let other = self.exchange.as_ref().and_then(|e| e.flavor.as_ref());
        other.map_or((self.flavor.vcpus, self.flavor.ram), |other| {
            (self.flavor.vcpus.max(other.vcpus), self.flavor.ram.max(other.ram))
        })
    }

    /// Exchanges flavor and root volume for the others.
    pub(super) fn exchange(&mut self) {
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        if let Some(flavor) = &mut exchange.flavor {
            std::mem::swap(flavor, &mut self.flavor);
        }
        if let Some((volume, bytes)) = &mut exchange.root {
            std::mem::swap(volume, &mut self.root_volume);
            std::mem::swap(bytes, &mut self.root_bytes);
        }
        exchange.phase = match exchange.phase {
            Phase::Prepared => Phase::Swapped,
            Phase::Swapped | Phase::Reverted => Phase::Reverted,
        };
    }

    /// Bytes of the local disks that hang on the row itself.
    pub(super) fn root_bytes_in_all(&self) -> u64 {
        let own = if self.volume_backed || self.vm_state == VmState::ShelvedOffloaded {
            0
        } else {
            self.root_bytes
        };
        let other = self
            .exchange
            .as_ref()
            .and_then(|e| e.root)
            .map_or(0, |(_, bytes)| bytes);
        let rescue = self.rescue.as_ref().map_or(0, |r| r.bytes);
        own.saturating_add(other).saturating_add(rescue)
    }

    /// The name of the guest as engines' logs have it, in Nova's form.
    pub fn instance_name(&self) -> String {
        format!("instance-{:08x}", (self.id.as_u128() >> 96) as u32)
    }

    /// The node as tenants may know it.
    pub fn host_id(&self) -> String {
        host_id(&self.project_id, self.host.as_deref())
    }
}

/// A hash of project and node: tenants can tell whether two of their servers share a node, and nothing else.
pub(super) fn host_id(project: &str, host: Option<&str>) -> String {
    use sha2::{Digest, Sha224};
    let Some(host) = host else { return String::new() };
    let hash = Sha224::new().chain_update(project).chain_update(host).finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The row of this id, history included.
pub(super) fn get(conn: &Connection, id: Uuid) -> Result<Option<Server>> {
    let mut query = conn.prepare_cached(&format!("SELECT {COLUMNS} FROM compute_servers WHERE id = ?1"))?;
    Ok(query.query_row([id.to_string()], Server::of_row).optional()?)
}

/// The server of this id, if it is there and the caller may see it.
pub(crate) fn find(conn: &Connection, ctx: &Context, id: &str) -> Result<Server> {
    let missing = || Error::not_found("Instance", id);
    let uuid: Uuid = id.parse().map_err(|_| missing())?;
    let server = get(conn, uuid)?.ok_or_else(missing)?;
    if server.deleted || !ctx.sees(&server.project_id) {
        Err(missing())
    } else {
        Ok(server)
    }
}

/// A server with what other tables say of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Details {
    /// Its row.
    pub server: Server,
    /// Its addresses by network, floating ones included.
    pub addresses: Vec<Address>,
    /// The names of its security groups.
    pub security_groups: Vec<String>,
    /// Its volumes.
    pub volumes: Vec<Disk>,
    /// What the guest is given at its first start, as base64; for admins.
    pub user_data: Option<String>,
}

impl Details {
    /// The row alone.
    fn of_row(server: Server) -> Details {
        Details {
            server,
            addresses: Vec::new(),
            security_groups: Vec::new(),
            volumes: Vec::new(),
            user_data: None,
        }
    }
}

fn details(conn: &Connection, server: Server, with_user_data: bool) -> Result<Details> {
    let user_data = if with_user_data {
        user_data(conn, server.id)?
    } else {
        None
    };
    let (addresses, security_groups) = if server.deleted {
        (Vec::new(), Vec::new())
    } else {
        (
            ports::addresses(conn, server.id)?,
            ports::security_group_names(conn, server.id)?,
        )
    };
    let mut volumes = disks::of_server(conn, server.id)?;
    volumes.retain(|disk| !disk.local);
    Ok(Details {
        addresses,
        security_groups,
        volumes,
        user_data,
        server,
    })
}

/// The user data of a server, as base64.
pub(super) fn user_data(conn: &Connection, id: Uuid) -> Result<Option<String>> {
    let mut query = conn.prepare_cached("SELECT data FROM compute_user_data WHERE server_id = ?1")?;
    Ok(query.query_row([id.to_string()], |row| row.get(0)).optional()?)
}

/// The user data of many servers.
fn user_data_of_all(conn: &Connection, ids: &HashSet<Uuid>) -> Result<HashMap<Uuid, String>> {
    let list: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    let mut query = conn.prepare_cached(
        "SELECT server_id, data FROM compute_user_data WHERE server_id IN (SELECT value FROM json_each(?1))",
    )?;
    let found = query.query_map([to_json(&list)?], |row| Ok((uuid(row, 0)?, row.get(1)?)))?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// One server.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Details> {
    ctx.require("servers", "show")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    let admin = ctx.is_admin();
    cloud
        .store
        .read(move |conn| details(conn, find(conn, &ctx, &id)?, admin))
        .await
}

/// Writes down that someone asked for something (`os-instance-actions`).
///
/// `done`: it needed no work on the node.
pub(super) fn record(
    conn: &Connection,
    ctx: &Context,
    server: &Server,
    (action, event): (&str, &str),
    done: bool,
) -> Result<()> {
    let now = now();
    conn.prepare_cached(
        "INSERT INTO compute_actions (server_id, request_id, action, event, user_id, project_id, host, started_at, \
         updated_at, finished_at, result) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8, ?9, ?10) \
         ON CONFLICT (server_id, request_id) DO UPDATE SET action = excluded.action, event = excluded.event, \
         updated_at = excluded.updated_at, finished_at = excluded.finished_at, result = excluded.result",
    )?
    .execute(params![
        server.id.to_string(),
        ctx.request_id,
        action,
        event,
        ctx.user_id,
        ctx.project().unwrap_or(&server.project_id),
        server.host,
        now,
        done.then_some(now),
        done.then_some("Success"),
    ])?;
    super::actions::forget_old(conn, server.id)
}

/// A server for tests, as `create` leaves it.
#[cfg(test)]
pub(super) fn sample(name: &str) -> Server {
    let time = now();
    Server {
        id: Uuid::new_v4(),
        project_id: "p".into(),
        user_id: "u".into(),
        name: name.into(),
        description: None,
        hostname: name.into(),
        flavor: Flavor {
            id: "f".into(),
            name: "f".into(),
            vcpus: 1,
            ram: 1024,
            disk: 1,
            ephemeral: 0,
            swap: 0,
            rxtx_factor: 1.0,
            is_public: true,
            description: None,
            extra_specs: BTreeMap::new(),
        },
        image_id: Some(Uuid::from_u128(7)),
        root_volume: Uuid::new_v4(),
        root_bytes: 1 << 30,
        key: None,
        config_drive: false,
        metadata: BTreeMap::new(),
        tags: Vec::new(),
        availability_zone: None,
        access_ip_v4: None,
        access_ip_v6: None,
        reservation_id: "r-1".into(),
        launch_index: 0,
        disk_config: "MANUAL".into(),
        server_group: None,
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
        created_at: time,
        updated_at: time,
        launched_at: None,
        terminated_at: None,
        deleted: false,
        volume_backed: false,
        exchange: None,
        rescue: None,
        snapshot: None,
        shelved_image: None,
        boot: Boot::Bios,
    }
}
