//! The root key, a file of this node that all nodes of a cloud share, and the token keys that lie under it as rows.

use std::fs::{DirBuilder, OpenOptions, read};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use crate::{Error, Result};

/// The root key's file in the folder of secrets.
pub const ROOT_KEY_FILE: &str = "identity.key";

/// Encrypts token keys for the database.
pub struct RootKey(XChaCha20Poly1305);

impl RootKey {
    /// Reads the key, or makes it at first start (mode 0600, synced to disk before it is used).
    ///
    /// # Errors
    /// If the file cannot be read or made, or holds something else.
    pub fn open(dir: &Path) -> Result<RootKey> {
        let path = dir.join(ROOT_KEY_FILE);
        let failed = |error: std::io::Error| Error::Internal(format!("{}: {error}", path.display()));
        let key = match read(&path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(dir)
                    .map_err(failed)?;
                let mut key = Zeroizing::new(vec![0; 32]);
                rand::fill(&mut key[..]);
                let new = dir.join(format!(".{ROOT_KEY_FILE}.{}", uuid::Uuid::new_v4().simple()));
                let mut file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&new)
                    .map_err(failed)?;
                file.write_all(&key)
                    .and_then(|()| file.sync_all())
                    .map_err(failed)?;
                // A hard link does not replace: whoever comes second reads the first one's key.
                let linked = std::fs::hard_link(&new, &path);
                std::fs::remove_file(&new).map_err(failed)?;
                match linked {
                    Ok(()) => {
                        std::fs::File::open(dir)
                            .and_then(|dir| dir.sync_all())
                            .map_err(failed)?;
                        key
                    }
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                        Zeroizing::new(read(&path).map_err(failed)?)
                    }
                    Err(error) => return Err(failed(error)),
                }
            }
            Err(error) => return Err(failed(error)),
        };
        if key.len() != 32 {
            return Err(Error::Internal(format!(
                "{}: a key of 32 bytes was expected",
                path.display()
            )));
        }
        Ok(RootKey(XChaCha20Poly1305::new(Key::from_slice(&key))))
    }

    /// A key that is nowhere else, for tests.
    pub fn ephemeral() -> RootKey {
        let mut key = Zeroizing::new([0; 32]);
        rand::fill(&mut key[..]);
        RootKey(XChaCha20Poly1305::new(Key::from_slice(&key[..])))
    }

    /// Encrypts a text for a row; it can be read with the same `purpose` alone.
    ///
    /// # Errors
    /// Never, as far as the cipher is concerned.
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = [0; 24];
        rand::fill(&mut nonce);
        let payload = Payload {
            msg: plain,
            aad: purpose.as_bytes(),
        };
        let sealed = self.0.encrypt(XNonce::from_slice(&nonce), payload);
        let sealed = sealed.map_err(|_| Error::Internal("a row could not be encrypted".into()))?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// What [`RootKey::seal`] encrypted; `None` if it was another key or purpose, or the row was changed.
    pub fn open_sealed(&self, purpose: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, msg) = sealed.split_at_checked(24)?;
        let aad = purpose.as_bytes();
        let plain = self
            .0
            .decrypt(XNonce::from_slice(nonce), Payload { msg, aad })
            .ok()?;
        Some(Zeroizing::new(plain))
    }

    /// A new token key, encrypted for its row.
    ///
    /// # Errors
    /// Never, as far as the cipher is concerned.
    pub fn new_token_key(&self, id: u32) -> Result<Vec<u8>> {
        let mut key = Zeroizing::new([0; 32]);
        rand::fill(&mut key[..]);
        let mut nonce = [0; 24];
        rand::fill(&mut nonce);
        let sealed = self
            .0
            .encrypt(
                XNonce::from_slice(&nonce),
                Payload {
                    msg: &key[..],
                    aad: &aad(id),
                },
            )
            .map_err(|_| Error::Internal("a token key could not be wrapped".into()))?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// The token key of a row; `None` if it was wrapped under another root key or changed.
    pub fn unwrap(&self, id: u32, wrapped: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
        let (nonce, sealed) = wrapped.split_at_checked(24)?;
        let key = self
            .0
            .decrypt(
                XNonce::from_slice(nonce),
                Payload {
                    msg: sealed,
                    aad: &aad(id),
                },
            )
            .ok()?;
        let key = Zeroizing::new(key);
        Some(Zeroizing::new(key.as_slice().try_into().ok()?))
    }
}

fn aad(id: u32) -> [u8; 19] {
    let mut aad = *b"allod token key\0\0\0\0";
    aad[15..].copy_from_slice(&id.to_be_bytes());
    aad
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_root_key_is_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = dir.path().join("a/secrets");
        let wrapped = RootKey::open(&secrets).unwrap().new_token_key(3).unwrap();
        let again = RootKey::open(&secrets).unwrap();
        assert!(again.unwrap(3, &wrapped).is_some());
        assert!(again.unwrap(4, &wrapped).is_none());
        assert!(RootKey::ephemeral().unwrap(3, &wrapped).is_none());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&secrets.join(ROOT_KEY_FILE)), 0o600);
        assert_eq!(mode(&secrets), 0o700);
        assert_eq!(std::fs::read_dir(&secrets).unwrap().count(), 1);
    }

    #[test]
    fn what_was_sealed_opens_for_its_purpose_alone() {
        let key = RootKey::ephemeral();
        let sealed = key.seal("a", b"text").unwrap();
        assert_eq!(key.open_sealed("a", &sealed).unwrap().as_slice(), b"text");
        assert!(key.open_sealed("b", &sealed).is_none());
        assert!(RootKey::ephemeral().open_sealed("a", &sealed).is_none());
        assert!(key.open_sealed("a", &sealed[..20]).is_none());
    }

    #[test]
    fn a_damaged_root_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(ROOT_KEY_FILE), b"short").unwrap();
        let Err(error) = RootKey::open(dir.path()) else {
            panic!("it was taken")
        };
        assert!(error.to_string().contains(ROOT_KEY_FILE), "{error}");
    }
}
