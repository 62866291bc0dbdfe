//! The hands of the cloud on a node. `allod` implements these traits with the children that it runs; tests implement
//! them in memory. Every call is idempotent: asking twice for the same state is one change and no error.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use model::disk::{BackedUp, Converted, DiskKey, DiskLimits, ImageFormat, PoolUsage};
use model::machine::{Machine, MachineDisk, MachineEvent, MachineNic, PowerState, StopMode};
use model::net::{SwitchStatus, Tables};
use tokio::sync::broadcast;
use uuid::Uuid;

pub use model::disk::VolumeSource;

/// What went wrong, where, and what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DriverError {
    /// The tenant's data is at fault (an image of a wrong format, say): told to the tenant.
    #[error("{0}")]
    BadInput(String),
    /// Space ran out.
    #[error("{0}")]
    Full(String),
    /// The node is at fault: told to the operator, and to the tenant as "failed on the host".
    #[error("{0}")]
    Failed(String),
}

/// Everything that a node can do for its cloud.
#[derive(Clone)]
pub struct Drivers {
    /// Virtual machines.
    pub machines: Arc<dyn Machines>,
    /// Volumes and images.
    pub disks: Arc<dyn Disks>,
    /// The virtual switch.
    pub switch: Arc<dyn Switch>,
    /// Files of the web.
    pub web: Arc<dyn Web>,
}

/// Virtual machines on this node.
#[async_trait]
pub trait Machines: Send + Sync {
    /// Start it: owners of its disks, its ports' sockets, its engine. Running already: nothing happens.
    async fn start(&self, machine: &Machine) -> Result<(), DriverError>;
    /// Stop it and end its processes; its volumes and console log stay. Not running: nothing happens.
    async fn stop(&self, id: Uuid, mode: StopMode) -> Result<(), DriverError>;
    /// Reset it as by the button on a real machine.
    async fn reset(&self, id: Uuid) -> Result<(), DriverError>;
    /// Freeze its vCPUs.
    async fn pause(&self, id: Uuid) -> Result<(), DriverError>;
    /// Let them run again.
    async fn resume(&self, id: Uuid) -> Result<(), DriverError>;
    /// Remove all traces but its volumes (console log included). It must be stopped.
    async fn forget(&self, id: Uuid) -> Result<(), DriverError>;
    /// Give a running machine one more disk. It has it already, or does not run: nothing happens (a machine that does not run gets
    /// its disks when it is started).
    async fn attach_disk(&self, machine: Uuid, disk: &MachineDisk) -> Result<(), DriverError>;
    /// Take a disk from a running machine, and wait until its guest has let go of it and its owner has flushed and
    /// ended. It does not have it, or does not run: nothing happens.
    async fn detach_disk(&self, machine: Uuid, volume: Uuid) -> Result<(), DriverError>;
    /// A volume has grown to this many bytes ([`Disks::grow_volume`]): tell the machine that has it, if one runs.
    async fn resize_disk(&self, volume: Uuid, size: u64) -> Result<(), DriverError>;
    /// How much the disks of a machine may be used, by their volumes, as it was last told; none if it does not run.
    async fn disk_limits(&self, machine: Uuid) -> Result<Vec<(Uuid, DiskLimits)>, DriverError>;
    /// A disk of a running machine may be used this much from now on. It does not have it, or does not run: nothing happens.
    async fn limit_disk(&self, machine: Uuid, volume: Uuid, limits: &DiskLimits) -> Result<(), DriverError>;
    /// Give a running machine one more network interface; as [`Machines::attach_disk`].
    async fn attach_port(&self, machine: Uuid, nic: &MachineNic) -> Result<(), DriverError>;
    /// Take a network interface from a running machine; as [`Machines::detach_disk`].
    async fn detach_port(&self, machine: Uuid, port: Uuid) -> Result<(), DriverError>;
    /// Machines with a process on this node, also those that an earlier daemon started.
    async fn list(&self) -> Result<Vec<(Uuid, PowerState)>, DriverError>;
    /// The end of the serial console's log: at most this many bytes.
    async fn console_log(&self, id: Uuid, max_bytes: usize) -> Result<Vec<u8>, DriverError>;
    /// What guests do by themselves: shut down, crash.
    fn events(&self) -> broadcast::Receiver<MachineEvent>;
    /// What this node has for guests.
    fn capacity(&self) -> Capacity;
}

/// What a node has for guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// Logical processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// `kvm` or `qemu`, as `hypervisor_type` tells it.
    pub engine: String,
}

/// Volumes and images of this node.
#[async_trait]
pub trait Disks: Send + Sync {
    /// Convert an uploaded file to the image of this id, in a jailed child, and remove the file.
    async fn import_image(
        &self,
        image: Uuid,
        uploaded: &Path,
        format: ImageFormat,
    ) -> Result<Converted, DriverError>;
    /// The raw bytes of an image, for its download.
    fn image_path(&self, image: Uuid) -> PathBuf;
    /// Remove an image's bytes.
    async fn delete_image(&self, image: Uuid) -> Result<(), DriverError>;
    /// Make a volume of this many bytes; from a source it is a clone, grown to the size. An empty one, or one of an image, is encrypted
    /// with the key of the lineage, if there is one ([`DiskKeys`]); another volume's or a snapshot's clone with theirs.
    async fn create_volume(
        &self,
        volume: Uuid,
        size: u64,
        source: VolumeSource,
        lineage: Option<Uuid>,
    ) -> Result<(), DriverError>;
    /// Lineages for whose next volume something is kept here: an image.
    async fn list_lineages(&self) -> Result<Vec<Uuid>, DriverError>;
    /// Nothing of this lineage is left: remove what was kept for its next volume.
    async fn delete_lineage(&self, lineage: Uuid) -> Result<(), DriverError>;
    /// Make a volume larger, also while a guest has it; [`Machines::resize_disk`] tells the guest.
    async fn grow_volume(&self, volume: Uuid, size: u64) -> Result<(), DriverError>;
    /// Keep a volume's bytes as they are now, also while a guest writes to it.
    async fn snapshot_volume(&self, volume: Uuid, snapshot: Uuid) -> Result<(), DriverError>;
    /// Put a snapshot's bytes in the place of those of its volume, which no guest has.
    async fn revert_volume(&self, volume: Uuid, snapshot: Uuid) -> Result<(), DriverError>;
    /// Remove a snapshot's bytes.
    async fn delete_snapshot(&self, snapshot: Uuid) -> Result<(), DriverError>;
    /// Write a volume, or a snapshot, to the folder of backups. It is there whole, or not at all.
    async fn back_up(&self, source: VolumeSource, backup: Uuid) -> Result<BackedUp, DriverError>;
    /// Put a backup's bytes in the place of those of a volume that no guest has and that is large enough: all of them, or
    /// the volume stays as it was.
    async fn restore_backup(&self, backup: Uuid, volume: Uuid) -> Result<(), DriverError>;
    /// Backups that are there, whole.
    async fn list_backups(&self) -> Result<Vec<Uuid>, DriverError>;
    /// Remove a backup's bytes.
    async fn delete_backup(&self, backup: Uuid) -> Result<(), DriverError>;
    /// Make the image of this id, of raw format, from a volume's bytes as they are now.
    async fn image_from_volume(&self, volume: Uuid, image: Uuid) -> Result<Converted, DriverError>;
    /// Remove a volume's bytes.
    async fn delete_volume(&self, volume: Uuid) -> Result<(), DriverError>;
    /// Volumes that have bytes on this node.
    async fn list_volumes(&self) -> Result<Vec<Uuid>, DriverError>;
    /// Space.
    async fn usage(&self) -> Result<PoolUsage, DriverError>;
}

/// Where the node gets the keys of encrypted volumes; it keeps none.
#[async_trait]
pub trait DiskKeys: Send + Sync {
    /// The key of a lineage. `purpose` is told in the audit.
    async fn disk_key(&self, lineage: Uuid, purpose: &str) -> Result<DiskKey, DriverError>;
}

/// The virtual switch of this node.
#[async_trait]
pub trait Switch: Send + Sync {
    /// Obey these tables. Uplinks' TAPs are made (and host addresses and masquerading set up) as they ask.
    async fn apply(&self, tables: Arc<Tables>) -> Result<(), DriverError>;
    /// State and counters.
    async fn status(&self) -> Result<SwitchStatus, DriverError>;
}

/// Files of the web, whose places tenants name: what is not public is refused, and all that a server may do is bounded.
#[async_trait]
pub trait Web: Send + Sync {
    /// Refuses a URI whose text alone says that it is not fetched.
    fn check(&self, uri: &str) -> Result<(), DriverError>;
    /// Begins to fetch a file. Whatever goes wrong at the other end is [`DriverError::BadInput`].
    async fn get(&self, uri: &str) -> Result<WebFile, DriverError>;
}

/// A file of the web that begins to arrive.
pub struct WebFile {
    /// How many bytes there are, if the server says so; others do not arrive.
    pub length: Option<u64>,
    /// When the file was last changed, if the server says so; microseconds since 1970.
    pub modified: Option<i64>,
    /// They: whole, or with an error at their end.
    pub bytes: BoxStream<'static, Result<Bytes, DriverError>>,
}
