//! What an entry of the log carries: one group of writes as a changeset, or one step of the schema.
//!
//! ```text
//! version u8 = 1 | kind u8 | length of head u32 LE | head (JSON) | body (changeset or SQL)
//! ```

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::error::Error;

/// An entry, a changeset's head included, is at most this long.
pub const MAX_ENTRY: usize = 1 << 20;

const VERSION: u8 = 1;
const PREFIX: usize = 6;

/// SHA-256.
pub type Hash = [u8; 32];

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// An encoded command. Cloning it copies no bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Command(Arc<[u8]>);

/// What a command's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A changeset.
    Write,
    /// SQL of a schema step.
    Step,
}

/// One write of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The id under which an unknown outcome is retried.
    pub id: Uuid,
    /// Who wrote, for the audit.
    pub actor: String,
}

/// The number and name of a schema step, with the hash of its SQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepHead {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: String,
}

/// What the leader knew when it made the entry. Every node checks it before it applies the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The leader's term.
    pub term: u64,
    /// The log index of the last entry that had changed the state.
    pub base_index: u64,
    /// The rolling hash of entries at `base_index`.
    #[serde(with = "hash_text")]
    pub base_hash: Hash,
    /// The number of the last schema step.
    pub schema_version: u32,
    /// The leader's clock, in milliseconds since 1970.
    pub time: i64,
    /// Who asked.
    pub requests: Vec<Request>,
    /// Set if the body is a schema step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepHead>,
}

impl Command {
    /// Encodes an entry; refused above [`MAX_ENTRY`].
    pub fn encode(head: &Head, body: &[u8]) -> Result<Command, Error> {
        let kind = if head.step.is_some() {
            Kind::Step
        } else {
            Kind::Write
        };
        let head = serde_json::to_vec(head).map_err(|e| Error::Other(format!("encode an entry: {e}")))?;
        let size = PREFIX + head.len() + body.len();
        if size > MAX_ENTRY {
            return Err(Error::TooLarge {
                size,
                limit: MAX_ENTRY,
            });
        }
        let mut bytes = Vec::with_capacity(size);
        bytes.push(VERSION);
        bytes.push(match kind {
            Kind::Write => 1,
            Kind::Step => 2,
        });
        bytes.extend_from_slice(&(head.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(body);
        Ok(Command(bytes.into()))
    }

    /// The head and the body.
    pub fn decode(&self) -> Result<(Kind, Head, &[u8]), Error> {
        let bad = |what: &str| Error::Corrupt(format!("entry: {what}"));
        let prefix = self.0.get(..PREFIX).ok_or_else(|| bad("too short"))?;
        if prefix[0] != VERSION {
            return Err(bad("written by a newer release"));
        }
        let kind = match prefix[1] {
            1 => Kind::Write,
            2 => Kind::Step,
            _ => return Err(bad("of an unknown kind")),
        };
        let length = u32::from_le_bytes([prefix[2], prefix[3], prefix[4], prefix[5]]) as usize;
        let head = self
            .0
            .get(PREFIX..PREFIX.saturating_add(length))
            .ok_or_else(|| bad("head cut off"))?;
        let head: Head = serde_json::from_slice(head).map_err(|e| bad(&e.to_string()))?;
        if (kind == Kind::Step) != head.step.is_some() {
            return Err(bad("kind and head disagree"));
        }
        Ok((kind, head, &self.0[PREFIX + length..]))
    }

    /// The encoded bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// From encoded bytes, unchecked: `decode` checks.
    pub fn from_bytes(bytes: impl Into<Arc<[u8]>>) -> Command {
        Command(bytes.into())
    }

    /// The rolling hash after this entry.
    pub(crate) fn roll(&self, before: &Hash, index: u64) -> Hash {
        let mut hash = Sha256::new();
        hash.update(before);
        hash.update(index.to_le_bytes());
        hash.update(&self.0);
        hash.finalize().into()
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} bytes)", self.0.len())
    }
}

impl Serialize for Command {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of an entry")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u8>, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = seq.next_element()? {
                    bytes.push(byte);
                    if bytes.len() > MAX_ENTRY {
                        return Err(serde::de::Error::custom("entry too long"));
                    }
                }
                Ok(bytes)
            }
        }
        Ok(Command(deserializer.deserialize_bytes(Visitor)?.into()))
    }
}

/// What applying an entry did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// It changed the state.
    Applied,
    /// It was made on a state that is no longer the last one: nothing changed, on any node.
    Stale,
    /// It is Raft's own (blank, membership).
    Internal,
}

/// Hashes as text, in JSON.
pub(crate) mod hash_text {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{Hash, hex};

    pub(crate) fn serialize<S: Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(hash))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse_hex(&text).ok_or_else(|| serde::de::Error::custom("not a hash"))
    }
}

/// A hash from 64 hexadecimal digits.
pub(crate) fn parse_hex(text: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}
