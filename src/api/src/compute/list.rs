//! The query of `GET /servers`.

use cloud::compute::Micros;
use cloud::compute::servers::{Filter, Sort, SortKey, TagFilter};
use cloud::compute::state::{STATUSES, Task, VmState};
use cloud::{Context, Error};
use regex::{Regex, RegexBuilder};

use super::microversion::Microversion;
use super::{limit, marker};
use crate::body::Pairs;

/// Filters that everyone may use.
const FOR_ALL: &[&str] = &[
    "all_tenants",
    "changes-since",
    "flavor",
    "image",
    "ip",
    "limit",
    "marker",
    "name",
    "reservation_id",
    "sort_dir",
    "sort_key",
    "status",
];

/// Filters that everyone may use from 2.83 on, and admins before.
const FOR_ALL_LATER: &[&str] = &[
    "availability_zone",
    "config_drive",
    "created_at",
    "key_name",
    "launched_at",
    "power_state",
    "progress",
    "task_state",
    "terminated_at",
    "user_id",
    "vm_state",
];

/// Filters for admins. Those that no column here answers to are taken and do nothing, as in Nova.
const FOR_ADMINS: &[&str] = &[
    "access_ip_v4",
    "access_ip_v6",
    "auto_disk_config",
    "deleted",
    "description",
    "display_description",
    "display_name",
    "host",
    "hostname",
    "image_ref",
    "kernel_id",
    "launch_index",
    "locked_by",
    "node",
    "project_id",
    "ramdisk_id",
    "root_device_name",
    "soft_deleted",
    "tenant_id",
    "uuid",
];

fn sort_key(name: &str) -> Result<Option<SortKey>, Error> {
    Ok(Some(match name {
        "access_ip_v4" => SortKey::AccessIpV4,
        "access_ip_v6" => SortKey::AccessIpV6,
        "auto_disk_config" => SortKey::DiskConfig,
        "availability_zone" => SortKey::AvailabilityZone,
        "config_drive" => SortKey::ConfigDrive,
        "created_at" => SortKey::CreatedAt,
        "display_description" => SortKey::Description,
        "display_name" => SortKey::Name,
        "host" | "node" => SortKey::Host,
        "hostname" => SortKey::Hostname,
        "image_ref" => SortKey::ImageRef,
        "instance_type_id" => SortKey::Flavor,
        "key_name" => SortKey::KeyName,
        "launch_index" => SortKey::LaunchIndex,
        "launched_at" => SortKey::LaunchedAt,
        "locked" | "locked_by" => SortKey::Locked,
        "power_state" => SortKey::PowerState,
        "project_id" => SortKey::ProjectId,
        "task_state" => SortKey::TaskState,
        "terminated_at" => SortKey::TerminatedAt,
        "updated_at" => SortKey::UpdatedAt,
        "user_id" => SortKey::UserId,
        "uuid" => SortKey::Id,
        "vm_state" => SortKey::VmState,
        "kernel_id" | "progress" | "ramdisk_id" | "root_device_name" => return Ok(None),
        other => {
            let other: String = other.chars().take(64).collect();
            return Err(Error::BadRequest(format!(
                "Invalid input for query parameters sort_key. Value: {other}. It is not a key that servers are sorted by"
            )));
        }
    }))
}

fn sorts(pairs: &Pairs) -> Result<Vec<Sort>, Error> {
    let mut sorts = Vec::new();
    let mut directions = pairs.all("sort_dir");
    let mut descending = true;
    for name in pairs.all("sort_key") {
        if let Some(direction) = directions.next() {
            descending = match direction {
                "asc" => false,
                "desc" => true,
                _ => {
                    return Err(Error::BadRequest(
                        "Unknown sort direction, must be one of: asc, desc".into(),
                    ));
                }
            };
        }
        if let Some(key) = sort_key(name)? {
            sorts.push(Sort { key, descending });
        }
    }
    if sorts.is_empty()
        && let Some(direction) = directions.next()
    {
        let descending = direction != "asc";
        sorts.push(Sort {
            key: SortKey::CreatedAt,
            descending,
        });
    }
    Ok(sorts)
}

fn regex(key: &str, text: &str) -> Result<Regex, Error> {
    RegexBuilder::new(text)
        .case_insensitive(true)
        .size_limit(1 << 18)
        .build()
        .map_err(|_| Error::BadRequest(format!("Invalid filter: {key} is not a regular expression.")))
}

fn time(pairs: &Pairs, key: &str) -> Result<Option<Micros>, Error> {
    let Some(text) = pairs.get(key) else {
        return Ok(None);
    };
    let time = Micros::parse(text);
    time.map(Some).ok_or_else(|| {
        let text: String = text.chars().take(64).collect();
        Error::BadRequest(format!(
            "Invalid input for query parameters {key}. Value: {text}. It is not a 'date-time'"
        ))
    })
}

fn tag_filter(pairs: &Pairs) -> TagFilter {
    let list = |key: &str| {
        let tags = pairs.all(key).flat_map(|text| text.split(','));
        tags.filter(|t| !t.is_empty())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    TagFilter {
        all: list("tags"),
        any: list("tags-any"),
        not_all: list("not-tags"),
        not_any: list("not-tags-any"),
    }
}

/// Reads the query; `None`: nothing can match.
pub(super) fn filter(version: Microversion, ctx: &Context, pairs: &Pairs) -> Result<Option<Filter>, Error> {
    let admin = ctx.is_admin();
    let mut tags_known: &[&str] = &[];
    if version >= Microversion::TAGS {
        tags_known = &["tags", "tags-any", "not-tags", "not-tags-any"];
    }
    let known = |key: &str| {
        FOR_ALL.contains(&key)
            || FOR_ALL_LATER.contains(&key)
            || FOR_ADMINS.contains(&key)
            || tags_known.contains(&key)
            || key == "ip6"
            || (key == "changes-before" && version >= Microversion::CHANGES_BEFORE)
            || (key == "locked" && version >= Microversion::LOCKED_REASON)
    };
    if version >= Microversion::STRICT_QUERIES
        && let Some((key, _)) = pairs.0.iter().find(|(key, _)| !known(key))
    {
        let key: String = key.chars().take(64).collect();
        return Err(Error::BadRequest(format!(
            "Additional properties are not allowed ('{key}' was unexpected)"
        )));
    }
    // What a caller may not filter by is left out, as if it had not been asked for.
    let allowed = |key: &str| {
        admin
            || FOR_ALL.contains(&key)
            || (FOR_ALL_LATER.contains(&key) && version >= Microversion::MORE_FILTERS)
            || (key == "ip6" && version >= Microversion::IP6_FILTER)
    };
    let get = |key: &str| pairs.get(key).filter(|_| allowed(key));
    let text = |key: &str| get(key).map(str::to_owned);
    let pattern = |key: &str| get(key).map(|text| regex(key, text)).transpose();

    let mut filter = Filter {
        user_id: text("user_id"),
        ids: text("uuid").into_iter().collect(),
        name: match pattern("name")? {
            Some(regex) => Some(regex),
            None => pattern("display_name")?,
        },
        hostname: pattern("hostname")?,
        description: match pattern("description")? {
            Some(regex) => Some(regex),
            None => pattern("display_description")?,
        },
        ip: pattern("ip")?,
        ip6: pattern("ip6")?,
        image: text("image")
            .or_else(|| text("image_ref"))
            .map(|text| last_segment(&text)),
        flavor: text("flavor").map(|text| last_segment(&text)),
        host: text("host").or_else(|| text("node")),
        key_name: text("key_name"),
        availability_zone: text("availability_zone"),
        reservation_id: text("reservation_id"),
        changes_since: time(pairs, "changes-since")?,
        sort: sorts(pairs)?,
        marker: marker(pairs),
        limit: limit(pairs)?,
        ..Filter::default()
    };
    if version >= Microversion::CHANGES_BEFORE {
        filter.changes_before = time(pairs, "changes-before")?;
        if let (Some(since), Some(before)) = (filter.changes_since, filter.changes_before)
            && since > before
        {
            return Err(Error::BadRequest(
                "The value of changes-since must be less than or equal to changes-before.".into(),
            ));
        }
    }
    if version >= Microversion::LOCKED_REASON {
        filter.locked = pairs.flag("locked")?;
    }
    if version >= Microversion::TAGS {
        filter.tags = tag_filter(pairs);
    }
    if get("config_drive").is_some() {
        filter.config_drive = pairs.flag("config_drive")?;
    }
    if let Some(text) = get("power_state") {
        let state = text.parse();
        filter.power_state = Some(
            state.map_err(|_| Error::BadRequest(format!("Invalid power_state {text:?}: a number is.")))?,
        );
    }
    scope(&mut filter, ctx, pairs)?;
    if admin && pairs.flag("deleted")? == Some(true) {
        filter.deleted = true;
    }
    states(filter, version, ctx, pairs, &get)
}

fn last_segment(text: &str) -> String {
    text.rsplit('/').next().unwrap_or(text).to_owned()
}

/// Which projects' servers are meant.
fn scope(filter: &mut Filter, ctx: &Context, pairs: &Pairs) -> Result<(), Error> {
    let project = pairs
        .get("project_id")
        .or(pairs.get("tenant_id"))
        .filter(|_| ctx.is_admin());
    filter.all_projects = match pairs.get("all_tenants") {
        // Present without a value means yes.
        Some("") => true,
        Some(_) => pairs.flag("all_tenants")?.unwrap_or(false),
        // Naming a project alone does not widen the view beyond one's own.
        None => false,
    };
    if filter.all_projects {
        if !ctx.is_admin() {
            return Err(Error::Forbidden(
                "Policy doesn't allow os_compute_api:servers:index:get_all_tenants to be performed.".into(),
            ));
        }
        filter.project_id = project.map(str::to_owned);
    }
    Ok(())
}

fn states<'a>(
    mut filter: Filter,
    version: Microversion,
    ctx: &Context,
    pairs: &'a Pairs,
    get: &dyn Fn(&str) -> Option<&'a str>,
) -> Result<Option<Filter>, Error> {
    let asked: Vec<String> = pairs
        .all("status")
        .map(str::to_uppercase)
        .filter(|s| !s.is_empty())
        .collect();
    for status in &asked {
        if !STATUSES.contains(&status.as_str()) {
            if version >= Microversion::STATUS_CHECK {
                return Err(Error::BadRequest("Invalid status value".into()));
            }
            continue;
        }
        if status == "DELETED" {
            if !ctx.is_admin() {
                return Err(Error::Forbidden(
                    "Only administrators may list deleted instances".into(),
                ));
            }
            filter.deleted = true;
        }
        filter.statuses.push(status.clone());
    }
    if !asked.is_empty() && filter.statuses.is_empty() {
        return Ok(None);
    }
    if let Some(text) = get("vm_state") {
        let Some(state) = VmState::parse(text) else {
            return Ok(None);
        };
        filter.vm_states.push(state);
    }
    if let Some(text) = get("task_state") {
        let Some(state) = Task::parse(text) else {
            return Ok(None);
        };
        filter.task_states.push(state);
    }
    Ok(Some(filter))
}
