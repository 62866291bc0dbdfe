//! Who holds which role on what.

use std::collections::BTreeSet;

use rusqlite::{Connection, params};

use super::directory::{Actor, Directory, Grant};
use super::token::Target;
use super::{groups, rights, roles, users};
use crate::{Cloud, Context, Error, Result};

/// One assignment, with the names of everything in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Who.
    pub actor: Actor,
    /// The group that the user has it by, in a list of effective assignments.
    pub by_group: Option<String>,
    /// Where.
    pub target: Target,
    /// Which role.
    pub role_id: String,
    /// It counts for the projects below the target, not for itself.
    pub inherited: bool,
    /// Names, if they were asked for.
    pub names: Option<Names>,
}

/// Names for an assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The user's or group's name and its domain's id and name.
    pub actor: (String, String, String),
    /// The project's or domain's name and its domain's id and name.
    pub target: Option<(String, String, String)>,
    /// The role's name.
    pub role: String,
}

/// What a list is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this user's; with `effective` also those by its groups.
    pub user_id: Option<String>,
    /// Only this group's.
    pub group_id: Option<String>,
    /// Only this role.
    pub role_id: Option<String>,
    /// Only on this.
    pub target: Option<Target>,
    /// With the projects below the target's project.
    pub include_subtree: bool,
    /// Only inherited ones, or only others.
    pub inherited: Option<bool>,
    /// Groups, inheritance and implied roles are resolved.
    pub effective: bool,
    /// Names beside ids.
    pub include_names: bool,
}

/// All assignments that the caller reaches.
///
/// # Errors
/// 403, 400 for filters that exclude each other.
pub fn list(cloud: &Cloud, ctx: &Context, filter: &Filter) -> Result<Vec<Assignment>> {
    let reach = rights::read(ctx, "role_assignments", "list")?;
    if filter.user_id.is_some() && filter.group_id.is_some() {
        return Err(Error::BadRequest("Specify a user or a group, not both.".into()));
    }
    if filter.effective && filter.group_id.is_some() {
        return Err(Error::BadRequest(
            "Effective assignments are those of users: specify no group.".into(),
        ));
    }
    let directory = cloud.identity.directory();
    let mut all = BTreeSet::new();
    for (actor, grant) in directory.all_grants() {
        if filter.effective {
            expand(&directory, actor, grant, &mut all);
        } else {
            let (target, role) = (grant.target.clone(), grant.role_id.clone());
            all.insert((actor.clone(), target, role, grant.inherited, None));
        }
    }
    let subtree = |target: &Target| match (&filter.target, target) {
        (None, _) => true,
        (Some(wanted), target) if wanted == target => true,
        (Some(Target::Project(above)), Target::Project(id)) if filter.include_subtree => {
            is_below(&directory, id, above)
        }
        _ => false,
    };
    let wanted = all.into_iter().filter(|(actor, target, role_id, inherited, _)| {
        let domain = match target {
            Target::Project(id) => directory
                .projects
                .get(id)
                .map(|project| project.domain_id.as_str()),
            Target::Domain(id) => Some(id.as_str()),
            Target::System | Target::Unscoped => None,
        };
        let reached = reach.domain().is_none_or(|reached| domain == Some(reached));
        let of_user = filter
            .user_id
            .as_ref()
            .is_none_or(|id| matches!(actor, Actor::User(user) if user == id));
        let of_group = filter
            .group_id
            .as_ref()
            .is_none_or(|id| matches!(actor, Actor::Group(group) if group == id));
        let of_role = filter.role_id.as_ref().is_none_or(|id| id == role_id);
        let kind = filter.inherited.is_none_or(|wanted| wanted == *inherited);
        reached && of_user && of_group && of_role && kind && subtree(target)
    });
    Ok(wanted
        .map(|(actor, target, role_id, inherited, by_group)| {
            let names = filter
                .include_names
                .then(|| names(&directory, &actor, &target, &role_id));
            Assignment {
                actor,
                by_group,
                target,
                role_id,
                inherited,
                names,
            }
        })
        .collect())
}

type Entry = (Actor, Target, String, bool, Option<String>);

fn expand(directory: &Directory, actor: &Actor, grant: &Grant, all: &mut BTreeSet<Entry>) {
    let (members, by_group) = match actor {
        Actor::User(id) => (vec![id.clone()], None),
        Actor::Group(id) => (directory.members(id), Some(id.clone())),
    };
    let targets: Vec<Target> = if grant.inherited {
        let projects = directory.projects.keys().map(|id| Target::Project(id.clone()));
        projects
            .filter(|target| directory.reaches(grant, target))
            .collect()
    } else {
        vec![grant.target.clone()]
    };
    for role in directory.closure([grant.role_id.clone()]) {
        for target in &targets {
            for user in &members {
                all.insert((
                    Actor::User(user.clone()),
                    target.clone(),
                    role.clone(),
                    false,
                    by_group.clone(),
                ));
            }
        }
    }
}

fn is_below(directory: &Directory, id: &str, above: &str) -> bool {
    let mut next = directory
        .projects
        .get(id)
        .and_then(|project| project.parent_id.as_deref());
    for _ in 0..super::directory::MAX_DEPTH {
        match next {
            Some(id) if id == above => return true,
            Some(id) => {
                next = directory
                    .projects
                    .get(id)
                    .and_then(|project| project.parent_id.as_deref())
            }
            None => return false,
        }
    }
    false
}

fn names(directory: &Directory, actor: &Actor, target: &Target, role_id: &str) -> Names {
    let domain = |id: &str| {
        directory
            .domains
            .get(id)
            .map_or(String::new(), |domain| domain.name.clone())
    };
    let with_domain = |(name, id): (String, String)| {
        let domain_name = domain(&id);
        (name, id, domain_name)
    };
    let actor = match actor {
        Actor::User(id) => directory
            .users
            .get(id)
            .map(|user| (user.name.clone(), user.domain_id.clone())),
        Actor::Group(id) => directory.group_names.get(id).cloned(),
    };
    let target = match target {
        Target::Project(id) => directory
            .projects
            .get(id)
            .map(|p| with_domain((p.name.clone(), p.domain_id.clone()))),
        Target::Domain(id) => Some((domain(id), id.clone(), domain(id))),
        Target::System | Target::Unscoped => None,
    };
    Names {
        actor: with_domain(actor.unwrap_or_default()),
        target,
        role: directory.roles.get(role_id).cloned().unwrap_or_default(),
    }
}

/// The actor must be there, and the caller must reach actor, target and role.
fn check(cloud: &Cloud, ctx: &Context, actor: &Actor, grant: &Grant, action: &str) -> Result<()> {
    let reach =
        rights::write(ctx, "role_assignments", action).map_err(|_| rights::forbidden("grants", action))?;
    match rights::domain_of(cloud, &grant.target)? {
        Some(domain) => reach.check(&domain, "grants", action)?,
        None if reach == rights::Reach::All => {}
        None => return Err(rights::forbidden("grants", action)),
    }
    if let (rights::Reach::Domain(own), Actor::User(id)) = (&reach, actor) {
        let directory = cloud.identity.directory();
        if directory.users.get(id).is_some_and(|user| user.domain_id != *own) {
            return Err(rights::forbidden("grants", action));
        }
    }
    rights::manageable(cloud, ctx, &grant.role_id)
}

fn columns<'a>(actor: &'a Actor, grant: &'a Grant) -> [&'a str; 5] {
    let (actor_kind, actor_id) = match actor {
        Actor::User(id) => ("user", id.as_str()),
        Actor::Group(id) => ("group", id.as_str()),
    };
    let (target_kind, target_id) = match &grant.target {
        Target::Project(id) => ("project", id.as_str()),
        Target::Domain(id) => ("domain", id.as_str()),
        Target::System | Target::Unscoped => ("system", "all"),
    };
    [actor_kind, actor_id, target_kind, target_id, &grant.role_id]
}

fn find_actor(conn: &Connection, actor: &Actor) -> Result<String> {
    match actor {
        Actor::User(id) => users::find(conn, id).map(|user| user.domain_id),
        Actor::Group(id) => groups::find(conn, id).map(|group| group.domain_id),
    }
}

/// Gives a role; twice is once.
///
/// # Errors
/// 403, 404 if actor, target or role is not there.
pub async fn grant(cloud: &Cloud, ctx: &Context, actor: Actor, grant: Grant) -> Result<()> {
    check(cloud, ctx, &actor, &grant, "create")?;
    let reach = rights::write(ctx, "role_assignments", "create")?;
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            roles::find(conn, &grant.role_id)?;
            let domain = find_actor(conn, &actor)?;
            reach.check(&domain, "grants", "create")?;
            let [a, b, c, d, e] = columns(&actor, &grant);
            conn.execute(
                "INSERT OR IGNORE INTO role_assignments
                 (actor_kind, actor_id, target_kind, target_id, role_id, inherited) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![a, b, c, d, e, grant.inherited],
            )?;
            Ok(())
        })
        .await
}

/// Takes a role away.
///
/// # Errors
/// 403, 404 if it was not given.
pub async fn revoke(cloud: &Cloud, ctx: &Context, actor: Actor, grant: Grant) -> Result<()> {
    check(cloud, ctx, &actor, &grant, "delete").map_err(|error| match error {
        Error::Forbidden(_) => rights::forbidden("grants", "revoke"),
        other => other,
    })?;
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let [a, b, c, d, e] = columns(&actor, &grant);
            let gone = conn.execute(
                "DELETE FROM role_assignments WHERE actor_kind = ?1 AND actor_id = ?2 AND target_kind = ?3
                     AND target_id = ?4 AND role_id = ?5 AND inherited = ?6",
                params![a, b, c, d, e, grant.inherited],
            )?;
            if gone == 0 {
                return Err(Error::not_found("role assignment with role", &grant.role_id));
            }
            rights::keep_an_admin(conn)
        })
        .await
}

/// The roles of an actor on a target, as they were given.
///
/// # Errors
/// 403, 404.
pub async fn roles_on(
    cloud: &Cloud,
    ctx: &Context,
    actor: Actor,
    target: Target,
    inherited: bool,
) -> Result<Vec<roles::Role>> {
    let reach =
        rights::read(ctx, "role_assignments", "list").map_err(|_| rights::forbidden("grants", "list"))?;
    match rights::domain_of(cloud, &target)? {
        Some(domain) => reach.check(&domain, "grants", "list")?,
        None if reach == rights::Reach::All => {}
        None => return Err(rights::forbidden("grants", "list")),
    }
    let ids: Vec<String> = {
        let directory = cloud.identity.directory();
        let on = directory
            .grants_of(&actor)
            .filter(|grant| grant.target == target && grant.inherited == inherited);
        on.map(|grant| grant.role_id.clone()).collect()
    };
    cloud
        .store
        .read(move |conn| {
            find_actor(conn, &actor)?;
            let mut all = ids
                .iter()
                .map(|id| roles::find(conn, id))
                .collect::<Result<Vec<_>>>()?;
            all.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(all)
        })
        .await
}
