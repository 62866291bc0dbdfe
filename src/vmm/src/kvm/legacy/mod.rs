//! What a PC has besides PCI: serial line, clock, reset, power, and what tells firmware of them.

pub(super) mod cmos;
pub(super) mod fw_cfg;
pub(super) mod output;
pub(super) mod power;
pub(super) mod reset;
pub(super) mod serial;
