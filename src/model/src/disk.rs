//! What the daemon asks of `allod disk` and of the image converter.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The formats in which an image may arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// Plain bytes.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3; a backing file is refused.
    Qcow2,
    /// An ISO 9660 image; kept as it is.
    Iso,
    /// VMware's format, sparse or stream-optimized, in one file.
    Vmdk,
    /// Microsoft's first format, fixed or dynamic.
    Vhd,
    /// Microsoft's second format, fixed or dynamic.
    Vhdx,
}

/// How a guest's engine reaches a disk's owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskTransport {
    /// vhost-user-blk: the owner reads and writes the guest's memory.
    #[default]
    VhostUser,
    /// The engine is the owner itself: it gets the volume's file.
    Embedded,
    /// NBD: the engine copies. For software CPUs, which must see every write to memory that holds code.
    Nbd,
}

/// What a volume's bytes are encrypted with: AES-256 in XTS mode (IEEE 1619-2018), a sector of 512 bytes being the data unit and its
/// number in the volume the tweak. It is only ever in the memory of the daemon and of the volume's owner.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct DiskKey {
    /// All files with this key: volumes, snapshots and clones that share blocks.
    #[zeroize(skip)]
    pub lineage: Uuid,
    /// The key for data.
    pub data: [u8; 32],
    /// The key for tweaks; another one than for data.
    pub tweak: [u8; 32],
}

/// Without the key.
impl std::fmt::Debug for DiskKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskKey")
            .field("lineage", &self.lineage)
            .finish_non_exhaustive()
    }
}

/// The specification of one `allod disk` process: one volume, served to one guest.
///
/// Descriptors are handed over at start, so that the child opens nothing by itself:
/// the volume's file, and a listening Unix socket for the guest's engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The volume's id; its first 20 characters are the guest's serial number of the disk (virtio 1.2 §5.2.6).
    pub id: Uuid,
    /// Size in bytes, a multiple of 512.
    pub size: u64,
    /// Writes are refused with an I/O error when set.
    pub read_only: bool,
    /// Request queues, 1 to 16.
    pub queues: u16,
    /// Open the file with `O_DIRECT` where its filesystem can (vhost-user).
    pub direct: bool,
    /// How the guest's engine reaches it.
    #[serde(default)]
    pub transport: DiskTransport,
    /// The file is encrypted with this. A specification with a key is never written to a file.
    #[serde(default)]
    pub key: Option<DiskKey>,
    /// How much it may be used.
    #[serde(default)]
    pub limits: DiskLimits,
}

impl DiskSpec {
    /// The serial number that the guest reads: the first 20 characters of the volume's id.
    pub fn serial(&self) -> String {
        self.id.to_string().chars().take(20).collect()
    }
}

/// How often something may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rate {
    /// In a second, on the average.
    pub per_second: u64,
    /// For a while it may be more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<Burst>,
}

impl Rate {
    /// Never more than this.
    pub fn steady(per_second: u64) -> Self {
        Rate {
            per_second,
            burst: None,
        }
    }
}

/// What may happen for a while, after an idle time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Burst {
    /// In a second.
    pub per_second: u64,
    /// For how long.
    pub seconds: u32,
}

/// How much a disk may be used; what is not limited is `None`. Reads and writes count for their own limits and for the total ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskLimits {
    /// Requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_iops: Option<Rate>,
    /// Reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_iops: Option<Rate>,
    /// Writes, discards among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_iops: Option<Rate>,
    /// Bytes read or written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<Rate>,
    /// Bytes read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<Rate>,
    /// Bytes written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_bytes: Option<Rate>,
}

impl DiskLimits {
    /// There are none.
    pub fn is_unlimited(&self) -> bool {
        *self == DiskLimits::default()
    }
}

/// Requests on the control socket of an `allod disk`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskRequest {
    /// Report counters and state.
    Status,
    /// The volume's file has grown to this many bytes: tell the guest.
    Resize(u64),
    /// The volume may be used this much from now on, also by requests that wait already.
    SetLimits(DiskLimits),
    /// Complete what is in flight, flush, and end.
    Stop,
}

/// State and counters of an `allod disk` since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// A guest is connected and its queues run.
    pub connected: bool,
    /// Completed reads.
    pub reads: u64,
    /// Completed writes.
    pub writes: u64,
    /// Completed flushes.
    pub flushes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Why writers wait (`pool full`), if they do.
    pub paused: Option<String>,
    /// How much it may be used.
    #[serde(default)]
    pub limits: DiskLimits,
    /// Requests that wait for their turn in these limits.
    #[serde(default)]
    pub waiting: u64,
}

/// The specification of one conversion of an uploaded file to a raw image, run as a jailed child.
///
/// The child is given the two descriptors and this limit, and opens nothing by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConvertSpec {
    /// The format that the tenant named.
    pub format: ImageFormat,
    /// The largest virtual size that is accepted, in bytes.
    pub max_virtual_size: u64,
    /// The most CPU time and wall time that the conversion may take, in seconds.
    pub max_seconds: u64,
}

/// What a conversion found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Converted {
    /// The format that the file's bytes show.
    pub format: ImageFormat,
    /// The guest-visible size in bytes.
    pub virtual_size: u64,
    /// Bytes that are not zero, rounded up to 64 KiB clusters.
    pub allocated: u64,
}

/// Space of a pool, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolUsage {
    /// The pool's directory.
    pub path: PathBuf,
    /// All that the filesystem holds.
    pub total: u64,
    /// Free for volumes.
    pub free: u64,
    /// The filesystem makes copy-on-write clones (`FICLONE`).
    pub reflinks: bool,
}

/// What a new volume begins with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeSource {
    /// Zeros.
    #[default]
    Empty,
    /// An image's bytes.
    Image(Uuid),
    /// Another volume's bytes, as they are at that moment.
    Volume(Uuid),
    /// A snapshot's bytes.
    Snapshot(Uuid),
}

/// With an image, or without.
impl From<Option<Uuid>> for VolumeSource {
    fn from(image: Option<Uuid>) -> Self {
        image.map_or(VolumeSource::Empty, VolumeSource::Image)
    }
}

/// A finished backup of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackedUp {
    /// The volume's size in bytes.
    pub size: u64,
    /// Bytes that the backup takes: holes are left out.
    pub stored: u64,
    /// SHA-256 over the volume's bytes, in hexadecimal digits.
    pub sha256: String,
}
