//! The attributes of a request's body, one by one: every getter says what is wrong with which attribute.

use std::net::IpAddr;
use std::str::FromStr;

use cloud::error::Kind;
use cloud::network::IpNet;
use cloud::{Error, Result};
use serde_json::{Map, Value};
use uuid::Uuid;

/// One resource of a request's body.
pub(super) struct Attributes<'a> {
    object: &'a Map<String, Value>,
    hidden: Option<&'static str>,
}

/// 400 as Neutron words a wrong value.
pub(super) fn wrong(attribute: &str, reason: impl std::fmt::Display) -> Error {
    Error::BadRequest(format!("Invalid input for {attribute}. Reason: {reason}."))
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => "None".into(),
        other => other.to_string(),
    };
    text.chars().take(128).collect()
}

impl<'a> Attributes<'a> {
    /// Refuses attributes that the operation does not take: `known` ones are read-only, others nobody knows.
    pub(super) fn new(
        object: &'a Map<String, Value>,
        taken: &[&str],
        known: &[&str],
        verb: &str,
    ) -> Result<Self> {
        let mut unknown: Vec<&str> = Vec::new();
        for name in object
            .keys()
            .map(String::as_str)
            .filter(|name| !taken.contains(name))
        {
            if known.contains(&name) {
                let message = match verb {
                    "POST" => format!("Attribute '{name}' not allowed in POST"),
                    _ => format!("Cannot update read-only attribute {name}"),
                };
                return Err(Error::BadRequest(message));
            }
            unknown.push(name);
        }
        if unknown.is_empty() {
            return Ok(Attributes { object, hidden: None });
        }
        let names: Vec<String> = unknown
            .iter()
            .map(|name| name.chars().take(64).collect())
            .collect();
        Err(Error::BadRequest(format!(
            "Unrecognized attribute(s) '{}'",
            names.join(", ")
        )))
    }

    /// A part of an attribute, with these keys and no others.
    pub(super) fn part(attribute: &str, value: &'a Value, keys: &[&str]) -> Result<Self> {
        let object = value
            .as_object()
            .ok_or_else(|| wrong(attribute, format_args!("'{}' is not a dictionary", shown(value))))?;
        match object.keys().find(|key| !keys.contains(&key.as_str())) {
            None => Ok(Attributes { object, hidden: None }),
            Some(key) => Err(wrong(
                attribute,
                format_args!("'{key}' is not one of {}", keys.join(", ")),
            )),
        }
    }

    pub(super) fn raw(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|_| self.hidden != Some(name))
    }

    /// The same, but for one attribute.
    pub(super) fn without(&self, name: &'static str) -> Attributes<'a> {
        Attributes {
            object: self.object,
            hidden: Some(name),
        }
    }

    /// A text of at most `max` characters.
    pub(super) fn text(&self, name: &str, max: usize) -> Result<Option<String>> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.chars().count() <= max => Ok(Some(text.clone())),
            Some(Value::String(_)) => Err(wrong(
                name,
                format_args!("the value exceeds maximum length of {max}"),
            )),
            Some(other) => Err(wrong(
                name,
                format_args!("'{}' is not a valid string", shown(other)),
            )),
        }
    }

    /// A text, where null means that there is none.
    pub(super) fn text_or_null(&self, name: &str, max: usize) -> Result<Option<String>> {
        match self.raw(name) {
            Some(Value::Null) => Ok(None),
            _ => self.text(name, max),
        }
    }

    /// The project under either of its names.
    pub(super) fn project(&self) -> Result<Option<String>> {
        let (project, tenant) = (self.text("project_id", 255)?, self.text("tenant_id", 255)?);
        match (&project, &tenant) {
            (Some(a), Some(b)) if a != b => Err(Error::BadRequest(
                "'project_id' and 'tenant_id' do not match".into(),
            )),
            _ => Ok(project.or(tenant)),
        }
    }

    /// A truth value, as Neutron takes them.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.raw(name) else {
            return Ok(None);
        };
        let flag = match value {
            Value::Bool(flag) => Some(*flag),
            Value::Number(number) => match number.as_u64() {
                Some(0) => Some(false),
                Some(1) => Some(true),
                _ => None,
            },
            Value::String(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "1" => Some(true),
                "false" | "0" => Some(false),
                _ => None,
            },
            _ => None,
        };
        flag.map(Some).ok_or_else(|| {
            wrong(
                name,
                format_args!("'{}' cannot be converted to boolean", shown(value)),
            )
        })
    }

    /// A number, also as text; null means that there is none.
    pub(super) fn number<T: TryFrom<i64>>(&self, name: &str) -> Result<Option<T>> {
        let number = match self.raw(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Number(number)) => number.as_i64(),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(_) => None,
        };
        let fits = number.and_then(|number| T::try_from(number).ok());
        fits.map(Some).ok_or_else(|| {
            wrong(
                name,
                format_args!(
                    "'{}' is not a number in range",
                    shown(self.raw(name).unwrap_or(&Value::Null))
                ),
            )
        })
    }

    /// A text that is parsed; null means that there is none.
    pub(super) fn parsed<T: FromStr>(&self, name: &str, what: &str) -> Result<Option<T>> {
        match self.raw(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => parse(name, value, what).map(Some),
        }
    }

    pub(super) fn uuid(&self, name: &str) -> Result<Option<Uuid>> {
        self.parsed(name, "UUID")
    }

    pub(super) fn address(&self, name: &str) -> Result<Option<IpAddr>> {
        self.parsed(name, "IP address")
    }

    /// A value that may be given, taken away with null, or not mentioned.
    pub(super) fn settable<T: FromStr>(&self, name: &str, what: &str) -> Result<Option<Option<T>>> {
        match self.raw(name) {
            None => Ok(None),
            Some(_) => self.parsed(name, what).map(Some),
        }
    }

    /// A list; null is an empty one.
    pub(super) fn list<T>(
        &self,
        name: &str,
        item: impl Fn(&'a Value) -> Result<T>,
    ) -> Result<Option<Vec<T>>> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(Vec::new())),
            Some(Value::Array(items)) => items.iter().map(item).collect::<Result<_>>().map(Some),
            Some(other) => Err(wrong(name, format_args!("'{}' is not a list", shown(other)))),
        }
    }
}

/// A text that is parsed.
pub(super) fn parse<T: FromStr>(attribute: &str, value: &Value, what: &str) -> Result<T> {
    let parsed = value.as_str().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| {
        wrong(
            attribute,
            format_args!("'{}' is not a valid {what}", shown(value)),
        )
    })
}

/// A range of addresses; an address alone is a range of one.
pub(super) fn prefix(attribute: &str, value: &Value) -> Result<IpNet> {
    let text = value.as_str().unwrap_or_default();
    let parsed = text
        .parse()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    parsed.ok_or_else(|| Error::Named {
        name: "InvalidInput",
        kind: Kind::BadRequest,
        message: format!(
            "Invalid input for operation: '{}' isn't a recognized IP subnet cidr for {attribute}.",
            shown(value)
        ),
    })
}
