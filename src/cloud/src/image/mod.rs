//! image.
use crate::policy::Rule;

/// Who may do what.
pub const POLICY: &[Rule] = &[];
/// Tables.
pub const SCHEMA: &str = "";
