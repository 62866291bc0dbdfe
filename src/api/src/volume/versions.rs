//! Version documents and extensions.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::microversion::{MAX, MIN};
use super::{Answer, Call, gone, ok};
use crate::AppState;
use crate::body::Json;

fn document(app: &AppState) -> Value {
    json!({"versions": [{
        "id": "v3.0",
        "status": "CURRENT",
        "version": MAX.text(),
        "min_version": MIN.text(),
        "updated": "2023-08-31T00:00:00Z",
        "links": [
            {"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/"},
            {"rel": "self", "href": format!("{}/volume/v3/", app.cloud.config.public_url)},
        ],
        "media-types": [{
            "base": "application/json",
            "type": "application/vnd.openstack.volume+json;version=3",
        }],
    }]})
}

/// `GET /volume/`.
pub(super) async fn all(State(app): State<AppState>) -> Response {
    (StatusCode::MULTIPLE_CHOICES, Json(document(&app))).into_response()
}

/// `GET /volume/v3/`.
pub(super) async fn one(State(app): State<AppState>) -> Response {
    Json(document(&app)).into_response()
}

/// What once were extensions and clients still ask for; each is there.
const EXTENSIONS: [(&str, &str, &str); 21] = [
    ("os-volume-actions", "VolumeActions", "Enable volume actions."),
    (
        "os-extended-snapshot-attributes",
        "ExtendedSnapshotAttributes",
        "Extended SnapshotAttributes support.",
    ),
    ("os-admin-actions", "AdminActions", "Enable admin actions."),
    (
        "os-availability-zone",
        "AvailabilityZones",
        "Describe Availability Zones.",
    ),
    ("backups", "Backups", "Backups support."),
    ("capabilities", "Capabilities", "Capabilities support."),
    ("os-hosts", "Hosts", "Admin-only host administration."),
    ("qos-specs", "Qos_specs_manage", "QoS specs support."),
    (
        "os-quota-class-sets",
        "QuotaClasses",
        "Quota classes management support.",
    ),
    ("os-quota-sets", "Quotas", "Quota management support."),
    ("scheduler-stats", "Scheduler_stats", "Scheduler stats support."),
    ("os-services", "Services", "Services support."),
    (
        "os-snapshot-actions",
        "SnapshotActions",
        "Enable snapshot manager actions.",
    ),
    (
        "os-types-extra-specs",
        "TypesExtraSpecs",
        "Type extra specs support.",
    ),
    ("os-types-manage", "TypesManage", "Types manage support."),
    (
        "os-used-limits",
        "UsedLimits",
        "Provide data on limited resources that are being used.",
    ),
    (
        "os-vol-host-attr",
        "VolumeHostAttribute",
        "Expose host as an attribute of a volume.",
    ),
    (
        "os-vol-image-meta",
        "VolumeImageMetadata",
        "Show image metadata associated with the volume.",
    ),
    (
        "os-vol-tenant-attr",
        "VolumeTenantAttribute",
        "Expose the internal project_id as an attribute of a volume.",
    ),
    (
        "os-volume-transfer",
        "VolumeTransfer",
        "Volume transfer management support.",
    ),
    (
        "os-volume-type-access",
        "VolumeTypeAccess",
        "Volume type access support.",
    ),
];

fn view((alias, name, description): (&str, &str, &str)) -> Value {
    json!({
        "alias": alias,
        "name": name,
        "description": description,
        "updated": "2016-01-01T00:00:00+00:00",
        "links": [],
    })
}

/// `GET /extensions`.
pub(super) async fn extensions(_: Call) -> Answer {
    ok(json!({"extensions": EXTENSIONS.map(view)}))
}

/// `GET /extensions/{alias}`.
pub(super) async fn extension(call: Call) -> Answer {
    let found = EXTENSIONS.into_iter().find(|(alias, ..)| *alias == call.id());
    match found {
        Some(extension) => ok(json!({"extension": view(extension)})),
        None => Err(gone()),
    }
}
