//! Errors as each OpenStack service words them.

use axum::extract::OriginalUri;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use cloud::Error;
use cloud::error::Kind;
use serde_json::json;

/// The services differ in the shape of their faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// Keystone: `{"error": {"code", "title", "message"}}`.
    Identity,
    /// Nova: `{"itemNotFound": {"code", "message"}}`.
    Compute,
    /// Neutron: `{"NeutronError": {"type", "message", "detail"}}`.
    Network,
    /// Glance: an HTML page in the original; JSON `{"code", "title", "message"}` here.
    Image,
    /// Placement: `{"errors": [{"status", "title", "detail", "code"}]}`.
    Placement,
    /// Barbican: `{"code", "title", "description"}`.
    KeyManager,
    /// Cinder: as Nova.
    Volume,
}

impl Service {
    /// The service that a whole path belongs to; what is outside all services is worded as Identity does.
    pub fn of_path(path: &str) -> Service {
        match path.split('/').nth(1) {
            Some("compute") => Service::Compute,
            Some("network") => Service::Network,
            Some("image") => Service::Image,
            Some("placement") => Service::Placement,
            Some("key-manager") => Service::KeyManager,
            Some("volume") => Service::Volume,
            _ => Service::Identity,
        }
    }

    /// The service that a request was sent to, also from inside a nested router, which sees a shortened path.
    pub fn of_request(parts: &Parts) -> Service {
        let original = parts.extensions.get::<OriginalUri>();
        Service::of_path(original.map_or(parts.uri.path(), |uri| uri.0.path()))
    }

    /// As metrics and logs call it.
    pub fn name(self) -> &'static str {
        match self {
            Service::Identity => "identity",
            Service::Compute => "compute",
            Service::Network => "network",
            Service::Image => "image",
            Service::Placement => "placement",
            Service::KeyManager => "key-manager",
            Service::Volume => "volume",
        }
    }
}

/// An error on its way out of one service.
#[derive(Debug)]
pub struct Fault {
    service: Service,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    /// A rule said no.
    Rule(Error),
    /// HTTP itself said no (405, 406, 411, 416, 429, …).
    Http(StatusCode, String),
}

impl Fault {
    /// The error, to be worded as this service does.
    pub fn new(service: Service, error: Error) -> Self {
        Fault {
            service,
            cause: Cause::Rule(error),
        }
    }

    /// A status that is a matter of HTTP alone, such as 405.
    pub fn http(service: Service, status: StatusCode, message: impl Into<String>) -> Self {
        Fault {
            service,
            cause: Cause::Http(status, message.into()),
        }
    }
}

/// Turns the error of a rule into the fault of a service: `cloud::…().await.for_service(Service::Compute)?`.
pub trait ForService<T> {
    /// See [`ForService`].
    fn for_service(self, service: Service) -> Result<T, Fault>;
}

impl<T, E: Into<Error>> ForService<T> for Result<T, E> {
    fn for_service(self, service: Service) -> Result<T, Fault> {
        self.map_err(|error| Fault::new(service, error.into()))
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
        Some(Kind::QuotaExceeded) if matches!(service, Service::Image | Service::Volume) => {
            return StatusCode::PAYLOAD_TOO_LARGE;
        }
        Some(Kind::QuotaExceeded) => return StatusCode::FORBIDDEN,
        Some(Kind::Unavailable) => return StatusCode::SERVICE_UNAVAILABLE,
        Some(Kind::PreconditionFailed) => return StatusCode::PRECONDITION_FAILED,
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
        let status = match &self.cause {
            Cause::Rule(error) => status(self.service, error),
            Cause::Http(status, _) => *status,
        };
        let message = match &self.cause {
            Cause::Rule(Error::Internal(text)) => {
                tracing::error!(service = self.service.name(), error = %text, "internal error");
                "An unexpected error prevented the server from fulfilling your request.".to_owned()
            }
            Cause::Rule(Error::NotFound { resource, id }) if self.service == Service::Identity => {
                format!("Could not find {resource}: {id}.")
            }
            Cause::Rule(other) => other.to_string(),
            Cause::Http(_, text) => text.clone(),
        };
        let code = status.as_u16();
        let title = status.canonical_reason().unwrap_or("Error");
        let body = match self.service {
            Service::Identity => json!({"error": {"code": code, "title": title, "message": message}}),
            Service::Compute | Service::Volume => {
                let key = match code {
                    400 => "badRequest",
                    401 => "unauthorized",
                    403 => "forbidden",
                    404 => "itemNotFound",
                    405 => "badMethod",
                    409 => "conflictingRequest",
                    413 | 429 => "overLimit",
                    415 => "badMediaType",
                    501 => "notImplemented",
                    503 => "serviceUnavailable",
                    _ => "computeFault",
                };
                json!({key: {"code": code, "message": message}})
            }
            Service::Network => {
                json!({"NeutronError": {"type": self.neutron_type(), "message": message, "detail": ""}})
            }
            Service::Placement => json!({"errors": [{
                "status": code,
                "title": title,
                "detail": message,
                "code": self.placement_code(),
            }]}),
            Service::Image => json!({"code": format!("{code} {title}"), "title": title, "message": message}),
            Service::KeyManager => json!({"code": code, "title": title, "description": message}),
        };
        let mut response = (status, axum::Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let how = HeaderValue::from_static("Keystone uri=\"/identity\"");
            response.headers_mut().insert("www-authenticate", how);
        }
        if matches!(
            status,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
        ) {
            response
                .headers_mut()
                .insert("retry-after", HeaderValue::from_static("1"));
        }
        response.extensions_mut().insert(Worded);
        response
    }
}

impl Fault {
    /// The code by which Placement's clients tell conflicts apart (1.23).
    fn placement_code(&self) -> &'static str {
        match &self.cause {
            Cause::Rule(Error::Named { name, .. }) if name.starts_with("placement.") => name,
            _ => "placement.undefined_code",
        }
    }

    fn neutron_type(&self) -> String {
        match &self.cause {
            Cause::Rule(Error::Named { name, .. }) => (*name).into(),
            Cause::Rule(Error::NotFound { resource, .. }) => format!("{}NotFound", resource.replace(' ', "")),
            Cause::Rule(Error::BadRequest(_)) => "HTTPBadRequest".into(),
            Cause::Rule(Error::Conflict(_)) => "Conflict".into(),
            Cause::Rule(Error::QuotaExceeded(_)) => "OverQuota".into(),
            Cause::Rule(Error::Forbidden(_)) => "PolicyNotAuthorized".into(),
            Cause::Rule(Error::Unauthorized(_)) => "HTTPUnauthorized".into(),
            Cause::Rule(Error::Unavailable(_)) => "HTTPServiceUnavailable".into(),
            Cause::Http(StatusCode::NOT_FOUND, _) => "HTTPNotFound".into(),
            Cause::Http(StatusCode::METHOD_NOT_ALLOWED, _) => "HTTPMethodNotAllowed".into(),
            Cause::Http(status, _) if status.is_client_error() => "HTTPClientError".into(),
            _ => "HTTPInternalServerError".into(),
        }
    }
}

/// Marks a response that carries a service's fault already; the edge words all other errors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Worded;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_faults_have_each_services_status() {
        let of = |service| status(service, &Error::QuotaExceeded(String::new())).as_u16();
        assert_eq!(of(Service::Network), 409);
        assert_eq!(of(Service::Image), 413);
        assert_eq!(of(Service::Compute), 403);
        assert_eq!(of(Service::Volume), 413);
    }

    #[test]
    fn paths_name_their_service() {
        assert_eq!(Service::of_path("/compute/v2.1/servers"), Service::Compute);
        assert_eq!(Service::of_path("/network"), Service::Network);
        assert_eq!(Service::of_path("/"), Service::Identity);
        assert_eq!(Service::of_path("/computer"), Service::Identity);
    }
}
