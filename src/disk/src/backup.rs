//! Backups: whole copies of volumes in a folder of their own, best on another disk than the pool's.
//!
//! A backup is one file. Zeros take no space in it, and a checksum ends it:
//!
//! ```text
//! "allodbk2"                       8 bytes
//! the lineage of its key           16 bytes, zeros where it is not encrypted ("allodbk1" has none)
//! the volume's size                8 bytes, little-endian
//! for each block of 64 KiB that is not all zeros, in order:
//!     the block's number           8 bytes, little-endian
//!     its bytes                    64 KiB, the last one up to the volume's end
//! 2^64 - 1                         8 bytes
//! SHA-256 over all of the above    32 bytes
//! ```
//! A backup of an encrypted volume has the volume's bytes as they are, encrypted, and is of use while the lineage's key is there.
//!
//! It is written under another name, synced, and renamed: after a crash it is there whole or not at all. All calls block; they are
//! idempotent, so a reconciler may repeat them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use model::disk::{BackedUp, VolumeSource};
use sha2::{Digest, Sha256};
use thiserror::Error;
use uuid::Uuid;

use crate::pool::{Pool, PoolError, lineage};
use crate::sparse::next_data;

const MAGIC: &[u8; 8] = b"allodbk2";
/// Of backups without a lineage.
const FIRST_MAGIC: &[u8; 8] = b"allodbk1";
const BLOCK: u64 = 64 * 1024;
const END: u64 = u64::MAX;

/// Why a backup could not be made or read.
#[derive(Debug, Error)]
pub enum BackupError {
    /// No such backup.
    #[error("there is no backup {0}")]
    Missing(Uuid),
    /// Its bytes are not those that were written.
    #[error("backup {0} is damaged: {1}")]
    Damaged(Uuid, &'static str),
    /// The volume has no room for it.
    #[error("backup {id} needs {size} bytes, the volume has {has}")]
    TooLarge {
        /// The backup.
        id: Uuid,
        /// Its volume's size.
        size: u64,
        /// The size of the volume to be written.
        has: u64,
    },
    /// No space left.
    #[error("the folder of backups {} is full", .0.display())]
    Full(PathBuf),
    /// The pool's side.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// Any other failure.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A backup that was read.
struct Found {
    lineage: Option<Uuid>,
    summed: BackedUp,
}

/// A folder of backups.
#[derive(Debug, Clone)]
pub struct Backups {
    folder: PathBuf,
}

impl Backups {
    /// Opens the folder, or makes it; what an earlier daemon left half written goes.
    ///
    /// # Errors
    /// If it cannot be made or read.
    pub fn open(folder: &Path) -> Result<Self, BackupError> {
        let backups = Backups {
            folder: folder.to_owned(),
        };
        let result = fs::create_dir_all(folder)
            .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o700)))
            .and_then(|()| {
                for entry in fs::read_dir(folder)? {
                    let path = entry?.path();
                    if path.extension().is_some_and(|end| end == "draft") {
                        fs::remove_file(path)?;
                    }
                }
                Ok(())
            });
        result.map_err(|error| backups.failed(folder, error))?;
        Ok(backups)
    }

    /// Where a backup's bytes are.
    pub fn path(&self, id: Uuid) -> PathBuf {
        self.folder.join(format!("{id}.backup"))
    }

    /// All backups that are there, whole.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Uuid>, BackupError> {
        let read = || -> io::Result<Vec<Uuid>> {
            let mut ids = Vec::new();
            for entry in fs::read_dir(&self.folder)? {
                let name = entry?.file_name();
                let id = name.to_str().and_then(|name| name.strip_suffix(".backup"));
                ids.extend(id.and_then(|id| id.parse::<Uuid>().ok()));
            }
            ids.sort_unstable();
            Ok(ids)
        };
        read().map_err(|error| self.failed(&self.folder, error))
    }

    /// Writes a volume's or a snapshot's bytes of this moment. There already: it is read and summed up.
    ///
    /// # Errors
    /// If there is no such source, no space, or the disk fails.
    pub fn create(&self, pool: &Pool, source: VolumeSource, id: Uuid) -> Result<BackedUp, BackupError> {
        let path = self.path(id);
        if path.exists() {
            return Ok(self.read(id, u64::MAX, |_, _| Ok(()))?.summed);
        }
        let (moment, lineage) = pool.moment(source)?;
        let draft = path.with_extension("draft");
        let written = self.write(&moment, lineage, &draft).and_then(|done| {
            fs::rename(&draft, &path)?;
            File::open(&self.folder)?.sync_all()?;
            Ok(done)
        });
        written.map_err(|error| {
            let _ = fs::remove_file(&draft);
            self.failed(&path, error)
        })
    }

    fn write(&self, source: &File, lineage: Option<Uuid>, draft: &Path) -> io::Result<BackedUp> {
        let size = source.metadata()?.len();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(draft)?;
        let mut out = Summed {
            inner: BufWriter::with_capacity(1 << 20, &file),
            sum: Sha256::new(),
            bytes: 0,
        };
        out.write_all(MAGIC)?;
        out.write_all(lineage.unwrap_or_default().as_bytes())?;
        out.write_all(&size.to_le_bytes())?;
        let mut block = vec![0; BLOCK as usize];
        let mut at = 0;
        while let Some(data) = next_data(source, at, size)? {
            // Holes are whole blocks of the filesystem's, which may be smaller than ours.
            let start = data - data % BLOCK;
            let length = usize::try_from(BLOCK.min(size - start)).map_err(io::Error::other)?;
            let bytes = &mut block[..length];
            source.read_exact_at(bytes, start)?;
            if bytes.iter().any(|byte| *byte != 0) {
                out.write_all(&(start / BLOCK).to_le_bytes())?;
                out.write_all(bytes)?;
            }
            at = start + BLOCK;
        }
        out.write_all(&END.to_le_bytes())?;
        let sum = out.sum.finalize();
        out.inner.write_all(&sum)?;
        out.inner.flush()?;
        let stored = out.bytes + sum.len() as u64;
        drop(out.inner);
        file.sync_all()?;
        Ok(BackedUp {
            size,
            stored,
            sha256: hex(&sum),
        })
    }

    /// Puts a backup's bytes in the place of a volume's: all of them, checked, or none.
    ///
    /// # Errors
    /// If there is no such backup or volume, it does not fit, it is damaged, or there is no space.
    pub fn restore(&self, pool: &Pool, id: Uuid, volume: Uuid) -> Result<(), BackupError> {
        let has = pool.volume_size(volume)?.ok_or(PoolError::NoVolume(volume))?;
        pool.replace_volume(volume, |file| {
            let failed = |error: io::Error| match error.kind() {
                ErrorKind::StorageFull => PoolError::Full(pool.path().to_owned()).into(),
                _ => BackupError::Io {
                    path: pool.volume_path(volume),
                    error,
                },
            };
            let read = self.read(id, has, |bytes, at| file.write_all_at(bytes, at).map_err(failed))?;
            lineage::set(file, read.lineage).map_err(failed)
        })
    }

    /// Reads a backup to its end, and checks it; `block` gets each block and its place.
    fn read(
        &self,
        id: Uuid,
        room: u64,
        mut block: impl FnMut(&[u8], u64) -> Result<(), BackupError>,
    ) -> Result<Found, BackupError> {
        let short = |error| self.short(id, error);
        let (mut input, lineage) = self.begin(id)?;
        let size = input.number().map_err(short)?;
        if size > room {
            return Err(BackupError::TooLarge { id, size, has: room });
        }
        let mut bytes = vec![0; BLOCK as usize];
        let mut least = 0;
        loop {
            let number = input.number().map_err(short)?;
            if number == END {
                break;
            }
            let at = number
                .checked_mul(BLOCK)
                .filter(|at| *at < size && number >= least);
            let at = at.ok_or(BackupError::Damaged(id, "a block is out of place"))?;
            least = number + 1;
            let length = usize::try_from(BLOCK.min(size - at)).unwrap_or(bytes.len());
            input.take(&mut bytes[..length]).map_err(short)?;
            block(&bytes[..length], at)?;
        }
        let (sum, stored) = (input.sum.finalize(), input.bytes + 32);
        let mut written = [0; 32];
        input.inner.read_exact(&mut written).map_err(short)?;
        if written != sum[..] {
            return Err(BackupError::Damaged(id, "its checksum differs"));
        }
        let sha256 = hex(&sum);
        Ok(Found {
            lineage,
            summed: BackedUp { size, stored, sha256 },
        })
    }

    /// The lineage of a backup's key; `None`: it is not encrypted.
    ///
    /// # Errors
    /// If there is no such backup, or it does not begin as one.
    pub fn lineage(&self, id: Uuid) -> Result<Option<Uuid>, BackupError> {
        Ok(self.begin(id)?.1)
    }

    /// Reads what a backup begins with, up to its size.
    fn begin(&self, id: Uuid) -> Result<(Summed<BufReader<File>>, Option<Uuid>), BackupError> {
        let path = self.path(id);
        let file = File::open(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => BackupError::Missing(id),
            _ => self.failed(&path, error),
        })?;
        let mut input = Summed {
            inner: BufReader::with_capacity(1 << 20, file),
            sum: Sha256::new(),
            bytes: 0,
        };
        let mut magic = [0; 8];
        input.take(&mut magic).map_err(|error| self.short(id, error))?;
        let mut lineage = [0; 16];
        match &magic {
            MAGIC => input.take(&mut lineage).map_err(|error| self.short(id, error))?,
            FIRST_MAGIC => {}
            _ => return Err(BackupError::Damaged(id, "it does not begin as one")),
        }
        let lineage = Uuid::from_bytes(lineage);
        Ok((input, (!lineage.is_nil()).then_some(lineage)))
    }

    fn short(&self, id: Uuid, error: io::Error) -> BackupError {
        match error.kind() {
            ErrorKind::UnexpectedEof => BackupError::Damaged(id, "it ends too early"),
            _ => BackupError::Io {
                path: self.path(id),
                error,
            },
        }
    }

    /// Removes a backup. None there: nothing happens.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn delete(&self, id: Uuid) -> Result<(), BackupError> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Ok(()) => File::open(&self.folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|error| self.failed(&self.folder, error)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.failed(&path, error)),
        }
    }

    fn failed(&self, path: &Path, error: io::Error) -> BackupError {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => BackupError::Full(self.folder.clone()),
            _ => BackupError::Io {
                path: path.to_owned(),
                error,
            },
        }
    }
}

/// A reader or writer that sums up what passes.
struct Summed<T> {
    inner: T,
    sum: Sha256,
    bytes: u64,
}

impl<T: Write> Summed<T> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.bytes += bytes.len() as u64;
        self.inner.write_all(bytes)
    }
}

impl<T: Read> Summed<T> {
    fn take(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(bytes)?;
        self.sum.update(&*bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.take(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
