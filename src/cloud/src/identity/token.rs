//! Tokens: a few bytes about who may do what until when, encrypted and authenticated with a key of the cloud
//! (XChaCha20-Poly1305, draft-irtf-cfrg-xchacha-03). Nothing is stored per token.
//!
//! ```text
//! base64url( version 1 │ key id 4 │ nonce 24 │ ciphertext │ tag 16 )
//!                                               └ user │ scope │ methods │ issued │ expires │ audit ids │ credential
//! ```

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use uuid::Uuid;

use crate::context::Scope;

/// The only version so far.
const VERSION: u8 = 1;
/// Keystone's clients and services keep tokens in columns and headers of this size.
pub const MAX_LENGTH: usize = 255;

/// How a caller proved who it is; a token remembers all of them.
pub const METHODS: [&str; 3] = ["password", "token", "application_credential"];

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// The user's id.
    pub user_id: String,
    /// What it is for. Of a project's domain the token knows nothing; it is looked up.
    pub scope: Target,
    /// Bits of [`METHODS`].
    pub methods: u8,
    /// Microseconds since 1970.
    pub issued_at: i64,
    /// Microseconds since 1970, whole seconds.
    pub expires_at: i64,
    /// This token's own id, by which it is revoked.
    pub audit_id: [u8; 16],
    /// The id of the first token of a chain of exchanged tokens.
    pub parent_audit_id: Option<[u8; 16]>,
    /// The application credential that was shown.
    pub credential: Option<String>,
}

/// A scope by its id alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// None.
    Unscoped,
    /// A project's id.
    Project(String),
    /// A domain's id.
    Domain(String),
    /// The whole system.
    System,
}

impl From<&Scope> for Target {
    fn from(scope: &Scope) -> Self {
        match scope {
            Scope::Unscoped => Target::Unscoped,
            Scope::Project { id, .. } => Target::Project(id.clone()),
            Scope::Domain { id } => Target::Domain(id.clone()),
            Scope::System => Target::System,
        }
    }
}

/// Keys by id; the newest seals, all open.
#[derive(Default)]
pub struct Keyring(BTreeMap<u32, XChaCha20Poly1305>);

impl Keyring {
    /// Adds or replaces a key.
    pub fn insert(&mut self, id: u32, key: &[u8; 32]) {
        self.0.insert(id, XChaCha20Poly1305::new(Key::from_slice(key)));
    }

    /// Forgets a key and with it all of its tokens.
    pub fn remove(&mut self, id: u32) {
        self.0.remove(&id);
    }

    /// Encrypts under the newest key; `None` without a key, or for claims too long for a token.
    pub fn seal(&self, claims: &Claims) -> Option<String> {
        let (id, key) = self.0.last_key_value()?;
        let mut nonce = [0; 24];
        rand::fill(&mut nonce);
        let mut token = Vec::with_capacity(192);
        token.push(VERSION);
        token.extend_from_slice(&id.to_be_bytes());
        let payload = Payload {
            msg: &claims.encode()?,
            aad: &token,
        };
        let sealed = key.encrypt(XNonce::from_slice(&nonce), payload).ok()?;
        token.extend_from_slice(&nonce);
        token.extend_from_slice(&sealed);
        let token = URL_SAFE_NO_PAD.encode(token);
        (token.len() <= MAX_LENGTH).then_some(token)
    }

    /// Decrypts; `None` for anything that was not sealed by one of these keys.
    pub fn open(&self, token: &str) -> Option<Claims> {
        if token.len() > MAX_LENGTH {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (head, rest) = bytes.split_at_checked(5)?;
        let (nonce, sealed) = rest.split_at_checked(24)?;
        if head[0] != VERSION {
            return None;
        }
        let key = self.0.get(&u32::from_be_bytes(head[1..].try_into().ok()?))?;
        let message = key
            .decrypt(
                XNonce::from_slice(nonce),
                Payload {
                    msg: sealed,
                    aad: head,
                },
            )
            .ok()?;
        Claims::decode(&message)
    }
}

impl Claims {
    /// The methods' names.
    pub fn method_names(&self) -> Vec<&'static str> {
        METHODS
            .iter()
            .enumerate()
            .filter(|(bit, _)| self.methods & (1 << bit) != 0)
            .map(|(_, name)| *name)
            .collect()
    }

    fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(128);
        put_id(&mut out, &self.user_id)?;
        match &self.scope {
            Target::Unscoped => out.push(0),
            Target::Project(id) => {
                out.push(1);
                put_id(&mut out, id)?;
            }
            Target::Domain(id) => {
                out.push(2);
                put_id(&mut out, id)?;
            }
            Target::System => out.push(3),
        }
        out.push(self.methods);
        out.extend_from_slice(&self.issued_at.to_be_bytes());
        out.extend_from_slice(&self.expires_at.to_be_bytes());
        out.extend_from_slice(&self.audit_id);
        put_option(&mut out, self.parent_audit_id.as_ref(), |out, id| {
            out.extend_from_slice(id);
            Some(())
        })?;
        put_option(&mut out, self.credential.as_ref(), |out, id| put_id(out, id))?;
        Some(out)
    }

    fn decode(bytes: &[u8]) -> Option<Claims> {
        let mut reader = Reader(bytes);
        let claims = Claims {
            user_id: reader.id()?,
            scope: match reader.byte()? {
                0 => Target::Unscoped,
                1 => Target::Project(reader.id()?),
                2 => Target::Domain(reader.id()?),
                3 => Target::System,
                _ => return None,
            },
            methods: reader.byte()?,
            issued_at: i64::from_be_bytes(reader.array()?),
            expires_at: i64::from_be_bytes(reader.array()?),
            audit_id: reader.array()?,
            parent_audit_id: if reader.byte()? == 1 {
                Some(reader.array()?)
            } else {
                None
            },
            credential: if reader.byte()? == 1 {
                Some(reader.id()?)
            } else {
                None
            },
        };
        reader.0.is_empty().then_some(claims)
    }
}

/// An id is 32 hexadecimal digits (16 bytes then) or a short text such as `default`; the first byte is its length.
fn put_id(out: &mut Vec<u8>, id: &str) -> Option<()> {
    let is_hex = id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match Uuid::try_parse(id) {
        Ok(uuid) if is_hex => {
            out.push(255);
            out.extend_from_slice(uuid.as_bytes());
        }
        _ => {
            out.push(u8::try_from(id.len()).ok().filter(|len| *len < 64)?);
            out.extend_from_slice(id.as_bytes());
        }
    }
    Some(())
}

fn put_option<T>(
    out: &mut Vec<u8>,
    value: Option<T>,
    put: impl FnOnce(&mut Vec<u8>, T) -> Option<()>,
) -> Option<()> {
    match value {
        None => out.push(0),
        Some(value) => {
            out.push(1);
            put(out, value)?;
        }
    }
    Some(())
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn id(&mut self) -> Option<String> {
        match self.byte()? {
            255 => Some(Uuid::from_bytes(self.array()?).simple().to_string()),
            len => String::from_utf8(self.take(usize::from(len))?.to_vec()).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring() -> Keyring {
        let mut ring = Keyring::default();
        ring.insert(1, &[7; 32]);
        ring
    }

    fn id() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("default".to_owned()),
            any::<u128>().prop_map(|n| Uuid::from_u128(n).simple().to_string())
        ]
    }

    fn claims() -> impl Strategy<Value = Claims> {
        let scope = prop_oneof![
            Just(Target::Unscoped),
            id().prop_map(Target::Project),
            id().prop_map(Target::Domain),
            Just(Target::System)
        ];
        let chain = (
            any::<[u8; 16]>(),
            any::<Option<[u8; 16]>>(),
            proptest::option::of(id()),
        );
        (id(), scope, 0u8..8, any::<i64>(), any::<i64>(), chain).prop_map(
            |(user_id, scope, methods, a, b, c)| Claims {
                user_id,
                scope,
                methods,
                issued_at: a,
                expires_at: b,
                audit_id: c.0,
                parent_audit_id: c.1,
                credential: c.2,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_and_is_short(claims in claims()) {
            let token = ring().seal(&claims).unwrap();
            prop_assert!(token.len() < MAX_LENGTH);
            prop_assert_eq!(ring().open(&token), Some(claims));
        }

        #[test]
        fn no_changed_token_opens(claims in claims(), at in any::<prop::sample::Index>(), to in "[A-Za-z0-9_-]") {
            let token = ring().seal(&claims).unwrap();
            let at = at.index(token.len());
            let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
            prop_assume!(changed != token);
            prop_assert_eq!(ring().open(&changed), None);
        }

        #[test]
        fn any_text_is_refused(text in "\\PC{0,300}") {
            prop_assert_eq!(ring().open(&text), None);
        }

        #[test]
        fn any_plaintext_is_decoded_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Claims::decode(&bytes);
        }
    }

    #[test]
    fn the_newest_key_seals_and_older_ones_open() {
        let claims = Claims {
            user_id: "u".into(),
            scope: Target::System,
            methods: 1,
            issued_at: 0,
            expires_at: 1,
            audit_id: [1; 16],
            parent_audit_id: None,
            credential: None,
        };
        let mut ring = ring();
        let old = ring.seal(&claims).unwrap();
        ring.insert(2, &[8; 32]);
        let new = ring.seal(&claims).unwrap();
        assert!(ring.open(&old).is_some());
        ring.remove(1);
        assert!(ring.open(&old).is_none());
        assert!(ring.open(&new).is_some());
        assert_eq!(claims.method_names(), ["password"]);
    }
}
