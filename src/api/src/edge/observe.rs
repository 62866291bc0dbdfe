//! Around every request: its id, the access log, metrics, panics, and errors that no service worded yet.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, OriginalUri, Request, State};
use axum::http::uri::{PathAndQuery, Uri};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use tower::ServiceBuilder;
use tower::util::MapRequestLayer;
use tracing::Instrument;
use uuid::Uuid;

use super::Peer;
use crate::AppState;
use crate::auth::{Caller, RequestId};
use crate::body::MAX_JSON;
use crate::fault::{Fault, Service, Worded};

/// Puts the router behind everything that each request passes.
pub(crate) fn wrap(router: Router, state: AppState) -> Router {
    let service = ServiceBuilder::new()
        .layer(MapRequestLayer::new(without_trailing_slash))
        .layer(from_fn_with_state(state, observe))
        .layer(DefaultBodyLimit::max(MAX_JSON))
        .service(router);
    Router::new().fallback_service(service)
}

/// Clients join addresses carelessly: `/identity/v3/` is `/identity/v3`. Below Glance's and Cinder's roots an empty last part is an id
/// that was lost, and must not turn the deletion of one image, say, into a request about all.
fn without_trailing_slash(mut request: Request) -> Request {
    let path = request.uri().path();
    let trimmed = path.trim_end_matches('/');
    let lost_id = trimmed.starts_with("/image/v2/") || trimmed.starts_with("/volume/v3/");
    if trimmed.len() == path.len() || trimmed.is_empty() || lost_id {
        return request;
    }
    let whole = match request.uri().query() {
        Some(query) => format!("{trimmed}?{query}"),
        None => trimmed.to_owned(),
    };
    if let Ok(path_and_query) = whole.parse::<PathAndQuery>() {
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = Some(path_and_query);
        if let Ok(uri) = Uri::from_parts(parts) {
            request.extensions_mut().insert(OriginalUri(uri.clone()));
            *request.uri_mut() = uri;
        }
    }
    request
}

async fn observe(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = format!("req-{}", Uuid::new_v4());
    let method = request.method().clone();
    // The path alone: a query may hold what does not belong into a log.
    let path = request.uri().path().to_owned();
    let service = Service::of_path(&path);
    let peer = request.extensions().get::<Peer>().map(|p| p.0);
    let caller = Caller::default();
    // Whatever is logged on the way carries the request's id.
    let span = tracing::info_span!("request", id = %id);
    request.extensions_mut().insert(RequestId(id.clone()));
    request.extensions_mut().insert(caller.clone());

    let mut response = match AssertUnwindSafe(next.run(request).instrument(span))
        .catch_unwind()
        .await
    {
        Ok(response) => response,
        Err(panic) => {
            state.metrics.panicked();
            let what = panic.downcast_ref::<String>().map(String::as_str);
            let what = what
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("?");
            Fault::new(service, cloud::Error::Internal(format!("panic: {what}"))).into_response()
        }
    };
    let status = response.status();
    if (status.is_client_error() || status.is_server_error())
        && response.extensions().get::<Worded>().is_none()
    {
        response = worded(service, &method, response);
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        if service == Service::Compute {
            headers.insert("x-compute-request-id", value.clone());
        }
        headers.insert("x-openstack-request-id", value);
    }
    if service == Service::Identity {
        headers.insert(header::VARY, HeaderValue::from_static("X-Auth-Token"));
    }

    let took = start.elapsed();
    state.metrics.answered(service, &method, status.as_u16(), took);
    let (user, project) = caller.get();
    tracing::info!(
        target: "access",
        request_id = %id,
        peer = %peer.map(|p| p.ip().to_string()).unwrap_or_default(),
        method = %method,
        path = %path,
        status = status.as_u16(),
        micros = took.as_micros() as u64,
        user,
        project,
    );
    response
}

/// Errors of the router itself (no such path, a method that it does not have, a path that is not UTF-8).
fn worded(service: Service, method: &Method, response: Response) -> Response {
    let json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"application/json"));
    if json || *method == Method::HEAD {
        return response;
    }
    let status = response.status();
    let allow = response.headers().get(header::ALLOW).cloned();
    let message = match status {
        StatusCode::NOT_FOUND => "The resource could not be found.".to_owned(),
        StatusCode::METHOD_NOT_ALLOWED => format!("The method {method} is not allowed for this resource."),
        StatusCode::BAD_REQUEST => "The request's path could not be understood.".to_owned(),
        other => other.canonical_reason().unwrap_or("Error").to_owned(),
    };
    let mut response = Fault::http(service, status, message).into_response();
    if let Some(allow) = allow {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}
