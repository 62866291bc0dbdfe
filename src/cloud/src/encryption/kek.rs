//! A key that encrypts keys and other small things: AES-256-GCM (NIST SP 800-38D; nonces are random, so a key is good for 2^32 of
//! them).

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::{Error, Result};

/// A key-encryption key.
pub(crate) struct Kek(LessSafeKey);

impl Kek {
    /// Of 32 bytes.
    ///
    /// # Errors
    /// If they are fewer or more.
    pub(crate) fn new(key: &[u8]) -> Result<Self> {
        let key = UnboundKey::new(&AES_256_GCM, key);
        let key = key.map_err(|_| Error::Internal("a key has the wrong length".into()))?;
        Ok(Kek(LessSafeKey::new(key)))
    }

    /// Encrypts bytes, which open for this purpose alone, so that rows cannot be exchanged.
    ///
    /// # Errors
    /// If they are far too many.
    pub(crate) fn seal(&self, purpose: &str, plain: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce);
        let mut text = Zeroizing::new(plain.to_vec());
        let aad = Aad::from(purpose.as_bytes());
        let tag = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text);
        let tag = tag.map_err(|_| Error::Internal(format!("{purpose} could not be encrypted")))?;
        Ok([&nonce[..], &text, tag.as_ref()].concat())
    }

    /// Decrypts what was encrypted for this purpose.
    ///
    /// # Errors
    /// If it was for another one, under another key, or was changed.
    pub(crate) fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let damaged = || Error::Internal(format!("{purpose} cannot be decrypted"));
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let mut text = Zeroizing::new(text.to_vec());
        let aad = Aad::from(purpose.as_bytes());
        let length = self
            .0
            .open_in_place(nonce, aad, &mut text)
            .map_err(|_| damaged())?
            .len();
        text.truncate(length);
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_for_its_purpose_and_unchanged_alone() {
        let key = Kek::new(&[7; 32]).unwrap();
        let sealed = key.seal("a", b"payload").unwrap();
        assert!(!sealed.windows(7).any(|part| part == b"payload"));
        assert_eq!(key.open("a", &sealed).unwrap().as_slice(), b"payload");
        assert!(key.open("b", &sealed).is_err());
        assert!(Kek::new(&[8; 32]).unwrap().open("a", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open("a", &changed).is_err(), "byte {at}");
        }
        assert!(key.open("a", &sealed[..11]).is_err());
        assert_ne!(key.seal("a", b"payload").unwrap(), sealed);
        assert!(Kek::new(&[7; 31]).is_err());
    }
}
