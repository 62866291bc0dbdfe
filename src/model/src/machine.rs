//! The description of a virtual machine that an engine starts.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk::DiskLimits;
use crate::net::MacAddr;

/// Everything that an engine needs in order to start a guest. Compiled by `cloud`; it names volumes and ports, and
/// the daemon adds the sockets that lead to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The server's id; also the SMBIOS UUID.
    pub id: Uuid,
    /// The server's name, for people who read process lists and logs; engines do not interpret it.
    pub name: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// What it starts with.
    #[serde(default)]
    pub boot: Boot,
    /// Disks in boot order: the first one is booted.
    pub disks: Vec<MachineDisk>,
    /// Network interfaces in the guest's order.
    pub nics: Vec<MachineNic>,
    /// Files of the config drive (path → content), in a small FAT volume labelled `config-2`; empty: none.
    pub config_drive: Vec<ConfigDriveFile>,
}

/// What a machine starts with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boot {
    /// A PC's firmware, which reads the first disk's boot sector.
    #[default]
    Bios,
    /// UEFI firmware.
    Uefi,
    /// A kernel, without firmware (Glance's image properties `kernel_id`, `ramdisk_id` and `os_command_line`).
    Kernel {
        /// The image of the kernel.
        kernel: Uuid,
        /// The image of the initial RAM disk.
        ramdisk: Option<Uuid>,
        /// The kernel's command line.
        command_line: String,
    },
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDisk {
    /// The volume.
    pub volume: Uuid,
    /// Size in bytes.
    pub size: u64,
    /// The guest cannot write.
    pub read_only: bool,
    /// How much it may be used.
    #[serde(default)]
    pub limits: DiskLimits,
}

/// A network interface of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineNic {
    /// The port in the switch's tables.
    pub port: Uuid,
    /// The port's address.
    pub mac: MacAddr,
    /// The network's MTU, told to the guest (virtio 1.2 §5.1.3, `VIRTIO_NET_F_MTU`).
    pub mtu: u16,
}

/// A file on the config drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigDriveFile {
    /// Path from the drive's root, such as `openstack/latest/meta_data.json`.
    pub path: String,
    /// The file's bytes.
    pub content: Vec<u8>,
}

/// What an engine reports of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowerState {
    /// Its vCPUs run.
    Running,
    /// Its process is there, its vCPUs stand still.
    Paused,
    /// It shut itself down, or was stopped.
    Shutdown,
    /// Its process ended without being asked to.
    Crashed,
}

/// How to stop or restart a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopMode {
    /// Press the power button, and pull the plug after this long.
    Graceful(Duration),
    /// Pull the plug.
    Hard,
}

/// A guest's power state changed by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineEvent {
    /// The server.
    pub id: Uuid,
    /// Its state now.
    pub state: PowerState,
}
