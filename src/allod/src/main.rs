//! A whole cloud in one binary.
fn main() {}
