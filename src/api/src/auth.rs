//! The caller of a request.

use std::sync::{Arc, OnceLock};

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
        let service = Service::of_request(parts);
        let token = parts.headers.get("x-auth-token").and_then(|v| v.to_str().ok());
        let unauthorized =
            || cloud::Error::Unauthorized("The request you have made requires authentication.".into());
        let token = token.ok_or_else(|| Fault::new(service, unauthorized()))?;
        let validated = state.cloud.identity.validate(token);
        state.metrics.token_validated(validated.is_ok());
        let mut context = validated.map_err(|e| Fault::new(service, e))?;
        if let Some(id) = parts.extensions.get::<RequestId>() {
            context.request_id = id.0.clone();
        }
        if let Some(caller) = parts.extensions.get::<Caller>() {
            caller.set(&context);
        }
        Ok(Auth(context))
    }
}

/// `req-` and a UUID, put into the request's extensions by the edge.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// A place where [`Auth`] leaves the caller's name for the access log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller(Arc<OnceLock<(String, Option<String>)>>);

impl Caller {
    fn set(&self, context: &Context) {
        let project = context.project().ok().map(str::to_owned);
        let _ = self.0.set((context.user_id.clone(), project));
    }

    /// The user and the project, if a token was shown.
    pub(crate) fn get(&self) -> (&str, &str) {
        self.0.get().map_or(("", ""), |(user, project)| {
            (user, project.as_deref().unwrap_or(""))
        })
    }
}
