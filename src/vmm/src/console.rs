//! The serial console's log: two files that take turns, so that it never grows beyond twice [`TURN`], and a rate
//! beyond which a guest's own serial port makes it wait.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes after which the other file takes over.
pub const TURN: u64 = 256 << 10;
/// Bytes per second that a guest can print for long; a real serial line carries 11,520.
pub const RATE: u64 = 512 << 10;
/// Bytes that it can print at once.
pub const BURST: u64 = 256 << 10;

/// The names of the two files in a machine's folder.
pub fn paths(folder: &Path) -> [PathBuf; 2] {
    [folder.join("console.0.log"), folder.join("console.1.log")]
}

/// Writes the log. It holds open files, and needs no right to open any.
#[derive(Debug)]
pub struct Log {
    files: [File; 2],
    current: usize,
    length: u64,
}

impl Log {
    /// Go on where an earlier writer stopped. At any time one file is being filled; the other is full, or empty.
    pub fn new(files: [File; 2]) -> io::Result<Self> {
        let lengths = [files[0].metadata()?.len(), files[1].metadata()?.len()];
        let current = current(lengths);
        let mut log = Log {
            files,
            current,
            length: lengths[current],
        };
        log.files[current].seek(SeekFrom::End(0))?;
        Ok(log)
    }

    /// Add bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = usize::try_from(TURN.saturating_sub(self.length)).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.files[self.current].write_all(now)?;
            self.length += now.len() as u64;
            bytes = later;
            if self.length >= TURN {
                self.current = 1 - self.current;
                self.length = 0;
                self.files[self.current].set_len(0)?;
                self.files[self.current].rewind()?;
            }
        }
        Ok(())
    }
}

/// The file that is being filled: the one that is not full.
fn current(lengths: [u64; 2]) -> usize {
    usize::from(lengths[0] >= TURN && lengths[1] < TURN)
}

/// The end of a log, at most this many bytes. No log: nothing.
pub fn tail(folder: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut contents = [Vec::new(), Vec::new()];
    for (path, content) in paths(folder).iter().zip(&mut contents) {
        match File::open(path) {
            Ok(file) => drop(file.take(TURN).read_to_end(content)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let newer = current([contents[0].len() as u64, contents[1].len() as u64]);
    let mut log = std::mem::take(&mut contents[1 - newer]);
    log.append(&mut contents[newer]);
    log.drain(..log.len().saturating_sub(max_bytes));
    Ok(log)
}

/// A token bucket over bytes. The clock is the caller's.
#[derive(Debug)]
pub struct Bucket {
    tokens: u64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(now: Instant) -> Self {
        Bucket {
            tokens: BURST,
            filled: now,
        }
    }

    /// How many bytes may be read now, and when to ask again if none.
    pub fn allowance(&mut self, now: Instant) -> Result<u64, Duration> {
        let gained = now.saturating_duration_since(self.filled).as_millis() * u128::from(RATE) / 1000;
        if gained > 0 {
            self.tokens = BURST.min(self.tokens.saturating_add(u64::try_from(gained).unwrap_or(BURST)));
            self.filled = now;
        }
        // Not byte by byte: a guest that prints all the time shall not make its supervisor spin.
        if self.tokens >= BURST / 16 {
            Ok(self.tokens)
        } else {
            Err(Duration::from_millis(BURST / 16 * 1000 / RATE))
        }
    }

    /// These bytes were read.
    pub fn take(&mut self, bytes: u64) {
        self.tokens = self.tokens.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn open(folder: &Path) -> Log {
        Log::new(paths(folder).map(|path| {
            File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(path)
                .unwrap()
        }))
        .unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// However much is written, in whatever pieces and by however many successive writers: the log is bounded,
        /// and its tail is the end of what was written.
        #[test]
        fn the_log_is_bounded_and_ends_with_what_was_written_last(
            pieces in prop::collection::vec((0usize..200_000, any::<bool>()), 1..12),
            wanted in 0usize..300_000,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut log = open(folder.path());
            let mut all = Vec::new();
            for (length, reopen) in pieces {
                let piece: Vec<u8> = (0..length).map(|i| ((all.len() + i) % 251) as u8).collect();
                log.write(&piece).unwrap();
                all.extend(piece);
                if reopen {
                    log = open(folder.path());
                }
                let size: u64 = paths(folder.path()).iter().map(|p| p.metadata().unwrap().len()).sum();
                prop_assert!(size <= 2 * TURN);
                prop_assert!(size >= TURN.min(all.len() as u64));
            }
            let tail = tail(folder.path(), wanted).unwrap();
            prop_assert!(tail.len() <= wanted);
            prop_assert!(tail.len() >= wanted.min(all.len()).min(TURN as usize));
            prop_assert_eq!(&tail[..], &all[all.len() - tail.len()..]);
        }

        /// Over any stretch of time no more than the rate and one burst pass.
        #[test]
        fn no_more_than_the_rate_passes(steps in prop::collection::vec(0u64..500, 1..100)) {
            let start = Instant::now();
            let mut now = start;
            let mut bucket = Bucket::new(now);
            let mut passed = 0;
            for step in steps {
                now += Duration::from_millis(step);
                if let Ok(bytes) = bucket.allowance(now) {
                    passed += bytes;
                    bucket.take(bytes);
                }
            }
            let elapsed = now.duration_since(start).as_millis() as u64;
            prop_assert!(passed <= BURST + elapsed * RATE / 1000);
        }
    }

    #[test]
    fn a_machine_that_never_ran_has_an_empty_log() {
        let folder = tempfile::tempdir().unwrap();
        assert!(tail(folder.path(), 100).unwrap().is_empty());
    }
}
