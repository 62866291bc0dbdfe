//! Glance's own subset of JSON Patch (RFC 6902): attributes by name alone.

use cloud::Error;
use cloud::image::update::Step;
use serde_json::{Map, Value};

/// The most steps of one change.
const MAX_STEPS: usize = 256;

/// The syntax of a patch, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syntax {
    /// `{"replace": "/name", "value": …}`
    V20,
    /// `{"op": "replace", "path": "/name", "value": …}`
    V21,
}

/// The syntax that a content type names.
///
/// # Errors
/// 415.
pub(super) fn syntax(content_type: Option<&str>) -> Result<Syntax, Error> {
    let essence = content_type.unwrap_or("").split(';').next().unwrap_or("").trim();
    match essence {
        "application/openstack-images-v2.1-json-patch" => Ok(Syntax::V21),
        "application/openstack-images-v2.0-json-patch" => Ok(Syntax::V20),
        _ => Err(Error::UnsupportedMediaType(
            "Unsupported Content-Type: send application/openstack-images-v2.1-json-patch.".into(),
        )),
    }
}

pub(super) fn parse(syntax: Syntax, document: &Value) -> Result<Vec<Step>, Error> {
    let steps = document.as_array().filter(|steps| steps.len() <= MAX_STEPS);
    let steps = steps.ok_or_else(|| bad("the body is a list of at most 256 operations"))?;
    steps
        .iter()
        .map(|step| {
            one(
                syntax,
                step.as_object().ok_or_else(|| bad("an operation is an object"))?,
            )
        })
        .collect()
}

fn bad(why: &str) -> Error {
    Error::BadRequest(format!("Invalid patch: {why}."))
}

fn one(syntax: Syntax, step: &Map<String, Value>) -> Result<Step, Error> {
    let text = |key: &str| step.get(key).and_then(Value::as_str);
    let (op, path) = match syntax {
        Syntax::V21 => (text("op"), text("path")),
        Syntax::V20 => {
            let op = ["add", "replace", "remove"]
                .into_iter()
                .find(|op| step.contains_key(*op));
            (op, op.and_then(text))
        }
    };
    let path = path.ok_or_else(|| bad("an operation has a path"))?;
    let key = path
        .strip_prefix('/')
        .ok_or_else(|| bad("a path begins with /"))?;
    if key.is_empty() || key.contains('/') {
        return Err(bad("a path names one attribute"));
    }
    // RFC 6901 §4.
    let key = key.replace("~1", "/").replace("~0", "~");
    let value = || {
        step.get("value")
            .cloned()
            .ok_or_else(|| bad("the operation needs a value"))
    };
    match op {
        Some("add") => Ok(Step::Add(key, value()?)),
        Some("replace") => Ok(Step::Replace(key, value()?)),
        Some("remove") => Ok(Step::Remove(key)),
        _ => Err(bad("an operation is add, replace or remove")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn both_syntaxes() {
        let new = json!([{"op": "replace", "path": "/a~1b", "value": "x"}, {"op": "remove", "path": "/c"}]);
        let steps = parse(Syntax::V21, &new).unwrap();
        assert_eq!(
            steps,
            [Step::Replace("a/b".into(), json!("x")), Step::Remove("c".into())]
        );
        let old = json!([{"add": "/d", "value": "y"}]);
        assert_eq!(
            parse(Syntax::V20, &old).unwrap(),
            [Step::Add("d".into(), json!("y"))]
        );
    }

    #[test]
    fn what_is_no_patch_is_400() {
        for bad in [
            json!({}),
            json!([1]),
            json!([{"op": "move", "path": "/a"}]),
            json!([{"op": "add", "path": "/a"}]),
            json!([{"op": "add", "path": "a", "value": 1}]),
            json!([{"op": "add", "path": "/a/b", "value": 1}]),
            json!([{"op": "add", "path": "/", "value": 1}]),
        ] {
            assert!(
                matches!(parse(Syntax::V21, &bad), Err(Error::BadRequest(_))),
                "{bad}"
            );
        }
        assert!(matches!(
            syntax(Some("application/json")),
            Err(Error::UnsupportedMediaType(_))
        ));
    }

    proptest! {
        #[test]
        fn any_path_is_a_step_or_400(path in "\\PC{0,20}") {
            let patch = json!([{"op": "add", "path": path, "value": 1}]);
            if let Err(error) = parse(Syntax::V21, &patch) {
                prop_assert!(matches!(error, Error::BadRequest(_)));
            }
        }
    }
}
