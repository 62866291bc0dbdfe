//! The room object.
