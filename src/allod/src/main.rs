//! A whole cloud in one binary: the command line, the configuration, and the wiring of all rooms.

mod config;
mod state;
mod tls;

fn main() {}
