//! Names to addresses, by the system's name servers and its hosts file.

use std::io;
use std::net::IpAddr;

use async_trait::async_trait;
use hickory_resolver::Resolver;
use hickory_resolver::config::LookupIpStrategy;

/// Whoever knows the addresses of names.
#[async_trait]
pub trait Resolve: Send + Sync {
    /// All addresses of a name.
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// The system's name servers. (glibc's resolver loads shared libraries, which a static binary cannot.)
pub struct Hickory;

#[async_trait]
impl Resolve for Hickory {
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        // Anew each time: the operator's changes count at once, and nothing is kept that a tenant asked for.
        let mut builder = Resolver::builder_tokio().map_err(io::Error::other)?;
        let options = builder.options_mut();
        options.cache_size = 0;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        // With a dot at its end a name is whole: the host's search domains are none of a tenant's business.
        let name = format!("{}.", name.trim_end_matches('.'));
        let resolver = builder.build().map_err(io::Error::other)?;
        let found = resolver.lookup_ip(name).await.map_err(io::Error::other)?;
        Ok(found.iter().collect())
    }
}
