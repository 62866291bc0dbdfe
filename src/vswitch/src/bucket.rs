//! Token buckets: limits on how often a guest makes the switch work for it.

use crate::Now;

/// So many a second, and so many at once.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    rate: u32,
    burst: u32,
    tokens: f64,
    last: Now,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: u32, burst: u32) -> Self {
        Self {
            rate,
            burst,
            tokens: f64::from(burst),
            last: Now::ZERO,
        }
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, now: Now) -> bool {
        let passed = now.saturating_sub(self.last).as_secs_f64();
        self.last = self.last.max(now);
        self.tokens = (self.tokens + passed * f64::from(self.rate)).min(f64::from(self.burst));
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let mut bucket = Bucket::new(10, 5);
        let passed = (0..20).filter(|_| bucket.take(Duration::from_secs(100))).count();
        assert_eq!(passed, 5);
        let passed = (0..20)
            .filter(|_| bucket.take(Duration::from_millis(100_300)))
            .count();
        assert_eq!(passed, 3);
    }
}
