//! Pools: where volumes and images have their bytes.
//!
//! A pool is a directory on a filesystem with copy-on-write clones (XFS, btrfs). A volume is a raw sparse file, and a clone of an
//! image shares its blocks (`FICLONE`): instant, no chains, native speed. On other filesystems the pool is an XFS
//! filesystem in a file, mounted at the pool's directory with direct I/O.
//!
//! ```text
//! <pool>/images/<id>.raw     images, never written after they appear
//! <pool>/volumes/<id>.raw    volumes
//! <pool>/snapshots/<id>.raw  volumes as they were, never written after they appear
//! <pool>/sealed/<id>.raw     images as a lineage has them: encrypted with its key, to be cloned
//! <pool>/tmp/                whatever is being made; emptied at start
//! <pool>.xfs                 the filesystem's file, where one was needed
//! ```
//!
//! Every file is made under `tmp`, synced, renamed into place, and the directory is synced: after a crash it is there whole or
//! not at all. All calls block; they are idempotent, so a reconciler may repeat them.

pub mod lineage;
mod mount;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use model::disk::{DiskKey, PoolUsage, VolumeSource};
use rustix::fs::{ioctl_ficlone, statvfs};
use thiserror::Error;
use uuid::Uuid;

/// With less than this free, nothing more is made.
const LEAST_FREE: u64 = 4 << 20;

/// Why a pool could not do something.
#[derive(Debug, Error)]
pub enum PoolError {
    /// No space. Free some, or give the pool more.
    #[error("the pool {} is full: delete volumes or images, or give it more space", .0.display())]
    Full(PathBuf),
    /// No such image.
    #[error("there is no image {0} in the pool")]
    NoImage(Uuid),
    /// No such volume.
    #[error("there is no volume {0} in the pool")]
    NoVolume(Uuid),
    /// No such snapshot.
    #[error("there is no snapshot {0} in the pool")]
    NoSnapshot(Uuid),
    /// A volume exists already and differs.
    #[error("volume {id} exists with {has} bytes, not {asked}")]
    Differs {
        /// The volume.
        id: Uuid,
        /// Its size.
        has: u64,
        /// What was asked for.
        asked: u64,
    },
    /// A volume cannot be smaller than its image, and does not shrink.
    #[error("{asked} bytes are too few: at least {least} are needed")]
    TooSmall {
        /// What was asked for.
        asked: u64,
        /// What is needed.
        least: u64,
    },
    /// Sizes are multiples of 512 bytes.
    #[error("{0} bytes are not a multiple of 512")]
    Unaligned(u64),
    /// What is there is encrypted, and the key was not given.
    #[error("{} is encrypted with the key of lineage {lineage}, which is not at hand", .path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// Its lineage.
        lineage: Uuid,
    },
    /// A program is missing or failed.
    #[error("{0}")]
    Tool(String),
    /// The filesystem could not be mounted or unmounted.
    #[error("cannot {what} {}: {error}", .path.display())]
    Mount {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The file does not offer clones even after mounting.
    #[error("{} has no copy-on-write clones (FICLONE), and no pool file may be made", .0.display())]
    NoReflinks(PathBuf),
    /// Any other failure.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// How a pool is made where the directory's filesystem has no clones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolOptions {
    /// The pool's directory; made if it is missing.
    pub path: PathBuf,
    /// Size of the pool file in bytes, at least 300 MiB (XFS's least). `None`: never make one.
    pub file_size: Option<u64>,
    /// Allocate all of the pool file at once. A sparse one can find the disk full later, and then fails the writes in it instead
    /// of pausing them: for tests and demonstrations.
    pub preallocate: bool,
}

/// An open pool.
#[derive(Debug, Clone)]
pub struct Pool {
    path: PathBuf,
}

/// An image that is being made.
#[derive(Debug)]
pub struct ImageDraft {
    pool: Pool,
    id: Uuid,
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Pool {
    /// Opens the pool, making and mounting what is missing. Mounted already (by an earlier daemon): used as it is.
    pub fn open_or_create(options: &PoolOptions) -> Result<Self, PoolError> {
        let path = &options.path;
        fs::create_dir_all(path).map_err(at(path))?;
        if !has_reflinks(path)? {
            let size = options
                .file_size
                .ok_or_else(|| PoolError::NoReflinks(path.clone()))?;
            let file = pool_file(path);
            mount::create(&file, size, options.preallocate)?;
            mount::mount(&file, path)?;
            if !has_reflinks(path)? {
                return Err(PoolError::NoReflinks(path.clone()));
            }
        }
        // Volumes and images are the daemon's alone.
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(at(path))?;
        let pool = Self { path: path.clone() };
        for name in ["images", "sealed", "volumes", "snapshots", "tmp"] {
            let dir = path.join(name);
            fs::create_dir_all(&dir).map_err(at(&dir))?;
        }
        sync_dir(path)?;
        pool.remove_leftovers()?;
        Ok(pool)
    }

    /// Unmounts the pool if it is a pool file's. Its volumes must not be in use.
    pub fn close(self) -> Result<(), PoolError> {
        mount::unmount(&pool_file(&self.path), &self.path)
    }

    /// The pool's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes an empty volume, which reads as zeros, of a lineage if it is to be encrypted.
    pub fn create_volume(&self, id: Uuid, size: u64, lineage: Option<Uuid>) -> Result<(), PoolError> {
        if self.exists_with(id, size)? {
            return Ok(());
        }
        self.make(&self.volume_path(id), |file| {
            lineage::set(file, lineage)?;
            file.set_len(size)
        })
    }

    /// Makes a volume of `size` bytes that begins with the source's bytes and shares its blocks. Of a volume that is
    /// written to at the same time it gets the bytes of one moment.
    ///
    /// With a key, one of an image is encrypted: the first one of the key's lineage has the image copied for all of them. A
    /// volume's and a snapshot's clone is of their lineage, whatever key is given.
    pub fn clone_volume(
        &self,
        id: Uuid,
        source: VolumeSource,
        size: u64,
        key: Option<&DiskKey>,
    ) -> Result<(), PoolError> {
        if self.exists_with(id, size)? {
            return Ok(());
        }
        let (source, least) = match (source, key) {
            (VolumeSource::Image(image), Some(key)) => self.sealed_image(image, key)?,
            _ => match self.source(source)? {
                Some(found) => found,
                None => return self.create_volume(id, size, key.map(|key| key.lineage)),
            },
        };
        if size < least {
            return Err(PoolError::TooSmall { asked: size, least });
        }
        self.make(&self.volume_path(id), |file| clone(&source, file, size))
    }

    /// An image as this key's lineage has it, and its size; made when it is first asked for.
    fn sealed_image(&self, image: Uuid, key: &DiskKey) -> Result<(File, u64), PoolError> {
        let path = self.sealed_path(key.lineage);
        if !path.exists() {
            let Some((plain, _)) = self.source(VolumeSource::Image(image))? else {
                return Err(PoolError::NoImage(image));
            };
            self.make(&path, |file| lineage::seal(&plain, file, key))?;
        }
        let file = File::open(&path).map_err(at(&path))?;
        let size = file.metadata().map_err(at(&path))?.len();
        Ok((file, size))
    }

    /// Removes a lineage's image. Volumes that were cloned from it keep their bytes. None there: nothing happens.
    pub fn delete_sealed(&self, lineage: Uuid) -> Result<(), PoolError> {
        self.delete(&self.sealed_path(lineage))
    }

    /// A lineage has its image: a clone of it costs nothing.
    pub fn has_sealed(&self, lineage: Uuid) -> bool {
        self.sealed_path(lineage).exists()
    }

    /// Lineages that have an image.
    pub fn list_sealed(&self) -> Result<Vec<Uuid>, PoolError> {
        self.list("sealed")
    }

    fn sealed_path(&self, lineage: Uuid) -> PathBuf {
        self.path.join("sealed").join(format!("{lineage}.raw"))
    }

    /// The lineage of a source's file; `None`: it is not encrypted.
    pub fn lineage(&self, source: VolumeSource) -> Result<Option<Uuid>, PoolError> {
        match self.source(source)? {
            Some((file, _)) => lineage::of(&file).map_err(at(&self.path)),
            None => Ok(None),
        }
    }

    /// Keeps a volume's bytes of this moment under the snapshot's id. There already: nothing happens.
    pub fn snapshot_volume(&self, volume: Uuid, snapshot: Uuid) -> Result<(), PoolError> {
        let path = self.snapshot_path(snapshot);
        if path.exists() {
            return Ok(());
        }
        self.clone_to(&path, VolumeSource::Volume(volume), None).map(drop)
    }

    /// Puts a snapshot's bytes in the place of the volume's, whole or not at all. Whoever has the volume open keeps the old
    /// bytes, so nobody may.
    pub fn revert_volume(&self, volume: Uuid, snapshot: Uuid) -> Result<(), PoolError> {
        let size = self.volume_size(volume)?.ok_or(PoolError::NoVolume(volume))?;
        let path = self.volume_path(volume);
        self.clone_to(&path, VolumeSource::Snapshot(snapshot), Some(size))
            .map(drop)
    }

    /// Makes an image of a volume's bytes of this moment, and returns its size and what of it is allocated. An image is not
    /// encrypted: a volume that is must be given with its key, and is copied.
    pub fn image_from_volume(
        &self,
        volume: Uuid,
        image: Uuid,
        key: Option<&DiskKey>,
    ) -> Result<(u64, u64), PoolError> {
        let source = VolumeSource::Volume(volume);
        let to = self.image_path(image);
        let (moment, lineage) = self.moment(source)?;
        match (lineage, key) {
            (None, _) => return self.clone_to(&to, source, None),
            (Some(lineage), Some(key)) if key.lineage == lineage => {
                self.make(&to, |file| lineage::unseal(&moment, file, key))?;
            }
            (Some(lineage), _) => {
                let path = self.volume_path(volume);
                return Err(PoolError::NoKey { path, lineage });
            }
        }
        let metadata = fs::metadata(&to).map_err(at(&to))?;
        let size = metadata.len();
        Ok((size, metadata.blocks().saturating_mul(512).min(size)))
    }

    /// An unnamed copy of a source's bytes of this moment, to be read at leisure, and its lineage. It goes when it is closed.
    pub fn moment(&self, source: VolumeSource) -> Result<(File, Option<Uuid>), PoolError> {
        let (path, file) = self.scratch()?;
        let removed = fs::remove_file(&path).map_err(at(&path));
        let mut lineage = None;
        if let Some((source, _)) = self.source(source)? {
            let cloned = lineage::of(&source).and_then(|of| {
                ioctl_ficlone(&file, &source)?;
                Ok(of)
            });
            lineage = cloned.map_err(|error| self.error(&path, error))?;
        }
        removed.map(|()| (file, lineage))
    }

    /// Fills a new file of the volume's size, and puts it in the volume's place, whole or not at all. Whoever has the volume open
    /// keeps the old bytes, so nobody may.
    pub fn replace_volume<E: From<PoolError>>(
        &self,
        volume: Uuid,
        fill: impl FnOnce(&File) -> Result<(), E>,
    ) -> Result<(), E> {
        let size = self.volume_size(volume)?.ok_or(PoolError::NoVolume(volume))?;
        let (path, file) = self.scratch()?;
        let filled = file
            .set_len(size)
            .map_err(|error| E::from(self.error(&path, error)))
            .and_then(|()| fill(&file))
            .and_then(|()| Ok(self.place(&path, &file, &self.volume_path(volume))?));
        if filled.is_err() {
            let _ = fs::remove_file(&path);
        }
        filled
    }

    /// Removes a snapshot. Volumes that were made of it keep their bytes. None there: nothing happens.
    pub fn delete_snapshot(&self, id: Uuid) -> Result<(), PoolError> {
        self.delete(&self.snapshot_path(id))
    }

    /// All snapshots.
    pub fn list_snapshots(&self) -> Result<Vec<Uuid>, PoolError> {
        self.list("snapshots")
    }

    /// Where a snapshot's bytes are.
    pub fn snapshot_path(&self, id: Uuid) -> PathBuf {
        self.path.join("snapshots").join(format!("{id}.raw"))
    }

    /// Clones a source to a path, grown to `size`; size and allocated bytes of what it made.
    fn clone_to(&self, to: &Path, source: VolumeSource, size: Option<u64>) -> Result<(u64, u64), PoolError> {
        let Some((source, least)) = self.source(source)? else {
            return Ok((0, 0));
        };
        let size = size.unwrap_or(least);
        if size < least {
            return Err(PoolError::TooSmall { asked: size, least });
        }
        self.make(to, |file| clone(&source, file, size))?;
        let blocks = fs::metadata(to).map_err(at(to))?.blocks();
        Ok((size, blocks.saturating_mul(512).min(size)))
    }

    /// The file of a source, and its size.
    fn source(&self, source: VolumeSource) -> Result<Option<(File, u64)>, PoolError> {
        let (path, missing) = match source {
            VolumeSource::Empty => return Ok(None),
            VolumeSource::Image(id) => (self.image_path(id), PoolError::NoImage(id)),
            VolumeSource::Volume(id) => (self.volume_path(id), PoolError::NoVolume(id)),
            VolumeSource::Snapshot(id) => (self.snapshot_path(id), PoolError::NoSnapshot(id)),
        };
        let file = File::open(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => missing,
            _ => self.error(&path, error),
        })?;
        let size = file.metadata().map_err(at(&path))?.len();
        Ok(Some((file, size)))
    }

    /// Makes a volume larger. It has this size already: nothing happens.
    pub fn grow_volume(&self, id: Uuid, size: u64) -> Result<(), PoolError> {
        aligned(size)?;
        let has = self.volume_size(id)?.ok_or(PoolError::NoVolume(id))?;
        if size < has {
            return Err(PoolError::TooSmall {
                asked: size,
                least: has,
            });
        }
        let path = self.volume_path(id);
        let grow = || {
            let file = OpenOptions::new().write(true).open(&path)?;
            file.set_len(size)?;
            file.sync_all()
        };
        grow().map_err(|error| self.error(&path, error))
    }

    /// Removes a volume. None there: nothing happens.
    pub fn delete_volume(&self, id: Uuid) -> Result<(), PoolError> {
        self.delete(&self.volume_path(id))
    }

    /// A volume's size; `None` if there is none.
    pub fn volume_size(&self, id: Uuid) -> Result<Option<u64>, PoolError> {
        let path = self.volume_path(id);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error(&path, error)),
        }
    }

    /// Opens a volume's file, to be handed to its owner process. `direct` asks for `O_DIRECT`.
    pub fn open_volume(&self, id: Uuid, read_only: bool, direct: bool) -> Result<File, PoolError> {
        let path = self.volume_path(id);
        let flags = if direct { libc::O_DIRECT } else { 0 };
        OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(flags)
            .open(&path)
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound => PoolError::NoVolume(id),
                _ => self.error(&path, error),
            })
    }

    /// All volumes.
    pub fn list_volumes(&self) -> Result<Vec<Uuid>, PoolError> {
        self.list("volumes")
    }

    /// Where a volume's bytes are.
    pub fn volume_path(&self, id: Uuid) -> PathBuf {
        self.path.join("volumes").join(format!("{id}.raw"))
    }

    /// Begins an image: fill [`ImageDraft::file`], then [`ImageDraft::keep`] it. Dropped without that, it is removed.
    pub fn draft_image(&self, id: Uuid) -> Result<ImageDraft, PoolError> {
        let (path, file) = self.scratch()?;
        Ok(ImageDraft {
            pool: self.clone(),
            id,
            path,
            file,
            kept: false,
        })
    }

    /// Removes an image. Volumes that were cloned from it keep their bytes. None there: nothing happens.
    pub fn delete_image(&self, id: Uuid) -> Result<(), PoolError> {
        self.delete(&self.image_path(id))
    }

    /// All images.
    pub fn list_images(&self) -> Result<Vec<Uuid>, PoolError> {
        self.list("images")
    }

    /// Where an image's bytes are.
    pub fn image_path(&self, id: Uuid) -> PathBuf {
        self.path.join("images").join(format!("{id}.raw"))
    }

    /// Space.
    pub fn usage(&self) -> Result<PoolUsage, PoolError> {
        let stat = statvfs(&self.path).map_err(|e| self.error(&self.path, e.into()))?;
        Ok(PoolUsage {
            path: self.path.clone(),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            reflinks: true,
        })
    }

    fn exists_with(&self, id: Uuid, size: u64) -> Result<bool, PoolError> {
        aligned(size)?;
        match self.volume_size(id)? {
            None => Ok(false),
            Some(has) if has == size => Ok(true),
            Some(has) => Err(PoolError::Differs { id, has, asked: size }),
        }
    }

    fn make(&self, to: &Path, fill: impl FnOnce(&File) -> io::Result<()>) -> Result<(), PoolError> {
        // Volumes take space as they are written to: one that is made now would only wait for some.
        if self.usage()?.free < LEAST_FREE {
            return Err(PoolError::Full(self.path.clone()));
        }
        let (path, file) = self.scratch()?;
        let made = fill(&file)
            .map_err(|error| self.error(&path, error))
            .and_then(|()| self.place(&path, &file, to));
        if made.is_err() {
            let _ = fs::remove_file(&path);
        }
        made
    }

    fn scratch(&self) -> Result<(PathBuf, File), PoolError> {
        let path = self.path.join("tmp").join(Uuid::new_v4().to_string());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| self.error(&path, error))?;
        Ok((path, file))
    }

    /// Makes a finished file appear under its name, for good.
    fn place(&self, from: &Path, file: &File, to: &Path) -> Result<(), PoolError> {
        file.sync_all().map_err(|error| self.error(from, error))?;
        fs::rename(from, to).map_err(|error| self.error(to, error))?;
        sync_parent(to)
    }

    fn delete(&self, path: &Path) -> Result<(), PoolError> {
        match fs::remove_file(path) {
            Ok(()) => sync_parent(path),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.error(path, error)),
        }
    }

    fn list(&self, dir: &str) -> Result<Vec<Uuid>, PoolError> {
        let dir = self.path.join(dir);
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(at(&dir))? {
            let name = entry.map_err(at(&dir))?.file_name();
            let id = name
                .to_str()
                .and_then(|n| n.strip_suffix(".raw"))
                .and_then(|n| n.parse::<Uuid>().ok());
            found.extend(id);
        }
        found.sort_unstable();
        Ok(found)
    }

    fn remove_leftovers(&self) -> Result<(), PoolError> {
        let dir = self.path.join("tmp");
        for entry in fs::read_dir(&dir).map_err(at(&dir))? {
            let path = entry.map_err(at(&dir))?.path();
            fs::remove_file(&path).map_err(at(&path))?;
        }
        Ok(())
    }

    fn error(&self, path: &Path, error: io::Error) -> PoolError {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => PoolError::Full(self.path.clone()),
            _ => PoolError::Io {
                path: path.to_owned(),
                error,
            },
        }
    }
}

impl ImageDraft {
    /// The file to fill, from its first byte on.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes it an image.
    pub fn keep(mut self) -> Result<(), PoolError> {
        // Volumes have sizes in whole sectors, so images have, too.
        let len = self.file.metadata().map_err(at(&self.path))?.len();
        let whole = len.next_multiple_of(512);
        if whole != len {
            self.file
                .set_len(whole)
                .map_err(|error| self.pool.error(&self.path, error))?;
        }
        self.pool
            .place(&self.path, &self.file, &self.pool.image_path(self.id))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for ImageDraft {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes an empty file a clone, with the source's lineage, and grows it.
fn clone(source: &File, file: &File, size: u64) -> io::Result<()> {
    // A snapshot of an encrypted volume that does not say so would be read as it is.
    lineage::set(file, lineage::of(source)?)?;
    ioctl_ficlone(file, source)?;
    file.set_len(size)
}

/// Beside the directory, never in it: the mount hides what is in it.
fn pool_file(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".xfs");
    PathBuf::from(name)
}

/// Whether clones work, by making one.
fn has_reflinks(path: &Path) -> Result<bool, PoolError> {
    let probe = || -> io::Result<bool> {
        let (from, to) = (tempfile(path)?, tempfile(path)?);
        match ioctl_ficlone(&to, &from) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL | rustix::io::Errno::NOTTY) => {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    };
    match probe() {
        // No unnamed files either: an old or odd filesystem.
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(false),
        result => result.map_err(at(path)),
    }
}

/// An unnamed file with a block of data, so that a clone has something to share.
fn tempfile(dir: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(dir)?;
    io::Write::write_all(&mut &file, &[1; 4096])?;
    Ok(file)
}

fn aligned(size: u64) -> Result<(), PoolError> {
    if size.is_multiple_of(512) {
        Ok(())
    } else {
        Err(PoolError::Unaligned(size))
    }
}

fn sync_parent(path: &Path) -> Result<(), PoolError> {
    sync_dir(path.parent().unwrap_or(path))
}

fn sync_dir(path: &Path) -> Result<(), PoolError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> PoolError {
    let path = path.to_owned();
    move |error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => PoolError::Full(path),
        _ => PoolError::Io { path, error },
    }
}
