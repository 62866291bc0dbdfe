//! Processes: how the daemon starts its children, locks them in, finds them again, and talks to them.

pub mod child;
pub mod control;
pub mod jail;
