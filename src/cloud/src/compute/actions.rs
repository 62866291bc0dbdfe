//! What can be done to a server, and what was done (`os-instance-actions`).

use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::change::{self, NewImage, Rebuild, Unshelve};
use super::servers::{LockedBy, Server, find, record};
use super::state::{Power, Task, VmState, Wanted};
use super::{Micros, aggregates, now, ports};
use crate::{Cloud, Context, Error, Result};

/// An action on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Turn it on.
    Start,
    /// Turn it off.
    Stop,
    /// Let it shut down and start again; `hard`: pull the plug.
    Reboot {
        /// Pull the plug.
        hard: bool,
    },
    /// Freeze it.
    Pause,
    /// Thaw it.
    Unpause,
    /// Refuse changes by its project's members.
    Lock {
        /// Why (2.73).
        reason: Option<String>,
    },
    /// Allow them again.
    Unlock,
    /// Say that it is in this state; for admins.
    ResetState {
        /// `active`; else `error`.
        active: bool,
    },
    /// Give it another flavor.
    Resize {
        /// The flavor.
        flavor: String,
        /// `OS-DCF:diskConfig`.
        disk_config: Option<String>,
    },
    /// Keep the other flavor.
    ConfirmResize,
    /// Back to the flavor that it had.
    RevertResize,
    /// A new root disk.
    Rebuild(Box<Rebuild>),
    /// Run it from a rescue disk, made of this image or its own.
    Rescue {
        /// The image.
        image: Option<Uuid>,
    },
    /// Run it from its own disk again.
    Unrescue,
    /// Make an image of it.
    CreateImage(Box<NewImage>),
    /// Keep it as an image.
    Shelve,
    /// Free the node of a shelved server; here that is done when it is shelved.
    ShelveOffload,
    /// Bring it back.
    Unshelve(Unshelve),
    /// Bring back one that was deleted: none is kept, so none is in the state for it.
    Restore,
    /// Add a security group to all its ports.
    AddSecurityGroup(String),
    /// Remove one from all its ports.
    RemoveSecurityGroup(String),
    /// Remove it.
    Delete,
}

impl Action {
    /// Nova's name of the action in its error messages.
    fn verb(&self) -> &'static str {
        match self {
            Action::Start => "start",
            Action::Stop => "stop",
            Action::Reboot { .. } => "reboot",
            Action::Pause => "pause",
            Action::Unpause => "unpause",
            Action::Lock { .. } => "lock",
            Action::Unlock => "unlock",
            Action::ResetState { .. } => "reset state",
            Action::Resize { .. } => "resize",
            Action::ConfirmResize => "confirmResize",
            Action::RevertResize => "revertResize",
            Action::Rebuild(_) => "rebuild",
            Action::Rescue { .. } => "rescue",
            Action::Unrescue => "unrescue",
            Action::CreateImage(_) => "createImage",
            Action::Shelve => "shelve",
            Action::ShelveOffload => "shelveOffload",
            Action::Unshelve(_) => "unshelve",
            Action::Restore => "restore",
            Action::AddSecurityGroup(_) => "addSecurityGroup",
            Action::RemoveSecurityGroup(_) => "removeSecurityGroup",
            Action::Delete => "delete",
        }
    }

    /// The states that it is possible in.
    fn check(&self, server: &Server) -> Result<()> {
        use Task::*;
        use VmState::*;
        let vm = server.vm_state;
        let allowed = match self {
            Action::Start => vm == Stopped,
            Action::Stop => matches!(vm, Active | Error),
            Action::Reboot { hard: false } => vm == Active,
            Action::Reboot { hard: true } => matches!(vm, Active | Stopped | Paused | Error),
            Action::Pause => vm == Active,
            Action::Unpause => vm == Paused,
            Action::Resize { .. } => matches!(vm, Active | Stopped),
            Action::ConfirmResize | Action::RevertResize => vm == Resized,
            Action::Rebuild(_) | Action::Rescue { .. } => matches!(vm, Active | Stopped | Error),
            Action::Unrescue => vm == Rescued,
            Action::CreateImage(_) | Action::Shelve => matches!(vm, Active | Stopped | Paused),
            // Nothing is shelved and on a node here.
            Action::ShelveOffload | Action::Restore => false,
            Action::Unshelve(_) => vm == ShelvedOffloaded,
            Action::AddSecurityGroup(_) | Action::RemoveSecurityGroup(_) => vm != Building,
            Action::Lock { .. } | Action::Unlock | Action::ResetState { .. } | Action::Delete => true,
        };
        if !allowed {
            return Err(crate::Error::Conflict(format!(
                "Cannot '{}' instance {} while it is in vm_state {}",
                self.verb(),
                server.id,
                vm.as_str()
            )));
        }
        let Some(task) = server.task_state else {
            return Ok(());
        };
        let allowed = match self {
            Action::Reboot { hard: true } => {
                matches!(
                    task,
                    Rebooting | RebootStarted | RebootingHard | RebootStartedHard | Pausing | Unpausing
                )
            }
            Action::Start
            | Action::Stop
            | Action::Reboot { hard: false }
            | Action::Pause
            | Action::Unpause
            | Action::Resize { .. }
            | Action::ConfirmResize
            | Action::RevertResize
            | Action::Rebuild(_)
            | Action::Rescue { .. }
            | Action::Unrescue
            | Action::CreateImage(_)
            | Action::Shelve
            | Action::ShelveOffload
            | Action::Restore
            | Action::Unshelve(_) => false,
            Action::Lock { .. }
            | Action::Unlock
            | Action::ResetState { .. }
            | Action::AddSecurityGroup(_)
            | Action::RemoveSecurityGroup(_)
            | Action::Delete => true,
        };
        if allowed {
            return Ok(());
        }
        Err(crate::Error::Conflict(format!(
            "Cannot '{}' instance {} while it is in task_state {}",
            self.verb(),
            server.id,
            task.as_str()
        )))
    }
}

/// Carries out an action, or writes down that the reconciler should.
pub async fn act(cloud: &Cloud, ctx: &Context, id: &str, action: Action) -> Result<()> {
    let rule = match action {
        Action::Delete => "delete",
        Action::ResetState { .. } => "reset_state",
        Action::Resize { .. } | Action::ConfirmResize | Action::RevertResize => "resize",
        Action::Rebuild(_) => "rebuild",
        Action::Rescue { .. } | Action::Unrescue => "rescue",
        Action::CreateImage(_) => "create_image",
        Action::Shelve | Action::Unshelve(_) => "shelve",
        Action::ShelveOffload => "shelve_offload",
        _ => "action",
    };
    ctx.require("servers", rule)?;
    if let Action::Unshelve(Unshelve { host: Some(host), .. }) = &action {
        ctx.require("servers", "unshelve_to_host")?;
        if *host != cloud.config.node {
            return Err(Error::BadRequest(format!(
                "Compute host {host} could not be found."
            )));
        }
    }
    let (node, settings) = (cloud.config.node.clone(), cloud.config.availability_zone.clone());
    let fresh = Uuid::new_v4();
    let (ctx, id) = (ctx.clone(), id.to_owned());
    let actor = ctx.user_id.clone();
    cloud
        .store
        .write(&actor, move |conn| {
            let server = find(conn, &ctx, &id)?;
            if let Action::Unshelve(Unshelve {
                zone: Some(Some(zone)),
                ..
            }) = &action
            {
                aggregates::check_zone(conn, &node, &settings, zone)?;
            }
            apply(conn, &ctx, server, &action, fresh)
        })
        .await
}

/// `fresh`: the id of the volume or image that the action makes, if it makes one.
fn apply(conn: &Connection, ctx: &Context, mut server: Server, action: &Action, fresh: Uuid) -> Result<()> {
    let unlocks = matches!(
        action,
        Action::Unlock | Action::Lock { .. } | Action::ResetState { .. }
    );
    if server.locked_by.is_some() && !unlocks {
        super::servers::check_lock(ctx, &server)?;
    }
    action.check(&server)?;
    let deleting = server.task_state == Some(Task::Deleting);
    let mut ask = |wanted, task, name: &str, event: &str| {
        server.wanted = wanted;
        server.task_state = Some(task);
        server.generation += 1;
        record(conn, ctx, &server, (name, event), false)
    };
    match action {
        Action::Start => ask(
            Wanted::Active,
            Task::PoweringOn,
            "start",
            "compute_start_instance",
        )?,
        Action::Stop => ask(
            Wanted::Stopped,
            Task::PoweringOff,
            "stop",
            "compute_stop_instance",
        )?,
        Action::Reboot { hard: false } => {
            ask(
                Wanted::Active,
                Task::Rebooting,
                "reboot",
                "compute_reboot_instance",
            )?;
        }
        Action::Reboot { hard: true } => {
            ask(
                Wanted::Active,
                Task::RebootingHard,
                "reboot",
                "compute_reboot_instance",
            )?;
        }
        Action::Pause => ask(Wanted::Paused, Task::Pausing, "pause", "compute_pause_instance")?,
        Action::Unpause => ask(
            Wanted::Active,
            Task::Unpausing,
            "unpause",
            "compute_unpause_instance",
        )?,
        Action::Delete if deleting => return Ok(()),
        Action::Delete => ask(
            Wanted::Deleted,
            Task::Deleting,
            "delete",
            "compute_terminate_instance",
        )?,
        Action::Lock { reason } => {
            let owns = ctx.project().is_ok_and(|p| p == server.project_id);
            server.locked_by = Some(if owns { LockedBy::Owner } else { LockedBy::Admin });
            server.locked_reason.clone_from(reason);
            record(conn, ctx, &server, ("lock", "api_lock"), true)?;
        }
        Action::Unlock => {
            if server.locked_by == Some(LockedBy::Admin) {
                ctx.require("servers", "unlock_others")?;
            }
            server.locked_by = None;
            server.locked_reason = None;
            record(conn, ctx, &server, ("unlock", "api_unlock"), true)?;
        }
        Action::ResetState { active } => {
            server.vm_state = if *active { VmState::Active } else { VmState::Error };
            server.task_state = None;
            server.generation += 1;
            if *active {
                server.wanted = Wanted::Active;
                server.fault = None;
            }
        }
        Action::Resize { flavor, disk_config } => {
            change::resize(conn, ctx, &mut server, flavor, disk_config.as_deref(), fresh)?;
        }
        Action::ConfirmResize => change::confirm(conn, ctx, &mut server)?,
        Action::RevertResize => change::revert(conn, ctx, &mut server)?,
        Action::Rebuild(rebuild) => {
            let rebuild = Rebuild {
                root: fresh,
                ..(**rebuild).clone()
            };
            change::rebuild(conn, ctx, &mut server, &rebuild)?;
        }
        Action::Rescue { image } => change::rescue(conn, ctx, &mut server, *image, fresh)?,
        Action::Unrescue => change::unrescue(conn, ctx, &mut server)?,
        Action::CreateImage(new) => change::create_image(conn, ctx, &mut server, new)?,
        Action::Shelve => change::shelve(conn, ctx, &mut server, fresh)?,
        Action::ShelveOffload | Action::Restore => {}
        Action::Unshelve(how) => change::unshelve(conn, ctx, &mut server, how)?,
        Action::AddSecurityGroup(name) => {
            ports::change_security_group(conn, ctx, server.id, name, true)?;
        }
        Action::RemoveSecurityGroup(name) => {
            ports::change_security_group(conn, ctx, server.id, name, false)?;
        }
    }
    server.updated_at = now();
    if server.power_state == Power::Crashed && server.task_state.is_some() {
        server.power_state = Power::Shutdown;
    }
    server.save(conn)
}

/// One line of a server's history.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Entry {
    pub request_id: String,
    pub action: String,
    pub event: String,
    pub user_id: String,
    pub project_id: String,
    pub host: Option<String>,
    pub started_at: Micros,
    pub updated_at: Micros,
    pub finished_at: Option<Micros>,
    /// `Success` or `Error`.
    pub result: Option<String>,
    pub message: Option<String>,
}

impl Entry {
    /// The node's name as tenants may know it.
    pub fn host_id(&self) -> String {
        super::servers::host_id(&self.project_id, self.host.as_deref())
    }
}

const COLUMNS: &str = "request_id, action, event, user_id, project_id, host, started_at, updated_at, finished_at, \
                       result, message";

fn of_row(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        request_id: row.get(0)?,
        action: row.get(1)?,
        event: row.get(2)?,
        user_id: row.get(3)?,
        project_id: row.get(4)?,
        host: row.get(5)?,
        started_at: row.get(6)?,
        updated_at: row.get(7)?,
        finished_at: row.get(8)?,
        result: row.get(9)?,
        message: row.get(10)?,
    })
}

/// Which entries a list shows (2.58, 2.66).
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Page {
    pub changes_since: Option<Micros>,
    pub changes_before: Option<Micros>,
    pub marker: Option<String>,
    pub limit: usize,
}

/// The server whose history is asked for: it may be deleted already (2.21).
fn historic(conn: &Connection, ctx: &Context, id: &str, deleted_too: bool) -> Result<Server> {
    let missing = || Error::not_found("Instance", id);
    let uuid = id.parse().map_err(|_| missing())?;
    let server = super::servers::get(conn, uuid)?.ok_or_else(missing)?;
    if (server.deleted && !deleted_too) || !ctx.sees(&server.project_id) {
        return Err(missing());
    }
    Ok(server)
}

/// The most entries that are kept of a server.
const HISTORY: u32 = 1000;

/// Forgets all but the latest entries of a server.
pub(super) fn forget_old(conn: &Connection, server: Uuid) -> Result<()> {
    let server = server.to_string();
    let count: u32 = conn
        .prepare_cached("SELECT COUNT(*) FROM compute_actions WHERE server_id = ?1")?
        .query_row([&server], |row| row.get(0))?;
    if count > HISTORY {
        conn.prepare_cached(
            "DELETE FROM compute_actions WHERE server_id = ?1 AND request_id IN (SELECT request_id FROM compute_actions \
             WHERE server_id = ?1 ORDER BY started_at DESC, request_id DESC LIMIT -1 OFFSET ?2)",
        )?
        .execute(params![server, HISTORY])?;
    }
    Ok(())
}

/// A server's history, latest first.
pub async fn history(
    cloud: &Cloud,
    ctx: &Context,
    id: &str,
    deleted_too: bool,
    page: Page,
) -> Result<Vec<Entry>> {
    ctx.require("server_actions", "list")?;
    let (ctx, id) = (ctx.clone(), id.to_owned());
    cloud
        .store
        .read(move |conn| {
            let server = historic(conn, &ctx, &id, deleted_too)?.id.to_string();
            let from: Option<Micros> = match &page.marker {
                None => None,
                Some(marker) => {
                    let sql = "SELECT started_at FROM compute_actions WHERE server_id = ?1 AND request_id = ?2";
                    let mut query = conn.prepare_cached(sql)?;
                    let found = query.query_row([&server, marker], |row| row.get(0)).optional()?;
                    let missing = || Error::BadRequest(format!("marker [{marker}] not found"));
                    Some(found.ok_or_else(missing)?)
                }
            };
            let mut query = conn.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM compute_actions WHERE server_id = ?1 AND updated_at >= ?2 AND updated_at <= ?3 \
                 AND (?4 IS NULL OR (started_at, request_id) < (?4, ?5)) \
                 ORDER BY started_at DESC, request_id DESC LIMIT ?6"
            ))?;
            let since = page.changes_since.unwrap_or(Micros(i64::MIN));
            let before = page.changes_before.unwrap_or(Micros(i64::MAX));
            let limit = i64::try_from(page.limit).unwrap_or(i64::MAX);
            let rows = query.query_map(params![server, since, before, from, page.marker, limit], of_row)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
}

/// One line of a server's history.
pub async fn history_entry(
    cloud: &Cloud,
    ctx: &Context,
    id: &str,
    deleted_too: bool,
    request_id: &str,
) -> Result<Entry> {
    ctx.require("server_actions", "list")?;
    let (ctx, id, request_id) = (ctx.clone(), id.to_owned(), request_id.to_owned());
    cloud
        .store
        .read(move |conn| {
            let server = historic(conn, &ctx, &id, deleted_too)?;
            let mut query = conn.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM compute_actions WHERE server_id = ?1 AND request_id = ?2"
            ))?;
            let entry = query
                .query_row(params![server.id.to_string(), request_id], of_row)
                .optional()?;
            entry.ok_or_else(|| {
                super::missing(format!(
                    "Action for request_id {request_id} on instance {} not found",
                    server.id
                ))
            })
        })
        .await
}

/// One request of several that are open is ended.
pub(super) fn finish_one(
    conn: &Connection,
    server: &Server,
    request_id: Option<&str>,
    result: Result<(), &str>,
) -> Result<()> {
    let now = now();
    let (word, message) = match result {
        Ok(()) => ("Success", None),
        Err(message) => ("Error", Some(message)),
    };
    conn.prepare_cached(
        "UPDATE compute_actions SET finished_at = ?3, updated_at = ?3, result = ?4, message = ?5, host = ?6 \
         WHERE server_id = ?1 AND request_id = ?2 AND finished_at IS NULL",
    )?
    .execute(params![
        server.id.to_string(),
        request_id,
        now,
        word,
        message,
        server.host
    ])?;
    Ok(())
}

/// The reconciler has ended what was asked: every entry that is still open gets its result.
pub(super) fn finish(conn: &Connection, server: &Server, result: Result<(), &str>) -> Result<()> {
    let now = now();
    let (word, message) = match result {
        Ok(()) => ("Success", None),
        Err(message) => ("Error", Some(message)),
    };
    conn.prepare_cached(
        "UPDATE compute_actions SET finished_at = ?2, updated_at = ?2, result = ?3, message = ?4, host = ?5 \
         WHERE server_id = ?1 AND finished_at IS NULL",
    )?
    .execute(params![server.id.to_string(), now, word, message, server.host])?;
    Ok(())
}

/// A volume has grown while this server had it: that stands in the server's history.
pub(crate) fn volume_extended(conn: &Connection, ctx: &Context, server: Uuid, volume: Uuid) -> Result<()> {
    // Whoever may attach a volume may say that any server has it.
    let has = super::disks::get(conn, server, volume)?.is_some();
    match super::servers::get(conn, server)? {
        Some(server) if has && !server.deleted => {
            let what = ("extend_volume", "compute_extend_volume");
            record(conn, ctx, &server, what, true)
        }
        _ => Ok(()),
    }
}
