//! `/allocations`, `/usages` and `/reshaper`.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use cloud::Error;
use cloud::placement::allocations::{self, Amounts, Change, Reshape, Shares};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::microversion::Microversion;
use super::providers::{Inventories, all_of, given, id_of};
use super::{Answer, Failure, bad, empty, gone, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

pub(super) async fn of_provider(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    let (provider, all) = allocations::of_provider(&app.cloud, &ctx, id_of(&id)?).await?;
    let views: BTreeMap<Uuid, Value> = all
        .into_iter()
        .map(|(consumer, (generation, resources))| {
            let mut view = json!({"resources": resources});
            if version >= Microversion::CONSUMER_GENERATION {
                view["consumer_generation"] = json!(generation);
            }
            (consumer, view)
        })
        .collect();
    ok(
        version,
        json!({"resource_provider_generation": provider.generation, "allocations": views}),
    )
}

pub(super) async fn show(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    let (consumer, shares, generations) = allocations::show(&app.cloud, &ctx, id_of(&id)?).await?;
    let views: BTreeMap<Uuid, Value> = shares
        .into_iter()
        .map(|(provider, resources)| {
            let generation = generations.get(&provider);
            (
                provider,
                json!({"generation": generation, "resources": resources}),
            )
        })
        .collect();
    let mut body = json!({"allocations": views});
    if let Some(consumer) = consumer.filter(|_| version >= Microversion::ALLOCATION_OBJECTS) {
        body["project_id"] = json!(consumer.project_id);
        body["user_id"] = json!(consumer.user_id);
        if version >= Microversion::CONSUMER_GENERATION {
            body["consumer_generation"] = json!(consumer.generation);
        }
        if version >= Microversion::CONSUMER_TYPE {
            body["consumer_type"] = json!(consumer.kind);
        }
    }
    ok(version, body)
}

/// What one consumer is to have, as bodies have it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewAllocations {
    allocations: Value,
    project_id: Option<String>,
    user_id: Option<String>,
    #[serde(default, deserialize_with = "given")]
    consumer_generation: Option<Option<u64>>,
    consumer_type: Option<String>,
    /// Which provider met which group of a request for candidates; told for people.
    #[serde(default)]
    #[allow(dead_code)]
    mappings: Option<Value>,
}

#[derive(Deserialize)]
struct Resources {
    resources: Amounts,
}

fn wrong(why: impl std::fmt::Display) -> Error {
    Error::BadRequest(format!("JSON does not validate: {why}"))
}

/// The shares in both forms: a list before 1.12, an object by provider since.
fn shares(version: Microversion, value: &Value) -> Result<Shares, Error> {
    let read = |value: &Value| serde_json::from_value::<Resources>(value.clone()).map_err(wrong);
    let id = |text: &str| text.parse::<Uuid>().map_err(wrong);
    let mut shares = Shares::new();
    match value {
        Value::Array(list) if version < Microversion::ALLOCATION_OBJECTS => {
            for entry in list {
                let provider = id(entry["resource_provider"]["uuid"].as_str().unwrap_or_default())?;
                shares.insert(provider, read(entry)?.resources);
            }
            if shares.is_empty() {
                return Err(wrong("allocations cannot be empty"));
            }
        }
        Value::Object(map) if version >= Microversion::ALLOCATION_OBJECTS => {
            for (provider, entry) in map {
                shares.insert(id(provider)?, read(entry)?.resources);
            }
            if shares.is_empty() && version < Microversion::CONSUMER_GENERATION {
                return Err(wrong("allocations cannot be empty"));
            }
        }
        _ => return Err(wrong("allocations have another form in this version")),
    }
    let amounts = shares.values().flat_map(BTreeMap::values);
    if shares.values().any(BTreeMap::is_empty)
        || amounts
            .clone()
            .any(|amount| *amount == 0 || *amount > i32::MAX as u64)
    {
        return Err(wrong("an amount is a positive number"));
    }
    Ok(shares)
}

fn change(
    version: Microversion,
    consumer: Uuid,
    new: &NewAllocations,
    empty_allowed: bool,
) -> Result<Change, Error> {
    let empty_object = new.allocations.as_object().is_some_and(serde_json::Map::is_empty);
    let shares = if empty_allowed && empty_object {
        Shares::new()
    } else {
        shares(version, &new.allocations)?
    };
    let needed = version >= Microversion::ALLOCATION_OWNER;
    let owner = |key: &str, value: &Option<String>| match value {
        Some(text) if (1..=255).contains(&text.len()) && needed => Ok(text.clone()),
        None if !needed => Ok("00000000-0000-0000-0000-000000000000".to_owned()),
        _ => Err(wrong(format!("'{key}'"))),
    };
    let generations = version >= Microversion::CONSUMER_GENERATION;
    if generations != new.consumer_generation.is_some() {
        return Err(wrong("'consumer_generation' is a required property from 1.28 on"));
    }
    let types = version >= Microversion::CONSUMER_TYPE;
    let kind = match &new.consumer_type {
        Some(kind) if types => {
            let right = kind
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
            if !right || kind.is_empty() || kind.len() > 255 {
                return Err(wrong(
                    "'consumer_type' has capital letters, digits and underscores",
                ));
            }
            Some(kind.clone())
        }
        None if !types => None,
        _ => return Err(wrong("'consumer_type' is a required property from 1.38 on")),
    };
    Ok(Change {
        consumer,
        shares,
        project_id: owner("project_id", &new.project_id)?,
        user_id: owner("user_id", &new.user_id)?,
        kind,
        seen: new.consumer_generation,
    })
}

pub(super) async fn set(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<NewAllocations>,
) -> Answer {
    let change = change(version, id_of(&id)?, &body, false)?;
    allocations::set(&app.cloud, &ctx, vec![change]).await?;
    empty(version, StatusCode::NO_CONTENT)
}

pub(super) async fn set_many(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Json(body): Json<BTreeMap<Uuid, NewAllocations>>,
) -> Answer {
    if version < Microversion::MANY_ALLOCATIONS {
        return Err(gone());
    }
    if body.is_empty() {
        return Err(bad("JSON does not validate: it names no consumer"));
    }
    let changes = body
        .iter()
        .map(|(consumer, new)| change(version, *consumer, new, true))
        .collect::<Result<_, _>>()?;
    allocations::set(&app.cloud, &ctx, changes).await?;
    empty(version, StatusCode::NO_CONTENT)
}

pub(super) async fn delete(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    allocations::delete(&app.cloud, &ctx, id_of(&id)?).await?;
    empty(version, StatusCode::NO_CONTENT)
}

pub(super) async fn usages(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    if version < Microversion::USAGES {
        return Err(gone());
    }
    let types = version >= Microversion::CONSUMER_TYPE;
    let known = |key: &str| matches!(key, "project_id" | "user_id") || (types && key == "consumer_type");
    if let Some((key, _)) = pairs.0.iter().find(|(key, _)| !known(key)) {
        let key: String = key.chars().take(64).collect();
        return Err(bad(format!(
            "Invalid query string parameters: '{key}' was unexpected"
        )));
    }
    let Some(project) = pairs.get("project_id") else {
        return Err(bad(
            "Invalid query string parameters: 'project_id' is a required property",
        ));
    };
    let user = pairs.get("user_id").map(str::to_owned);
    let all = allocations::usages(&app.cloud, &ctx, project.to_owned(), user).await?;
    if !types {
        let mut sums = Amounts::new();
        for (_, amounts) in all.into_values() {
            for (class, amount) in amounts {
                *sums.entry(class).or_default() += amount;
            }
        }
        return ok(version, json!({"usages": sums}));
    }
    let wanted = pairs.get("consumer_type");
    let mut views: BTreeMap<String, Value> = BTreeMap::new();
    for (kind, (consumers, amounts)) in all {
        let name = match wanted {
            Some("all") => "all".to_owned(),
            Some(wanted) if wanted != kind => continue,
            _ => kind,
        };
        let view = views.entry(name).or_insert_with(|| json!({"consumer_count": 0}));
        view["consumer_count"] = json!(view["consumer_count"].as_u64().unwrap_or(0) + consumers);
        for (class, amount) in amounts {
            view[&class] = json!(view[&class].as_u64().unwrap_or(0) + amount);
        }
    }
    ok(version, json!({"usages": views}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewShape {
    inventories: BTreeMap<Uuid, Inventories>,
    allocations: BTreeMap<Uuid, NewAllocations>,
}

pub(super) async fn reshape(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Json(body): Json<NewShape>,
) -> Answer {
    if version < Microversion::RESHAPER {
        return Err(gone());
    }
    let mut reshape = Reshape::default();
    for (id, new) in &body.inventories {
        let all = all_of(version, &new.inventories)?;
        reshape
            .inventories
            .push((*id, new.resource_provider_generation, all));
    }
    for (consumer, new) in &body.allocations {
        reshape.allocations.push(change(version, *consumer, new, true)?);
    }
    allocations::reshape(&app.cloud, &ctx, reshape)
        .await
        .map_err(|error| match error.kind() {
            Some(cloud::error::Kind::NotFound) => bad(error.to_string()),
            _ => Failure::from(error),
        })?;
    empty(version, StatusCode::NO_CONTENT)
}
