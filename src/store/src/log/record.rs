//! Records of the log and how a segment is read back.
//!
//! ```text
//! magic u32 | kind u8 | 0 u8×3 | length u32 | durable u32 | chain u32 | crc u32 | payload | 0 up to a multiple of 8
//! ```
//! `chain` is the CRC of the record before, so records of another life of the file never continue this one. `durable`
//! is the offset up to which the segment was synced when the record was written: if a record is unreadable but a
//! later one says that it had been synced, this is damage, not the torn end of a crash.

use std::ops::Range;

/// Bytes before the payload.
pub(crate) const HEADER: usize = 24;
const MAGIC: u32 = 0x414c_4c4f;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Vote, purge point and the end of the segment before.
    State = 1,
    /// An entry.
    Entry = 2,
    /// Entries from this index on are void.
    Truncate = 3,
}

impl Kind {
    fn from(byte: u8) -> Option<Kind> {
        match byte {
            1 => Some(Kind::State),
            2 => Some(Kind::Entry),
            3 => Some(Kind::Truncate),
            _ => None,
        }
    }
}

/// The length of a record on disk.
pub(crate) fn size(payload: usize) -> usize {
    (HEADER + payload).next_multiple_of(8)
}

/// Appends a record; returns its CRC, the next record's chain.
pub(crate) fn put(buffer: &mut Vec<u8>, kind: Kind, payload: &[u8], durable: u32, chain: u32) -> u32 {
    let start = buffer.len();
    buffer.extend_from_slice(&MAGIC.to_le_bytes());
    buffer.extend_from_slice(&[kind as u8, 0, 0, 0]);
    buffer.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&durable.to_le_bytes());
    buffer.extend_from_slice(&chain.to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&buffer[start..]);
    crc.update(payload);
    let crc = crc.finalize();
    buffer.extend_from_slice(&crc.to_le_bytes());
    buffer.extend_from_slice(payload);
    buffer.resize(start + size(payload.len()), 0);
    crc
}

/// A record that was read back whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub kind: Kind,
    /// Where the payload is in the segment.
    pub payload: Range<usize>,
    pub durable: u32,
    pub chain: u32,
    pub crc: u32,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// The record at this offset, if it is whole.
pub(crate) fn get(segment: &[u8], at: usize) -> Option<Record> {
    if word(segment, at)? != MAGIC {
        return None;
    }
    let kind = Kind::from(segment[at + 4])?;
    let length = word(segment, at + 8)? as usize;
    let (durable, chain, crc) = (
        word(segment, at + 12)?,
        word(segment, at + 16)?,
        word(segment, at + 20)?,
    );
    let payload = at + HEADER..(at + HEADER).checked_add(length)?;
    let mut computed = crc32fast::Hasher::new();
    computed.update(&segment[at..at + HEADER - 4]);
    computed.update(segment.get(payload.clone())?);
    (computed.finalize() == crc).then_some(Record {
        kind,
        payload,
        durable,
        chain,
        crc,
    })
}

/// A segment, read back.
#[derive(Debug)]
pub(crate) struct Scan {
    pub records: Vec<Record>,
    /// Where the next record belongs.
    pub end: usize,
    /// Set if something after `end` proves that `end` had been synced beyond: the offset of the proof.
    pub damage: Option<usize>,
}

/// Reads records up to the first that is not whole or does not continue the chain.
pub(crate) fn scan(segment: &[u8], chain: Option<u32>) -> Scan {
    let mut records: Vec<Record> = Vec::new();
    let mut end = 0;
    let mut chain = chain;
    while let Some(record) = get(segment, end) {
        if chain.is_some_and(|chain| chain != record.chain) {
            break;
        }
        chain = Some(record.crc);
        end += size(record.payload.len());
        records.push(record);
    }
    let magic = MAGIC.to_le_bytes();
    let damage = (end..segment.len())
        .step_by(8)
        .filter(|&at| segment[at..].starts_with(&magic))
        .find(|&at| get(segment, at).is_some_and(|record| record.durable as usize > end));
    Scan {
        records,
        end: end.min(segment.len()),
        damage,
    }
}
