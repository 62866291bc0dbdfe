//! `/servers`.

use axum::extract::{Path, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::IntoResponse;
use cloud::compute::actions::{self, Action};
use cloud::compute::groups;
use cloud::compute::servers::{self, Details, Update};
use cloud::{Context, Error};
use serde_json::{Value, json};

use super::check::Object;
use super::microversion::Microversion;
use super::views::{Links, addresses_view, server_brief, server_view};
use super::{Answer, create as parse_create, empty, list as parse_list, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

async fn list(app: &AppState, ctx: &Context, version: Microversion, pairs: &Pairs, detail: bool) -> Answer {
    let Some(mut filter) = parse_list::filter(version, ctx, pairs)? else {
        // Before 2.38 a status that does not exist is one that no server has.
        return ok(json!({"servers": []}));
    };
    filter.brief = !detail;
    let limit = filter.limit;
    let found = servers::list(&app.cloud, ctx, filter).await?;
    let links = Links::new(app);
    let views: Vec<Value> = found
        .iter()
        .map(|details| {
            if detail {
                server_view(&links, version, ctx, details, None)
            } else {
                server_brief(&links, &details.server)
            }
        })
        .collect();
    let mut body = json!({"servers": views});
    let collection = if detail { "servers/detail" } else { "servers" };
    let last = found
        .last()
        .map(|d| d.server.id.to_string())
        .filter(|_| found.len() == limit);
    links.next(&mut body, "servers_links", collection, pairs, last.as_deref());
    ok(body)
}

pub(super) async fn index(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    list(&app, &ctx, version, &pairs, false).await
}

pub(super) async fn detail(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    list(&app, &ctx, version, &pairs, true).await
}

pub(super) async fn show(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    let details = servers::show(&app.cloud, &ctx, &id).await?;
    let groups = if version >= Microversion::SERVER_GROUPS {
        Some(groups::of_server(&app.cloud, details.server.server_group).await?)
    } else {
        None
    };
    ok(json!({"server": server_view(&Links::new(&app), version, &ctx, &details, groups)}))
}

pub(super) async fn create(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Json(body): Json<Value>,
) -> Answer {
    let request = parse_create::parse(&body, version)?;
    let disk_config = request.create.disk_config.clone();
    let created = servers::create(&app.cloud, &ctx, request.create).await?;
    if request.return_reservation_id {
        let body = json!({"reservation_id": created.reservation_id});
        return Ok((StatusCode::ACCEPTED, Json(body)).into_response());
    }
    let id = created
        .servers
        .first()
        .map(ToString::to_string)
        .unwrap_or_default();
    let links = Links::new(&app);
    let mut groups: Vec<Value> = created
        .security_groups
        .iter()
        .map(|name| json!({"name": name}))
        .collect();
    if groups.is_empty() {
        groups.push(json!({"name": "default"}));
    }
    let location = links.own("servers", &id);
    let body = json!({"server": {
        "id": id,
        "links": [
            {"rel": "self", "href": location},
            {"rel": "bookmark", "href": format!("{}/compute/servers/{id}", app.cloud.config.public_url)},
        ],
        "OS-DCF:diskConfig": disk_config,
        "security_groups": groups,
        "adminPass": request.admin_pass,
    }});
    let mut response = (StatusCode::ACCEPTED, Json(body)).into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

fn parse_update(body: &Value, version: Microversion) -> Result<Update, Error> {
    let server = Object::only(body, "server")?;
    let mut known = vec!["name", "OS-DCF:diskConfig", "accessIPv4", "accessIPv6"];
    if version >= Microversion::DESCRIPTION {
        known.push("description");
    }
    if version >= Microversion::HOSTNAME {
        known.push("hostname");
    }
    server.allow(&known)?;
    Ok(Update {
        name: server.name("name")?,
        description: server.nullable("description", 255)?.map(|d| d.map(str::to_owned)),
        hostname: parse_create::hostname(&server, version)?,
        access_ip_v4: parse_create::access_ip(&server, "accessIPv4")?,
        access_ip_v6: parse_create::access_ip(&server, "accessIPv6")?,
        disk_config: parse_create::disk_config(&server)?,
    })
}

/// The server as the answers to changes have it.
pub(super) fn changed_view(
    links: &Links,
    version: Microversion,
    ctx: &Context,
    details: &Details,
    groups: Vec<uuid::Uuid>,
) -> Value {
    let mut view = server_view(links, version, ctx, details, Some(groups));
    if version < Microversion::STRICT_QUERIES
        && let Some(fields) = view.as_object_mut()
    {
        if !details.addresses.is_empty() {
            fields.insert("addresses".into(), addresses_view(&details.addresses, false));
        }
        // Before 2.75 the answer has the attributes of Nova's first days alone.
        fields.retain(|key, _| {
            let extended = key.contains(':') && key != "OS-DCF:diskConfig";
            !extended
                && ![
                    "config_drive",
                    "key_name",
                    "security_groups",
                    "server_groups",
                    "host_status",
                ]
                .contains(&key.as_str())
        });
    }
    view
}

pub(super) async fn update(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    let details = servers::update(&app.cloud, &ctx, &id, parse_update(&body, version)?).await?;
    let groups = groups::of_server(&app.cloud, details.server.server_group).await?;
    let view = changed_view(&Links::new(&app), version, &ctx, &details, groups);
    ok(json!({"server": view}))
}

pub(super) async fn delete(State(app): State<AppState>, Auth(ctx): Auth, Path(id): Path<String>) -> Answer {
    actions::act(&app.cloud, &ctx, &id, Action::Delete).await?;
    empty(StatusCode::NO_CONTENT)
}
