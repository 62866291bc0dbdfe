//! Placement's microversions: negotiation, and the one table of what changed where.

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::fault::{Fault, Service};

/// A version 1.x of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Microversion(pub(super) u16);

/// The oldest that is answered.
pub(super) const MIN: Microversion = Microversion(0);
/// The newest that is answered.
pub(super) const MAX: Microversion = Microversion(39);

/// What changed in which version.
macro_rules! changes {
    ($($(#[$meta:meta])+ $name:ident = $minor:literal;)*) => {
        impl Microversion {
            $($(#[$meta])+ pub(super) const $name: Microversion = Microversion($minor);)*
        }
        /// The table, for the test that looks at it.
        #[cfg(test)]
        const CHANGES: &[(&str, u16)] = &[$((stringify!($name), $minor)),*];
    };
}

changes! {
    /// Providers have aggregates.
    AGGREGATES = 1;
    /// Operators make resource classes.
    CUSTOM_CLASSES = 2;
    /// Providers are filtered by aggregates.
    MEMBER_OF = 3;
    /// Providers are filtered by what they have free.
    RESOURCES = 4;
    /// All inventories of a provider are removed at once.
    DELETE_INVENTORIES = 5;
    /// Traits.
    TRAITS = 6;
    /// `PUT` of a resource class makes it, and does not rename it.
    PUT_CLASS = 7;
    /// Allocations say whose they are.
    ALLOCATION_OWNER = 8;
    /// A project's usage is told.
    USAGES = 9;
    /// Candidates.
    CANDIDATES = 10;
    /// Providers link to their allocations.
    ALLOCATION_LINKS = 11;
    /// Allocations are objects, by provider.
    ALLOCATION_OBJECTS = 12;
    /// Allocations of several consumers are set at once.
    MANY_ALLOCATIONS = 13;
    /// Providers are nested.
    NESTED = 14;
    /// Answers say that they may not be kept.
    CACHE_HEADERS = 15;
    /// Candidates are limited.
    LIMIT = 16;
    /// Candidates are filtered by traits.
    REQUIRED = 17;
    /// Providers are filtered by traits.
    PROVIDERS_REQUIRED = 18;
    /// Aggregates know of generations.
    AGGREGATE_GENERATION = 19;
    /// A new provider is told in the answer.
    CREATE_ANSWER = 20;
    /// Candidates are filtered by aggregates.
    CANDIDATES_MEMBER_OF = 21;
    /// Traits may be forbidden.
    FORBIDDEN = 22;
    /// Errors have codes; here they always have.
    #[allow(dead_code)]
    CODES = 23;
    /// `member_of` may be given twice.
    MEMBER_OF_TWICE = 24;
    /// Candidates are asked for in groups.
    GROUPS = 25;
    /// An inventory may be reserved as a whole.
    RESERVED_ALL = 26;
    /// Candidates' summaries have all resource classes.
    ALL_CLASSES = 27;
    /// Consumers have generations.
    CONSUMER_GENERATION = 28;
    /// Candidates are trees.
    TREES = 29;
    /// Inventories and allocations are changed together.
    RESHAPER = 30;
    /// Candidates are filtered by their tree.
    IN_TREE = 31;
    /// Aggregates may be forbidden.
    NOT_MEMBER_OF = 32;
    /// Groups have names.
    GROUP_NAMES = 33;
    /// Candidates say which provider met which group.
    MAPPINGS = 34;
    /// Traits of the tree's root are asked for.
    ROOT_REQUIRED = 35;
    /// Groups are of one subtree.
    SAME_SUBTREE = 36;
    /// A provider leaves its tree.
    REPARENT = 37;
    /// Consumers have a type.
    CONSUMER_TYPE = 38;
    /// One of several traits is asked for.
    ANY_TRAITS = 39;
}

const HEADER: HeaderName = HeaderName::from_static("openstack-api-version");

enum Wrong {
    Malformed(String),
    OutOfRange(String),
}

impl Microversion {
    pub(super) fn text(self) -> String {
        format!("1.{}", self.0)
    }

    /// What the header asks for; nothing: 1.0.
    fn of_headers(headers: &HeaderMap) -> Result<Microversion, Wrong> {
        let mut asked = None;
        for value in headers.get_all(HEADER) {
            let value = value.to_str().map_err(|_| Wrong::Malformed("?".into()))?;
            for item in value.split(',') {
                let mut words = item.split_whitespace();
                if words.next().is_some_and(|w| w.eq_ignore_ascii_case("placement")) {
                    asked = Some(words.collect::<Vec<_>>().join(" "));
                }
            }
        }
        let Some(text) = asked else { return Ok(MIN) };
        if text == "latest" {
            return Ok(MAX);
        }
        let parts = text.split_once('.').and_then(|(major, minor)| {
            let digits = |t: &str| t.len() <= 4 && !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
            (digits(major) && digits(minor))
                .then_some((major.parse::<u16>().ok()?, minor.parse::<u16>().ok()?))
        });
        match parts {
            None => Err(Wrong::Malformed(text.chars().take(64).collect())),
            Some((1, minor)) if minor <= MAX.0 => Ok(Microversion(minor)),
            Some(_) => Err(Wrong::OutOfRange(text)),
        }
    }
}

/// Reads the version that a request asks for, and says in every answer which one it got.
pub(super) async fn negotiate(mut request: Request, next: Next) -> Response {
    let fault = |status, message: String| Fault::http(Service::Placement, status, message).into_response();
    let (version, mut response) = match Microversion::of_headers(request.headers()) {
        Ok(version) => {
            request.extensions_mut().insert(version);
            (Some(version), next.run(request).await)
        }
        Err(Wrong::Malformed(text)) => (
            None,
            fault(StatusCode::BAD_REQUEST, format!("invalid version string: {text}")),
        ),
        Err(Wrong::OutOfRange(text)) => (
            None,
            fault(
                StatusCode::NOT_ACCEPTABLE,
                format!("Unacceptable version header: {text}"),
            ),
        ),
    };
    let headers = response.headers_mut();
    if let Some(version) = version
        && let Ok(value) = HeaderValue::from_str(&format!("placement {}", version.text()))
    {
        headers.insert(HEADER, value);
    }
    headers.append(header::VARY, HeaderValue::from_static("openstack-api-version"));
    response
}

impl<S: Send + Sync> FromRequestParts<S> for Microversion {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Microversion>().copied().unwrap_or(MIN))
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_header_is_understood() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, HeaderValue::from_static(value));
            Microversion::of_headers(&headers)
                .map(|v| v.0)
                .map_err(|e| matches!(e, Wrong::OutOfRange(_)))
        };
        assert_eq!(of("placement 1.28"), Ok(28));
        assert_eq!(of("compute 2.90"), Ok(0));
        assert_eq!(of("placement latest"), Ok(MAX.0));
        assert_eq!(of("placement 1.40"), Err(true));
        assert_eq!(of("placement 2.0"), Err(true));
        for text in ["placement 1", "placement 1.x", "placement", "placement 1.1.1"] {
            assert_eq!(of(text), Err(false), "{text}");
        }
    }

    #[test]
    fn the_table_is_whole_and_in_order() {
        assert!(
            CHANGES.iter().map(|(_, minor)| *minor).eq(1..=MAX.0),
            "{CHANGES:?}"
        );
    }
}
