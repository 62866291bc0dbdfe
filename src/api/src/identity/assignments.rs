//! Roles on projects, domains and the system.

use axum::extract::{OriginalUri, Path, State};
use axum::response::IntoResponse;
use cloud::identity::assignments::{self, Assignment, Filter};
use cloud::identity::directory::{Actor, Grant};
use cloud::identity::token::Target;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, no_content, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

/// Whatever of these a route has; which kinds they are, its fixed parts say.
#[derive(Deserialize)]
pub(super) struct Ids {
    #[serde(default)]
    target: String,
    actor: String,
    #[serde(default)]
    role: String,
}

/// Reads `[OS-INHERIT/]{projects,domains,system}[/id]/{users,groups}/id/roles…`.
fn parse(uri: &OriginalUri, ids: Ids) -> (Actor, Grant) {
    let mut parts = uri
        .0
        .path()
        .split('/')
        .skip_while(|part| *part != "v3")
        .skip(1)
        .peekable();
    let inherited = parts.next_if(|part| *part == "OS-INHERIT").is_some();
    let target = match parts.next() {
        Some("projects") => Target::Project(ids.target),
        Some("domains") => Target::Domain(ids.target),
        _ => Target::System,
    };
    let actors = if target == Target::System {
        parts.next()
    } else {
        parts.nth(1)
    };
    let actor = if actors == Some("groups") {
        Actor::Group(ids.actor)
    } else {
        Actor::User(ids.actor)
    };
    (
        actor,
        Grant {
            target,
            role_id: ids.role,
            inherited,
        },
    )
}

pub(super) async fn roles_on(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    uri: OriginalUri,
    Path(ids): Path<Ids>,
    pairs: Pairs,
) -> Answer {
    let (actor, grant) = parse(&uri, ids);
    let roles = assignments::roles_on(&state.cloud, &ctx, actor, grant.target, grant.inherited).await?;
    Ok(shape::list(&state, "roles", &pairs, roles, shape::role)?)
}

pub(super) async fn check(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    uri: OriginalUri,
    Path(ids): Path<Ids>,
) -> Answer {
    let (actor, grant) = parse(&uri, ids);
    let roles = assignments::roles_on(&state.cloud, &ctx, actor, grant.target, grant.inherited).await?;
    if roles.iter().any(|role| role.id == grant.role_id) {
        return Ok(no_content());
    }
    Err(cloud::Error::not_found("role assignment with role", grant.role_id).into())
}

pub(super) async fn grant(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    uri: OriginalUri,
    Path(ids): Path<Ids>,
) -> Answer {
    let (actor, grant) = parse(&uri, ids);
    assignments::grant(&state.cloud, &ctx, actor, grant).await?;
    Ok(no_content())
}

pub(super) async fn revoke(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    uri: OriginalUri,
    Path(ids): Path<Ids>,
) -> Answer {
    let (actor, grant) = parse(&uri, ids);
    assignments::revoke(&state.cloud, &ctx, actor, grant).await?;
    Ok(no_content())
}

pub(super) async fn list(State(state): State<AppState>, Auth(ctx): Auth, pairs: Pairs) -> Answer {
    let text = |key: &str| {
        pairs
            .get(key)
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
    };
    let target = match (
        text("scope.project.id"),
        text("scope.domain.id"),
        text("scope.system"),
    ) {
        (None, None, None) => None,
        (Some(id), None, None) => Some(Target::Project(id)),
        (None, Some(id), None) => Some(Target::Domain(id)),
        (None, None, Some(_)) => Some(Target::System),
        _ => {
            return Err(cloud::Error::BadRequest(
                "Specify one scope: a project, a domain or the system.".into(),
            )
            .into());
        }
    };
    let filter = Filter {
        user_id: text("user.id"),
        group_id: text("group.id"),
        role_id: text("role.id"),
        target,
        include_subtree: pairs.flag("include_subtree")?.unwrap_or(false),
        inherited: text("scope.OS-INHERIT:inherited_to").map(|_| true),
        effective: pairs.flag("effective")?.unwrap_or(false),
        include_names: pairs.flag("include_names")?.unwrap_or(false),
    };
    let all = assignments::list(&state.cloud, &ctx, &filter)?;
    let all: Vec<_> = all
        .into_iter()
        .map(|assignment| shaped(&state, assignment))
        .collect();
    let links = json!({"self": shape::url(&state, "role_assignments"), "next": null, "previous": null});
    Ok(Json(json!({"role_assignments": all, "links": links})).into_response())
}

fn shaped(state: &AppState, assignment: Assignment) -> Value {
    let names = assignment.names;
    let named = |id: &str, named: Option<&(String, String, String)>| match named {
        None => json!({"id": id}),
        Some((name, domain_id, domain_name)) => {
            json!({"id": id, "name": name, "domain": {"id": domain_id, "name": domain_name}})
        }
    };
    let (actors, actor_key, actor_id) = match &assignment.actor {
        Actor::User(id) => ("users", "user", id),
        Actor::Group(id) => ("groups", "group", id),
    };
    let (mut scope, path) = match &assignment.target {
        Target::Project(id) => {
            let project = named(id, names.as_ref().and_then(|names| names.target.as_ref()));
            (json!({"project": project}), format!("projects/{id}"))
        }
        Target::Domain(id) => {
            let name = names
                .as_ref()
                .and_then(|names| names.target.as_ref())
                .map(|target| &target.0);
            let domain = name.map_or(json!({"id": id}), |name| json!({"id": id, "name": name}));
            (json!({"domain": domain}), format!("domains/{id}"))
        }
        Target::System | Target::Unscoped => (json!({"system": {"all": true}}), "system".to_owned()),
    };
    let role_id = &assignment.role_id;
    let (mut prefix, mut suffix) = ("", "");
    if assignment.inherited {
        scope["OS-INHERIT:inherited_to"] = "projects".into();
        (prefix, suffix) = ("OS-INHERIT/", "/inherited_to_projects");
    }
    // An assignment by a group is linked as the group's own.
    let link = match &assignment.by_group {
        Some(group) => format!("{path}/groups/{group}/roles/{role_id}"),
        None => format!("{prefix}{path}/{actors}/{actor_id}/roles/{role_id}{suffix}"),
    };
    let mut links = json!({"assignment": shape::url(state, &link)});
    if let Some(group) = &assignment.by_group {
        links["membership"] = shape::url(state, &format!("groups/{group}/users/{actor_id}")).into();
    }
    let role = match &names {
        None => json!({"id": role_id}),
        Some(names) => json!({"id": role_id, "name": names.role}),
    };
    let actor = named(actor_id, names.as_ref().map(|names| &names.actor));
    json!({"role": role, actor_key: actor, "scope": scope, "links": links})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> (Actor, Grant) {
        let ids = Ids {
            target: "t".into(),
            actor: "a".into(),
            role: "r".into(),
        };
        parse(&OriginalUri(path.parse().unwrap()), ids)
    }

    #[test]
    fn paths_say_who_and_where() {
        let (actor, grant) = read("/identity/v3/projects/t/groups/a/roles/r");
        assert_eq!(actor, Actor::Group("a".into()));
        assert_eq!(
            grant,
            Grant {
                target: Target::Project("t".into()),
                role_id: "r".into(),
                inherited: false
            }
        );
        let (actor, grant) = read("/identity/v3/OS-INHERIT/domains/t/users/a/roles/r/inherited_to_projects");
        assert_eq!(actor, Actor::User("a".into()));
        assert_eq!(
            grant,
            Grant {
                target: Target::Domain("t".into()),
                role_id: "r".into(),
                inherited: true
            }
        );
        let (actor, grant) = read("/identity/v3/system/groups/a/roles/r");
        assert_eq!((actor, grant.target), (Actor::Group("a".into()), Target::System));
    }
}
