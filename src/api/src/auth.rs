//! The caller of a request.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use cloud::Context;

use crate::AppState;
use crate::fault::{Fault, Service};

/// Extractor: the context of a valid `X-Auth-Token`, or 401.
pub struct Auth(pub Context);

impl FromRequestParts<AppState> for Auth {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Fault> {
        let service = Service::of_path(parts.uri.path());
        let token = parts.headers.get("x-auth-token").and_then(|v| v.to_str().ok());
        let unauthorized = || cloud::Error::Unauthorized("The request you have made requires authentication.".into());
        let token = token.ok_or_else(|| Fault::new(service, unauthorized()))?;
        let mut context = state.cloud.identity.validate(token).map_err(|e| Fault::new(service, e))?;
        if let Some(id) = parts.extensions.get::<RequestId>() {
            context.request_id = id.0.clone();
        }
        Ok(Auth(context))
    }
}

/// `req-` and a UUID, put into the request's extensions by the edge.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);
