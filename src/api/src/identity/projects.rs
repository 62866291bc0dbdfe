//! `/v3/domains` and `/v3/projects`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use cloud::identity::{domains, projects};
use serde::Deserialize;
use serde_json::json;

use super::{Answer, no_content, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

#[derive(Deserialize)]
pub(super) struct DomainBody<T> {
    domain: T,
}

#[derive(Deserialize)]
pub(super) struct ProjectBody<T> {
    project: T,
}

#[derive(Deserialize)]
pub(super) struct TagsBody {
    tags: Vec<String>,
}

fn text(pairs: &Pairs, key: &str) -> Option<String> {
    pairs.get(key).map(str::to_owned)
}

pub(super) async fn list_domains(State(state): State<AppState>, Auth(ctx): Auth, pairs: Pairs) -> Answer {
    let filter = domains::Filter {
        name: text(&pairs, "name"),
        enabled: pairs.flag("enabled")?,
    };
    let domains = domains::list(&state.cloud, &ctx, filter).await?;
    Ok(shape::list(&state, "domains", &pairs, domains, shape::domain)?)
}

pub(super) async fn create_domain(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Json(body): Json<DomainBody<domains::NewDomain>>,
) -> Answer {
    let domain = domains::create(&state.cloud, &ctx, body.domain).await?;
    Ok((
        StatusCode::CREATED,
        Json(json!({"domain": shape::domain(&state, domain)})),
    )
        .into_response())
}

pub(super) async fn show_domain(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
) -> Answer {
    let domain = domains::show(&state.cloud, &ctx, &id).await?;
    Ok(Json(json!({"domain": shape::domain(&state, domain)})).into_response())
}

pub(super) async fn update_domain(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<DomainBody<domains::DomainChange>>,
) -> Answer {
    let domain = domains::update(&state.cloud, &ctx, &id, body.domain).await?;
    Ok(Json(json!({"domain": shape::domain(&state, domain)})).into_response())
}

pub(super) async fn delete_domain(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
) -> Answer {
    domains::delete(&state.cloud, &ctx, &id).await?;
    Ok(no_content())
}

pub(super) async fn list(State(state): State<AppState>, Auth(ctx): Auth, pairs: Pairs) -> Answer {
    if pairs.flag("is_domain")? == Some(true) {
        // A domain seen as a project is the domain itself.
        return list_domains(State(state), Auth(ctx), pairs).await;
    }
    let tags = pairs
        .get("tags")
        .map(|tags| tags.split(',').map(str::to_owned).collect());
    let filter = projects::Filter {
        name: text(&pairs, "name"),
        domain_id: text(&pairs, "domain_id"),
        parent_id: text(&pairs, "parent_id"),
        enabled: pairs.flag("enabled")?,
        tags: tags.unwrap_or_default(),
    };
    let projects = projects::list(&state.cloud, &ctx, filter).await?;
    Ok(shape::list(&state, "projects", &pairs, projects, shape::project)?)
}

pub(super) async fn create(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Json(body): Json<ProjectBody<projects::NewProject>>,
) -> Answer {
    let project = projects::create(&state.cloud, &ctx, body.project).await?;
    Ok((
        StatusCode::CREATED,
        Json(json!({"project": shape::project(&state, project)})),
    )
        .into_response())
}

pub(super) async fn show(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    let project = projects::show(&state.cloud, &ctx, &id).await?;
    Ok(Json(json!({"project": shape::project(&state, project)})).into_response())
}

pub(super) async fn update(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<ProjectBody<projects::ProjectChange>>,
) -> Answer {
    let project = projects::update(&state.cloud, &ctx, &id, body.project).await?;
    Ok(Json(json!({"project": shape::project(&state, project)})).into_response())
}

pub(super) async fn delete(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    projects::delete(&state.cloud, &ctx, &id).await?;
    Ok(no_content())
}

pub(super) async fn tags(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    let project = projects::show(&state.cloud, &ctx, &id).await?;
    Ok(Json(json!({"tags": project.tags})).into_response())
}

pub(super) async fn set_tags(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<TagsBody>,
) -> Answer {
    let change = projects::ProjectChange {
        tags: Some(body.tags),
        ..Default::default()
    };
    let project = projects::update(&state.cloud, &ctx, &id, change).await?;
    Ok(Json(json!({"tags": project.tags})).into_response())
}

pub(super) async fn clear_tags(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
) -> Answer {
    let change = projects::ProjectChange {
        tags: Some(Vec::new()),
        ..Default::default()
    };
    projects::update(&state.cloud, &ctx, &id, change).await?;
    Ok(no_content())
}

pub(super) async fn has_tag(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, tag)): Path<(String, String)>,
) -> Answer {
    let project = projects::show(&state.cloud, &ctx, &id).await?;
    if project.tags.contains(&tag) {
        Ok(no_content())
    } else {
        Err(cloud::Error::not_found("project tag", tag).into())
    }
}

pub(super) async fn add_tag(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, tag)): Path<(String, String)>,
) -> Answer {
    let mut tags = projects::show(&state.cloud, &ctx, &id).await?.tags;
    tags.push(tag);
    let change = projects::ProjectChange {
        tags: Some(tags),
        ..Default::default()
    };
    projects::update(&state.cloud, &ctx, &id, change).await?;
    Ok(StatusCode::CREATED.into_response())
}

pub(super) async fn remove_tag(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, tag)): Path<(String, String)>,
) -> Answer {
    let mut tags = projects::show(&state.cloud, &ctx, &id).await?.tags;
    if !tags.contains(&tag) {
        return Err(cloud::Error::not_found("project tag", tag).into());
    }
    tags.retain(|known| *known != tag);
    let change = projects::ProjectChange {
        tags: Some(tags),
        ..Default::default()
    };
    projects::update(&state.cloud, &ctx, &id, change).await?;
    Ok(no_content())
}
