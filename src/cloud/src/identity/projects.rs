//! Projects: what every resource of a tenant belongs to.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::directory::MAX_DEPTH;
use super::rights::{self, Reach};
use super::{domains, names};
use crate::context::Scope;
use crate::{Cloud, Context, Error, Result};

/// The longest name.
const MAX_NAME: usize = 64;
/// The most tags.
const MAX_TAGS: usize = 80;

/// A project.
#[derive(Debug, Clone, PartialEq)]
pub struct Project {
    /// Its id.
    pub id: String,
    /// Its domain.
    pub domain_id: String,
    /// The project above it, if it is not directly below its domain.
    pub parent_id: Option<String>,
    /// Its name, unique in its domain.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// It can be used.
    pub enabled: bool,
    /// Short texts to find it by.
    pub tags: Vec<String>,
    /// Attributes that the cloud only keeps.
    pub extra: Map<String, Value>,
}

/// A project to be made.
#[derive(Debug, Clone, Deserialize)]
pub struct NewProject {
    /// See [`Project`].
    pub name: String,
    /// Without it: the domain of the caller's scope.
    #[serde(default)]
    pub domain_id: Option<String>,
    /// A project or the domain.
    #[serde(default)]
    pub parent_id: Option<String>,
    /// See [`Project`].
    #[serde(default)]
    pub description: Option<String>,
    /// See [`Project`].
    #[serde(default)]
    pub enabled: Option<bool>,
    /// `true` asks for a domain, which has an API of its own.
    #[serde(default)]
    pub is_domain: Option<bool>,
    /// See [`Project`].
    #[serde(default)]
    pub tags: Vec<String>,
    /// See [`Project`].
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A change of a project.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ProjectChange {
    /// See [`Project`].
    #[serde(default)]
    pub name: Option<String>,
    /// It may be repeated, not changed.
    #[serde(default)]
    pub domain_id: Option<String>,
    /// It may be repeated, not changed.
    #[serde(default)]
    pub parent_id: Option<String>,
    /// See [`Project`].
    #[serde(default)]
    pub description: Option<String>,
    /// See [`Project`].
    #[serde(default)]
    pub enabled: Option<bool>,
    /// See [`Project`].
    #[serde(default)]
    pub tags: Option<Vec<String>>,
    /// See [`Project`].
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What a list is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this name.
    pub name: Option<String>,
    /// Only of this domain.
    pub domain_id: Option<String>,
    /// Only directly below this project or domain.
    pub parent_id: Option<String>,
    /// Only enabled or disabled ones.
    pub enabled: Option<bool>,
    /// Only with all of these tags.
    pub tags: Vec<String>,
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<Project> {
    let tags: String = row.get("tags")?;
    Ok(Project {
        id: row.get("id")?,
        domain_id: row.get("domain_id")?,
        parent_id: row.get("parent_id")?,
        name: row.get("name")?,
        description: row.get("description")?,
        enabled: row.get("enabled")?,
        tags: tags.lines().map(str::to_owned).collect(),
        extra: names::read_extra(row, "extra")?,
    })
}

pub(super) fn find(conn: &Connection, id: &str) -> Result<Project> {
    let row = conn
        .prepare_cached("SELECT * FROM projects WHERE id = ?1")?
        .query_row([id], from_row)
        .optional()?;
    row.ok_or_else(|| Error::not_found("project", id))
}

/// Tags have 1 to 255 characters, none of them `/`, `,` or a control character.
fn check_tags(tags: &[String]) -> Result<()> {
    let bad = |c: char| c == '/' || c == ',' || c.is_control();
    let fits = |tag: &String| !tag.is_empty() && tag.chars().count() <= 255 && !tag.contains(bad);
    if tags.len() > MAX_TAGS || !tags.iter().all(fits) {
        return Err(Error::BadRequest(format!(
            "Invalid input for field 'tags': at most {MAX_TAGS} tags of 1 to 255 characters without '/' and ','."
        )));
    }
    Ok(())
}

fn joined(tags: &[String]) -> String {
    let mut tags = tags.to_vec();
    tags.sort();
    tags.dedup();
    tags.join("\n")
}

/// All projects that the caller reaches, by name.
///
/// # Errors
/// 403 without a role that reads projects of others; see [`of_user`] for one's own.
pub async fn list(cloud: &Cloud, ctx: &Context, filter: Filter) -> Result<Vec<Project>> {
    let reach = rights::read(ctx, "projects", "list")?;
    cloud
        .store
        .read(move |conn| {
            let sql = "SELECT * FROM projects WHERE (?1 IS NULL OR domain_id = ?1) AND (?2 IS NULL OR domain_id = ?2)
                 AND (?3 IS NULL OR name = ?3) AND (?4 IS NULL OR enabled = ?4)
                 AND (?5 IS NULL OR coalesce(parent_id, domain_id) = ?5) ORDER BY name, id";
            let mut sql = conn.prepare_cached(sql)?;
            let values = params![reach.domain(), filter.domain_id, filter.name, filter.enabled, filter.parent_id];
            let mut projects = sql.query_map(values, from_row)?.collect::<rusqlite::Result<Vec<_>>>()?;
            projects.retain(|project| filter.tags.iter().all(|tag| project.tags.contains(tag)));
            Ok(projects)
        })
        .await
}

/// One project. A token that is scoped to it may always see it.
///
/// # Errors
/// 404, 403.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<Project> {
    let own = matches!(&ctx.scope, Scope::Project { id: own, .. } if own == id);
    let reach = if own {
        Reach::All
    } else {
        rights::read(ctx, "projects", "show")?
    };
    let id = id.to_owned();
    let project: Project = cloud.store.read(move |conn| find(conn, &id)).await?;
    reach.check(&project.domain_id, "projects", "show")?;
    Ok(project)
}

/// The enabled projects that a user has a role on, by name.
///
/// # Errors
/// 403 if the caller asks for someone whom it does not reach.
pub async fn of_user(cloud: &Cloud, ctx: &Context, user_id: &str) -> Result<Vec<Project>> {
    super::users::reachable(cloud, ctx, user_id, "projects", "list")?;
    let ids: Vec<String> = {
        let directory = cloud.identity.directory();
        let mut ids: Vec<String> = directory
            .projects
            .keys()
            .filter(|id| directory.active_project(id).is_some())
            .filter(|id| {
                let target = super::token::Target::Project((*id).clone());
                directory
                    .grants(user_id)
                    .any(|(_, grant)| directory.reaches(grant, &target))
            })
            .cloned()
            .collect();
        ids.sort();
        ids
    };
    cloud
        .store
        .read(move |conn| {
            let mut projects = Vec::new();
            for id in ids {
                match find(conn, &id) {
                    Ok(project) => projects.push(project),
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            projects.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
            Ok(projects)
        })
        .await
}

/// Makes a project.
///
/// # Errors
/// 403, 400, 404 for an unknown domain or parent, 409 if the name is taken.
pub async fn create(cloud: &Cloud, ctx: &Context, new: NewProject) -> Result<Project> {
    let reach = rights::write(ctx, "projects", "create")?;
    names::name("name", &new.name, MAX_NAME)?;
    names::description(new.description.as_deref())?;
    check_tags(&new.tags)?;
    if new.is_domain == Some(true) {
        return Err(Error::BadRequest(
            "A project cannot act as a domain here: make a domain.".into(),
        ));
    }
    let default = scope_domain(ctx);
    let (id, extra) = (super::new_id(), names::extra(new.extra.clone())?);
    let ctx_user = ctx.user_id.clone();
    cloud
        .store
        .write(&ctx_user, move |conn| {
            let parent = match new.parent_id.as_deref() {
                None => None,
                Some(parent) => match find(conn, parent) {
                    Ok(project) => Some(project),
                    // Keystone's clients name the domain itself as the parent, too.
                    Err(_) => {
                        domains::find(conn, parent).map_err(|_| Error::not_found("project", parent))?;
                        None
                    }
                },
            };
            let parent_domain = match (&parent, &new.parent_id) {
                (Some(project), _) => Some(project.domain_id.clone()),
                (None, domain) => domain.clone(),
            };
            let domain = new
                .domain_id
                .clone()
                .or(parent_domain.clone())
                .unwrap_or_else(|| default.clone());
            if parent_domain.is_some_and(|of_parent| of_parent != domain) {
                return Err(Error::BadRequest("The parent belongs to another domain.".into()));
            }
            reach.check(&domain, "projects", "create")?;
            domains::find(conn, &domain)?;
            if depth(conn, parent.as_ref())? >= MAX_DEPTH {
                return Err(Error::Forbidden(format!(
                    "Projects are nested {MAX_DEPTH} deep at most."
                )));
            }
            let done = conn.execute(
                "INSERT INTO projects (id, domain_id, parent_id, name, description, enabled, tags, extra)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    id,
                    domain,
                    parent.map(|p| p.id),
                    new.name,
                    new.description.as_deref().unwrap_or(""),
                    new.enabled.unwrap_or(true),
                    joined(&new.tags),
                    extra
                ],
            );
            names::unique(done, "project", &new.name)?;
            find(conn, &id)
        })
        .await
}

/// The number of projects above a new one below `parent`.
fn depth(conn: &Connection, parent: Option<&Project>) -> Result<usize> {
    let mut depth = 0;
    let mut next = parent.map(|p| p.id.clone());
    while let Some(id) = next {
        depth += 1;
        next = find(conn, &id)?.parent_id;
    }
    Ok(depth)
}

/// Changes a project.
///
/// # Errors
/// 403, 400, 404, 409 if the name is taken.
pub async fn update(cloud: &Cloud, ctx: &Context, id: &str, change: ProjectChange) -> Result<Project> {
    let reach = rights::write(ctx, "projects", "update")?;
    if let Some(name) = &change.name {
        names::name("name", name, MAX_NAME)?;
    }
    names::description(change.description.as_deref())?;
    check_tags(change.tags.as_deref().unwrap_or(&[]))?;
    if change.enabled == Some(false) {
        spare_admin_projects(cloud, ctx, id)?;
    }
    let id = id.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let old = find(conn, &id)?;
            reach.check(&old.domain_id, "projects", "update")?;
            if change.domain_id.as_ref().is_some_and(|domain| *domain != old.domain_id) {
                return Err(Error::BadRequest("A project's domain cannot be changed.".into()));
            }
            let parent = old.parent_id.as_ref().unwrap_or(&old.domain_id);
            if change.parent_id.as_ref().is_some_and(|new| new != parent) {
                return Err(Error::Forbidden("A project's parent cannot be changed.".into()));
            }
            let name = change.name.as_ref().unwrap_or(&old.name);
            let done = conn.execute(
                "UPDATE projects SET name = ?2, description = ?3, enabled = ?4, tags = ?5, extra = ?6 WHERE id = ?1",
                params![
                    id,
                    name,
                    change.description.as_ref().unwrap_or(&old.description),
                    change.enabled.unwrap_or(old.enabled),
                    joined(change.tags.as_ref().unwrap_or(&old.tags)),
                    names::merged(&old.extra, change.extra.clone())?
                ],
            );
            names::unique(done, "project", name)?;
            rights::keep_an_admin(conn)?;
            find(conn, &id)
        })
        .await
}

/// Removes a project, its assignments and its application credentials.
///
/// # Errors
/// 403, also while there are projects below it; 404.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str) -> Result<()> {
    let reach = rights::write(ctx, "projects", "delete")?;
    spare_admin_projects(cloud, ctx, id)?;
    let id = id.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let project = find(conn, &id)?;
            reach.check(&project.domain_id, "projects", "delete")?;
            if conn
                .prepare_cached("SELECT 1 FROM projects WHERE parent_id = ?1")?
                .exists([&id])?
            {
                return Err(Error::Forbidden(format!(
                    "Cannot delete project {id}: there are projects below it; delete these first."
                )));
            }
            remove(conn, &id)?;
            rights::keep_an_admin(conn)
        })
        .await
}

pub(super) fn remove(conn: &Connection, id: &str) -> Result<()> {
    conn.execute(
        "DELETE FROM role_assignments WHERE target_kind = 'project' AND target_id = ?1",
        [id],
    )?;
    conn.execute(
        "DELETE FROM application_credential_roles WHERE credential_id IN
         (SELECT id FROM application_credentials WHERE project_id = ?1)",
        [id],
    )?;
    conn.execute("DELETE FROM application_credentials WHERE project_id = ?1", [id])?;
    conn.execute(
        "UPDATE users SET default_project_id = NULL WHERE default_project_id = ?1",
        [id],
    )?;
    super::stored::remove_of_project(conn, id)?;
    crate::secret::remove_of_project(conn, id)?;
    crate::encryption::remove_of_project(conn, id)?;
    conn.execute("DELETE FROM projects WHERE id = ?1", [id])?;
    Ok(())
}

/// 403 if a manager would take a project away on which someone is an administrator.
fn spare_admin_projects(cloud: &Cloud, ctx: &Context, id: &str) -> Result<()> {
    if ctx.is_admin() {
        return Ok(());
    }
    let directory = cloud.identity.directory();
    let target = super::token::Target::Project(id.to_owned());
    let is_admin = |role: &String| directory.roles.get(role).is_some_and(|name| name == "admin");
    let admins = directory
        .all_grants()
        .filter(|(_, grant)| grant.target == target)
        .any(|(_, grant)| directory.closure([grant.role_id.clone()]).iter().any(is_admin));
    if admins {
        Err(rights::forbidden("projects", "delete"))
    } else {
        Ok(())
    }
}

/// The domain that a new thing is in if the client names none.
pub(super) fn scope_domain(ctx: &Context) -> String {
    match &ctx.scope {
        Scope::Domain { id } => id.clone(),
        Scope::Project { domain_id, .. } => domain_id.clone(),
        Scope::System | Scope::Unscoped => ctx.user_domain_id.clone(),
    }
}
