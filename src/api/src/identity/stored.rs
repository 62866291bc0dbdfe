//! `/v3/credentials`, and EC2 keys below `/v3/users/{id}/credentials/OS-EC2`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use cloud::identity::stored::{self, Stored};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, no_content, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

#[derive(Deserialize)]
pub(super) struct Body<T> {
    credential: T,
}

/// Older clients say `tenant_id`.
#[derive(Deserialize)]
pub(super) struct NewEc2 {
    #[serde(alias = "project_id")]
    tenant_id: String,
}

fn view(state: &AppState, stored: Stored) -> Value {
    json!({
        "id": stored.id,
        "user_id": stored.user_id,
        "project_id": stored.project_id,
        "type": stored.kind,
        "blob": stored.blob.expose(),
        "links": {"self": shape::url(state, &format!("credentials/{}", stored.id))},
    })
}

fn ec2_view(state: &AppState, stored: &Stored) -> Value {
    let blob: Value = serde_json::from_str(stored.blob.expose()).unwrap_or_default();
    let access = blob["access"].as_str().unwrap_or_default();
    let path = format!("users/{}/credentials/OS-EC2/{access}", stored.user_id);
    json!({
        "access": access,
        "secret": blob["secret"],
        "user_id": stored.user_id,
        "tenant_id": stored.project_id,
        "trust_id": null,
        "links": {"self": shape::url(state, &path)},
    })
}

pub(super) async fn list(State(state): State<AppState>, Auth(ctx): Auth, pairs: Pairs) -> Answer {
    let text = |key: &str| pairs.get(key).map(str::to_owned);
    let all = stored::list(&state.cloud, &ctx, text("user_id"), text("type")).await?;
    Ok(shape::list(&state, "credentials", &pairs, all, view)?)
}

pub(super) async fn create(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Json(body): Json<Body<stored::New>>,
) -> Answer {
    let stored = stored::create(&state.cloud, &ctx, body.credential).await?;
    Ok((
        StatusCode::CREATED,
        Json(json!({"credential": view(&state, stored)})),
    )
        .into_response())
}

pub(super) async fn show(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    let stored = stored::show(&state.cloud, &ctx, &id).await?;
    Ok(Json(json!({"credential": view(&state, stored)})).into_response())
}

pub(super) async fn update(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<Body<stored::Update>>,
) -> Answer {
    let stored = stored::update(&state.cloud, &ctx, &id, body.credential).await?;
    Ok(Json(json!({"credential": view(&state, stored)})).into_response())
}

pub(super) async fn delete(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    stored::delete(&state.cloud, &ctx, &id).await?;
    Ok(no_content())
}

pub(super) async fn list_ec2(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(user): Path<String>,
) -> Answer {
    let all = stored::list_ec2(&state.cloud, &ctx, &user).await?;
    let all: Vec<_> = all.iter().map(|stored| ec2_view(&state, stored)).collect();
    let this = shape::url(&state, &format!("users/{user}/credentials/OS-EC2"));
    let links = json!({"self": this, "next": null, "previous": null});
    Ok(Json(json!({"credentials": all, "links": links})).into_response())
}

pub(super) async fn create_ec2(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(user): Path<String>,
    Json(body): Json<NewEc2>,
) -> Answer {
    let stored = stored::create_ec2(&state.cloud, &ctx, &user, &body.tenant_id).await?;
    Ok((
        StatusCode::CREATED,
        Json(json!({"credential": ec2_view(&state, &stored)})),
    )
        .into_response())
}

/// The key, if it is this user's.
async fn find(
    state: &AppState,
    ctx: &cloud::Context,
    user: &str,
    access: &str,
) -> Result<Stored, cloud::Error> {
    let stored = stored::show(&state.cloud, ctx, &stored::ec2_id(access)).await?;
    if stored.user_id != user {
        return Err(cloud::Error::not_found("credential", access));
    }
    Ok(stored)
}

pub(super) async fn show_ec2(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((user, access)): Path<(String, String)>,
) -> Answer {
    let stored = find(&state, &ctx, &user, &access).await?;
    Ok(Json(json!({"credential": ec2_view(&state, &stored)})).into_response())
}

pub(super) async fn delete_ec2(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((user, access)): Path<(String, String)>,
) -> Answer {
    let stored = find(&state, &ctx, &user, &access).await?;
    stored::delete(&state.cloud, &ctx, &stored.id).await?;
    Ok(no_content())
}
