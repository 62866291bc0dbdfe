//! The certificate of port 443: the operator's own, or one that the cloud's own CA signs.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

use crate::config::Config;

/// How long the cloud's own CA is valid.
const CA_DAYS: i64 = 3650;
/// How long a server certificate is valid; it is made anew at every start.
const CERTIFICATE_DAYS: i64 = 397;

/// The TLS settings of the public port. Without certificates of the operator's own, the CA in `<dir>/tls` is made
/// once and its certificate put beside the state as `<dir>/ca.pem`, for clients' `cacert`.
pub fn server_config(config: &Config) -> Result<Arc<rustls::ServerConfig>> {
    let (chain, key) = match (&config.server.certificate, &config.server.private_key) {
        (Some(certificate), Some(key)) => (
            fs::read(certificate)
                .with_context(|| format!("server.certificate: cannot read {}", certificate.display()))?,
            fs::read(key).with_context(|| format!("server.private_key: cannot read {}", key.display()))?,
        ),
        _ => own_certificate(config)?,
    };
    let chain = CertificateDer::pem_slice_iter(&chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| anyhow!("the certificate chain is not PEM: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|error| anyhow!("the private key is not PEM: {error}"))?;
    let mut tls =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .context("the certificate and the private key do not fit together")?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

fn own_certificate(config: &Config) -> Result<(Vec<u8>, Vec<u8>)> {
    let dir = config.storage.dir.join("tls");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let (key_path, ca_path) = (dir.join("ca.key"), dir.join("ca.pem"));
    let now = OffsetDateTime::now_utc();
    if !ca_path.exists() {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("Allod CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = now - Duration::hours(1);
        params.not_after = now + Duration::days(CA_DAYS);
        let certificate = params.self_signed(&key)?;
        write_private(&key_path, key.serialize_pem().as_bytes())?;
        write_private(&ca_path, certificate.pem().as_bytes())?;
    }
    let ca_pem =
        fs::read_to_string(&ca_path).with_context(|| format!("cannot read {}", ca_path.display()))?;
    let ca_key =
        fs::read_to_string(&key_path).with_context(|| format!("cannot read {}", key_path.display()))?;
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, KeyPair::from_pem(&ca_key)?)
        .context("the cloud's own CA cannot be read; restore <dir>/tls from a backup")?;

    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name("Allod");
    params.subject_alt_names = alt_names(config);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(CERTIFICATE_DAYS);
    let certificate = params.signed_by(&key, &issuer)?;
    publish(&config.storage.dir.join("ca.pem"), ca_pem.as_bytes())?;
    Ok((
        format!("{}{ca_pem}", certificate.pem()).into_bytes(),
        key.serialize_pem().into_bytes(),
    ))
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// Every name and address that a client may call this host: the public URL's, the host's, the listener's, loopback.
fn alt_names(config: &Config) -> Vec<SanType> {
    let mut names = vec![public_host(config), "localhost".into(), hostname()];
    names.extend([
        "127.0.0.1".into(),
        "::1".into(),
        config.server.listen.ip().to_string(),
    ]);
    names.sort();
    names.dedup();
    names
        .iter()
        .filter_map(|name| match name.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() => None,
            Ok(ip) => Some(SanType::IpAddress(ip)),
            Err(_) => name.as_str().try_into().ok().map(SanType::DnsName),
        })
        .collect()
}

/// What clients reach the APIs at: the setting, or the listen address, or this host's name.
pub fn public_url(config: &Config) -> String {
    if let Some(url) = &config.server.public_url {
        return url.clone();
    }
    let host = match config.server.listen.ip() {
        ip if ip.is_unspecified() => hostname(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    match config.server.listen.port() {
        443 => format!("https://{host}"),
        port => format!("https://{host}:{port}"),
    }
}

fn public_host(config: &Config) -> String {
    let url = public_url(config);
    let uri: Option<http::Uri> = url.parse().ok();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or("localhost");
    host.trim_matches(['[', ']']).to_owned()
}

/// This host's name.
pub fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".into())
}

/// Writes a file that only its owner reads, whole or not at all.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    write(path, content, 0o600)
}

/// Writes a file that everybody may read, whole or not at all.
fn publish(path: &Path, content: &[u8]) -> Result<()> {
    write(path, content, 0o644)
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let part = path.with_extension("part");
    let write = || -> std::io::Result<()> {
        let _ = fs::remove_file(&part);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&part)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(dir: &Path) -> Config {
        let mut config = Config::default();
        config.storage.dir = dir.to_owned();
        config.server.listen = SocketAddr::from(([127, 0, 0, 1], 8443));
        config
    }

    #[test]
    fn the_ca_is_made_once_and_its_key_stays_private() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        server_config(&config).unwrap();
        let first = fs::read(dir.path().join("ca.pem")).unwrap();
        server_config(&config).unwrap();
        assert_eq!(first, fs::read(dir.path().join("ca.pem")).unwrap());
        let mode = fs::metadata(dir.path().join("tls/ca.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_public_url_follows_the_listen_address() {
        let mut config = config(Path::new("/x"));
        assert_eq!(public_url(&config), "https://127.0.0.1:8443");
        config.server.listen = "[::1]:443".parse().unwrap();
        assert_eq!(public_url(&config), "https://[::1]");
        config.server.public_url = Some("https://cloud.example.org".into());
        assert_eq!(public_url(&config), "https://cloud.example.org");
        assert_eq!(public_host(&config), "cloud.example.org");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        let (chain, _) = own_certificate(&config).unwrap();
        let (_, other) = own_certificate(&config).unwrap();
        let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        fs::write(&cert, chain).unwrap();
        fs::write(&key, other).unwrap();
        (config.server.certificate, config.server.private_key) = (Some(cert), Some(key));
        assert!(
            server_config(&config)
                .unwrap_err()
                .to_string()
                .contains("do not fit")
        );
    }
}
