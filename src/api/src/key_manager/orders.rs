//! `/v1/orders`.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use cloud::Error;
use cloud::secret::{KeyOrder, order};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Answer, no_content, parse_id, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/orders", get(list).post(create))
        .route("/orders/{id}", get(show).delete(delete))
}

#[derive(Deserialize)]
struct Body {
    #[serde(rename = "type")]
    kind: String,
    meta: Map<String, Value>,
}

fn wrong(why: &str) -> Error {
    Error::BadRequest(format!("Provided object does not match schema 'Order': {why}."))
}

fn key_order(body: Body) -> Result<KeyOrder, Error> {
    if body.kind != "key" {
        return Err(wrong("this cloud makes symmetric keys alone, of type 'key'"));
    }
    let text = |key: &str| match body.meta.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(_) => Err(wrong(&format!("'{key}' is not a string"))),
    };
    if body.meta.contains_key("payload") {
        return Err(wrong("'payload' not allowed for key type order"));
    }
    if text("payload_content_type")?.is_some_and(|kind| kind != "application/octet-stream") {
        return Err(wrong("payload_content_type of a key is application/octet-stream"));
    }
    let bits = body.meta.get("bit_length").and_then(Value::as_u64);
    Ok(KeyOrder {
        name: text("name")?,
        algorithm: text("algorithm")?.ok_or_else(|| wrong("'algorithm' is required"))?,
        bit_length: bits
            .and_then(|bits| u32::try_from(bits).ok())
            .ok_or_else(|| wrong("'bit_length' is required"))?,
        mode: text("mode")?,
        expires_at: text("expiration")?
            .map(|text| shape::parse_time("expiration", &text))
            .transpose()?,
        meta: body.meta,
    })
}

async fn create(State(state): State<AppState>, Auth(ctx): Auth, Json(body): Json<Body>) -> Answer {
    let id = order::create(&state.cloud, &ctx, key_order(body)?).await?;
    let reference = shape::url(&state, format_args!("orders/{id}"));
    let mut response = (StatusCode::ACCEPTED, Json(json!({"order_ref": reference}))).into_response();
    if let Ok(at) = HeaderValue::from_str(&reference) {
        response.headers_mut().insert(header::LOCATION, at);
    }
    Ok(response)
}

async fn list(State(state): State<AppState>, Auth(ctx): Auth, pairs: Pairs) -> Answer {
    let part = shape::part(&pairs)?;
    let (all, total) = order::list(&state.cloud, &ctx, part).await?;
    let views = all.iter().map(|one| shape::order(&state, one)).collect();
    Ok(Json(shape::list(
        &state,
        ("orders", "orders"),
        &pairs,
        part,
        views,
        total,
    ))
    .into_response())
}

async fn show(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    let one = order::show(&state.cloud, &ctx, parse_id("Order", &id)?).await?;
    Ok(Json(shape::order(&state, &one)).into_response())
}

async fn delete(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    order::delete(&state.cloud, &ctx, parse_id("Order", &id)?).await?;
    Ok(no_content())
}
