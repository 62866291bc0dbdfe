//! What a list's query asks for: filters, order, page and fields.

use std::cmp::Ordering;

use cloud::{Error, Result};
use serde_json::{Map, Value, json};

use crate::body::Pairs;

/// One resource as its list shows it.
pub(super) type View = Map<String, Value>;

/// Query keys that are no attributes.
const CONTROL: [&str; 6] = [
    "fields",
    "sort_key",
    "sort_dir",
    "limit",
    "marker",
    "page_reverse",
];
const TAG_FILTERS: [&str; 4] = ["tags", "tags-any", "not-tags", "not-tags-any"];

/// A list's query, checked.
#[derive(Debug, Default)]
pub(super) struct Query {
    /// Attribute → values of which one must match.
    filters: Vec<(String, Vec<String>)>,
    sort: Vec<(String, bool)>,
    limit: Option<usize>,
    marker: Option<String>,
    reverse: bool,
    fields: Vec<String>,
}

impl Query {
    /// Reads a query; `attributes` can be filtered and sorted by, `more` are filters beside them.
    pub(super) fn read(pairs: &Pairs, attributes: &[&str], more: &[&str]) -> Result<Query> {
        let mut query = Query::default();
        for (key, value) in &pairs.0 {
            if CONTROL.contains(&key.as_str()) {
                continue;
            }
            if !attributes.contains(&key.as_str())
                && !more.contains(&key.as_str())
                && !TAG_FILTERS.contains(&key.as_str())
            {
                let key: String = key.chars().take(64).collect();
                return Err(Error::BadRequest(format!(
                    "'{key}' is invalid attribute for filtering"
                )));
            }
            let key = if key == "tenant_id" { "project_id" } else { key };
            match query.filters.iter_mut().find(|(known, _)| known == key) {
                Some((_, values)) => values.push(value.clone()),
                None => query.filters.push((key.to_owned(), vec![value.clone()])),
            }
        }
        let directions: Vec<&str> = pairs.all("sort_dir").collect();
        for (index, key) in pairs.all("sort_key").enumerate() {
            if !attributes.contains(&key) {
                let key: String = key.chars().take(64).collect();
                return Err(Error::BadRequest(format!(
                    "'{key}' is invalid attribute for sort_key"
                )));
            }
            let descending = match directions.get(index).copied().unwrap_or("asc") {
                "asc" => false,
                "desc" => true,
                _ => return Err(Error::BadRequest("sort_dir must be 'asc' or 'desc'".into())),
            };
            query.sort.push((key.to_owned(), descending));
        }
        let limit = pairs
            .number("limit")?
            .and_then(|limit| usize::try_from(limit).ok());
        query.limit = limit.filter(|limit| *limit > 0);
        query.marker = pairs
            .get("marker")
            .filter(|marker| !marker.is_empty())
            .map(str::to_owned);
        query.reverse = pairs.flag("page_reverse")?.unwrap_or(false);
        query.fields = pairs
            .all("fields")
            .filter(|field| !field.is_empty())
            .map(str::to_owned)
            .collect();
        Ok(query)
    }

    /// The values of a filter, for a look-up in the database that narrows the list.
    pub(super) fn values(&self, name: &str) -> Option<&[String]> {
        self.filters
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, values)| values.as_slice())
    }

    /// Filters, sorts and cuts a list. The links lead to the pages beside this one; `url` is the list's own address.
    pub(super) fn apply(
        &self,
        mut views: Vec<View>,
        url: &str,
        pairs: &Pairs,
    ) -> Result<(Vec<View>, Vec<Value>)> {
        views.retain(|view| {
            self.filters
                .iter()
                .all(|(key, values)| matches(view, key, values))
        });
        if !self.sort.is_empty() {
            views.sort_by(|a, b| {
                let by_key = |(key, descending): &(String, bool)| {
                    let order = compare(a.get(key), b.get(key));
                    if *descending { order.reverse() } else { order }
                };
                let order = self.sort.iter().map(by_key).find(|order| order.is_ne());
                order.unwrap_or_else(|| compare(a.get("id"), b.get("id")))
            });
        }
        let mut links = Vec::new();
        if self.limit.is_some() || self.marker.is_some() {
            let total = views.len();
            let at = match &self.marker {
                None => None,
                Some(marker) => {
                    let position = views
                        .iter()
                        .position(|view| view.get("id").and_then(Value::as_str) == Some(marker));
                    Some(position.ok_or_else(|| Error::BadRequest(format!("marker '{marker}' not found")))?)
                }
            };
            let limit = self.limit.unwrap_or(total);
            let (start, end) = if self.reverse {
                let end = at.unwrap_or(total);
                (end.saturating_sub(limit), end)
            } else {
                let start = at.map_or(0, |at| at + 1);
                (start, start.saturating_add(limit).min(total))
            };
            views = views.drain(start..end).collect();
            if self.limit.is_some() {
                let id = |view: Option<&View>| {
                    view.and_then(|v| v.get("id"))
                        .and_then(Value::as_str)
                        .map(str::to_owned)
                };
                // As in Neutron, a full page may have another behind it, and only a short one is known to be the last.
                let short = views.len() < limit;
                let (first, last) = (id(views.first()), id(views.last()));
                let beside = last.is_some() || self.marker.is_some();
                if beside && (!short || self.reverse) {
                    links.push(json!({"rel": "next", "href": page(url, pairs, last, false)}));
                }
                if beside && (!short || !self.reverse) {
                    links.push(json!({"rel": "previous", "href": page(url, pairs, first, true)}));
                }
            }
        }
        for view in &mut views {
            self.only_fields(view);
        }
        Ok((views, links))
    }

    /// Leaves the fields that were asked for.
    pub(super) fn only_fields(&self, view: &mut View) {
        if !self.fields.is_empty() {
            view.retain(|key, _| self.fields.iter().any(|field| field == key));
        }
    }
}

/// The address of another page; without a marker: the first or, in reverse, the last.
fn page(url: &str, pairs: &Pairs, marker: Option<String>, reverse: bool) -> String {
    let kept = pairs
        .0
        .iter()
        .filter(|(key, _)| key != "marker" && key != "page_reverse")
        .cloned();
    let mut kept = Pairs(kept.collect());
    if reverse {
        kept.0.push(("page_reverse".into(), "True".into()));
    }
    if let Some(marker) = marker {
        return crate::page::next_link(url, &kept, &marker);
    }
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(&kept.0);
    format!("{url}?{}", query.finish())
}

fn matches(view: &View, key: &str, values: &[String]) -> bool {
    if TAG_FILTERS.contains(&key) {
        return matches_tags(view, key, values);
    }
    match (key, view.get(key)) {
        ("fixed_ips", Some(Value::Array(addresses))) => matches_fixed_ips(addresses, values),
        ("ip_address" | "subnet_id", None) => {
            let addresses = view
                .get("fixed_ips")
                .and_then(Value::as_array)
                .map(Vec::as_slice)
                .unwrap_or_default();
            addresses
                .iter()
                .any(|address| values.iter().any(|wanted| is(&address[key], wanted)))
        }
        (_, Some(Value::Array(items))) => items
            .iter()
            .any(|item| values.iter().any(|wanted| is(item, wanted))),
        (_, value) => values
            .iter()
            .any(|wanted| is(value.unwrap_or(&Value::Null), wanted)),
    }
}

fn is(value: &Value, wanted: &str) -> bool {
    match value {
        Value::Null => {
            wanted.is_empty() || wanted.eq_ignore_ascii_case("none") || wanted.eq_ignore_ascii_case("null")
        }
        Value::Bool(flag) => match wanted.to_ascii_lowercase().as_str() {
            "true" | "1" => *flag,
            "false" | "0" => !*flag,
            _ => false,
        },
        Value::String(text) => text == wanted || (text.contains(':') && text.eq_ignore_ascii_case(wanted)),
        Value::Number(number) => number.to_string() == wanted,
        Value::Array(_) | Value::Object(_) => false,
    }
}

/// `fixed_ips=ip_address=10.0.0.3&fixed_ips=subnet_id=…`: one of each kind must match.
fn matches_fixed_ips(addresses: &[Value], values: &[String]) -> bool {
    let of_kind = |kind: &str| -> Vec<&str> {
        values
            .iter()
            .filter_map(|value| value.strip_prefix(kind)?.strip_prefix('='))
            .collect()
    };
    let (ips, subnets, parts) = (
        of_kind("ip_address"),
        of_kind("subnet_id"),
        of_kind("ip_address_substr"),
    );
    let any = |wanted: &[&str], check: &dyn Fn(&Value, &str) -> bool| {
        wanted.is_empty()
            || addresses
                .iter()
                .any(|address| wanted.iter().any(|wanted| check(address, wanted)))
    };
    !(ips.is_empty() && subnets.is_empty() && parts.is_empty())
        && any(&ips, &|address, wanted| is(&address["ip_address"], wanted))
        && any(&subnets, &|address, wanted| is(&address["subnet_id"], wanted))
        && any(&parts, &|address, part| {
            address["ip_address"].as_str().is_some_and(|ip| ip.contains(part))
        })
}

/// Tags come as one list with commas; every value of a doubled key counts.
fn matches_tags(view: &View, key: &str, values: &[String]) -> bool {
    let tags = view
        .get("tags")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let wanted: Vec<&str> = values.iter().flat_map(|value| value.split(',')).collect();
    let has = |tag: &&str| tags.iter().any(|own| own == *tag);
    match key {
        "tags" => wanted.iter().all(has),
        "tags-any" => wanted.iter().any(has),
        "not-tags" => !wanted.iter().all(has),
        _ => !wanted.iter().any(has),
    }
}

/// Nothing comes first, then numbers and texts in their own order.
fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    let rank = |value: Option<&Value>| match value {
        None | Some(Value::Null) => 0,
        Some(Value::Bool(_)) => 1,
        Some(Value::Number(_)) => 2,
        Some(Value::String(_)) => 3,
        Some(_) => 4,
    };
    match (a, b) {
        (Some(Value::String(a)), Some(Value::String(b))) => a.cmp(b),
        (Some(Value::Bool(a)), Some(Value::Bool(b))) => a.cmp(b),
        (Some(Value::Number(a)), Some(Value::Number(b))) => {
            a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal)
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTRIBUTES: &[&str] = &["id", "name", "tags", "fixed_ips", "up", "project_id", "tenant_id"];

    fn views() -> Vec<View> {
        let view = |id: &str, name: &str, ip: &str, tags: &[&str]| {
            let view = json!({"id": id, "name": name, "up": id == "a", "tags": tags, "project_id": "p",
                "fixed_ips": [{"subnet_id": "s", "ip_address": ip}]});
            view.as_object().cloned().unwrap_or_default()
        };
        vec![
            view("a", "x", "10.0.0.1", &["red"]),
            view("b", "y", "10.0.0.2", &["red", "blue"]),
            view("c", "x", "10.0.0.3", &[]),
            view("d", "z", "fd00::AB", &["blue"]),
        ]
    }

    fn ids(query: &str) -> String {
        let pairs = Pairs::parse(query);
        let (views, _) = Query::read(&pairs, ATTRIBUTES, &["ip_address"])
            .unwrap()
            .apply(views(), "/x", &pairs)
            .unwrap();
        views.iter().map(|view| view["id"].as_str().unwrap()).collect()
    }

    #[test]
    fn filters_are_joined_by_and_their_values_by_or() {
        assert_eq!(ids("name=x"), "ac");
        assert_eq!(ids("name=x&name=z"), "acd");
        assert_eq!(ids("name=x&up=True"), "a");
        assert_eq!(ids("tenant_id=p&id=b"), "b");
        assert_eq!(
            ids("fixed_ips=ip_address%3D10.0.0.2&fixed_ips=ip_address%3D10.0.0.3"),
            "bc"
        );
        assert_eq!(
            ids("fixed_ips=ip_address%3D10.0.0.2&fixed_ips=subnet_id%3Dother"),
            ""
        );
        assert_eq!(ids("fixed_ips=ip_address_substr%3D10.0"), "abc");
        assert_eq!(ids("ip_address=fd00::ab"), "d");
        assert_eq!(ids("tags=red,blue"), "b");
        assert_eq!(ids("tags-any=red,blue"), "abd");
        assert_eq!(ids("not-tags=red,blue"), "acd");
        assert_eq!(ids("not-tags-any=red,blue"), "c");
    }

    #[test]
    fn order_and_pages() {
        assert_eq!(ids("sort_key=name&sort_dir=desc"), "dbac");
        assert_eq!(
            ids("sort_key=name&sort_key=id&sort_dir=asc&sort_dir=desc"),
            "cabd"
        );
        assert_eq!(ids("limit=2"), "ab");
        assert_eq!(ids("limit=2&marker=b"), "cd");
        assert_eq!(ids("limit=2&marker=d&page_reverse=True"), "bc");
        assert_eq!(ids("limit=0"), "abcd");
    }

    #[test]
    fn links_lead_to_the_pages_beside() {
        let pairs = Pairs::parse("limit=1&marker=b&name=x&name=y");
        let query = Query::read(&pairs, ATTRIBUTES, &[]).unwrap();
        let (views, links) = query.apply(views(), "/n", &pairs).unwrap();
        assert_eq!(views.len(), 1);
        assert_eq!(
            links,
            [
                json!({"rel": "next", "href": "/n?limit=1&name=x&name=y&marker=c"}),
                json!({"rel": "previous", "href": "/n?limit=1&name=x&name=y&page_reverse=True&marker=c"})
            ]
        );
        let pairs = Pairs::parse("limit=9");
        let query = Query::read(&pairs, ATTRIBUTES, &[]).unwrap();
        let (_, links) = query.apply(super::tests::views(), "/n", &pairs).unwrap();
        assert!(links.iter().all(|link| link["rel"] != "next"), "{links:?}");
    }

    #[test]
    fn what_cannot_be_asked_for_is_a_400() {
        for bad in [
            "color=red",
            "sort_key=color",
            "sort_key=name&sort_dir=up",
            "limit=-1",
            "limit=x",
        ] {
            let error = Query::read(&Pairs::parse(bad), ATTRIBUTES, &[]).unwrap_err();
            assert!(matches!(error, Error::BadRequest(_)), "{bad}");
        }
        let pairs = Pairs::parse("marker=nobody");
        assert!(
            Query::read(&pairs, ATTRIBUTES, &[])
                .unwrap()
                .apply(views(), "/x", &pairs)
                .is_err()
        );
    }
}
