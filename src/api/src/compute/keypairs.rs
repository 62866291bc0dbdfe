//! `/os-keypairs`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use cloud::Error;
use cloud::compute::keypairs::{self, Create, KeyPair};
use serde_json::{Value, json};

use super::check::{Object, invalid};
use super::microversion::Microversion;
use super::views::Links;
use super::{Answer, MAX_LIMIT, empty, known_queries, limit, marker, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

fn brief(version: Microversion, pair: &KeyPair) -> Value {
    let mut view = json!({"name": pair.name, "public_key": pair.public_key, "fingerprint": pair.fingerprint});
    if version >= Microversion::KEY_TYPES {
        view["type"] = json!(pair.kind);
    }
    view
}

/// The user that an admin names, from 2.10.
fn user(version: Microversion, pairs: &Pairs) -> Option<&str> {
    pairs.get("user_id").filter(|_| version >= Microversion::KEY_USER)
}

pub(super) async fn index(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    known_queries(version, &pairs, &["user_id", "limit", "marker"])?;
    let paged = version >= Microversion::KEY_PAGES;
    let (marker, limit) = if paged {
        (marker(&pairs), limit(&pairs)?)
    } else {
        (None, MAX_LIMIT)
    };
    let found = keypairs::list(&app.cloud, &ctx, user(version, &pairs), marker, limit).await?;
    let views: Vec<Value> = found
        .iter()
        .map(|p| json!({"keypair": brief(version, p)}))
        .collect();
    let mut body = json!({"keypairs": views});
    if paged {
        let last = found
            .last()
            .map(|p| p.name.as_str())
            .filter(|_| found.len() == limit);
        Links::new(&app).next(&mut body, "keypairs_links", "os-keypairs", &pairs, last);
    }
    ok(body)
}

pub(super) async fn show(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(name): Path<String>,
    pairs: Pairs,
) -> Answer {
    known_queries(version, &pairs, &["user_id"])?;
    let pair = keypairs::show(&app.cloud, &ctx, user(version, &pairs), &name).await?;
    let mut view = brief(version, &pair);
    view["user_id"] = json!(pair.user_id);
    view["id"] = json!(pair.number);
    view["created_at"] = json!(pair.created_at.naive());
    view["updated_at"] = Value::Null;
    view["deleted_at"] = Value::Null;
    view["deleted"] = json!(false);
    ok(json!({"keypair": view}))
}

pub(super) async fn delete(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(name): Path<String>,
    pairs: Pairs,
) -> Answer {
    known_queries(version, &pairs, &["user_id"])?;
    keypairs::delete(&app.cloud, &ctx, user(version, &pairs), &name).await?;
    empty(if version >= Microversion::KEY_TYPES {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::ACCEPTED
    })
}

fn parse(body: &Value, version: Microversion) -> Result<Create, Error> {
    let pair = Object::only(body, "keypair")?;
    let mut known = vec!["name", "public_key"];
    if version >= Microversion::KEY_TYPES {
        known.push("type");
    }
    if version >= Microversion::KEY_USER {
        known.push("user_id");
    }
    pair.allow(&known)?;
    let value = pair.required("name")?;
    let name = pair.name("name")?.unwrap_or_default();
    let more = if version >= Microversion::NO_KEY_GENERATION {
        "@."
    } else {
        ""
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_- ".contains(c) || more.contains(c);
    if !name.chars().all(allowed) {
        let why = format!(
            "Keypair data is invalid: Keypair name contains unsafe characters beside [_- a-zA-Z0-9{more}]"
        );
        return Err(invalid("keypair.name", value, &why));
    }
    let x509 = match pair.get("type") {
        None => false,
        Some(value) => match value.as_str() {
            Some("ssh") => false,
            Some("x509") => true,
            _ => return Err(invalid("keypair.type", value, "It is not one of ['ssh', 'x509']")),
        },
    };
    let public_key = pair.string("public_key", 1, 65_535)?.map(str::to_owned);
    if public_key.is_none() && version >= Microversion::NO_KEY_GENERATION {
        pair.required("public_key")?;
    }
    let user_id = pair.string("user_id", 1, 255)?.map(str::to_owned);
    Ok(Create {
        name,
        public_key,
        user_id,
        x509,
    })
}

pub(super) async fn create(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Json(body): Json<Value>,
) -> Answer {
    let (pair, private) = keypairs::create(&app.cloud, &ctx, parse(&body, version)?).await?;
    let mut view = brief(version, &pair);
    view["user_id"] = json!(pair.user_id);
    if let Some(private) = private {
        view["private_key"] = json!(private.as_str());
    }
    let status = if version >= Microversion::KEY_TYPES {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(json!({"keypair": view}))).into_response())
}
