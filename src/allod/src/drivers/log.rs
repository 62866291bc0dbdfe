//! What children say, bounded: a guest can make its child say something, again and again, while no daemon is there to trim
//! the log.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing_subscriber::fmt::MakeWriter;

/// Bytes that a child can write at once, and per second for long.
const BURST: u64 = 256 << 10;
const RATE: u64 = 1 << 10;

/// Standard error, at a bounded rate. What is too much is left out, and counted.
pub struct Bounded(Mutex<Bucket>);

struct Bucket {
    left: u64,
    filled: Instant,
    omitted: u64,
}

impl Bucket {
    /// Whether so many bytes may be written now; and how many lines were left out before them.
    fn take(&mut self, bytes: usize, now: Instant) -> Option<u64> {
        let seconds = now.saturating_duration_since(self.filled).as_secs();
        if seconds > 0 {
            self.left = BURST.min(self.left.saturating_add(seconds.saturating_mul(RATE)));
            self.filled = now;
        }
        match self.left.checked_sub(bytes as u64) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.omitted))
            }
            None => {
                self.omitted += 1;
                None
            }
        }
    }
}

impl Default for Bounded {
    fn default() -> Self {
        Bounded(Mutex::new(Bucket {
            left: BURST,
            filled: Instant::now(),
            omitted: 0,
        }))
    }
}

/// One line.
pub struct Line<'a>(&'a Bounded);

impl<'a> MakeWriter<'a> for Bounded {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut bucket = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(omitted) = bucket.take(line.len(), Instant::now()) {
            let mut out = io::stderr().lock();
            if omitted > 0 {
                writeln!(out, "({omitted} lines were too many and are left out)")?;
            }
            out.write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted_and_a_trickle_passes() {
        let start = Instant::now();
        let mut bucket = Bucket {
            left: BURST,
            filled: start,
            omitted: 0,
        };
        let line = 100;
        let passed = (0..10_000).filter(|_| bucket.take(line, start).is_some()).count();
        assert_eq!(passed as u64, BURST / line as u64);
        assert_eq!(bucket.take(line, start), None);
        let later = start + Duration::from_secs(1);
        assert_eq!(bucket.take(line, later), Some(10_001 - passed as u64));
        assert_eq!(bucket.take(line, later), Some(0));
        let mut written = 0;
        for second in 2..1000 {
            let now = start + Duration::from_secs(second);
            written += (0..100).filter(|_| bucket.take(line, now).is_some()).count() * line;
        }
        assert!(written as u64 <= 1000 * RATE, "{written}");
        let much_later = start + Duration::from_secs(1 << 30);
        assert!(bucket.take(BURST as usize, much_later).is_some());
    }
}
