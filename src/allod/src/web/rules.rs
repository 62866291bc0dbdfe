//! What may be fetched: by the text of the URI first, and then by the addresses that its host's name has.

use std::net::IpAddr;

use ipnet::IpNet;
use url::{Host, Url};

use super::Refusal;
use super::addresses::{is_public, meant};

/// The longest URI.
const MAX_URI: usize = 2048;

/// The operator's word, beside what is refused everywhere.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Ports that every host may be asked on.
    pub ports: Vec<u16>,
    /// Hosts that may be asked although their addresses are not public, and the port, where it is not one of all hosts'.
    pub hosts: Vec<AllowedHost>,
    /// Networks whose addresses may be connected to although they are not public.
    pub networks: Vec<IpNet>,
    /// Names of the cloud itself.
    pub own_hosts: Vec<String>,
}

/// An entry of the list of hosts: `name` or `name:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedHost {
    host: String,
    port: Option<u16>,
}

impl std::str::FromStr for AllowedHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' must be a host's name or address, or one with a port, such as mirror.example:8080"
            )
        };
        // The same parser that reads tenants' URIs: both write a name in the same way.
        let url = Url::parse(&format!("http://{text}/")).map_err(|_| wrong())?;
        let whole = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if !whole || !url.username().is_empty() || url.password().is_some() || text.contains(['/', '@']) {
            return Err(wrong());
        }
        // The parser drops 80, for it is the scheme's own.
        let port = match text.ends_with(":80") {
            true => Some(80),
            false => url.port(),
        };
        let host = url.host().ok_or_else(wrong)?;
        Ok(AllowedHost {
            host: plain(&host),
            port,
        })
    }
}

/// A host in one way of writing.
fn plain(host: &Host<&str>) -> String {
    match host {
        Host::Domain(name) => name.trim_end_matches('.').to_ascii_lowercase(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    }
}

/// Where a URI leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The whole, without its fragment.
    pub url: Url,
    /// The host in one way of writing, without brackets or a dot at its end.
    pub host: String,
    /// The host, if it is an address.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// By TLS.
    pub tls: bool,
}

impl Rules {
    /// Judges a tenant's text.
    pub fn read(&self, text: &str) -> Result<Target, Refusal> {
        if text.len() > MAX_URI || text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(Refusal::NoUri);
        }
        self.judge(Url::parse(text).map_err(|_| Refusal::NoUri)?)
    }

    /// Judges a URI: of a tenant, or of a server that sends us on.
    pub fn judge(&self, mut url: Url) -> Result<Target, Refusal> {
        if url.as_str().len() > MAX_URI {
            return Err(Refusal::NoUri);
        }
        let tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(Refusal::Scheme),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refusal::UserInfo);
        }
        url.set_fragment(None);
        let host = url.host().ok_or(Refusal::NoUri)?;
        let port = url.port_or_known_default().ok_or(Refusal::NoUri)?;
        let address = match host {
            Host::Domain(_) => None,
            Host::Ipv4(address) => Some(IpAddr::V4(address)),
            Host::Ipv6(address) => Some(IpAddr::V6(address)),
        };
        let host = plain(&host);
        let target = Target {
            url,
            host,
            address,
            port,
            tls,
        };
        let named = self.names(&target);
        if !named && !self.ports.contains(&port) {
            return Err(Refusal::Port(port));
        }
        if !named && self.own_hosts.contains(&target.host) {
            return Err(Refusal::NotAllowed);
        }
        Ok(target)
    }

    /// An entry of the list of hosts permits this.
    fn names(&self, target: &Target) -> bool {
        self.hosts.iter().any(|allowed| {
            allowed.host == target.host
                && match allowed.port {
                    Some(port) => port == target.port,
                    None => self.ports.contains(&target.port),
                }
        })
    }

    /// Whether an address that the host has may be connected to; `own` are the cloud's. An address of the cloud's own is
    /// permitted by an entry for it alone, never by a network that it is in.
    pub fn permits(&self, target: &Target, address: IpAddr, own: &[IpAddr]) -> bool {
        if self.names(target) {
            return true;
        }
        let address = meant(address);
        let is_own = own.iter().any(|other| meant(*other) == address);
        let listed = self.networks.iter().any(|network| {
            let single = network.prefix_len() == network.max_prefix_len();
            network.contains(&address) && (single || !is_own)
        });
        listed || (is_public(address) && !is_own)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules() -> Rules {
        Rules {
            ports: vec![80, 443],
            hosts: vec![
                "Mirror.internal".parse().unwrap(),
                "10.0.0.9:8080".parse().unwrap(),
            ],
            networks: vec!["10.1.0.0/16".parse().unwrap(), "10.2.0.1/32".parse().unwrap()],
            own_hosts: vec!["cloud.example".into()],
        }
    }

    #[test]
    fn other_schemes_ports_and_user_info_are_refused() {
        let rules = rules();
        for (text, refusal) in [
            ("ftp://example.com/x", Refusal::Scheme),
            ("file:///etc/passwd", Refusal::Scheme),
            ("gopher://example.com/", Refusal::Scheme),
            ("http://user@example.com/", Refusal::UserInfo),
            ("http://user:secret@example.com/", Refusal::UserInfo),
            ("http://:secret@example.com/", Refusal::UserInfo),
            ("http://example.com:22/", Refusal::Port(22)),
            ("https://example.com:8443/", Refusal::Port(8443)),
            ("http://mirror.internal:8080/", Refusal::Port(8080)),
            ("http://10.0.0.9:8081/", Refusal::Port(8081)),
            ("http://cloud.example/image/v2/images", Refusal::NotAllowed),
            ("https://CLOUD.example./", Refusal::NotAllowed),
            ("example.com/x", Refusal::NoUri),
            ("http:///x y", Refusal::NoUri),
            ("http://exa\nmple.com/", Refusal::NoUri),
            ("", Refusal::NoUri),
        ] {
            assert_eq!(rules.read(text), Err(refusal), "{text:?}");
        }
        assert_eq!(
            rules.read(&format!("http://a/{}", "x".repeat(2048))),
            Err(Refusal::NoUri)
        );
    }

    #[test]
    fn every_way_to_write_an_ipv4_address_is_that_address() {
        let rules = rules();
        for text in [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0x7f.1/",
            "http://017700000001/",
            "http://127.1/",
            "http://0177.0.0.1/",
            "http://127.0.0.1./",
            "http://%31%32%37.0.0.1/",
            "http://①②⑦.0.0.1/",
        ] {
            let target = rules.read(text).unwrap();
            assert_eq!(target.address, Some("127.0.0.1".parse().unwrap()), "{text}");
            assert!(!rules.permits(&target, target.address.unwrap(), &[]), "{text}");
        }
        for text in [
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[0:0::7f00:1]/",
            "http://[64:ff9b::127.0.0.1]/",
        ] {
            let target = rules.read(text).unwrap();
            assert!(!rules.permits(&target, target.address.unwrap(), &[]), "{text}");
        }
    }

    #[test]
    fn the_operators_lists_permit_exceptions_and_no_more() {
        let rules = rules();
        let permits = |uri: &str, address: &str, own: &[IpAddr]| {
            rules.permits(&rules.read(uri).unwrap(), address.parse().unwrap(), own)
        };
        let own: IpAddr = "10.1.0.1".parse().unwrap();
        let alone: IpAddr = "10.2.0.1".parse().unwrap();
        assert!(permits("http://mirror.internal/x", "192.168.7.7", &[]));
        assert!(permits("http://MIRROR.internal./x", "192.168.7.7", &[]));
        assert!(!permits("http://sub.mirror.internal/x", "192.168.7.7", &[]));
        assert!(permits("http://10.0.0.9:8080/x", "10.0.0.9", &[]));
        assert!(permits("http://anything.example/", "10.1.2.3", &[own]));
        assert!(permits("http://anything.example/", "::ffff:10.1.2.3", &[own]));
        assert!(!permits("http://anything.example/", "10.3.0.1", &[]));
        assert!(
            !permits("http://anything.example/", "10.1.0.1", &[own]),
            "the cloud's own"
        );
        assert!(
            permits("http://anything.example/", "10.2.0.1", &[alone]),
            "named alone"
        );
        assert!(permits("http://anything.example/", "8.8.8.8", &[]));
        assert!(!permits(
            "http://anything.example/",
            "8.8.8.8",
            &["8.8.8.8".parse().unwrap()]
        ));
        assert!(!permits(
            "http://anything.example/",
            "::ffff:8.8.8.8",
            &["8.8.8.8".parse().unwrap()]
        ));
    }

    #[test]
    fn hosts_of_the_list_are_read_as_uris_are() {
        for wrong in [
            "",
            "a/b",
            "user@host",
            "http://a",
            "a?b",
            "a#b",
            "[::1",
            "host:99999",
        ] {
            assert!(wrong.parse::<AllowedHost>().is_err(), "{wrong}");
        }
        assert_eq!("a:80".parse::<AllowedHost>().unwrap().port, Some(80));
        assert_eq!("[::1]:8080".parse::<AllowedHost>().unwrap().host, "::1");
    }

    proptest! {
        #[test]
        fn any_text_is_a_target_or_a_refusal(text in "\\PC{0,60}") {
            if let Ok(target) = rules().read(&text) {
                prop_assert!(target.url.scheme() == "http" || target.url.scheme() == "https");
                prop_assert!(!target.host.is_empty());
            }
        }

        #[test]
        fn an_address_that_is_not_public_needs_the_operators_word(bits: u32) {
            let rules = Rules { ports: vec![80], ..Rules::default() };
            let address = IpAddr::V4(std::net::Ipv4Addr::from_bits(bits));
            let target = rules.read(&format!("http://{bits}/")).unwrap();
            prop_assert_eq!(target.address, Some(address));
            prop_assert_eq!(rules.permits(&target, address, &[]), is_public(address));
        }
    }
}
