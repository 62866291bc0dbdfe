//! Which versions there are, asked without a token; and the header by which clients choose one.

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::AppState;
use crate::body::Json;
use crate::fault::{Fault, Service};

/// The highest minor version of `1.x`: it has consumers of secrets.
const MAX_MINOR: u32 = 1;
/// The header of requests and answers.
const HEADER: &str = "openstack-api-version";

/// The minor version that a request speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Minor(pub(super) u32);

impl Minor {
    /// Consumers of secrets are there.
    pub(super) fn has_consumers(self) -> bool {
        self.0 >= 1
    }
}

fn document(state: &AppState) -> Value {
    let href = format!("{}/key-manager/v1/", state.cloud.config.public_url);
    json!({
        "id": "v1",
        "status": "CURRENT",
        "min_version": "1.0",
        "max_version": format!("1.{MAX_MINOR}"),
        "links": [{"rel": "self", "href": href}],
        "media-types": [
            {"base": "application/json", "type": "application/vnd.openstack.key-manager-v1+json"}
        ],
    })
}

pub(super) async fn all(State(state): State<AppState>) -> Response {
    let body = json!({"versions": [document(&state)]});
    (StatusCode::MULTIPLE_CHOICES, Json(body)).into_response()
}

pub(super) async fn v1(State(state): State<AppState>) -> Response {
    Json(json!({"version": document(&state)})).into_response()
}

/// `key-manager 1.1`; nothing means 1.0, `latest` the highest.
fn minor(header: Option<&str>) -> Result<Minor, String> {
    let Some(version) = header.and_then(|text| text.trim().strip_prefix("key-manager ")) else {
        return Ok(Minor(0));
    };
    match version.trim() {
        "latest" => Ok(Minor(MAX_MINOR)),
        text => text
            .strip_prefix("1.")
            .and_then(|minor| minor.parse().ok())
            .filter(|minor| *minor <= MAX_MINOR)
            .map(Minor)
            .ok_or_else(|| {
                let text: String = text.chars().take(32).collect();
                format!(
                    "Version {text} is not supported by the API. Minimum is 1.0 and maximum is 1.{MAX_MINOR}."
                )
            }),
    }
}

/// Reads the header, refuses versions that are not there, and says in the answer which one it is.
pub(super) async fn negotiate(mut request: Request, next: Next) -> Response {
    let header = request
        .headers()
        .get(HEADER)
        .and_then(|value| value.to_str().ok());
    let minor = match minor(header) {
        Ok(minor) => minor,
        Err(text) => {
            return Fault::http(Service::KeyManager, StatusCode::NOT_ACCEPTABLE, text).into_response();
        }
    };
    request.extensions_mut().insert(minor);
    let mut response = next.run(request).await;
    let value = HeaderValue::from_str(&format!("key-manager 1.{}", minor.0));
    if let Ok(value) = value {
        response.headers_mut().insert(HEADER, value);
    }
    response
        .headers_mut()
        .append("vary", HeaderValue::from_static("OpenStack-API-Version"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_name_a_version() {
        assert_eq!(minor(None), Ok(Minor(0)));
        assert_eq!(minor(Some("compute 2.1")), Ok(Minor(0)));
        assert_eq!(minor(Some("key-manager 1.1")), Ok(Minor(1)));
        assert_eq!(minor(Some("key-manager latest")), Ok(Minor(MAX_MINOR)));
        for wrong in [
            "key-manager 1.99",
            "key-manager 2.0",
            "key-manager x",
            "key-manager 1.",
        ] {
            assert!(minor(Some(wrong)).is_err(), "{wrong}");
        }
    }
}
