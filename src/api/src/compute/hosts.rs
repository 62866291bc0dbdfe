//! `/os-hypervisors`, `/os-services`, `/os-availability-zone`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use cloud::Error;
use cloud::compute::hosts::{self, Hypervisor};
use cloud::compute::migrations::{self, Filter, Migration};
use cloud::compute::{Micros, now};
use serde_json::{Map, Value, json};

use super::microversion::Microversion;
use super::{Answer, Failure, gone, known_queries, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::Pairs;
use crate::fault::{Fault, Service};

pub(super) async fn zones(State(app): State<AppState>, Auth(ctx): Auth) -> Answer {
    let zones = hosts::zones(&app.cloud, &ctx, false).await?;
    let list: Vec<Value> = zones
        .iter()
        .map(|zone| json!({"zoneName": zone, "zoneState": {"available": true}, "hosts": null}))
        .collect();
    ok(json!({"availabilityZoneInfo": list}))
}

pub(super) async fn zones_detail(State(app): State<AppState>, Auth(ctx): Auth) -> Answer {
    hosts::zones(&app.cloud, &ctx, true).await?;
    let mut zones: Map<String, Value> = Map::new();
    for service in hosts::services(&app.cloud, &ctx).await? {
        let zone = zones.entry(service.zone).or_insert_with(|| json!({}));
        zone[service.host][service.binary] =
            json!({"available": true, "active": true, "updated_at": now().naive()});
    }
    let list: Vec<Value> = zones
        .into_iter()
        .map(|(zone, hosts)| json!({"zoneName": zone, "zoneState": {"available": true}, "hosts": hosts}))
        .collect();
    ok(json!({"availabilityZoneInfo": list}))
}

/// The id that this version shows: a UUID, or before 2.53 a number.
fn shown_id(version: Microversion, id: uuid::Uuid, number: usize) -> Value {
    if version >= Microversion::UUIDS {
        json!(id)
    } else {
        json!(number)
    }
}

fn view(version: Microversion, number: usize, node: &Hypervisor, detail: bool, servers: bool) -> Value {
    let mut view = json!({
        "id": shown_id(version, node.id, number),
        "hypervisor_hostname": node.hostname,
        "state": "up",
        "status": "enabled",
    });
    if detail {
        view["hypervisor_type"] = json!(if node.engine == "kvm" { "kvm" } else { "QEMU" });
        view["hypervisor_version"] = json!(1_000_000);
        view["host_ip"] = json!("127.0.0.1");
        view["service"] = json!({
            "id": shown_id(version, node.service_id, number),
            "host": node.hostname,
            "disabled_reason": null,
        });
        if version < Microversion::HYPERVISOR_NO_USE {
            for (key, value) in use_of(std::slice::from_ref(node)) {
                view[key] = value;
            }
            view["cpu_info"] = if version >= Microversion::CPU_INFO_OBJECT {
                json!({})
            } else {
                json!("{}")
            };
        } else {
            view["uptime"] = Value::Null;
        }
    }
    if servers && (!node.servers.is_empty() || version >= Microversion::STRICT_QUERIES) {
        let list: Vec<Value> = node
            .servers
            .iter()
            .map(|(id, name)| json!({"uuid": id, "name": name}))
            .collect();
        view["servers"] = json!(list);
    }
    view
}

fn use_of(nodes: &[Hypervisor]) -> Map<String, Value> {
    let sum = |f: &dyn Fn(&Hypervisor) -> u64| json!(nodes.iter().map(f).sum::<u64>());
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    put("vcpus", sum(&|n| n.vcpus.into()));
    put("vcpus_used", sum(&|n| n.vcpus_used));
    put("memory_mb", sum(&|n| n.memory_mib));
    put("memory_mb_used", sum(&|n| n.memory_mib_used));
    put(
        "free_ram_mb",
        sum(&|n| n.memory_mib.saturating_sub(n.memory_mib_used)),
    );
    put("local_gb", sum(&|n| n.local_gib));
    put("local_gb_used", sum(&|n| n.local_gib.saturating_sub(n.free_gib)));
    put("free_disk_gb", sum(&|n| n.free_gib));
    put("disk_available_least", sum(&|n| n.free_gib));
    put("running_vms", sum(&|n| n.servers.len() as u64));
    put("current_workload", json!(0));
    map
}

async fn list(
    app: &AppState,
    ctx: &cloud::Context,
    version: Microversion,
    pairs: &Pairs,
    detail: bool,
) -> Answer {
    known_queries(
        version,
        pairs,
        &["limit", "marker", "hypervisor_hostname_pattern", "with_servers"],
    )?;
    let nodes = hosts::hypervisors(&app.cloud, ctx).await?;
    let routed = version >= Microversion::UUIDS;
    let servers = routed && pairs.flag("with_servers")?.unwrap_or(false);
    let pattern = pairs.get("hypervisor_hostname_pattern").filter(|_| routed);
    let mut views: Vec<(String, Value)> = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        if pattern.is_none_or(|pattern| node.hostname.contains(pattern)) {
            let id = if routed {
                node.id.to_string()
            } else {
                (index + 1).to_string()
            };
            views.push((id, view(version, index + 1, node, detail, servers)));
        }
    }
    if let (Some(pattern), true) = (pattern, views.is_empty()) {
        return Err(no_match(pattern));
    }
    if version >= Microversion::HYPERVISOR_PAGES && pattern.is_none() {
        let page = crate::page::Page::of(pairs, super::MAX_LIMIT)?;
        views = page.cut(views, |(id, _)| id.clone())?.0;
    }
    let views: Vec<Value> = views.into_iter().map(|(_, view)| view).collect();
    ok(json!({"hypervisors": views}))
}

fn no_match(pattern: &str) -> Failure {
    let message = format!("No hypervisor matching '{pattern}' could be found.");
    Failure(Fault::http(Service::Compute, StatusCode::NOT_FOUND, message))
}

pub(super) async fn hypervisors(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    list(&app, &ctx, version, &pairs, false).await
}

pub(super) async fn hypervisors_detail(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    list(&app, &ctx, version, &pairs, true).await
}

pub(super) async fn hypervisor(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Answer {
    let routed = version >= Microversion::UUIDS;
    if routed && id.parse::<uuid::Uuid>().is_err() {
        ctx.require("hypervisors", "list")?;
        return Err(Error::BadRequest(format!("Invalid uuid {id}")).into());
    }
    let servers = routed && pairs.flag("with_servers")?.unwrap_or(false);
    let node = hosts::hypervisor(&app.cloud, &ctx, &id).await?;
    ok(json!({"hypervisor": view(version, 1, &node, true, servers)}))
}

pub(super) async fn statistics(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
) -> Answer {
    let nodes = hosts::hypervisors(&app.cloud, &ctx).await?;
    if version >= Microversion::HYPERVISOR_NO_USE {
        return Err(gone());
    }
    let mut statistics = use_of(&nodes);
    statistics.insert("count".into(), json!(nodes.len()));
    ok(json!({"hypervisor_statistics": statistics}))
}

pub(super) async fn uptime(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    let node = hosts::hypervisor(&app.cloud, &ctx, &id).await?;
    if version >= Microversion::HYPERVISOR_NO_USE {
        return Err(gone());
    }
    let mut view = view(version, 1, &node, false, false);
    view["uptime"] = Value::Null;
    ok(json!({"hypervisor": view}))
}

async fn matching(
    app: &AppState,
    ctx: &cloud::Context,
    version: Microversion,
    pattern: &str,
    servers: bool,
) -> Answer {
    let nodes = hosts::hypervisors(&app.cloud, ctx).await?;
    if version >= Microversion::UUIDS {
        return Err(gone());
    }
    let views: Vec<Value> = nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| node.hostname.contains(pattern))
        .map(|(index, node)| view(version, index + 1, node, false, servers))
        .collect();
    if views.is_empty() {
        return Err(no_match(pattern));
    }
    ok(json!({"hypervisors": views}))
}

pub(super) async fn search(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(pattern): Path<String>,
) -> Answer {
    matching(&app, &ctx, version, &pattern, false).await
}

pub(super) async fn search_servers(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(pattern): Path<String>,
) -> Answer {
    matching(&app, &ctx, version, &pattern, true).await
}

pub(super) async fn services(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    known_queries(version, &pairs, &["host", "binary"])?;
    let all = hosts::services(&app.cloud, &ctx).await?;
    let views: Vec<Value> = all
        .iter()
        .enumerate()
        .filter(|(_, s)| pairs.get("host").is_none_or(|host| host == s.host))
        .filter(|(_, s)| pairs.get("binary").is_none_or(|binary| binary == s.binary))
        .map(|(index, service)| {
            let mut view = json!({
                "id": shown_id(version, service.id, index + 1),
                "binary": service.binary,
                "host": service.host,
                "zone": service.zone,
                "status": "enabled",
                "state": "up",
                "disabled_reason": null,
                "updated_at": now().naive(),
            });
            if version >= Microversion::FORCED_DOWN {
                view["forced_down"] = json!(false);
            }
            view
        })
        .collect();
    ok(json!({"services": views}))
}

/// Servers stay on their node; their resizes are what Nova shows here, too.
pub(super) async fn migrations(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    let text = |key: &str| pairs.get(key).map(str::to_owned);
    let mut filter = Filter {
        host: text("host").or_else(|| text("source_compute")),
        status: text("status"),
        ..Filter::default()
    };
    if let Some(id) = pairs.get("instance_uuid") {
        let Ok(id) = id.parse() else {
            return ok(json!({"migrations": []}));
        };
        filter.server = Some(id);
    }
    let paged = version >= Microversion::MIGRATION_PAGES;
    let time = |key: &str| match pairs.get(key) {
        None => Ok(None),
        Some(text) => Micros::parse(text).map(Some).ok_or_else(|| {
            Error::BadRequest(format!(
                "Invalid input for query parameters {key}: not a 'date-time'"
            ))
        }),
    };
    if paged {
        filter.changes_since = time("changes-since")?;
        if version >= Microversion::CHANGES_BEFORE {
            filter.changes_before = time("changes-before")?;
        }
    }
    if version >= Microversion::MIGRATION_OWNERS {
        filter.project_id = text("project_id");
        filter.user_id = text("user_id");
    }
    let mut found = migrations::list(&app.cloud, &ctx, filter).await?;
    if pairs.get("migration_type").is_some_and(|kind| kind != "resize") {
        found.clear();
    }
    let mut next = None;
    if paged {
        let page = crate::page::Page::of(&pairs, super::MAX_LIMIT)?;
        (found, next) = page.cut(found, |migration: &Migration| migration.id.to_string())?;
    }
    let views: Vec<Value> = found.iter().map(|m| migration_view(version, m)).collect();
    let mut body = json!({"migrations": views});
    if paged {
        let links = super::views::Links::new(&app);
        links.next(
            &mut body,
            "migrations_links",
            "os-migrations",
            &pairs,
            next.as_deref(),
        );
    }
    ok(body)
}

fn migration_view(version: Microversion, migration: &Migration) -> Value {
    let mut view = json!({
        "id": migration.number,
        "instance_uuid": migration.server,
        "status": migration.status,
        "source_node": migration.host,
        "source_compute": migration.host,
        "dest_node": migration.host,
        "dest_compute": migration.host,
        "dest_host": "127.0.0.1",
        // Numbers of flavors, which have none here.
        "old_instance_type_id": null,
        "new_instance_type_id": null,
        "created_at": migration.created_at.naive(),
        "updated_at": migration.updated_at.naive(),
    });
    if version >= Microversion::SERVER_MIGRATIONS {
        view["migration_type"] = json!("resize");
    }
    if version >= Microversion::MIGRATION_PAGES {
        view["uuid"] = json!(migration.id);
    }
    if version >= Microversion::MIGRATION_OWNERS {
        view["user_id"] = json!(migration.user_id);
        view["project_id"] = json!(migration.project_id);
    }
    view
}
