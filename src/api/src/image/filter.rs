//! Queries of image lists: `name=in:a,b`, `created_at=gt:…`, `sort=name:asc`.

use cloud::Error;
use cloud::image::list::{Comparison, Filter, SortKey, TimeKey};
use cloud::image::members::Consent;
use cloud::image::{Visibility, parse_format};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::body::Pairs;

/// Keys that are no filters.
const NO_FILTERS: [&str; 5] = ["limit", "marker", "sort", "sort_key", "sort_dir"];

pub(super) fn filter(pairs: &Pairs) -> Result<Filter, Error> {
    let mut filter = Filter {
        size: (pairs.number("size_min")?, pairs.number("size_max")?),
        ..Filter::default()
    };
    for (key, value) in &pairs.0 {
        match key.as_str() {
            key if NO_FILTERS.contains(&key) => {}
            "size_min" | "size_max" => {}
            "visibility" if value == "all" => filter.all_visibilities = true,
            "visibility" => filter.visibility = Some(Visibility::parse(value)?),
            "member_status" if value == "all" => filter.member_status = Some(None),
            "member_status" => filter.member_status = Some(Some(Consent::parse(value)?)),
            "os_hidden" => filter.hidden = pairs.flag("os_hidden")?.unwrap_or(false),
            "tag" => filter.tags.push(value.clone()),
            "created_at" => filter.times.push(time_filter(TimeKey::Created, value)?),
            "updated_at" => filter.times.push(time_filter(TimeKey::Updated, value)?),
            // An id that is none is the id of no image.
            "id" => filter.ids = Some(values(value)?.iter().filter_map(|id| id.parse().ok()).collect()),
            "protected" => {
                let wanted = pairs.flag("protected")?.unwrap_or(true);
                filter
                    .attributes
                    .push(("protected".into(), vec![wanted.to_string()]));
            }
            "disk_format" => {
                let wanted = values(value)?;
                wanted
                    .iter()
                    .try_for_each(|name| parse_format(name).map(|_| ()))?;
                filter.attributes.push((key.clone(), wanted));
            }
            "name" | "status" | "container_format" => filter.attributes.push((key.clone(), values(value)?)),
            _ => filter.attributes.push((key.clone(), vec![value.clone()])),
        }
    }
    Ok(filter)
}

/// `x`, or `in:x,y`, where a comma may stand in `"…"`.
fn values(text: &str) -> Result<Vec<String>, Error> {
    let Some(list) = text.strip_prefix("in:") else {
        return Ok(vec![text.to_owned()]);
    };
    let (mut all, mut one, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = list.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => quoted = !quoted,
            '\\' if quoted => one.extend(chars.next()),
            ',' if !quoted => all.push(std::mem::take(&mut one)),
            char => one.push(char),
        }
    }
    if quoted {
        return Err(Error::BadRequest(format!(
            "Invalid filter value {text}. The quote is not closed."
        )));
    }
    all.push(one);
    Ok(all)
}

fn time_filter(key: TimeKey, text: &str) -> Result<(TimeKey, Comparison, i64), Error> {
    let known = [
        ("gte:", Comparison::GreaterOrEqual),
        ("gt:", Comparison::Greater),
        ("lte:", Comparison::LessOrEqual),
        ("lt:", Comparison::Less),
        ("neq:", Comparison::NotEqual),
        ("eq:", Comparison::Equal),
    ];
    let found = known
        .iter()
        .find_map(|(prefix, comparison)| Some((*comparison, text.strip_prefix(prefix)?)));
    let (comparison, text) = found.unwrap_or((Comparison::Equal, text));
    let zoned = if text.ends_with('Z') || text.contains('+') {
        text.to_owned()
    } else {
        format!("{text}Z")
    };
    let time = OffsetDateTime::parse(&zoned, &Rfc3339);
    let time = time.map_err(|_| Error::BadRequest(format!("Invalid time: {text:?}. ISO 8601 is needed.")))?;
    let micros = i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX);
    Ok((key, comparison, micros))
}

pub(super) fn sort(pairs: &Pairs) -> Result<Vec<SortKey>, Error> {
    let direction = |text: &str| match text {
        "asc" => Ok(true),
        "desc" => Ok(false),
        _ => Err(Error::BadRequest(format!(
            "Invalid sort direction: {text}. It must be asc or desc."
        ))),
    };
    let mut keys = Vec::new();
    if let Some(sort) = pairs.get("sort") {
        if pairs.get("sort_key").is_some() || pairs.get("sort_dir").is_some() {
            return Err(Error::BadRequest("sort excludes sort_key and sort_dir.".into()));
        }
        for key in sort.split(',') {
            let (key, dir) = key.trim().split_once(':').unwrap_or((key.trim(), "desc"));
            keys.push((key.to_owned(), direction(dir)?));
        }
        return Ok(keys);
    }
    let dirs = pairs
        .all("sort_dir")
        .map(direction)
        .collect::<Result<Vec<_>, _>>()?;
    for (place, key) in pairs.all("sort_key").enumerate() {
        let dir = dirs.get(place).or(dirs.first()).copied().unwrap_or(false);
        keys.push((key.to_owned(), dir));
    }
    if keys.is_empty() && !dirs.is_empty() {
        keys.push(("created_at".to_owned(), dirs[0]));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_values() {
        assert_eq!(values("a,b").unwrap(), ["a,b"]);
        assert_eq!(values("in:a,b").unwrap(), ["a", "b"]);
        assert_eq!(values(r#"in:"a,b",c"#).unwrap(), ["a,b", "c"]);
        assert!(values(r#"in:"a"#).is_err());
    }

    #[test]
    fn sort_keys_in_both_forms() {
        let keys = |query| sort(&Pairs::parse(query));
        assert_eq!(
            keys("sort=name:asc,size").unwrap(),
            [("name".into(), true), ("size".into(), false)]
        );
        assert_eq!(
            keys("sort_key=name&sort_key=id&sort_dir=asc").unwrap(),
            [("name".into(), true), ("id".into(), true)]
        );
        assert_eq!(keys("sort_dir=asc").unwrap(), [("created_at".into(), true)]);
        assert!(keys("sort=name:up").is_err());
        assert!(keys("sort=name&sort_key=id").is_err());
    }

    #[test]
    fn times_compare() {
        let (_, comparison, at) = time_filter(TimeKey::Created, "gte:2026-11-20T00:00:00Z").unwrap();
        assert_eq!(
            (comparison, at),
            (Comparison::GreaterOrEqual, 1_795_132_800_000_000)
        );
        assert!(time_filter(TimeKey::Created, "yesterday").is_err());
    }
}
