//! Backups: whole copies of volumes in a folder of their own, best on another disk than the pool's.
//!
//! A backup is one file. Zeros take no space in it, and a checksum ends it:
//!
//! ```text
//! "allodbk1"                       8 bytes
//! the volume's size                8 bytes, little-endian
//! for each block of 64 KiB that is not all zeros, in order:
//!     the block's number           8 bytes, little-endian
//!     its bytes                    64 KiB, the last one up to the volume's end
//! 2^64 - 1                         8 bytes
//! SHA-256 over all of the above    32 bytes
//! ```
//! It is written under another name, synced, and renamed: after a crash it is there whole or not at all. All calls block; they are
//! idempotent, so a reconciler may repeat them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use model::disk::{BackedUp, VolumeSource};
use rustix::fs::{SeekFrom, seek};
use sha2::{Digest, Sha256};
use thiserror::Error;
use uuid::Uuid;

use crate::pool::{Pool, PoolError};

const MAGIC: &[u8; 8] = b"allodbk1";
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
            return self.read(id, u64::MAX, |_, _| Ok(()));
        }
        let moment = pool.moment(source)?;
        let draft = path.with_extension("draft");
        let written = self.write(&moment, &draft).and_then(|done| {
            fs::rename(&draft, &path)?;
            File::open(&self.folder)?.sync_all()?;
            Ok(done)
        });
        written.map_err(|error| {
            let _ = fs::remove_file(&draft);
            self.failed(&path, error)
        })
    }

    fn write(&self, source: &File, draft: &Path) -> io::Result<BackedUp> {
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
            self.read(id, has, |bytes, at| {
                file.write_all_at(bytes, at).map_err(|error| match error.kind() {
                    ErrorKind::StorageFull => PoolError::Full(pool.path().to_owned()).into(),
                    _ => BackupError::Io {
                        path: pool.volume_path(volume),
                        error,
                    },
                })
            })
            .map(drop)
        })
    }

    /// Reads a backup to its end, and checks it; `block` gets each block and its place.
    fn read(
        &self,
        id: Uuid,
        room: u64,
        mut block: impl FnMut(&[u8], u64) -> Result<(), BackupError>,
    ) -> Result<BackedUp, BackupError> {
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
        let short = |error: io::Error| match error.kind() {
            ErrorKind::UnexpectedEof => BackupError::Damaged(id, "it ends too early"),
            _ => BackupError::Io {
                path: path.clone(),
                error,
            },
        };
        let mut magic = [0; 8];
        input.take(&mut magic).map_err(short)?;
        if magic != *MAGIC {
            return Err(BackupError::Damaged(id, "it does not begin as one"));
        }
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
        Ok(BackedUp {
            size,
            stored,
            sha256: hex(&sum),
        })
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

/// Where the next data begin at or after `at`; none: only a hole follows.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<u64>> {
    if at >= size {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(at)) {
        Ok(found) => Ok(Some(found.max(at)).filter(|found| *found < size)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        // A filesystem without holes.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some(at)),
        Err(error) => Err(error.into()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
