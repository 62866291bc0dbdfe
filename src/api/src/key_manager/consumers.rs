//! `/v1/secrets/{id}/consumers` and `/v1/containers/{id}/consumers`.

use axum::Router;
use axum::extract::{Extension, Path, State};
use axum::response::IntoResponse;
use axum::routing::get;
use cloud::Error;
use cloud::secret::{self, Consumer, ContainerConsumer, consumer, container};
use serde::Deserialize;

use super::versions::Minor;
use super::{Answer, parse_id, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/secrets/{id}/consumers", get(list).post(add).delete(remove))
        .route(
            "/containers/{id}/consumers",
            get(list_of_container)
                .post(add_to_container)
                .delete(remove_from_container),
        )
}

#[derive(Deserialize)]
struct Body {
    service: String,
    resource_type: String,
    resource_id: String,
}

impl From<Body> for Consumer {
    fn from(body: Body) -> Consumer {
        Consumer {
            service: body.service,
            resource_type: body.resource_type,
            resource_id: body.resource_id,
        }
    }
}

#[derive(Deserialize)]
struct ContainerBody {
    name: String,
    #[serde(rename = "URL")]
    url: String,
}

impl From<ContainerBody> for ContainerConsumer {
    fn from(body: ContainerBody) -> ContainerConsumer {
        ContainerConsumer {
            name: body.name,
            url: body.url,
        }
    }
}

/// Consumers of secrets came with 1.1.
fn known(minor: Minor) -> Result<(), Error> {
    if minor.has_consumers() {
        Ok(())
    } else {
        Err(Error::not_found("Resource", "consumers"))
    }
}

async fn list(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Extension(minor): Extension<Minor>,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Answer {
    known(minor)?;
    let (id, part) = (parse_id("Secret", &id)?, shape::part(&pairs)?);
    let (all, total) = consumer::list(&state.cloud, &ctx, id, part).await?;
    let path = format!("secrets/{id}/consumers");
    let views = shape::consumers(&all);
    Ok(Json(shape::list(
        &state,
        (&path, "consumers"),
        &pairs,
        part,
        views,
        total,
    ))
    .into_response())
}

async fn add(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Extension(minor): Extension<Minor>,
    Path(id): Path<String>,
    Json(body): Json<Body>,
) -> Answer {
    known(minor)?;
    let id = parse_id("Secret", &id)?;
    consumer::add(&state.cloud, &ctx, id, body.into()).await?;
    let secret = secret::show(&state.cloud, &ctx, id).await?;
    Ok(Json(shape::secret(&state, minor, &secret)).into_response())
}

async fn remove(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Extension(minor): Extension<Minor>,
    Path(id): Path<String>,
    Json(body): Json<Body>,
) -> Answer {
    known(minor)?;
    let id = parse_id("Secret", &id)?;
    consumer::remove(&state.cloud, &ctx, id, body.into()).await?;
    let secret = secret::show(&state.cloud, &ctx, id).await?;
    Ok(Json(shape::secret(&state, minor, &secret)).into_response())
}

async fn list_of_container(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Answer {
    let (id, part) = (parse_id("Container", &id)?, shape::part(&pairs)?);
    let (all, total) = consumer::list_of_container(&state.cloud, &ctx, id, part).await?;
    let path = format!("containers/{id}/consumers");
    let views = shape::container_consumers(&all);
    Ok(Json(shape::list(
        &state,
        (&path, "consumers"),
        &pairs,
        part,
        views,
        total,
    ))
    .into_response())
}

async fn add_to_container(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<ContainerBody>,
) -> Answer {
    let id = parse_id("Container", &id)?;
    consumer::add_to_container(&state.cloud, &ctx, id, body.into()).await?;
    let one = container::show(&state.cloud, &ctx, id).await?;
    Ok(Json(shape::container(&state, &one)).into_response())
}

async fn remove_from_container(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<ContainerBody>,
) -> Answer {
    let id = parse_id("Container", &id)?;
    consumer::remove_from_container(&state.cloud, &ctx, id, body.into()).await?;
    let one = container::show(&state.cloud, &ctx, id).await?;
    Ok(Json(shape::container(&state, &one)).into_response())
}
