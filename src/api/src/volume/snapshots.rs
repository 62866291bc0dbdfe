//! Snapshots.

use axum::extract::State;
use axum::http::StatusCode;
use cloud::Error;
use cloud::volume::list as lists;
use cloud::volume::snapshots::{self, Metadata, Snapshot};
use cloud::volume::status::SnapshotStatus;
use serde_json::{Value, json};

use super::listing::{self, Item, Key, Known, fits_pairs, fits_time};
use super::microversion::Microversion as V;
use super::volumes::{item, item_body, metadata_body, text_of};
use super::{Answer, Call, accepted, empty, ok};
use crate::AppState;
use crate::body::{Json, Pairs};
use crate::compute::check::{Object, metadata_of, uuid_of};

fn view(call: &Call, snapshot: &Snapshot, detail: bool) -> Value {
    let mut body = json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "description": snapshot.description,
        "volume_id": snapshot.volume_id,
        "status": snapshot.status.name(),
        "size": snapshot.size,
        "created_at": snapshot.created_at.naive(),
        "updated_at": snapshot.updated_at.map(|time| time.naive()),
        "metadata": snapshot.metadata,
    });
    if detail {
        let done = matches!(
            snapshot.status,
            SnapshotStatus::Available | SnapshotStatus::BackingUp | SnapshotStatus::Restoring
        );
        body["os-extended-snapshot-attributes:progress"] = match &snapshot.progress {
            Some(progress) if !done => progress.as_str().into(),
            _ => if done { "100%" } else { "0%" }.into(),
        };
        body["os-extended-snapshot-attributes:project_id"] = snapshot.project_id.as_str().into();
    }
    if call.version >= V::GROUPS_OF_SNAPSHOTS {
        body["group_snapshot_id"] = Value::Null;
    }
    if call.version >= V::SNAPSHOT_USER {
        body["user_id"] = snapshot.user_id.as_str().into();
    }
    if call.version >= V::CONSUMES_QUOTA {
        body["consumes_quota"] = true.into();
    }
    body
}

impl Known for Snapshot {
    const FILTERS: &'static [&'static str] = &[
        "id",
        "name",
        "display_name",
        "description",
        "status",
        "volume_id",
        "size",
        "user_id",
        "metadata",
        "availability_zone",
        "created_at",
        "updated_at",
        "consumes_quota",
    ];
    const KEYS: &'static [&'static str] = &[
        "id",
        "name",
        "display_name",
        "description",
        "status",
        "volume_id",
        "size",
        "user_id",
        "project_id",
        "created_at",
        "updated_at",
    ];
}

impl Item for Snapshot {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn key(&self, name: &str) -> Option<Key> {
        Some(match name {
            "id" => self.id.to_string().as_str().into(),
            "name" | "display_name" => self.name.as_deref().into(),
            "description" => self.description.as_deref().into(),
            "status" => self.status.name().into(),
            "volume_id" => self.volume_id.to_string().as_str().into(),
            "size" => Key::Number(self.size.into()),
            "user_id" => self.user_id.as_str().into(),
            "project_id" => self.project_id.as_str().into(),
            "created_at" => self.created_at.into(),
            "updated_at" => self.updated_at.into(),
            _ => return None,
        })
    }

    fn fits(&self, filter: &str, value: &str) -> Option<bool> {
        Some(match filter {
            "metadata" => fits_pairs(&self.metadata, value),
            "size" => value.parse() == Ok(self.size),
            "created_at" => fits_time(Some(self.created_at), value),
            "updated_at" => fits_time(self.updated_at, value),
            "consumes_quota" => value.eq_ignore_ascii_case("true"),
            "availability_zone" => return None,
            other => match self.key(other)? {
                Key::Text(text) => text == value,
                Key::Null => false,
                Key::Number(number) => number.to_string() == value,
            },
        })
    }
}

async fn list(app: &AppState, call: &Call, pairs: &Pairs, details: bool) -> Answer {
    let found = lists::snapshots(&app.cloud, &call.ctx, &listing::whose(pairs)?).await?;
    let page = listing::page(call, pairs, found)?;
    let views = page.items.iter().map(|item| view(call, item, details)).collect();
    let path = if details { "snapshots/detail" } else { "snapshots" };
    ok(listing::document(
        call,
        pairs,
        "snapshots",
        path,
        views,
        page.next,
        page.count,
    )?)
}

pub(super) async fn index(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    list(&app, &call, &pairs, false).await
}

pub(super) async fn detail(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    list(&app, &call, &pairs, true).await
}

pub(super) async fn create(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    let object = Object::only(&body, "snapshot")?;
    object.allow(&[
        "name",
        "display_name",
        "description",
        "display_description",
        "volume_id",
        "force",
        "metadata",
    ])?;
    let volume = object.required("volume_id")?;
    if volume.is_null() {
        return Err(Error::not_found("Volume", "None").into());
    }
    let volume = uuid_of("snapshot.volume_id", volume)?;
    let mut force = match object.get("force") {
        None | Some(Value::Null) => false,
        Some(_) => object.boolean("force")?.unwrap_or(false),
    };
    if call.version >= V::SNAPSHOT_IN_USE {
        if object.get("force").is_some_and(|value| !value.is_null()) && !force {
            return Err(Error::BadRequest(
                "Since microversion 3.66 the 'force' option is invalid for this request. For backward compatibility, \
                 however, when the 'force' flag is passed with a value evaluating to True, it is silently ignored."
                    .into(),
            )
            .into());
        }
        force = true;
    }
    let metadata = match object.get("metadata") {
        None | Some(Value::Null) => Default::default(),
        Some(value) => metadata_of("snapshot.metadata", value)?,
    };
    let made = snapshots::create(
        &app.cloud,
        &call.ctx,
        &volume.to_string(),
        text_of(&object, &["name", "display_name"])?.flatten(),
        text_of(&object, &["description", "display_description"])?.flatten(),
        metadata,
        force,
    )
    .await?;
    accepted(json!({"snapshot": view(&call, &made, false)}))
}

pub(super) async fn show(State(app): State<AppState>, call: Call) -> Answer {
    let snapshot = snapshots::show(&app.cloud, &call.ctx, call.id()).await?;
    ok(json!({"snapshot": view(&call, &snapshot, true)}))
}

pub(super) async fn update(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    let object = Object::only(&body, "snapshot")?;
    object.allow(&["name", "display_name", "description", "display_description"])?;
    let name = text_of(&object, &["name", "display_name"])?;
    let description = text_of(&object, &["description", "display_description"])?;
    let snapshot = snapshots::update(&app.cloud, &call.ctx, call.id(), name, description).await?;
    ok(json!({"snapshot": view(&call, &snapshot, false)}))
}

pub(super) async fn delete(State(app): State<AppState>, call: Call) -> Answer {
    snapshots::delete(&app.cloud, &call.ctx, call.id(), false).await?;
    empty(StatusCode::ACCEPTED)
}

pub(super) async fn metadata(State(app): State<AppState>, call: Call) -> Answer {
    let snapshot = snapshots::show(&app.cloud, &call.ctx, call.id()).await?;
    ok(json!({"metadata": snapshot.metadata}))
}

pub(super) async fn metadata_item(State(app): State<AppState>, call: Call) -> Answer {
    let snapshot = snapshots::show(&app.cloud, &call.ctx, call.id()).await?;
    item(&snapshot.metadata, &call)
}

async fn set(app: &AppState, call: &Call, metadata: Metadata) -> Result<cloud::volume::Pairs, Error> {
    snapshots::set_metadata(&app.cloud, &call.ctx, call.id(), metadata).await
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
