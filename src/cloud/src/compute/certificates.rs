//! Key pairs of type `x509`: certificates that Windows guests take for logins over WinRM.

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, OtherNameValue, SanType,
};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use time::{Duration, OffsetDateTime};
use x509_parser::pem::parse_x509_pem;
use zeroize::Zeroizing;

use crate::{Error, Result};

/// The user principal name (Microsoft's `szOID_NT_PRINCIPAL_NAME`).
const PRINCIPAL_NAME: [u64; 10] = [1, 3, 6, 1, 4, 1, 311, 20, 2, 3];
/// How long a generated certificate is valid.
const VALIDITY: Duration = Duration::days(3650);

/// A checked certificate: its PEM form and its fingerprint.
pub(super) fn check(text: &str) -> Result<(String, String)> {
    let invalid = |why: &str| Error::BadRequest(format!("Keypair data is invalid: {why}"));
    let (_, pem) = parse_x509_pem(text.as_bytes())
        .map_err(|_| invalid("failed to generate X509 fingerprint: it is not a certificate in PEM form"))?;
    if pem.label != "CERTIFICATE" || pem.parse_x509().is_err() {
        return Err(invalid(
            "failed to generate X509 fingerprint: it is not a certificate in PEM form",
        ));
    }
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &pem.contents);
    let fingerprint: Vec<String> = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((text.to_owned(), fingerprint.join(":")))
}

/// A fresh key and its certificate: private key and certificate in PEM form.
pub(super) fn generate(user: &str) -> Result<(Zeroizing<String>, String)> {
    let internal = |e: rcgen::Error| Error::Internal(format!("generate a certificate: {e}"));
    let key = KeyPair::generate().map_err(internal)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    params.subject_alt_names = vec![SanType::OtherName((
        PRINCIPAL_NAME.to_vec(),
        OtherNameValue::Utf8String(format!("{user}@localhost")),
    ))];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::days(1);
    params.not_after = now + VALIDITY;
    let certificate = params.self_signed(&key).map_err(internal)?;
    Ok((Zeroizing::new(key.serialize_pem()), certificate.pem()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs the outside judge on a file.
    fn openssl(arguments: &[&str], path: &std::path::Path) -> String {
        let output = Command::new("openssl")
            .args(arguments)
            .arg("-in")
            .arg(path)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_generated_certificate_is_one_to_others_and_belongs_to_its_key() {
        let (private, public) = generate("someone").unwrap();
        let (_, fingerprint) = check(&public).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (key, certificate) = (dir.path().join("key"), dir.path().join("certificate"));
        std::fs::write(&key, private.as_bytes()).unwrap();
        std::fs::write(&certificate, &public).unwrap();
        let shown = openssl(&["x509", "-noout", "-fingerprint", "-sha1"], &certificate);
        let expected = shown.trim().split('=').nth(1).unwrap().to_lowercase();
        assert_eq!(fingerprint, expected);
        assert_eq!(
            openssl(&["x509", "-noout", "-pubkey"], &certificate),
            openssl(&["pkey", "-pubout"], &key)
        );
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let (private, public) = generate("someone").unwrap();
        for text in ["", "x", private.as_str(), &public[..public.len() / 2]] {
            assert!(matches!(check(text), Err(Error::BadRequest(_))));
        }
    }
}
