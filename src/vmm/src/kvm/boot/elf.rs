//! ELF kernels with a PVH entry.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{Elf, KernelLoader};
use virtio::memory::Memory;

use super::{BootError, reading};

/// Bytes of an ELF header and of a program header (64 bits).
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// The most program headers of a kernel; Linux has five.
const MAX_PROGRAM_HEADERS: usize = 64;
/// `PT_LOAD`
const LOAD: u32 = 1;

/// A loaded kernel.
#[derive(Debug)]
pub(super) struct Loaded {
    /// Its PVH entry.
    pub(super) entry: u32,
    /// Where its memory ends.
    pub(super) end: u64,
}

/// Load the kernel where it wants to be.
pub(super) fn load(memory: &Memory, file: &File) -> Result<Loaded, BootError> {
    check(file)?;
    let mut image = file.try_clone().map_err(reading("the kernel"))?;
    let loaded = Elf::load(memory, None, &mut image, None)?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::Kind);
    };
    Ok(Loaded {
        entry: u32::try_from(entry.0).map_err(|_| BootError::Malformed("its entry is above 4 GiB"))?,
        end: loaded.kernel_end,
    })
}

/// Refuse what the loader would be busy with for long: a file of 32 bits, headers beyond all measure, segments that
/// name the file's bytes again and again.
fn check(mut file: &File) -> Result<(), BootError> {
    let malformed = |_| BootError::Malformed("it ends within its headers");
    let size = file.seek(SeekFrom::End(0)).map_err(reading("the kernel"))?;
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).map_err(malformed)?;
    if header[4] != 2 {
        return Err(BootError::Malformed("it is not of 64 bits"));
    }
    let at = u64::from_le_bytes(field(&header, 32));
    let count = usize::from(u16::from_le_bytes(field(&header, 56)));
    if count > MAX_PROGRAM_HEADERS || at > size {
        return Err(BootError::Malformed(
            "its program headers are too many or too far",
        ));
    }
    let mut headers = vec![0; count * PROGRAM_HEADER];
    file.read_exact_at(&mut headers, at).map_err(malformed)?;
    let mut total = 0u64;
    for header in headers.chunks_exact(PROGRAM_HEADER) {
        let offset = u64::from_le_bytes(field(header, 8));
        let in_file = u64::from_le_bytes(field(header, 32));
        let in_memory = u64::from_le_bytes(field(header, 40));
        let end = offset.checked_add(in_file).filter(|end| *end <= size);
        if end.is_none() || in_file > in_memory && u32::from_le_bytes(field(header, 0)) == LOAD {
            return Err(BootError::Malformed(
                "a segment is larger than its file or memory",
            ));
        }
        total = total.saturating_add(in_file);
    }
    if total > size.saturating_mul(2) {
        return Err(BootError::Malformed("its segments overlap"));
    }
    Ok(())
}

/// The bytes at `at`; zeroes where there are none.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..at + N)
        .and_then(|bytes| bytes.try_into().ok())
        .unwrap_or([0; N])
}
