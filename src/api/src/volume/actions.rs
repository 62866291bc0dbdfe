//! What is done to volumes, snapshots and backups by `POST …/action`.

use axum::extract::State;
use axum::http::StatusCode;
use cloud::Error;
use cloud::image::Visibility;
use cloud::volume::actions::{self, Hand, Reset, Upload};
use cloud::volume::backups;
use cloud::volume::snapshots::{self, Metadata};
use cloud::volume::status::Status;
use cloud::volume::volumes::{self, Of};
use serde_json::{Value, json};

use super::microversion::Microversion as V;
use super::{Answer, Call, accepted, empty, gone, ok};
use crate::AppState;
use crate::body::Json;
use crate::compute::check::{Object, invalid, metadata_of, uuid_of};

/// The body's only key, and its value.
fn one(body: &Value) -> Result<(&str, &Value), Error> {
    Object::body(body)?;
    let mut keys = body.as_object().into_iter().flatten();
    match (keys.next(), keys.next()) {
        (Some((key, value)), None) => Ok((key, value)),
        _ => Err(Error::BadRequest(
            "Malformed request body: one action is needed.".into(),
        )),
    }
}

fn no_such(action: &str) -> Error {
    let action: String = action.chars().take(64).collect();
    Error::BadRequest(format!("There is no such action: {action}"))
}

fn status_of<'a>(object: &Object<'a>) -> Result<&'a str, Error> {
    object.required("status")?;
    Ok(object.string("status", 0, 255)?.unwrap_or_default())
}

/// `POST /volumes/{id}/action`.
pub(super) async fn volume(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    let (name, value) = one(&body)?;
    let object = || Object::of(name, value);
    let (cloud, ctx, id) = (&app.cloud, &call.ctx, call.id());
    match name {
        "os-extend" => {
            let object = object()?;
            object.allow(&["new_size"])?;
            object.required("new_size")?;
            let size = super::volumes::size_of(&object, "new_size")?.ok_or_else(|| {
                Error::BadRequest("New volume size must be specified as an integer.".into())
            })?;
            let online = call.version >= V::EXTEND_IN_USE;
            actions::extend(cloud, ctx, id, size, online).await?;
        }
        "os-set_bootable" => {
            let object = object()?;
            object.allow(&["bootable"])?;
            object.required("bootable")?;
            let bootable = object.boolean("bootable")?.unwrap_or(false);
            actions::set_bootable(cloud, ctx, id, bootable).await?;
            return empty(StatusCode::OK);
        }
        "os-update_readonly_flag" => {
            let object = object()?;
            object.allow(&["readonly"])?;
            object.required("readonly")?;
            let read_only = object.boolean("readonly")?.unwrap_or(false);
            actions::set_read_only(cloud, ctx, id, read_only).await?;
        }
        "os-retype" => {
            let object = object()?;
            object.allow(&["new_type", "migration_policy"])?;
            object.required("new_type")?;
            let policy = object
                .nullable("migration_policy", 255)?
                .flatten()
                .unwrap_or("never");
            if !["never", "on-demand"].contains(&policy) {
                let why = format!("'{policy}' is not one of ['on-demand', 'never']");
                return Err(invalid("os-retype.migration_policy", &json!(policy), &why).into());
            }
            let kind = object.string("new_type", 1, 255)?.unwrap_or_default();
            actions::retype(cloud, ctx, id, kind).await?;
        }
        "os-reset_status" => {
            let object = object()?;
            object.allow(&["status", "attach_status", "migration_status"])?;
            let status = object.nullable("status", 255)?.flatten();
            let attached = match object.nullable("attach_status", 255)?.flatten() {
                None => None,
                Some("detached") => Some(false),
                Some("attached") => Some(true),
                Some(other) => {
                    let why = format!("'{other}' is not one of ['detached', 'attached']");
                    return Err(invalid("os-reset_status.attach_status", &json!(other), &why).into());
                }
            };
            let migration = object.get("migration_status").is_some();
            if status.is_none() && attached.is_none() && !migration {
                return Err(Error::BadRequest(
                    "Must specify 'status', 'attach_status' or 'migration_status' for update.".into(),
                )
                .into());
            }
            let status = status
                .map(|text| {
                    Status::parse(&text.to_ascii_lowercase()).ok_or_else(|| {
                        invalid(
                            "os-reset_status.status",
                            &json!(text),
                            "It is no volume's status.",
                        )
                    })
                })
                .transpose()?;
            actions::reset_status(cloud, ctx, id, Reset { status, attached }).await?;
        }
        "os-force_delete" => volumes::delete(cloud, ctx, id, true, true).await?,
        "os-volume_upload_image" => return upload(&app, &call, &object()?).await,
        "os-show_image_metadata" => {
            let details = volumes::show(cloud, ctx, id).await?;
            return ok(json!({"metadata": details.volume.image_metadata}));
        }
        "os-set_image_metadata" => {
            let object = object()?;
            object.allow(&["metadata"])?;
            let metadata = metadata_of("metadata", object.required("metadata")?)?;
            let all = volumes::set_metadata(cloud, ctx, id, Of::Image, Metadata::Merge(metadata)).await?;
            return ok(json!({"metadata": all}));
        }
        "os-unset_image_metadata" => {
            let object = object()?;
            object.allow(&["key"])?;
            object.required("key")?;
            let key = object.string("key", 1, 255)?.unwrap_or_default().to_owned();
            volumes::set_metadata(cloud, ctx, id, Of::Image, Metadata::Remove(key)).await?;
            return empty(StatusCode::OK);
        }
        "revert" => {
            if call.version < V::REVERT {
                return Err(gone());
            }
            let object = object()?;
            object.allow(&["snapshot_id"])?;
            let snapshot = uuid_of("revert.snapshot_id", object.required("snapshot_id")?)?;
            actions::revert(cloud, ctx, id, &snapshot.to_string()).await?;
        }
        "os-reserve" => actions::by_hand(cloud, ctx, id, Hand::Reserve).await?,
        "os-unreserve" => actions::by_hand(cloud, ctx, id, Hand::Unreserve).await?,
        "os-begin_detaching" => actions::by_hand(cloud, ctx, id, Hand::BeginDetaching).await?,
        "os-roll_detaching" => actions::by_hand(cloud, ctx, id, Hand::RollDetaching).await?,
        "os-attach" => {
            let hand = attach_of(&object()?)?;
            actions::by_hand(cloud, ctx, id, hand).await?;
        }
        "os-detach" | "os-force_detach" => {
            let attachment = match value.get("attachment_id") {
                None | Some(Value::Null) => None,
                Some(value) => Some(uuid_of(&format!("{name}.attachment_id"), value)?),
            };
            let force = name == "os-force_detach";
            actions::by_hand(cloud, ctx, id, Hand::Detach { attachment, force }).await?;
        }
        other => return Err(no_such(other).into()),
    }
    empty(StatusCode::ACCEPTED)
}

fn attach_of(object: &Object<'_>) -> Result<Hand, Error> {
    object.allow(&["instance_uuid", "host_name", "mountpoint", "mode"])?;
    let given = |key: &str| object.get(key).filter(|value| !value.is_null());
    let server = given("instance_uuid")
        .map(|value| uuid_of("os-attach.instance_uuid", value))
        .transpose()?;
    let host = object.nullable("host_name", 255)?.flatten().map(str::to_owned);
    if server.is_some() == host.is_some() {
        return Err(Error::BadRequest(
            "Invalid request to attach volume to an instance and/or a host: exactly one of them is needed."
                .into(),
        ));
    }
    object.required("mountpoint")?;
    let device = object
        .string("mountpoint", 1, 255)?
        .unwrap_or_default()
        .to_owned();
    let read_only = match object.nullable("mode", 255)?.flatten() {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(other) => {
            let why = format!("'{other}' is not one of ['rw', 'ro']");
            return Err(invalid("os-attach.mode", &json!(other), &why));
        }
    };
    Ok(Hand::Attach {
        server,
        host,
        device,
        read_only,
    })
}

async fn upload(app: &AppState, call: &Call, object: &Object<'_>) -> Answer {
    object.allow(&[
        "image_name",
        "force",
        "disk_format",
        "container_format",
        "visibility",
        "protected",
    ])?;
    object.required("image_name")?;
    let given = |key: &str, default: &'static str| -> Result<String, Error> {
        Ok(object.nullable(key, 255)?.flatten().unwrap_or(default).to_owned())
    };
    let format = given("disk_format", "raw")?;
    let container = given("container_format", "bare")?;
    if format != "raw" || container != "bare" {
        return Err(Error::BadRequest(format!(
            "Invalid input received: this cloud makes images of volumes in format raw and container bare, not {format} \
             and {container}."
        ))
        .into());
    }
    let visibility = if call.version >= V::UPLOAD_VISIBILITY {
        Visibility::parse(&given("visibility", "private")?)?
    } else {
        Visibility::Private
    };
    let flag = |key: &str| -> Result<bool, Error> {
        match object.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(_) => Ok(object.boolean(key)?.unwrap_or(false)),
        }
    };
    let upload = Upload {
        image_name: object
            .string("image_name", 1, 255)?
            .unwrap_or_default()
            .to_owned(),
        force: flag("force")?,
        visibility,
        protected: call.version >= V::UPLOAD_VISIBILITY && flag("protected")?,
    };
    let (volume, image) = actions::upload(&app.cloud, &call.ctx, call.id(), upload).await?;
    let details = volumes::show(&app.cloud, &call.ctx, call.id()).await?;
    let kind = details.volume_type.map(|name| {
        json!({"id": volume.type_id, "name": name, "is_public": true, "extra_specs": null, "qos_specs_id": null})
    });
    let mut body = json!({
        "id": volume.id,
        "updated_at": volume.updated_at.map(|time| time.naive()),
        "status": "uploading",
        "display_description": volume.description,
        "size": volume.size,
        "volume_type": kind,
        "image_id": image.id,
        "container_format": "bare",
        "disk_format": "raw",
        "image_name": image.name,
    });
    if call.version >= V::UPLOAD_VISIBILITY {
        body["visibility"] = image.visibility.name().into();
        body["protected"] = image.protected.into();
    }
    accepted(json!({"os-volume_upload_image": body}))
}

/// `POST /snapshots/{id}/action`.
pub(super) async fn snapshot(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    let (name, value) = one(&body)?;
    let (cloud, ctx, id) = (&app.cloud, &call.ctx, call.id());
    match name {
        "os-reset_status" => {
            let object = Object::of(name, value)?;
            snapshots::reset_status(cloud, ctx, id, status_of(&object)?).await?;
        }
        "os-force_delete" => snapshots::delete(cloud, ctx, id, true).await?,
        "os-update_snapshot_status" => {
            let object = Object::of(name, value)?;
            object.allow(&["status", "progress"])?;
            let progress = object.nullable("progress", 4)?.flatten();
            let is_percent = |text: &str| {
                let number = text.strip_suffix('%').and_then(|n| n.parse::<u8>().ok());
                number.is_some_and(|n| n <= 100)
            };
            if let Some(progress) = progress
                && !is_percent(progress)
            {
                let why = "It is not a percentage from 0% to 100%.";
                return Err(invalid("os-update_snapshot_status.progress", &json!(progress), why).into());
            }
            let status = status_of(&object)?;
            snapshots::update_status(cloud, ctx, id, status, progress.map(str::to_owned)).await?;
        }
        other => return Err(no_such(other).into()),
    }
    empty(StatusCode::ACCEPTED)
}

/// `POST /backups/{id}/action`.
pub(super) async fn backup(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    let (name, value) = one(&body)?;
    let (cloud, ctx, id) = (&app.cloud, &call.ctx, call.id());
    match name {
        "os-reset_status" => {
            let object = Object::of(name, value)?;
            object.allow(&["status"])?;
            backups::reset_status(cloud, ctx, id, status_of(&object)?).await?;
        }
        "os-force_delete" => backups::delete(cloud, ctx, id, true).await?,
        other => return Err(no_such(other).into()),
    }
    empty(StatusCode::ACCEPTED)
}
