//! How Barbican writes things, and what its requests have in common.

use cloud::Error;
use cloud::secret::{Consumer, Container, ContainerConsumer, Order, Part, Secret};
use serde_json::{Map, Value, json};
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};
use uuid::Uuid;

use super::parse_id;
use super::versions::Minor;
use crate::AppState;
use crate::body::Pairs;

/// A page's length if the client names none, and at most, as in Barbican.
const PAGE: (usize, usize) = (10, 100);

/// The address of something below `/key-manager/v1`.
pub(super) fn url(state: &AppState, path: impl std::fmt::Display) -> String {
    format!("{}/key-manager/v1/{path}", state.cloud.config.public_url)
}

/// `2026-11-20T12:00:00.000000`, always UTC.
pub(super) fn time(micros: i64) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]");
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000);
    time.ok()
        .and_then(|time| time.format(&format).ok())
        .unwrap_or_default()
}

/// A time in ISO 8601; without a zone it is UTC.
pub(super) fn parse_time(field: &str, text: &str) -> Result<i64, Error> {
    let text = text.trim();
    let format = format_description!(
        version = 2,
        "[year]-[month]-[day][optional [[first [T][ ]][hour]:[minute][optional [:[second][optional [.[subsecond]]]]]]]"
    );
    let local = || {
        let padded = if text.len() == 10 {
            format!("{text}T00:00")
        } else {
            text.to_owned()
        };
        PrimitiveDateTime::parse(&padded, &format)
            .ok()
            .map(PrimitiveDateTime::assume_utc)
    };
    let time = OffsetDateTime::parse(text, &Rfc3339).ok().or_else(local);
    let time = time.ok_or_else(|| {
        let text: String = text.chars().take(64).collect();
        Error::BadRequest(format!("Invalid date for '{field}': {text}"))
    })?;
    Ok(i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX))
}

fn consumer(consumer: &Consumer) -> Value {
    json!({
        "service": consumer.service,
        "resource_type": consumer.resource_type,
        "resource_id": consumer.resource_id,
    })
}

pub(super) fn secret(state: &AppState, minor: Minor, secret: &Secret) -> Value {
    let mut view = json!({
        "created": time(secret.created_at),
        "updated": time(secret.updated_at),
        "status": "ACTIVE",
        "name": secret.name.clone().unwrap_or_else(|| secret.id.to_string()),
        "secret_type": secret.kind,
        "expiration": secret.expires_at.map(time),
        "algorithm": secret.algorithm,
        "bit_length": secret.bit_length,
        "mode": secret.mode,
        "creator_id": secret.creator_id,
        "secret_ref": url(state, format_args!("secrets/{}", secret.id)),
    });
    if let Some(kind) = &secret.content_type {
        view["content_types"] = json!({"default": kind});
    }
    if minor.has_consumers() {
        view["consumers"] = secret.consumers.iter().map(consumer).collect();
    }
    view
}

fn container_consumer(consumer: &ContainerConsumer) -> Value {
    json!({"name": consumer.name, "URL": consumer.url})
}

pub(super) fn container(state: &AppState, container: &Container) -> Value {
    let refs: Vec<_> = container
        .refs
        .iter()
        .map(|(name, id)| json!({"name": name, "secret_ref": url(state, format_args!("secrets/{id}"))}))
        .collect();
    json!({
        "created": time(container.created_at),
        "updated": time(container.updated_at),
        "status": "ACTIVE",
        "name": container.name.clone().unwrap_or_else(|| container.id.to_string()),
        "type": container.kind,
        "creator_id": container.creator_id,
        "secret_refs": refs,
        "consumers": container.consumers.iter().map(container_consumer).collect::<Vec<_>>(),
        "container_ref": url(state, format_args!("containers/{}", container.id)),
    })
}

pub(super) fn order(state: &AppState, order: &Order) -> Value {
    json!({
        "created": time(order.created_at),
        "updated": time(order.updated_at),
        "status": "ACTIVE",
        "type": order.kind,
        "meta": order.meta,
        "creator_id": order.creator_id,
        "secret_ref": url(state, format_args!("secrets/{}", order.secret_id)),
        "order_ref": url(state, format_args!("orders/{}", order.id)),
    })
}

pub(super) fn consumers(all: &[Consumer]) -> Vec<Value> {
    all.iter().map(consumer).collect()
}

pub(super) fn container_consumers(all: &[ContainerConsumer]) -> Vec<Value> {
    all.iter().map(container_consumer).collect()
}

/// What part of a list a query asks for.
pub(super) fn part(pairs: &Pairs) -> Result<Part, Error> {
    let number = |key: &str, default: usize| -> Result<usize, Error> {
        let number = pairs.number(key)?;
        Ok(number.map_or(default, |number| usize::try_from(number).unwrap_or(usize::MAX)))
    };
    Ok(Part {
        offset: number("offset", 0)?,
        limit: number("limit", PAGE.0)?.min(PAGE.1),
    })
}

/// A list with the links to the parts beside it.
pub(super) fn list(
    state: &AppState,
    (path, key): (&str, &str),
    pairs: &Pairs,
    part: Part,
    items: Vec<Value>,
    total: usize,
) -> Value {
    let link = |offset: usize| {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(
            pairs
                .0
                .iter()
                .filter(|(key, _)| key != "offset" && key != "limit"),
        );
        query.append_pair("limit", &part.limit.to_string());
        query.append_pair("offset", &offset.to_string());
        Value::from(format!("{}?{}", url(state, path), query.finish()))
    };
    let mut body = Map::new();
    body.insert(key.to_owned(), items.into());
    body.insert("total".into(), total.into());
    if part.offset.saturating_add(part.limit) < total {
        body.insert("next".into(), link(part.offset + part.limit));
    }
    if part.offset > 0 {
        body.insert("previous".into(), link(part.offset.saturating_sub(part.limit)));
    }
    Value::Object(body)
}

/// The id in a reference: its last part.
pub(super) fn id_of_ref(field: &str, reference: &str) -> Result<Uuid, Error> {
    let last = reference.trim_end_matches('/').rsplit('/').next().unwrap_or("");
    parse_id("Secret", last).map_err(|_| {
        Error::BadRequest(format!(
            "Provided object does not match schema: '{field}' is no reference."
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_all_their_forms() {
        let read = |text| parse_time("expiration", text).unwrap();
        let whole = 1_795_132_800_000_000;
        for text in [
            "2026-11-20T00:00:00Z",
            "2026-11-20T00:00:00",
            "2026-11-20 00:00:00",
            "2026-11-20T00:00",
            "2026-11-20",
            "2026-11-20T01:00:00+01:00",
            "2026-11-20T00:00:00.000000",
        ] {
            assert_eq!(read(text), whole, "{text}");
        }
        assert_eq!(read("2026-11-20T00:00:00.25"), whole + 250_000);
        assert_eq!(read(&time(whole + 1)), whole + 1);
        assert!(parse_time("expiration", "tomorrow").is_err());
    }

    #[test]
    fn references_end_in_an_id() {
        let id = Uuid::new_v4();
        let reference = format!("https://x/key-manager/v1/secrets/{id}");
        assert_eq!(id_of_ref("secret_ref", &reference).unwrap(), id);
        assert_eq!(id_of_ref("secret_ref", &id.to_string()).unwrap(), id);
        assert!(id_of_ref("secret_ref", "https://x/secrets/y").is_err());
    }
}
