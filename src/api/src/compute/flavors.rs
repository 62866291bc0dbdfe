//! `/flavors`.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use cloud::compute::flavors::{self, Filter, Flavor, Sort, SpecChange};
use cloud::{Context, Error};
use serde_json::{Value, json};

use super::check::{Object, invalid, string_of};
use super::microversion::Microversion;
use super::views::{Links, flavor_view};
use super::{Answer, empty, known_queries, limit, marker, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

/// The largest figure that Nova's database holds.
const MAX_INT: i64 = 0x7FFF_FFFF;

fn filter(pairs: &Pairs, ctx: &Context) -> Result<Filter, Error> {
    let number = |key: &str| pairs.number(key).map(Option::unwrap_or_default);
    let is_public = match pairs.get("is_public").map(str::to_ascii_lowercase).as_deref() {
        Some("none") => None,
        Some(_) => pairs.flag("is_public")?,
        // Those who do not ask see the public ones; those who are not admins, their private ones as well.
        None => ctx.is_admin().then_some(true),
    };
    let sort = match pairs.get("sort_key").unwrap_or("flavorid") {
        "flavorid" | "id" | "created_at" | "updated_at" => Sort::Id,
        "name" => Sort::Name,
        "memory_mb" => Sort::Ram,
        "root_gb" => Sort::Disk,
        "vcpus" => Sort::Vcpus,
        "disabled" | "ephemeral_gb" | "is_public" | "rxtx_factor" | "swap" | "vcpu_weight" => Sort::Id,
        other => {
            return Err(Error::BadRequest(format!(
                "Invalid input for query parameters sort_key. Value: {other}."
            )));
        }
    };
    let descending = match pairs.get("sort_dir").unwrap_or("asc") {
        "asc" => false,
        "desc" => true,
        _ => {
            return Err(Error::BadRequest(
                "Invalid sort_dir: 'asc' and 'desc' are known.".into(),
            ));
        }
    };
    Ok(Filter {
        is_public,
        min_disk: number("minDisk")?,
        min_ram: number("minRam")?,
        sort,
        descending,
        marker: marker(pairs),
        limit: limit(pairs)?,
    })
}

const QUERIES: &[&str] = &[
    "limit",
    "marker",
    "is_public",
    "minRam",
    "minDisk",
    "sort_key",
    "sort_dir",
];

async fn list(app: &AppState, ctx: &Context, version: Microversion, pairs: &Pairs, detail: bool) -> Answer {
    known_queries(version, pairs, QUERIES)?;
    let filter = filter(pairs, ctx)?;
    let limit = filter.limit;
    let found = flavors::list(&app.cloud, ctx, filter).await?;
    let links = Links::new(app);
    let views: Vec<Value> = found
        .iter()
        .map(|f| flavor_view(&links, version, f, detail))
        .collect();
    let mut body = json!({"flavors": views});
    let collection = if detail { "flavors/detail" } else { "flavors" };
    let last = found.last().map(|f| f.id.as_str());
    links.next(
        &mut body,
        "flavors_links",
        collection,
        pairs,
        last.filter(|_| found.len() == limit),
    );
    ok(body)
}

pub(super) async fn index(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    list(&app, &ctx, version, &pairs, false).await
}

pub(super) async fn detail(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    list(&app, &ctx, version, &pairs, true).await
}

pub(super) async fn show(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    let flavor = flavors::show(&app.cloud, &ctx, &id).await?;
    ok(json!({"flavor": flavor_view(&Links::new(&app), version, &flavor, true)}))
}

fn parse(body: &Value, version: Microversion) -> Result<Flavor, Error> {
    let flavor = Object::only(body, "flavor")?;
    let mut known = vec![
        "name",
        "ram",
        "vcpus",
        "disk",
        "id",
        "flavorid",
        "swap",
        "rxtx_factor",
        "OS-FLV-EXT-DATA:ephemeral",
        "os-flavor-access:is_public",
    ];
    if version >= Microversion::FLAVOR_DESCRIPTION {
        known.push("description");
    }
    flavor.allow(&known)?;
    for key in ["name", "ram", "vcpus", "disk"] {
        flavor.required(key)?;
    }
    let number = |key: &str, min: i64| -> Result<u64, Error> {
        Ok(flavor
            .integer(key, min, MAX_INT)?
            .unwrap_or_default()
            .unsigned_abs())
    };
    let id = match flavor.get("id").or(flavor.get("flavorid")) {
        None | Some(Value::Null) => None,
        Some(Value::Number(number)) => Some(number.to_string()),
        Some(value) => {
            let id = string_of("flavor.id", value, 1, 255)?;
            let allowed = |c: char| c.is_ascii_alphanumeric() || " ._-".contains(c);
            if !id.chars().all(allowed) || id.trim() != id {
                return Err(invalid(
                    "flavor.id",
                    value,
                    "It does not match '^[a-zA-Z0-9. _-]+$'",
                ));
            }
            // The CLI's word for "choose one".
            (id != "auto").then(|| id.to_owned())
        }
    };
    let rxtx_factor = match flavor.get("rxtx_factor") {
        None => 1.0,
        Some(value) => {
            let factor = value
                .as_f64()
                .or_else(|| value.as_str().and_then(|t| t.parse().ok()));
            factor
                .filter(|f: &f64| f.is_finite() && *f > 0.0)
                .ok_or_else(|| invalid("flavor.rxtx_factor", value, "It is not a number above 0"))?
        }
    };
    let description = if version >= Microversion::FLAVOR_DESCRIPTION {
        flavor
            .nullable("description", 65_535)?
            .flatten()
            .map(str::to_owned)
    } else {
        None
    };
    Ok(Flavor {
        id: id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
        name: flavor.name("name")?.unwrap_or_default(),
        vcpus: u32::try_from(number("vcpus", 1)?).unwrap_or(u32::MAX),
        ram: number("ram", 1)?,
        disk: number("disk", 0)?,
        ephemeral: number("OS-FLV-EXT-DATA:ephemeral", 0)?,
        swap: number("swap", 0)?,
        rxtx_factor,
        is_public: flavor.boolean("os-flavor-access:is_public")?.unwrap_or(true),
        description,
        extra_specs: BTreeMap::new(),
    })
}

pub(super) async fn create(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Json(body): Json<Value>,
) -> Answer {
    ctx.require("flavors", "create")?;
    let flavor = flavors::create(&app.cloud, &ctx, parse(&body, version)?).await?;
    ok(json!({"flavor": flavor_view(&Links::new(&app), version, &flavor, true)}))
}

pub(super) async fn update(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    if version < Microversion::FLAVOR_DESCRIPTION {
        return Err(super::gone());
    }
    ctx.require("flavors", "update")?;
    let flavor = Object::only(&body, "flavor")?;
    flavor.allow(&["description"])?;
    flavor.required("description")?;
    let description = flavor
        .nullable("description", 65_535)?
        .flatten()
        .map(str::to_owned);
    let flavor = flavors::update(&app.cloud, &ctx, &id, description).await?;
    ok(json!({"flavor": flavor_view(&Links::new(&app), version, &flavor, true)}))
}

pub(super) async fn delete(State(app): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    flavors::delete(&app.cloud, &ctx, &id).await?;
    empty(StatusCode::ACCEPTED)
}

fn access_view(id: &str, projects: &[String]) -> Value {
    let list: Vec<Value> = projects
        .iter()
        .map(|p| json!({"flavor_id": id, "tenant_id": p}))
        .collect();
    json!({"flavor_access": list})
}

pub(super) async fn access(State(app): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    let projects = flavors::access(&app.cloud, &ctx, &id).await?;
    ok(access_view(&id, &projects))
}

/// `addTenantAccess` and `removeTenantAccess`.
pub(super) async fn action(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    ctx.require("flavor_access", "update")?;
    let request = Object::body(&body)?;
    request.allow(&["addTenantAccess", "removeTenantAccess"])?;
    let (key, grant) = match (request.get("addTenantAccess"), request.get("removeTenantAccess")) {
        (Some(_), None) => ("addTenantAccess", true),
        (None, Some(_)) => ("removeTenantAccess", false),
        _ => {
            return Err(Error::BadRequest(
                "One action is needed: addTenantAccess or removeTenantAccess.".into(),
            )
            .into());
        }
    };
    let action = Object::of(key, request.required(key)?)?;
    action.allow(&["tenant"])?;
    action.required("tenant")?;
    let project = action.string("tenant", 1, 255)?.unwrap_or_default();
    let strict = version >= Microversion::FLAVOR_ACCESS_CHECK;
    let projects = flavors::change_access(&app.cloud, &ctx, &id, project, grant, strict).await?;
    ok(access_view(&id, &projects))
}

fn parse_specs(field: &str, value: &Value) -> Result<BTreeMap<String, String>, Error> {
    let Some(specs) = value.as_object() else {
        return Err(invalid(field, value, "It is not of type 'object'"));
    };
    specs
        .iter()
        .map(|(key, value)| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_:. ".contains(c);
            if key.is_empty() || key.len() > 255 || !key.chars().all(allowed) {
                return Err(Error::BadRequest(format!(
                    "Invalid input for field/attribute {field}. The key '{}' does not match \
                     '^[a-zA-Z0-9-_:. ]{{1,255}}$'",
                    key.chars().take(300).collect::<String>()
                )));
            }
            let value = match value {
                Value::Number(number) => number.to_string(),
                other => string_of(&format!("{field}.{key}"), other, 0, 255)?.to_owned(),
            };
            Ok((key.clone(), value))
        })
        .collect()
}

pub(super) async fn specs(State(app): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    ctx.require("flavor_extra_specs", "list")?;
    let flavor = flavors::show(&app.cloud, &ctx, &id).await?;
    ok(json!({"extra_specs": flavor.extra_specs}))
}

pub(super) async fn spec(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    Path((id, key)): Path<(String, String)>,
) -> Answer {
    ctx.require("flavor_extra_specs", "list")?;
    let flavor = flavors::show(&app.cloud, &ctx, &id).await?;
    match flavor.extra_specs.get(&key) {
        Some(value) => ok(json!({key: value})),
        None => Err(flavors::no_such_spec(&id, &key).into()),
    }
}

pub(super) async fn set_specs(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    let request = Object::body(&body)?;
    request.allow(&["extra_specs"])?;
    let specs = parse_specs("extra_specs", request.required("extra_specs")?)?;
    flavors::change_specs(&app.cloud, &ctx, &id, SpecChange::Set(specs.clone())).await?;
    ok(json!({"extra_specs": specs}))
}

pub(super) async fn set_spec(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    Path((id, key)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Answer {
    let specs = parse_specs("extra_specs", &body)?;
    if specs.len() != 1 || !specs.contains_key(&key) {
        return Err(Error::BadRequest("Request body and URI mismatch".into()).into());
    }
    flavors::change_specs(&app.cloud, &ctx, &id, SpecChange::Set(specs.clone())).await?;
    ok(json!(specs))
}

pub(super) async fn unset_spec(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    Path((id, key)): Path<(String, String)>,
) -> Answer {
    flavors::change_specs(&app.cloud, &ctx, &id, SpecChange::Unset(key)).await?;
    empty(StatusCode::OK)
}
