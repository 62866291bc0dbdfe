//! Transfers, under their old path and under that of 3.55.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use cloud::Error;
use cloud::volume::transfers::{self, Transfer};
use serde_json::{Value, json};

use super::listing::{self, Item, Key, Known};
use super::microversion::Microversion as V;
use super::volumes::{links, text_of};
use super::{Answer, Call, accepted, empty, ok};
use crate::AppState;
use crate::body::{Json, Pairs};
use crate::compute::check::{Object, uuid_of};

/// Routes below one of the two paths.
pub(super) fn routes(path: &str) -> Router<AppState> {
    Router::new()
        .route(path, get(index).post(create))
        .route(&format!("{path}/detail"), get(detail))
        .route(&format!("{path}/{{id}}"), get(show).delete(delete))
        .route(&format!("{path}/{{id}}/accept"), post(accept))
}

fn summary_view(call: &Call, transfer: &Transfer) -> Value {
    json!({
        "id": transfer.id,
        "name": transfer.name,
        "volume_id": transfer.volume_id,
        "links": links(call, &format!("os-volume-transfer/{}", transfer.id)),
    })
}

fn view(call: &Call, transfer: &Transfer) -> Value {
    let mut body = summary_view(call, transfer);
    body["created_at"] = transfer.created_at.naive().into();
    if call.version >= V::TRANSFER_SNAPSHOTS {
        body["no_snapshots"] = transfer.no_snapshots.into();
    }
    if call.version >= V::TRANSFER_PROJECTS {
        body["source_project_id"] = transfer.project_id.as_str().into();
        body["destination_project_id"] = Value::Null;
        body["accepted"] = false.into();
    }
    body
}

impl Known for Transfer {
    const FILTERS: &'static [&'static str] = &["id", "name", "volume_id"];
    const KEYS: &'static [&'static str] = &["id", "name", "volume_id", "created_at"];
}

impl Item for Transfer {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn key(&self, name: &str) -> Option<Key> {
        Some(match name {
            "id" => self.id.to_string().as_str().into(),
            "name" => self.name.as_deref().into(),
            "volume_id" => self.volume_id.to_string().as_str().into(),
            "created_at" => self.created_at.into(),
            _ => return None,
        })
    }

    fn fits(&self, filter: &str, value: &str) -> Option<bool> {
        Some(self.key(filter)? == Key::Text(value.to_owned()))
    }
}

async fn list(app: &AppState, call: &Call, pairs: &Pairs, details: bool) -> Answer {
    let all = listing::whose(pairs)?.all_projects;
    let found = transfers::list(&app.cloud, &call.ctx, all).await?;
    let mut asked = pairs.clone();
    if call.version < V::TRANSFER_SORT {
        asked.0.retain(|(key, _)| !key.starts_with("sort"));
    }
    let page = listing::page(call, &asked, found)?;
    let views: Vec<Value> = page
        .items
        .iter()
        .map(|item| {
            if details {
                view(call, item)
            } else {
                summary_view(call, item)
            }
        })
        .collect();
    ok(json!({"transfers": views}))
}

async fn index(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    list(&app, &call, &pairs, false).await
}

async fn detail(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    list(&app, &call, &pairs, true).await
}

async fn create(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    let object = Object::only(&body, "transfer")?;
    let mut known = vec!["volume_id", "name"];
    if call.version >= V::TRANSFER_SNAPSHOTS {
        known.push("no_snapshots");
    }
    object.allow(&known)?;
    let volume = uuid_of("transfer.volume_id", object.required("volume_id")?)?;
    let name = text_of(&object, &["name"])?.flatten();
    // Before 3.55 snapshots of another project's volume would have been left behind.
    let no_snapshots = match object.get("no_snapshots") {
        None | Some(Value::Null) => false,
        Some(_) => object.boolean("no_snapshots")?.unwrap_or(false),
    };
    let (made, key) =
        transfers::create(&app.cloud, &call.ctx, &volume.to_string(), name, no_snapshots).await?;
    let mut body = view(&call, &made);
    body["auth_key"] = key.into();
    accepted(json!({"transfer": body}))
}

async fn show(State(app): State<AppState>, call: Call) -> Answer {
    let found = transfers::show(&app.cloud, &call.ctx, call.id()).await?;
    ok(json!({"transfer": view(&call, &found)}))
}

async fn delete(State(app): State<AppState>, call: Call) -> Answer {
    transfers::delete(&app.cloud, &call.ctx, call.id()).await?;
    empty(StatusCode::ACCEPTED)
}

async fn accept(State(app): State<AppState>, call: Call, Json(body): Json<Value>) -> Answer {
    let object = Object::only(&body, "accept")?;
    object.allow(&["auth_key"])?;
    object.required("auth_key")?;
    let key = object
        .string("auth_key", 1, 255)?
        .ok_or_else(|| Error::BadRequest("An auth_key is needed.".into()))?;
    let taken = transfers::accept(&app.cloud, &call.ctx, call.id(), key).await?;
    accepted(json!({"transfer": summary_view(&call, &taken)}))
}
