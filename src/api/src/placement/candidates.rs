//! `/allocation_candidates`.

use std::collections::BTreeMap;

use axum::extract::State;
use cloud::Error;
use cloud::placement::candidates::{self, Request};
use serde_json::{Value, json};
use uuid::Uuid;

use super::microversion::Microversion;
use super::{Answer, bad, gone, ok, query};
use crate::AppState;
use crate::auth::Auth;
use crate::body::Pairs;

/// What is asked for: groups by suffix, of which each is met by one provider.
#[derive(Debug, Default)]
struct Asked {
    groups: BTreeMap<String, Request>,
    in_tree: Option<Uuid>,
    limit: Option<usize>,
}

/// A key's name and the suffix of its group.
fn split(key: &str, version: Microversion) -> Result<(&'static str, &str), Error> {
    for name in ["resources", "required", "member_of", "in_tree"] {
        let Some(suffix) = key.strip_prefix(name) else {
            continue;
        };
        let numbered = !suffix.starts_with('0') && suffix.bytes().all(|b| b.is_ascii_digit());
        let named = suffix.len() <= 64
            && suffix
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let allowed = suffix.is_empty()
            || (version >= Microversion::GROUPS && numbered)
            || (version >= Microversion::GROUP_NAMES && named);
        if allowed {
            return Ok((name, suffix));
        }
    }
    let key: String = key.chars().take(64).collect();
    Err(Error::BadRequest(format!(
        "Invalid query string parameters: '{key}' was unexpected"
    )))
}

fn parse(version: Microversion, pairs: &Pairs) -> Result<Asked, Error> {
    query::check_twice(pairs, version)?;
    let mut asked = Asked::default();
    for (key, value) in &pairs.0 {
        match key.as_str() {
            "limit" if version >= Microversion::LIMIT => {
                let limit = value.parse::<usize>().ok().filter(|limit| *limit > 0);
                asked.limit =
                    Some(limit.ok_or_else(|| Error::BadRequest("limit is a positive number".into()))?);
                continue;
            }
            "group_policy" if version >= Microversion::GROUPS => {
                if !matches!(value.as_str(), "none" | "isolate") {
                    return Err(Error::BadRequest("group_policy is 'none' or 'isolate'".into()));
                }
                continue;
            }
            "root_required" if version >= Microversion::ROOT_REQUIRED => {
                query::read(
                    "required",
                    value,
                    asked.groups.entry(String::new()).or_default(),
                    version,
                )?;
                continue;
            }
            "same_subtree" if version >= Microversion::SAME_SUBTREE => continue,
            _ => {}
        }
        let (name, suffix) = split(key, version)?;
        let from = match name {
            "required" => Microversion::REQUIRED,
            "member_of" => Microversion::CANDIDATES_MEMBER_OF,
            "in_tree" => Microversion::IN_TREE,
            _ => Microversion::CANDIDATES,
        };
        if version < from {
            return Err(Error::BadRequest(format!(
                "Invalid query string parameters: '{name}' was unexpected"
            )));
        }
        if name == "in_tree" {
            asked.in_tree = Some(query::id(name, value)?);
            continue;
        }
        query::read(
            name,
            value,
            asked.groups.entry(suffix.to_owned()).or_default(),
            version,
        )?;
    }
    if asked.groups.values().all(|group| group.resources.is_empty()) {
        return Err(Error::BadRequest(
            "At least one request group (`resources` or `resources{$S}`) is required.".into(),
        ));
    }
    Ok(asked)
}

/// One provider must meet all groups: the nodes of this cloud have no parts of their own.
fn together(asked: &Asked) -> Request {
    let mut all = Request::default();
    for group in asked.groups.values() {
        for (class, amount) in &group.resources {
            *all.resources.entry(class.clone()).or_default() += amount;
        }
        all.required.extend(group.required.clone());
        all.forbidden.extend(group.forbidden.clone());
        all.member_of.extend(group.member_of.clone());
        all.not_member_of.extend(group.not_member_of.clone());
    }
    all
}

pub(super) async fn index(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    pairs: Pairs,
) -> Answer {
    if version < Microversion::CANDIDATES {
        return Err(gone());
    }
    let asked = parse(version, &pairs)?;
    let isolated = pairs.get("group_policy") == Some("isolate");
    let numbered = asked.groups.keys().filter(|suffix| !suffix.is_empty()).count();
    if numbered > 1 && pairs.get("group_policy").is_none() {
        return Err(bad(
            "The \"group_policy\" parameter is required when specifying more than one \"resources{N}\" parameter.",
        ));
    }
    let request = together(&asked);
    let mut found = if isolated && numbered > 1 {
        Vec::new()
    } else {
        candidates::list(&app.cloud, &ctx, request.clone(), asked.in_tree, asked.limit).await?
    };
    found.sort_by_key(|candidate| candidate.provider.id);
    let mut requests = Vec::new();
    let mut summaries: BTreeMap<Uuid, Value> = BTreeMap::new();
    for candidate in &found {
        let id = candidate.provider.id;
        let allocations = if version >= Microversion::ALLOCATION_OBJECTS {
            json!({id.to_string(): {"resources": request.resources}})
        } else {
            json!([{"resource_provider": {"uuid": id}, "resources": request.resources}])
        };
        let mut view = json!({"allocations": allocations});
        if version >= Microversion::MAPPINGS {
            let mappings: BTreeMap<&String, Value> = asked
                .groups
                .iter()
                .filter(|(_, group)| !group.resources.is_empty())
                .map(|(suffix, _)| (suffix, json!([id])))
                .collect();
            view["mappings"] = json!(mappings);
        }
        requests.push(view);
        let resources: BTreeMap<&String, Value> = candidate
            .inventories
            .iter()
            .filter(|(class, ..)| {
                version >= Microversion::ALL_CLASSES || request.resources.contains_key(class)
            })
            .map(|(class, inventory, used)| (class, json!({"capacity": inventory.capacity(), "used": used})))
            .collect();
        let mut summary = json!({"resources": resources});
        if version >= Microversion::REQUIRED {
            summary["traits"] = json!(candidate.traits);
        }
        if version >= Microversion::TREES {
            summary["parent_provider_uuid"] = json!(candidate.provider.parent);
            summary["root_provider_uuid"] = json!(candidate.root);
        }
        summaries.insert(id, summary);
    }
    ok(
        version,
        json!({"allocation_requests": requests, "provider_summaries": summaries}),
    )
}
