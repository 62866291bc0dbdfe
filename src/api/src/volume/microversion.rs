//! Cinder's microversions: negotiation, and the one table of what changed where.

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::auth::RequestId;
use crate::fault::{Fault, Service};

/// A version 3.x of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Microversion(pub u16);

/// The oldest that is answered.
pub const MIN: Microversion = Microversion(0);
/// The newest that is answered.
pub const MAX: Microversion = Microversion(71);

/// What changed in which version, for the endpoints that there are. What Cinder changed in endpoints that are not here
/// (clusters, groups, taking over volumes, …) has no row.
macro_rules! changes {
    ($($(#[doc = $doc:literal])+ $name:ident = $minor:literal;)*) => {
        impl Microversion {
            $($(#[doc = $doc])+ pub const $name: Microversion = Microversion($minor);)*
        }
        /// The table, for the test that looks at it.
        #[cfg(test)]
        const CHANGES: &[(&str, u16)] = &[$((stringify!($name), $minor)),*];
    };
}

changes! {
    /// A volume's new image has a visibility and can be protected.
    UPLOAD_VISIBILITY = 1;
    /// There are messages.
    MESSAGES = 3;
    /// Lists of messages have pages.
    MESSAGE_PAGES = 5;
    /// Backups are changed.
    BACKUP_UPDATE = 9;
    /// There is a summary.
    SUMMARY = 12;
    /// Volumes show their group: here they have none.
    GROUPS = 13;
    /// Snapshots show their group snapshot: here they have none.
    GROUPS_OF_SNAPSHOTS = 14;
    /// Administrators see a backup's project.
    BACKUP_PROJECT = 18;
    /// Administrators see the provider's id of a volume.
    PROVIDER_ID = 21;
    /// Snapshots are looked for by metadata.
    SNAPSHOT_METADATA_FILTER = 22;
    /// A deletion can be forced by a parameter.
    FORCE_PARAMETER = 23;
    /// There are attachments.
    ATTACHMENTS = 27;
    /// What can be looked for is listed, and the rest refused.
    RESOURCE_FILTERS = 31;
    /// There is a list of what can be looked for.
    RESOURCE_FILTER_LIST = 33;
    /// Texts are looked for by a part of them (`name~`).
    LIKE = 34;
    /// The summary tells metadata.
    SUMMARY_METADATA = 36;
    /// Administrators ask for limits of other projects.
    LIMITS_PROJECT = 39;
    /// A volume is reverted to its newest snapshot.
    REVERT = 40;
    /// Snapshots show their user.
    SNAPSHOT_USER = 41;
    /// A volume is extended while a server has it.
    EXTEND_IN_USE = 42;
    /// Backups have metadata.
    BACKUP_METADATA = 43;
    /// Attachments are completed by a call of their own.
    ATTACHMENT_COMPLETE = 44;
    /// Lists tell how many there are in all.
    COUNT = 45;
    /// A volume is made of a backup.
    FROM_BACKUP = 47;
    /// Volumes show the service behind them.
    SHARED_TARGETS = 48;
    /// Services show the state of their backend.
    BACKEND_STATE = 49;
    /// Backups name their availability zone.
    BACKUP_ZONE = 51;
    /// Types are looked for by extra specs.
    TYPE_FILTERS = 52;
    /// An attachment has a mode.
    ATTACHMENT_MODE = 54;
    /// Transfers have a path of their own and take snapshots along.
    TRANSFER_SNAPSHOTS = 55;
    /// Backups show their user.
    BACKUP_USER = 56;
    /// Transfers show where from and where to.
    TRANSFER_PROJECTS = 57;
    /// Lists of transfers have an order.
    TRANSFER_SORT = 59;
    /// Volumes and snapshots are looked for by time.
    TIME_FILTERS = 60;
    /// Administrators see the cluster of a volume.
    CLUSTER = 61;
    /// Projects have default types.
    DEFAULT_TYPES = 62;
    /// Volumes show their type's id.
    TYPE_ID = 63;
    /// Volumes, snapshots: whether they count towards the quota.
    CONSUMES_QUOTA = 65;
    /// Snapshots of volumes in use need no force.
    SNAPSHOT_IN_USE = 66;
    /// Whether targets are shared may be unknown.
    SHARED_TARGETS_UNKNOWN = 69;
}

const HEADER: HeaderName = HeaderName::from_static("openstack-api-version");

enum Wrong {
    Malformed(String),
    OutOfRange(String),
}

impl Microversion {
    /// What the header asks for; nothing: 3.0.
    fn of_headers(headers: &HeaderMap) -> Result<Microversion, Wrong> {
        for value in headers.get_all(HEADER) {
            let value = value.to_str().map_err(|_| Wrong::Malformed("?".into()))?;
            for item in value.split(',') {
                let mut words = item.split_whitespace();
                if words.next().is_some_and(|w| w.eq_ignore_ascii_case("volume")) {
                    return Microversion::parse(&words.collect::<Vec<_>>().join(" "));
                }
            }
        }
        Ok(MIN)
    }

    fn parse(text: &str) -> Result<Microversion, Wrong> {
        if text == "latest" {
            return Ok(MAX);
        }
        let digits = |t: &str| {
            let right = !t.is_empty() && t.len() <= 4 && t.bytes().all(|b| b.is_ascii_digit());
            // No leading zeros.
            if right && (t == "0" || !t.starts_with('0')) {
                t.parse::<u16>().ok()
            } else {
                None
            }
        };
        let parts = text
            .split_once('.')
            .and_then(|(major, minor)| Some((digits(major)?, digits(minor)?)));
        match parts {
            None => Err(Wrong::Malformed(text.chars().take(64).collect())),
            Some((3, minor)) if minor <= MAX.0 => Ok(Microversion(minor)),
            Some(_) => Err(Wrong::OutOfRange(text.to_owned())),
        }
    }

    /// Such as `3.71`.
    pub fn text(self) -> String {
        format!("3.{}", self.0)
    }
}

/// Reads the version that a request asks for, and says in every answer which one it got.
pub(super) async fn negotiate(mut request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().map(|id| id.0.clone());
    let (version, mut response) = match Microversion::of_headers(request.headers()) {
        Ok(version) => {
            request.extensions_mut().insert(version);
            (Some(version), next.run(request).await)
        }
        Err(Wrong::Malformed(text)) => {
            let message = format!(
                "API Version String {text} is of invalid format. Must be of format MajorNum.MinorNum."
            );
            let fault = Fault::http(Service::Volume, StatusCode::BAD_REQUEST, message);
            (None, fault.into_response())
        }
        Err(Wrong::OutOfRange(text)) => {
            let message = format!(
                "Version {text} is not supported by the API. Minimum is {} and maximum is {}.",
                MIN.text(),
                MAX.text()
            );
            let fault = Fault::http(Service::Volume, StatusCode::NOT_ACCEPTABLE, message);
            (None, fault.into_response())
        }
    };
    let headers = response.headers_mut();
    if let Some(value) =
        version.and_then(|version| HeaderValue::from_str(&format!("volume {}", version.text())).ok())
    {
        headers.insert(HEADER, value);
    }
    headers.append(header::VARY, HeaderValue::from_static("OpenStack-API-Version"));
    if let Some(value) = id.and_then(|id| HeaderValue::from_str(&id).ok()) {
        headers.insert("x-compute-request-id", value);
    }
    response
}

impl<S: Send + Sync> FromRequestParts<S> for Microversion {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Microversion>().copied().unwrap_or(MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &'static str) -> Result<u16, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_static(value));
        Microversion::of_headers(&headers)
            .map(|v| v.0)
            .map_err(|e| match e {
                Wrong::Malformed(_) => 400,
                Wrong::OutOfRange(_) => 406,
            })
    }

    #[test]
    fn the_header_is_understood() {
        assert_eq!(of("volume 3.59"), Ok(59));
        assert_eq!(of("compute 2.1, Volume 3.9"), Ok(9));
        assert_eq!(of("compute 2.60"), Ok(0));
        assert_eq!(of("volume latest"), Ok(MAX.0));
        assert_eq!(of("volume 3.72"), Err(406));
        assert_eq!(of("volume 2.0"), Err(406));
        for text in ["volume 3", "volume 3.x", "volume 3.01", "volume -3.1", "volume"] {
            assert_eq!(of(text), Err(400), "{text}");
        }
    }

    #[test]
    fn the_table_is_in_order_and_within_what_is_advertised() {
        assert!(
            CHANGES.windows(2).all(|pair| pair[0].1 < pair[1].1),
            "{CHANGES:?}"
        );
        assert!(
            CHANGES
                .iter()
                .all(|(_, minor)| (MIN.0 + 1..=MAX.0).contains(minor))
        );
    }
}
