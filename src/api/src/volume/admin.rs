//! Messages, zones, services, hosts and pools.

use axum::extract::State;
use axum::http::StatusCode;
use cloud::Error;
use cloud::compute::{Micros, now};
use cloud::volume::messages::{self, Message};
use cloud::volume::{pool, services};
use serde_json::{Value, json};

use super::listing::{self, Item, Key, Known};
use super::microversion::Microversion as V;
use super::volumes::links;
use super::{Answer, Call, empty, ok, since};
use crate::AppState;
use crate::body::{Json, Pairs};
use crate::compute::check::Object;

fn message_view(call: &Call, message: &Message) -> Value {
    let until = Micros(message.created_at.0 + messages::KEPT_SECONDS * 1_000_000);
    json!({
        "id": message.id,
        "event_id": message.event_id(),
        "user_message": message.text,
        "message_level": "ERROR",
        "created_at": message.created_at.naive(),
        "guaranteed_until": until.naive(),
        "request_id": message.request_id,
        "links": links(call, &format!("messages/{}", message.id)),
        "resource_type": message.resource_type,
        "resource_uuid": message.resource_id,
    })
}

impl Known for Message {
    const FILTERS: &'static [&'static str] = &[
        "event_id",
        "resource_type",
        "resource_uuid",
        "request_id",
        "message_level",
    ];
    const KEYS: &'static [&'static str] = &[
        "id",
        "event_id",
        "resource_type",
        "resource_uuid",
        "request_id",
        "message_level",
        "created_at",
    ];
}

impl Item for Message {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn key(&self, name: &str) -> Option<Key> {
        Some(match name {
            "id" => self.id.to_string().as_str().into(),
            "event_id" => self.event_id().as_str().into(),
            "resource_type" => self.resource_type.as_str().into(),
            "resource_uuid" => self.resource_id.to_string().as_str().into(),
            "request_id" => self.request_id.as_str().into(),
            "message_level" => "ERROR".into(),
            "created_at" => self.created_at.into(),
            _ => return None,
        })
    }

    fn fits(&self, filter: &str, value: &str) -> Option<bool> {
        Some(self.key(filter)? == Key::Text(value.to_owned()))
    }
}

pub(super) async fn messages(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    since(call.version, V::MESSAGES)?;
    let found = messages::list(&app.cloud, &call.ctx).await?;
    let pairs = if call.version < V::MESSAGE_PAGES {
        Pairs::default()
    } else {
        pairs
    };
    let page = listing::page(&call, &pairs, found)?;
    let views = page.items.iter().map(|item| message_view(&call, item)).collect();
    ok(listing::document(
        &call, &pairs, "messages", "messages", views, page.next, page.count,
    )?)
}

pub(super) async fn message(State(app): State<AppState>, call: Call) -> Answer {
    since(call.version, V::MESSAGES)?;
    let found = messages::show(&app.cloud, &call.ctx, call.id()).await?;
    ok(json!({"message": message_view(&call, &found)}))
}

pub(super) async fn delete_message(State(app): State<AppState>, call: Call) -> Answer {
    since(call.version, V::MESSAGES)?;
    messages::delete(&app.cloud, &call.ctx, call.id()).await?;
    empty(StatusCode::NO_CONTENT)
}

pub(super) async fn zones(State(app): State<AppState>, _: Call) -> Answer {
    let zone = &app.cloud.config.availability_zone;
    ok(json!({"availabilityZoneInfo": [{"zoneName": zone, "zoneState": {"available": true}}]}))
}

pub(super) async fn services(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    let found = services::list(&app.cloud, &call.ctx).await?;
    let views: Vec<Value> = found
        .iter()
        .filter(|service| {
            let host = pairs
                .get("host")
                .is_none_or(|host| host == service.host || service.host.split('@').next() == Some(host));
            let binary = pairs.get("binary").or_else(|| pairs.get("service"));
            host && binary.is_none_or(|binary| binary == service.binary)
        })
        .map(|service| {
            let mut body = json!({
                "binary": service.binary,
                "host": service.host,
                "zone": service.zone,
                "status": if service.disabled.is_some() { "disabled" } else { "enabled" },
                "state": "up",
                "updated_at": service.updated_at.naive(),
                "disabled_reason": service.disabled.as_deref().filter(|reason| !reason.is_empty()),
            });
            if service.binary == "cinder-volume" {
                body["replication_status"] = "disabled".into();
                body["active_backend_id"] = Value::Null;
                body["frozen"] = false.into();
                if call.version >= V::BACKEND_STATE {
                    body["backend_state"] = "up".into();
                }
            }
            body
        })
        .collect();
    ok(json!({"services": views}))
}

/// `PUT /os-services/enable`, `disable` and `disable-log-reason`.
pub(super) async fn update_service(
    State(app): State<AppState>,
    call: Call,
    Json(body): Json<Value>,
) -> Answer {
    call.ctx.require("volume_services", "update")?;
    let action = call.id();
    if ["freeze", "thaw", "failover_host"].contains(&action) {
        return Err(Error::BadRequest(
            "Invalid input received: the pools of this cloud cannot be frozen and have no replicas to fail over to."
                .into(),
        )
        .into());
    }
    if !["enable", "disable", "disable-log-reason"].contains(&action) {
        return Err(super::gone());
    }
    let object = Object::body(&body)?;
    object.allow(&["host", "binary", "service", "disabled_reason"])?;
    object.required("host")?;
    let host = object.string("host", 1, 255)?.unwrap_or_default();
    let binary = match object.string("binary", 1, 255)? {
        Some(binary) => Some(binary),
        None => object.string("service", 1, 255)?,
    };
    let binary = binary.ok_or_else(|| {
        Error::BadRequest("Invalid input for field/attribute body. 'binary' is a required property".into())
    })?;
    let reason = object
        .nullable("disabled_reason", 255)?
        .flatten()
        .map(|text| text.trim().to_owned());
    if action == "disable-log-reason" && reason.as_deref().is_none_or(str::is_empty) {
        return Err(Error::BadRequest(
            "Invalid input for field/attribute disabled_reason: it is needed.".into(),
        )
        .into());
    }
    let disabled = match action {
        "enable" => None,
        "disable" => Some(None),
        _ => Some(reason.clone()),
    };
    let is_disabled = disabled.is_some();
    services::set_disabled(&app.cloud, &call.ctx, host, binary, disabled).await?;
    let mut answer = json!({
        "host": host,
        "service": object.get("service").and_then(Value::as_str).unwrap_or_default(),
        "binary": binary,
        "disabled": is_disabled,
        "status": if is_disabled { "disabled" } else { "enabled" },
    });
    if action != "disable" {
        answer["disabled_reason"] = json!(reason);
    }
    ok(answer)
}

pub(super) async fn hosts(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    call.ctx.require("volume_hosts", "list")?;
    let found = services::list(&app.cloud, &call.ctx).await?;
    let zone = pairs.get("zone");
    let views: Vec<Value> = found
        .iter()
        .filter(|service| zone.is_none_or(|zone| zone == service.zone))
        .map(|service| {
            json!({
                "host_name": service.host,
                "service": service.binary,
                "zone": service.zone,
                "service-status": "available",
                "service-state": if service.disabled.is_some() { "disabled" } else { "enabled" },
                "last-update": now().naive(),
            })
        })
        .collect();
    ok(json!({"hosts": views}))
}

pub(super) async fn host(State(app): State<AppState>, call: Call) -> Answer {
    let found = services::host(&app.cloud, &call.ctx, call.id()).await?;
    let views: Vec<Value> = found
        .iter()
        .map(|of| {
            json!({"resource": {
                "host": call.id(),
                "project": of.project_id,
                "volume_count": of.volumes.to_string(),
                "total_volume_gb": of.volume_gb.to_string(),
                "snapshot_count": of.snapshots.to_string(),
                "total_snapshot_gb": of.snapshot_gb.to_string(),
            }})
        })
        .collect();
    ok(json!({"host": views}))
}

pub(super) async fn pools(State(app): State<AppState>, call: Call, pairs: Pairs) -> Answer {
    let found = pool::list(&app.cloud, &call.ctx).await?;
    let detail = match pairs.get("detail") {
        None => false,
        Some(_) => pairs.flag("detail")?.unwrap_or(false),
    };
    let views: Vec<Value> = found
        .iter()
        .filter(|pool| pairs.get("name").is_none_or(|name| name == pool.name))
        .map(|pool| {
            if !detail {
                return json!({"name": pool.name});
            }
            json!({"name": pool.name, "capabilities": {
                "updated": now().naive(),
                "timestamp": now().naive(),
                "QoS_support": false,
                "total_capacity_gb": pool.total_gb,
                "free_capacity_gb": pool.free_gb,
                "allocated_capacity_gb": pool.allocated_gb,
                "provisioned_capacity_gb": pool.allocated_gb,
                "max_over_subscription_ratio": "20.0",
                "thin_provisioning_support": true,
                "thick_provisioning_support": false,
                "multiattach": false,
                "reserved_percentage": 0,
                "volume_backend_name": pool::BACKEND,
                "pool_name": pool::BACKEND,
                "driver_version": env!("CARGO_PKG_VERSION"),
                "storage_protocol": pool::PROTOCOL,
                "vendor_name": pool::VENDOR,
            }})
        })
        .collect();
    ok(json!({"pools": views}))
}

pub(super) async fn capabilities(State(app): State<AppState>, call: Call) -> Answer {
    let found = pool::list(&app.cloud, &call.ctx).await?;
    let wanted = call.id();
    let known = found.iter().any(|pool| {
        pool.name == wanted
            || pool.name.split('#').next() == Some(wanted)
            || pool.name.split('@').next() == Some(wanted)
    });
    if !known {
        return Err(Error::not_found("Host", wanted.chars().take(64).collect::<String>()).into());
    }
    ok(json!({
        "namespace": format!("OS::Storage::Capabilities::{wanted}"),
        "vendor_name": pool::VENDOR,
        "volume_backend_name": pool::BACKEND,
        "pool_name": pool::BACKEND,
        "driver_version": env!("CARGO_PKG_VERSION"),
        "storage_protocol": pool::PROTOCOL,
        "display_name": null,
        "description": null,
        "visibility": "public",
        "replication_targets": [],
        "properties": {
            "thin_provisioning": {
                "title": "Thin Provisioning",
                "description": "Volumes take the space that was written to.",
                "type": "boolean",
            },
        },
    }))
}

/// What lists can be looked through by (3.33).
pub(super) async fn resource_filters(call: Call, pairs: Pairs) -> Answer {
    since(call.version, V::RESOURCE_FILTER_LIST)?;
    let all: [(&str, &[&str]); 6] = [
        ("volume", <cloud::volume::volumes::Details as Known>::FILTERS),
        ("snapshot", <cloud::volume::snapshots::Snapshot as Known>::FILTERS),
        ("backup", <cloud::volume::backups::Backup as Known>::FILTERS),
        (
            "attachment",
            <cloud::volume::attachments::Attachment as Known>::FILTERS,
        ),
        ("message", <Message as Known>::FILTERS),
        ("pool", &["name"]),
    ];
    let views: Vec<Value> = all
        .iter()
        .filter(|(resource, _)| pairs.get("resource").is_none_or(|wanted| wanted == *resource))
        .map(|(resource, filters)| json!({"resource": resource, "filters": filters}))
        .collect();
    ok(json!({"resource_filters": views}))
}
