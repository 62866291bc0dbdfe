//! The uploaded file, of which no byte is read more often than it is there.
//!
//! What a reader takes is counted against the file's length. So no format's tables, however cleverly they share entries, make more work than
//! the file has bytes; and who reads a table in pieces needs no more memory for a large one.

use std::{fs::File, os::unix::fs::FileExt};

use super::{ConvertError, Limits, copy::Output};

/// Bytes of a table in memory.
const PIECE: u64 = 64 << 10;
/// Bytes per system call.
const CHUNK: u64 = 1 << 20;

/// A file, and what may still be read of it.
#[derive(Debug)]
pub(super) struct Source<'a> {
    file: &'a File,
    len: u64,
    budget: u64,
    /// What is being copied; kept from copy to copy.
    chunk: Vec<u8>,
}

impl<'a> Source<'a> {
    pub(super) fn new(file: &'a File, len: u64) -> Self {
        Self {
            file,
            len,
            budget: len,
            chunk: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// So many bytes from here on lie in the file.
    pub(super) fn holds(&self, offset: u64, bytes: u64) -> bool {
        offset.checked_add(bytes).is_some_and(|end| end <= self.len)
    }

    /// Fills `buffer`, or says that the file is damaged in this way.
    pub(super) fn read(
        &mut self,
        buffer: &mut [u8],
        offset: u64,
        outside: &'static str,
    ) -> Result<(), ConvertError> {
        let bytes = buffer.len() as u64;
        if !self.holds(offset, bytes) {
            return Err(ConvertError::Damaged(outside));
        }
        self.spend(bytes)?;
        self.read_unspent(buffer, offset)
    }

    /// Fills `buffer` for somebody who has checked the place, and counts by other rules.
    pub(super) fn read_unspent(&self, buffer: &mut [u8], offset: u64) -> Result<(), ConvertError> {
        Ok(self.file.read_exact_at(buffer, offset)?)
    }

    pub(super) fn spend(&mut self, bytes: u64) -> Result<(), ConvertError> {
        self.budget = self.budget.checked_sub(bytes).ok_or(ConvertError::Damaged(
            "it refers to the same bytes again and again",
        ))?;
        Ok(())
    }

    /// Copies `bytes` bytes to `to`, piece by piece. `change` may change a piece that begins so many bytes after `from`.
    pub(super) fn copy(
        &mut self,
        (from, bytes): (u64, u64),
        output: &mut Output,
        to: u64,
        limits: &Limits,
        outside: &'static str,
        mut change: impl FnMut(u64, &mut [u8]),
    ) -> Result<(), ConvertError> {
        if !self.holds(from, bytes) {
            return Err(ConvertError::Damaged(outside));
        }
        let mut chunk = std::mem::take(&mut self.chunk);
        chunk.resize(CHUNK as usize, 0);
        let mut done = 0;
        while done < bytes {
            limits.check_time()?;
            let n = (bytes - done).min(CHUNK) as usize;
            self.read(&mut chunk[..n], from + done, outside)?;
            change(done, &mut chunk[..n]);
            output.write(&chunk[..n], to + done)?;
            done += n as u64;
        }
        self.chunk = chunk;
        Ok(())
    }
}

/// A table of entries of `N` bytes, read in pieces. Indices rise from call to call, or pieces are read, and counted, again.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    start: u64,
    entries: u64,
    /// The first entry of the piece in memory.
    first: u64,
    piece: Vec<u8>,
}

impl<const N: usize> Table<N> {
    /// The table must lie in the file.
    pub(super) fn new(source: &Source<'_>, start: u64, entries: u64) -> Result<Self, ConvertError> {
        let bytes = entries.checked_mul(N as u64);
        if !bytes.is_some_and(|bytes| source.holds(start, bytes)) {
            return Err(ConvertError::Damaged("a table lies outside the file"));
        }
        Ok(Self {
            start,
            entries,
            first: 0,
            piece: Vec::new(),
        })
    }

    pub(super) fn entry(&mut self, source: &mut Source<'_>, index: u64) -> Result<[u8; N], ConvertError> {
        const OUTSIDE: &str = "a table is too short";
        if index >= self.entries {
            return Err(ConvertError::Damaged(OUTSIDE));
        }
        let there = (self.piece.len() / N) as u64;
        if index < self.first || index - self.first >= there {
            let n = (PIECE / N as u64).min(self.entries - index);
            self.piece.resize(n as usize * N, 0);
            source.read(&mut self.piece, self.start + index * N as u64, OUTSIDE)?;
            self.first = index;
        }
        let at = (index - self.first) as usize * N;
        Ok(std::array::from_fn(|i| self.piece[at + i]))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn tables_are_read_in_pieces_and_each_byte_once() {
        let mut file = tempfile::tempfile().unwrap();
        let words: Vec<u8> = (0..40_000u32).flat_map(u32::to_be_bytes).collect();
        file.write_all(&words).unwrap();
        let mut source = Source::new(&file, words.len() as u64);
        let mut table = Table::<4>::new(&source, 4, 39_999).unwrap();
        for index in 0..39_999 {
            let entry = u32::from_be_bytes(table.entry(&mut source, index).unwrap());
            assert_eq!(u64::from(entry), index + 1);
        }
        assert_eq!(source.budget, 4);
        assert!(table.piece.len() as u64 <= PIECE);
        assert!(matches!(
            table.entry(&mut source, 39_999),
            Err(ConvertError::Damaged(_))
        ));
        assert!(matches!(
            table.entry(&mut source, 0),
            Err(ConvertError::Damaged(
                "it refers to the same bytes again and again"
            ))
        ));
        for (start, entries) in [(8, 39_999), (u64::MAX, 1), (0, u64::MAX)] {
            assert!(
                Table::<4>::new(&source, start, entries).is_err(),
                "{start} {entries}"
            );
        }
    }
}
