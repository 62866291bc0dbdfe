//! One limit.

use model::disk::Rate;

/// A second in the unit of time: nanoseconds since some moment.
pub(super) const SECOND: u64 = 1_000_000_000;
/// So much of what was not used is kept: a late timer loses nothing, and ten seconds have at most 2 % more than they should.
pub(super) const SLACK: u64 = SECOND / 5;

/// What passes at a steady rate, by the generic cell rate algorithm (ITU-T I.371, "virtual scheduling"): everything that passes is
/// paid for with time, and whoever has paid for more than `slack` in advance waits. So one number is the whole state, nothing has
/// to be filled up while nothing happens, and what is larger than the slack passes as well, and makes those after it wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meter {
    per_second: u64,
    slack: u64,
    paid_until: u64,
}

impl Meter {
    /// The meters of a rate: for the average, and for the most that a burst may have. None at all limit nothing.
    pub(super) fn of(rate: Option<Rate>) -> [Option<Meter>; 2] {
        let meter = |per_second, slack| Meter {
            per_second,
            slack,
            paid_until: 0,
        };
        let Some(rate) = rate.filter(|rate| rate.per_second > 0) else {
            return [None, None];
        };
        let average = rate.per_second;
        match rate.burst.filter(|burst| burst.per_second > average) {
            None => [Some(meter(average, SLACK)), None],
            Some(burst) => {
                // At the burst's rate this much more passes in its seconds than is paid for.
                let more = u128::from(burst.per_second - average) * u128::from(burst.seconds.max(1));
                let slack = time(more, average).saturating_add(SLACK);
                [Some(meter(average, slack)), Some(meter(burst.per_second, SLACK))]
            }
        }
    }

    /// When the next may pass.
    pub(super) fn due(&self) -> u64 {
        self.paid_until.saturating_sub(self.slack)
    }

    /// So much passes.
    pub(super) fn pay(&mut self, units: u64, now: u64) {
        let cost = time(u128::from(units), self.per_second);
        self.paid_until = self.paid_until.max(now).saturating_add(cost);
    }

    /// This meter counts from now on what another one did. What was used stays used, and nobody waits longer than before.
    pub(super) fn succeed(&mut self, old: &Meter, now: u64) {
        let ahead = old.paid_until.saturating_sub(now);
        let as_much = u128::from(ahead) * u128::from(old.per_second) / u128::from(self.per_second);
        let mut ahead_now = u64::try_from(as_much).unwrap_or(u64::MAX).min(ahead);
        if ahead <= old.slack {
            ahead_now = ahead_now.min(self.slack);
        }
        self.paid_until = now.saturating_add(ahead_now);
    }
}

/// How long so much takes; rounded up, so that rounding gives nothing away.
fn time(units: u128, per_second: u64) -> u64 {
    let time = units
        .saturating_mul(u128::from(SECOND))
        .div_ceil(u128::from(per_second));
    u64::try_from(time).unwrap_or(u64::MAX)
}
