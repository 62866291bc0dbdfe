//! `/v1/containers`.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use cloud::secret::{NewContainer, container};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{Answer, no_content, parse_id, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/containers", get(list).post(create))
        .route("/containers/{id}", get(show).delete(delete))
        .route("/containers/{id}/secrets", post(add).delete(remove))
}

#[derive(Deserialize)]
struct NewBody {
    #[serde(default)]
    name: Option<String>,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    secret_refs: Vec<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    #[serde(default)]
    name: Option<String>,
    secret_ref: String,
}

impl Reference {
    fn read(self) -> Result<(String, Uuid), cloud::Error> {
        let id = shape::id_of_ref("secret_ref", &self.secret_ref)?;
        Ok((self.name.unwrap_or_default(), id))
    }
}

fn created(state: &AppState, id: Uuid) -> Response {
    let reference = shape::url(state, format_args!("containers/{id}"));
    let mut response = (StatusCode::CREATED, Json(json!({"container_ref": reference}))).into_response();
    if let Ok(at) = HeaderValue::from_str(&reference) {
        response.headers_mut().insert(header::LOCATION, at);
    }
    response
}

async fn create(State(state): State<AppState>, Auth(ctx): Auth, Json(body): Json<NewBody>) -> Answer {
    let refs = body.secret_refs.into_iter().map(Reference::read);
    let new = NewContainer {
        name: body.name.filter(|name| !name.is_empty()),
        kind: body.kind,
        refs: refs.collect::<Result<_, _>>()?,
    };
    let id = container::create(&state.cloud, &ctx, new).await?;
    Ok(created(&state, id))
}

async fn list(State(state): State<AppState>, Auth(ctx): Auth, pairs: Pairs) -> Answer {
    let part = shape::part(&pairs)?;
    let text = |key: &str| pairs.get(key).filter(|text| !text.is_empty()).map(str::to_owned);
    let (all, total) = container::list(&state.cloud, &ctx, text("type"), text("name"), part).await?;
    let views = all.iter().map(|one| shape::container(&state, one)).collect();
    let body = shape::list(&state, ("containers", "containers"), &pairs, part, views, total);
    Ok(Json(body).into_response())
}

async fn show(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    let one = container::show(&state.cloud, &ctx, parse_id("Container", &id)?).await?;
    Ok(Json(shape::container(&state, &one)).into_response())
}

async fn delete(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    container::delete(&state.cloud, &ctx, parse_id("Container", &id)?).await?;
    Ok(no_content())
}

async fn add(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<Reference>,
) -> Answer {
    let id = parse_id("Container", &id)?;
    let (name, secret) = body.read()?;
    container::add_secret(&state.cloud, &ctx, id, &name, secret).await?;
    Ok(created(&state, id))
}

async fn remove(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<Reference>,
) -> Answer {
    let (name, secret) = body.read()?;
    container::remove_secret(&state.cloud, &ctx, parse_id("Container", &id)?, &name, secret).await?;
    Ok(no_content())
}
