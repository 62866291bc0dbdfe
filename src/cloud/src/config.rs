//! Settings that rules need; the daemon reads them from the operator's file.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use model::disk::ImageFormat;

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
    /// Vendors' images.
    pub catalogue: Catalogue,
}

/// Vendors' images that the cloud keeps fresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    /// They; none: there is no catalogue.
    pub entries: Vec<CatalogueEntry>,
    /// How often their vendors are asked.
    pub refresh: Duration,
    /// How long a superseded image stays, hidden.
    pub retention: Duration,
}

impl Default for Catalogue {
    fn default() -> Self {
        Catalogue {
            entries: Vec::new(),
            refresh: Duration::from_secs(24 * 60 * 60),
            retention: Duration::from_secs(30 * 24 * 60 * 60),
        }
    }
}

/// A vendor's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogueEntry {
    /// Its name, such as `Ubuntu 24.04`.
    pub name: String,
    /// Where its newest version is.
    pub url: String,
    /// The vendor's list of digests, which has the last part of the URL in it.
    pub checksums: String,
    /// The digests' kind.
    pub algorithm: Algorithm,
    /// What the vendor's file is.
    pub disk_format: ImageFormat,
    /// GiB and MiB.
    pub min_disk: u32,
    /// See there.
    pub min_ram: u32,
    /// The last day on which its vendor cares for it.
    pub until: Option<time::Date>,
    /// What else SCS-0102 asks for.
    pub properties: BTreeMap<String, String>,
}

impl CatalogueEntry {
    /// The file's name in the list of digests.
    pub fn file_name(&self) -> String {
        self.url.rsplit('/').next().unwrap_or_default().to_owned()
    }
}

/// A kind of digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// As SCS-0102 writes it.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Hexadecimal digits.
    pub fn digits(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
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
