//! The embedded monitor: a machine on `/dev/kvm`, in this process.
//!
//! - [`probe`]: what this host's KVM offers, tried rather than believed.
//! - `cpu`: what a vCPU looks like when it starts.

mod cpu;
pub mod probe;

pub use probe::{Offer, ProbeError, probe};
