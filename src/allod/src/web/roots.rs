//! Whom we trust to name servers: the system's CAs, or the operator's.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Where distributions keep their CAs in one file: Debian and Ubuntu, Fedora and RHEL, openSUSE, Alpine.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A client's settings, with these CAs or the system's. Read anew each time: CAs come and go while the daemon runs.
pub fn client(file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let roots = match file {
        Some(file) => read(file)?,
        None => BUNDLES
            .iter()
            .map(Path::new)
            .find(|path| path.exists())
            .ok_or("this host has no CA certificates")
            .map(read)??,
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn read(path: &Path) -> Result<RootCertStore, String> {
    // The path is the operator's matter, not the tenant's.
    let unreadable = |error: &dyn std::fmt::Display| {
        tracing::error!(path = %path.display(), %error, "CA certificates cannot be read");
        "this host's CA certificates cannot be read".to_owned()
    };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))?;
    // As everywhere, one that is odd does not spoil the others.
    let (good, _) = roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    match good {
        0 => Err(unreadable(&"there are none")),
        _ => Ok(roots),
    }
}
