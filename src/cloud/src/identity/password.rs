//! Password hashing: argon2id (RFC 9106), with a bound on how much memory and time all callers together can take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use super::secret::Secret;
use crate::{Error, Result};

/// The longest password. RFC 9106 allows more; a client that sends more is not a person.
pub const MAX_PASSWORD: usize = 4096;

/// What one hash costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
}

impl Cost {
    /// OWASP's recommendation of 2024 for argon2id.
    pub const DEFAULT: Cost = Cost {
        memory_kib: 19 * 1024,
        passes: 2,
    };
    /// For tests that are not about passwords.
    pub const CHEAP: Cost = Cost {
        memory_kib: 8,
        passes: 1,
    };
}

/// Hashes at most [`Hasher::PARALLEL`] passwords at once; a bounded number waits, the rest is turned away.
pub struct Hasher {
    cost: Cost,
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Verified in place of the hash that a missing user does not have.
    nobody: String,
}

impl Default for Hasher {
    fn default() -> Self {
        Hasher::new(Cost::DEFAULT)
    }
}

impl Hasher {
    /// Hashes at once.
    pub const PARALLEL: usize = 2;
    /// Callers that may wait for their turn.
    pub const QUEUE: usize = 64;

    /// A hasher of this cost.
    pub fn new(cost: Cost) -> Self {
        let mut random = [0; 48];
        rand::fill(&mut random);
        let (salt, output) = random.split_at(16);
        Hasher {
            cost,
            running: Arc::new(Semaphore::new(Self::PARALLEL)),
            waiting: AtomicUsize::new(0),
            nobody: phc(cost, salt, output),
        }
    }

    /// The PHC string of a password, such as `$argon2id$v=19$m=19456,t=2,p=1$…$…`.
    ///
    /// # Errors
    /// 400 if it is too long, 503 if too many callers wait.
    pub async fn hash(&self, password: Secret) -> Result<String> {
        if password.expose().len() > MAX_PASSWORD {
            return Err(Error::BadRequest(format!(
                "A password has at most {MAX_PASSWORD} bytes."
            )));
        }
        let cost = self.cost;
        self.run(move || {
            let mut salt = [0; 16];
            rand::fill(&mut salt);
            Ok(phc(cost, &salt, &argon2id(cost, password.expose(), &salt)?))
        })
        .await
    }

    /// Compares a password with a PHC string. Without one (no such user, no password) it takes as long and is `false`.
    ///
    /// # Errors
    /// 503 if too many callers wait.
    pub async fn verify(&self, password: Secret, phc: Option<String>) -> Result<bool> {
        if let Some(digest) = phc.as_deref().and_then(|phc| phc.strip_prefix(RANDOM_SECRET)) {
            return Ok(digest_of(password.expose())
                .as_bytes()
                .ct_eq(digest.as_bytes())
                .into());
        }
        let known = phc.is_some();
        let phc = phc.unwrap_or_else(|| self.nobody.clone());
        // A text too long to be anyone's password is cut, so that it costs as much as any other, and is wrong.
        let fits = password.expose().len() <= MAX_PASSWORD;
        self.run(move || {
            let (cost, salt, expected) = parse_phc(&phc)?;
            let bytes = if fits { password.expose() } else { "" };
            let output = argon2id(cost, bytes, &salt)?;
            Ok(bool::from(output.ct_eq(&expected)) && known && fits)
        })
        .await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting);
        if before >= Self::QUEUE {
            return Err(Error::Unavailable(
                "Too many logins at once; try again in a moment.".into(),
            ));
        }
        let closed = |_| Error::Internal("the password hasher is closed".into());
        let permit = self.running.clone().acquire_owned().await.map_err(closed)?;
        drop(waiting);
        tokio::task::spawn_blocking(move || {
            // Held here and not by the caller: a client that goes away must not free a place that is still in use.
            let _permit = permit;
            work()
        })
        .await
        .map_err(|error| Error::Internal(format!("password hashing: {error}")))?
    }
}

/// Marks the plain digest of a secret that we made from 256 random bits: nobody guesses it, so hashing need not be slow.
const RANDOM_SECRET: &str = "$sha256$";

/// A secret of 256 random bits, and the text to store for [`Hasher::verify`].
pub fn random_secret() -> (Secret, String) {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes);
    let secret = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let stored = format!("{RANDOM_SECRET}{}", digest_of(&secret));
    (Secret::new(secret), stored)
}

fn digest_of(text: &str) -> String {
    STANDARD_NO_PAD.encode(Sha256::digest(text.as_bytes()))
}

fn argon2id(cost: Cost, password: &str, salt: &[u8]) -> Result<[u8; 32]> {
    let failed = |error: argon2::Error| Error::Internal(format!("password hashing: {error}"));
    let params = Params::new(cost.memory_kib, cost.passes, 1, Some(32)).map_err(failed)?;
    let mut output = [0; 32];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2
        .hash_password_into(password.as_bytes(), salt, &mut output)
        .map_err(failed)?;
    Ok(output)
}

fn phc(cost: Cost, salt: &[u8], output: &[u8]) -> String {
    let Cost { memory_kib, passes } = cost;
    let (salt, output) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(output));
    format!("$argon2id$v=19$m={memory_kib},t={passes},p=1${salt}${output}")
}

fn parse_phc(phc: &str) -> Result<(Cost, Vec<u8>, [u8; 32])> {
    let parse = || {
        let rest = phc.strip_prefix("$argon2id$v=19$m=")?;
        let mut parts = rest.split('$');
        let (memory, rest) = parts.next()?.split_once(",t=")?;
        let (passes, lanes) = rest.split_once(",p=")?;
        let salt = STANDARD_NO_PAD.decode(parts.next()?).ok()?;
        let output = STANDARD_NO_PAD.decode(parts.next()?).ok()?.try_into().ok()?;
        let cost = Cost {
            memory_kib: memory.parse().ok()?,
            passes: passes.parse().ok()?,
        };
        (lanes == "1" && parts.next().is_none()).then_some((cost, salt, output))
    };
    parse().ok_or_else(|| Error::Internal("a stored password hash cannot be read".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_same_password_verifies() {
        let hasher = Hasher::new(Cost::CHEAP);
        let stored = hasher.hash(Secret::new("grüße")).await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=8,t=1,p=1$"));
        assert!(
            hasher
                .verify(Secret::new("grüße"), Some(stored.clone()))
                .await
                .unwrap()
        );
        assert!(
            !hasher
                .verify(Secret::new("grüsse"), Some(stored.clone()))
                .await
                .unwrap()
        );
        assert!(
            !hasher
                .verify(Secret::new("x".repeat(MAX_PASSWORD + 1)), Some(stored))
                .await
                .unwrap()
        );
        assert!(!hasher.verify(Secret::new("grüße"), None).await.unwrap());
        assert!(
            hasher
                .hash(Secret::new("x".repeat(MAX_PASSWORD + 1)))
                .await
                .is_err()
        );
    }

    /// The reference implementation's own answer (`argon2 somesalt -id -t 2 -k 256 -p 1`, RFC 9106 version 19).
    #[test]
    fn argon2id_agrees_with_the_reference() {
        let output = argon2id(
            Cost {
                memory_kib: 256,
                passes: 2,
            },
            "password",
            b"somesalt",
        )
        .unwrap();
        let hex: String = output.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"
        );
    }

    #[tokio::test]
    async fn random_secrets_verify_without_argon2() {
        let hasher = Hasher::new(Cost::CHEAP);
        let (secret, stored) = random_secret();
        assert!(hasher.verify(secret.clone(), Some(stored.clone())).await.unwrap());
        assert!(!hasher.verify(Secret::new("other"), Some(stored)).await.unwrap());
        assert_eq!(format!("{secret:?}"), "***");
    }

    #[tokio::test]
    async fn the_queue_is_bounded() {
        let hasher = Arc::new(Hasher::new(Cost::CHEAP));
        let all = hasher
            .running
            .clone()
            .acquire_many_owned(Hasher::PARALLEL as u32)
            .await
            .unwrap();
        let callers: Vec<_> = (0..Hasher::QUEUE + 1)
            .map(|_| {
                let hasher = hasher.clone();
                tokio::spawn(async move { hasher.hash(Secret::new("x")).await })
            })
            .collect();
        while hasher.waiting.load(Ordering::Relaxed) < Hasher::QUEUE {
            tokio::task::yield_now().await;
        }
        assert!(matches!(
            hasher.hash(Secret::new("x")).await,
            Err(Error::Unavailable(_))
        ));
        drop(all);
        let mut refused = 0;
        for caller in callers {
            refused += usize::from(caller.await.unwrap().is_err());
        }
        assert_eq!(refused, 1);
        assert!(hasher.hash(Secret::new("x")).await.is_ok());
    }
}
