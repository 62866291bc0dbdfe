//! Lists: what is looked for, in which order, which page.

use std::cmp::Ordering;

use cloud::Error;
use cloud::compute::Micros;
use cloud::volume::list::Whose;
use serde_json::{Map, Value, json};

use super::Call;
use super::microversion::Microversion;
use crate::body::Pairs;
use crate::page::next_link;

/// The longest page, as Cinder's `osapi_max_limit`.
pub(super) const MAX_LIMIT: usize = 1000;

/// What an item is compared by.
#[derive(Debug, Clone, PartialEq, PartialOrd)]
pub(super) enum Key {
    Null,
    Number(i64),
    Text(String),
}

impl From<Option<&str>> for Key {
    fn from(text: Option<&str>) -> Self {
        text.map_or(Key::Null, |text| Key::Text(text.to_owned()))
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Key::Text(text.to_owned())
    }
}

impl From<Micros> for Key {
    fn from(time: Micros) -> Self {
        Key::Number(time.0)
    }
}

impl From<Option<Micros>> for Key {
    fn from(time: Option<Micros>) -> Self {
        time.map_or(Key::Null, Key::from)
    }
}

/// An item of a list.
pub(super) trait Item: Known {
    /// Its id: the marker of pages.
    fn id(&self) -> String;
    /// What it is sorted by; `None`: not by this.
    fn key(&self, name: &str) -> Option<Key>;
    /// It is what a filter asks for; `None`: there is no such filter.
    fn fits(&self, filter: &str, value: &str) -> Option<bool>;
}

/// Query parameters that are no filters.
const NOT_FILTERS: [&str; 11] = [
    "limit",
    "offset",
    "marker",
    "sort",
    "sort_key",
    "sort_dir",
    "all_tenants",
    "project_id",
    "with_count",
    "fields",
    "sort_keys",
];

/// A page of a list.
pub(super) struct Page<T> {
    pub items: Vec<T>,
    /// The marker of the next page.
    pub next: Option<String>,
    /// How many fit in all.
    pub count: usize,
}

/// Whose items are listed.
pub(super) fn whose(pairs: &Pairs) -> Result<Whose, Error> {
    let all_projects = match pairs.get("all_tenants") {
        None => false,
        Some(text) if text.eq_ignore_ascii_case("none") => false,
        Some(_) => {
            pairs.flag("all_tenants").map_err(|_| {
                Error::BadRequest("Invalid input received: all_tenants must be a boolean value.".into())
            })? == Some(true)
        }
    };
    Ok(Whose {
        all_projects,
        project_id: pairs.get("project_id").map(str::to_owned),
    })
}

/// `limit`, as Cinder reads it.
pub(super) fn limit(pairs: &Pairs) -> Result<usize, Error> {
    let Some(text) = pairs.get("limit") else {
        return Ok(MAX_LIMIT);
    };
    let number: i64 = text
        .parse()
        .map_err(|_| Error::BadRequest("Invalid input received: limit must be an integer".into()))?;
    match usize::try_from(number) {
        Ok(number) => Ok(number.min(MAX_LIMIT)),
        Err(_) => Err(Error::BadRequest(format!(
            "Invalid input received: limit must be >= 0, but it is {number}"
        ))),
    }
}

fn offset(pairs: &Pairs) -> Result<usize, Error> {
    let Some(text) = pairs.get("offset") else {
        return Ok(0);
    };
    let wrong = || {
        Error::BadRequest(format!(
            "Invalid input received: offset '{text}' is not a number >= 0"
        ))
    };
    let number: i64 = text.parse().map_err(|_| wrong())?;
    // As large as the database's own integers.
    if number > i64::from(i32::MAX) {
        return Err(wrong());
    }
    usize::try_from(number).map_err(|_| wrong())
}

/// The order that is asked for: names and whether the largest comes first.
fn order(pairs: &Pairs) -> Result<Vec<(String, bool)>, Error> {
    let direction = |text: &str| match text.to_ascii_lowercase().as_str() {
        "asc" => Ok(false),
        "desc" => Ok(true),
        _ => Err(Error::BadRequest(format!(
            "Invalid input received: Unknown sort direction, must be one of: asc, desc. It is {text}."
        ))),
    };
    if let Some(sort) = pairs.get("sort") {
        if pairs.get("sort_key").is_some() || pairs.get("sort_dir").is_some() {
            return Err(Error::BadRequest(
                "The \"sort_key\" and \"sort_dir\" parameters are deprecated and cannot be used with the \"sort\" \
                 parameter."
                    .into(),
            ));
        }
        return sort
            .split(',')
            .map(|part| {
                let (key, dir) = part.trim().split_once(':').unwrap_or((part.trim(), "desc"));
                Ok((key.trim().to_owned(), direction(dir.trim())?))
            })
            .collect();
    }
    let key = pairs.get("sort_key").unwrap_or("created_at");
    let descending = direction(pairs.get("sort_dir").unwrap_or("desc"))?;
    Ok(vec![(key.to_owned(), descending)])
}

/// Filters, sorts and cuts a list.
///
/// # Errors
/// 400 for what makes no sense.
pub(super) fn page<T: Item>(call: &Call, pairs: &Pairs, mut items: Vec<T>) -> Result<Page<T>, Error> {
    let filters = pairs
        .0
        .iter()
        .filter(|(key, _)| !NOT_FILTERS.contains(&key.as_str()));
    let mut unknown = None;
    for (key, value) in filters {
        let (like, key) = match key.strip_suffix('~') {
            Some(bare) if call.version >= Microversion::LIKE => (true, bare),
            _ => (false, key.as_str()),
        };
        // Asked of an empty list, too, so that what is unknown is told.
        if !T::knows(key) {
            unknown = Some(key.to_owned());
            continue;
        }
        items.retain(|item| {
            if like {
                match item.key(key) {
                    Some(Key::Text(text)) => text.contains(value.as_str()),
                    _ => false,
                }
            } else {
                item.fits(key, value).unwrap_or(true)
            }
        });
    }
    if let Some(key) = unknown
        && call.version >= Microversion::RESOURCE_FILTERS
        && !call.ctx.is_admin()
    {
        let key: String = key.chars().take(64).collect();
        return Err(Error::BadRequest(format!(
            "Invalid filters {key} are found in query options."
        )));
    }
    sort(&mut items, &order(pairs)?)?;
    let count = items.len();
    let mut start = offset(pairs)?;
    if let Some(marker) = pairs.get("marker").filter(|marker| !marker.is_empty()) {
        let at = items.iter().position(|item| item.id() == marker);
        let at = at.ok_or_else(|| Error::NotFound {
            resource: "Marker",
            id: marker.chars().take(64).collect(),
        })?;
        start += at + 1;
    }
    let limit = limit(pairs)?;
    let more = count.saturating_sub(start) > limit;
    let items: Vec<T> = items.into_iter().skip(start).take(limit).collect();
    // A page that is full has a next one, as far as Cinder is concerned; that may be empty.
    let full = !items.is_empty() && (more || (pairs.get("limit").is_some() && items.len() == limit));
    let next = if full { items.last().map(Item::id) } else { None };
    Ok(Page { items, next, count })
}

fn sort<T: Item>(items: &mut [T], order: &[(String, bool)]) -> Result<(), Error> {
    for (key, _) in order {
        if !T::sorts_by(key) {
            let key: String = key.chars().take(64).collect();
            return Err(Error::BadRequest(format!(
                "Invalid input received: Invalid sort key: {key}"
            )));
        }
    }
    items.sort_by(|a, b| {
        for (key, descending) in order {
            let ordering = a.key(key).partial_cmp(&b.key(key)).unwrap_or(Ordering::Equal);
            let ordering = if *descending { ordering.reverse() } else { ordering };
            if ordering != Ordering::Equal {
                return ordering;
            }
        }
        let ids = a.id().cmp(&b.id());
        if order.first().is_some_and(|(_, descending)| *descending) {
            ids.reverse()
        } else {
            ids
        }
    });
    Ok(())
}

/// What kinds of items know by themselves.
pub(super) trait Known {
    /// What they are looked for by.
    const FILTERS: &'static [&'static str];
    /// What they are sorted by.
    const KEYS: &'static [&'static str];
}

/// [`Known`], asked.
trait Knows {
    fn knows(filter: &str) -> bool;
    fn sorts_by(key: &str) -> bool;
}

impl<T: Item> Knows for T {
    fn knows(filter: &str) -> bool {
        T::FILTERS.contains(&filter)
    }

    fn sorts_by(key: &str) -> bool {
        T::KEYS.contains(&key)
    }
}

/// The document of a list: items, the link to the next page, and the count if it is asked for.
pub(super) fn document(
    call: &Call,
    pairs: &Pairs,
    name: &str,
    path: &str,
    views: Vec<Value>,
    next: Option<String>,
    count: usize,
) -> Result<Value, Error> {
    let mut body = Map::new();
    body.insert(name.to_owned(), Value::Array(views));
    if let Some(marker) = next {
        // A page further on is asked for by its marker alone.
        let pairs = Pairs(
            pairs
                .0
                .iter()
                .filter(|(key, _)| key != "offset")
                .cloned()
                .collect(),
        );
        let link = next_link(&format!("{}/{path}", call.base), &pairs, &marker);
        body.insert(format!("{name}_links"), json!([{"rel": "next", "href": link}]));
    }
    if call.version >= Microversion::COUNT && pairs.flag("with_count")?.unwrap_or(false) {
        body.insert("count".into(), count.into());
    }
    Ok(Value::Object(body))
}

/// A filter by time: `gt:2026-…,lt:2026-…` (3.60), or that time.
pub(super) fn fits_time(time: Option<Micros>, value: &str) -> bool {
    let Some(time) = time else { return false };
    value.split(',').all(|part| {
        let (operator, text) = match part.split_once(':') {
            Some((operator, text)) if ["gt", "gte", "eq", "neq", "lt", "lte"].contains(&operator) => {
                (operator, text)
            }
            _ => ("eq", part),
        };
        let Some(other) = Micros::parse(text) else {
            return false;
        };
        match operator {
            "gt" => time > other,
            "gte" => time >= other,
            "neq" => time != other,
            "lt" => time < other,
            "lte" => time <= other,
            _ => time == other,
        }
    })
}

/// A filter by pairs, as clients write a dictionary: `{'key': 'value'}` in Python's way or JSON's.
pub(super) fn fits_pairs(pairs: &cloud::volume::Pairs, value: &str) -> bool {
    let json = serde_json::from_str::<Map<String, Value>>(value)
        .or_else(|_| serde_json::from_str(&python_to_json(value)));
    match json {
        Ok(wanted) => wanted.iter().all(|(key, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            pairs.get(key) == Some(&value)
        }),
        Err(_) => false,
    }
}

/// A flat dictionary of Python's as JSON: quotes are swapped, `u''` is a text.
fn python_to_json(text: &str) -> String {
    let mut json = String::with_capacity(text.len());
    let mut quote = None;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (None, 'u') if characters.peek().is_some_and(|c| *c == '\'' || *c == '"') => {}
            (None, '\'' | '"') => {
                quote = Some(c);
                json.push('"');
            }
            (Some(open), c) if c == open => {
                quote = None;
                json.push('"');
            }
            (Some(_), '\\') => match characters.next() {
                Some('\'') => json.push('\''),
                Some(other) => {
                    json.push('\\');
                    json.push(other);
                }
                None => {}
            },
            (Some(_), '"') => json.push_str("\\\""),
            (_, c) => json.push(c),
        }
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionaries_of_both_kinds_are_read() {
        let pairs: cloud::volume::Pairs = [("a", "b"), ("it's", "x\"y")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        assert!(fits_pairs(&pairs, "{'a': 'b'}"));
        assert!(fits_pairs(&pairs, "{u'a': u'b'}"));
        assert!(fits_pairs(&pairs, r#"{"a": "b"}"#));
        assert!(fits_pairs(&pairs, r#"{"it's": 'x"y'}"#));
        assert!(fits_pairs(&pairs, "{}"));
        assert!(!fits_pairs(&pairs, "{'a': 'c'}"));
        for nonsense in ["", "{", "{'a'", "[]", "'\\", "{u'"] {
            assert!(!fits_pairs(&pairs, nonsense), "{nonsense}");
        }
    }

    #[test]
    fn times_are_compared() {
        let time = Micros::parse("2026-11-20T10:00:00");
        assert!(fits_time(time, "gt:2026-11-20T09:00:00,lt:2026-11-20T11:00:00"));
        assert!(!fits_time(time, "gt:2026-11-20T10:00:00"));
        assert!(fits_time(time, "gte:2026-11-20T10:00:00"));
        assert!(!fits_time(time, "whenever"));
        assert!(!fits_time(None, "gt:2026-11-20T10:00:00"));
    }
}
