//! Files of the web, fetched for tenants (`web-download`): the one place where the daemon opens connections to where someone
//! else says.
//!
//! ```text
//!  URI ──▶ its text: scheme, user info, port, host (rules) ──▶ addresses of the host (resolve), of which those that are not
//!   ▲      public go, unless the operator's lists permit them (rules, addresses) ──▶ connected to just these (client) ──▶ TLS,
//!   │      by the system's or the operator's CAs (roots) ──▶ answer
//!   └───────────────────────────── sent on: the whole again, a few times ─────────────────────────────────┘
//! ```
//!
//! A name is resolved once a step, and what was judged is what is connected to: a name server that answers differently the
//! next time changes nothing. Answers come uncompressed, and say their length or end in a way that shows that they are whole.

mod addresses;
mod client;
mod resolve;
mod roots;
pub mod rules;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cloud::driver::{DriverError, WebFile};

use self::resolve::{Hickory, Resolve};
use self::rules::Rules;

/// What a server may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// To resolve a name.
    pub resolve: Duration,
    /// To accept a connection and agree on TLS.
    pub connect: Duration,
    /// Until the head of its answer is there.
    pub answer: Duration,
    /// Without a byte.
    pub stall: Duration,
    /// Bytes that come at least in each such time.
    pub trickle: u64,
    /// For all together.
    pub whole: Duration,
    /// How often a server may send us on.
    pub redirects: usize,
    /// Addresses of one name that are tried.
    pub addresses: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            resolve: Duration::from_secs(10),
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            // As for uploads.
            stall: Duration::from_secs(60),
            trickle: 512 * 1024,
            whole: Duration::from_secs(4 * 60 * 60),
            redirects: 5,
            addresses: 4,
        }
    }
}

/// Why a file is not fetched, in the tenant's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The operator has switched it off.
    #[error("This cloud fetches nothing from the web.")]
    Off,
    /// No URI, or one of more than 2048 characters.
    #[error("The URI is not one, or is too long.")]
    NoUri,
    /// Not http, not https.
    #[error("Only URIs of http and https are fetched.")]
    Scheme,
    /// `user:password@`.
    #[error("A URI with a user's name or password is not fetched.")]
    UserInfo,
    /// Neither of the usual ones.
    #[error("Port {0} is not one that this cloud fetches from.")]
    Port(u16),
    /// No public address, or no address at all: names that only this host can resolve are nobody's business.
    #[error("The URI's host has no address that this cloud fetches from.")]
    NotAllowed,
    /// No connection.
    #[error("The server of {0} cannot be reached.")]
    Unreachable(String),
    /// No TLS.
    #[error("There is no trusted connection to {0}: {1}.")]
    Tls(String, String),
    /// No answer that could be understood in time.
    #[error("The server of {0} gives no answer.")]
    NoAnswer(String),
    /// Another status than 200.
    #[error("The server of {0} answers with status {1}.")]
    Status(String, u16),
    /// Too often.
    #[error("The server sends us on too often.")]
    Redirects,
    /// From https to http.
    #[error("The server sends us on from https to http.")]
    Downgrade,
    /// `Content-Encoding`.
    #[error("The server compresses what it was asked for as it is.")]
    Compressed,
    /// Neither `Content-Length` nor chunks.
    #[error("The server does not say where the file ends.")]
    NoLength,
    /// The bytes ended before their end.
    #[error("The server broke off before the end of the file.")]
    BrokenOff,
    /// No byte for too long, or too few.
    #[error("The server sends too slowly.")]
    Slow,
    /// All together.
    #[error("The server did not send the whole file in {} minutes.", .0.as_secs() / 60)]
    TooLong(Duration),
}

impl From<Refusal> for DriverError {
    fn from(refusal: Refusal) -> Self {
        DriverError::BadInput(refusal.to_string())
    }
}

/// Fetches files of the web.
#[derive(Clone)]
pub struct Web {
    enabled: bool,
    rules: Rules,
    limits: Limits,
    /// CAs of the operator's own choice in PEM.
    ca_file: Option<PathBuf>,
    /// Addresses of the cloud's beside those of this host's interfaces.
    own: Vec<IpAddr>,
    resolver: Arc<dyn Resolve>,
}

impl Web {
    /// As the operator's file says.
    pub fn new(config: &crate::config::Config) -> Self {
        let settings = &config.image.web_download;
        let public = url::Url::parse(&crate::tls::public_url(config)).ok();
        let own_host = public.as_ref().and_then(|url| url.host_str());
        let own_hosts = own_host.map(|host| host.trim_matches(['[', ']']).to_ascii_lowercase());
        Web {
            enabled: settings.enabled,
            rules: Rules {
                ports: settings.ports.clone(),
                // The file was checked.
                hosts: settings
                    .allow_hosts
                    .iter()
                    .filter_map(|host| host.parse().ok())
                    .collect(),
                networks: settings.allow_networks.clone(),
                own_hosts: own_hosts.into_iter().collect(),
            },
            limits: Limits {
                whole: Duration::from_secs(settings.timeout_seconds),
                ..Limits::default()
            },
            ca_file: settings.ca_file.clone(),
            own: vec![config.server.listen.ip()],
            resolver: Arc::new(Hickory),
        }
    }
}

#[async_trait]
impl cloud::driver::Web for Web {
    fn check(&self, uri: &str) -> Result<(), DriverError> {
        if !self.enabled {
            return Err(Refusal::Off.into());
        }
        let target = self.rules.read(uri)?;
        match target.address {
            Some(address) if !self.rules.permits(&target, address, &self.own_literals()) => {
                Err(Refusal::NotAllowed.into())
            }
            _ => Ok(()),
        }
    }

    async fn get(&self, uri: &str) -> Result<WebFile, DriverError> {
        if !self.enabled {
            return Err(Refusal::Off.into());
        }
        Ok(self.fetch(uri).await?)
    }
}
