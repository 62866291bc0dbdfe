//! How Glance writes things.

use cloud::image::import::STORE;
use cloud::image::members::Member;
use cloud::image::{Image, Status, format_name};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::macros::format_description;

/// `2026-11-20T12:00:00Z`
pub(super) fn time(micros: i64) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    let time = OffsetDateTime::from_unix_timestamp(micros.div_euclid(1_000_000));
    time.ok()
        .and_then(|time| time.format(&format).ok())
        .unwrap_or_default()
}

pub(super) fn image(image: &Image) -> Value {
    let this = format!("/v2/images/{}", image.id);
    let known = json!({
        "id": image.id,
        "name": image.name,
        "status": image.status.name(),
        "visibility": image.visibility.name(),
        "owner": image.owner,
        "disk_format": image.disk_format.map(format_name),
        "container_format": image.container_format,
        "size": image.size,
        "virtual_size": image.virtual_size,
        "checksum": image.checksum,
        "os_hash_algo": image.os_hash_value.as_ref().map(|_| "sha512"),
        "os_hash_value": image.os_hash_value,
        "os_hidden": image.hidden,
        "protected": image.protected,
        "min_disk": image.min_disk,
        "min_ram": image.min_ram,
        "tags": image.tags,
        "created_at": time(image.created_at),
        "updated_at": time(image.updated_at),
        "self": this,
        "file": format!("{this}/file"),
        "schema": "/v2/schemas/image",
    });
    let mut all: Map<String, Value> = image
        .properties
        .iter()
        .map(|(key, value)| (key.clone(), value.clone().into()))
        .collect();
    if let Value::Object(known) = known {
        all.extend(known);
    }
    if matches!(image.status, Status::Active | Status::Deactivated) {
        all.insert("stores".to_owned(), STORE.into());
    }
    Value::Object(all)
}

pub(super) fn member(member: &Member) -> Value {
    json!({
        "image_id": member.image_id,
        "member_id": member.member_id,
        "status": member.status.name(),
        "created_at": time(member.created_at),
        "updated_at": time(member.updated_at),
        "schema": "/v2/schemas/member",
    })
}
