//! The log on disk: segments of a fixed size, filled with zeros beforehand, so that an append is an overwrite and one
//! `fdatasync` makes it durable. Entries, votes, truncations and purges are records of one stream.
//!
//! ```text
//!  0000000000000001.log        0000000000000002.log          spare
//!  [State][Entry][Entry]…  ──▶ [State{prev}][Entry][Vote]…0000  0000000000
//!   whole, synced               the active one: its end may be torn
//! ```
//! A segment follows another only after that one was synced to its end, which the new segment's first record states.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::disk::{Disk, File};
use super::record::{self, Kind};
use crate::error::Error;
use crate::raft::{LogId, Vote};

const SPARE: &str = "spare";
/// Room that is kept in the active segment for votes, blank entries and memberships while no new segment can be made;
/// at most an eighth of it.
const MARGIN: usize = 64 << 10;
/// Room for a segment's first record.
const FIRST: usize = 2 << 10;

/// Where an entry's payload is.
#[derive(Clone)]
pub(crate) struct Location {
    pub file: Arc<dyn File>,
    pub segment: u64,
    pub offset: u64,
    pub length: usize,
}

impl Location {
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.length];
        self.file.read_at(&mut bytes, self.offset)?;
        Ok(bytes)
    }
}

/// What the log held when it was opened.
pub(crate) struct Recovered {
    pub entries: VecDeque<(LogId, Location)>,
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
}

#[derive(Default, Clone, Serialize, Deserialize)]
struct State {
    vote: Option<Vote>,
    purged: Option<LogId>,
    /// The end of the segment before, in a segment's first record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<End>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    segment: u64,
    length: usize,
    crc: u32,
}

struct Segment {
    number: u64,
    file: Arc<dyn File>,
    size: usize,
}

/// A record to append.
pub(crate) enum Append {
    Entry(Vec<u8>),
    Truncate(u64),
    Vote(Vote),
    Purged(LogId),
}

pub(crate) struct Journal {
    disk: Arc<dyn Disk>,
    segment_size: usize,
    /// From the oldest to the active one.
    segments: VecDeque<Segment>,
    /// Where the next record belongs in the active segment; the buffer's bytes included.
    end: usize,
    /// What was synced of it.
    synced: usize,
    chain: u32,
    state: State,
    spare: Option<(Arc<dyn File>, usize)>,
    /// Records that are not written yet; they belong before `end`.
    buffer: Vec<u8>,
    /// An error after which the state of the file is not known: nothing may be written any more.
    broken: Option<String>,
}

fn name(number: u64) -> String {
    format!("{number:016x}.log")
}

fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 16)
        .then(|| u64::from_str_radix(digits, 16).ok())
        .flatten()
}

impl Journal {
    /// Opens the log, or makes an empty one. A torn end is cut off; damage to what had been synced is an error.
    pub(crate) fn open(disk: Arc<dyn Disk>, segment_size: usize) -> Result<(Journal, Recovered), Error> {
        let place = disk.place();
        let wrap = |source: io::Error| Error::io(format!("log in {place}"))(source);
        let names = disk.list().map_err(wrap)?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| number(name)).collect();
        numbers.sort_unstable();
        if names.iter().any(|name| name == SPARE) {
            disk.remove(SPARE).map_err(wrap)?;
        }
        let mut journal = Journal {
            disk: disk.clone(),
            segment_size,
            segments: VecDeque::new(),
            end: 0,
            synced: 0,
            chain: 0,
            state: State::default(),
            spare: None,
            buffer: Vec::new(),
            broken: None,
        };
        let mut recovered = Recovered {
            entries: VecDeque::new(),
            vote: None,
            purged: None,
        };
        journal.recover(&numbers, &mut recovered)?;
        if journal.segments.is_empty() {
            journal
                .start_segment(numbers.last().copied().unwrap_or(0) + 1, 0)
                .map_err(wrap)?;
            journal.sync().map_err(wrap)?;
        }
        // A leader of before becomes a voter that has voted for itself: it is elected anew, in a new term.
        if let Some(vote) = &mut journal.state.vote {
            vote.committed = false;
        }
        recovered.vote = journal.state.vote;
        recovered.purged = journal.state.purged;
        Ok((journal, recovered))
    }

    fn recover(&mut self, numbers: &[u64], recovered: &mut Recovered) -> Result<(), Error> {
        let place = self.disk.place();
        let wrap = |source: io::Error| Error::io(format!("log in {place}"))(source);
        let corrupt = |number: u64, what: String| Error::Corrupt(format!("{place}/{}: {what}", name(number)));
        let mut previous: Option<End> = None;
        // The previous segment's evidence of damage after its end; counts only if nothing follows.
        let mut ended = false;
        for (position, &number) in numbers.iter().enumerate() {
            let file = self.disk.open(&name(number)).map_err(wrap)?;
            let size = file.len().map_err(wrap)? as usize;
            let mut bytes = vec![0; size];
            file.read_at(&mut bytes, 0).map_err(wrap)?;
            let scan = record::scan(&bytes, previous.map(|end| end.crc));
            let first = scan.records.first();
            if ended && !scan.records.is_empty() {
                return Err(corrupt(number, "it follows an unfinished segment".to_owned()));
            }
            if let Some(at) = scan.damage {
                return Err(corrupt(
                    number,
                    format!(
                        "unreadable at offset {}, though it had been synced (says the record at {at})",
                        scan.end
                    ),
                ));
            }
            let Some(first) = first else {
                // Made, but not used before the crash. Its bytes were never acknowledged.
                if position > 0 && numbers[position - 1] + 1 != number {
                    return Err(corrupt(number, "the segment before it is missing".to_owned()));
                }
                ended = true;
                drop(file);
                self.disk.remove(&name(number)).map_err(wrap)?;
                continue;
            };
            let state: State = serde_json::from_slice(&bytes[first.payload.clone()])
                .map_err(|e| corrupt(number, format!("first record: {e}")))?;
            if previous.is_some() && state.previous != previous {
                return Err(corrupt(
                    number,
                    "it does not continue the segment before".to_owned(),
                ));
            }
            self.replay(&bytes, &scan.records, number, &file, recovered)
                .map_err(|e| corrupt(number, e.to_string()))?;
            // Old bytes must never look like a continuation: the rest is zeros again before anything is appended.
            if position + 1 == numbers.len() || bytes[scan.end..].iter().any(|byte| *byte != 0) {
                let dirty = bytes
                    .iter()
                    .rposition(|byte| *byte != 0)
                    .map_or(0, |last| last + 1);
                if dirty > scan.end {
                    tracing::info!(
                        segment = number,
                        at = scan.end,
                        "the log's end was torn by a crash: cut off"
                    );
                    file.write_at(&vec![0; dirty - scan.end], scan.end as u64)
                        .map_err(wrap)?;
                }
                file.sync().map_err(wrap)?;
            }
            self.chain = scan.records.last().map_or(0, |record| record.crc);
            self.end = scan.end;
            self.synced = scan.end;
            previous = Some(End {
                segment: number,
                length: scan.end,
                crc: self.chain,
            });
            self.segments.push_back(Segment { number, file, size });
        }
        Ok(())
    }

    fn replay(
        &mut self,
        bytes: &[u8],
        records: &[record::Record],
        segment: u64,
        file: &Arc<dyn File>,
        recovered: &mut Recovered,
    ) -> Result<(), Error> {
        for record in records {
            let payload = &bytes[record.payload.clone()];
            match record.kind {
                Kind::State => {
                    self.state =
                        serde_json::from_slice(payload).map_err(|e| Error::Corrupt(e.to_string()))?;
                    if let Some(purged) = self.state.purged {
                        while recovered
                            .entries
                            .front()
                            .is_some_and(|(id, _)| id.index <= purged.index)
                        {
                            recovered.entries.pop_front();
                        }
                    }
                }
                Kind::Entry => {
                    let id = super::entry::log_id(payload)?;
                    if self.state.purged.is_some_and(|purged| id.index <= purged.index) {
                        continue;
                    }
                    if let Some((last, _)) = recovered.entries.back()
                        && last.index + 1 != id.index
                    {
                        return Err(Error::Corrupt(format!(
                            "entry {} follows entry {}",
                            id.index, last.index
                        )));
                    }
                    let location = Location {
                        file: file.clone(),
                        segment,
                        offset: record.payload.start as u64,
                        length: record.payload.len(),
                    };
                    recovered.entries.push_back((id, location));
                }
                Kind::Truncate => {
                    let since = payload
                        .first_chunk()
                        .map(|bytes| u64::from_le_bytes(*bytes))
                        .ok_or_else(|| Error::Corrupt("a truncation without an index".to_owned()))?;
                    while recovered.entries.back().is_some_and(|(id, _)| id.index >= since) {
                        recovered.entries.pop_back();
                    }
                }
            }
        }
        Ok(())
    }

    /// Appends a record to the buffer, and starts a segment if the active one is full. An entry's place is returned.
    pub(crate) fn append(&mut self, append: &Append) -> io::Result<Option<Location>> {
        self.usable()?;
        let since;
        let state;
        let (kind, payload): (Kind, &[u8]) = match append {
            Append::Entry(bytes) => (Kind::Entry, bytes),
            Append::Truncate(index) => {
                since = index.to_le_bytes();
                (Kind::Truncate, &since)
            }
            Append::Vote(vote) => {
                self.state.vote = Some(*vote);
                state = self.encode_state(None)?;
                (Kind::State, &state)
            }
            Append::Purged(id) => {
                self.state.purged = Some(*id);
                state = self.encode_state(None)?;
                (Kind::State, &state)
            }
        };
        let size = record::size(payload.len());
        if self.end + size > self.active()?.size {
            self.roll(size)?;
        }
        let offset = (self.end + record::HEADER) as u64;
        self.push(kind, payload);
        let active = self.active()?;
        Ok(matches!(append, Append::Entry(_)).then(|| Location {
            file: active.file.clone(),
            segment: active.number,
            offset,
            length: payload.len(),
        }))
    }

    fn push(&mut self, kind: Kind, payload: &[u8]) {
        self.chain = record::put(&mut self.buffer, kind, payload, self.synced as u32, self.chain);
        self.end += record::size(payload.len());
    }

    /// Writes the buffer and makes it durable.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.usable()?;
        if self.synced == self.end {
            return Ok(());
        }
        let active = self.active()?;
        let at = (self.end - self.buffer.len()) as u64;
        let done = active
            .file
            .write_at(&self.buffer, at)
            .and_then(|()| active.file.sync());
        // After a failed sync the kernel may have dropped the pages: a second try would lie.
        self.breaking(done)?;
        self.buffer.clear();
        self.buffer.shrink_to(1 << 20);
        self.synced = self.end;
        Ok(())
    }

    /// An entry of this size can be appended, and room remains for Raft's own records. Makes a spare segment if need be.
    pub(crate) fn reserve(&mut self, payload: usize) -> io::Result<()> {
        self.usable()?;
        let needed = record::size(payload) + self.margin();
        let left = self.active()?.size - self.end;
        if left < self.segment_size / 2 || left < needed {
            match self.make_spare(needed) {
                Ok(()) => {}
                Err(error) if left < needed => return Err(error),
                Err(error) => tracing::warn!(%error, "no spare segment for the log yet"),
            }
        }
        Ok(())
    }

    fn margin(&self) -> usize {
        MARGIN.min(self.segment_size / 8)
    }

    fn make_spare(&mut self, needed: usize) -> io::Result<()> {
        let size = self.segment_size.max(needed + FIRST);
        if self.spare.as_ref().is_some_and(|(_, spare)| *spare >= size) {
            return Ok(());
        }
        self.spare = None;
        self.spare = Some((self.disk.create(SPARE, size as u64)?, size));
        Ok(())
    }

    /// Removes the oldest segments that hold no entry from `live` on. What they said is in later records.
    pub(crate) fn drop_segments(&mut self, live: Option<u64>) -> io::Result<()> {
        self.usable()?;
        let keep = live.unwrap_or(u64::MAX);
        let mut removed = false;
        while self.segments.len() > 1 && self.segments[0].number < keep {
            if let Some(oldest) = self.segments.pop_front() {
                self.disk.remove(&name(oldest.number))?;
                removed = true;
            }
        }
        if removed {
            self.disk.sync_dir()?;
        }
        Ok(())
    }

    /// Bytes that an entry may have without a call of `reserve`.
    pub(crate) fn room(&self) -> usize {
        match (&self.spare, self.segments.back()) {
            (Some((_, spare)), _) => spare.saturating_sub(FIRST + record::HEADER + self.margin()),
            (None, Some(active)) => {
                (active.size - self.end).saturating_sub(self.segment_size / 2 + self.margin())
            }
            (None, None) => 0,
        }
    }

    /// Bytes on disk.
    pub(crate) fn size(&self) -> usize {
        self.segments.iter().map(|segment| segment.size).sum()
    }

    fn roll(&mut self, needed: usize) -> io::Result<()> {
        self.sync()?;
        let number = self.active()?.number + 1;
        let started = self.start_segment(number, needed);
        if started.is_err()
            && self
                .segments
                .back()
                .is_none_or(|segment| segment.number == number)
        {
            // Half started: which of both is the active one is not known.
            return self.breaking(started);
        }
        started
    }

    fn start_segment(&mut self, number: u64, needed: usize) -> io::Result<()> {
        let previous = self.segments.back().map(|segment| End {
            segment: segment.number,
            length: self.end,
            crc: self.chain,
        });
        self.make_spare(needed)?;
        let Some((file, size)) = self.spare.take() else {
            return Err(io::Error::other("no spare segment"));
        };
        let renamed = self
            .disk
            .rename(SPARE, &name(number))
            .and_then(|()| self.disk.sync_dir());
        self.segments.push_back(Segment { number, file, size });
        self.end = 0;
        self.synced = 0;
        if previous.is_none() {
            self.chain = 0;
        }
        renamed?;
        let state = self.encode_state(previous)?;
        self.push(Kind::State, &state);
        Ok(())
    }

    fn encode_state(&self, previous: Option<End>) -> io::Result<Vec<u8>> {
        serde_json::to_vec(&State {
            previous,
            ..self.state.clone()
        })
        .map_err(io::Error::other)
    }

    fn active(&self) -> io::Result<&Segment> {
        self.segments
            .back()
            .ok_or_else(|| io::Error::other("the log has no segment"))
    }

    fn usable(&self) -> io::Result<()> {
        match &self.broken {
            None => Ok(()),
            Some(reason) => Err(io::Error::other(format!("the log failed before: {reason}"))),
        }
    }

    fn breaking(&mut self, result: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &result {
            self.broken = Some(error.to_string());
        }
        result
    }
}
