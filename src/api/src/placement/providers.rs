//! `/resource_providers`.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::{Path, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use cloud::Error;
use cloud::placement::providers::{self, Filter, Inventory, InventoryChange, Provider, Rooted};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::microversion::Microversion;
use super::{Answer, Failure, answer, bad, empty, gone, ok, query};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

fn view(version: Microversion, (provider, root): &Rooted) -> Value {
    let base = format!("/placement/resource_providers/{}", provider.id);
    let mut links = vec![json!({"rel": "self", "href": base})];
    for (rel, from) in [
        ("inventories", Microversion(0)),
        ("usages", Microversion(0)),
        ("aggregates", Microversion::AGGREGATES),
        ("traits", Microversion::TRAITS),
        ("allocations", Microversion::ALLOCATION_LINKS),
    ] {
        if version >= from {
            links.push(json!({"rel": rel, "href": format!("{base}/{rel}")}));
        }
    }
    let mut view = json!({
        "uuid": provider.id,
        "name": provider.name,
        "generation": provider.generation,
        "links": links,
    });
    if version >= Microversion::NESTED {
        view["parent_provider_uuid"] = json!(provider.parent);
        view["root_provider_uuid"] = json!(root);
    }
    view
}

/// An id in a path.
pub(super) fn id_of(text: &str) -> Result<Uuid, Failure> {
    text.parse().map_err(|_| gone())
}

pub(super) async fn index(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    query::check_twice(&pairs, version)?;
    let mut filter = Filter::default();
    for (key, value) in &pairs.0 {
        let from = match key.as_str() {
            "name" | "uuid" => Microversion(0),
            "member_of" => Microversion::MEMBER_OF,
            "resources" => Microversion::RESOURCES,
            "in_tree" => Microversion::NESTED,
            "required" => Microversion::PROVIDERS_REQUIRED,
            _ => Microversion(u16::MAX),
        };
        if version < from {
            let key: String = key.chars().take(64).collect();
            return Err(bad(format!(
                "Invalid query string parameters: Additional properties are not allowed ('{key}' was unexpected)"
            )));
        }
        match key.as_str() {
            "name" => filter.name = Some(value.clone()),
            "uuid" => filter.id = Some(query::id(key, value)?),
            "in_tree" => filter.in_tree = Some(query::id(key, value)?),
            _ => query::read(key, value, &mut filter.request, version)?,
        }
    }
    let found = providers::list(&app.cloud, &ctx, filter).await?;
    let views: Vec<Value> = found.iter().map(|provider| view(version, provider)).collect();
    ok(version, json!({"resource_providers": views}))
}

pub(super) async fn show(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    let provider = providers::show(&app.cloud, &ctx, id_of(&id)?).await?;
    ok(version, view(version, &provider))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewProvider {
    name: String,
    uuid: Option<Uuid>,
    #[serde(default, deserialize_with = "given")]
    parent_provider_uuid: Option<Option<Uuid>>,
}

/// A field that is there, also if it is null.
pub(super) fn given<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

fn check_name(name: &str) -> Result<(), Error> {
    if (1..=200).contains(&name.chars().count()) {
        Ok(())
    } else {
        Err(Error::BadRequest(
            "JSON does not validate: name has 1 to 200 characters".into(),
        ))
    }
}

fn check_nested(version: Microversion, new: &NewProvider) -> Result<(), Failure> {
    if new.parent_provider_uuid.is_some() && version < Microversion::NESTED {
        return Err(bad(
            "JSON does not validate: Additional properties are not allowed ('parent_provider_uuid' was unexpected)",
        ));
    }
    Ok(())
}

pub(super) async fn create(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Json(new): Json<NewProvider>,
) -> Answer {
    check_name(&new.name)?;
    check_nested(version, &new)?;
    let id = new.uuid.unwrap_or_else(Uuid::new_v4);
    let parent = new.parent_provider_uuid.flatten();
    let made = providers::create(&app.cloud, &ctx, id, new.name, parent).await?;
    let mut response = if version >= Microversion::CREATE_ANSWER {
        answer(version, StatusCode::OK, view(version, &made))?
    } else {
        empty(version, StatusCode::CREATED)?
    };
    let at = format!(
        "{}/placement/resource_providers/{id}",
        app.cloud.config.public_url
    );
    if let Ok(at) = HeaderValue::from_str(&at) {
        response.headers_mut().insert(LOCATION, at);
    }
    Ok(response)
}

pub(super) async fn update(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(new): Json<NewProvider>,
) -> Answer {
    check_name(&new.name)?;
    check_nested(version, &new)?;
    let id = id_of(&id)?;
    if let Some(parent) = new.parent_provider_uuid
        && version < Microversion::REPARENT
    {
        let (now, _) = providers::show(&app.cloud, &ctx, id).await?;
        if now.parent.is_some() && now.parent != parent {
            return Err(bad("re-parenting a provider is not currently allowed."));
        }
    }
    let provider = providers::update(&app.cloud, &ctx, id, new.name, new.parent_provider_uuid).await?;
    ok(version, view(version, &provider))
}

pub(super) async fn delete(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    providers::delete(&app.cloud, &ctx, id_of(&id)?).await?;
    empty(version, StatusCode::NO_CONTENT)
}

/// An inventory as bodies have it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewInventory {
    total: u64,
    reserved: Option<u64>,
    min_unit: Option<u64>,
    max_unit: Option<u64>,
    step_size: Option<u64>,
    allocation_ratio: Option<f64>,
    /// Beside a single inventory.
    resource_provider_generation: Option<u64>,
    /// The same, where one is added.
    resource_class: Option<String>,
}

impl NewInventory {
    pub(super) fn inventory(&self, version: Microversion) -> Result<Inventory, Error> {
        let all = Inventory::of(self.total);
        let inventory = Inventory {
            total: self.total,
            reserved: self.reserved.unwrap_or(all.reserved),
            min_unit: self.min_unit.unwrap_or(all.min_unit),
            max_unit: self.max_unit.unwrap_or(all.max_unit),
            step_size: self.step_size.unwrap_or(all.step_size),
            allocation_ratio: self.allocation_ratio.unwrap_or(all.allocation_ratio),
        };
        let most = i32::MAX as u64;
        let numbers = [
            inventory.total,
            inventory.reserved,
            inventory.min_unit,
            inventory.max_unit,
            inventory.step_size,
        ];
        if numbers.iter().any(|number| *number > most) {
            return Err(Error::BadRequest(format!(
                "JSON does not validate: a number is greater than the maximum of {most}"
            )));
        }
        if inventory.reserved == inventory.total && version < Microversion::RESERVED_ALL {
            return Err(Error::BadRequest(
                "Invalid inventory: 'reserved' must be less than 'total'.".into(),
            ));
        }
        Ok(inventory)
    }
}

fn inventory_view(inventory: &Inventory) -> Value {
    json!({
        "total": inventory.total,
        "reserved": inventory.reserved,
        "min_unit": inventory.min_unit,
        "max_unit": inventory.max_unit,
        "step_size": inventory.step_size,
        "allocation_ratio": inventory.allocation_ratio,
    })
}

fn inventories_view(provider: &Provider, all: &BTreeMap<String, Inventory>) -> Value {
    let views: BTreeMap<&String, Value> = all.iter().map(|(class, i)| (class, inventory_view(i))).collect();
    json!({"resource_provider_generation": provider.generation, "inventories": views})
}

fn one_view(provider: &Provider, inventory: &Inventory) -> Value {
    let mut view = inventory_view(inventory);
    view["resource_provider_generation"] = json!(provider.generation);
    view
}

pub(super) async fn inventories(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    let (provider, all) = providers::inventories(&app.cloud, &ctx, id_of(&id)?).await?;
    ok(version, inventories_view(&provider, &all))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Inventories {
    pub(super) resource_provider_generation: u64,
    pub(super) inventories: BTreeMap<String, NewInventory>,
}

pub(super) fn all_of(
    version: Microversion,
    new: &BTreeMap<String, NewInventory>,
) -> Result<BTreeMap<String, Inventory>, Error> {
    new.iter()
        .map(|(class, inventory)| Ok((class.clone(), inventory.inventory(version)?)))
        .collect()
}

pub(super) async fn replace_inventories(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<Inventories>,
) -> Answer {
    let all = all_of(version, &body.inventories)?;
    let seen = Some(body.resource_provider_generation);
    let change = InventoryChange::Replace(all);
    let (provider, all) = providers::change_inventories(&app.cloud, &ctx, id_of(&id)?, seen, change).await?;
    ok(version, inventories_view(&provider, &all))
}

pub(super) async fn remove_inventories(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    if version < Microversion::DELETE_INVENTORIES {
        return Err(Failure(crate::fault::Fault::http(
            crate::fault::Service::Placement,
            StatusCode::METHOD_NOT_ALLOWED,
            "The method specified is not allowed for this resource.",
        )));
    }
    let change = InventoryChange::Replace(BTreeMap::new());
    providers::change_inventories(&app.cloud, &ctx, id_of(&id)?, None, change).await?;
    empty(version, StatusCode::NO_CONTENT)
}

pub(super) async fn add_inventory(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<NewInventory>,
) -> Answer {
    let Some(class) = body.resource_class.clone() else {
        return Err(bad(
            "JSON does not validate: 'resource_class' is a required property",
        ));
    };
    let inventory = body.inventory(version)?;
    let seen = body.resource_provider_generation;
    let change = InventoryChange::Add(class, inventory);
    let (provider, _) = providers::change_inventories(&app.cloud, &ctx, id_of(&id)?, seen, change).await?;
    answer(version, StatusCode::CREATED, one_view(&provider, &inventory))
}

pub(super) async fn inventory(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path((id, class)): Path<(String, String)>,
) -> Answer {
    let (provider, all) = providers::inventories(&app.cloud, &ctx, id_of(&id)?).await?;
    let inventory = all.get(&class).ok_or_else(gone)?;
    ok(version, one_view(&provider, inventory))
}

pub(super) async fn update_inventory(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path((id, class)): Path<(String, String)>,
    Json(body): Json<NewInventory>,
) -> Answer {
    let inventory = body.inventory(version)?;
    let Some(seen) = body.resource_provider_generation else {
        return Err(bad(
            "JSON does not validate: 'resource_provider_generation' is a required property",
        ));
    };
    let change = InventoryChange::Update(class, inventory);
    let (provider, _) =
        providers::change_inventories(&app.cloud, &ctx, id_of(&id)?, Some(seen), change).await?;
    ok(version, one_view(&provider, &inventory))
}

pub(super) async fn remove_inventory(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path((id, class)): Path<(String, String)>,
) -> Answer {
    let change = InventoryChange::Remove(class);
    providers::change_inventories(&app.cloud, &ctx, id_of(&id)?, None, change).await?;
    empty(version, StatusCode::NO_CONTENT)
}

pub(super) async fn usages(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    let (provider, usages) = providers::usages(&app.cloud, &ctx, id_of(&id)?).await?;
    ok(
        version,
        json!({"resource_provider_generation": provider.generation, "usages": usages}),
    )
}

fn aggregates_view(version: Microversion, provider: &Provider, aggregates: &BTreeSet<String>) -> Value {
    let mut view = json!({"aggregates": aggregates});
    if version >= Microversion::AGGREGATE_GENERATION {
        view["resource_provider_generation"] = json!(provider.generation);
    }
    view
}

pub(super) async fn aggregates(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    if version < Microversion::AGGREGATES {
        return Err(gone());
    }
    let (provider, _, aggregates) = providers::sets(&app.cloud, &ctx, id_of(&id)?).await?;
    ok(version, aggregates_view(version, &provider, &aggregates))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Aggregates {
    aggregates: BTreeSet<Uuid>,
    resource_provider_generation: u64,
}

pub(super) async fn set_aggregates(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    if version < Microversion::AGGREGATES {
        return Err(gone());
    }
    let wrong = |e: serde_json::Error| bad(format!("JSON does not validate: {e}"));
    let (aggregates, seen) = if version >= Microversion::AGGREGATE_GENERATION {
        let body: Aggregates = serde_json::from_value(body).map_err(wrong)?;
        (body.aggregates, Some(body.resource_provider_generation))
    } else {
        (serde_json::from_value(body).map_err(wrong)?, None)
    };
    let texts = aggregates.iter().map(ToString::to_string).collect();
    let provider = providers::set_aggregates(&app.cloud, &ctx, id_of(&id)?, seen, aggregates).await?;
    ok(version, aggregates_view(version, &provider, &texts))
}

fn traits_view(provider: &Provider, traits: &BTreeSet<String>) -> Value {
    json!({"resource_provider_generation": provider.generation, "traits": traits})
}

pub(super) async fn traits(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    if version < Microversion::TRAITS {
        return Err(gone());
    }
    let (provider, traits, _) = providers::sets(&app.cloud, &ctx, id_of(&id)?).await?;
    ok(version, traits_view(&provider, &traits))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Traits {
    traits: BTreeSet<String>,
    resource_provider_generation: u64,
}

pub(super) async fn set_traits(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<Traits>,
) -> Answer {
    if version < Microversion::TRAITS {
        return Err(gone());
    }
    let seen = Some(body.resource_provider_generation);
    let traits = body.traits.clone();
    let provider = providers::set_traits(&app.cloud, &ctx, id_of(&id)?, seen, body.traits).await?;
    ok(version, traits_view(&provider, &traits))
}

pub(super) async fn remove_traits(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    if version < Microversion::TRAITS {
        return Err(gone());
    }
    providers::set_traits(&app.cloud, &ctx, id_of(&id)?, None, BTreeSet::new()).await?;
    empty(version, StatusCode::NO_CONTENT)
}
