//! `/os-aggregates`.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use cloud::Error;
use cloud::compute::aggregates::{self, Aggregate, Change};
use serde_json::{Value, json};

use super::check::{Object, name_of};
use super::microversion::Microversion;
use super::{Answer, empty, gone, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::Json;

fn view(version: Microversion, aggregate: &Aggregate) -> Value {
    let mut view = json!({
        "id": aggregate.number,
        "name": aggregate.name,
        "availability_zone": aggregate.zone,
        "metadata": aggregate.metadata,
        "hosts": aggregate.hosts,
        "created_at": aggregate.created_at.naive(),
        "updated_at": aggregate.updated_at.map(|t| t.naive()),
        "deleted_at": null,
        "deleted": false,
    });
    if version >= Microversion::AGGREGATE_UUIDS {
        view["uuid"] = json!(aggregate.id);
    }
    view
}

pub(super) async fn index(State(app): State<AppState>, Auth(ctx): Auth, version: Microversion) -> Answer {
    let all = aggregates::list(&app.cloud, &ctx).await?;
    let views: Vec<Value> = all.iter().map(|a| view(version, a)).collect();
    ok(json!({"aggregates": views}))
}

pub(super) async fn show(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    let aggregate = aggregates::show(&app.cloud, &ctx, &id).await?;
    ok(json!({"aggregate": view(version, &aggregate)}))
}

/// Name and zone.
fn names(body: &Value) -> Result<(Option<String>, Option<String>), Error> {
    let aggregate = Object::only(body, "aggregate")?;
    aggregate.allow(&["name", "availability_zone"])?;
    let zone = match aggregate.get("availability_zone") {
        None | Some(Value::Null) => None,
        Some(value) => Some(name_of("aggregate.availability_zone", value)?),
    };
    if zone.as_ref().is_some_and(|zone| zone.contains(':')) {
        return Err(Error::BadRequest("A zone's name has no colon.".into()));
    }
    Ok((aggregate.name("name")?, zone))
}

pub(super) async fn create(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Json(body): Json<Value>,
) -> Answer {
    ctx.require("aggregates", "update")?;
    let (Some(name), zone) = names(&body)? else {
        return Err(Error::BadRequest(
            "Invalid input for field/attribute aggregate. 'name' is a required property".into(),
        )
        .into());
    };
    let aggregate = aggregates::create(&app.cloud, &ctx, name, zone).await?;
    let mut view = view(version, &aggregate);
    if let Some(fields) = view.as_object_mut() {
        // A new one has neither yet, and Nova's answer has them not.
        fields.remove("hosts");
        fields.remove("metadata");
    }
    ok(json!({"aggregate": view}))
}

pub(super) async fn update(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    ctx.require("aggregates", "update")?;
    let (name, zone) = names(&body)?;
    if name.is_none() && zone.is_none() {
        return Err(
            Error::BadRequest("Invalid input for field/attribute aggregate. It is empty.".into()).into(),
        );
    }
    let aggregate = aggregates::change(&app.cloud, &ctx, &id, Change::Update { name, zone }).await?;
    ok(json!({"aggregate": view(version, &aggregate)}))
}

pub(super) async fn delete(State(app): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    aggregates::delete(&app.cloud, &ctx, &id).await?;
    empty(StatusCode::OK)
}

fn parse(body: &Value) -> Result<Change, Error> {
    let mut keys = body.as_object().into_iter().flatten();
    let (Some((key, value)), None) = (keys.next(), keys.next()) else {
        return Err(Error::BadRequest(
            "Malformed request body: one action is needed.".into(),
        ));
    };
    let inner = Object::of(key.as_str(), value)?;
    let host = || -> Result<String, Error> {
        inner.allow(&["host"])?;
        name_of(&inner.path("host"), inner.required("host")?)
    };
    match key.as_str() {
        "add_host" => host().map(Change::AddHost),
        "remove_host" => host().map(Change::RemoveHost),
        "set_metadata" => {
            inner.allow(&["metadata"])?;
            let pairs = inner.required("metadata")?;
            let Some(pairs) = pairs.as_object() else {
                return Err(super::check::invalid(
                    "set_metadata.metadata",
                    pairs,
                    "It is not an object",
                ));
            };
            let mut metadata = BTreeMap::new();
            for (key, value) in pairs {
                let pair = match value {
                    Value::Null => None,
                    value => {
                        Some(super::check::string_of("set_metadata.metadata", value, 0, 255)?.to_owned())
                    }
                };
                name_of("set_metadata.metadata", &json!(key))?;
                metadata.insert(key.clone(), pair);
            }
            Ok(Change::Metadata(metadata))
        }
        other => {
            let other: String = other.chars().take(64).collect();
            Err(Error::BadRequest(format!("There is no such action: {other}")))
        }
    }
}

pub(super) async fn act(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    ctx.require("aggregates", "update")?;
    let aggregate = aggregates::change(&app.cloud, &ctx, &id, parse(&body)?).await?;
    ok(json!({"aggregate": view(version, &aggregate)}))
}

/// Images are on their node already: there is nothing to cache.
pub(super) async fn cache(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    if version < Microversion::CACHE_IMAGES {
        return Err(gone());
    }
    ctx.require("aggregates", "update")?;
    aggregates::show(&app.cloud, &ctx, &id).await?;
    empty(StatusCode::ACCEPTED)
}
