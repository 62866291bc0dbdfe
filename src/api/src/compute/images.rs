//! `/images`: up to 2.35, a window on the image service.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use cloud::compute::Micros;
use cloud::image::update::{self, Step};
use cloud::image::{self, Image, Status};
use cloud::{Context, Error};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::check::{Object, metadata_of};
use super::microversion::Microversion;
use super::views::Links;
use super::{Answer, Failure, empty, gone, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};
use crate::fault::{Fault, Service};
use crate::page::Page;

fn there(version: Microversion, metadata: bool) -> Result<(), Failure> {
    let last = if metadata {
        Microversion::NO_IMAGE_META
    } else {
        Microversion::NO_NETWORK_PROXIES
    };
    if version >= last { Err(gone()) } else { Ok(()) }
}

fn status(image: &Image) -> (&'static str, u8) {
    match image.status {
        Status::Active | Status::Deactivated => ("ACTIVE", 100),
        Status::Queued | Status::Saving | Status::Uploading | Status::Importing => ("SAVING", 50),
        Status::PendingDelete => ("DELETED", 0),
    }
}

fn metadata_view(image: &Image) -> Value {
    json!(image.properties)
}

fn view(links: &Links, image: &Image, detail: bool) -> Value {
    let id = image.id.to_string();
    let mut view = json!({
        "id": id,
        "name": image.name.as_deref().unwrap_or_default(),
        "links": links.of_image(&id),
    });
    if !detail {
        return view;
    }
    let (status, progress) = status(image);
    view["minRam"] = json!(image.min_ram);
    view["minDisk"] = json!(image.min_disk);
    view["metadata"] = metadata_view(image);
    view["created"] = json!(Micros(image.created_at).iso());
    view["updated"] = json!(Micros(image.updated_at).iso());
    view["status"] = json!(status);
    view["progress"] = json!(progress);
    view["OS-EXT-IMG-SIZE:size"] = json!(image.size.unwrap_or(0));
    if let Some(server) = image.properties.get("instance_uuid") {
        view["server"] = json!({"id": server, "links": links.both("servers", server)});
    }
    view
}

/// The image of an id in a path.
async fn find(app: &AppState, ctx: &Context, id: &str) -> Result<Image, Failure> {
    let missing = || {
        Failure(Fault::http(
            Service::Compute,
            StatusCode::NOT_FOUND,
            "Image not found.",
        ))
    };
    let id: Uuid = id.parse().map_err(|_| missing())?;
    match image::show(&app.cloud, ctx, id).await {
        Ok(image) => Ok(image),
        Err(error) if error.kind() == Some(cloud::error::Kind::NotFound) => Err(missing()),
        Err(error) => Err(error.into()),
    }
}

/// The image is one that the filters of a list let through.
fn lets(pairs: &Pairs, since: Option<Micros>, image: &Image) -> Result<bool, Error> {
    let is = |key: &str, value: &str| pairs.get(key).is_none_or(|wanted| wanted == value);
    let kind = image.properties.get("image_type").map_or("base", String::as_str);
    let server = image.properties.get("instance_uuid").map_or("", String::as_str);
    let least = |key: &str, value: u32| -> Result<bool, Error> {
        Ok(pairs.number(key)?.is_none_or(|wanted| wanted == u64::from(value)))
    };
    Ok(is("name", image.name.as_deref().unwrap_or_default())
        && pairs
            .get("status")
            .is_none_or(|wanted| wanted.eq_ignore_ascii_case(status(image).0))
        && pairs
            .get("type")
            .is_none_or(|wanted| wanted.eq_ignore_ascii_case(kind))
        && pairs
            .get("server")
            .is_none_or(|wanted| !server.is_empty() && wanted.ends_with(server))
        && least("minDisk", image.min_disk)?
        && least("minRam", image.min_ram)?
        && since.is_none_or(|since| image.updated_at >= since.0))
}

async fn list(app: &AppState, ctx: &Context, pairs: &Pairs, detail: bool) -> Answer {
    let since = match pairs.get("changes-since") {
        None => None,
        Some(text) => {
            Some(Micros::parse(text).ok_or_else(|| Error::BadRequest("Invalid changes-since value".into()))?)
        }
    };
    let all = image::list::list(&app.cloud, ctx, image::list::Filter::default(), Vec::new()).await?;
    let mut found = Vec::new();
    for image in all {
        if lets(pairs, since, &image)? {
            found.push(image);
        }
    }
    let page = Page::of(pairs, super::MAX_LIMIT)?;
    let (found, next) = page.cut(found, |image: &Image| image.id.to_string())?;
    let links = Links::new(app);
    let views: Vec<Value> = found.iter().map(|image| view(&links, image, detail)).collect();
    let mut body = json!({"images": views});
    let collection = if detail { "images/detail" } else { "images" };
    links.next(&mut body, "images_links", collection, pairs, next.as_deref());
    ok(body)
}

pub(super) async fn index(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    there(version, false)?;
    list(&app, &ctx, &pairs, false).await
}

pub(super) async fn detail(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    there(version, false)?;
    list(&app, &ctx, &pairs, true).await
}

pub(super) async fn show(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    there(version, false)?;
    let image = find(&app, &ctx, &id).await?;
    ok(json!({"image": view(&Links::new(&app), &image, true)}))
}

pub(super) async fn delete(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    there(version, false)?;
    let image = find(&app, &ctx, &id).await?;
    update::delete(&app.cloud, &ctx, image.id).await?;
    empty(StatusCode::NO_CONTENT)
}

pub(super) async fn metadata(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    there(version, true)?;
    ok(json!({"metadata": metadata_view(&find(&app, &ctx, &id).await?)}))
}

/// Sets properties, and removes those that `keep` does not let stay.
async fn change(
    app: &AppState,
    ctx: &Context,
    id: &str,
    new: std::collections::BTreeMap<String, String>,
    keep: impl Fn(&str) -> bool,
) -> Result<Image, Failure> {
    let image = find(app, ctx, id).await?;
    let gone = image
        .properties
        .keys()
        .filter(|key| !new.contains_key(*key) && !keep(key))
        .map(|key| Step::Remove(key.clone()));
    let set = new
        .iter()
        .map(|(key, value)| Step::Add(key.clone(), json!(value)));
    let steps = gone.chain(set).collect();
    Ok(update::update(&app.cloud, ctx, image.id, steps).await?)
}

fn asked(body: &Value) -> Result<std::collections::BTreeMap<String, String>, Error> {
    let request = Object::body(body)?;
    request.allow(&["metadata"])?;
    metadata_of("metadata", request.required("metadata")?)
}

pub(super) async fn merge_metadata(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    there(version, true)?;
    let image = change(&app, &ctx, &id, asked(&body)?, |_| true).await?;
    ok(json!({"metadata": metadata_view(&image)}))
}

pub(super) async fn replace_metadata(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    there(version, true)?;
    let image = change(&app, &ctx, &id, asked(&body)?, |_| false).await?;
    ok(json!({"metadata": metadata_view(&image)}))
}

fn no_item() -> Failure {
    Failure(Fault::http(
        Service::Compute,
        StatusCode::NOT_FOUND,
        "Metadata item was not found",
    ))
}

fn item(key: &str, value: &str) -> Value {
    let mut pair = Map::new();
    pair.insert(key.to_owned(), json!(value));
    json!({"meta": pair})
}

pub(super) async fn metadata_item(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path((id, key)): Path<(String, String)>,
) -> Answer {
    there(version, true)?;
    let image = find(&app, &ctx, &id).await?;
    let value = image.properties.get(&key).ok_or_else(no_item)?;
    ok(item(&key, value))
}

pub(super) async fn set_metadata_item(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path((id, key)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Answer {
    there(version, true)?;
    let request = Object::body(&body)?;
    request.allow(&["meta"])?;
    let pairs = metadata_of("meta", request.required("meta")?)?;
    if pairs.len() != 1 || !pairs.contains_key(&key) {
        return Err(Error::BadRequest("Request body and URI mismatch".into()).into());
    }
    let image = change(&app, &ctx, &id, pairs, |_| true).await?;
    ok(item(&key, image.properties.get(&key).map_or("", String::as_str)))
}

pub(super) async fn remove_metadata_item(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path((id, key)): Path<(String, String)>,
) -> Answer {
    there(version, true)?;
    if !find(&app, &ctx, &id).await?.properties.contains_key(&key) {
        return Err(no_item());
    }
    change(&app, &ctx, &id, Default::default(), |other| other != key).await?;
    empty(StatusCode::NO_CONTENT)
}
