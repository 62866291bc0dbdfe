//! Encryption of payloads: AES-256-GCM under one key for each project (NIST SP 800-38D; nonces are random, so a key is
//! good for 2^32 payloads).

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rusqlite::{OptionalExtension, params};
use zeroize::Zeroizing;

use crate::identity::now;
use crate::{Cloud, Error, Result};

/// A project's key.
pub(super) struct ProjectKey(LessSafeKey);

impl ProjectKey {
    pub(super) fn new(key: &[u8]) -> Result<Self> {
        let key = UnboundKey::new(&AES_256_GCM, key);
        let key = key.map_err(|_| Error::Internal("a project's key has the wrong length".into()))?;
        Ok(ProjectKey(LessSafeKey::new(key)))
    }

    /// Encrypts a payload, which opens for this secret alone.
    pub(super) fn seal(&self, secret: &str, plain: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce);
        let mut text = Zeroizing::new(plain.to_vec());
        let aad = Aad::from(secret.as_bytes());
        let tag = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text);
        let tag = tag.map_err(|_| Error::Internal("a secret could not be encrypted".into()))?;
        Ok([&nonce[..], &text, tag.as_ref()].concat())
    }

    /// Decrypts a payload.
    pub(super) fn open(&self, secret: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let damaged = || Error::Internal(format!("the payload of secret {secret} cannot be decrypted"));
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let mut text = Zeroizing::new(text.to_vec());
        let aad = Aad::from(secret.as_bytes());
        let length = self
            .0
            .open_in_place(nonce, aad, &mut text)
            .map_err(|_| damaged())?
            .len();
        text.truncate(length);
        Ok(text)
    }
}

fn purpose(project: &str) -> String {
    format!("secret key of project {project}")
}

/// The project's key, made when it is first needed.
pub(super) async fn key_of(cloud: &Cloud, project: &str) -> Result<ProjectKey> {
    let read = |project: String| {
        cloud.store.read(move |conn| {
            let mut sql = conn.prepare_cached("SELECT wrapped FROM secret_keys WHERE project_id = ?1")?;
            Ok::<_, Error>(
                sql.query_row([project], |row| row.get::<_, Vec<u8>>(0))
                    .optional()?,
            )
        })
    };
    let wrapped = match read(project.to_owned()).await? {
        Some(wrapped) => wrapped,
        None => {
            let mut key = Zeroizing::new([0; 32]);
            rand::fill(&mut key[..]);
            let new = cloud.identity.wrap(&purpose(project), &key[..])?;
            let (name, now) = (project.to_owned(), now());
            // Of two that make one at once the first one's stays, and both use it.
            cloud
                .store
                .write("secret", move |conn| {
                    conn.prepare_cached(
                        "INSERT OR IGNORE INTO secret_keys (project_id, wrapped, created_at) VALUES (?1, ?2, ?3)",
                    )?
                    .execute(params![name, new, now])?;
                    let mut sql = conn.prepare_cached("SELECT wrapped FROM secret_keys WHERE project_id = ?1")?;
                    Ok::<_, Error>(sql.query_row([&name], |row| row.get::<_, Vec<u8>>(0))?)
                })
                .await?
        }
    };
    let key = cloud.identity.unwrap(&purpose(project), &wrapped);
    let key = key.ok_or_else(|| {
        Error::Internal(format!(
            "the key of project {project} was not wrapped under this cloud's root key"
        ))
    })?;
    ProjectKey::new(&key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_opens_for_its_own_secret_and_unchanged_alone() {
        let key = ProjectKey::new(&[7; 32]).unwrap();
        let sealed = key.seal("a", b"payload").unwrap();
        assert!(!sealed.windows(7).any(|part| part == b"payload"));
        assert_eq!(key.open("a", &sealed).unwrap().as_slice(), b"payload");
        assert!(key.open("b", &sealed).is_err());
        assert!(ProjectKey::new(&[8; 32]).unwrap().open("a", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open("a", &changed).is_err(), "byte {at}");
        }
        assert!(key.open("a", &sealed[..11]).is_err());
        assert_ne!(key.seal("a", b"payload").unwrap(), sealed);
        assert!(ProjectKey::new(&[7; 31]).is_err());
    }
}
