//! `/v2/images`.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use cloud::image::{self, Image, update};
use serde_json::{Map, Value, json};

use super::{Answer, filter, no_content, parse_id, patch, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, MAX_JSON, Pairs, parse, read};
use crate::fault::Service;
use crate::page::{Page, next_link};

/// A page's length if the client names none, and at most, as in Glance.
const PAGE: (usize, usize) = (25, 1000);

pub(super) async fn list(State(state): State<AppState>, Auth(ctx): Auth, pairs: Pairs) -> Answer {
    let images =
        image::list::list(&state.cloud, &ctx, filter::filter(&pairs)?, filter::sort(&pairs)?).await?;
    let mut page = Page::of(&pairs, PAGE.1)?;
    if pairs.get("limit").is_none() {
        page.limit = Some(PAGE.0);
    }
    let (images, next) = page.cut(images, |image: &Image| image.id.to_string())?;
    let first = Pairs(
        pairs
            .0
            .iter()
            .filter(|(key, _)| key != "marker")
            .cloned()
            .collect(),
    );
    let query: String = form(&first);
    let mut body = json!({
        "images": images.iter().map(shape::image).collect::<Vec<_>>(),
        "first": format!("/v2/images{query}"),
        "schema": "/v2/schemas/images",
    });
    if let Some(marker) = next {
        body["next"] = next_link("/v2/images", &pairs, &marker).into();
    }
    Ok(Json(body).into_response())
}

fn form(pairs: &Pairs) -> String {
    if pairs.0.is_empty() {
        return String::new();
    }
    let mut query = form_urlencoded::Serializer::new(String::from("?"));
    query.extend_pairs(&pairs.0);
    query.finish().replacen("?&", "?", 1)
}

pub(super) async fn create(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Json(document): Json<Map<String, Value>>,
) -> Answer {
    let image = update::create(&state.cloud, &ctx, document).await?;
    let mut response = (StatusCode::CREATED, Json(shape::image(&image))).into_response();
    let at = format!("{}/image/v2/images/{}", state.cloud.config.public_url, image.id);
    if let Ok(at) = HeaderValue::from_str(&at) {
        response.headers_mut().insert(header::LOCATION, at);
    }
    Ok(response)
}

pub(super) async fn show(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    let image = image::show(&state.cloud, &ctx, parse_id(&id)?).await?;
    Ok(Json(shape::image(&image)).into_response())
}

pub(super) async fn update(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let syntax = patch::syntax(
        headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok()),
    )?;
    let document: Value = parse(&read(Service::Image, body, MAX_JSON).await?)?;
    let steps = patch::parse(syntax, &document)?;
    let image = update::update(&state.cloud, &ctx, parse_id(&id)?, steps).await?;
    Ok(Json(shape::image(&image)).into_response())
}

pub(super) async fn delete(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    update::delete(&state.cloud, &ctx, parse_id(&id)?).await?;
    Ok(no_content())
}

pub(super) async fn deactivate(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
) -> Answer {
    update::set_active(&state.cloud, &ctx, parse_id(&id)?, false).await?;
    Ok(no_content())
}

pub(super) async fn reactivate(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
) -> Answer {
    update::set_active(&state.cloud, &ctx, parse_id(&id)?, true).await?;
    Ok(no_content())
}

pub(super) async fn add_tag(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, tag)): Path<(String, String)>,
) -> Answer {
    update::tag(&state.cloud, &ctx, parse_id(&id)?, &tag, true).await?;
    Ok(no_content())
}

pub(super) async fn remove_tag(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((id, tag)): Path<(String, String)>,
) -> Answer {
    update::tag(&state.cloud, &ctx, parse_id(&id)?, &tag, false).await?;
    Ok(no_content())
}
