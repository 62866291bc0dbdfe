//! Volumes and formats.
//!
//! - [`pool`]: where volumes and images have their bytes; used by the daemon.
//! - [`config_drive`]: the small volume that tells a guest who it is.

pub mod config_drive;
pub mod pool;
