//! What clients may call things, and the free attributes that Keystone keeps beside the known ones.

use rusqlite::types::Type;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Free attributes of a resource, at most this many bytes as JSON.
pub const MAX_EXTRA: usize = 16 * 1024;
/// The longest description.
pub const MAX_DESCRIPTION: usize = 4096;

/// A name has 1 to `max` characters, one of which is not white space, and no control characters.
pub(super) fn name(field: &str, name: &str, max: usize) -> Result<()> {
    let length = name.chars().count();
    if length == 0 || length > max || name.trim().is_empty() || name.chars().any(char::is_control) {
        return Err(Error::BadRequest(format!(
            "Invalid input for field '{field}': a name has 1 to {max} characters, not only white space."
        )));
    }
    Ok(())
}

/// A description of a sane length.
pub(super) fn description(text: Option<&str>) -> Result<()> {
    if text.is_some_and(|text| text.chars().count() > MAX_DESCRIPTION) {
        return Err(Error::BadRequest(format!(
            "Invalid input for field 'description': it has at most {MAX_DESCRIPTION} characters."
        )));
    }
    Ok(())
}

/// Checks free attributes and writes them as JSON. `options` may be given as long as it sets none: there are none.
pub(super) fn extra(mut extra: Map<String, Value>) -> Result<String> {
    match extra.remove("options") {
        None | Some(Value::Null) => {}
        Some(Value::Object(options))
            if options
                .values()
                .all(|v| matches!(v, Value::Null | Value::Bool(false))) => {}
        Some(_) => {
            return Err(Error::BadRequest(
                "Resource options are not supported by this cloud.".into(),
            ));
        }
    }
    for known in ["id", "links", "is_domain", "password_expires_at"] {
        extra.remove(known);
    }
    let text = Value::Object(extra).to_string();
    if text.len() > MAX_EXTRA {
        return Err(Error::BadRequest(format!(
            "Attributes beside the known ones have at most {MAX_EXTRA} bytes."
        )));
    }
    Ok(text)
}

/// Free attributes with a change laid over them; `null` removes one.
pub(super) fn merged(old: &Map<String, Value>, change: Map<String, Value>) -> Result<String> {
    let mut all = old.clone();
    for (key, value) in change {
        if value.is_null() {
            all.remove(&key);
        } else {
            all.insert(key, value);
        }
    }
    extra(all)
}

/// Reads free attributes out of a column.
pub(super) fn read_extra(row: &rusqlite::Row<'_>, column: &str) -> rusqlite::Result<Map<String, Value>> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(e)))
}

/// `null` and "not there" are different in a change.
pub(super) fn some<'de, T, D>(deserializer: D) -> std::result::Result<Option<T>, D::Error>
where
    T: serde::Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// 409 in Keystone's words.
pub(super) fn taken(kind: &str, name: &str) -> Error {
    Error::Conflict(format!(
        "Conflict occurred attempting to store {kind} - Duplicate entry found with name {name}."
    ))
}

/// Turns a violated UNIQUE constraint into 409.
pub(super) fn unique<T>(result: rusqlite::Result<T>, kind: &str, name: &str) -> Result<T> {
    result.map_err(|error| match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::ConstraintViolation) => taken(kind, name),
        _ => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_bounded() {
        assert!(name("name", "Zoë Ω", 64).is_ok());
        for bad in ["", "   ", "a\nb", "\0", &"x".repeat(65)] {
            assert!(name("name", bad, 64).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn unknown_options_are_refused_and_not_kept_silently() {
        let map = |value: Value| value.as_object().cloned().unwrap_or_default();
        assert!(extra(map(json!({"options": {"lock_password": true}}))).is_err());
        assert_eq!(
            extra(map(json!({"options": {}, "a": 1, "id": "x"}))).unwrap(),
            r#"{"a":1}"#
        );
        assert!(extra(map(json!({"a": "x".repeat(MAX_EXTRA)}))).is_err());
    }
}
