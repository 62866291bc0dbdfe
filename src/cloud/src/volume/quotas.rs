//! Quotas: how much of everything a project may have.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};

use super::types;
use crate::{Cloud, Context, Error, Result};

/// What is limited for each project, with the defaults.
pub const DEFAULTS: [(&str, i64); 7] = [
    ("volumes", 10),
    ("snapshots", 10),
    ("gigabytes", 1000),
    ("backups", 10),
    ("backup_gigabytes", 1000),
    ("per_volume_gigabytes", -1),
    ("groups", 10),
];

/// Limited for each type as well, as in `volumes_standard`.
const OF_TYPES: [&str; 3] = ["volumes", "snapshots", "gigabytes"];

/// A limit, and how much of it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// -1: none.
    pub limit: i64,
    /// Now.
    pub in_use: i64,
}

/// Quotas by the names that the API has for them.
pub type Quotas = BTreeMap<String, Quota>;

/// The project that stands for the defaults of all.
const CLASS: &str = "";

fn stored(conn: &Connection, project: &str, resource: &str) -> Result<Option<i64>> {
    let sql = "SELECT value FROM volume_quotas WHERE project_id = ?1 AND resource = ?2";
    let mut query = conn.prepare_cached(sql)?;
    Ok(query
        .query_row(params![project, resource], |row| row.get(0))
        .optional()?)
}

fn default_limit(conn: &Connection, resource: &str) -> Result<i64> {
    let built_in = DEFAULTS
        .iter()
        .find(|(name, _)| *name == resource)
        .map_or(-1, |(_, n)| *n);
    Ok(stored(conn, CLASS, resource)?.unwrap_or(built_in))
}

/// The limit of a project; -1: none.
fn limit(conn: &Connection, project: &str, resource: &str) -> Result<i64> {
    match stored(conn, project, resource)? {
        Some(value) => Ok(value),
        None => default_limit(conn, resource),
    }
}

/// What a project has: number and gigabytes of volumes, snapshots, backups; `type_id`: of this type alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub volumes: i64,
    pub volume_gigabytes: i64,
    pub snapshots: i64,
    pub snapshot_gigabytes: i64,
    pub backups: i64,
    pub backup_gigabytes: i64,
}

impl Used {
    fn of(&self, resource: &str) -> i64 {
        match resource {
            "volumes" => self.volumes,
            "snapshots" => self.snapshots,
            "gigabytes" => self.volume_gigabytes + self.snapshot_gigabytes,
            "backups" => self.backups,
            "backup_gigabytes" => self.backup_gigabytes,
            _ => 0,
        }
    }
}

pub(super) fn used(conn: &Connection, project: &str, type_id: Option<&str>) -> Result<Used> {
    let count = |table: &str, typed: bool, size: &str| -> Result<(i64, i64)> {
        let sql = if typed {
            format!(
                "SELECT COUNT(*), COALESCE(SUM({size}), 0) FROM {table} WHERE project_id = ?1 \
                 AND (?2 IS NULL OR type_id = ?2)"
            )
        } else {
            format!(
                "SELECT COUNT(*), COALESCE(SUM({size}), 0) FROM {table} WHERE project_id = ?1 AND ?2 IS NULL"
            )
        };
        let mut query = conn.prepare_cached(&sql)?;
        Ok(query.query_row(params![project, type_id], |row| Ok((row.get(0)?, row.get(1)?)))?)
    };
    let (volumes, volume_gigabytes) = count("volume_volumes", true, "COALESCE(new_size, size)")?;
    let (snapshots, snapshot_gigabytes) = count("volume_snapshots", true, "size")?;
    let (backups, backup_gigabytes) = count("volume_backups", false, "size")?;
    Ok(Used {
        volumes,
        volume_gigabytes,
        snapshots,
        snapshot_gigabytes,
        backups,
        backup_gigabytes,
    })
}

/// What is about to be made.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    Volume(u32),
    Growth(u32),
    /// One that the project has, as one of this type.
    Retyped(u32),
    Snapshot(u32),
    Backup(u32),
}

/// The project has room for this.
///
/// # Errors
/// 413 in Cinder's words.
pub(super) fn check(conn: &Connection, project: &str, type_id: &str, wanted: Wanted) -> Result<()> {
    let (counted, sized, size, whole) = match wanted {
        Wanted::Volume(size) => (Some("volumes"), "gigabytes", size, Some(size)),
        Wanted::Growth(size) => (None, "gigabytes", size, None),
        Wanted::Retyped(size) => (Some("volumes"), "gigabytes", size, None),
        Wanted::Snapshot(size) => (Some("snapshots"), "gigabytes", size, None),
        Wanted::Backup(size) => (Some("backups"), "backup_gigabytes", size, None),
    };
    if let Some(size) = whole {
        per_volume(conn, project, size)?;
    }
    let all = used(conn, project, None)?;
    let typed = OF_TYPES
        .contains(&sized)
        .then(|| used(conn, project, Some(type_id)))
        .transpose()?;
    let type_name = match &typed {
        Some(_) => types::name_of(conn, type_id)?,
        None => None,
    };
    let mut figures = Vec::new();
    if !matches!(wanted, Wanted::Retyped(_)) {
        figures.push((String::new(), all));
    }
    if let (Some(used), Some(name)) = (typed, type_name) {
        figures.push((format!("_{name}"), used));
    }
    for (suffix, used) in figures {
        if let Some(counted) = counted {
            let name = format!("{counted}{suffix}");
            let limit = limit(conn, project, &name)?;
            if limit >= 0 && used.of(counted) + 1 > limit {
                let (class, what) = match counted {
                    "volumes" => ("VolumeLimitExceeded", "volumes"),
                    "snapshots" => ("SnapshotLimitExceeded", "snapshots"),
                    _ => ("BackupLimitExceeded", "backups"),
                };
                let quota = if counted == "volumes" {
                    format!(" for quota '{name}'")
                } else {
                    String::new()
                };
                return Err(Error::QuotaExceeded(format!(
                    "{class}: Maximum number of {what} allowed ({limit}) exceeded{quota}."
                )));
            }
        }
        let name = format!("{sized}{suffix}");
        let (limit, has) = (limit(conn, project, &name)?, used.of(sized));
        if limit >= 0 && has + i64::from(size) > limit {
            return Err(Error::QuotaExceeded(match sized {
                "gigabytes" => format!(
                    "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed {name} quota. \
                     Requested {size}G, quota is {limit}G and {has}G has been consumed."
                ),
                _ => format!(
                    "VolumeBackupSizeExceedsAvailableQuota: Requested backup exceeds allowed Backup gigabytes quota. \
                     Requested {size}G, quota is {limit}G and {has}G has been consumed."
                ),
            }));
        }
    }
    Ok(())
}

/// No volume is larger than its project's limit for one.
pub(super) fn per_volume(conn: &Connection, project: &str, size: u32) -> Result<()> {
    let limit = limit(conn, project, "per_volume_gigabytes")?;
    if limit >= 0 && i64::from(size) > limit {
        return Err(Error::QuotaExceeded(format!(
            "VolumeSizeExceedsLimit: Requested volume size {size}G is larger than maximum allowed limit {limit}G."
        )));
    }
    Ok(())
}

fn names(conn: &Connection) -> Result<Vec<(String, &'static str, Option<String>)>> {
    let mut names: Vec<_> = DEFAULTS
        .iter()
        .map(|(name, _)| ((*name).to_owned(), *name, None))
        .collect();
    for (id, name) in types::ids_and_names(conn)? {
        for resource in OF_TYPES {
            names.push((format!("{resource}_{name}"), resource, Some(id.clone())));
        }
    }
    Ok(names)
}

fn of_project(conn: &Connection, project: &str) -> Result<Quotas> {
    let all = used(conn, project, None)?;
    let mut quotas = Quotas::new();
    for (name, resource, of_type) in names(conn)? {
        let used = match of_type {
            Some(id) => used(conn, project, Some(&id))?,
            None => all,
        };
        let limit = limit(conn, project, &name)?;
        quotas.insert(
            name,
            Quota {
                limit,
                in_use: used.of(resource),
            },
        );
    }
    Ok(quotas)
}

/// All quotas of a project.
///
/// # Errors
/// 403 for another's project.
pub async fn show(cloud: &Cloud, ctx: &Context, project: &str) -> Result<Quotas> {
    ctx.require("volume_quota_sets", "show")?;
    if !ctx.sees(project) {
        return Err(Error::Forbidden(
            "Policy doesn't allow volume_extension:quotas:show to be performed.".into(),
        ));
    }
    let project = project.to_owned();
    cloud.store.read(move |conn| of_project(conn, &project)).await
}

/// The defaults of every project.
pub async fn defaults(cloud: &Cloud, ctx: &Context) -> Result<BTreeMap<String, i64>> {
    ctx.require("volume_quota_sets", "show")?;
    cloud.store.read(class).await
}

fn class(conn: &Connection) -> Result<BTreeMap<String, i64>> {
    let names = names(conn)?.into_iter();
    names
        .map(|(name, ..)| {
            let limit = default_limit(conn, &name)?;
            Ok((name, limit))
        })
        .collect()
}

fn set(conn: &Connection, project: &str, limits: &BTreeMap<String, i64>) -> Result<()> {
    let known: Vec<String> = names(conn)?.into_iter().map(|(name, ..)| name).collect();
    for (name, limit) in limits {
        if !known.contains(name) {
            return Err(Error::BadRequest(format!(
                "Invalid input received: Bad key(s) in quota set: {name}"
            )));
        }
        if !(-1..=i64::from(i32::MAX)).contains(limit) {
            return Err(Error::BadRequest(format!(
                "Invalid input received: {name} must be between -1 and {}",
                i32::MAX
            )));
        }
        conn.prepare_cached(
            "INSERT INTO volume_quotas (project_id, resource, value) VALUES (?1, ?2, ?3) \
             ON CONFLICT (project_id, resource) DO UPDATE SET value = excluded.value",
        )?
        .execute(params![project, name, limit])?;
    }
    Ok(())
}

/// Sets limits of a project.
///
/// # Errors
/// 400 for a name that is none, or a limit below -1.
pub async fn update(
    cloud: &Cloud,
    ctx: &Context,
    project: &str,
    limits: BTreeMap<String, i64>,
) -> Result<Quotas> {
    ctx.require("volume_quota_sets", "update")?;
    let project = project.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            set(conn, &project, &limits)?;
            of_project(conn, &project)
        })
        .await
}

/// Sets the defaults of every project.
///
/// # Errors
/// As [`update`].
pub async fn update_defaults(
    cloud: &Cloud,
    ctx: &Context,
    limits: BTreeMap<String, i64>,
) -> Result<BTreeMap<String, i64>> {
    ctx.require("volume_quota_sets", "update")?;
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            set(conn, CLASS, &limits)?;
            class(conn)
        })
        .await
}

/// Back to the defaults.
pub async fn reset(cloud: &Cloud, ctx: &Context, project: &str) -> Result<()> {
    ctx.require("volume_quota_sets", "update")?;
    let project = project.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            conn.execute(
                "DELETE FROM volume_quotas WHERE project_id = ?1 AND ?1 <> ''",
                [&project],
            )?;
            Ok(())
        })
        .await
}
