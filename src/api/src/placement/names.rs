//! `/resource_classes` and `/traits`.

use axum::extract::{Path, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use cloud::placement::names::{self, TraitFilter};
use serde_json::{Value, json};

use super::microversion::Microversion;
use super::{Answer, Failure, bad, empty, gone, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

fn class_view(name: &str) -> Value {
    json!({"name": name, "links": [{"rel": "self", "href": format!("/placement/resource_classes/{name}")}]})
}

fn since(version: Microversion, from: Microversion) -> Result<(), Failure> {
    if version < from { Err(gone()) } else { Ok(()) }
}

fn located(mut response: Response, path: &str) -> Answer {
    if let Ok(location) = HeaderValue::from_str(path) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

pub(super) async fn classes(State(app): State<AppState>, Auth(ctx): Auth, version: Microversion) -> Answer {
    since(version, Microversion::CUSTOM_CLASSES)?;
    let all = names::classes(&app.cloud, &ctx).await?;
    let views: Vec<Value> = all.iter().map(|name| class_view(name)).collect();
    ok(version, json!({"resource_classes": views}))
}

pub(super) async fn class(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(name): Path<String>,
) -> Answer {
    since(version, Microversion::CUSTOM_CLASSES)?;
    names::class(&app.cloud, &ctx, &name).await?;
    ok(version, class_view(&name))
}

pub(super) async fn create_class(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Json(body): Json<Value>,
) -> Answer {
    since(version, Microversion::CUSTOM_CLASSES)?;
    let name = match (body["name"].as_str(), body.as_object().map(|o| o.len())) {
        (Some(name), Some(1)) => name.to_owned(),
        _ => return Err(bad("JSON does not validate: 'name' is a required property")),
    };
    if !names::create_class(&app.cloud, &ctx, &name).await? {
        return Err(
            cloud::Error::Conflict(format!("Conflicting resource class already exists: {name}")).into(),
        );
    }
    located(
        empty(version, StatusCode::CREATED)?,
        &format!("/placement/resource_classes/{name}"),
    )
}

pub(super) async fn put_class(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(name): Path<String>,
) -> Answer {
    // Before 1.7 a class was renamed so, which nobody needs.
    since(version, Microversion::PUT_CLASS)?;
    let new = names::create_class(&app.cloud, &ctx, &name).await?;
    let status = if new {
        StatusCode::CREATED
    } else {
        StatusCode::NO_CONTENT
    };
    located(
        empty(version, status)?,
        &format!("/placement/resource_classes/{name}"),
    )
}

pub(super) async fn delete_class(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(name): Path<String>,
) -> Answer {
    since(version, Microversion::CUSTOM_CLASSES)?;
    names::delete_class(&app.cloud, &ctx, &name).await?;
    empty(version, StatusCode::NO_CONTENT)
}

pub(super) async fn traits(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    since(version, Microversion::TRAITS)?;
    let mut filter = TraitFilter::default();
    for (key, value) in &pairs.0 {
        match (key.as_str(), value.split_once(':')) {
            ("name", Some(("in", list))) => {
                filter.names = Some(list.split(',').map(str::to_owned).collect());
            }
            ("name", Some(("startswith", prefix))) => filter.prefix = Some(prefix.to_owned()),
            ("associated", _) => match value.to_ascii_lowercase().as_str() {
                "true" | "1" => filter.associated = Some(true),
                "false" | "0" => filter.associated = Some(false),
                _ => {
                    return Err(bad(
                        "The query parameter \"associated\" only accepts \"true\" or \"false\"",
                    ));
                }
            },
            _ => {
                return Err(bad(
                    "Invalid query string parameters: name=in:… or name=startswith:…, associated",
                ));
            }
        }
    }
    ok(
        version,
        json!({"traits": names::traits(&app.cloud, &ctx, filter).await?}),
    )
}

pub(super) async fn one_trait(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(name): Path<String>,
) -> Answer {
    since(version, Microversion::TRAITS)?;
    names::a_trait(&app.cloud, &ctx, &name).await?;
    empty(version, StatusCode::NO_CONTENT)
}

pub(super) async fn put_trait(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(name): Path<String>,
) -> Answer {
    since(version, Microversion::TRAITS)?;
    let new = names::create_trait(&app.cloud, &ctx, &name).await?;
    let status = if new {
        StatusCode::CREATED
    } else {
        StatusCode::NO_CONTENT
    };
    located(empty(version, status)?, &format!("/placement/traits/{name}"))
}

pub(super) async fn delete_trait(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(name): Path<String>,
) -> Answer {
    since(version, Microversion::TRAITS)?;
    names::delete_trait(&app.cloud, &ctx, &name).await?;
    empty(version, StatusCode::NO_CONTENT)
}
