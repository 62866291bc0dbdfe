//! The room process.
