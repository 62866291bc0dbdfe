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

use super::buffers::{Buffer as Space, Buffers};
use crate::crypt::Cipher;

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
    /// What the kernel is to transfer next; points into `_memory`, or into the buffer of `sealed`.
    segments: Vec<libc::iovec>,
    offset: u64,
    sealed: Option<Sealed>,
    /// Keeps the mapping that `segments` point into.
    _memory: Arc<Memory>,
}

/// A transfer by way of a buffer, in which the bytes are encrypted: piece by piece, so that memory is bounded.
#[derive(Debug)]
struct Sealed {
    cipher: Arc<Cipher>,
    /// What is left of the guest's buffers, this piece included; points into the job's memory.
    guest: Vec<libc::iovec>,
    /// The piece that is on its way, if one is.
    piece: Option<Space>,
    /// Where in the volume it lies.
    offset: u64,
}

// SAFETY: the pointers in `segments` and `guest` lead into guest memory, which `_memory` keeps mapped, whose mapping does not move,
// and which other threads and the guest may use at any time anyway: it is only ever accessed by the kernel or by raw copies; or into
// the piece's buffer, which is on the heap and the job's own.
unsafe impl Send for Job {}

impl Job {
    pub(super) fn new(
        operation: Operation,
        buffers: &[Buffer],
        memory: &Arc<Memory>,
        durable: bool,
        cipher: Option<&Arc<Cipher>>,
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
        let (offset, cipher) = match operation {
            Operation::Read { offset } | Operation::Write { offset } => (offset, cipher),
            _ => (0, None),
        };
        let sealed = cipher.map(|cipher| Sealed {
            cipher: Arc::clone(cipher),
            guest: std::mem::take(&mut segments),
            piece: None,
            offset,
        });
        Ok(Self {
            operation,
            durable,
            bounce: false,
            segments,
            offset,
            sealed,
            _memory: Arc::clone(memory),
        })
    }

    pub(super) fn is_aligned(&self, to: &Alignment) -> bool {
        // Encrypted transfers have a buffer anyway; the guest's own are in `guest`.
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

    /// There is nothing to transfer any more.
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.sealed.as_ref().is_none_or(|sealed| sealed.guest.is_empty())
    }

    /// Prepares what the kernel is to do next: the next piece of an encrypted transfer. False if there is no buffer now.
    pub(super) fn prepare(&mut self, buffers: &mut Buffers) -> bool {
        let Some(sealed) = &mut self.sealed else {
            return true;
        };
        // Some of it may be left after a short transfer.
        if sealed.piece.is_some() || sealed.guest.is_empty() {
            return true;
        }
        let Some(mut piece) = buffers.take(length(&sealed.guest)) else {
            return false;
        };
        sealed.offset = self.offset;
        if matches!(self.operation, Operation::Write { .. }) {
            let bytes = piece.bytes();
            copy(&sealed.guest, bytes.len(), |segment, at, n| {
                // SAFETY: `n` bytes are within the segment, which is mapped, and within `bytes`.
                unsafe { std::ptr::copy(segment, bytes[at..at + n].as_mut_ptr(), n) }
            });
            sealed.cipher.seal(self.offset, bytes);
        }
        let bytes = piece.bytes();
        self.segments.push(libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        });
        sealed.piece = Some(piece);
        true
    }

    /// The kernel has done what it was to do next. True if nothing is left.
    pub(super) fn settle(&mut self, buffers: &mut Buffers) -> bool {
        if let Some(sealed) = &mut self.sealed
            && let Some(mut piece) = sealed.piece.take()
        {
            let bytes = piece.bytes();
            if matches!(self.operation, Operation::Read { .. }) {
                sealed.cipher.open(sealed.offset, bytes);
                copy(&sealed.guest, bytes.len(), |segment, at, n| {
                    // SAFETY: `n` bytes are within the segment, which is mapped, and within `bytes`.
                    unsafe { std::ptr::copy(bytes[at..at + n].as_ptr(), segment, n) }
                });
            }
            pass(&mut sealed.guest, bytes.len());
            buffers.give(piece);
        }
        self.is_empty()
    }

    /// Gives back what it borrowed: it has ended.
    pub(super) fn release(&mut self, buffers: &mut Buffers) {
        if let Some(piece) = self.sealed.as_mut().and_then(|sealed| sealed.piece.take()) {
            self.segments.clear();
            buffers.give(piece);
        }
    }

    /// Accounts for `n` transferred bytes; true if the kernel has done all that it was to do next.
    pub(super) fn advance(&mut self, n: usize) -> bool {
        self.offset += n as u64;
        pass(&mut self.segments, n);
        self.segments.is_empty()
    }

    /// Carries the whole operation out, here and now.
    pub(super) fn run(&mut self, file: &File) -> Outcome {
        let result = match self.operation {
            Operation::Read { .. } | Operation::Write { .. } if self.bounce => self.transfer_bounced(file),
            Operation::Read { .. } | Operation::Write { .. } => self.transfer_all(file),
            Operation::Flush => fdatasync(file).map_err(io::Error::from),
            Operation::Discard { offset, len } => discard(file, offset, len),
            Operation::WriteZeroes { offset, len, unmap } => zero(file, offset, len, unmap),
        };
        outcome(result)
    }

    fn transfer_all(&mut self, file: &File) -> io::Result<()> {
        let mut buffers = Buffers::default();
        while !self.is_empty() {
            // There is nobody else who could have them.
            self.prepare(&mut buffers);
            self.transfer(file)?;
            self.settle(&mut buffers);
        }
        Ok(())
    }

    fn transfer(&mut self, file: &File) -> io::Result<()> {
        while !self.segments.is_empty() {
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
            let piece = &mut buffer[..length(&self.segments).min(BOUNCE)];
            match self.operation {
                Operation::Read { .. } => {
                    file.read_exact_at(piece, self.offset)?;
                    copy(&self.segments, piece.len(), |segment, at, n| {
                        // SAFETY: `n` bytes are within the segment, which is mapped, and within `piece`.
                        unsafe { std::ptr::copy(piece[at..at + n].as_ptr(), segment, n) }
                    });
                }
                _ => {
                    copy(&self.segments, piece.len(), |segment, at, n| {
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
}

fn length(segments: &[libc::iovec]) -> usize {
    segments.iter().map(|segment| segment.iov_len).sum()
}

/// Goes over the first `len` bytes of the segments: a pointer into one, how far it is from the first, and how many bytes there.
fn copy(segments: &[libc::iovec], len: usize, mut each: impl FnMut(*mut u8, usize, usize)) {
    let mut at = 0;
    for segment in segments {
        let n = segment.iov_len.min(len - at);
        each(segment.iov_base.cast(), at, n);
        at += n;
        if at == len {
            break;
        }
    }
}

/// Takes the first `n` bytes off the segments.
fn pass(segments: &mut Vec<libc::iovec>, mut n: usize) {
    let whole = segments
        .iter()
        .take_while(|s| {
            let fits = s.iov_len <= n;
            n -= if fits { s.iov_len } else { 0 };
            fits
        })
        .count();
    segments.drain(..whole);
    if let (Some(first), true) = (segments.first_mut(), n > 0) {
        // SAFETY: `n` is less than this segment's length, so the pointer stays within it.
        first.iov_base = unsafe { first.iov_base.cast::<u8>().add(n) }.cast();
        first.iov_len -= n;
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
