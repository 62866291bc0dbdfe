//! `/v2/metadefs`: what properties mean.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cloud::Error;
use cloud::image::metadefs::{self, Association, Item, Kind, Namespace, Whole};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Answer, no_content, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};
use crate::page::{Page, next_link};

/// A page's length if the client names none, and at most, as in Glance.
const PAGE: (usize, usize) = (25, 1000);
/// Where namespaces are.
const AT: &str = "/v2/metadefs/namespaces";

type Document = Json<Map<String, Value>>;

fn namespace(one: &Namespace) -> Value {
    json!({
        "namespace": one.namespace,
        "display_name": one.display_name,
        "description": one.description,
        "visibility": if one.public { "public" } else { "private" },
        "protected": one.protected,
        "owner": one.owner,
        "created_at": shape::time(one.created_at),
        "updated_at": shape::time(one.updated_at),
        "self": format!("{AT}/{}", one.namespace),
        "schema": "/v2/schemas/metadefs/namespace",
    })
}

fn association(one: &Association) -> Value {
    let mut value = json!({
        "name": one.name,
        "created_at": shape::time(one.created_at),
        "updated_at": shape::time(one.updated_at),
    });
    for (key, text) in [
        ("prefix", &one.prefix),
        ("properties_target", &one.properties_target),
    ] {
        if let Some(text) = text {
            value[key] = text.clone().into();
        }
    }
    value
}

/// A property's name, where a kind of resource was asked for, begins with what it has there.
fn property(one: &Item, prefix: &str) -> (String, Value) {
    let name = format!("{prefix}{}", one.name);
    let mut document = one.document.clone();
    document.insert("name".into(), name.clone().into());
    (name, document.into())
}

fn item(at: &str, kind: Kind, one: &Item) -> Value {
    if kind == Kind::Property {
        return property(one, "").1;
    }
    let mut document = one.document.clone();
    document.insert("name".into(), one.name.clone().into());
    document.insert("created_at".into(), shape::time(one.created_at).into());
    document.insert("updated_at".into(), shape::time(one.updated_at).into());
    if kind == Kind::Object {
        for (key, default) in [
            ("description", json!(null)),
            ("required", json!([])),
            ("properties", json!({})),
        ] {
            document.entry(key).or_insert(default);
        }
        document.insert("self".into(), format!("{AT}/{at}/objects/{}", one.name).into());
        document.insert("schema".into(), "/v2/schemas/metadefs/object".into());
    }
    document.into()
}

fn whole(all: &Whole, prefix: &str) -> Value {
    let at = &all.namespace.namespace;
    let mut value = namespace(&all.namespace);
    let list = |kind: Kind, items: &[Item]| items.iter().map(|one| item(at, kind, one)).collect::<Vec<_>>();
    value["resource_type_associations"] = all.resource_types.iter().map(association).collect();
    value["properties"] = Value::Object(all.properties.iter().map(|one| property(one, prefix)).collect());
    value["objects"] = list(Kind::Object, &all.objects).into();
    value["tags"] = list(Kind::Tag, &all.tags).into();
    value
}

fn created(state: &AppState, at: &str, body: Value) -> Response {
    let mut response = (StatusCode::CREATED, Json(body)).into_response();
    let at = format!("{}/image{at}", state.cloud.config.public_url);
    if let Ok(at) = HeaderValue::from_str(&at) {
        response.headers_mut().insert(header::LOCATION, at);
    }
    response
}

pub(super) async fn list(State(state): State<AppState>, Auth(ctx): Auth, pairs: Pairs) -> Answer {
    let mut all = metadefs::list(&state.cloud, &ctx).await?;
    let types: Option<Vec<&str>> = pairs
        .get("resource_types")
        .map(|types| types.split(',').collect());
    all.retain(|(one, associations)| {
        let visibility = if one.public { "public" } else { "private" };
        pairs.get("visibility").is_none_or(|wanted| wanted == visibility)
            && types
                .as_ref()
                .is_none_or(|types| associations.iter().any(|one| types.contains(&one.name.as_str())))
    });
    match pairs.get("sort_key").unwrap_or("created_at") {
        "created_at" => all.sort_by_key(|(one, _)| one.created_at),
        "updated_at" => all.sort_by_key(|(one, _)| one.updated_at),
        "namespace" => {}
        _ => {
            return Err(Error::BadRequest(
                "Namespaces are sorted by created_at, updated_at or namespace.".into(),
            )
            .into());
        }
    }
    if pairs.get("sort_dir").unwrap_or("desc") == "desc" {
        all.reverse();
    }
    let mut page = Page::of(&pairs, PAGE.1)?;
    if pairs.get("limit").is_none() {
        page.limit = Some(PAGE.0);
    }
    let (all, next) = page.cut(all, |(one, _)| one.namespace.clone())?;
    let shown = all.iter().map(|(one, associations)| {
        let mut value = namespace(one);
        value["resource_type_associations"] = associations.iter().map(association).collect();
        value
    });
    let mut body = json!({
        "namespaces": shown.collect::<Vec<_>>(),
        "first": AT,
        "schema": "/v2/schemas/metadefs/namespaces",
    });
    if let Some(marker) = next {
        body["next"] = next_link(AT, &pairs, &marker).into();
    }
    Ok(Json(body).into_response())
}

pub(super) async fn create(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Json(document): Document,
) -> Answer {
    let made = metadefs::create(&state.cloud, &ctx, document).await?;
    let at = format!("{AT}/{}", made.namespace.namespace);
    Ok(created(&state, &at, whole(&made, "")))
}

pub(super) async fn show(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(at): Path<String>,
    pairs: Pairs,
) -> Answer {
    let found = metadefs::show(&state.cloud, &ctx, &at).await?;
    let prefix = match pairs.get("resource_type") {
        None => None,
        Some(kind) => {
            let association = found.resource_types.iter().find(|one| one.name == kind);
            let missing = || Error::not_found("Metadata definition resource-type association", kind);
            association.ok_or_else(missing)?.prefix.clone()
        }
    };
    Ok(Json(whole(&found, prefix.as_deref().unwrap_or(""))).into_response())
}

pub(super) async fn update(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(at): Path<String>,
    Json(document): Document,
) -> Answer {
    let changed = metadefs::update(&state.cloud, &ctx, &at, document).await?;
    Ok(Json(namespace(&changed.namespace)).into_response())
}

pub(super) async fn delete(State(state): State<AppState>, Auth(ctx): Auth, Path(at): Path<String>) -> Answer {
    metadefs::delete(&state.cloud, &ctx, &at).await?;
    Ok(no_content())
}

pub(super) async fn resource_types(State(state): State<AppState>, Auth(ctx): Auth) -> Answer {
    let all = metadefs::resource_types(&state.cloud, &ctx).await?;
    let all = all.into_iter().map(|(name, created)| {
        let time = shape::time(created);
        json!({"name": name, "created_at": time, "updated_at": time})
    });
    Ok(Json(json!({"resource_types": all.collect::<Vec<_>>()})).into_response())
}

pub(super) async fn associations(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(at): Path<String>,
) -> Answer {
    let all = metadefs::list_associations(&state.cloud, &ctx, &at).await?;
    let all: Vec<Value> = all.iter().map(association).collect();
    Ok(Json(json!({"resource_type_associations": all})).into_response())
}

pub(super) async fn associate(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(at): Path<String>,
    Json(document): Document,
) -> Answer {
    let made = metadefs::add_association(&state.cloud, &ctx, &at, document).await?;
    Ok(created(
        &state,
        &format!("{AT}/{at}/resource_types"),
        association(&made),
    ))
}

pub(super) async fn dissociate(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((at, kind)): Path<(String, String)>,
) -> Answer {
    metadefs::remove_association(&state.cloud, &ctx, &at, &kind).await?;
    Ok(no_content())
}

/// The kind that a path names.
fn parse_kind(plural: &str) -> Result<Kind, Error> {
    match plural {
        "objects" => Ok(Kind::Object),
        "properties" => Ok(Kind::Property),
        "tags" => Ok(Kind::Tag),
        _ => Err(Error::not_found("Resource", plural)),
    }
}

fn items(at: &str, kind: Kind, all: &[Item]) -> Value {
    let list = || all.iter().map(|one| item(at, kind, one)).collect::<Vec<_>>();
    match kind {
        Kind::Property => {
            let all: Map<String, Value> = all.iter().map(|one| property(one, "")).collect();
            json!({"properties": all, "schema": "/v2/schemas/metadefs/properties"})
        }
        Kind::Object => json!({
            "objects": list(),
            "first": format!("{AT}/{at}/objects"),
            "schema": "/v2/schemas/metadefs/objects",
        }),
        Kind::Tag => json!({
            "tags": list(),
            "first": format!("{AT}/{at}/tags"),
            "schema": "/v2/schemas/metadefs/tags",
        }),
    }
}

pub(super) async fn list_items(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((at, plural)): Path<(String, String)>,
    pairs: Pairs,
) -> Answer {
    let kind = parse_kind(&plural)?;
    let all = metadefs::list_items(&state.cloud, &ctx, &at, kind).await?;
    // Properties are a map, and come whole.
    let page = match kind {
        Kind::Property => Page::default(),
        _ => Page::of(&pairs, PAGE.1)?,
    };
    let (all, next) = page.cut(all, |one| one.name.clone())?;
    let mut body = items(&at, kind, &all);
    if let Some(marker) = next {
        body["next"] = next_link(&format!("{AT}/{at}/{plural}"), &pairs, &marker).into();
    }
    Ok(Json(body).into_response())
}

pub(super) async fn add_item(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((at, plural)): Path<(String, String)>,
    headers: HeaderMap,
    Json(document): Document,
) -> Answer {
    let kind = parse_kind(&plural)?;
    if kind == Kind::Tag {
        let append = headers
            .get("x-openstack-append")
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let tags: Tags = serde_json::from_value(document.into())
            .map_err(|error| Error::BadRequest(format!("Invalid input: {error}")))?;
        let names = tags.tags.into_iter().map(|tag| tag.name).collect();
        let all = metadefs::set_tags(&state.cloud, &ctx, &at, names, append).await?;
        return Ok(created(
            &state,
            &format!("{AT}/{at}/tags"),
            items(&at, kind, &all),
        ));
    }
    let made = metadefs::add_item(&state.cloud, &ctx, &at, kind, document).await?;
    let place = format!("{AT}/{at}/{plural}/{}", made.name);
    Ok(created(&state, &place, item(&at, kind, &made)))
}

#[derive(Deserialize)]
struct Tags {
    tags: Vec<Tag>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tag {
    name: String,
}

pub(super) async fn remove_items(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((at, plural)): Path<(String, String)>,
) -> Answer {
    metadefs::remove_items(&state.cloud, &ctx, &at, parse_kind(&plural)?).await?;
    Ok(no_content())
}

pub(super) async fn show_item(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((at, plural, name)): Path<(String, String, String)>,
) -> Answer {
    let kind = parse_kind(&plural)?;
    let found = metadefs::show_item(&state.cloud, &ctx, &at, kind, &name).await?;
    Ok(Json(item(&at, kind, &found)).into_response())
}

/// A tag is made by its name alone, without a body.
pub(super) async fn add_tag(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((at, plural, name)): Path<(String, String, String)>,
) -> Answer {
    let kind = parse_kind(&plural)?;
    if kind != Kind::Tag {
        return Err(Error::not_found("Resource", format!("{plural}/{name}")).into());
    }
    let mut document = Map::new();
    document.insert("name".into(), name.into());
    let made = metadefs::add_item(&state.cloud, &ctx, &at, kind, document).await?;
    Ok(created(
        &state,
        &format!("{AT}/{at}/tags/{}", made.name),
        item(&at, kind, &made),
    ))
}

pub(super) async fn update_item(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((at, plural, name)): Path<(String, String, String)>,
    Json(document): Document,
) -> Answer {
    let kind = parse_kind(&plural)?;
    let changed = metadefs::update_item(&state.cloud, &ctx, &at, kind, &name, document).await?;
    Ok(Json(item(&at, kind, &changed)).into_response())
}

pub(super) async fn remove_item(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((at, plural, name)): Path<(String, String, String)>,
) -> Answer {
    metadefs::remove_item(&state.cloud, &ctx, &at, parse_kind(&plural)?, &name).await?;
    Ok(no_content())
}

/// What documents look like.
pub(super) async fn schema(Path(name): Path<String>) -> Answer {
    let time = || json!({"type": "string", "readOnly": true, "format": "date-time"});
    let text = |length: u32| json!({"type": "string", "maxLength": length});
    let property = json!({
        "name": "property",
        "required": ["type", "title"],
        "additionalProperties": false,
        "properties": {
            "name": text(80), "title": {"type": "string"}, "description": {"type": "string"},
            "type": {"type": "string", "enum": ["array", "boolean", "integer", "number", "object", "string", null]},
            "operators": {"type": "array", "items": {"type": "string"}}, "enum": {"type": "array"},
            "items": {"type": "object"}, "default": {}, "minimum": {"type": "number"}, "maximum": {"type": "number"},
            "minLength": {"type": "integer"}, "maxLength": {"type": "integer"}, "pattern": {"type": "string"},
            "minItems": {"type": "integer"}, "maxItems": {"type": "integer"}, "uniqueItems": {"type": "boolean"},
            "additionalItems": {"type": "boolean"}, "readonly": {"type": "boolean"}, "required": {"type": "array"},
        },
    });
    let tag = json!({
        "name": "tag",
        "required": ["name"],
        "properties": {"name": text(80), "created_at": time(), "updated_at": time()},
    });
    let object = json!({
        "name": "object",
        "required": ["name"],
        "properties": {
            "name": text(80), "description": {"type": ["null", "string"]},
            "required": {"type": "array", "items": {"type": "string"}},
            "properties": {"type": "object", "additionalProperties": property["properties"]},
            "created_at": time(), "updated_at": time(), "self": {"type": "string"}, "schema": {"type": "string"},
        },
    });
    let association = json!({
        "name": "resource_type_association",
        "required": ["name"],
        "properties": {
            "name": text(80), "prefix": text(80), "properties_target": text(80), "created_at": time(), "updated_at": time(),
        },
    });
    let namespace = json!({
        "name": "namespace",
        "required": ["namespace"],
        "properties": {
            "namespace": text(80), "display_name": text(80), "description": {"type": ["null", "string"]},
            "visibility": {"type": "string", "enum": ["public", "private"]}, "protected": {"type": "boolean"},
            "owner": text(255), "resource_type_associations": {"type": "array", "items": association},
            "properties": {"type": "object"}, "objects": {"type": "array", "items": object},
            "tags": {"type": "array", "items": tag}, "created_at": time(), "updated_at": time(),
            "self": {"type": "string"}, "schema": {"type": "string"},
        },
    });
    let many = |name: &str, items: Value| {
        json!({
            "name": name,
            "properties": {
                name: items, "first": {"type": "string"}, "next": {"type": "string"}, "schema": {"type": "string"},
            },
        })
    };
    let list = |one: &Value| json!({"type": "array", "items": one});
    let schema = match name.as_str() {
        "namespace" => namespace,
        "namespaces" => many("namespaces", list(&namespace)),
        "resource_type" => association,
        "resource_types" => many("resource_type_associations", list(&association)),
        "object" => object,
        "objects" => many("objects", list(&object)),
        "property" => property,
        "properties" => many(
            "properties",
            json!({"type": "object", "additionalProperties": property}),
        ),
        "tag" => tag,
        "tags" => many("tags", list(&tag)),
        _ => return Err(Error::not_found("Schema", &name).into()),
    };
    Ok(Json(schema).into_response())
}
