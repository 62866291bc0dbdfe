//! The room cluster.
