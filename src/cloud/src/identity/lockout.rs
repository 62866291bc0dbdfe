//! Accounts that are locked for a while after too many wrong passwords.
//!
//! Kept in memory: a failed login must not cost a durable write. There is an entry for accounts that exist alone, so
//! there are no more of them than accounts.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Identity, micros, now};
use crate::config::Accounts;

/// Failures in a row, and until when the account is locked.
#[derive(Debug, Clone, Copy, Default)]
struct Failures {
    count: u32,
    locked_until: i64,
}

/// Failed logins by user.
#[derive(Debug, Default)]
pub(super) struct Lockouts(Mutex<HashMap<String, Failures>>);

impl Lockouts {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Failures>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_locked(&self, user: &str, now: i64) -> bool {
        self.lock()
            .get(user)
            .is_some_and(|failures| now < failures.locked_until)
    }

    fn fail(&self, user: &str, rules: &Accounts, now: i64) {
        if rules.lockout_attempts == 0 {
            return;
        }
        let mut all = self.lock();
        let failures = all.entry(user.to_owned()).or_default();
        if now < failures.locked_until {
            return;
        }
        failures.count += 1;
        if failures.count >= rules.lockout_attempts {
            *failures = Failures {
                count: 0,
                locked_until: now.saturating_add(micros(rules.lockout)),
            };
        }
    }
}

impl Identity {
    /// The account is locked now: no password opens it.
    pub(super) fn is_locked(&self, user: &str) -> bool {
        self.lockouts.is_locked(user, now())
    }

    /// Someone gave a wrong password for this account, if there is such an account.
    pub(super) fn count_failure(&self, user: &str, rules: &Accounts) {
        if self.directory().users.contains_key(user) {
            self.lockouts.fail(user, rules, now());
        }
    }

    /// The right password was given.
    pub(super) fn forget_failures(&self, user: &str) {
        self.lockouts.lock().remove(user);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_account_is_locked_after_failures_in_a_row_and_opens_by_itself() {
        let rules = Accounts {
            lockout_attempts: 2,
            lockout: Duration::from_secs(5),
            ..Accounts::default()
        };
        let lockouts = Lockouts::default();
        lockouts.fail("a", &rules, 0);
        assert!(!lockouts.is_locked("a", 0));
        lockouts.fail("a", &rules, 1_000_000);
        assert!(lockouts.is_locked("a", 1_000_000));
        // Guessing on does not lock it for longer.
        lockouts.fail("a", &rules, 5_000_000);
        assert!(lockouts.is_locked("a", 5_999_999));
        assert!(!lockouts.is_locked("a", 6_000_000));
        assert!(!lockouts.is_locked("b", 1_000_000));
        lockouts.fail("a", &Accounts::default(), 7_000_000);
        assert!(!lockouts.is_locked("a", 7_000_000));
    }
}
