//! All limits of a disk together: pure arithmetic, with the clock handed in.

use model::disk::{DiskLimits, Rate};

use super::meter::Meter;

/// What a request is, as limits see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    /// It reads; else it writes.
    pub(crate) reads: bool,
    /// Bytes that are moved.
    pub(crate) bytes: u64,
}

/// The limits, and how far each is used.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bucket {
    /// In the order of [`rates`], with those of bursts behind.
    meters: [[Option<Meter>; 2]; 6],
    /// There are some.
    limited: bool,
}

/// The limits in one order: total, reads, writes; first requests, then bytes.
fn rates(limits: &DiskLimits) -> [Option<Rate>; 6] {
    [
        limits.total_iops,
        limits.read_iops,
        limits.write_iops,
        limits.total_bytes,
        limits.read_bytes,
        limits.write_bytes,
    ]
}

/// What a request counts for the limit at this place.
fn units(place: usize, cost: Cost) -> u64 {
    let counts = match place % 3 {
        0 => true,
        1 => cost.reads,
        _ => !cost.reads,
    };
    match (counts, place < 3) {
        (false, _) => 0,
        (true, true) => 1,
        (true, false) => cost.bytes,
    }
}

impl Bucket {
    /// Nothing is limited.
    pub(crate) fn is_unlimited(&self) -> bool {
        !self.limited
    }

    /// Other limits from now on.
    pub(crate) fn change(&mut self, limits: &DiskLimits, now: u64) {
        let mut meters = rates(limits).map(Meter::of);
        for (new, old) in meters.iter_mut().flatten().zip(self.meters.iter().flatten()) {
            if let (Some(new), Some(old)) = (new, old) {
                new.succeed(old, now);
            }
        }
        self.limited = meters.iter().flatten().any(Option::is_some);
        self.meters = meters;
    }

    /// When such a request may pass.
    pub(crate) fn due(&self, cost: Cost) -> u64 {
        let counting = (0..)
            .zip(&self.meters)
            .filter(|(place, _)| units(*place, cost) > 0);
        let meters = counting.flat_map(|(_, meters)| meters.iter().flatten());
        meters.map(Meter::due).max().unwrap_or(0)
    }

    /// Such a request passes.
    pub(crate) fn pay(&mut self, cost: Cost, now: u64) {
        for (place, meters) in self.meters.iter_mut().enumerate() {
            let units = units(place, cost);
            if units > 0 {
                meters
                    .iter_mut()
                    .flatten()
                    .for_each(|meter| meter.pay(units, now));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use model::disk::Burst;
    use proptest::prelude::*;

    use super::super::meter::SECOND;
    use super::*;

    const READ: Cost = Cost {
        reads: true,
        bytes: 4096,
    };
    const WRITE: Cost = Cost {
        reads: false,
        bytes: 4096,
    };

    fn bucket(limits: DiskLimits) -> Bucket {
        let mut bucket = Bucket::default();
        bucket.change(&limits, 0);
        bucket
    }

    fn iops(per_second: u64) -> DiskLimits {
        DiskLimits {
            total_iops: Some(Rate::steady(per_second)),
            ..DiskLimits::default()
        }
    }

    /// What passes until then, if there is always more: when, and how many bytes. The wake-ups are as late as told.
    fn greedy(
        bucket: &mut Bucket,
        from: u64,
        until: u64,
        mut cost: impl FnMut() -> Cost,
        mut late: impl FnMut() -> u64,
    ) -> Vec<(u64, u64)> {
        let mut passed = Vec::new();
        let mut now = from;
        let mut next = cost();
        loop {
            let due = bucket.due(next);
            if due > now {
                now = due + late();
            }
            if now >= until {
                return passed;
            }
            bucket.pay(next, now);
            passed.push((now, next.bytes));
            next = cost();
        }
    }

    /// The most and the least of these units in any window of ten seconds that lies within the time.
    fn windows(passed: &[(u64, u64)], end: u64, units: impl Fn(u64) -> u64) -> (u64, u64) {
        let window = 10 * SECOND;
        let (mut most, mut least) = (0, u64::MAX);
        let (mut last, mut sum) = (0, 0);
        for first in 0..passed.len() {
            let from = passed[first].0;
            while last < passed.len() && passed[last].0 < from + window {
                sum += units(passed[last].1);
                last += 1;
            }
            most = most.max(sum);
            sum -= units(passed[first].1);
            // The window that begins right after this one.
            if from + window < end {
                let mut after = sum;
                let mut at = last;
                while at < passed.len() && passed[at].0 <= from + window {
                    after += units(passed[at].1);
                    at += 1;
                }
                least = least.min(after);
            }
        }
        (most, least)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn ten_seconds_have_what_they_should_within_five_percent(
            rate in 50u64..2_000,
            lateness in prop::collection::vec(0..150_000_000u64, 1..20),
            start in 0..1_000 * SECOND,
        ) {
            let mut bucket = bucket(iops(rate));
            let mut late = lateness.iter().cycle();
            let end = start + 25 * SECOND;
            let passed = greedy(&mut bucket, start, end, || READ, || *late.next().unwrap());
            let (most, least) = windows(&passed, end, |_| 1);
            prop_assert!(most as f64 <= rate as f64 * 10.0 * 1.05, "{most} of {}", rate * 10);
            prop_assert!(least as f64 >= rate as f64 * 10.0 * 0.95, "{least} of {}", rate * 10);
        }

        #[test]
        fn so_do_bytes_of_requests_of_any_size(
            rate in 1_000_000u64..30_000_000,
            sizes in prop::collection::vec(1..256u64, 1..20),
            lateness in prop::collection::vec(0..50_000_000u64, 1..20),
        ) {
            let mut bucket = bucket(DiskLimits {
                total_bytes: Some(Rate::steady(rate)),
                ..DiskLimits::default()
            });
            let (mut sizes, mut late) = (sizes.iter().cycle(), lateness.iter().cycle());
            let cost = || Cost { reads: false, bytes: sizes.next().unwrap() * 512 };
            let end = 25 * SECOND;
            let passed = greedy(&mut bucket, 0, end, cost, || *late.next().unwrap());
            let (most, least) = windows(&passed, end, |bytes| bytes);
            prop_assert!(most as f64 <= rate as f64 * 10.0 * 1.05, "{most} of {}", rate * 10);
            prop_assert!(least as f64 >= rate as f64 * 10.0 * 0.95, "{least} of {}", rate * 10);
        }

        /// Whatever is asked for, nothing overflows, and everything passes in the time that it takes at its rate.
        #[test]
        fn everything_passes_in_time(
            rates in prop::array::uniform6(prop::option::of((any::<u64>(), prop::option::of((any::<u64>(), any::<u32>()))))),
            costs in prop::collection::vec((any::<bool>(), any::<u64>()), 1..50),
            mut now in any::<u64>(),
        ) {
            let [total_iops, read_iops, write_iops, total_bytes, read_bytes, write_bytes] = rates.map(|rate| {
                rate.map(|(per_second, burst)| Rate {
                    per_second,
                    burst: burst.map(|(per_second, seconds)| Burst { per_second, seconds }),
                })
            });
            let limits = DiskLimits { total_iops, read_iops, write_iops, total_bytes, read_bytes, write_bytes };
            let mut bucket = bucket(limits);
            for (reads, bytes) in costs {
                let cost = Cost { reads, bytes };
                now = now.max(bucket.due(cost));
                bucket.pay(cost, now);
                bucket.change(&limits, now);
            }
        }

        /// After a change it is the new rate that counts, whatever waited before.
        #[test]
        fn a_change_counts_at_once(first in 50u64..2_000, second in 50u64..2_000, at in 0..10 * SECOND) {
            let mut bucket = bucket(iops(first));
            greedy(&mut bucket, 0, at, || READ, || 0);
            bucket.change(&iops(second), at);
            let end = at + 10 * SECOND;
            let passed = greedy(&mut bucket, at, end, || READ, || 0).len() as f64;
            let right = second as f64 * 10.0;
            prop_assert!((0.95 * right..=1.05 * right).contains(&passed), "{passed} of {right}");
        }
    }

    #[test]
    fn a_request_larger_than_all_slack_passes_and_is_paid_for() {
        let mut bucket = bucket(DiskLimits {
            total_bytes: Some(Rate::steady(1 << 20)),
            ..DiskLimits::default()
        });
        let large = Cost {
            reads: true,
            bytes: 32 << 20,
        };
        assert_eq!(bucket.due(large), 0);
        bucket.pay(large, 0);
        let due = bucket.due(READ);
        assert!((31 * SECOND..=32 * SECOND).contains(&due), "{due}");
        // A higher rate does not wait for what the lower one would have taken.
        let limits = DiskLimits {
            total_bytes: Some(Rate::steady(32 << 20)),
            ..DiskLimits::default()
        };
        bucket.change(&limits, 0);
        assert!(bucket.due(READ) <= SECOND);
        // A lower one does not wait longer than before.
        let before = bucket.due(READ);
        bucket.change(
            &DiskLimits {
                total_bytes: Some(Rate::steady(512)),
                ..DiskLimits::default()
            },
            0,
        );
        assert_eq!(bucket.due(READ), before);
    }

    #[test]
    fn reads_and_writes_have_limits_of_their_own_and_share_the_total_ones() {
        let mut bucket = bucket(DiskLimits {
            total_iops: Some(Rate::steady(1000)),
            write_iops: Some(Rate::steady(100)),
            ..DiskLimits::default()
        });
        let writes = greedy(&mut bucket, 0, 10 * SECOND, || WRITE, || 0).len();
        assert!((1000..=1030).contains(&writes), "{writes}");
        assert!(bucket.due(WRITE) >= 10 * SECOND && bucket.due(READ) < 10 * SECOND);
        let reads = greedy(&mut bucket, 10 * SECOND, 20 * SECOND, || READ, || 0).len();
        assert!((10_000..=10_300).contains(&reads), "{reads}");
        // What moves no bytes costs none.
        let discard = Cost {
            reads: false,
            bytes: 0,
        };
        bucket.change(
            &DiskLimits {
                write_bytes: Some(Rate::steady(1)),
                ..DiskLimits::default()
            },
            0,
        );
        bucket.pay(WRITE, 0);
        assert!(bucket.due(WRITE) > 0);
        assert_eq!(bucket.due(discard), 0);
    }

    #[test]
    fn a_burst_has_its_rate_for_its_seconds_and_comes_again_after_a_rest() {
        let limits = DiskLimits {
            total_iops: Some(Rate {
                per_second: 100,
                burst: Some(Burst {
                    per_second: 1000,
                    seconds: 5,
                }),
            }),
            ..DiskLimits::default()
        };
        let mut bucket = bucket(limits);
        let mut passed =
            |from, until| greedy(&mut bucket, from * SECOND, until * SECOND, || READ, || 0).len();
        let first = passed(0, 5);
        assert!((5000..=5250).contains(&first), "{first}");
        passed(5, 10);
        let steady = passed(10, 20);
        assert!((950..=1050).contains(&steady), "{steady}");
        // 4500 requests more than the average need 45 seconds to come back.
        let again = passed(20 + 45, 20 + 50);
        assert!((4900..=5250).contains(&again), "{again}");
    }

    #[test]
    fn without_limits_nothing_waits() {
        let mut bucket = bucket(iops(0));
        assert!(bucket.is_unlimited());
        for _ in 0..1000 {
            assert_eq!(bucket.due(READ), 0);
            bucket.pay(READ, 0);
        }
        bucket.change(&iops(1), 0);
        assert!(!bucket.is_unlimited());
    }
}
