//! `/v1/secrets` and payloads.

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cloud::Error;
use cloud::image::list::Comparison;
use cloud::secret::{self, Filter, NewSecret, Payload, Secret, SortKey, TimeKey};
use serde::Deserialize;
use serde_json::json;

use super::versions::Minor;
use super::{Answer, no_content, parse_id, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs, read};
use crate::fault::{Fault, Service};

const TEXT: &str = "text/plain";
const BYTES: &str = "application/octet-stream";
/// The largest body of a payload.
const MAX_BODY: usize = 64 * 1024;

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/secrets", get(list).post(create))
        .route("/secrets/{id}", get(show).put(set_payload).delete(delete))
        .route("/secrets/{id}/payload", get(payload))
}

#[derive(Deserialize)]
struct NewBody {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    secret_type: Option<String>,
    #[serde(default)]
    algorithm: Option<String>,
    #[serde(default)]
    bit_length: Option<u32>,
    #[serde(default)]
    mode: Option<String>,
    #[serde(default)]
    expiration: Option<String>,
    #[serde(default)]
    payload: Option<cloud::identity::Secret>,
    #[serde(default)]
    payload_content_type: Option<String>,
    #[serde(default)]
    payload_content_encoding: Option<String>,
}

fn wrong(why: impl std::fmt::Display) -> Error {
    Error::BadRequest(format!("Provided object does not match schema 'Secret': {why}."))
}

/// One of the two types that payloads have, without its parameters.
fn content_type(text: &str) -> Result<&'static str, Error> {
    let mut parts = text.split(';').map(str::trim);
    let known = match parts.next().map(str::to_ascii_lowercase).as_deref() {
        Some(TEXT) => TEXT,
        Some(BYTES) => BYTES,
        _ => {
            let text: String = text.chars().take(64).collect();
            return Err(wrong(format_args!(
                "payload_content_type {text} is not supported"
            )));
        }
    };
    let utf8 = |part: &str| part.is_empty() || part.replace(' ', "").eq_ignore_ascii_case("charset=utf-8");
    if !parts.all(utf8) {
        return Err(wrong("payload_content_type has a charset other than utf-8"));
    }
    Ok(known)
}

fn decoded(text: &[u8]) -> Result<Vec<u8>, Error> {
    let clean: Vec<u8> = text
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    STANDARD
        .decode(clean)
        .map_err(|_| Error::BadRequest("Unable to decode payload: it is no base64.".into()))
}

fn payload_of(body: &NewBody) -> Result<Option<Payload>, Error> {
    let encoding = body.payload_content_encoding.as_deref();
    let Some(payload) = &body.payload else {
        return match (&body.payload_content_type, encoding) {
            (None, None) => Ok(None),
            _ => Err(wrong(
                "payload must be provided when payload_content_type is supplied",
            )),
        };
    };
    let Some(kind) = &body.payload_content_type else {
        return Err(wrong(
            "If 'payload' is supplied, 'payload_content_type' must also be supplied",
        ));
    };
    let kind = content_type(kind)?;
    let bytes = match (kind, encoding) {
        (TEXT, None) => payload.expose().as_bytes().to_vec(),
        (BYTES, Some("base64")) => decoded(payload.expose().as_bytes())?,
        (TEXT, Some(_)) => {
            return Err(wrong(
                "payload_content_encoding must not be specified when payload_content_type is text/plain",
            ));
        }
        (_, None) => {
            return Err(wrong(
                "payload_content_encoding must be specified when payload_content_type is application/octet-stream",
            ));
        }
        (_, Some(_)) => return Err(wrong("payload_content_encoding must be base64")),
    };
    Ok(Some(Payload {
        content_type: kind.to_owned(),
        bytes: bytes.into(),
    }))
}

async fn create(State(state): State<AppState>, Auth(ctx): Auth, Json(body): Json<NewBody>) -> Answer {
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let expires_at = text(&body.expiration)
        .map(|text| shape::parse_time("expiration", &text))
        .transpose()?;
    let new = NewSecret {
        payload: payload_of(&body)?,
        name: text(&body.name),
        kind: text(&body.secret_type),
        algorithm: text(&body.algorithm),
        bit_length: body.bit_length,
        mode: text(&body.mode),
        expires_at,
    };
    let id = secret::create(&state.cloud, &ctx, new).await?;
    let reference = shape::url(&state, format_args!("secrets/{id}"));
    let mut response = (StatusCode::CREATED, Json(json!({"secret_ref": reference}))).into_response();
    if let Ok(at) = HeaderValue::from_str(&reference) {
        response.headers_mut().insert(header::LOCATION, at);
    }
    Ok(response)
}

fn filter(pairs: &Pairs) -> Result<Filter, Error> {
    let text = |key: &str| pairs.get(key).filter(|text| !text.is_empty()).map(str::to_owned);
    let mut filter = Filter {
        name: text("name"),
        algorithm: text("alg"),
        mode: text("mode"),
        kind: text("secret_type"),
        bits: pairs
            .number("bits")?
            .filter(|bits| *bits > 0)
            .map(|bits| u32::try_from(bits).unwrap_or(u32::MAX)),
        acl_only: pairs.flag("acl_only")?.unwrap_or(false),
        ..Filter::default()
    };
    for (key, time) in [
        ("created", TimeKey::Created),
        ("updated", TimeKey::Updated),
        ("expiration", TimeKey::Expiration),
    ] {
        for part in text(key).iter().flat_map(|text| text.split(',')) {
            let known = [
                ("gte:", Comparison::GreaterOrEqual),
                ("gt:", Comparison::Greater),
                ("lte:", Comparison::LessOrEqual),
                ("lt:", Comparison::Less),
            ];
            let found = known
                .iter()
                .find_map(|(prefix, comparison)| Some((*comparison, part.strip_prefix(prefix)?)));
            let (comparison, at) = found.unwrap_or((Comparison::Equal, part));
            filter.times.push((time, comparison, shape::parse_time(key, at)?));
        }
    }
    for part in text("sort").iter().flat_map(|text| text.split(',')) {
        let (key, direction) = part.split_once(':').unwrap_or((part, "asc"));
        let keys = [
            "created",
            "updated",
            "expiration",
            "name",
            "algorithm",
            "bit_length",
            "mode",
            "secret_type",
            "status",
        ];
        if !keys.contains(&key) || !["asc", "desc"].contains(&direction) {
            return Err(Error::BadRequest("Invalid sort: use key:asc or key:desc.".into()));
        }
        filter.sort.push(SortKey {
            key: key.to_owned(),
            up: direction == "asc",
        });
    }
    Ok(filter)
}

async fn list(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Extension(minor): Extension<Minor>,
    pairs: Pairs,
) -> Answer {
    let part = shape::part(&pairs)?;
    let (secrets, total) = secret::list(&state.cloud, &ctx, filter(&pairs)?, part).await?;
    let views = secrets
        .iter()
        .map(|one| shape::secret(&state, minor, one))
        .collect();
    let body = shape::list(&state, ("secrets", "secrets"), &pairs, part, views, total);
    Ok(Json(body).into_response())
}

/// The media types of an `Accept`, best first as they stand; nothing means anything.
fn accepts(headers: &HeaderMap) -> Vec<String> {
    let text = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let kinds = text.unwrap_or("*/*").split(',');
    kinds
        .map(|kind| kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase())
        .filter(|kind| !kind.is_empty())
        .collect()
}

/// Metadata for who asks for JSON, and, as clients of old do, the payload for who asks for its type.
async fn show(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Extension(minor): Extension<Minor>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Answer {
    let id = parse_id("Secret", &id)?;
    let kinds = accepts(&headers);
    if kinds
        .iter()
        .any(|kind| kind == "application/json" || kind == "*/*")
    {
        let secret: Secret = secret::show(&state.cloud, &ctx, id).await?;
        return Ok(Json(shape::secret(&state, minor, &secret)).into_response());
    }
    let payload = secret::payload(&state.cloud, &ctx, id).await?;
    answer_payload(payload, &kinds)
}

async fn payload(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Answer {
    let payload = secret::payload(&state.cloud, &ctx, parse_id("Secret", &id)?).await?;
    answer_payload(payload, &accepts(&headers))
}

/// The payload as the first type that the client takes. Both types are the same bytes; text has to be UTF-8.
fn answer_payload(payload: Payload, kinds: &[String]) -> Answer {
    let stored = if payload.content_type == TEXT { TEXT } else { BYTES };
    let is_text = std::str::from_utf8(&payload.bytes).is_ok();
    let wanted = kinds.iter().find_map(|kind| match kind.as_str() {
        "*/*" => Some(stored),
        "text/*" | TEXT if is_text => Some(TEXT),
        "application/*" | BYTES => Some(BYTES),
        _ => None,
    });
    let Some(kind) = wanted else {
        let text = format!("Secret's payload is {stored}: ask for this.");
        return Err(Fault::http(Service::KeyManager, StatusCode::NOT_ACCEPTABLE, text).into());
    };
    let kind = if kind == TEXT {
        "text/plain; charset=utf-8"
    } else {
        BYTES
    };
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, payload.bytes.to_vec()).into_response())
}

async fn set_payload(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, super::Refusal> {
    let id = parse_id("Secret", &id)?;
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let kind = text(header::CONTENT_TYPE).unwrap_or("");
    let kind = content_type(kind).map_err(|_| {
        let kind: String = kind.chars().take(64).collect();
        Error::UnsupportedMediaType(format!(
            "Unsupported Content-Type {kind:?}: send {TEXT} or {BYTES}."
        ))
    })?;
    let bytes = read(Service::KeyManager, body, MAX_BODY).await?;
    let bytes = match text(header::CONTENT_ENCODING) {
        None | Some("") => bytes.to_vec(),
        Some(encoding) if encoding.eq_ignore_ascii_case("base64") => decoded(&bytes)?,
        Some(_) => return Err(Error::BadRequest("Content-Encoding must be base64.".into()).into()),
    };
    if kind == TEXT && std::str::from_utf8(&bytes).is_err() {
        return Err(Error::BadRequest("A payload of text/plain is UTF-8.".into()).into());
    }
    let payload = Payload {
        content_type: kind.to_owned(),
        bytes: bytes.into(),
    };
    secret::set_payload(&state.cloud, &ctx, id, payload).await?;
    Ok(no_content())
}

async fn delete(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    secret::delete(&state.cloud, &ctx, parse_id("Secret", &id)?).await?;
    Ok(no_content())
}
