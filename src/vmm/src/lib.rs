//! Virtual machines: one [`Engine`] trait, and the engines behind it.
//!
//! An engine runs machines and knows nothing of volumes or networks: each disk and each network interface is a
//! vhost-user socket that someone else serves.

mod choice;
pub mod console;
mod end;
mod engine;
mod engines;
mod fleet;
pub mod kvm;
pub mod qemu;
pub mod tap;

pub use choice::{Accelerator, Choice, EngineKind, choose, cpuinfo};
pub use end::End;
pub use engine::{Embedded, Engine, EngineError, Plan, PlannedBoot, PlannedDevice, PlannedDisk, PlannedNic};
pub use engines::Engines;
pub use fleet::child_name;
