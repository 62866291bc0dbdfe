//! Where a volume's bytes go: its file, by io_uring or, where that is disabled, by threads.
//!
//! ```text
//!                 Block ──submit──▶ Engine ─┬─▶ Ring     io_uring: restricted to what a disk needs, one fixed file
//!                                           └─▶ Threads  preadv, pwritev, fdatasync, fallocate
//! ```
//! With a key, reads and writes go through a buffer, where they are encrypted ([`crate::crypt`]).
//!
//! Both keep the guest's memory alive while the kernel reads or writes it, go on after short transfers, and report
//! `ENOSPC` as [`Outcome::Full`], so that a full pool makes writers wait.

mod buffers;
mod job;
mod ring;
mod threads;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use rustix::fs::{OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, statx};
use tracing::info;
use virtio::{
    block::{BlockBackend, Completion, Operation, SECTOR},
    chain::Buffer,
    memory::Memory,
};

use crate::crypt::Cipher;
use job::{Alignment, Job};
use ring::Ring;
use threads::Threads;

/// Which engine carries out requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// io_uring where the kernel lets us, else threads.
    #[default]
    Best,
    /// Threads.
    Threads,
}

/// A volume's file as a [`BlockBackend`].
#[derive(Debug)]
pub struct Engine {
    alignment: Alignment,
    kind: Kind,
    cipher: Option<Arc<Cipher>>,
    /// Jobs that ended before they were handed on.
    ended: Vec<Completion>,
}

#[derive(Debug)]
enum Kind {
    Ring(Box<Ring>),
    Threads(Threads),
}

impl Engine {
    /// An engine for at most `depth` operations at once. `direct` asks for `O_DIRECT`, which is taken if the file can be read
    /// and written in sectors that way.
    ///
    /// With a cipher, what is in the file is encrypted.
    ///
    /// # Errors
    /// If the file cannot be used.
    pub fn new(
        file: File,
        depth: u32,
        direct: bool,
        kind: EngineKind,
        cipher: Option<Cipher>,
    ) -> io::Result<Self> {
        let alignment = set_direct(&file, direct)?;
        let file = Arc::new(file);
        let kind = match kind {
            EngineKind::Threads => Kind::Threads(Threads::new(file)?),
            EngineKind::Best => match Ring::new(Arc::clone(&file), depth) {
                Ok(ring) => Kind::Ring(Box::new(ring)),
                Err(error) => {
                    info!(%error, "io_uring is not to be had: using threads");
                    Kind::Threads(Threads::new(file)?)
                }
            },
        };
        Ok(Self {
            alignment,
            kind,
            cipher: cipher.map(Arc::new),
            ended: Vec::new(),
        })
    }

    /// `io_uring` or `threads`.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Ring(_) => "io_uring",
            Kind::Threads(_) => "threads",
        }
    }

    /// The file is read and written without the page cache.
    pub fn is_direct(&self) -> bool {
        self.alignment.direct()
    }
}

impl AsFd for Engine {
    /// Readable (level-triggered) while something has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Ring(ring) => ring.as_fd(),
            Kind::Threads(threads) => threads.as_fd(),
        }
    }
}

impl BlockBackend for Engine {
    fn submit(
        &mut self,
        token: u32,
        operation: Operation,
        buffers: &[Buffer],
        memory: &Arc<Memory>,
        durable: bool,
    ) {
        let Ok(mut job) = Job::new(operation, buffers, memory, durable, self.cipher.as_ref()) else {
            // The chain was checked against this very memory.
            self.ended.push(Completion {
                token,
                outcome: virtio::block::Outcome::Failed(libc::EFAULT),
            });
            return;
        };
        job.bounce = !job.is_aligned(&self.alignment);
        match &mut self.kind {
            Kind::Ring(ring) => ring.submit(token, job, &mut self.ended),
            Kind::Threads(threads) => threads.submit(token, job),
        }
    }

    fn kick(&mut self) {
        if let Kind::Ring(ring) = &mut self.kind {
            ring.kick();
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.ended);
        match &mut self.kind {
            Kind::Ring(ring) => ring.reap(done),
            Kind::Threads(threads) => threads.reap(done),
        }
    }

    fn wait(&mut self) {
        if !self.ended.is_empty() {
            return;
        }
        match &mut self.kind {
            Kind::Ring(ring) => ring.wait(),
            Kind::Threads(threads) => threads.wait(),
        }
    }
}

/// Turns `O_DIRECT` on or off, and says what it demands of buffers.
fn set_direct(file: &File, wanted: bool) -> io::Result<Alignment> {
    let flags = fcntl_getfl(file)?;
    let alignment = if wanted { direct_alignment(file) } else { None };
    match alignment {
        // A guest's sectors must be within the filesystem's reach.
        Some(alignment) if alignment.offset <= SECTOR as usize => {
            fcntl_setfl(file, flags | OFlags::DIRECT)?;
            Ok(alignment)
        }
        _ => {
            fcntl_setfl(file, flags - OFlags::DIRECT)?;
            Ok(Alignment::NONE)
        }
    }
}

fn direct_alignment(file: &File) -> Option<Alignment> {
    let stat = statx(file, c"", rustix::fs::AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let known = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && stat.stx_dio_offset_align != 0;
    known.then_some(Alignment {
        memory: stat.stx_dio_mem_align as usize,
        offset: stat.stx_dio_offset_align as usize,
    })
}
