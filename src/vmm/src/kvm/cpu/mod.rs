//! Virtual CPUs: what they look like when they start, their threads, and how they are made to stand still.

pub(super) mod cpuid;
pub(super) mod entry;
pub(super) mod gate;
pub(super) mod model;
pub(super) mod state;
pub(super) mod thread;
