//! What a PC has besides PCI: serial line, clock, reset, power.

pub(super) mod cmos;
pub(super) mod output;
pub(super) mod power;
pub(super) mod reset;
pub(super) mod serial;
