//! Lists of servers: filters, order, pages.

use std::collections::HashMap;
use std::net::IpAddr;

use regex::Regex;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use uuid::Uuid;

use super::{COLUMNS, Details, Server, details, user_data_of_all};
use crate::compute::disks::{self, Disk};
use crate::compute::state::{Task, VmState};
use crate::compute::{Micros, ports};
use crate::{Cloud, Context, Error, Result};

/// A column that servers are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SortKey {
    CreatedAt,
    UpdatedAt,
    LaunchedAt,
    TerminatedAt,
    Name,
    Hostname,
    Description,
    Id,
    Host,
    ImageRef,
    Flavor,
    KeyName,
    LaunchIndex,
    PowerState,
    VmState,
    TaskState,
    ProjectId,
    UserId,
    AvailabilityZone,
    ConfigDrive,
    DiskConfig,
    AccessIpV4,
    AccessIpV6,
    Locked,
}

impl SortKey {
    fn column(self) -> &'static str {
        match self {
            SortKey::CreatedAt => "created_at",
            SortKey::UpdatedAt => "updated_at",
            SortKey::LaunchedAt => "launched_at",
            SortKey::TerminatedAt => "terminated_at",
            SortKey::Name => "name",
            SortKey::Hostname => "hostname",
            SortKey::Description => "description",
            SortKey::Id => "id",
            SortKey::Host => "host",
            SortKey::ImageRef => "image_id",
            SortKey::Flavor => "json_extract(flavor, '$.id')",
            SortKey::KeyName => "json_extract(key_pair, '$.name')",
            SortKey::LaunchIndex => "launch_index",
            SortKey::PowerState => "power_state",
            SortKey::VmState => "vm_state",
            SortKey::TaskState => "task_state",
            SortKey::ProjectId => "project_id",
            SortKey::UserId => "user_id",
            SortKey::AvailabilityZone => "availability_zone",
            SortKey::ConfigDrive => "config_drive",
            SortKey::DiskConfig => "disk_config",
            SortKey::AccessIpV4 => "access_ip_v4",
            SortKey::AccessIpV6 => "access_ip_v6",
            SortKey::Locked => "locked_by IS NOT NULL",
        }
    }
}

/// A key and its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sort {
    /// The key.
    pub key: SortKey,
    /// Largest first.
    pub descending: bool,
}

/// Conditions on tags (2.26).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagFilter {
    /// All of these.
    pub all: Vec<String>,
    /// One of these.
    pub any: Vec<String>,
    /// Not all of these.
    pub not_all: Vec<String>,
    /// None of these.
    pub not_any: Vec<String>,
}

impl TagFilter {
    fn lets(&self, tags: &[String]) -> bool {
        let has = |tag: &String| tags.contains(tag);
        self.all.iter().all(has)
            && (self.any.is_empty() || self.any.iter().any(has))
            && (self.not_all.is_empty() || !self.not_all.iter().all(has))
            && !self.not_any.iter().any(has)
    }
}

/// Which servers a list shows. `None` and empty: any.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Filter {
    /// Of all projects; for admins.
    pub all_projects: bool,
    pub project_id: Option<String>,
    pub user_id: Option<String>,
    pub ids: Vec<String>,
    pub name: Option<Regex>,
    pub hostname: Option<Regex>,
    pub description: Option<Regex>,
    pub ip: Option<Regex>,
    pub ip6: Option<Regex>,
    pub statuses: Vec<String>,
    pub vm_states: Vec<VmState>,
    pub task_states: Vec<Task>,
    pub power_state: Option<u8>,
    pub image: Option<String>,
    pub flavor: Option<String>,
    pub host: Option<String>,
    pub key_name: Option<String>,
    pub availability_zone: Option<String>,
    pub reservation_id: Option<String>,
    pub config_drive: Option<bool>,
    pub locked: Option<bool>,
    pub tags: TagFilter,
    /// Deleted ones only; for admins.
    pub deleted: bool,
    /// Changed at or after this; deleted ones are shown as well.
    pub changes_since: Option<Micros>,
    pub changes_before: Option<Micros>,
    pub sort: Vec<Sort>,
    pub marker: Option<String>,
    pub limit: usize,
    /// Rows alone: no addresses, no groups.
    pub brief: bool,
}

/// From this many servers on, what other tables say is read for all of them together.
const TOGETHER: usize = 8;

/// The servers that the filter lets through, one page of them.
pub async fn list(cloud: &Cloud, ctx: &Context, filter: Filter) -> Result<Vec<Details>> {
    ctx.require("servers", "list")?;
    let project = if filter.all_projects {
        ctx.require("servers", "list_all_projects")?;
        filter.project_id.clone()
    } else {
        Some(ctx.project()?.to_owned())
    };
    let admin = ctx.is_admin();
    cloud
        .store
        .read(move |conn| {
            let (sql, values) = query(&filter, project);
            let mut query = conn.prepare_cached(&sql)?;
            let mut rows = query.query(params_from_iter(values))?;
            let mut found = Vec::new();
            let mut before_marker = filter.marker.is_some();
            while found.len() < filter.limit
                && let Some(row) = rows.next()?
            {
                if before_marker {
                    let id = row.get_ref(0)?.as_str().unwrap_or_default();
                    before_marker = Some(id) != filter.marker.as_deref();
                    continue;
                }
                let server = Server::of_row(row)?;
                if !lets(&filter, &server) {
                    continue;
                }
                if filter.ip.is_some() || filter.ip6.is_some() {
                    let addresses = ports::addresses(conn, server.id)?;
                    let matches = |address: &IpAddr| {
                        let filter = if address.is_ipv4() {
                            &filter.ip
                        } else {
                            &filter.ip6
                        };
                        filter
                            .as_ref()
                            .is_some_and(|regex| regex.is_match(&address.to_string()))
                    };
                    if !addresses.iter().any(|a| matches(&a.ip)) {
                        continue;
                    }
                }
                found.push(server);
            }
            if before_marker {
                let marker = filter.marker.unwrap_or_default();
                return Err(Error::BadRequest(format!("marker [{marker}] not found")));
            }
            if filter.brief {
                return Ok(found.into_iter().map(Details::of_row).collect());
            }
            if found.len() < TOGETHER {
                return found
                    .into_iter()
                    .map(|server| details(conn, server, admin))
                    .collect();
            }
            together(conn, found, admin)
        })
        .await
}

/// Servers with what other tables say of them, in a fixed number of queries.
fn together(conn: &Connection, servers: Vec<Server>, admin: bool) -> Result<Vec<Details>> {
    let ids: std::collections::HashSet<Uuid> = servers
        .iter()
        .filter(|server| !server.deleted)
        .map(|server| server.id)
        .collect();
    let mut shown = ports::shown_of_all(conn, &ids)?;
    let mut user_data = if admin {
        user_data_of_all(conn, &ids)?
    } else {
        HashMap::new()
    };
    let mut volumes: HashMap<Uuid, Vec<Disk>> = HashMap::new();
    let list: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    for disk in disks::of_servers(conn, &list)? {
        if !disk.local {
            volumes.entry(disk.server).or_default().push(disk);
        }
    }
    Ok(servers
        .into_iter()
        .map(|server| {
            let volumes = volumes.remove(&server.id).unwrap_or_default();
            let (addresses, security_groups) = shown.remove(&server.id).unwrap_or_default();
            Details {
                addresses,
                security_groups,
                volumes,
                user_data: user_data.remove(&server.id),
                server,
            }
        })
        .collect())
}

fn query(filter: &Filter, project: Option<String>) -> (String, Vec<Value>) {
    let mut conditions = Vec::new();
    let mut values: Vec<Value> = Vec::new();
    let mut equals = |conditions: &mut Vec<String>, column: &str, value: Option<Value>| {
        if let Some(value) = value {
            values.push(value);
            conditions.push(format!("{column} = ?{}", values.len()));
        }
    };
    let text = |value: &Option<String>| value.clone().map(Value::Text);
    equals(&mut conditions, "project_id", project.map(Value::Text));
    equals(&mut conditions, "user_id", text(&filter.user_id));
    equals(&mut conditions, "image_id", text(&filter.image));
    equals(&mut conditions, "host", text(&filter.host));
    equals(&mut conditions, "reservation_id", text(&filter.reservation_id));
    equals(
        &mut conditions,
        "json_extract(flavor, '$.id')",
        text(&filter.flavor),
    );
    equals(
        &mut conditions,
        "json_extract(key_pair, '$.name')",
        text(&filter.key_name),
    );
    equals(
        &mut conditions,
        "power_state",
        filter.power_state.map(|p| Value::Integer(p.into())),
    );
    equals(
        &mut conditions,
        "config_drive",
        filter.config_drive.map(|c| Value::Integer(c.into())),
    );
    if filter.deleted {
        conditions.push("deleted = 1".into());
    } else if filter.changes_since.is_none() {
        conditions.push("deleted = 0".into());
    }
    if let Some(since) = filter.changes_since {
        values.push(Value::Integer(since.0));
        conditions.push(format!("updated_at >= ?{}", values.len()));
    }
    if let Some(before) = filter.changes_before {
        values.push(Value::Integer(before.0));
        conditions.push(format!("updated_at <= ?{}", values.len()));
    }
    let mut order = String::new();
    for sort in &filter.sort {
        order.push_str(sort.key.column());
        order.push_str(if sort.descending { " DESC, " } else { " ASC, " });
    }
    let last_descends = filter.sort.last().is_none_or(|s| s.descending);
    if filter.sort.is_empty() {
        order.push_str("created_at DESC, ");
    }
    order.push_str(if last_descends { "id DESC" } else { "id ASC" });
    let sql = format!(
        "SELECT {COLUMNS} FROM compute_servers WHERE {} ORDER BY {order}",
        conditions.join(" AND ")
    );
    (sql, values)
}

fn lets(filter: &Filter, server: &Server) -> bool {
    fn any<T: PartialEq>(wanted: &[T], value: &T) -> bool {
        wanted.is_empty() || wanted.contains(value)
    }
    let matches = |regex: &Option<Regex>, text: &str| regex.as_ref().is_none_or(|regex| regex.is_match(text));
    matches(&filter.name, &server.name)
        && matches(&filter.hostname, &server.hostname)
        && matches(
            &filter.description,
            server.description.as_deref().unwrap_or_default(),
        )
        && any(&filter.ids, &server.id.to_string())
        && (filter.statuses.is_empty() || filter.statuses.iter().any(|s| s == server.status()))
        && any(&filter.vm_states, &server.vm_state)
        && (filter.task_states.is_empty()
            || server.task_state.is_some_and(|t| filter.task_states.contains(&t)))
        && filter
            .locked
            .is_none_or(|locked| locked == server.locked_by.is_some())
        && filter
            .availability_zone
            .as_ref()
            .is_none_or(|zone| server.zone() == Some(zone))
        && filter.tags.lets(&server.tags)
}
