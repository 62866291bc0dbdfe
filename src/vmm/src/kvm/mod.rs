//! The embedded monitor: a machine on `/dev/kvm`, in this process.
//!
//! - [`probe`]: what this host's KVM offers, tried rather than believed.
//! - [`engine`]: machines as the daemon sees them, each in a jailed process.
//! - [`machine`]: a machine's states, and the one control enum that is its whole interface. Start there.
//! - `cpu`: virtual CPUs, their threads, and the gate at which they stand still.
//! - [`memory`], `layout`: the guest's memory and addresses.
//! - [`boot`], [`firmware`]: PVH and bzImage kernels; SeaBIOS and UEFI.
//! - `bus`, [`lifecycle`]: what a device is to the guest, and to the machine.
//! - `pci`, `acpi`: the bus, and the tables that tell of it and of all else.
//! - `virtio`: the virtio transport over PCI, and its devices.
//! - `legacy`: the devices of a PC that are not on PCI.
//!
//! Nothing that a guest does ends this process, makes it wait, or lets it grow: offsets and lengths are checked where they
//! come in, output waits in a bounded buffer, and a vCPU's loop answers one access at a time.

mod acpi;
pub mod boot;
mod bus;
mod cpu;
pub mod engine;
mod event;
pub mod firmware;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod layout;
mod legacy;
pub mod lifecycle;
pub mod machine;
pub mod memory;
mod pci;
pub mod probe;
mod request;
mod virtio;

pub use boot::{Boot, Kernel};
pub use cpu::model::CpuModel;
pub use engine::KvmEngine;
pub use firmware::Firmware;
pub use legacy::output::Sink;
pub use machine::{Control, Ending, Machine, MachineError, Spec, State, Status};
pub use probe::{Offer, ProbeError, probe};
pub use virtio::balloon::BalloonStatus;
pub use virtio::block::{Disk, Storage};
pub use virtio::console::Console;
pub use virtio::net::{Connect, MAX_QUEUE_PAIRS, MIN_MTU, Nic, NicStatus};
pub use virtio::vsock::Vsock;
