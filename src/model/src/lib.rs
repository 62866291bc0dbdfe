//! Plain data that several rooms share: ids, units, and the specifications that the daemon hands to its children.
//!
//! Nothing here does I/O, reads a clock or knows a database: every type can be built by hand in a test,
//! compared, and sent over a control socket as JSON.

pub mod control;
pub mod disk;
pub mod machine;
pub mod net;
pub mod units;
