//! An entry as the log stores it.
//!
//! ```text
//! version u8 = 1 | kind u8 | index u64 | term u64 | leader u64 | command, or membership as JSON
//! ```

use openraft::{CommittedLeaderId, EntryPayload};

use crate::command::Command;
use crate::error::Error;
use crate::raft::{Entry, LogId};

const VERSION: u8 = 1;
const PREFIX: usize = 26;

/// Encodes an entry.
pub(crate) fn encode(entry: &Entry) -> Result<Vec<u8>, Error> {
    let membership;
    let (kind, body): (u8, &[u8]) = match &entry.payload {
        EntryPayload::Blank => (0, &[]),
        EntryPayload::Normal(command) => (1, command.as_bytes()),
        EntryPayload::Membership(members) => {
            membership =
                serde_json::to_vec(members).map_err(|e| Error::Other(format!("encode membership: {e}")))?;
            (2, &membership)
        }
    };
    let mut bytes = Vec::with_capacity(PREFIX + body.len());
    bytes.extend_from_slice(&[VERSION, kind]);
    bytes.extend_from_slice(&entry.log_id.index.to_le_bytes());
    bytes.extend_from_slice(&entry.log_id.leader_id.term.to_le_bytes());
    bytes.extend_from_slice(&entry.log_id.leader_id.node_id.to_le_bytes());
    bytes.extend_from_slice(body);
    Ok(bytes)
}

/// The log id of an encoded entry.
pub(crate) fn log_id(bytes: &[u8]) -> Result<LogId, Error> {
    let prefix: &[u8; PREFIX] = bytes
        .first_chunk()
        .ok_or_else(|| Error::Corrupt("an entry is too short".to_owned()))?;
    if prefix[0] != VERSION {
        return Err(Error::Corrupt(
            "an entry was written by a newer release".to_owned(),
        ));
    }
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&prefix[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    Ok(LogId::new(
        CommittedLeaderId::new(number(10), number(18)),
        number(2),
    ))
}

/// Decodes an entry.
pub(crate) fn decode(bytes: &[u8]) -> Result<Entry, Error> {
    let log_id = log_id(bytes)?;
    let body = &bytes[PREFIX..];
    let payload = match bytes[1] {
        0 => EntryPayload::Blank,
        1 => EntryPayload::Normal(Command::from_bytes(body)),
        2 => EntryPayload::Membership(
            serde_json::from_slice(body).map_err(|e| Error::Corrupt(format!("membership: {e}")))?,
        ),
        kind => return Err(Error::Corrupt(format!("an entry of unknown kind {kind}"))),
    };
    Ok(Entry { log_id, payload })
}
