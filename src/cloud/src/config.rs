//! Settings that rules need; the daemon reads them from the operator's file.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::Ipv4Net;

/// Settings of the rules.
#[derive(Debug, Clone)]
pub struct Config {
    /// The region's name, as the catalog tells it.
    pub region: String,
    /// What clients reach the APIs at, without a trailing slash, such as `https://127.0.0.1:8443`.
    pub public_url: String,
    /// Where secrets that are not rows (token keys' wrapping key, first admin password) lie.
    pub secrets_dir: PathBuf,
    /// Where uploads wait for their conversion.
    pub staging_dir: PathBuf,
    /// The largest image that may be uploaded, in bytes.
    pub max_image_bytes: u64,
    /// This node's name, as hypervisor and service lists tell it.
    pub node: String,
    /// The availability zone of this node.
    pub availability_zone: String,
    /// Name servers that DHCP tells where a subnet names none.
    pub dns_servers: Vec<IpAddr>,
    /// Time servers that DHCP tells.
    pub ntp_servers: Vec<IpAddr>,
    /// The external network that is made at first start, if any.
    pub external: Option<External>,
    /// MTU of tenants' networks.
    pub mtu: u16,
}

/// The external network `ext-net`.
#[derive(Debug, Clone)]
pub struct External {
    /// Its range; the first address is the host's, on the TAP.
    pub cidr: Ipv4Net,
    /// The TAP's name.
    pub tap: String,
}
