//! What end-to-end tests, benches and developer commands share: a cloud to start, clients to drive it, and the small
//! tools of both. It knows the daemon from outside only: its command line, its files, its APIs.

pub mod apt;
pub mod cloud;
pub mod host;
pub mod http;
pub mod kvm;
pub mod netns;
pub mod paths;
pub mod progress;
pub mod run;
pub mod ssh;
pub mod tenant;
pub mod venv;
