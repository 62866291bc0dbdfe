//! What every background loop is doing, for `allod status` and the console.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// What a worker is doing now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Activity {
    /// Nothing to do: it sleeps until something changes.
    Idle,
    /// At work on this.
    Busy(String),
    /// It has work, but waits for its turn.
    Throttled(String),
    /// Its last attempt failed; it tries again.
    Failed {
        /// What went wrong.
        error: String,
        /// When it tries next.
        next_try: SystemTime,
    },
}

/// A worker's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerState {
    /// Such as `compute` or `compute/server/<id>`.
    pub name: String,
    /// What it does.
    pub activity: Activity,
    /// Since when it does that. Failing again and again keeps the first failure's time.
    pub since: SystemTime,
}

/// The states of all workers of this process.
#[derive(Debug, Default)]
pub struct Workers(Mutex<BTreeMap<String, WorkerState>>);

impl Workers {
    /// Says what a worker does from now on.
    pub fn set(&self, name: &str, activity: Activity) {
        let now = SystemTime::now();
        let mut states = self.lock();
        match states.get_mut(name) {
            Some(state) => {
                let same = std::mem::discriminant(&state.activity) == std::mem::discriminant(&activity);
                if !same {
                    state.since = now;
                }
                state.activity = activity;
            }
            None => {
                states.insert(
                    name.to_owned(),
                    WorkerState {
                        name: name.to_owned(),
                        activity,
                        since: now,
                    },
                );
            }
        }
    }

    /// The worker has ended.
    pub fn remove(&self, name: &str) {
        self.lock().remove(name);
    }

    /// All states, by name.
    pub fn list(&self) -> Vec<WorkerState> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, WorkerState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_failures_keep_the_time_of_the_first() {
        let workers = Workers::default();
        let failed = |error: &str| Activity::Failed {
            error: error.into(),
            next_try: SystemTime::now(),
        };
        workers.set("a", failed("one"));
        let first = workers.list()[0].since;
        workers.set("a", failed("two"));
        let state = &workers.list()[0];
        assert_eq!(state.since, first);
        assert!(matches!(&state.activity, Activity::Failed { error, .. } if error == "two"));
        workers.remove("a");
        assert!(workers.list().is_empty());
    }
}
