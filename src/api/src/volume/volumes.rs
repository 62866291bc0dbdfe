//! Volumes.

use axum::extract::State;
use axum::http::StatusCode;
use cloud::Error;
use cloud::volume::attachments::Attachment;
use cloud::volume::list as lists;
use cloud::volume::snapshots::Metadata;
use cloud::volume::status::{AttachStatus, Task};
use cloud::volume::volumes::{self, Details, Of, Update};
use cloud::volume::{self, NewVolume, Origin, pool};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::listing::{self, Item, Key, Known, fits_pairs, fits_time};
use super::microversion::Microversion as V;
use super::{Answer, Call, accepted, empty, ok, since};
use crate::AppState;
use crate::body::{Json, Pairs};
use crate::compute::check::{Object, invalid, metadata_of, uuid_of};

/// `self` and `bookmark`.
pub(super) fn links(call: &Call, path: &str) -> Value {
    let bookmark = call.base.replacen("/volume/v3", "/volume", 1);
    json!([
        {"rel": "self", "href": format!("{}/{path}", call.base)},
        {"rel": "bookmark", "href": format!("{bookmark}/{path}")},
    ])
}

/// Name and description as Cinder takes them: texts of up to 255 characters or null, white space at their ends cut off.
pub(super) fn text_of(object: &Object<'_>, keys: &[&str]) -> Result<Option<Option<String>>, Error> {
    for key in keys {
        if let Some(text) = object.nullable(key, 255)? {
            return Ok(Some(text.map(|text| text.trim().to_owned())));
        }
    }
    Ok(None)
}

fn attachment(call: &Call, of: &Attachment) -> Value {
    let host = of.host.as_ref();
    json!({
        "id": of.volume,
        "attachment_id": of.id,
        "volume_id": of.volume,
        "server_id": of.server,
        "host_name": host.filter(|_| call.ctx.require("volumes", "show_host").is_ok()),
        "device": of.device,
        "attached_at": of.attached_at.map(|time| time.naive()),
    })
}

/// A volume as lists without details have it.
fn summary_view(call: &Call, details: &Details) -> Value {
    let volume = &details.volume;
    json!({"id": volume.id, "name": volume.name, "links": links(call, &format!("volumes/{}", volume.id))})
}

/// A volume. `made`: as the answer to its creation has it, without what only administrators and lists show.
fn view(call: &Call, details: &Details, made: bool) -> Value {
    let volume = &details.volume;
    let version = call.version;
    let mut metadata: Map<String, Value> = volume
        .metadata
        .iter()
        .map(|(key, value)| (key.clone(), value.as_str().into()))
        .collect();
    if let Some(read_only) = volume.read_only {
        let text = if read_only { "True" } else { "False" };
        metadata.insert("readonly".into(), text.into());
    }
    let attachments: Vec<Value> = details
        .attachments
        .iter()
        .filter(|a| matches!(a.status, AttachStatus::Attached | AttachStatus::Detaching))
        .map(|of| attachment(call, of))
        .collect();
    let of = |wanted: fn(Origin) -> Option<Uuid>| wanted(volume.origin);
    let mut body = json!({
        "id": volume.id,
        "name": volume.name,
        "description": volume.description,
        "status": volume.status.name(),
        "size": volume.size,
        "availability_zone": volume.availability_zone,
        "created_at": volume.created_at.naive(),
        "updated_at": volume.updated_at.map(|time| time.naive()),
        "volume_type": details.volume_type,
        "snapshot_id": of(|o| if let Origin::Snapshot(id) = o { Some(id) } else { None }),
        "source_volid": of(|o| if let Origin::Volume(id) = o { Some(id) } else { None }),
        "metadata": metadata,
        "links": links(call, &format!("volumes/{}", volume.id)),
        "user_id": volume.user_id,
        "bootable": if volume.bootable { "true" } else { "false" },
        "encrypted": details.encrypted,
        "replication_status": null,
        "consistencygroup_id": null,
        "multiattach": volume.multiattach,
        "attachments": attachments,
        "migration_status": null,
    });
    let mut set = |key: &str, value: Value| {
        if let Some(body) = body.as_object_mut() {
            body.insert(key.to_owned(), value);
        }
    };
    if version >= V::GROUPS {
        set("group_id", Value::Null);
    }
    if version >= V::SHARED_TARGETS {
        set("service_uuid", Value::Null);
        let shared = if version >= V::SHARED_TARGETS_UNKNOWN {
            Value::Null
        } else {
            false.into()
        };
        set("shared_targets", shared);
    }
    if version >= V::TYPE_ID {
        set("volume_type_id", volume.type_id.to_string().into());
    }
    if version >= V::CONSUMES_QUOTA {
        set("consumes_quota", true.into());
    }
    if call.ctx.is_admin() && version >= V::CLUSTER {
        set("cluster_name", Value::Null);
    }
    if call.ctx.is_admin() && version >= V::PROVIDER_ID {
        set("provider_id", Value::Null);
    }
    if made {
        return body;
    }
    set("os-vol-tenant-attr:tenant_id", volume.project_id.clone().into());
    if !volume.image_metadata.is_empty() {
        set("volume_image_metadata", json!(volume.image_metadata));
    }
    if call.ctx.is_admin() {
        let host = match volume.task {
            Some(Task::Create) => Value::Null,
            _ => pool::host_name(&volume.host).into(),
        };
        set("os-vol-host-attr:host", host);
        set("os-vol-mig-status-attr:migstat", Value::Null);
        set("os-vol-mig-status-attr:name_id", Value::Null);
    }
    body
}

impl Known for Details {
    const FILTERS: &'static [&'static str] = &[
        "id",
        "name",
        "display_name",
        "description",
        "status",
        "size",
        "metadata",
        "glance_metadata",
        "image_metadata",
        "bootable",
        "availability_zone",
        "migration_status",
        "volume_type",
        "volume_type_id",
        "group_id",
        "consistencygroup_id",
        "user_id",
        "host",
        "created_at",
        "updated_at",
        "consumes_quota",
        "snapshot_id",
        "source_volid",
        "multiattach",
        "attach_status",
    ];
    const KEYS: &'static [&'static str] = &[
        "id",
        "name",
        "display_name",
        "description",
        "status",
        "size",
        "bootable",
        "availability_zone",
        "host",
        "user_id",
        "project_id",
        "volume_type_id",
        "created_at",
        "updated_at",
        "launched_at",
    ];
}

impl Item for Details {
    fn id(&self) -> String {
        self.volume.id.to_string()
    }

    fn key(&self, name: &str) -> Option<Key> {
        let volume = &self.volume;
        Some(match name {
            "id" => volume.id.to_string().as_str().into(),
            "name" | "display_name" => volume.name.as_deref().into(),
            "description" => volume.description.as_deref().into(),
            "status" => volume.status.name().into(),
            "size" => Key::Number(volume.size.into()),
            "bootable" => Key::Number(volume.bootable.into()),
            "availability_zone" => volume.availability_zone.as_str().into(),
            "host" => volume.host.as_str().into(),
            "user_id" => volume.user_id.as_str().into(),
            "project_id" => volume.project_id.as_str().into(),
            "volume_type_id" => volume.type_id.to_string().as_str().into(),
            "created_at" => volume.created_at.into(),
            "updated_at" => volume.updated_at.into(),
            "launched_at" => volume.launched_at.into(),
            _ => return None,
        })
    }

    fn fits(&self, filter: &str, value: &str) -> Option<bool> {
        let volume = &self.volume;
        let flag = |is: bool| {
            value.eq_ignore_ascii_case(if is { "true" } else { "false" })
                || value == if is { "1" } else { "0" }
        };
        let id = |found: Option<Uuid>| found.is_some_and(|id| id.to_string() == value);
        Some(match filter {
            "metadata" => fits_pairs(&volume.metadata, value),
            "glance_metadata" | "image_metadata" => fits_pairs(&volume.image_metadata, value),
            "bootable" => flag(volume.bootable),
            "multiattach" => flag(volume.multiattach),
            "consumes_quota" => flag(true),
            "size" => value.parse() == Ok(volume.size),
            "volume_type" => {
                self.volume_type.as_deref() == Some(value) || volume.type_id.to_string() == value
            }
            "host" => pool::host_name(&volume.host) == value || volume.host == value,
            "created_at" => fits_time(Some(volume.created_at), value),
            "updated_at" => fits_time(volume.updated_at, value),
            "snapshot_id" => id(if let Origin::Snapshot(id) = volume.origin {
                Some(id)
            } else {
                None
            }),
            "source_volid" => id(if let Origin::Volume(id) = volume.origin {
                Some(id)
            } else {
                None
            }),
            "attach_status" => {
                value
                    == if self.attachments.is_empty() {
                        "detached"
                    } else {
                        "attached"
                    }
            }
            "migration_status" | "group_id" | "consistencygroup_id" => value.is_empty(),
            other => match self.key(other)? {
                Key::Text(text) => text == value,
                Key::Null => false,
                Key::Number(number) => number.to_string() == value,
            },
        })
    }
}

async fn list(app: &AppState, call: &Call, pairs: &Pairs, details: bool) -> Answer {
    let found = lists::volumes(&app.cloud, &call.ctx, &listing::whose(pairs)?).await?;
    let page = listing::page(call, pairs, found)?;
    let views = page
        .items
        .iter()
        .map(|item| {
            if details {
                view(call, item, false)
            } else {
                summary_view(call, item)
            }
        })
        .collect();
    let path = if details { "volumes/detail" } else { "volumes" };
    ok(listing::document(
        call, pairs, "volumes", path, views, page.next, page.count,
    )?)
}

pub(super) async fn index(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    list(&app, &call, &pairs, false).await
}

pub(super) async fn detail(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    list(&app, &call, &pairs, true).await
}

pub(super) async fn summary(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    since(call.version, V::SUMMARY)?;
    let found = lists::volumes(&app.cloud, &call.ctx, &listing::whose(&pairs)?).await?;
    let size: u64 = found.iter().map(|details| u64::from(details.volume.size)).sum();
    let mut summary = json!({"total_size": size, "total_count": found.len()});
    if call.version >= V::SUMMARY_METADATA {
        let mut metadata: std::collections::BTreeMap<&str, std::collections::BTreeSet<&str>> =
            Default::default();
        for (key, value) in found.iter().flat_map(|details| &details.volume.metadata) {
            metadata.entry(key).or_default().insert(value);
        }
        summary["metadata"] = json!(metadata);
    }
    ok(json!({"volume-summary": summary}))
}

/// Sizes come as numbers or as text.
pub(super) fn size_of(object: &Object<'_>, key: &str) -> Result<Option<u32>, Error> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let number = match value {
                Value::Number(number) => number.as_i64(),
                Value::String(text) => text.trim().parse().ok(),
                _ => None,
            };
            match number
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| *n > 0 && *n <= volume::MAX_SIZE)
            {
                Some(size) => Ok(Some(size)),
                None => Err(invalid(
                    &object.path(key),
                    value,
                    "It is not an integer from 1 to 2147483647.",
                )),
            }
        }
    }
}

fn source_of(object: &Object<'_>, version: V) -> Result<Origin, Error> {
    let mut origin = Origin::Empty;
    let sources: [(&[&str], fn(Uuid) -> Origin); 4] = [
        (&["snapshot_id"], Origin::Snapshot),
        (&["source_volid"], Origin::Volume),
        (&["imageRef", "image_id"], Origin::Image),
        (&["backup_id"], Origin::Backup),
    ];
    for (keys, make) in sources {
        for key in keys {
            let Some(value) = object.get(key).filter(|value| !value.is_null()) else {
                continue;
            };
            if *key == "backup_id" && version < V::FROM_BACKUP {
                return Err(Error::BadRequest(
                    "Invalid input for field/attribute volume. Additional properties are not allowed ('backup_id' was \
                     unexpected)"
                        .into(),
                ));
            }
            // An empty text is none, as command lines send it.
            if value.as_str() == Some("") {
                continue;
            }
            let id = match (*key, value.as_str()) {
                ("imageRef" | "image_id", Some(text)) => text
                    .rsplit('/')
                    .next()
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(|| {
                        Error::BadRequest(
                            "Invalid image identifier or unable to access requested image.".into(),
                        )
                    })?,
                _ => uuid_of(&object.path(key), value)?,
            };
            if origin != Origin::Empty {
                return Err(Error::BadRequest(
                    "Invalid input received: May specify only one of snapshot, imageRef, source volume or backup."
                        .into(),
                ));
            }
            origin = make(id);
        }
    }
    Ok(origin)
}

pub(super) async fn create(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    let top = Object::body(&body)?;
    top.allow(&["volume", "OS-SCH-HNT:scheduler_hints"])?;
    let object = Object::of("volume", top.required("volume")?)?;
    object.allow(&[
        "name",
        "display_name",
        "description",
        "display_description",
        "size",
        "volume_type",
        "metadata",
        "snapshot_id",
        "source_volid",
        "source_replica",
        "consistencygroup_id",
        "group_id",
        "multiattach",
        "availability_zone",
        "imageRef",
        "image_id",
        "backup_id",
        // What clients have sent for long, and Cinder ignores.
        "status",
        "user_id",
        "project_id",
        "attach_status",
        "shareable",
    ])?;
    for key in ["consistencygroup_id", "group_id", "source_replica"] {
        if object.get(key).is_some_and(|value| !value.is_null()) {
            let text = format!("Invalid input received: '{key}' is not offered by this cloud.");
            return Err(Error::BadRequest(text).into());
        }
    }
    let origin = source_of(&object, call.version)?;
    let size = size_of(&object, "size")?;
    if size.is_none() && matches!(origin, Origin::Empty | Origin::Image(_)) {
        return Err(Error::BadRequest(
            "Invalid input received: Volume size 'None' must be an integer and greater than 0".into(),
        )
        .into());
    }
    let metadata = match object.get("metadata") {
        None | Some(Value::Null) => Default::default(),
        Some(value) => metadata_of("volume.metadata", value)?,
    };
    let new = NewVolume {
        name: text_of(&object, &["name", "display_name"])?.flatten(),
        description: text_of(&object, &["description", "display_description"])?.flatten(),
        size,
        origin,
        volume_type: object
            .nullable("volume_type", 255)?
            .flatten()
            .filter(|name| !name.is_empty())
            .map(str::to_owned),
        availability_zone: object
            .nullable("availability_zone", 255)?
            .flatten()
            .filter(|zone| !zone.is_empty())
            .map(str::to_owned),
        metadata,
        multiattach: match object.get("multiattach") {
            None | Some(Value::Null) => false,
            Some(_) => object.boolean("multiattach")?.unwrap_or(false),
        },
    };
    let made = volume::create(&app.cloud, &call.ctx, new).await?;
    let details = volumes::show(&app.cloud, &call.ctx, &made.id.to_string()).await?;
    // As it was made, whatever has happened since.
    let details = Details {
        volume: made,
        ..details
    };
    accepted(json!({"volume": view(&call, &details, true)}))
}

pub(super) async fn show(State(app): State<AppState>, call: Call) -> Answer {
    let details = volumes::show(&app.cloud, &call.ctx, call.id()).await?;
    ok(json!({"volume": view(&call, &details, false)}))
}

pub(super) async fn update(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    let object = Object::only(&body, "volume")?;
    object.allow(&[
        "name",
        "display_name",
        "description",
        "display_description",
        "metadata",
    ])?;
    let metadata = match object.get("metadata") {
        None | Some(Value::Null) => None,
        Some(value) => Some(metadata_of("volume.metadata", value)?),
    };
    let update = Update {
        name: text_of(&object, &["name", "display_name"])?,
        description: text_of(&object, &["description", "display_description"])?,
        metadata,
    };
    let details = volumes::update(&app.cloud, &call.ctx, call.id(), update).await?;
    ok(json!({"volume": view(&call, &details, true)}))
}

pub(super) async fn delete(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    let cascade = pairs.flag("cascade")?.unwrap_or(false);
    let force = call.version >= V::FORCE_PARAMETER && pairs.flag("force")?.unwrap_or(false);
    volumes::delete(&app.cloud, &call.ctx, call.id(), cascade, force).await?;
    empty(StatusCode::ACCEPTED)
}

pub(super) async fn metadata(State(app): State<AppState>, call: Call) -> Answer {
    let details = volumes::show(&app.cloud, &call.ctx, call.id()).await?;
    ok(json!({"metadata": details.volume.metadata}))
}

pub(super) async fn metadata_item(State(app): State<AppState>, call: Call) -> Answer {
    let details = volumes::show(&app.cloud, &call.ctx, call.id()).await?;
    item(&details.volume.metadata, &call)
}

/// One pair of metadata.
pub(super) fn item(pairs: &cloud::volume::Pairs, call: &Call) -> Answer {
    let key = call.param("key");
    match pairs.get(key) {
        Some(value) => ok(json!({"meta": {key: value}})),
        None => Err(Error::Named {
            name: "VolumeMetadataNotFound",
            kind: cloud::error::Kind::NotFound,
            message: format!("{} has no metadata with key {key}.", call.id()),
        }
        .into()),
    }
}

/// The body `{"metadata": {…}}`.
pub(super) fn metadata_body(body: &Value) -> Result<cloud::volume::Pairs, Error> {
    let object = Object::body(body)?;
    object.allow(&["metadata"])?;
    metadata_of("metadata", object.required("metadata")?)
}

/// The body `{"meta": {key: …}}` for the key of the path.
pub(super) fn item_body(call: &Call, body: &Value) -> Result<cloud::volume::Pairs, Error> {
    let object = Object::body(body)?;
    object.allow(&["meta"])?;
    let pairs = metadata_of("meta", object.required("meta")?)?;
    if pairs.len() == 1 && pairs.contains_key(call.param("key")) {
        Ok(pairs)
    } else {
        Err(Error::BadRequest("Request body and URI mismatch".into()))
    }
}

async fn set(app: &AppState, call: &Call, metadata: Metadata) -> Result<cloud::volume::Pairs, Error> {
    volumes::set_metadata(&app.cloud, &call.ctx, call.id(), Of::Volume, metadata).await
}

pub(super) async fn merge_metadata(
    State(app): State<AppState>,
    call: Call,
    Json(body): Json<Value>,
) -> Answer {
    let pairs = set(&app, &call, Metadata::Merge(metadata_body(&body)?)).await?;
    ok(json!({"metadata": pairs}))
}

pub(super) async fn replace_metadata(
    State(app): State<AppState>,
    call: Call,
    Json(body): Json<Value>,
) -> Answer {
    let pairs = set(&app, &call, Metadata::Replace(metadata_body(&body)?)).await?;
    ok(json!({"metadata": pairs}))
}

pub(super) async fn set_metadata_item(
    State(app): State<AppState>,
    call: Call,
    Json(body): Json<Value>,
) -> Answer {
    let pairs = item_body(&call, &body)?;
    set(&app, &call, Metadata::Merge(pairs.clone())).await?;
    ok(json!({"meta": pairs}))
}

pub(super) async fn remove_metadata_item(State(app): State<AppState>, call: Call) -> Answer {
    set(&app, &call, Metadata::Remove(call.param("key").to_owned())).await?;
    empty(StatusCode::OK)
}

/// Nobody but the volume's owner process gets its key, so no id of one is told.
pub(super) async fn encryption(State(app): State<AppState>, call: Call) -> Answer {
    let details = volumes::show(&app.cloud, &call.ctx, call.id()).await?;
    if !details.encrypted {
        return ok(json!({"encryption_key_id": null}));
    }
    ok(json!({
        "encryption_key_id": null,
        "provider": "allod",
        "cipher": "aes-xts-plain64",
        "key_size": 512,
        "control_location": "back-end",
    }))
}

pub(super) async fn encryption_key(State(app): State<AppState>, call: Call) -> Answer {
    volumes::show(&app.cloud, &call.ctx, call.id()).await?;
    Err(super::gone())
}
