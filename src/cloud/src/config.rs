//! Settings that rules need; the daemon reads them from the operator's file.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

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
    /// What the images of one project may have together, in bytes as uploaded.
    pub max_project_image_bytes: u64,
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
    /// Accounts and passwords.
    pub accounts: Accounts,
    /// New volumes are encrypted.
    pub encrypt_volumes: bool,
    /// After this time a domain's or a project's key of disks is exchanged.
    pub key_lifetime: Duration,
}

/// What the operator asks of accounts and passwords.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accounts {
    /// A user that changes its own password cannot take one of this many latest ones, the present one included.
    pub unique_last_passwords: u8,
    /// After so many wrong passwords in a row an account is locked for a while; 0: never.
    pub lockout_attempts: u32,
    /// For how long.
    pub lockout: Duration,
    /// Roles that a domain's manager may give and take; never `admin`.
    pub managed_roles: Vec<String>,
}

impl Default for Accounts {
    fn default() -> Self {
        Accounts {
            unique_last_passwords: 1,
            lockout_attempts: 0,
            lockout: Duration::from_secs(1800),
            managed_roles: ["manager", "member", "reader"].map(str::to_owned).to_vec(),
        }
    }
}

/// The external network `ext-net`.
#[derive(Debug, Clone)]
pub struct External {
    /// Its range; the first address is the host's, on the TAP.
    pub cidr: Ipv4Net,
    /// The TAP's name.
    pub tap: String,
}
