//! Guest memory that a frontend shares with us.
//!
//! A vhost-user frontend uses three kinds of addresses: the *guest physical* ones that descriptors hold, *its own
//! virtual* ones in which it names the rings, and the offset in the descriptor that it passes. [`MemoryTable`] maps
//! regions and translates the second kind into the first; everything else works on guest physical addresses through
//! [`Memory`], which checks every access.

use std::{fs::File, os::fd::AsFd, sync::Arc};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use thiserror::Error;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

/// A guest's memory, mapped shared. Hold an `Arc` of it for as long as something (a running I/O request) points into it.
pub type Memory = GuestMemoryMmap<()>;

/// The most regions that a table holds; the `vhost` crate takes no more descriptors in one message.
pub const MAX_REGIONS: usize = 32;

/// Why a memory region was refused.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// No region has this address or size.
    #[error("no such memory region")]
    NoSuchRegion,
    /// More than [`MAX_REGIONS`] regions.
    #[error("more than {MAX_REGIONS} memory regions")]
    TooManyRegions,
    /// A size of nothing, or an end beyond the address space.
    #[error("a memory region's bounds make no sense")]
    Bounds,
    /// The sum of all regions exceeds [`MemoryLimits::max_bytes`].
    #[error("the guest's memory is larger than was agreed")]
    TooLarge,
    /// The file is shorter than the region: an access beyond its end would kill us with SIGBUS.
    #[error("the memory's file is shorter than the region")]
    FileTooShort,
    /// The file could be shortened while mapped, which would kill us with SIGBUS.
    #[error("the memory's file is not sealed against shrinking (F_SEAL_SHRINK)")]
    NotSealed,
    /// Regions overlap in the guest's address space.
    #[error("memory regions overlap: {0}")]
    Overlap(vm_memory::GuestRegionCollectionError),
    /// `mmap` failed.
    #[error("cannot map guest memory: {0}")]
    Map(#[from] vm_memory::mmap::MmapRegionError),
    /// `fstat` failed.
    #[error("cannot stat the memory's file: {0}")]
    Stat(#[from] std::io::Error),
}

/// What a backend accepts as guest memory.
#[derive(Debug, Clone, Copy)]
pub struct MemoryLimits {
    /// Require memory files sealed with `F_SEAL_SHRINK` (QEMU's `memory-backend-memfd` does so by default). A backend that
    /// serves several guests needs this: otherwise one frontend can end it by truncating its file.
    pub sealed: bool,
    /// The sum of all regions' sizes. Pages that a backend touches first are charged to its control group.
    pub max_bytes: u64,
}

/// A region as the frontend describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionSpec {
    /// Guest physical address.
    pub guest: u64,
    /// Size in bytes.
    pub size: u64,
    /// Address in the frontend's own address space.
    pub user: u64,
    /// Offset in the file.
    pub offset: u64,
}

#[derive(Debug, Clone)]
struct Region {
    spec: RegionSpec,
    mapping: Arc<GuestRegionMmap>,
}

/// The table of a guest's memory regions.
#[derive(Debug)]
pub struct MemoryTable {
    limits: MemoryLimits,
    regions: Vec<Region>,
    memory: Arc<Memory>,
}

impl MemoryTable {
    /// An empty table.
    pub fn new(limits: MemoryLimits) -> Self {
        Self {
            limits,
            regions: Vec::new(),
            memory: Arc::new(Memory::new()),
        }
    }

    /// The memory as it is now.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Replaces the whole table. On an error the old one stays.
    pub fn replace(&mut self, specs: Vec<(RegionSpec, File)>) -> Result<(), MemoryError> {
        if specs.len() > MAX_REGIONS {
            return Err(MemoryError::TooManyRegions);
        }
        // Before the first mapping, so that an oversized table costs nothing.
        let total = specs
            .iter()
            .try_fold(0u64, |sum, (spec, _)| sum.checked_add(spec.size))
            .ok_or(MemoryError::TooLarge)?;
        if total > self.limits.max_bytes {
            return Err(MemoryError::TooLarge);
        }
        let regions = specs
            .into_iter()
            .map(|(spec, file)| self.map(spec, file))
            .collect::<Result<Vec<_>, _>>()?;
        self.install(regions)
    }

    /// Adds a region.
    pub fn add(&mut self, spec: RegionSpec, file: File) -> Result<(), MemoryError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooManyRegions);
        }
        let total: u64 = self.regions.iter().map(|r| r.spec.size).sum();
        if total
            .checked_add(spec.size)
            .is_none_or(|t| t > self.limits.max_bytes)
        {
            return Err(MemoryError::TooLarge);
        }
        let mut regions = self.regions.clone();
        regions.push(self.map(spec, file)?);
        self.install(regions)
    }

    /// Removes the region with these addresses and this size.
    pub fn remove(&mut self, spec: RegionSpec) -> Result<(), MemoryError> {
        let mut regions = self.regions.clone();
        let index = regions
            .iter()
            .position(|r| r.spec.guest == spec.guest && r.spec.user == spec.user && r.spec.size == spec.size)
            .ok_or(MemoryError::NoSuchRegion)?;
        regions.remove(index);
        self.install(regions)
    }

    /// The guest physical address behind an address of the frontend's.
    pub fn translate(&self, user: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|r| {
            let within = user
                .checked_sub(r.spec.user)
                .filter(|within| *within < r.spec.size)?;
            r.spec.guest.checked_add(within).map(GuestAddress)
        })
    }

    fn map(&self, spec: RegionSpec, file: File) -> Result<Region, MemoryError> {
        let size = usize::try_from(spec.size).map_err(|_| MemoryError::Bounds)?;
        let end = spec.offset.checked_add(spec.size).ok_or(MemoryError::Bounds)?;
        if size == 0
            || spec.guest.checked_add(spec.size).is_none()
            || spec.user.checked_add(spec.size).is_none()
        {
            return Err(MemoryError::Bounds);
        }
        // The seal first: the size that is read after it can only grow.
        if self.limits.sealed && !sealed_against_shrinking(&file) {
            return Err(MemoryError::NotSealed);
        }
        if file.metadata()?.len() < end {
            return Err(MemoryError::FileTooShort);
        }
        let mapping = MmapRegion::from_file(FileOffset::new(file, spec.offset), size)?;
        let mapping = GuestRegionMmap::new(mapping, GuestAddress(spec.guest)).ok_or(MemoryError::Bounds)?;
        Ok(Region {
            spec,
            mapping: Arc::new(mapping),
        })
    }

    fn install(&mut self, mut regions: Vec<Region>) -> Result<(), MemoryError> {
        regions.sort_by_key(|r| r.mapping.start_addr());
        let memory = if regions.is_empty() {
            Memory::new()
        } else {
            Memory::from_arc_regions(regions.iter().map(|r| Arc::clone(&r.mapping)).collect())
                .map_err(MemoryError::Overlap)?
        };
        self.memory = Arc::new(memory);
        self.regions = regions;
        Ok(())
    }
}

fn sealed_against_shrinking(file: &File) -> bool {
    fcntl(file.as_fd(), FcntlArg::F_GET_SEALS)
        .is_ok_and(|seals| SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK))
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::{
        sys::memfd::{MFdFlags, memfd_create},
        unistd::ftruncate,
    };
    use vm_memory::Bytes;

    use super::*;

    const LIMITS: MemoryLimits = MemoryLimits {
        sealed: true,
        max_bytes: 1 << 20,
    };

    fn memfd(size: i64, seal: bool) -> File {
        let fd: OwnedFd = memfd_create(c"guest", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        ftruncate(&fd, size).unwrap();
        if seal {
            fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        }
        File::from(fd)
    }

    fn spec(guest: u64, size: u64, user: u64) -> RegionSpec {
        RegionSpec {
            guest,
            size,
            user,
            offset: 0,
        }
    }

    #[test]
    fn translates_only_what_is_mapped() {
        let mut table = MemoryTable::new(LIMITS);
        table
            .replace(vec![
                (spec(0x10000, 0x2000, 0x7000_0000), memfd(0x2000, true)),
                (spec(0, 0x1000, 0x9000_0000), memfd(0x1000, true)),
            ])
            .unwrap();
        assert_eq!(table.translate(0x7000_0010), Some(GuestAddress(0x10010)));
        assert_eq!(table.translate(0x9000_0fff), Some(GuestAddress(0xfff)));
        assert_eq!(table.translate(0x9000_1000), None);
        table.memory().write_obj(7u64, GuestAddress(0x11ff8)).unwrap();
        table.memory().write_obj(7u64, GuestAddress(0x11ff9)).unwrap_err();
    }

    #[test]
    fn refuses_what_could_hurt() {
        let mut table = MemoryTable::new(LIMITS);
        let refused = [
            (spec(0, 0x1000, 0), memfd(0x1000, false)),
            (spec(0, 0x2000, 0), memfd(0x1000, true)),
            (spec(0, 0, 0), memfd(0x1000, true)),
            (spec(u64::MAX - 0xfff, 0x2000, 0), memfd(0x2000, true)),
            (spec(0, 0x2000, u64::MAX - 0xfff), memfd(0x2000, true)),
            (spec(0, 2 << 20, 0), memfd(2 << 20, true)),
            (
                RegionSpec {
                    offset: u64::MAX,
                    ..spec(0, 0x1000, 0)
                },
                memfd(0x1000, true),
            ),
            (spec(0, 0x1000, 0), File::open("/dev/zero").unwrap()),
        ];
        for (spec, file) in refused {
            table.add(spec, file).unwrap_err();
        }
        table.add(spec(0, 0x2000, 0), memfd(0x2000, true)).unwrap();
        let overlapping = table.add(spec(0x1000, 0x2000, 0x5000), memfd(0x2000, true));
        assert!(matches!(overlapping, Err(MemoryError::Overlap(_))));
        assert_eq!(
            table.translate(0x1fff),
            Some(GuestAddress(0x1fff)),
            "the old table stays"
        );
        table.remove(spec(0, 0x2000, 0)).unwrap();
        assert_eq!(table.translate(0), None);
    }
}
