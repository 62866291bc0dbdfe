//! The guest's memory: one memfd, mapped below and above the hole for devices.
//!
//! The file is sealed against a change of its size, so that whoever shares it (the switch, a disk's owner) can rely on
//! the mapping, and nobody's access ends in SIGBUS.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Weak};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use thiserror::Error;
use virtio::memory::Memory;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use super::layout::{CONVENTIONAL_END, ECAM, ECAM_SIZE, HIGH_MEMORY, KERNEL, LOW_END};

/// The least memory in MiB: what a boot's own structures and a small kernel need.
pub const MIN_MIB: u64 = 2;
/// The most memory in MiB: 2 TiB.
pub const MAX_MIB: u64 = 2 << 20;
/// The size of an x86-64 host's page in bytes.
const PAGE: u64 = 4096;
/// The size of a huge page in MiB.
const HUGE_MIB: u64 = 2;

/// Why there is no memory for the guest.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// Too little, too much, or not a whole number of huge pages.
    #[error("a machine cannot have {0} MiB of memory")]
    Size(u64),
    /// A system call failed.
    #[error("{what}: {source}")]
    Os {
        /// What was being done.
        what: &'static str,
        /// The answer.
        source: Errno,
    },
    /// The mapping failed.
    #[error("cannot map the guest's memory: {0}")]
    Map(String),
}

fn os(what: &'static str) -> impl FnOnce(Errno) -> MemoryError {
    move |source| MemoryError::Os { what, source }
}

/// What an entry of the map that a guest gets stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Memory.
    Ram,
    /// Nothing that the guest may use.
    Reserved,
}

/// An entry of the map of memory that a guest gets. Addresses and sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub start: u64,
    /// How many bytes.
    pub size: u64,
    /// What.
    pub kind: Kind,
}

/// The guest's memory.
#[derive(Debug)]
pub struct Ram {
    file: File,
    bytes: u64,
    huge_pages: bool,
    memory: Memory,
}

impl Ram {
    /// So much memory, all zeroes. With `huge_pages` all of it is there at once; without, pages come as the guest touches
    /// them.
    ///
    /// # Errors
    /// If the size is out of range, or the system has not so much.
    pub fn new(mib: u64, huge_pages: bool) -> Result<Self, MemoryError> {
        if !(MIN_MIB..=MAX_MIB).contains(&mib) || huge_pages && !mib.is_multiple_of(HUGE_MIB) {
            return Err(MemoryError::Size(mib));
        }
        let bytes = mib << 20;
        let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        if huge_pages {
            flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        }
        let file = File::from(memfd_create(c"guest", flags).map_err(os("cannot make the memory's file"))?);
        ftruncate(&file, offset(bytes)).map_err(os("cannot size the memory's file"))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(seals)).map_err(os("cannot seal the memory's file"))?;
        if huge_pages {
            // A huge page that is missing at a later touch would be a SIGBUS.
            fallocate(&file, FallocateFlags::empty(), 0, offset(bytes))
                .map_err(os("there are not enough huge pages"))?;
        }
        let regions = parts(bytes)
            .map(|(start, size, from)| {
                let share = file.try_clone().map_err(|error| error.to_string())?;
                let size = usize::try_from(size).map_err(|error| error.to_string())?;
                let mapping = MmapRegion::from_file(FileOffset::new(share, from), size)
                    .map_err(|error| error.to_string())?;
                GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or("an overflow".to_owned())
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(MemoryError::Map)?;
        let memory = Memory::from_regions(regions).map_err(|error| MemoryError::Map(error.to_string()))?;
        Ok(Ram {
            file,
            bytes,
            huge_pages,
            memory,
        })
    }

    /// The memory, by the guest's physical addresses. Clones share it.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The file behind it, for those who share it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// How much of the host's memory it takes.
    pub(super) fn gauge(&self) -> Gauge {
        let first = self.memory.iter().next();
        let file = first.and_then(|region| region.file_offset());
        Gauge(file.map(|file| Arc::downgrade(file.arc())).unwrap_or_default())
    }

    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where memory below the hole ends.
    pub fn low_end(&self) -> u64 {
        self.bytes.min(LOW_END)
    }

    /// All zeroes again, as before the first boot; the pages go back to the host, but for huge ones.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn clear(&self) -> Result<(), MemoryError> {
        if self.huge_pages {
            // A huge page that is given back may be someone else's before it is wanted again, and its absence a SIGBUS.
            return self.overwrite();
        }
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.file, punch, 0, offset(self.bytes)).map_err(os("cannot clear the guest's memory"))
    }

    fn overwrite(&self) -> Result<(), MemoryError> {
        let zeroes = vec![0; usize::try_from(HUGE_MIB << 20).unwrap_or(4096)];
        for (start, size, _) in parts(self.bytes) {
            for at in (start..start + size).step_by(zeroes.len()) {
                self.memory
                    .write_slice(&zeroes, GuestAddress(at))
                    .map_err(|error| MemoryError::Map(error.to_string()))?;
            }
        }
        Ok(())
    }

    /// The map that the guest gets: sorted, without overlaps.
    pub fn map(&self) -> Vec<Entry> {
        let entry = |start, end, kind| Entry {
            start,
            size: end - start,
            kind,
        };
        let mut map = vec![
            entry(0, CONVENTIONAL_END, Kind::Ram),
            entry(CONVENTIONAL_END, KERNEL, Kind::Reserved),
            entry(KERNEL, self.low_end(), Kind::Ram),
            entry(ECAM, ECAM + ECAM_SIZE, Kind::Reserved),
        ];
        if self.bytes > LOW_END {
            map.push(entry(
                HIGH_MEMORY,
                HIGH_MEMORY + (self.bytes - LOW_END),
                Kind::Ram,
            ));
        }
        map
    }

    /// For KVM: guest physical address, size in bytes and host virtual address of each part.
    pub(super) fn slots(&self) -> Result<Vec<(u64, u64, u64)>, MemoryError> {
        parts(self.bytes)
            .map(|(start, size, _)| {
                let host = self
                    .memory
                    .get_host_address(GuestAddress(start))
                    .map_err(|error| MemoryError::Map(error.to_string()))?;
                Ok((start, size, host as u64))
            })
            .collect()
    }
}

/// Give what whole pages lie in a range of the guest's memory back to the host; what lies outside of memory does not count.
/// The bytes that were given back. They read as zeroes afterwards.
///
/// Others map the same file: the switch and disks' owners. A page that they, or the guest, touch again is there again, so that
/// this takes nothing from them but the content, which the guest said it does without. What the system reads from or writes
/// to a page at that time keeps it until it is done. Not for huge pages: one that is missing at a later touch would be a SIGBUS.
///
/// # Errors
/// If the system refuses.
pub(super) fn give_back(memory: &Memory, start: GuestAddress, length: u64) -> Result<u64, Errno> {
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let end = start.0.saturating_add(length);
    let mut given = 0;
    for region in memory.iter() {
        let base = region.start_addr().0;
        // Regions are aligned, and so are their offsets in the file.
        let first = start.0.max(base).next_multiple_of(PAGE);
        let last = end.min(base + region.len()) / PAGE * PAGE;
        let Some(file) = region.file_offset() else {
            continue;
        };
        if first < last {
            let at = file.start() + (first - base);
            fallocate(file.file(), punch, offset(at), offset(last - first))?;
            given += last - first;
        }
    }
    Ok(given)
}

/// How much of the host's memory a guest's takes, for those who do not keep it.
#[derive(Debug, Clone)]
pub(super) struct Gauge(Weak<File>);

impl Gauge {
    /// Bytes; `None`: the memory is gone.
    pub(super) fn resident(&self) -> Option<u64> {
        let metadata = self.0.upgrade()?.metadata().ok()?;
        Some(metadata.blocks() * 512)
    }
}

/// Guest physical address, size and offset in the file of each part.
fn parts(bytes: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    let low = bytes.min(LOW_END);
    [(0, low, 0), (HIGH_MEMORY, bytes - low, low)]
        .into_iter()
        .filter(|(_, size, _)| *size > 0)
}

/// At most 2 TiB, which an offset holds.
fn offset(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever the size: the map is sorted, free of overlaps, and its memory is there, but for the firmware's area.
        #[test]
        fn the_map_tells_the_memory_that_is_there(mib in prop_oneof![
            MIN_MIB..64u64, 2816 - 2..2816 + 3u64, MIN_MIB..=MAX_MIB, Just(MAX_MIB)
        ]) {
            let ram = Ram::new(mib, false).unwrap();
            let map = ram.map();
            for pair in map.windows(2) {
                prop_assert!(pair[0].start + pair[0].size <= pair[1].start);
            }
            let mut usable = 0;
            for entry in map.iter().filter(|entry| entry.kind == Kind::Ram) {
                prop_assert!(entry.size > 0);
                prop_assert!(ram.memory().address_in_range(GuestAddress(entry.start)));
                prop_assert!(ram.memory().address_in_range(GuestAddress(entry.start + entry.size - 1)));
                usable += entry.size;
            }
            prop_assert_eq!(usable, (mib << 20) - (KERNEL - CONVENTIONAL_END));
            prop_assert!(!ram.memory().address_in_range(GuestAddress(LOW_END)));
            prop_assert!(!ram.memory().address_in_range(GuestAddress(HIGH_MEMORY - 1)));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever range is given back: its whole pages are zero afterwards, and nothing else is another than before.
        #[test]
        fn whole_pages_are_given_back_and_nothing_else(
            start in prop_oneof![0u64..0x20_0000, LOW_END - 0x4000..LOW_END + 0x4000, HIGH_MEMORY - 0x4000..HIGH_MEMORY + 0x4000, any::<u64>()],
            length in prop_oneof![0u64..0x8000, Just(2 << 30), any::<u64>()],
        ) {
            // Sparse: what is not touched costs nothing.
            let ram = Ram::new((LOW_END >> 20) + 2, false).unwrap();
            let marks = [0, 0x1000, 0x4000, 0x5000, 0x10_0000, LOW_END - 0x2000, LOW_END - 0x1000, HIGH_MEMORY, HIGH_MEMORY + 0x1000];
            for mark in marks {
                ram.memory().write_slice(&[1; 4096], GuestAddress(mark)).unwrap();
            }
            let given = give_back(ram.memory(), GuestAddress(start), length).unwrap();
            let end = start.saturating_add(length);
            prop_assert!(given <= length && given.is_multiple_of(PAGE));
            let mut kept = 0;
            for mark in marks {
                let gone = start <= mark && mark + PAGE <= end;
                let mut page = [0; 4096];
                ram.memory().read_slice(&mut page, GuestAddress(mark)).unwrap();
                prop_assert_eq!(page, [u8::from(!gone); 4096], "{:#x}", mark);
                kept += u64::from(!gone);
            }
            // What was read is there again, if only as a page of zeroes.
            prop_assert!(ram.gauge().resident().unwrap() >= kept * PAGE);
        }
    }

    #[test]
    fn what_is_given_back_is_the_hosts_again() {
        let ram = Ram::new(4, false).unwrap();
        let gauge = ram.gauge();
        assert_eq!(gauge.resident(), Some(0));
        ram.memory()
            .write_slice(&[1; 0x4000], GuestAddress(0x10_0000))
            .unwrap();
        assert_eq!(gauge.resident(), Some(0x4000));
        assert_eq!(
            give_back(ram.memory(), GuestAddress(0x10_0001), 0x3fff).unwrap(),
            0x3000
        );
        assert_eq!(gauge.resident(), Some(0x1000));
        drop(ram);
        assert_eq!(gauge.resident(), None);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for (mib, huge) in [
            (0, false),
            (1, false),
            (MAX_MIB + 1, false),
            (u64::MAX, false),
            (3, true),
        ] {
            assert!(matches!(Ram::new(mib, huge), Err(MemoryError::Size(_))), "{mib}");
        }
    }

    #[test]
    fn cleared_memory_is_zero_and_the_file_keeps_its_size() {
        let ram = Ram::new(4, false).unwrap();
        ram.memory().write_obj(7u64, GuestAddress(0x1234)).unwrap();
        ram.clear().unwrap();
        assert_eq!(ram.memory().read_obj::<u64>(GuestAddress(0x1234)).unwrap(), 0);
        assert_eq!(ram.file().metadata().unwrap().len(), 4 << 20);
        ram.file().set_len(1 << 20).unwrap_err();
        ram.file().set_len(8 << 20).unwrap_err();
        // What is done with huge pages does the same.
        let last = GuestAddress((4 << 20) - 8);
        ram.memory().write_obj(7u64, last).unwrap();
        ram.overwrite().unwrap();
        assert_eq!(ram.memory().read_obj::<u64>(last).unwrap(), 0);
    }
}
