//! Virtual CPUs: the state in which they start.

pub(super) mod entry;
