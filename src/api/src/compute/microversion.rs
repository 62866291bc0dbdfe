//! Nova's microversions: negotiation, and the one table of what changed where.

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::auth::RequestId;
use crate::fault::{Fault, Service};

/// A version 2.x of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Microversion(pub u16);

/// The oldest that is answered.
pub const MIN: Microversion = Microversion(1);
/// The newest that is answered.
pub const MAX: Microversion = Microversion(96);

/// What changed in which version, for the endpoints that there are. What Nova changed in endpoints that are not here
/// (volumes, migration, rescue, shelving, …) has no row.
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
    /// Key pairs have a `type`; creation answers 201 and deletion 204.
    KEY_TYPES = 2;
    /// Admins see `OS-EXT-SRV-ATTR:hostname`, `launch_index`, `reservation_id`, `root_device_name`, `user_data`, ….
    MORE_ADMIN_ATTRIBUTES = 3;
    /// Everyone may filter servers by `ip6`.
    IP6_FILTER = 5;
    /// Consoles are asked for at `remote-consoles`.
    REMOTE_CONSOLES = 6;
    /// A public flavor is given no access list.
    FLAVOR_ACCESS_CHECK = 7;
    /// Servers show `locked`.
    LOCKED = 9;
    /// Admins name the user of key pairs.
    KEY_USER = 10;
    /// Services show `forced_down`.
    FORCED_DOWN = 11;
    /// Server groups show project and user.
    GROUP_OWNER = 13;
    /// Server groups have soft policies.
    SOFT_POLICIES = 15;
    /// Admins see the host's status.
    HOST_STATUS = 16;
    /// Servers have a description.
    DESCRIPTION = 19;
    /// The history of deleted servers is shown.
    DELETED_HISTORY = 21;
    /// A server's migrations are shown.
    SERVER_MIGRATIONS = 23;
    /// Servers have tags.
    TAGS = 26;
    /// `cpu_info` of a hypervisor is an object.
    CPU_INFO_OBJECT = 28;
    /// Networks and disks of a new server take a tag, in this version and from 2.42.
    DEVICE_TAGS_ONCE = 32;
    /// Lists of hypervisors have pages.
    HYPERVISOR_PAGES = 33;
    /// Lists of key pairs have pages.
    KEY_PAGES = 35;
    /// Networks have left the API: their quotas and limits, too.
    NO_NETWORK_PROXIES = 36;
    /// `networks` is needed and may be `auto` or `none`.
    NETWORKS_NEEDED = 37;
    /// A filter by an unknown status is an error.
    STATUS_CHECK = 38;
    /// `maxImageMeta` has left the limits.
    NO_IMAGE_META = 39;
    /// Lists of usage have pages.
    USAGE_PAGES = 40;
    /// Aggregates have UUIDs.
    AGGREGATE_UUIDS = 41;
    /// Networks and disks of a new server take a tag.
    DEVICE_TAGS = 42;
    /// `createImage` and `createBackup` answer with the image's id.
    IMAGE_ID = 45;
    /// Servers show their flavor itself.
    FLAVOR_EMBEDDED = 47;
    /// `diagnostics` are the same for all drivers.
    DIAGNOSTICS = 48;
    /// Interfaces and volumes take a tag when they are attached.
    ATTACH_TAGS = 49;
    /// Server groups and members have left the old quota classes.
    QUOTA_CLASSES = 50;
    /// Everyone sees the events of an action, admins with their traceback.
    ACTION_EVENTS = 51;
    /// A new server takes tags.
    TAGS_AT_CREATION = 52;
    /// Hypervisors and services have UUIDs and new routes.
    UUIDS = 53;
    /// A rebuild gives another key pair.
    REBUILD_KEY = 54;
    /// Flavors have a description.
    FLAVOR_DESCRIPTION = 55;
    /// Files are not injected.
    NO_PERSONALITY = 57;
    /// Lists of actions have pages and `updated_at`.
    ACTION_PAGES = 58;
    /// Lists of migrations have pages.
    MIGRATION_PAGES = 59;
    /// Volumes that several servers have are attached.
    MULTIATTACH = 60;
    /// Flavors show their extra specs.
    FLAVOR_EXTRA_SPECS = 61;
    /// Events show host and `hostId`.
    EVENT_HOST = 62;
    /// Servers show `trusted_image_certificates`.
    TRUSTED_CERTIFICATES = 63;
    /// A server group has one policy, and rules.
    GROUP_RULES = 64;
    /// Lists can be cut by `changes-before`.
    CHANGES_BEFORE = 66;
    /// A disk of a new server names its volume type.
    VOLUME_TYPE = 67;
    /// Interfaces and attachments show their tag.
    INTERFACE_TAGS = 70;
    /// A server shows its groups.
    SERVER_GROUPS = 71;
    /// A lock has a reason, lists are filtered by `locked`.
    LOCKED_REASON = 73;
    /// A new server names its host.
    HOST_AT_CREATION = 74;
    /// Unknown query parameters are errors; `PUT` answers with all attributes; a flavor's `swap` is 0, not "".
    STRICT_QUERIES = 75;
    /// A shelved server comes back in a zone that is named.
    UNSHELVE_ZONE = 77;
    /// `topology` of a server is shown.
    TOPOLOGY = 78;
    /// Attached volumes show `delete_on_termination`, and take it when they are attached.
    DELETE_ON_TERMINATION = 79;
    /// Lists of migrations show users and projects.
    MIGRATION_OWNERS = 80;
    /// Aggregates' images are cached beforehand.
    CACHE_IMAGES = 81;
    /// Everyone may filter servers by more.
    MORE_FILTERS = 83;
    /// Events show details.
    EVENT_DETAILS = 84;
    /// Attached volumes change `delete_on_termination`.
    UPDATE_TERMINATION = 85;
    /// A server that was booted from a volume is rescued.
    RESCUE_VOLUME_BACKED = 87;
    /// Hypervisors show no use of resources; `uptime` is among their attributes.
    HYPERVISOR_NO_USE = 88;
    /// Attached volumes show `attachment_id` and `bdm_uuid`, and no `id`.
    ATTACHMENT_IDS = 89;
    /// A server's hostname is shown, set and changed.
    HOSTNAME = 90;
    /// An admin names the host that a shelved server comes back on.
    UNSHELVE_HOST = 91;
    /// Keys are not generated; names of key pairs may have `@` and `.`.
    NO_KEY_GENERATION = 92;
    /// The root volume of a server that was booted from one is written anew by a rebuild.
    REBUILD_VOLUME_BACKED = 93;
    /// A hostname may be a fully qualified one.
    FQDN = 94;
    /// Servers show the zone that was asked for.
    PINNED_ZONE = 96;
}

const NEW: HeaderName = HeaderName::from_static("openstack-api-version");
const OLD: HeaderName = HeaderName::from_static("x-openstack-nova-api-version");

enum Wrong {
    Malformed(String),
    OutOfRange(String),
}

impl Microversion {
    /// What the headers ask for; nothing: 2.1.
    fn of_headers(headers: &HeaderMap) -> Result<Microversion, Wrong> {
        let mut asked = None;
        for value in headers.get_all(NEW) {
            let value = value.to_str().map_err(|_| Wrong::Malformed("?".into()))?;
            for item in value.split(',') {
                let mut words = item.split_whitespace();
                if words.next().is_some_and(|w| w.eq_ignore_ascii_case("compute")) {
                    asked = Some(words.collect::<Vec<_>>().join(" "));
                }
            }
        }
        if asked.is_none() {
            let old = headers
                .get(OLD)
                .map(|v| v.to_str().unwrap_or("?").trim().to_owned());
            asked = old;
        }
        match asked {
            None => Ok(MIN),
            Some(text) => Microversion::parse(&text),
        }
    }

    fn parse(text: &str) -> Result<Microversion, Wrong> {
        if text == "latest" {
            return Ok(MAX);
        }
        let digits = |t: &str| {
            let right = !t.is_empty() && t.len() <= 4 && t.bytes().all(|b| b.is_ascii_digit());
            // No leading zeros, as in Nova.
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
            Some((2, minor)) if (MIN.0..=MAX.0).contains(&minor) => Ok(Microversion(minor)),
            Some(_) => Err(Wrong::OutOfRange(text.to_owned())),
        }
    }

    fn text(self) -> String {
        format!("2.{}", self.0)
    }
}

/// Reads the version that a request asks for, and says in every answer which one it got.
pub(super) async fn negotiate(mut request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().map(|id| id.0.clone());
    // 2.0 knows of no microversions.
    if request.uri().path().split('/').nth(1) == Some("v2") {
        request.extensions_mut().insert(MIN);
        return next.run(request).await;
    }
    let (version, mut response) = match Microversion::of_headers(request.headers()) {
        Ok(version) => {
            request.extensions_mut().insert(version);
            (Some(version), next.run(request).await)
        }
        Err(Wrong::Malformed(text)) => {
            let message = format!(
                "API Version String '{text}' is of invalid format. Must be of format MajorNum.MinorNum."
            );
            (
                None,
                Fault::http(Service::Compute, StatusCode::BAD_REQUEST, message).into_response(),
            )
        }
        Err(Wrong::OutOfRange(text)) => {
            let message = format!(
                "Version {text} is not supported by the API. Minimum is {} and maximum is {}.",
                MIN.text(),
                MAX.text()
            );
            (
                None,
                Fault::http(Service::Compute, StatusCode::NOT_ACCEPTABLE, message).into_response(),
            )
        }
    };
    let headers = response.headers_mut();
    if let Some(version) = version {
        if let Ok(value) = HeaderValue::from_str(&format!("compute {}", version.text())) {
            headers.insert(NEW, value);
        }
        if let Ok(value) = HeaderValue::from_str(&version.text()) {
            headers.insert(OLD, value);
        }
    }
    headers.append(
        header::VARY,
        HeaderValue::from_static("OpenStack-API-Version, X-OpenStack-Nova-API-Version"),
    );
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

    fn of(name: HeaderName, value: &'static str) -> Result<u16, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        Microversion::of_headers(&headers)
            .map(|v| v.0)
            .map_err(|e| match e {
                Wrong::Malformed(_) => 400,
                Wrong::OutOfRange(_) => 406,
            })
    }

    #[test]
    fn both_headers_are_understood() {
        assert_eq!(of(NEW, "compute 2.53"), Ok(53));
        assert_eq!(of(NEW, "identity 3.0, Compute 2.9"), Ok(9));
        assert_eq!(of(NEW, "volume 3.60"), Ok(1));
        assert_eq!(of(NEW, "compute latest"), Ok(MAX.0));
        assert_eq!(of(OLD, "2.60"), Ok(60));
        assert_eq!(of(NEW, "compute 2.97"), Err(406));
        assert_eq!(of(NEW, "compute 2.0"), Err(406));
        assert_eq!(of(NEW, "compute 3.1"), Err(406));
        for text in [
            "compute 2",
            "compute 2.x",
            "compute 2.01",
            "compute -2.1",
            "compute 2.1.1",
            "compute",
        ] {
            assert_eq!(of(NEW, text), Err(400), "{text}");
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
