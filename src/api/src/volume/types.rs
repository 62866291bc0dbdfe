//! Volume types, default types and QoS specs.

use axum::extract::State;
use axum::http::StatusCode;
use cloud::Error;
use cloud::volume::qos::{self, Change, Qos};
use cloud::volume::types::{self, Update, VolumeType};
use serde_json::{Value, json};

use super::listing::{self, Item, Key, Known, fits_pairs};
use super::microversion::Microversion as V;
use super::volumes::links;
use super::{Answer, Call, empty, ok, since};
use crate::AppState;
use crate::body::{Json, Pairs};
use crate::compute::check::{Object, invalid, string_of};

/// Extra specs that everyone sees.
const OPEN_SPECS: [&str; 4] = [
    "multiattach",
    "RESKEY:availability_zones",
    "replication_enabled",
    "capabilities:multiattach",
];

fn view(call: &Call, kind: &VolumeType) -> Value {
    let admin = call.ctx.is_admin();
    let specs: cloud::volume::Pairs = kind
        .extra_specs
        .iter()
        .filter(|(key, _)| admin || OPEN_SPECS.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut body = json!({
        "id": kind.id,
        "name": kind.name,
        "is_public": kind.is_public,
        "description": kind.description,
        "extra_specs": specs,
        "os-volume-type-access:is_public": kind.is_public,
    });
    if admin {
        body["qos_specs_id"] = json!(kind.qos_id);
    }
    body
}

impl Known for VolumeType {
    const FILTERS: &'static [&'static str] = &["is_public", "name", "description", "extra_specs"];
    const KEYS: &'static [&'static str] = &[
        "id",
        "name",
        "description",
        "created_at",
        "updated_at",
        "is_public",
    ];
}

impl Item for VolumeType {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn key(&self, name: &str) -> Option<Key> {
        Some(match name {
            "id" => self.id.to_string().as_str().into(),
            "name" => self.name.as_str().into(),
            "description" => self.description.as_deref().into(),
            "created_at" => self.created_at.into(),
            "updated_at" => self.updated_at.into(),
            "is_public" => Key::Number(self.is_public.into()),
            _ => return None,
        })
    }

    fn fits(&self, filter: &str, value: &str) -> Option<bool> {
        Some(match filter {
            "extra_specs" => fits_pairs(&self.extra_specs, value),
            "name" => self.name == value,
            "description" => self.description.as_deref() == Some(value),
            // It was looked at before.
            _ => return None,
        })
    }
}

pub(super) async fn index(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    let public = match pairs.get("is_public") {
        // Others see what they may use, whatever they ask for.
        _ if !call.ctx.is_admin() => None,
        None => Some(true),
        Some(text) if text.eq_ignore_ascii_case("none") => None,
        Some(_) => pairs
            .flag("is_public")
            .map_err(|_| Error::BadRequest("Invalid is_public filter: it is no truth value.".into()))?,
    };
    let found = types::list(&app.cloud, &call.ctx, public).await?;
    let mut pairs = pairs;
    if call.version < V::TYPE_FILTERS {
        pairs.0.retain(|(key, _)| key != "extra_specs");
    }
    let page = listing::page(&call, &pairs, found)?;
    let views = page.items.iter().map(|kind| view(&call, kind)).collect();
    ok(listing::document(
        &call,
        &pairs,
        "volume_types",
        "types",
        views,
        page.next,
        page.count,
    )?)
}

pub(super) async fn show(State(app): State<AppState>, call: Call) -> Answer {
    let kind = types::show(&app.cloud, &call.ctx, call.id()).await?;
    ok(json!({"volume_type": view(&call, &kind)}))
}

/// A type's name: 1 to 255 characters, not only white space.
fn name_of(value: &Value) -> Result<String, Error> {
    let text = string_of("volume_type.name", value, 1, 255)?.trim();
    if text.is_empty() {
        return Err(invalid("volume_type.name", value, "Type name can not be empty."));
    }
    Ok(text.to_owned())
}

/// Extra specs: keys of letters, digits and `-_.: `, values of up to 255 characters.
fn specs_of(field: &str, value: &Value) -> Result<cloud::volume::Pairs, Error> {
    let pairs = value
        .as_object()
        .ok_or_else(|| invalid(field, value, &format!("{value} is not of type 'object'")))?;
    pairs
        .iter()
        .map(|(key, value)| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.: ".contains(c);
            if key.is_empty() || key.len() > 255 || !key.chars().all(allowed) {
                let key: String = key.chars().take(64).collect();
                return Err(Error::BadRequest(format!(
                    "Invalid input for field/attribute {field}. The key '{key}' does not match \
                     '^[a-zA-Z0-9-_:. ]{{1,255}}$'"
                )));
            }
            let text = match value {
                Value::Bool(flag) => if *flag { "True" } else { "False" }.to_owned(),
                Value::Number(number) => number.to_string(),
                other => string_of(&format!("{field}.{key}"), other, 0, 255)?.to_owned(),
            };
            Ok((key.clone(), text))
        })
        .collect()
}

pub(super) async fn create(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    // Who may not is told so before what is wrong with the body.
    call.ctx.require("volume_types", "create")?;
    let object = Object::only(&body, "volume_type")?;
    object.allow(&[
        "name",
        "description",
        "extra_specs",
        "os-volume-type-access:is_public",
    ])?;
    let name = name_of(object.required("name")?)?;
    let description = object.nullable("description", 255)?.flatten().map(str::to_owned);
    let specs = match object.get("extra_specs") {
        None | Some(Value::Null) => Default::default(),
        Some(value) => specs_of("volume_type.extra_specs", value)?,
    };
    let public = object.boolean("os-volume-type-access:is_public")?.unwrap_or(true);
    let kind = types::create(&app.cloud, &call.ctx, name, description, public, specs).await?;
    ok(json!({"volume_type": without_qos(view(&call, &kind))}))
}

fn without_qos(mut body: Value) -> Value {
    if let Some(body) = body.as_object_mut() {
        body.remove("qos_specs_id");
    }
    body
}

pub(super) async fn update(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    call.ctx.require("volume_types", "update")?;
    let object = Object::only(&body, "volume_type")?;
    object.allow(&["name", "description", "is_public"])?;
    let name = object
        .get("name")
        .filter(|value| !value.is_null())
        .map(name_of)
        .transpose()?;
    let description = object
        .nullable("description", 255)?
        .map(|text| text.map(str::to_owned));
    let is_public = object
        .get("is_public")
        .filter(|value| !value.is_null())
        .map(|_| object.boolean("is_public"))
        .transpose()?
        .flatten();
    if name.is_none() && description.is_none() && is_public.is_none() {
        return Err(Error::BadRequest(
            "Specify volume type name, description, is_public or a combination thereof.".into(),
        )
        .into());
    }
    let update = Update {
        name,
        description,
        is_public,
    };
    let kind = types::update(&app.cloud, &call.ctx, call.id(), update).await?;
    let mut body = without_qos(view(&call, &kind));
    if let Some(body) = body.as_object_mut() {
        body.remove("os-volume-type-access:is_public");
    }
    ok(json!({"volume_type": body}))
}

pub(super) async fn delete(State(app): State<AppState>, call: Call) -> Answer {
    types::delete(&app.cloud, &call.ctx, call.id()).await?;
    empty(StatusCode::ACCEPTED)
}

/// `addProjectAccess` and `removeProjectAccess`.
pub(super) async fn action(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    let object = Object::body(&body)?;
    for (name, allowed) in [("addProjectAccess", true), ("removeProjectAccess", false)] {
        let Some(value) = object.get(name) else {
            continue;
        };
        let inner = Object::of(name, value)?;
        inner.allow(&["project"])?;
        inner.required("project")?;
        let project = inner.string("project", 1, 255)?.unwrap_or_default();
        types::set_access(&app.cloud, &call.ctx, call.id(), project, allowed).await?;
        return empty(StatusCode::ACCEPTED);
    }
    Err(Error::BadRequest("There is no such action.".into()).into())
}

pub(super) async fn access(State(app): State<AppState>, call: Call) -> Answer {
    let found = types::access(&app.cloud, &call.ctx, call.id()).await?;
    let views: Vec<Value> = found
        .into_iter()
        .map(|(kind, project)| json!({"volume_type_id": kind, "project_id": project}))
        .collect();
    ok(json!({"volume_type_access": views}))
}

pub(super) async fn specs(State(app): State<AppState>, call: Call) -> Answer {
    call.ctx.require("volume_type_extra_specs", "list")?;
    let kind = types::show(&app.cloud, &call.ctx, call.id()).await?;
    ok(json!({"extra_specs": view(&call, &kind)["extra_specs"]}))
}

pub(super) async fn spec(State(app): State<AppState>, call: Call) -> Answer {
    call.ctx.require("volume_type_extra_specs", "list")?;
    let kind = types::show(&app.cloud, &call.ctx, call.id()).await?;
    let key = call.param("key");
    match view(&call, &kind)["extra_specs"].get(key) {
        Some(value) => ok(json!({key: value})),
        None => Err(Error::Named {
            name: "VolumeTypeExtraSpecsNotFound",
            kind: cloud::error::Kind::NotFound,
            message: format!("Volume Type {} has no extra specs with key {key}.", kind.id),
        }
        .into()),
    }
}

pub(super) async fn set_specs(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    call.ctx.require("volume_type_extra_specs", "update")?;
    let object = Object::body(&body)?;
    object.allow(&["extra_specs"])?;
    let specs = specs_of("extra_specs", object.required("extra_specs")?)?;
    types::set_specs(&app.cloud, &call.ctx, call.id(), specs.clone()).await?;
    ok(json!({"extra_specs": specs}))
}

pub(super) async fn set_spec(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    call.ctx.require("volume_type_extra_specs", "update")?;
    let specs = specs_of("body", &body)?;
    let key = call.param("key");
    if specs.len() != 1 {
        return Err(Error::BadRequest("Request body contains too many items".into()).into());
    }
    if !specs.contains_key(key) {
        return Err(Error::BadRequest("Request body and URI mismatch".into()).into());
    }
    types::set_specs(&app.cloud, &call.ctx, call.id(), specs.clone()).await?;
    ok(json!(specs))
}

pub(super) async fn unset_spec(State(app): State<AppState>, call: Call) -> Answer {
    types::unset_spec(&app.cloud, &call.ctx, call.id(), call.param("key")).await?;
    empty(StatusCode::ACCEPTED)
}

pub(super) async fn defaults(State(app): State<AppState>, call: Call) -> Answer {
    since(call.version, V::DEFAULT_TYPES)?;
    let found = types::defaults(&app.cloud, &call.ctx, None).await?;
    let views: Vec<Value> = found
        .into_iter()
        .map(|(project, kind)| json!({"project_id": project, "volume_type_id": kind}))
        .collect();
    ok(json!({"default_types": views}))
}

pub(super) async fn default(State(app): State<AppState>, call: Call) -> Answer {
    since(call.version, V::DEFAULT_TYPES)?;
    let found = types::defaults(&app.cloud, &call.ctx, Some(call.id())).await?;
    let kind = found.first().map(|(_, kind)| kind);
    ok(json!({"default_type": {"project_id": call.id(), "volume_type_id": kind}}))
}

pub(super) async fn set_default(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    since(call.version, V::DEFAULT_TYPES)?;
    let object = Object::only(&body, "default_type")?;
    object.allow(&["volume_type"])?;
    object.required("volume_type")?;
    let kind = object.string("volume_type", 1, 255)?;
    let kind = types::set_default(&app.cloud, &call.ctx, call.id(), kind).await?;
    ok(json!({"default_type": {"project_id": call.id(), "volume_type_id": kind}}))
}

pub(super) async fn unset_default(State(app): State<AppState>, call: Call) -> Answer {
    since(call.version, V::DEFAULT_TYPES)?;
    types::set_default(&app.cloud, &call.ctx, call.id(), None).await?;
    empty(StatusCode::NO_CONTENT)
}

fn qos_view(qos: &Qos) -> Value {
    json!({"id": qos.id, "name": qos.name, "consumer": qos.consumer, "specs": qos.specs})
}

fn qos_document(call: &Call, qos: &Qos) -> Value {
    let links = links(call, &format!("qos-specs/{}", qos.id));
    json!({"qos_specs": qos_view(qos), "links": links})
}

impl Known for Qos {
    const FILTERS: &'static [&'static str] = &["id", "name", "consumer"];
    const KEYS: &'static [&'static str] = &["id", "name", "consumer", "created_at"];
}

impl Item for Qos {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn key(&self, name: &str) -> Option<Key> {
        Some(match name {
            "id" => self.id.to_string().as_str().into(),
            "name" => self.name.as_str().into(),
            "consumer" => self.consumer.as_str().into(),
            // As they come.
            "created_at" => Key::Null,
            _ => return None,
        })
    }

    fn fits(&self, filter: &str, value: &str) -> Option<bool> {
        Some(self.key(filter)? == Key::Text(value.to_owned()))
    }
}

pub(super) async fn qos_index(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    let found = qos::list(&app.cloud, &call.ctx).await?;
    let page = listing::page(&call, &pairs, found)?;
    let views = page.items.iter().map(qos_view).collect();
    ok(listing::document(
        &call,
        &pairs,
        "qos_specs",
        "qos-specs",
        views,
        page.next,
        page.count,
    )?)
}

/// Figures and the consumer, as clients mix them.
fn qos_of(value: &Value) -> Result<(Option<String>, Option<String>, cloud::volume::Pairs), Error> {
    let mut pairs = specs_of("qos_specs", value)?;
    let name = pairs.remove("name");
    let consumer = pairs.remove("consumer");
    Ok((name, consumer, pairs))
}

pub(super) async fn qos_create(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    call.ctx.require("volume_qos_specs", "update")?;
    let object = Object::body(&body)?;
    object.allow(&["qos_specs"])?;
    let (name, consumer, specs) = qos_of(object.required("qos_specs")?)?;
    let name = name
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| {
        Error::BadRequest("Invalid input for field/attribute qos_specs. 'name' is a required property".into())
    })?;
    let made = qos::create(&app.cloud, &call.ctx, name, consumer, specs).await?;
    ok(qos_document(&call, &made))
}

pub(super) async fn qos_show(State(app): State<AppState>, call: Call) -> Answer {
    let found = qos::show(&app.cloud, &call.ctx, call.id()).await?;
    ok(qos_document(&call, &found))
}

pub(super) async fn qos_update(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    call.ctx.require("volume_qos_specs", "update")?;
    let object = Object::body(&body)?;
    object.allow(&["qos_specs"])?;
    let given = object.required("qos_specs")?;
    let (_, consumer, specs) = qos_of(given)?;
    qos::update(&app.cloud, &call.ctx, call.id(), consumer, specs).await?;
    ok(json!({"qos_specs": specs_of("qos_specs", given)?}))
}

pub(super) async fn qos_delete(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    let force = pairs.flag("force")?.unwrap_or(false);
    qos::delete(&app.cloud, &call.ctx, call.id(), force).await?;
    empty(StatusCode::ACCEPTED)
}

pub(super) async fn qos_delete_keys(
    State(app): State<AppState>,
    call: Call,
    Json(body): Json<Value>,
) -> Answer {
    let object = Object::body(&body)?;
    object.allow(&["keys"])?;
    let keys = object
        .array("keys")?
        .into_iter()
        .flatten()
        .map(|key| string_of("keys", key, 1, 255).map(str::to_owned))
        .collect::<Result<Vec<_>, Error>>()?;
    qos::delete_keys(&app.cloud, &call.ctx, call.id(), keys).await?;
    empty(StatusCode::ACCEPTED)
}

pub(super) async fn qos_associations(State(app): State<AppState>, call: Call) -> Answer {
    let found = qos::associations(&app.cloud, &call.ctx, call.id()).await?;
    let views: Vec<Value> = found
        .iter()
        .map(|kind| json!({"association_type": "volume_type", "name": kind.name, "id": kind.id}))
        .collect();
    ok(json!({"qos_associations": views}))
}

fn type_of(pairs: &Pairs) -> Result<String, Error> {
    pairs
        .get("vol_type_id")
        .filter(|id| !id.is_empty())
        .map(str::to_owned)
        .ok_or_else(|| Error::BadRequest("Volume Type id must not be None.".into()))
}

pub(super) async fn qos_associate(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    let change = Change::Associate(type_of(&pairs)?);
    qos::change(&app.cloud, &call.ctx, call.id(), change).await?;
    empty(StatusCode::ACCEPTED)
}

pub(super) async fn qos_disassociate(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    let change = Change::Disassociate(type_of(&pairs)?);
    qos::change(&app.cloud, &call.ctx, call.id(), change).await?;
    empty(StatusCode::ACCEPTED)
}

pub(super) async fn qos_disassociate_all(State(app): State<AppState>, call: Call) -> Answer {
    qos::change(&app.cloud, &call.ctx, call.id(), Change::DisassociateAll).await?;
    empty(StatusCode::ACCEPTED)
}
