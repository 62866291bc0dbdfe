//! One operation on its way through the kernel.
#![allow(unsafe_code)]

use std::{fs::File, io, os::fd::AsRawFd, sync::Arc};

use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use virtio::{
    block::{Operation, Outcome},
    chain::Buffer,
    memory::Memory,
};
use vm_memory::{GuestMemoryBackend, GuestMemoryError};

/// The kernel takes no more segments in one call (`UIO_MAXIOV`).
const MAX_SEGMENTS: usize = 1024;
/// Unaligned transfers go through a buffer of this size, piece by piece.
const BOUNCE: usize = 256 << 10;
const PAGE: usize = 4096;

/// What `O_DIRECT` demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of addresses.
    pub(super) memory: usize,
    /// Of offsets and lengths.
    pub(super) offset: usize,
}

impl Alignment {
    /// Anything goes: the page cache is used.
    pub(super) const NONE: Self = Self { memory: 1, offset: 1 };

    pub(super) fn direct(&self) -> bool {
        *self != Self::NONE
    }
}

/// An operation with the guest memory that it works on.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) operation: Operation,
    pub(super) durable: bool,
    /// Its buffers suit the page cache, but not `O_DIRECT`.
    pub(super) bounce: bool,
    /// What is still to be transferred; points into `_memory`.
    segments: Vec<libc::iovec>,
    offset: u64,
    /// Keeps the mapping that `segments` point into.
    _memory: Arc<Memory>,
}

// SAFETY: the pointers in `segments` lead into guest memory, which `_memory` keeps mapped, whose mapping does not move, and which
// other threads and the guest may use at any time anyway: it is only ever accessed by the kernel or by raw copies.
unsafe impl Send for Job {}

impl Job {
    pub(super) fn new(
        operation: Operation,
        buffers: &[Buffer],
        memory: &Arc<Memory>,
        durable: bool,
    ) -> Result<Self, GuestMemoryError> {
        let mut segments = Vec::with_capacity(buffers.len());
        for buffer in buffers {
            // A buffer may span regions.
            for slice in GuestMemoryBackend::get_slices(&**memory, buffer.addr, buffer.len as usize) {
                let slice = slice?;
                segments.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        let offset = match operation {
            Operation::Read { offset } | Operation::Write { offset } => offset,
            _ => 0,
        };
        Ok(Self {
            operation,
            durable,
            bounce: false,
            segments,
            offset,
            _memory: Arc::clone(memory),
        })
    }

    pub(super) fn is_aligned(&self, to: &Alignment) -> bool {
        self.segments
            .iter()
            .all(|s| (s.iov_base as usize).is_multiple_of(to.memory) && s.iov_len.is_multiple_of(to.offset))
    }

    /// What the next system call is to transfer, and where in the file.
    pub(super) fn rest(&self) -> (&[libc::iovec], u64) {
        (
            &self.segments[..self.segments.len().min(MAX_SEGMENTS)],
            self.offset,
        )
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Accounts for `n` transferred bytes; true if nothing is left.
    pub(super) fn advance(&mut self, mut n: usize) -> bool {
        self.offset += n as u64;
        let whole = self
            .segments
            .iter()
            .take_while(|s| {
                let fits = s.iov_len <= n;
                n -= if fits { s.iov_len } else { 0 };
                fits
            })
            .count();
        self.segments.drain(..whole);
        if let (Some(first), true) = (self.segments.first_mut(), n > 0) {
            // SAFETY: `n` is less than this segment's length, so the pointer stays within it.
            first.iov_base = unsafe { first.iov_base.cast::<u8>().add(n) }.cast();
            first.iov_len -= n;
        }
        self.segments.is_empty()
    }

    /// Carries the whole operation out, here and now.
    pub(super) fn run(&mut self, file: &File) -> Outcome {
        let result = match self.operation {
            Operation::Read { .. } | Operation::Write { .. } if self.bounce => self.transfer_bounced(file),
            Operation::Read { .. } | Operation::Write { .. } => self.transfer(file),
            Operation::Flush => fdatasync(file).map_err(io::Error::from),
            Operation::Discard { offset, len } => discard(file, offset, len),
            Operation::WriteZeroes { offset, len, unmap } => zero(file, offset, len, unmap),
        };
        outcome(result)
    }

    fn transfer(&mut self, file: &File) -> io::Result<()> {
        while !self.is_empty() {
            let (segments, offset) = self.rest();
            let (fd, count) = (file.as_raw_fd(), segments.len() as libc::c_int);
            let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
            let n = match self.operation {
                // SAFETY: the segments lie in guest memory that is mapped while `self` lives.
                Operation::Read { .. } => unsafe { libc::preadv(fd, segments.as_ptr(), count, offset) },
                _ => {
                    let flags = if self.durable { libc::RWF_DSYNC } else { 0 };
                    // SAFETY: as above.
                    unsafe { libc::pwritev2(fd, segments.as_ptr(), count, offset, flags) }
                }
            };
            match usize::try_from(n) {
                Ok(0) => return Err(short()),
                Ok(n) => drop(self.advance(n)),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// By way of an aligned buffer, for the rare driver (a BIOS, a boot loader) with odd addresses.
    fn transfer_bounced(&mut self, file: &File) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let mut space = vec![0u8; BOUNCE + PAGE];
        let start = space.as_ptr().align_offset(PAGE).min(PAGE);
        let buffer = &mut space[start..start + BOUNCE];
        while !self.is_empty() {
            let left: usize = self.segments.iter().map(|s| s.iov_len).sum();
            let piece = &mut buffer[..left.min(BOUNCE)];
            match self.operation {
                Operation::Read { .. } => {
                    file.read_exact_at(piece, self.offset)?;
                    self.copy(piece.len(), |segment, at, n| {
                        // SAFETY: `n` bytes are within the segment, which is mapped, and within `piece`.
                        unsafe { std::ptr::copy(piece[at..at + n].as_ptr(), segment, n) }
                    });
                }
                _ => {
                    self.copy(piece.len(), |segment, at, n| {
                        // SAFETY: as above.
                        unsafe { std::ptr::copy(segment, piece[at..at + n].as_mut_ptr(), n) }
                    });
                    file.write_all_at(piece, self.offset)?;
                }
            }
            let n = piece.len();
            self.advance(n);
        }
        if self.durable && matches!(self.operation, Operation::Write { .. }) {
            fdatasync(file)?;
        }
        Ok(())
    }

    fn copy(&self, len: usize, mut each: impl FnMut(*mut u8, usize, usize)) {
        let mut at = 0;
        for segment in &self.segments {
            let n = segment.iov_len.min(len - at);
            each(segment.iov_base.cast(), at, n);
            at += n;
            if at == len {
                break;
            }
        }
    }
}

/// The end of the file within the device: it was cut off behind our back.
pub(super) fn short() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

pub(super) fn outcome(result: io::Result<()>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => match error.raw_os_error().unwrap_or(libc::EIO) {
            libc::ENOSPC | libc::EDQUOT => Outcome::Full,
            errno => Outcome::Failed(errno),
        },
    }
}

/// How `fallocate` frees a range.
pub(super) const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
/// How it zeroes one and keeps its space.
pub(super) const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    match fallocate(file, PUNCH, offset, len) {
        // A discard is a hint.
        Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        result => Ok(result?),
    }
}

fn zero(file: &File, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
    if !unmap {
        match fallocate(file, ZERO, offset, len) {
            Err(rustix::io::Errno::OPNOTSUPP) => {}
            result => return Ok(result?),
        }
    }
    Ok(fallocate(file, PUNCH, offset, len)?)
}
