//! Checks of bodies: what Nova's schemas say, with its words for what is wrong.

use std::collections::BTreeMap;

use cloud::Error;
use serde_json::{Map, Value};
use uuid::Uuid;

/// 400 about a field.
pub(crate) fn invalid(field: &str, value: &Value, why: &str) -> Error {
    let mut value = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if value.len() > 128 {
        value = value.chars().take(128).collect::<String>() + "…";
    }
    Error::BadRequest(format!(
        "Invalid input for field/attribute {field}. Value: {value}. {why}"
    ))
}

/// An object of a body, and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Object<'a> {
    path: String,
    fields: &'a Map<String, Value>,
}

/// A name as Nova takes it: 1 to 255 printable characters, no white space at its ends.
pub(crate) fn name_of(field: &str, value: &Value) -> Result<String, Error> {
    let text = string_of(field, value, 1, 255)?;
    let printable = |c: char| !c.is_control() && c != '\u{2028}' && c != '\u{2029}';
    if text.trim() != text || !text.chars().all(printable) {
        let why = format!("'{text}' is not printable characters. Can not start or end with whitespace.");
        return Err(invalid(field, value, &why));
    }
    Ok(text.to_owned())
}

/// A text with bounds on its length in characters.
pub(crate) fn string_of<'a>(field: &str, value: &'a Value, min: usize, max: usize) -> Result<&'a str, Error> {
    let Some(text) = value.as_str() else {
        return Err(invalid(field, value, &format!("{value} is not of type 'string'")));
    };
    let length = if text.len() <= max {
        text.len()
    } else {
        text.chars().count()
    };
    if length < min {
        return Err(invalid(field, value, &format!("'{text}' is too short")));
    }
    if length > max {
        return Err(invalid(field, value, "It is too long"));
    }
    Ok(text)
}

/// A number, as JSON or as text.
pub(crate) fn integer_of(field: &str, value: &Value, min: i64, max: i64) -> Result<i64, Error> {
    let number = match value {
        Value::Number(number) => number.as_i64().or_else(|| {
            // 1.0 is an integer to JSON schema.
            number
                .as_f64()
                .filter(|f| f.fract() == 0.0 && f.abs() < 9e15)
                .map(|f| f as i64)
        }),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let Some(number) = number else {
        return Err(invalid(
            field,
            value,
            &format!("{value} is not of type 'integer', 'string'"),
        ));
    };
    if number < min {
        return Err(invalid(
            field,
            value,
            &format!("{number} is less than the minimum of {min}"),
        ));
    }
    if number > max {
        return Err(invalid(
            field,
            value,
            &format!("{number} is greater than the maximum of {max}"),
        ));
    }
    Ok(number)
}

/// A truth value, as JSON or in one of the words that Nova takes.
pub(crate) fn boolean_of(field: &str, value: &Value) -> Result<bool, Error> {
    let word = match value {
        Value::Bool(flag) => return Ok(*flag),
        Value::String(word) => word.as_str(),
        _ => "",
    };
    match word {
        "True" | "TRUE" | "true" | "1" | "ON" | "On" | "on" | "YES" | "Yes" | "yes" => Ok(true),
        "False" | "FALSE" | "false" | "0" | "OFF" | "Off" | "off" | "NO" | "No" | "no" => Ok(false),
        _ => Err(invalid(
            field,
            value,
            &format!("{value} is not one of [True, False]"),
        )),
    }
}

/// A UUID with or without dashes.
pub(crate) fn uuid_of(field: &str, value: &Value) -> Result<Uuid, Error> {
    let uuid = value.as_str().and_then(|text| text.parse().ok());
    uuid.ok_or_else(|| invalid(field, value, &format!("{value} is not a 'uuid'")))
}

/// Metadata: keys of 1 to 255 characters, values of up to 255.
pub(crate) fn metadata_of(field: &str, value: &Value) -> Result<BTreeMap<String, String>, Error> {
    let Some(pairs) = value.as_object() else {
        return Err(invalid(field, value, &format!("{value} is not of type 'object'")));
    };
    pairs
        .iter()
        .map(|(key, value)| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_:. ".contains(c);
            if key.is_empty() || key.chars().count() > 255 || !key.chars().all(allowed) {
                return Err(Error::BadRequest(format!(
                    "Invalid input for field/attribute {field}. The key '{}' does not match \
                     '^[a-zA-Z0-9-_:. ]{{1,255}}$'",
                    key.chars().take(300).collect::<String>()
                )));
            }
            Ok((
                key.clone(),
                string_of(&format!("{field}.{key}"), value, 0, 255)?.to_owned(),
            ))
        })
        .collect()
}

impl<'a> Object<'a> {
    /// The body itself, which must be an object.
    pub(crate) fn body(value: &'a Value) -> Result<Self, Error> {
        Object::of(String::new(), value)
    }

    /// A value at a place.
    pub(crate) fn of(path: impl Into<String>, value: &'a Value) -> Result<Self, Error> {
        let path = path.into();
        match value.as_object() {
            Some(fields) => Ok(Object { path, fields }),
            None if path.is_empty() => Err(Error::BadRequest("The request's body must be an object.".into())),
            None => Err(invalid(&path, value, &format!("{value} is not of type 'object'"))),
        }
    }

    /// The only field of the body, as in `{"server": {…}}`.
    pub(crate) fn only(body: &'a Value, key: &'static str) -> Result<Self, Error> {
        let object = Object::body(body)?;
        object.allow(&[key])?;
        Object::of(key, object.required(key)?)
    }

    /// The whole path of a field.
    pub(crate) fn path(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// No other fields than these.
    pub(crate) fn allow(&self, keys: &[&str]) -> Result<(), Error> {
        match self.fields.keys().find(|key| !keys.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                let place = if self.path.is_empty() { "body" } else { &self.path };
                let key: String = key.chars().take(64).collect();
                Err(Error::BadRequest(format!(
                    "Invalid input for field/attribute {place}. Additional properties are not allowed ('{key}' was \
                     unexpected)"
                )))
            }
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.fields.get(key)
    }

    pub(crate) fn required(&self, key: &str) -> Result<&'a Value, Error> {
        self.get(key).ok_or_else(|| {
            let place = if self.path.is_empty() { "body" } else { &self.path };
            Error::BadRequest(format!(
                "Invalid input for field/attribute {place}. '{key}' is a required property"
            ))
        })
    }

    pub(crate) fn name(&self, key: &str) -> Result<Option<String>, Error> {
        self.get(key)
            .map(|value| name_of(&self.path(key), value))
            .transpose()
    }

    pub(crate) fn string(&self, key: &str, min: usize, max: usize) -> Result<Option<&'a str>, Error> {
        self.get(key)
            .map(|value| string_of(&self.path(key), value, min, max))
            .transpose()
    }

    /// A text or null: `Some(None)` is null.
    pub(crate) fn nullable(&self, key: &str, max: usize) -> Result<Option<Option<&'a str>>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(value) => string_of(&self.path(key), value, 0, max).map(|text| Some(Some(text))),
        }
    }

    pub(crate) fn integer(&self, key: &str, min: i64, max: i64) -> Result<Option<i64>, Error> {
        self.get(key)
            .map(|value| integer_of(&self.path(key), value, min, max))
            .transpose()
    }

    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, Error> {
        self.get(key)
            .map(|value| boolean_of(&self.path(key), value))
            .transpose()
    }

    pub(crate) fn array(&self, key: &str) -> Result<Option<&'a Vec<Value>>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_array() {
            Some(items) => Ok(Some(items)),
            None => Err(invalid(
                &self.path(key),
                value,
                &format!("{value} is not of type 'array'"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_as_nova_takes_them() {
        for good in ["a", "with space", "日本語", &"x".repeat(255)] {
            assert_eq!(name_of("name", &json!(good)).unwrap(), good);
        }
        for bad in ["", " a", "a ", "a\nb", "\u{7f}", &"x".repeat(256)] {
            assert!(name_of("name", &json!(bad)).is_err(), "{bad:?}");
        }
        assert!(name_of("name", &json!(12345)).is_err());
    }

    #[test]
    fn numbers_and_words_come_as_text_too() {
        assert_eq!(integer_of("n", &json!("7"), 0, 9).unwrap(), 7);
        assert_eq!(integer_of("n", &json!(7.0), 0, 9).unwrap(), 7);
        for bad in [
            json!("x"),
            json!(1.5),
            json!(null),
            json!(10),
            json!(-1),
            json!(""),
        ] {
            assert!(integer_of("n", &bad, 0, 9).is_err(), "{bad}");
        }
        assert!(boolean_of("b", &json!("On")).unwrap());
        assert!(boolean_of("b", &json!("maybe")).is_err());
    }

    #[test]
    fn what_is_unexpected_or_missing_is_named() {
        let body = json!({"server": {"name": "x", "foo": 1}});
        let server = Object::only(&body, "server").unwrap();
        assert!(
            server
                .allow(&["name"])
                .unwrap_err()
                .to_string()
                .contains("'foo' was unexpected")
        );
        assert!(
            server
                .required("flavorRef")
                .unwrap_err()
                .to_string()
                .contains("'flavorRef' is a required property")
        );
        assert!(Object::only(&json!([]), "server").is_err());
        assert!(Object::only(&json!({"server": []}), "server").is_err());
    }
}
