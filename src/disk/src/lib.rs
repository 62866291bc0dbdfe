//! Volumes and formats.
//!
//! - [`pool`]: where volumes and images have their bytes; used by the daemon.
//! - [`backup`]: whole copies of volumes in a folder of their own; used by the daemon.
//! - [`run`]: the body of `allod disk`, which serves one volume to one guest.
//! - [`open`]: a volume as the backend of a device in a guest's own monitor.
//! - [`convert`]: the body of the child that turns uploads into images.
//! - [`crypt`]: what volumes are encrypted with.
//! - [`config_drive`]: the small volume that tells a guest who it is.

pub mod backup;
pub mod config_drive;
pub mod convert;
pub mod crypt;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod io;
mod limits;
mod nbd;
pub mod pool;
mod serve;
mod sparse;

pub use io::{Engine, EngineKind};
pub use limits::Limited;
pub use serve::{ServeError, open, run, run_with};
