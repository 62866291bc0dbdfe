//! Key pairs: public keys that servers are given for their first login.

use md5::{Digest, Md5};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{Algorithm, LineEnding, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::quotas::{self, Resource};
use super::{Micros, certificates, now};
use crate::{Cloud, Context, Error, Result};

/// The longest public key that is taken, in bytes: an RSA key of 16,384 bits has 2,800.
const MAX_PUBLIC_KEY: usize = 16_384;

/// A key pair of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// A number, for clients that want one.
    pub number: u32,
    /// The owner.
    pub user_id: String,
    /// Unique for the owner.
    pub name: String,
    /// `ssh` or `x509`.
    pub kind: String,
    /// OpenSSH's one-line form, or a certificate.
    pub public_key: String,
    /// MD5 of the key's bytes (SHA-1 of a certificate's) as hexadecimal numbers with colons.
    pub fingerprint: String,
    /// When it was made.
    pub created_at: Micros,
}

/// What a server keeps of its key pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerKey {
    /// The key pair's name.
    pub name: String,
    /// `ssh`.
    #[serde(rename = "type")]
    pub kind: String,
    /// OpenSSH's one-line form.
    pub public_key: String,
}

const COLUMNS: &str = "number, user_id, name, type, public_key, fingerprint, created_at";

fn of_row(row: &Row<'_>) -> rusqlite::Result<KeyPair> {
    Ok(KeyPair {
        number: row.get(0)?,
        user_id: row.get(1)?,
        name: row.get(2)?,
        kind: row.get(3)?,
        public_key: row.get(4)?,
        fingerprint: row.get(5)?,
        created_at: row.get(6)?,
    })
}

/// The user whose key pairs are meant: the caller, or whom an admin names (2.10).
fn owner(ctx: &Context, user: Option<&str>) -> Result<String> {
    match user {
        Some(user) if user != ctx.user_id => {
            ctx.require("key_pairs", "any_user")?;
            Ok(user.to_owned())
        }
        _ => Ok(ctx.user_id.clone()),
    }
}

pub(super) fn find(conn: &Connection, user: &str, name: &str) -> Result<KeyPair> {
    let mut query = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM compute_key_pairs WHERE user_id = ?1 AND name = ?2"
    ))?;
    let pair = query.query_row(params![user, name], of_row).optional()?;
    pair.ok_or_else(|| super::missing(format!("Keypair {name} not found for user {user}")))
}

/// Key pairs by name, after `marker`.
pub async fn list(
    cloud: &Cloud,
    ctx: &Context,
    user: Option<&str>,
    marker: Option<String>,
    limit: usize,
) -> Result<Vec<KeyPair>> {
    ctx.require("key_pairs", "list")?;
    let user = owner(ctx, user)?;
    cloud
        .store
        .read(move |conn| {
            if let Some(marker) = &marker {
                find(conn, &user, marker)
                    .map_err(|_| Error::BadRequest(format!("Marker {marker} could not be found.")))?;
            }
            let mut query = conn.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM compute_key_pairs WHERE user_id = ?1 AND name > ?2 ORDER BY name LIMIT ?3"
            ))?;
            let rows = query.query_map(params![user, marker.unwrap_or_default(), limit], of_row)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
}

/// One key pair.
pub async fn show(cloud: &Cloud, ctx: &Context, user: Option<&str>, name: &str) -> Result<KeyPair> {
    ctx.require("key_pairs", "show")?;
    let (user, name) = (owner(ctx, user)?, name.to_owned());
    cloud.store.read(move |conn| find(conn, &user, &name)).await
}

/// Removes a key pair; servers keep their copy.
pub async fn delete(cloud: &Cloud, ctx: &Context, user: Option<&str>, name: &str) -> Result<()> {
    ctx.require("key_pairs", "delete")?;
    let (user, name) = (owner(ctx, user)?, name.to_owned());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            find(conn, &user, &name)?;
            conn.execute(
                "DELETE FROM compute_key_pairs WHERE user_id = ?1 AND name = ?2",
                params![user, name],
            )?;
            Ok(())
        })
        .await
}

/// A checked public key: its one-line form and its fingerprint.
fn check(text: &str) -> Result<(String, String)> {
    let invalid = |why: &str| Error::BadRequest(format!("Keypair data is invalid: {why}"));
    if text.len() > MAX_PUBLIC_KEY {
        return Err(invalid("the public key is too long"));
    }
    let line = text.trim();
    if line.contains(['\n', '\r', '\0']) {
        return Err(invalid("a public key is one line in OpenSSH's form"));
    }
    let key = PublicKey::from_openssh(line).map_err(|_| invalid("failed to generate fingerprint"))?;
    match key.algorithm() {
        Algorithm::Rsa { .. }
        | Algorithm::Ed25519
        | Algorithm::Ecdsa { .. }
        | Algorithm::SkEd25519
        | Algorithm::SkEcdsaSha2NistP256 => {}
        other => return Err(invalid(&format!("keys of type {other} are not accepted"))),
    }
    let bytes = key
        .to_bytes()
        .map_err(|_| invalid("failed to generate fingerprint"))?;
    let fingerprint: Vec<String> = Md5::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok((line.to_owned(), fingerprint.join(":")))
}

/// A fresh Ed25519 key: private key in OpenSSH's form, public key in one line.
fn generate(comment: &str) -> Result<(Zeroizing<String>, String)> {
    let internal = |e: ssh_key::Error| Error::Internal(format!("generate a key pair: {e}"));
    let seed: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
    let data = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
    let key = PrivateKey::new(data, comment).map_err(internal)?;
    let public = key.public_key().to_openssh().map_err(internal)?;
    Ok((key.to_openssh(LineEnding::LF).map_err(internal)?, public))
}

/// What is to be made.
#[derive(Debug, Clone)]
pub struct Create {
    /// Its name, checked by the API.
    pub name: String,
    /// The key to import; `None`: generate one (before 2.92).
    pub public_key: Option<String>,
    /// The owner, if an admin makes it for someone (2.10).
    pub user_id: Option<String>,
    /// It is a certificate (2.2).
    pub x509: bool,
}

/// Imports or generates a key pair; a generated one comes with its private key, which is kept nowhere.
pub async fn create(
    cloud: &Cloud,
    ctx: &Context,
    create: Create,
) -> Result<(KeyPair, Option<Zeroizing<String>>)> {
    ctx.require("key_pairs", "create")?;
    let user = owner(ctx, create.user_id.as_deref())?;
    let project = ctx.project().map(str::to_owned).unwrap_or_default();
    let (private, public) = match &create.public_key {
        Some(key) => (None, key.clone()),
        None => {
            let (private, public) = if create.x509 {
                certificates::generate(&user)?
            } else {
                generate("Generated-by-Allod")?
            };
            (Some(private), public)
        }
    };
    let (public_key, fingerprint) = if create.x509 {
        certificates::check(&public)?
    } else {
        check(&public)?
    };
    let pair = KeyPair {
        number: rand::random::<u32>() >> 1,
        user_id: user,
        name: create.name,
        kind: if create.x509 { "x509".into() } else { "ssh".into() },
        public_key,
        fingerprint,
        created_at: now(),
    };
    let row = pair.clone();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let mut query =
                conn.prepare_cached("SELECT COUNT(*) FROM compute_key_pairs WHERE user_id = ?1")?;
            let used: i64 = query.query_row([&row.user_id], |r| r.get(0))?;
            let limit = quotas::limit(conn, &project, Resource::KeyPairs)?;
            if limit >= 0 && used >= limit {
                return Err(Error::QuotaExceeded("Quota exceeded, too many key pairs.".into()));
            }
            if find(conn, &row.user_id, &row.name).is_ok() {
                return Err(Error::Conflict(format!(
                    "Key pair '{}' already exists.",
                    row.name
                )));
            }
            conn.prepare_cached(&format!(
                "INSERT INTO compute_key_pairs ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
            ))?
            .execute(params![
                row.number,
                row.user_id,
                row.name,
                row.kind,
                row.public_key,
                row.fingerprint,
                row.created_at
            ])?;
            Ok(())
        })
        .await?;
    Ok((pair, private))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_ssh_keygen_makes_and_agrees_on_the_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        for (kind, bits) in [
            ("rsa", "2048"),
            ("ed25519", "256"),
            ("ecdsa", "256"),
            ("ecdsa", "521"),
        ] {
            let path = dir.path().join(format!("{kind}{bits}"));
            let made = std::process::Command::new("ssh-keygen")
                .args([
                    "-q",
                    "-t",
                    kind,
                    "-b",
                    bits,
                    "-N",
                    "",
                    "-C",
                    "someone@somewhere",
                    "-f",
                ])
                .arg(&path)
                .status()
                .unwrap();
            assert!(made.success());
            let public = path.with_extension("pub");
            let shown = std::process::Command::new("ssh-keygen")
                .args(["-l", "-E", "md5", "-f"])
                .arg(&public)
                .output()
                .unwrap();
            let shown = String::from_utf8(shown.stdout).unwrap();
            let (line, fingerprint) = check(&std::fs::read_to_string(&public).unwrap()).unwrap();
            assert!(line.ends_with("someone@somewhere"));
            assert!(
                shown.contains(&format!("MD5:{fingerprint} ")),
                "{shown} vs {fingerprint}"
            );
        }
    }

    #[test]
    fn refuses_what_is_no_public_key() {
        for text in [
            "",
            "ssh-rsa",
            "ssh-rsa AAAA",
            "hello world",
            "ssh-ed25519 AAAA\nssh-rsa BBBB",
        ] {
            assert!(matches!(check(text), Err(Error::BadRequest(_))), "{text}");
        }
        assert!(matches!(
            check(&"x".repeat(MAX_PUBLIC_KEY + 1)),
            Err(Error::BadRequest(_))
        ));
    }

    #[test]
    fn a_generated_private_key_belongs_to_its_public_key() {
        let (private, public) = generate("c").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, private.as_bytes()).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let shown = std::process::Command::new("ssh-keygen")
            .arg("-y")
            .arg("-f")
            .arg(&path)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(shown.stdout).unwrap().trim(), public);
    }
}
