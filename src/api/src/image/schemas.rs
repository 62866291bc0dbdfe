//! `/v2/schemas`: what documents look like, for clients that build their own checks from it.

use axum::response::{IntoResponse, Response};
use cloud::image::FORMATS;
use serde_json::{Value, json};

use crate::body::Json;

fn image_schema() -> Value {
    let text = |what: &str| json!({"type": ["null", "string"], "maxLength": 255, "description": what});
    let fixed = |kind: Value, what: &str| json!({"type": kind, "readOnly": true, "description": what});
    let formats: Vec<Value> = std::iter::once(Value::Null)
        .chain(FORMATS.iter().map(|(_, name)| (*name).into()))
        .collect();
    let visibilities = ["community", "public", "private", "shared"];
    let states = [
        "queued",
        "saving",
        "uploading",
        "importing",
        "active",
        "deactivated",
        "deleted",
        "pending_delete",
        "killed",
    ];
    json!({
        "name": "image",
        "properties": {
            "id": {
                "type": "string",
                "description": "An identifier for the image",
                "pattern": "^([0-9a-fA-F]){8}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){12}$",
            },
            "name": text("Descriptive name for the image"),
            "owner": text("Owner of the image"),
            "status": {"type": "string", "readOnly": true, "enum": states, "description": "Status of the image"},
            "visibility": {"type": "string", "enum": visibilities, "description": "Scope of image accessibility"},
            "protected": {"type": "boolean", "description": "If true, image will not be deletable."},
            "os_hidden": {"type": "boolean", "description": "If true, image will not appear in default lists."},
            "checksum": fixed(json!(["null", "string"]), "md5 hash of image contents."),
            "os_hash_algo": fixed(json!(["null", "string"]), "Algorithm to calculate the os_hash_value"),
            "os_hash_value": fixed(json!(["null", "string"]), "Hexdigest of the image contents"),
            "disk_format": {"type": ["null", "string"], "enum": formats, "description": "Format of the disk"},
            "container_format": {"type": ["null", "string"], "enum": [null, "bare"], "description": "Always bare"},
            "size": fixed(json!(["null", "integer"]), "Size of image file in bytes"),
            "virtual_size": fixed(json!(["null", "integer"]), "Virtual size of image in bytes"),
            "min_disk": {"type": "integer", "description": "Disk space in GB required to boot image."},
            "min_ram": {"type": "integer", "description": "RAM in MB required to boot image."},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 255}, "description": "Tags"},
            "created_at": fixed(json!("string"), "Date and time of image registration"),
            "updated_at": fixed(json!("string"), "Date and time of the last image modification"),
            "self": fixed(json!("string"), "An image self url"),
            "file": fixed(json!("string"), "An image file url"),
            "schema": fixed(json!("string"), "An image schema url"),
            "stores": fixed(json!("string"), "Store in which image data resides"),
        },
        "additionalProperties": {"type": "string"},
        "links": [
            {"rel": "self", "href": "{self}"},
            {"rel": "enclosure", "href": "{file}"},
            {"rel": "describedby", "href": "{schema}"},
        ],
    })
}

fn member_schema() -> Value {
    json!({
        "name": "member",
        "properties": {
            "image_id": {"type": "string", "description": "An identifier for the image"},
            "member_id": {"type": "string", "description": "An identifier for the image member"},
            "status": {"type": "string", "enum": ["pending", "accepted", "rejected"]},
            "created_at": {"type": "string"},
            "updated_at": {"type": "string"},
            "schema": {"type": "string", "readOnly": true},
        },
    })
}

fn collection(name: &str, item: Value) -> Value {
    json!({
        "name": name,
        "properties": {
            name: {"type": "array", "items": item},
            "first": {"type": "string"},
            "next": {"type": "string"},
            "schema": {"type": "string"},
        },
        "links": [
            {"rel": "first", "href": "{first}"},
            {"rel": "next", "href": "{next}"},
            {"rel": "describedby", "href": "{schema}"},
        ],
    })
}

fn task_schema() -> Value {
    let fixed = |kind: Value| json!({"type": kind, "readOnly": true});
    json!({
        "name": "task",
        "properties": {
            "id": fixed(json!("string")),
            "type": {"type": "string", "enum": ["import", "api_image_import"]},
            "status": {"type": "string", "readOnly": true, "enum": ["pending", "processing", "success", "failure"]},
            "input": {"type": ["null", "object"]},
            "result": fixed(json!(["null", "object"])),
            "message": fixed(json!("string")),
            "owner": fixed(json!("string")),
            "user_id": fixed(json!(["null", "string"])),
            "image_id": fixed(json!(["null", "string"])),
            "request_id": fixed(json!(["null", "string"])),
            "created_at": fixed(json!("string")),
            "updated_at": fixed(json!("string")),
            "expires_at": fixed(json!(["null", "string"])),
            "self": fixed(json!("string")),
            "schema": fixed(json!("string")),
        },
    })
}

pub(super) async fn task() -> Response {
    Json(task_schema()).into_response()
}

pub(super) async fn tasks() -> Response {
    Json(collection("tasks", task_schema())).into_response()
}

pub(super) async fn image() -> Response {
    Json(image_schema()).into_response()
}

pub(super) async fn images() -> Response {
    Json(collection("images", image_schema())).into_response()
}

pub(super) async fn member() -> Response {
    Json(member_schema()).into_response()
}

pub(super) async fn members() -> Response {
    Json(collection("members", member_schema())).into_response()
}
