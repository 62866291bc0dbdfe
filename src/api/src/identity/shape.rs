//! How Keystone writes things.

use axum::response::{IntoResponse, Response};
use cloud::identity::credentials::Credential;
use cloud::identity::domains::Domain;
use cloud::identity::groups::Group;
use cloud::identity::projects::Project;
use cloud::identity::roles::Role;
use cloud::identity::users::User;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::AppState;
use crate::body::{Json, Pairs};
use crate::page::{Page, next_link};

/// The longest list in one answer.
const MAX_PAGE: usize = 10_000;

/// The address of something below `/identity/v3`.
pub(super) fn url(state: &AppState, path: &str) -> String {
    format!("{}/identity/v3/{path}", state.cloud.config.public_url)
}

/// `2026-11-20T12:00:00.000000Z`
pub(super) fn time(micros: i64) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000);
    time.ok()
        .and_then(|time| time.format(&format).ok())
        .unwrap_or_default()
}

/// Lays the known attributes over the free ones.
fn over(extra: Map<String, Value>, known: Value) -> Value {
    let mut all = extra;
    if let Value::Object(known) = known {
        all.extend(known);
    }
    Value::Object(all)
}

pub(super) fn domain(state: &AppState, domain: Domain) -> Value {
    let known = json!({
        "id": domain.id,
        "name": domain.name,
        "description": domain.description,
        "enabled": domain.enabled,
        "tags": [],
        "options": {},
        "links": {"self": url(state, &format!("domains/{}", domain.id))},
    });
    over(domain.extra, known)
}

pub(super) fn project(state: &AppState, project: Project) -> Value {
    let known = json!({
        "id": project.id,
        "name": project.name,
        "domain_id": project.domain_id,
        "parent_id": project.parent_id.as_ref().unwrap_or(&project.domain_id),
        "description": project.description,
        "enabled": project.enabled,
        "is_domain": false,
        "tags": project.tags,
        "options": {},
        "links": {"self": url(state, &format!("projects/{}", project.id))},
    });
    over(project.extra, known)
}

pub(super) fn user(state: &AppState, user: User) -> Value {
    let mut known = json!({
        "id": user.id,
        "name": user.name,
        "domain_id": user.domain_id,
        "enabled": user.enabled,
        "password_expires_at": null,
        "options": {},
        "links": {"self": url(state, &format!("users/{}", user.id))},
    });
    // Keystone leaves out what was never set.
    let optional = [
        ("description", user.description),
        ("email", user.email),
        ("default_project_id", user.default_project_id),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            known[key] = value.into();
        }
    }
    over(user.extra, known)
}

pub(super) fn group(state: &AppState, group: Group) -> Value {
    let known = json!({
        "id": group.id,
        "name": group.name,
        "domain_id": group.domain_id,
        "description": group.description,
        "links": {"self": url(state, &format!("groups/{}", group.id))},
    });
    over(group.extra, known)
}

pub(super) fn role(state: &AppState, role: Role) -> Value {
    json!({
        "id": role.id,
        "name": role.name,
        "domain_id": null,
        "description": role.description,
        "options": {},
        "links": {"self": url(state, &format!("roles/{}", role.id))},
    })
}

pub(super) fn credential(state: &AppState, credential: Credential) -> Value {
    let roles: Vec<_> = credential
        .roles
        .iter()
        .map(|(id, name)| json!({"id": id, "name": name, "domain_id": null}))
        .collect();
    let path = format!(
        "users/{}/application_credentials/{}",
        credential.user_id, credential.id
    );
    json!({
        "id": credential.id,
        "user_id": credential.user_id,
        "project_id": credential.project_id,
        "name": credential.name,
        "description": credential.description,
        // Without a zone, as Keystone writes it.
        "expires_at": credential.expires_at.map(|at| time(at).trim_end_matches('Z').to_owned()),
        "unrestricted": credential.unrestricted,
        "system": null,
        "roles": roles,
        "links": {"self": url(state, &path)},
    })
}

/// A collection with its links; `limit` and `marker` cut it, and `name__contains` and its like filter it.
pub(super) fn list<T>(
    state: &AppState,
    path: &str,
    pairs: &Pairs,
    items: Vec<T>,
    shape: impl Fn(&AppState, T) -> Value,
) -> Result<Response, cloud::Error> {
    let key = path.rsplit('/').next().unwrap_or(path);
    let mut items: Vec<Value> = items.into_iter().map(|item| shape(state, item)).collect();
    for (filter, value) in &pairs.0 {
        if let Some(kind) = filter.strip_prefix("name__") {
            items.retain(|item| matches(item["name"].as_str().unwrap_or(""), kind, value));
        }
    }
    let id = |item: &Value| item["id"].as_str().unwrap_or("").to_owned();
    let (items, next) = Page::of(pairs, MAX_PAGE)?.cut(items, id)?;
    let this = url(state, path);
    let next = next.map(|marker| next_link(&this, pairs, &marker));
    Ok(Json(json!({key: items, "links": {"next": next, "self": this, "previous": null}})).into_response())
}

/// Keystone's inexact filters.
fn matches(name: &str, kind: &str, value: &str) -> bool {
    let (lower, wanted) = (name.to_lowercase(), value.to_lowercase());
    match kind {
        "contains" => name.contains(value),
        "icontains" => lower.contains(&wanted),
        "startswith" => name.starts_with(value),
        "istartswith" => lower.starts_with(&wanted),
        "endswith" => name.ends_with(value),
        "iendswith" => lower.ends_with(&wanted),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_microseconds_and_a_zone() {
        assert_eq!(time(1_795_132_800_000_001), "2026-11-20T00:00:00.000001Z");
    }

    #[test]
    fn inexact_filters() {
        assert!(matches("Alpha", "icontains", "LPH"));
        assert!(!matches("Alpha", "contains", "LPH"));
        assert!(matches("Alpha", "startswith", "Al"));
        assert!(matches("Alpha", "unknown", "x"));
    }
}
