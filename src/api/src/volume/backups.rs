//! Backups.

use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cloud::Error;
use cloud::volume::backups::{self, Backup, NewBackup};
use cloud::volume::list as lists;
use cloud::volume::status::BackupStatus;
use serde_json::{Value, json};

use super::listing::{self, Item, Key, Known, fits_time};
use super::microversion::Microversion as V;
use super::volumes::{links, text_of};
use super::{Answer, Call, accepted, empty, ok, since};
use crate::AppState;
use crate::body::{Json, Pairs};
use crate::compute::check::{Object, metadata_of, uuid_of};

fn summary_view(call: &Call, backup: &Backup) -> Value {
    let mut body = json!({
        "id": backup.id,
        "name": backup.name,
        "links": links(call, &format!("backups/{}", backup.id)),
    });
    // Only answers to creation and change show them, and full views.
    if call.version >= V::BACKUP_METADATA {
        body["metadata"] = json!(backup.metadata);
    }
    body
}

fn view(call: &Call, backup: &Backup) -> Value {
    let mut body = json!({
        "id": backup.id,
        "status": backup.status.name(),
        "size": backup.size,
        // Of the folder of backups: one file each.
        "object_count": u8::from(backup.stored.is_some()),
        "availability_zone": if call.version >= V::BACKUP_ZONE || backup.status == BackupStatus::Available {
            Some(backup.availability_zone.as_str())
        } else {
            None
        },
        "container": backup.container,
        "created_at": backup.created_at.naive(),
        "updated_at": backup.updated_at.map(|time| time.naive()),
        "name": backup.name,
        "description": backup.description,
        "fail_reason": backup.fail_reason,
        "volume_id": backup.volume_id,
        "links": links(call, &format!("backups/{}", backup.id)),
        "is_incremental": false,
        "has_dependent_backups": false,
        "snapshot_id": backup.snapshot_id,
        "data_timestamp": backup.data_timestamp.naive(),
    });
    if call.version >= V::BACKUP_PROJECT && call.ctx.is_admin() {
        body["os-backup-project-attr:project_id"] = backup.project_id.as_str().into();
    }
    if call.version >= V::BACKUP_METADATA {
        body["metadata"] = json!(backup.metadata);
    }
    if call.version >= V::BACKUP_USER {
        body["user_id"] = backup.user_id.as_str().into();
    }
    body
}

impl Known for Backup {
    const FILTERS: &'static [&'static str] = &[
        "id",
        "name",
        "display_name",
        "status",
        "volume_id",
        "snapshot_id",
        "size",
        "created_at",
        "updated_at",
    ];
    const KEYS: &'static [&'static str] = &[
        "id",
        "name",
        "display_name",
        "status",
        "volume_id",
        "size",
        "created_at",
        "updated_at",
        "data_timestamp",
    ];
}

impl Item for Backup {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn key(&self, name: &str) -> Option<Key> {
        Some(match name {
            "id" => self.id.to_string().as_str().into(),
            "name" | "display_name" => self.name.as_deref().into(),
            "status" => self.status.name().into(),
            "volume_id" => self.volume_id.to_string().as_str().into(),
            "size" => Key::Number(self.size.into()),
            "created_at" => self.created_at.into(),
            "updated_at" => self.updated_at.into(),
            "data_timestamp" => self.data_timestamp.into(),
            _ => return None,
        })
    }

    fn fits(&self, filter: &str, value: &str) -> Option<bool> {
        Some(match filter {
            "snapshot_id" => self.snapshot_id.is_some_and(|id| id.to_string() == value),
            "size" => value.parse() == Ok(self.size),
            "created_at" => fits_time(Some(self.created_at), value),
            "updated_at" => fits_time(self.updated_at, value),
            other => match self.key(other)? {
                Key::Text(text) => text == value,
                Key::Null => false,
                Key::Number(number) => number.to_string() == value,
            },
        })
    }
}

async fn list(app: &AppState, call: &Call, pairs: &Pairs, details: bool) -> Answer {
    let found = lists::backups(&app.cloud, &call.ctx, &listing::whose(pairs)?).await?;
    let page = listing::page(call, pairs, found)?;
    let views = page
        .items
        .iter()
        .map(|backup| {
            if details {
                return view(call, backup);
            }
            let mut body = summary_view(call, backup);
            if let Some(body) = body.as_object_mut() {
                body.remove("metadata");
            }
            body
        })
        .collect();
    let path = if details { "backups/detail" } else { "backups" };
    ok(listing::document(
        call, pairs, "backups", path, views, page.next, page.count,
    )?)
}

pub(super) async fn index(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    list(&app, &call, &pairs, false).await
}

pub(super) async fn detail(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    list(&app, &call, &pairs, true).await
}

pub(super) async fn create(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    let object = Object::only(&body, "backup")?;
    let mut known = vec![
        "volume_id",
        "container",
        "description",
        "incremental",
        "force",
        "name",
        "snapshot_id",
    ];
    if call.version >= V::BACKUP_METADATA {
        known.push("metadata");
    }
    if call.version >= V::BACKUP_ZONE {
        known.push("availability_zone");
    }
    object.allow(&known)?;
    let volume = uuid_of("backup.volume_id", object.required("volume_id")?)?;
    let given = |key: &str| object.get(key).filter(|value| !value.is_null());
    let flag = |key: &str| -> Result<bool, Error> {
        Ok(given(key)
            .map(|_| object.boolean(key))
            .transpose()?
            .flatten()
            .unwrap_or(false))
    };
    let new = NewBackup {
        volume: volume.to_string(),
        snapshot: given("snapshot_id")
            .map(|value| uuid_of("backup.snapshot_id", value).map(|id| id.to_string()))
            .transpose()?,
        name: text_of(&object, &["name"])?.flatten(),
        description: text_of(&object, &["description"])?.flatten(),
        container: object.nullable("container", 255)?.flatten().map(str::to_owned),
        metadata: given("metadata")
            .map(|value| metadata_of("backup.metadata", value))
            .transpose()?
            .unwrap_or_default(),
        incremental: flag("incremental")?,
        force: flag("force")?,
        availability_zone: object
            .nullable("availability_zone", 255)?
            .flatten()
            .map(str::to_owned),
    };
    let made = backups::create(&app.cloud, &call.ctx, new).await?;
    accepted(json!({"backup": summary_view(&call, &made)}))
}

pub(super) async fn show(State(app): State<AppState>, call: Call) -> Answer {
    let backup = backups::show(&app.cloud, &call.ctx, call.id()).await?;
    ok(json!({"backup": view(&call, &backup)}))
}

pub(super) async fn update(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    since(call.version, V::BACKUP_UPDATE)?;
    let object = Object::only(&body, "backup")?;
    let mut known = vec!["name", "description"];
    if call.version >= V::BACKUP_METADATA {
        known.push("metadata");
    }
    object.allow(&known)?;
    let name = text_of(&object, &["name"])?;
    let description = text_of(&object, &["description"])?;
    let metadata = object
        .get("metadata")
        .filter(|value| !value.is_null())
        .map(|value| metadata_of("backup.metadata", value))
        .transpose()?;
    if name.is_none() && description.is_none() && metadata.is_none() {
        return Err(
            Error::BadRequest("Must specify 'name', 'description' or 'metadata' for update.".into()).into(),
        );
    }
    let backup = backups::update(&app.cloud, &call.ctx, call.id(), name, description, metadata).await?;
    ok(json!({"backup": summary_view(&call, &backup)}))
}

pub(super) async fn delete(State(app): State<AppState>, call: Call) -> Answer {
    backups::delete(&app.cloud, &call.ctx, call.id(), false).await?;
    empty(StatusCode::ACCEPTED)
}

pub(super) async fn restore(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    let object = Object::only(&body, "restore")?;
    object.allow(&["volume_id", "name"])?;
    let volume = object
        .get("volume_id")
        .filter(|value| !value.is_null())
        .map(|value| uuid_of("restore.volume_id", value).map(|id| id.to_string()))
        .transpose()?;
    let name = text_of(&object, &["name"])?.flatten();
    let (backup, volume) = backups::restore(&app.cloud, &call.ctx, call.id(), volume, name).await?;
    accepted(json!({"restore": {
        "backup_id": backup.id,
        "volume_id": volume.id,
        "volume_name": volume.name.unwrap_or_default(),
    }}))
}

/// How records are told: as base64, so that nobody takes them for an address.
const SERVICE: &str = "allod.disk";

pub(super) async fn export(State(app): State<AppState>, call: Call) -> Answer {
    let record = backups::export(&app.cloud, &call.ctx, call.id()).await?;
    ok(json!({"backup-record": {"backup_service": SERVICE, "backup_url": STANDARD.encode(record)}}))
}

pub(super) async fn import(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    call.ctx.require("backups", "import")?;
    let object = Object::only(&body, "backup-record")?;
    object.allow(&["backup_service", "backup_url"])?;
    object.required("backup_service")?;
    object.required("backup_url")?;
    let service = object.string("backup_service", 1, 255)?.unwrap_or_default();
    if service != SERVICE {
        return Err(Error::BadRequest(format!(
            "Invalid input received: records of {SERVICE} are taken, not of {service}."
        ))
        .into());
    }
    let record = object.string("backup_url", 1, 65536)?.unwrap_or_default();
    let record = STANDARD
        .decode(record)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| {
            Error::BadRequest("Invalid input received: the backup's record cannot be read.".into())
        })?;
    let made = backups::import(&app.cloud, &call.ctx, &record).await?;
    let mut body = summary_view(&call, &made);
    if let Some(body) = body.as_object_mut() {
        body.remove("metadata");
    }
    super::json(StatusCode::CREATED, json!({"backup": body}))
}
