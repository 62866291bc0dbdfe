//! `/v2/images/{id}/import`, `/v2/tasks`, and the one store that there is.

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use cloud::image::import::{self, METHODS, Method, STORE};
use cloud::image::tasks::{self, Task};
use cloud::{Error, image};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Answer, parse_id, shape};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};
use crate::page::{Page, next_link};

/// A page's length if the client names none, and at most, as in Glance.
const PAGE: (usize, usize) = (25, 1000);

#[derive(Deserialize)]
pub(super) struct Import {
    method: MethodName,
    stores: Option<Vec<String>>,
    #[serde(default)]
    all_stores: bool,
    all_stores_must_succeed: Option<bool>,
}

#[derive(Deserialize)]
struct MethodName {
    name: String,
    uri: Option<String>,
}

impl Import {
    /// Where the bytes come from, after the stores that they shall go to have been looked at: there is but one.
    fn method(&self) -> Result<Method, Error> {
        if self.all_stores && self.stores.is_some() {
            return Err(Error::BadRequest(
                "The parameters stores and all_stores exclude each other.".into(),
            ));
        }
        if let Some(other) = self.stores.iter().flatten().find(|store| *store != STORE) {
            let other: String = other.chars().take(64).collect();
            return Err(Error::Conflict(format!("There is no store '{other}'.")));
        }
        match (self.method.name.as_str(), &self.method.uri) {
            ("glance-direct", _) => Ok(Method::Staged),
            ("web-download", Some(uri)) => Ok(Method::Web(uri.clone())),
            ("web-download", None) => Err(Error::BadRequest(
                "URI is required for web-download import method.".into(),
            )),
            (name, _) => {
                let name: String = name.chars().take(64).collect();
                Err(Error::BadRequest(format!("Unknown import method name '{name}'.")))
            }
        }
    }

    /// What the task shows of the request.
    fn input(&self, image: Uuid) -> Value {
        let mut method = json!({"name": self.method.name});
        if let Some(uri) = &self.method.uri {
            method["uri"] = uri.clone().into();
        }
        let mut request = json!({"method": method, "all_stores": self.all_stores});
        if let Some(stores) = &self.stores {
            request["stores"] = stores.clone().into();
        }
        if let Some(must) = self.all_stores_must_succeed {
            request["all_stores_must_succeed"] = must.into();
        }
        json!({"image_id": image, "import_req": request, "backend": [STORE]})
    }
}

pub(super) async fn begin(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
    Json(body): Json<Import>,
) -> Answer {
    let id = parse_id(&id)?;
    let method = body.method()?;
    import::import(&state.cloud, &ctx, id, method, body.input(id)).await?;
    Ok(StatusCode::ACCEPTED.into_response())
}

fn task(task: &Task) -> Value {
    json!({
        "id": task.id,
        "type": task.kind,
        "status": task.status,
        "owner": task.owner,
        "user_id": task.user_id,
        "image_id": task.image_id,
        "request_id": task.request_id,
        "input": task.input,
        "result": task.result,
        "message": task.message,
        "created_at": shape::time(task.created_at),
        "updated_at": shape::time(task.updated_at),
        "expires_at": task.expires_at.map(shape::time),
        "self": format!("/v2/tasks/{}", task.id),
        "schema": "/v2/schemas/task",
    })
}

/// An image's tasks.
pub(super) async fn of_image(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path(id): Path<String>,
) -> Answer {
    let tasks = tasks::of_image(&state.cloud, &ctx, parse_id(&id)?).await?;
    Ok(Json(json!({"tasks": tasks.iter().map(task).collect::<Vec<_>>()})).into_response())
}

pub(super) async fn list(State(state): State<AppState>, Auth(ctx): Auth, pairs: Pairs) -> Answer {
    let mut all = tasks::list(&state.cloud, &ctx).await?;
    all.retain(|task| {
        pairs.get("status").is_none_or(|status| status == task.status)
            && pairs.get("type").is_none_or(|kind| kind == task.kind)
    });
    let by = pairs.get("sort_key").unwrap_or("created_at");
    match by {
        "created_at" => all.sort_by_key(|task| task.created_at),
        "updated_at" => all.sort_by_key(|task| task.updated_at),
        "expires_at" => all.sort_by_key(|task| task.expires_at),
        "id" => all.sort_by_key(|task| task.id),
        "type" => all.sort_by(|a, b| a.kind.cmp(&b.kind)),
        "status" => all.sort_by(|a, b| a.status.cmp(&b.status)),
        _ => return Err(Error::BadRequest("Invalid sort key for tasks.".into()).into()),
    }
    if pairs.get("sort_dir").unwrap_or("desc") == "desc" {
        all.reverse();
    }
    let mut page = Page::of(&pairs, PAGE.1)?;
    if pairs.get("limit").is_none() {
        page.limit = Some(PAGE.0);
    }
    let (tasks, next) = page.cut(all, |task: &Task| task.id.to_string())?;
    // As in Glance, a list leaves out what may be long.
    let short = tasks.iter().map(|one| {
        let mut one = task(one);
        if let Some(fields) = one.as_object_mut() {
            fields.retain(|key, _| !["input", "result", "message"].contains(&key.as_str()));
        }
        one
    });
    let mut body = json!({
        "tasks": short.collect::<Vec<_>>(),
        "first": "/v2/tasks",
        "schema": "/v2/schemas/tasks",
    });
    if let Some(marker) = next {
        body["next"] = next_link("/v2/tasks", &pairs, &marker).into();
    }
    Ok(Json(body).into_response())
}

fn parse_task(id: &str) -> Result<Uuid, Error> {
    Uuid::try_parse(id).map_err(|_| Error::not_found("Task", id))
}

pub(super) async fn show(State(state): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    let found = tasks::show(&state.cloud, &ctx, parse_task(&id)?).await?;
    Ok(Json(task(&found)).into_response())
}

#[derive(Deserialize)]
pub(super) struct NewTask {
    #[serde(rename = "type")]
    kind: String,
    input: Input,
}

#[derive(Deserialize)]
struct Input {
    import_from: String,
    import_from_format: String,
    #[serde(default)]
    image_properties: Map<String, Value>,
}

pub(super) async fn create(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Json(new): Json<NewTask>,
) -> Answer {
    if new.kind != "import" {
        let kind: String = new.kind.chars().take(64).collect();
        return Err(
            Error::BadRequest(format!("There are no tasks of the type '{kind}': use import.")).into(),
        );
    }
    let input = json!({
        "import_from": new.input.import_from,
        "import_from_format": new.input.import_from_format,
        "image_properties": new.input.image_properties,
    });
    let mut attributes = new.input.image_properties;
    // Nothing is converted on the way: what comes is what the image is.
    let format = attributes
        .entry("disk_format")
        .or_insert_with(|| new.input.import_from_format.clone().into());
    if format.as_str() != Some(new.input.import_from_format.as_str()) {
        return Err(Error::BadRequest("import_from_format and disk_format must be the same.".into()).into());
    }
    attributes
        .entry("container_format")
        .or_insert_with(|| "bare".into());
    let id = import::create(&state.cloud, &ctx, attributes, new.input.import_from, input).await?;
    let found = tasks::show(&state.cloud, &ctx, id).await?;
    let mut response = (StatusCode::CREATED, Json(task(&found))).into_response();
    let at = format!("{}/image/v2/tasks/{id}", state.cloud.config.public_url);
    if let Ok(at) = HeaderValue::from_str(&at) {
        response.headers_mut().insert(header::LOCATION, at);
    }
    Ok(response)
}

/// How images can be imported.
pub(super) async fn methods(Auth(_): Auth) -> Answer {
    let methods = json!({"description": "Import methods available.", "type": "array", "value": METHODS});
    Ok(Json(json!({"import-methods": methods})).into_response())
}

/// The one store.
pub(super) async fn stores(Auth(_): Auth) -> Answer {
    let store = json!({"id": STORE, "description": "The pool of this cloud", "default": "true"});
    Ok(Json(json!({"stores": [store]})).into_response())
}

/// The same, for administrators.
pub(super) async fn stores_detail(Auth(ctx): Auth) -> Answer {
    ctx.require("image_stores", "detail")?;
    let store = json!({
        "id": STORE,
        "type": "file",
        "description": "The pool of this cloud",
        "default": "true",
        "weight": 0,
        "properties": {},
    });
    Ok(Json(json!({"stores": [store]})).into_response())
}

/// How the catalogue of vendors' images is; Glance has no such thing.
pub(super) async fn catalogue(State(state): State<AppState>, Auth(ctx): Auth) -> Answer {
    let all = image::catalogue::list(&state.cloud, &ctx).await?;
    let all = all.into_iter().map(|one| {
        json!({
            "name": one.name,
            "state": one.state,
            "reason": one.reason,
            "image_id": one.image,
            "checked_at": shape::time(one.checked_at),
            "fresh_at": one.fresh_at.map(shape::time),
        })
    });
    Ok(Json(json!({"catalogue": all.collect::<Vec<_>>()})).into_response())
}

/// Of the only store an image's bytes go with the image.
pub(super) async fn delete_from_store(
    State(state): State<AppState>,
    Auth(ctx): Auth,
    Path((store, id)): Path<(String, String)>,
) -> Answer {
    ctx.require("images", "delete")?;
    let image = image::show(&state.cloud, &ctx, parse_id(&id)?).await?;
    if store != STORE || image.size.is_none() {
        return Err(Error::not_found("Image in store", format!("{} ({store})", image.id)).into());
    }
    Err(Error::Forbidden(
        "Cannot delete image data from the only store containing it. Consider deleting the image instead."
            .into(),
    )
    .into())
}

/// What the caller's project has, and may have.
pub(super) async fn usage(State(state): State<AppState>, Auth(ctx): Auth) -> Answer {
    let usage = image::usage(&state.cloud, &ctx).await?;
    let of = |(used, limit): (u64, u64)| json!({"usage": used, "limit": limit});
    Ok(Json(json!({"usage": {
        "image_size_total": of(usage.size_mib),
        "image_stage_total": of(usage.staged_mib),
        "image_count_total": of(usage.images),
        "image_count_uploading": of(usage.uploads),
    }}))
    .into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(body: Value) -> Result<Method, Error> {
        serde_json::from_value::<Import>(body).unwrap().method()
    }

    #[test]
    fn requests_name_a_method_and_perhaps_the_store() {
        let web = |uri: &str| Method::Web(uri.to_owned());
        assert_eq!(
            method(json!({"method": {"name": "glance-direct"}})).unwrap(),
            Method::Staged
        );
        let body = json!({"method": {"name": "web-download", "uri": "http://a/"}, "all_stores": true,
            "all_stores_must_succeed": false});
        assert_eq!(method(body).unwrap(), web("http://a/"));
        let body = json!({"method": {"name": "web-download", "uri": "http://a/"}, "stores": ["local"]});
        assert_eq!(method(body).unwrap(), web("http://a/"));
        for (body, conflict) in [
            (json!({"method": {"name": "web-download"}}), false),
            (json!({"method": {"name": "copy-image"}}), false),
            (
                json!({"method": {"name": "glance-direct"}, "stores": ["local"], "all_stores": true}),
                false,
            ),
            (
                json!({"method": {"name": "glance-direct"}, "stores": ["other"]}),
                true,
            ),
        ] {
            let error = method(body.clone()).unwrap_err();
            assert_eq!(matches!(error, Error::Conflict(_)), conflict, "{body}");
        }
    }
}
