//! The operator's file. Every key has a default; a wrong key or value is named with its line.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where clients reach the cloud.
    pub server: Server,
    /// Where everything lies.
    pub storage: Storage,
    /// Guests.
    pub compute: Compute,
    /// The switch and its way out.
    pub network: Network,
    /// Uploads.
    pub image: Image,
    /// Accounts and passwords.
    pub identity: Identity,
    /// What is logged.
    pub log: Log,
}

/// Where clients reach the cloud.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address and port of the APIs.
    pub listen: SocketAddr,
    /// What the catalog tells clients; by default `https://` and the listen address (or this host's name).
    pub public_url: Option<String>,
    /// The region's name.
    pub region: String,
    /// This node's name; by default the host's.
    pub node: Option<String>,
    /// The availability zone of this node.
    pub availability_zone: String,
    /// A certificate chain in PEM; by default the cloud's own CA signs one.
    pub certificate: Option<PathBuf>,
    /// Its private key in PEM.
    pub private_key: Option<PathBuf>,
}

impl Default for Server {
    fn default() -> Self {
        Server {
            listen: SocketAddr::from(([0, 0, 0, 0], 443)),
            public_url: None,
            region: "RegionOne".into(),
            node: None,
            availability_zone: "nova".into(),
            certificate: None,
            private_key: None,
        }
    }
}

/// Where everything lies.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// The state directory: database, keys, images, volumes, sockets.
    pub dir: PathBuf,
    /// The pool of volumes and images; by default `pool` below the state directory.
    pub pool: Option<PathBuf>,
    /// Where the pool's filesystem has no reflinks: the size in GiB of the loop-backed XFS that is made there; by default
    /// half of what is free.
    pub loop_pool_gib: Option<u64>,
    /// Reserve the loop-backed pool's space at once; without, it grows as it fills, and may find the disk full.
    pub loop_pool_preallocate: bool,
    /// The folder of volumes' backups, best on another disk; by default `backups` below the state directory.
    pub backups: Option<PathBuf>,
    /// Encrypt new volumes, each with a key of its image's or its own.
    pub encrypt: bool,
    /// After so many days the keys that encrypt volumes' keys are exchanged.
    pub key_days: u32,
}

impl Default for Storage {
    fn default() -> Self {
        Storage {
            dir: "/var/lib/allod".into(),
            pool: None,
            loop_pool_gib: None,
            loop_pool_preallocate: true,
            backups: None,
            encrypt: true,
            key_days: 90,
        }
    }
}

/// Which engine runs guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// `kvm` where the CPU offers hardware virtualisation, else `qemu`.
    Auto,
    /// The embedded monitor.
    Kvm,
    /// An installed `qemu-system-x86_64`.
    Qemu,
    /// Nothing runs, everything is remembered: for benches of the API.
    #[cfg(feature = "simulated")]
    Simulated,
}

/// Where the children run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Each in a jailed process of its own, which survives the daemon.
    Process,
    /// On threads of the daemon: for tests, benches and small development set-ups.
    Thread,
}

/// Guests.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compute {
    /// Which engine runs guests.
    pub engine: Engine,
    /// QEMU's accelerator; the choice is never left to QEMU.
    pub qemu_accel: QemuAccel,
    /// The kvm engine's guests get their memory as huge pages, which the host must have reserved.
    pub huge_pages: bool,
    /// The processor that the kvm engine's guests see.
    pub cpu_model: vmm::kvm::CpuModel,
    /// The kvm engine's firmware for guests that boot like a PC.
    pub bios: PathBuf,
    /// The kvm engine's firmware for guests that boot by UEFI.
    pub uefi: PathBuf,
    /// The program of the `qemu` engine.
    pub qemu: PathBuf,
    /// Where the children run.
    pub isolation: Isolation,
    /// Seconds between the power button and the plug when a server is stopped.
    pub graceful_stop_seconds: u64,
    /// The first of the user ids that jailed children get, one each.
    pub uid_base: u32,
}

/// QEMU's accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QemuAccel {
    /// `kvm` where /proc/cpuinfo shows `vmx` or `svm` and /dev/kvm is there, else `tcg`.
    Auto,
    /// Software.
    Tcg,
    /// The kernel's.
    Kvm,
}

impl Default for Compute {
    fn default() -> Self {
        Compute {
            engine: Engine::Auto,
            qemu_accel: QemuAccel::Auto,
            huge_pages: false,
            cpu_model: vmm::kvm::CpuModel::Host,
            bios: "/usr/share/seabios/bios-256k.bin".into(),
            uefi: "/usr/share/ovmf/OVMF.fd".into(),
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            isolation: Isolation::Process,
            graceful_stop_seconds: 60,
            uid_base: 600_000,
        }
    }
}

impl Compute {
    /// How long a guest may take to shut down.
    pub fn graceful_stop(&self) -> Duration {
        Duration::from_secs(self.graceful_stop_seconds)
    }
}

/// The switch and its way out.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// The range of the external network `ext-net`; its first address is the host's. Empty: no external network.
    pub external_cidr: Option<Ipv4Net>,
    /// The TAP between the switch and the host.
    pub external_tap: String,
    /// Forward and masquerade what guests send out.
    pub masquerade: bool,
    /// Name servers that DHCP tells where a subnet names none.
    pub dns_servers: Vec<IpAddr>,
    /// Time servers that DHCP tells.
    pub ntp_servers: Vec<IpAddr>,
    /// MTU of tenants' networks.
    pub mtu: u16,
}

impl Default for Network {
    fn default() -> Self {
        Network {
            external_cidr: Ipv4Net::new([172, 24, 4, 0].into(), 24).ok(),
            external_tap: "allod-ext".into(),
            masquerade: true,
            dns_servers: Vec::new(),
            ntp_servers: Vec::new(),
            mtu: 1500,
        }
    }
}

/// Accounts and passwords.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// A user that changes its own password cannot take one of this many latest ones, the present one included.
    pub unique_last_passwords: u8,
    /// After so many wrong passwords in a row an account is locked for a while; 0: never.
    pub lockout_attempts: u32,
    /// For how long, in seconds.
    pub lockout_seconds: u64,
    /// Roles that a domain's manager may give and take.
    pub managed_roles: Vec<String>,
}

impl Default for Identity {
    fn default() -> Self {
        let rules = cloud::config::Accounts::default();
        Identity {
            unique_last_passwords: rules.unique_last_passwords,
            lockout_attempts: rules.lockout_attempts,
            lockout_seconds: rules.lockout.as_secs(),
            managed_roles: rules.managed_roles,
        }
    }
}

/// Uploads.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Image {
    /// The largest upload, in GiB.
    pub max_gib: u64,
    /// What the images of one project may have together, in GiB.
    pub project_gib: u64,
    /// What is fetched from the web.
    pub web_download: WebDownload,
    /// Vendors' images.
    pub catalogue: Catalogue,
}

impl Default for Image {
    fn default() -> Self {
        Image {
            max_gib: 64,
            project_gib: 1000,
            web_download: WebDownload::default(),
            catalogue: Catalogue::default(),
        }
    }
}

/// Vendors' images that the cloud keeps fresh.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Catalogue {
    /// Whether it does.
    pub enabled: bool,
    /// Only those of these names; none: all.
    pub images: Vec<String>,
    /// How often their vendors are asked.
    pub refresh_hours: u64,
    /// How long a superseded image stays, hidden.
    pub retention_days: u64,
}

impl Default for Catalogue {
    fn default() -> Self {
        Catalogue {
            enabled: false,
            images: Vec::new(),
            refresh_hours: 24,
            retention_days: 30,
        }
    }
}

/// What is fetched from the web for tenants: the import method `web-download`, and the catalogue of vendors' images.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebDownload {
    /// Anything at all.
    pub enabled: bool,
    /// Ports that every host may be asked on.
    pub ports: Vec<u16>,
    /// Hosts that may be asked although their addresses are not public; with `:port`, on that port.
    pub allow_hosts: Vec<String>,
    /// Networks whose addresses may be connected to although they are not public.
    pub allow_networks: Vec<IpNet>,
    /// The CAs that servers' certificates are checked with, in PEM; by default the system's.
    pub ca_file: Option<PathBuf>,
    /// The longest that one file may take.
    pub timeout_seconds: u64,
}

impl Default for WebDownload {
    fn default() -> Self {
        WebDownload {
            enabled: true,
            ports: vec![80, 443],
            allow_hosts: Vec::new(),
            allow_networks: Vec::new(),
            ca_file: None,
            timeout_seconds: 4 * 60 * 60,
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged, to standard error.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`), or directives such as `info,store=debug`.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Log {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}

/// Why the file was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It could not be read.
    #[error("cannot read the configuration {path}: {error}; give its path with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A key or value is wrong; the text names the line.
    #[error("{path}: {error}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column, the line itself and what is wrong with it.
        error: Box<toml::de::Error>,
    },
    /// A value is of the right type, but makes no sense.
    #[error("{path}:{line}: {key} {what}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The line of the key, counted from 1; 0 if the key is not in the file.
        line: usize,
        /// Such as `network.mtu`.
        key: &'static str,
        /// What is wrong and what would be right.
        what: String,
    },
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read {
            path: path.to_owned(),
            error,
        })?;
        Config::parse(&text, path)
    }

    /// Checks a file's text; `path` is for the messages.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            error: Box::new(error),
        })?;
        match config.check() {
            Ok(()) => Ok(config),
            Err((key, what)) => Err(ConfigError::Value {
                path: path.to_owned(),
                line: line_of(text, key),
                key,
                what,
            }),
        }
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let Config {
            server,
            storage,
            compute,
            network,
            image,
            identity,
            log,
        } = self;
        if let Some(url) = &server.public_url
            && (!url.starts_with("https://") || url.ends_with('/') || url.parse::<http::Uri>().is_err())
        {
            return Err((
                "server.public_url",
                format!("'{url}' must be an https:// URL without a slash at its end"),
            ));
        }
        if server.certificate.is_some() != server.private_key.is_some() {
            return Err((
                "server.certificate",
                "needs server.private_key beside it, and the other way round".into(),
            ));
        }
        for (key, name) in [
            ("server.region", &server.region),
            ("server.availability_zone", &server.availability_zone),
        ] {
            if name.is_empty() || name.len() > 255 || name.contains(char::is_control) {
                return Err((key, "must have 1 to 255 printable characters".into()));
            }
        }
        if identity.unique_last_passwords > 10 {
            return Err(("identity.unique_last_passwords", "must be from 0 to 10".into()));
        }
        if identity.managed_roles.iter().any(|role| role == "admin") {
            return Err(("identity.managed_roles", "must not have admin in it".into()));
        }
        if !storage.dir.is_absolute() {
            return Err((
                "storage.dir",
                format!("'{}' must be an absolute path", storage.dir.display()),
            ));
        }
        if storage
            .loop_pool_gib
            .is_some_and(|gib| !(1..=1 << 20).contains(&gib))
        {
            return Err(("storage.loop_pool_gib", "must be 1 to 1048576".into()));
        }
        if compute.uid_base < 1000 || compute.uid_base > u32::MAX - 200_000 {
            return Err(("compute.uid_base", "must be 1000 to 4294767295".into()));
        }
        if !(1..=3600).contains(&compute.graceful_stop_seconds) {
            return Err(("compute.graceful_stop_seconds", "must be 1 to 3600".into()));
        }
        if let Some(cidr) = network.external_cidr
            && !(8..=29).contains(&cidr.prefix_len())
        {
            return Err((
                "network.external_cidr",
                format!("'{cidr}' must have a prefix length of 8 to 29"),
            ));
        }
        let tap = &network.external_tap;
        if tap.is_empty()
            || tap.len() > 15
            || !tap
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            return Err((
                "network.external_tap",
                format!("'{tap}' must be an interface name of 1 to 15 letters"),
            ));
        }
        if !(1280..=9000).contains(&network.mtu) {
            return Err(("network.mtu", format!("{} must be 1280 to 9000", network.mtu)));
        }
        if image.max_gib == 0 || image.max_gib > 32 << 10 {
            return Err(("image.max_gib", "must be 1 to 32768".into()));
        }
        if image.project_gib == 0 || image.project_gib > 32 << 20 {
            return Err(("image.project_gib", "must be 1 to 33554432".into()));
        }
        let catalogue = &image.catalogue;
        if let Some(unknown) = catalogue.images.iter().find(|name| !crate::catalogue::has(name)) {
            let names = crate::catalogue::names().join(", ");
            let what = format!("'{unknown}' must be one of the catalogue's images: {names}");
            return Err(("image.catalogue.images", what));
        }
        if !(1..=24 * 365).contains(&catalogue.refresh_hours) {
            return Err(("image.catalogue.refresh_hours", "must be 1 to 8760".into()));
        }
        if catalogue.retention_days > 3650 {
            return Err(("image.catalogue.retention_days", "must be 0 to 3650".into()));
        }
        let web = &image.web_download;
        for host in &web.allow_hosts {
            if let Err(what) = host.parse::<crate::web::rules::AllowedHost>() {
                return Err(("image.web_download.allow_hosts", what));
            }
        }
        if web.ports.is_empty() || web.ports.contains(&0) {
            return Err((
                "image.web_download.ports",
                "must be one or more of 1 to 65535".into(),
            ));
        }
        if !(60..=7 * 24 * 60 * 60).contains(&web.timeout_seconds) {
            return Err((
                "image.web_download.timeout_seconds",
                "must be 60 to 604800".into(),
            ));
        }
        if let Err(error) = log.level.parse::<tracing_subscriber::filter::Targets>() {
            return Err(("log.level", format!("'{}': {error}", log.level)));
        }
        Ok(())
    }

    /// The folder of backups.
    pub fn backups_dir(&self) -> PathBuf {
        self.storage
            .backups
            .clone()
            .unwrap_or_else(|| self.storage.dir.join("backups"))
    }

    /// The pool's directory.
    pub fn pool_dir(&self) -> PathBuf {
        self.storage
            .pool
            .clone()
            .unwrap_or_else(|| self.storage.dir.join("pool"))
    }
}

/// The line of `section.key` in a file's text, from 1; 0 if it is not there.
fn line_of(text: &str, key: &str) -> usize {
    let (section, key) = key.rsplit_once('.').unwrap_or(("", key));
    let mut current = String::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.split(']').next()) {
            current = name.trim().to_owned();
        } else if let Some((name, _)) = line.split_once('=') {
            let name = name.trim();
            if (current == section && name == key)
                || (current.is_empty() && name == format!("{section}.{key}"))
            {
                return number + 1;
            }
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("allod.toml"))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_empty_file_is_a_whole_configuration() {
        assert_eq!(Config::parse("", Path::new("x")).unwrap(), Config::default());
    }

    #[test]
    fn the_example_is_accepted_and_shows_the_defaults() {
        let text = include_str!("../../../config.example.toml");
        assert_eq!(Config::parse(text, Path::new("x")).unwrap(), Config::default());
        // Every key of the example is shown commented out with its default: uncommented, it is still accepted.
        let uncommented: String = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if rest.contains(" = ") && !rest.starts_with(' ') => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let config = Config::parse(&uncommented, Path::new("x")).unwrap();
        assert_eq!(config.storage.dir, Config::default().storage.dir);
        assert_eq!(config.network.mtu, Config::default().network.mtu);
    }

    #[test]
    fn a_wrong_key_is_named_with_its_line() {
        let text = error("[server]\nlisten = \"127.0.0.1:8443\"\nlissten = 1\n");
        assert!(
            text.contains("line 3") && text.contains("lissten") && text.contains("listen"),
            "{text}"
        );
    }

    #[test]
    fn a_wrong_type_is_named_with_its_line() {
        let text = error("[network]\n\nmtu = \"large\"\n");
        assert!(text.contains("line 3") && text.contains("mtu"), "{text}");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_line() {
        assert_eq!(
            error("[network]\nmasquerade = true\nmtu = 10\n"),
            "allod.toml:3: network.mtu 10 must be 1280 to 9000"
        );
        assert!(error("[storage]\ndir = \"relative\"\n").starts_with("allod.toml:2: storage.dir"));
        assert!(
            error("[server]\npublic_url = \"http://x\"\n").starts_with("allod.toml:2: server.public_url")
        );
        assert_eq!(
            error("[image]\nmax_gib = 1\n[image.web_download]\nports = [0]\n"),
            "allod.toml:4: image.web_download.ports must be one or more of 1 to 65535"
        );
        assert!(
            error("[image.web_download]\nallow_hosts = [\"a/b\"]\n")
                .starts_with("allod.toml:2: image.web_download.allow_hosts 'a/b'")
        );
        assert!(error("[log]\nlevel = \"loud=very\"\n").starts_with("allod.toml:2: log.level"));
    }
}
