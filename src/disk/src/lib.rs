//! The room disk.
