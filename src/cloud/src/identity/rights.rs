//! How far a caller's role reaches in identity.
//!
//! `admin` reaches everything. `reader` on the system may read everything. `manager` on a domain manages its users,
//! groups, projects and their assignments (of the roles that the operator lists, never `admin`), and `reader` on a domain
//! reads them. A role on a project reaches nothing here but the project itself. No manager touches an account or a
//! group that holds `admin` anywhere: to reset its password would be to become it.

use super::directory::Actor;
use super::token::Target;
use crate::context::Scope;
use crate::{Cloud, Context, Error, Result};

/// What part of identity an action reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Every domain.
    All,
    /// One domain.
    Domain(String),
}

impl Reach {
    /// The only domain, if there is but one.
    pub fn domain(&self) -> Option<&str> {
        match self {
            Reach::All => None,
            Reach::Domain(id) => Some(id),
        }
    }

    /// 403 if a domain lies outside.
    pub(super) fn check(&self, domain_id: &str, resource: &str, action: &str) -> Result<()> {
        match self {
            Reach::All => Ok(()),
            Reach::Domain(id) if id == domain_id => Ok(()),
            Reach::Domain(_) => Err(forbidden(resource, action)),
        }
    }
}

/// 403 in Keystone's words.
pub(super) fn forbidden(resource: &str, action: &str) -> Error {
    let one = match (action, resource.strip_suffix('s')) {
        ("list", _) | (_, None) => resource,
        (_, Some(one)) => one,
    };
    let action = if action == "show" { "get" } else { action };
    Error::Forbidden(format!(
        "You are not authorized to perform the requested action: identity:{action}_{one}."
    ))
}

/// How far the caller reads.
pub(super) fn read(ctx: &Context, resource: &str, action: &str) -> Result<Reach> {
    ctx.require(resource, action)
        .map_err(|_| forbidden(resource, action))?;
    match &ctx.scope {
        _ if ctx.is_admin() => Ok(Reach::All),
        Scope::System => Ok(Reach::All),
        Scope::Domain { id } => Ok(Reach::Domain(id.clone())),
        Scope::Project { .. } | Scope::Unscoped => Err(forbidden(resource, action)),
    }
}

/// How far the caller changes things.
pub(super) fn write(ctx: &Context, resource: &str, action: &str) -> Result<Reach> {
    ctx.require(resource, action)
        .map_err(|_| forbidden(resource, action))?;
    match &ctx.scope {
        _ if ctx.is_admin() => Ok(Reach::All),
        Scope::Domain { id } => Ok(Reach::Domain(id.clone())),
        Scope::System | Scope::Project { .. } | Scope::Unscoped => Err(forbidden(resource, action)),
    }
}

/// 403 if a manager would touch an administrator.
pub(super) fn spare_admins(cloud: &Cloud, ctx: &Context, actor: &Actor) -> Result<()> {
    if !ctx.is_admin() && cloud.identity.directory().holds(actor, "admin") {
        return Err(Error::Forbidden(
            "Only an administrator may change what holds the role admin.".into(),
        ));
    }
    Ok(())
}

/// 403 if a manager would give or take a role that is not its to give.
pub(super) fn manageable(cloud: &Cloud, ctx: &Context, role_id: &str) -> Result<()> {
    if ctx.is_admin() {
        return Ok(());
    }
    let managed = |name: &String| name != "admin" && cloud.config.accounts.managed_roles.contains(name);
    let directory = cloud.identity.directory();
    let names = directory.closure([role_id.to_owned()]);
    let known = names.iter().filter_map(|id| directory.roles.get(id));
    if known.clone().count() > 0 && known.clone().all(managed) {
        return Ok(());
    }
    Err(forbidden("grants", "create"))
}

/// The domain that a target lies in; `None` for the system.
pub(super) fn domain_of(cloud: &Cloud, target: &Target) -> Result<Option<String>> {
    let directory = cloud.identity.directory();
    match target {
        Target::Project(id) => match directory.projects.get(id) {
            Some(project) => Ok(Some(project.domain_id.clone())),
            None => Err(Error::not_found("project", id)),
        },
        Target::Domain(id) if directory.domains.contains_key(id) => Ok(Some(id.clone())),
        Target::Domain(id) => Err(Error::not_found("domain", id)),
        Target::System | Target::Unscoped => Ok(None),
    }
}

/// 403 if after this change no one could administer the cloud any more. For the end of a write.
pub(super) fn keep_an_admin(conn: &rusqlite::Connection) -> Result<()> {
    let sql = "SELECT 1 FROM role_assignments a
         JOIN roles r ON r.id = a.role_id AND r.name = 'admin'
         JOIN users u ON (a.actor_kind = 'user' AND u.id = a.actor_id)
              OR (a.actor_kind = 'group' AND u.id IN (SELECT user_id FROM group_members WHERE group_id = a.actor_id))
         JOIN domains d ON d.id = u.domain_id
         WHERE u.enabled AND d.enabled AND u.password_hash IS NOT NULL AND a.inherited = 0 AND (
              a.target_kind = 'system'
              OR (a.target_kind = 'domain' AND a.target_id IN (SELECT id FROM domains WHERE enabled))
              OR (a.target_kind = 'project' AND a.target_id IN (
                  SELECT p.id FROM projects p JOIN domains pd ON pd.id = p.domain_id WHERE p.enabled AND pd.enabled)))
         LIMIT 1";
    if conn.prepare_cached(sql)?.exists([])? {
        return Ok(());
    }
    Err(Error::Forbidden(
        "This would leave the cloud without any user who can log in with the role admin.".into(),
    ))
}
