//! `/v3/roles` and what they imply.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use cloud::identity::roles::{self, Role};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, no_content, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

#[derive(Deserialize)]
pub(super) struct Body<T> {
    role: T,
}

pub(super) async fn list(State(state): State<AppState>, Auth(ctx): Auth, pairs: Pairs) -> Answer {
    let mut roles = roles::list(&state.cloud, &ctx, pairs.get("name").map(str::to_owned)).await?;
    if pairs.get("domain_id").is_some_and(|id| !id.is_empty()) {
        // No role belongs to a domain.
        roles.clear();
    }
    Ok(shape::list(&state, "roles", &pairs, roles, shape::role)?)
}

pub(super) async fn create(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Json(body): Json<Body<roles::NewRole>>,
) -> Answer {
    let role = roles::create(&state.cloud, &ctx, body.role).await?;
    Ok((
        StatusCode::CREATED,
        Json(json!({"role": shape::role(&state, role)})),
    )
        .into_response())
}

pub(super) async fn show(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    let role = roles::show(&state.cloud, &ctx, &id).await?;
    Ok(Json(json!({"role": shape::role(&state, role)})).into_response())
}

pub(super) async fn update(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<Body<roles::RoleChange>>,
) -> Answer {
    let role = roles::update(&state.cloud, &ctx, &id, body.role).await?;
    Ok(Json(json!({"role": shape::role(&state, role)})).into_response())
}

pub(super) async fn delete(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    roles::delete(&state.cloud, &ctx, &id).await?;
    Ok(no_content())
}

fn brief(state: &AppState, role: &Role) -> Value {
    let this = shape::url(state, &format!("roles/{}", role.id));
    json!({"id": role.id, "name": role.name, "links": {"self": this}})
}

fn inference(state: &AppState, prior: &Role, implied: &[Role]) -> Value {
    let implied: Vec<_> = implied.iter().map(|role| brief(state, role)).collect();
    json!({"prior_role": brief(state, prior), "implies": implied})
}

pub(super) async fn implied(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
) -> Answer {
    let (prior, implied) = roles::implied(&state.cloud, &ctx, &id).await?;
    let this = shape::url(&state, &format!("roles/{id}/implies"));
    let body = json!({"role_inference": inference(&state, &prior, &implied), "links": {"self": this}});
    Ok(Json(body).into_response())
}

pub(super) async fn implies(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, implied)): Path<(String, String)>,
) -> Answer {
    let (prior, all) = roles::implied(&state.cloud, &ctx, &id).await?;
    let one = all.iter().find(|role| role.id == implied);
    let one = one.ok_or_else(|| cloud::Error::not_found("implied role", implied))?;
    Ok(
        Json(json!({"role_inference": {"prior_role": brief(&state, &prior), "implies": brief(&state, one)}}))
            .into_response(),
    )
}

pub(super) async fn is_implied(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, implied)): Path<(String, String)>,
) -> Answer {
    let (_, all) = roles::implied(&state.cloud, &ctx, &id).await?;
    match all.iter().any(|role| role.id == implied) {
        true => Ok(no_content()),
        false => Err(cloud::Error::not_found("implied role", implied).into()),
    }
}

pub(super) async fn imply(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, implied)): Path<(String, String)>,
) -> Answer {
    roles::set_implied(&state.cloud, &ctx, &id, &implied, true).await?;
    let (prior, implied) = (
        roles::show(&state.cloud, &ctx, &id).await?,
        roles::show(&state.cloud, &ctx, &implied).await?,
    );
    let body =
        json!({"role_inference": {"prior_role": brief(&state, &prior), "implies": brief(&state, &implied)}});
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

pub(super) async fn unimply(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, implied)): Path<(String, String)>,
) -> Answer {
    roles::set_implied(&state.cloud, &ctx, &id, &implied, false).await?;
    Ok(no_content())
}

pub(super) async fn inferences(State(state): State<AppState>, Auth(ctx): Auth) -> Answer {
    let all = roles::inferences(&state.cloud, &ctx).await?;
    let all: Vec<_> = all
        .iter()
        .map(|(prior, implied)| inference(&state, prior, implied))
        .collect();
    let this = shape::url(&state, "role_inferences");
    Ok(Json(json!({"role_inferences": all, "links": {"self": this}})).into_response())
}
