//! Encryption of volume types.

use axum::extract::State;
use axum::http::StatusCode;
use cloud::Error;
use cloud::volume::type_encryption::{self, TypeEncryption, Words};
use serde_json::{Value, json};

use super::{Answer, Call, empty, ok};
use crate::AppState;
use crate::body::Json;
use crate::compute::check::{Object, invalid};

/// Bits that a key may have at most.
const MAX_KEY: i64 = 8192;

fn view(of: &TypeEncryption) -> Value {
    json!({
        "volume_type_id": of.type_id,
        "encryption_id": of.id,
        "provider": of.provider,
        "cipher": of.cipher,
        "key_size": of.key_size,
        "control_location": of.control_location,
    })
}

fn words(body: &Value) -> Result<Words, Error> {
    let object = Object::only(body, "encryption")?;
    object.allow(&["provider", "cipher", "key_size", "control_location"])?;
    let location = object.string("control_location", 1, 255)?;
    if let Some(text) = location
        && !matches!(text, "front-end" | "back-end")
    {
        let why = "it is neither 'front-end' nor 'back-end'";
        return Err(invalid(&object.path("control_location"), &json!(text), why));
    }
    let key_size = match object.get("key_size") {
        Some(Value::Null) => Some(None),
        _ => object.integer("key_size", 0, MAX_KEY)?.map(Some),
    };
    Ok(Words {
        provider: object.string("provider", 1, 255)?.map(str::to_owned),
        cipher: object
            .nullable("cipher", 255)?
            .map(|cipher| cipher.map(str::to_owned)),
        key_size,
        control_location: location.map(str::to_owned),
    })
}

pub(super) async fn show(State(app): State<AppState>, call: Call) -> Answer {
    let found = type_encryption::show(&app.cloud, &call.ctx, call.id()).await?;
    let Some(found) = found else {
        return ok(json!({}));
    };
    let mut body = view(&found);
    body["created_at"] = json!(found.created_at.naive());
    body["updated_at"] = json!(found.updated_at.map(|time| time.naive()));
    body["deleted_at"] = Value::Null;
    body["deleted"] = json!(false);
    ok(body)
}

pub(super) async fn item(State(app): State<AppState>, call: Call) -> Answer {
    let found = type_encryption::show(&app.cloud, &call.ctx, call.id()).await?;
    let key = call.param("key");
    match found
        .map(|found| view(&found))
        .as_ref()
        .and_then(|body| body.get(key))
    {
        Some(value) => ok(json!({key: value})),
        None => Err(super::gone()),
    }
}

pub(super) async fn create(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    let made = type_encryption::create(&app.cloud, &call.ctx, call.id(), words(&body)?).await?;
    ok(json!({"encryption": view(&made)}))
}

pub(super) async fn update(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    let words = words(&body)?;
    let made = type_encryption::update(&app.cloud, &call.ctx, call.id(), call.param("key"), words).await?;
    // Cinder answers what was said, without ids.
    ok(json!({"encryption": {
        "provider": made.provider,
        "cipher": made.cipher,
        "key_size": made.key_size,
        "control_location": made.control_location,
    }}))
}

pub(super) async fn delete(State(app): State<AppState>, call: Call) -> Answer {
    type_encryption::delete(&app.cloud, &call.ctx, call.id(), call.param("key")).await?;
    empty(StatusCode::ACCEPTED)
}
