//! The room vswitch.
