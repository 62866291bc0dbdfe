//! Attachments (3.27 and later).

use axum::extract::State;
use axum::http::StatusCode;
use cloud::Error;
use cloud::volume::attach;
use cloud::volume::attachments::Attachment;
use cloud::volume::list as lists;
use serde_json::{Map, Value, json};

use super::listing::{self, Item, Key, Known};
use super::microversion::Microversion as V;
use super::{Answer, Call, empty, ok, since};
use crate::AppState;
use crate::body::{Json, Pairs};
use crate::compute::check::{Object, invalid, uuid_of};

fn summary_view(attachment: &Attachment) -> Value {
    json!({
        "id": attachment.id,
        "instance": attachment.server,
        "status": attachment.status.name(),
        "volume_id": attachment.volume,
    })
}

fn view(attachment: &Attachment) -> Value {
    let mut body = summary_view(attachment);
    body["attached_at"] = attachment.attached_at.map(|time| time.naive()).into();
    body["detached_at"] = Value::Null;
    body["attach_mode"] = if attachment.read_only { "ro" } else { "rw" }.into();
    // How the node's own guests reach their disks is no matter of a client's.
    body["connection_info"] = if attachment.connector.is_some() {
        json!({
            "driver_volume_type": "allod",
            "attachment_id": attachment.id,
            "volume_id": attachment.volume,
            "access_mode": if attachment.read_only { "ro" } else { "rw" },
            "encrypted": false,
        })
    } else {
        json!({})
    };
    body
}

impl Known for Attachment {
    const FILTERS: &'static [&'static str] = &[
        "id",
        "volume_id",
        "instance_id",
        "instance_uuid",
        "status",
        "attach_status",
    ];
    const KEYS: &'static [&'static str] = &[
        "id",
        "volume_id",
        "instance_id",
        "status",
        "attach_status",
        "created_at",
    ];
}

impl Item for Attachment {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn key(&self, name: &str) -> Option<Key> {
        Some(match name {
            "id" => self.id.to_string().as_str().into(),
            "volume_id" => self.volume.to_string().as_str().into(),
            "instance_id" | "instance_uuid" => self.server.map(|id| id.to_string()).as_deref().into(),
            "status" | "attach_status" => self.status.name().into(),
            "created_at" => self.created_at.into(),
            _ => return None,
        })
    }

    fn fits(&self, filter: &str, value: &str) -> Option<bool> {
        Some(self.key(filter)? == Key::Text(value.to_owned()))
    }
}

async fn list(app: &AppState, call: &Call, pairs: &Pairs, details: bool) -> Answer {
    since(call.version, V::ATTACHMENTS)?;
    let found = lists::attachments(&app.cloud, &call.ctx, &listing::whose(pairs)?).await?;
    let page = listing::page(call, pairs, found)?;
    let views = page
        .items
        .iter()
        .map(|item| if details { view(item) } else { summary_view(item) })
        .collect();
    let path = if details {
        "attachments/detail"
    } else {
        "attachments"
    };
    ok(listing::document(
        call,
        pairs,
        "attachments",
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

fn connector_of(object: &Object<'_>) -> Result<Option<Map<String, Value>>, Error> {
    match object.get("connector") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(connector)) if connector.is_empty() => Ok(None),
        Some(Value::Object(connector)) => {
            let text = Value::Object(connector.clone()).to_string();
            if text.len() > 16 * 1024 {
                return Err(Error::BadRequest(
                    "Invalid input for field/attribute connector. It is too long".into(),
                ));
            }
            Ok(Some(connector.clone()))
        }
        Some(other) => Err(invalid(
            "attachment.connector",
            other,
            &format!("{other} is not of type 'object', 'null'"),
        )),
    }
}

pub(super) async fn create(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    since(call.version, V::ATTACHMENTS)?;
    let object = Object::only(&body, "attachment")?;
    let mut known = vec!["instance_uuid", "connector", "volume_uuid"];
    if call.version >= V::ATTACHMENT_MODE {
        known.push("mode");
    }
    object.allow(&known)?;
    let volume = uuid_of("attachment.volume_uuid", object.required("volume_uuid")?)?;
    let server = object
        .get("instance_uuid")
        .filter(|value| !value.is_null())
        .map(|value| uuid_of("attachment.instance_uuid", value))
        .transpose()?;
    let mode = object.nullable("mode", 2)?.flatten().map(str::to_owned);
    if let Some(mode) = &mode
        && !["rw", "ro"].contains(&mode.as_str())
    {
        let why = format!("'{mode}' is not one of ['rw', 'ro']");
        return Err(invalid("attachment.mode", &json!(mode), &why).into());
    }
    let connector = connector_of(&object)?;
    let made = attach::create(
        &app.cloud,
        &call.ctx,
        &volume.to_string(),
        server,
        connector,
        mode,
    )
    .await?;
    ok(json!({"attachment": view(&made)}))
}

pub(super) async fn show(State(app): State<AppState>, call: Call) -> Answer {
    since(call.version, V::ATTACHMENTS)?;
    let found = attach::show(&app.cloud, &call.ctx, call.id()).await?;
    ok(json!({"attachment": view(&found)}))
}

pub(super) async fn update(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    since(call.version, V::ATTACHMENTS)?;
    let object = Object::only(&body, "attachment")?;
    object.allow(&["connector"])?;
    object.required("connector")?;
    let connector = connector_of(&object)?.ok_or_else(|| {
        Error::BadRequest(
            "Invalid input for field/attribute connector. It does not have enough properties".into(),
        )
    })?;
    let found = attach::update(&app.cloud, &call.ctx, call.id(), connector).await?;
    ok(json!({"attachment": view(&found)}))
}

pub(super) async fn delete(State(app): State<AppState>, call: Call) -> Answer {
    since(call.version, V::ATTACHMENTS)?;
    let left = attach::delete(&app.cloud, &call.ctx, call.id()).await?;
    ok(json!({"attachments": left.iter().map(summary_view).collect::<Vec<_>>()}))
}

/// `POST /attachments/{id}/action` with `os-complete` (3.44).
pub(super) async fn action(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    since(call.version, V::ATTACHMENT_COMPLETE)?;
    let object = Object::body(&body)?;
    object.allow(&["os-complete"])?;
    object.required("os-complete")?;
    attach::complete(&app.cloud, &call.ctx, call.id()).await?;
    empty(StatusCode::NO_CONTENT)
}
