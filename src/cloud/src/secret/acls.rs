//! Who may read a secret or a container beside its project, or instead of it.

use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use super::{containers, secrets};
use crate::identity::now;
use crate::{Cloud, Context, Error, Result};

/// The most users of one list.
const MAX_USERS: usize = 200;

/// Who may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    /// The project's members, not its creator alone.
    pub project_access: bool,
    /// These users of whatever project.
    pub users: Vec<String>,
    /// When it was made and changed, in microseconds since 1970; `None`: nobody ever said who.
    pub times: Option<(i64, i64)>,
}

impl Default for Acl {
    fn default() -> Self {
        Acl {
            project_access: true,
            users: Vec::new(),
            times: None,
        }
    }
}

/// A change; what it does not name stays, or becomes the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AclChange {
    /// See [`Acl`].
    pub project_access: Option<bool>,
    /// See [`Acl`].
    pub users: Option<Vec<String>>,
}

/// What is done with something that has a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Reading.
    Read,
    /// Changing or removing it.
    Change,
}

impl Acl {
    pub(super) fn of(conn: &Connection, target: Uuid) -> Result<Acl> {
        let mut sql = conn.prepare_cached("SELECT * FROM secret_acls WHERE target_id = ?1")?;
        let row = sql
            .query_row([target.to_string()], |row| {
                Ok((
                    row.get("project_access")?,
                    row.get::<_, String>("users")?,
                    row.get("created_at")?,
                    row.get("updated_at")?,
                ))
            })
            .optional()?;
        let Some((project_access, users, created, updated)) = row else {
            return Ok(Acl::default());
        };
        Ok(Acl {
            project_access,
            users: serde_json::from_str(&users).map_err(|error| Error::Internal(error.to_string()))?,
            times: Some((created, updated)),
        })
    }

    /// The caller may do this with a target of this project and creator. 404 for what lies in another project and is not
    /// shared with the caller, 403 for what is another's private matter.
    pub(super) fn check(
        &self,
        ctx: &Context,
        project: &str,
        creator: &str,
        access: Access,
        missing: impl FnOnce() -> Error,
    ) -> Result<()> {
        let listed = access == Access::Read && self.users.contains(&ctx.user_id);
        if listed {
            return Ok(());
        }
        if ctx.project()? != project {
            return Err(missing());
        }
        if self.project_access || ctx.user_id == creator || ctx.is_admin() {
            return Ok(());
        }
        Err(Error::Forbidden("This is private to its creator.".into()))
    }
}

pub(super) fn remove_of(conn: &Connection, target: Uuid) -> Result<()> {
    conn.prepare_cached("DELETE FROM secret_acls WHERE target_id = ?1")?
        .execute([target.to_string()])?;
    Ok(())
}

/// The target must be there, and the caller may do this with it.
fn find(conn: &Connection, ctx: &Context, target: Uuid, container: bool, access: Access) -> Result<()> {
    if container {
        containers::find(conn, ctx, target, access).map(|_| ())
    } else {
        secrets::find(conn, ctx, target, access).map(|_| ())
    }
}

/// Who may read a secret, or a container.
///
/// # Errors
/// 404, 403.
pub async fn show(cloud: &Cloud, ctx: &Context, target: Uuid, container: bool) -> Result<Acl> {
    ctx.require("secret_acls", "show")?;
    let ctx = ctx.clone();
    cloud
        .store
        .read(move |conn| {
            find(conn, &ctx, target, container, Access::Read)?;
            Acl::of(conn, target)
        })
        .await
}

/// Says who may read; with `merge` what is not named stays, otherwise it becomes the default.
///
/// # Errors
/// 404, 403, 400.
pub async fn set(
    cloud: &Cloud,
    ctx: &Context,
    target: Uuid,
    container: bool,
    change: AclChange,
    merge: bool,
) -> Result<()> {
    ctx.require("secret_acls", "update")?;
    let users = change.users.as_deref().unwrap_or_default();
    if users.len() > MAX_USERS || users.iter().any(|user| user.is_empty() || user.len() > 64) {
        return Err(Error::BadRequest(format!(
            "An access list has at most {MAX_USERS} ids of users."
        )));
    }
    let (caller, now) = (ctx.clone(), now());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            find(conn, &caller, target, container, Access::Change)?;
            let old = Acl::of(conn, target)?;
            let base = if merge { old.clone() } else { Acl::default() };
            let mut users = change.users.clone().unwrap_or(base.users);
            users.sort();
            users.dedup();
            let users = serde_json::to_string(&users).map_err(|error| Error::Internal(error.to_string()))?;
            conn.execute(
                "INSERT INTO secret_acls (target_id, project_access, users, created_at, updated_at)
                 VALUES (?1, ?2, ?3, ?4, ?4) ON CONFLICT (target_id) DO UPDATE SET
                 project_access = excluded.project_access, users = excluded.users, updated_at = excluded.updated_at",
                params![
                    target.to_string(),
                    change.project_access.unwrap_or(base.project_access),
                    users,
                    now
                ],
            )?;
            Ok(())
        })
        .await
}

/// Nobody said who, again.
///
/// # Errors
/// 404, 403.
pub async fn remove(cloud: &Cloud, ctx: &Context, target: Uuid, container: bool) -> Result<()> {
    ctx.require("secret_acls", "update")?;
    let caller = ctx.clone();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            find(conn, &caller, target, container, Access::Change)?;
            remove_of(conn, target)
        })
        .await
}
