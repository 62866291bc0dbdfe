//! Errors as each OpenStack service words them.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use cloud::Error;
use cloud::error::Kind;
use serde_json::json;

/// The services differ in the shape of their faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Keystone: `{"error": {"code", "title", "message"}}`.
    Identity,
    /// Nova: `{"itemNotFound": {"code", "message"}}`.
    Compute,
    /// Neutron: `{"NeutronError": {"type", "message", "detail"}}`.
    Network,
    /// Glance: an HTML page in the original; JSON `{"code", "title", "message"}` here.
    Image,
}

impl Service {
    /// The service that a path belongs to (the whole path, or the one below the service's own prefix is unknown: Identity).
    pub fn of_path(path: &str) -> Service {
        match path.split('/').nth(1) {
            Some("compute") => Service::Compute,
            Some("network") => Service::Network,
            Some("image") => Service::Image,
            _ => Service::Identity,
        }
    }
}

/// A domain error on its way out of one service.
#[derive(Debug)]
pub struct Fault {
    service: Service,
    error: Error,
}

impl Fault {
    /// The error, to be worded as this service does.
    pub fn new(service: Service, error: Error) -> Self {
        Fault { service, error }
    }
}

/// The status of an error; Neutron differs in quotas (409), Nova and Cinder say 403 or 413.
fn status(service: Service, error: &Error) -> StatusCode {
    match error.kind() {
        Some(Kind::NotFound) => return StatusCode::NOT_FOUND,
        Some(Kind::BadRequest) => return StatusCode::BAD_REQUEST,
        Some(Kind::Forbidden) => return StatusCode::FORBIDDEN,
        Some(Kind::Conflict) => return StatusCode::CONFLICT,
        Some(Kind::QuotaExceeded) if service == Service::Network => return StatusCode::CONFLICT,
        Some(Kind::QuotaExceeded) if service == Service::Image => return StatusCode::PAYLOAD_TOO_LARGE,
        Some(Kind::QuotaExceeded) => return StatusCode::FORBIDDEN,
        Some(Kind::Unavailable) => return StatusCode::SERVICE_UNAVAILABLE,
        None => {}
    }
    match error {
        Error::Unauthorized(_) => StatusCode::UNAUTHORIZED,
        Error::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        Error::UnsupportedMediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let status = status(self.service, &self.error);
        let message = match &self.error {
            Error::Internal(text) => {
                tracing::error!(error = %text, "internal error");
                "An unexpected error prevented the server from fulfilling your request.".to_owned()
            }
            other => other.to_string(),
        };
        let code = status.as_u16();
        let title = status.canonical_reason().unwrap_or("Error");
        let body = match self.service {
            Service::Identity => json!({"error": {"code": code, "title": title, "message": message}}),
            Service::Compute => {
                let key = match code {
                    400 => "badRequest",
                    401 => "unauthorized",
                    403 => "forbidden",
                    404 => "itemNotFound",
                    405 => "badMethod",
                    409 => "conflictingRequest",
                    413 => "overLimit",
                    415 => "badMediaType",
                    503 => "serviceUnavailable",
                    _ => "computeFault",
                };
                json!({key: {"code": code, "message": message}})
            }
            Service::Network => json!({"NeutronError": {"type": neutron_type(&self.error), "message": message, "detail": ""}}),
            Service::Image => json!({"code": format!("{code} {title}"), "title": title, "message": message}),
        };
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert("www-authenticate", axum::http::HeaderValue::from_static("Keystone uri=\"/identity\""));
        }
        response
    }
}

fn neutron_type(error: &Error) -> String {
    match error {
        Error::Named { name, .. } => (*name).into(),
        Error::NotFound { resource, .. } => format!("{}NotFound", resource.replace(' ', "")),
        Error::BadRequest(_) => "HTTPBadRequest".into(),
        Error::Conflict(_) => "Conflict".into(),
        Error::QuotaExceeded(_) => "OverQuota".into(),
        Error::Forbidden(_) => "PolicyNotAuthorized".into(),
        _ => "HTTPInternalServerError".into(),
    }
}
