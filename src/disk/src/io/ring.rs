//! Requests carried out by io_uring.
//!
//! io_uring's operations pass by seccomp. So the ring is made disabled, restricted to the five operations that a disk needs on
//! the one file that is registered, and only then enabled; it cannot be given other files or operations after that.
#![allow(unsafe_code)]

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::Arc,
};

use io_uring::{
    IoUring, opcode,
    register::Restriction,
    squeue::{self, Flags},
    types::{Fixed, FsyncFlags},
};
use rustix::fs::FallocateFlags;
use virtio::block::{Completion, Operation, Outcome};

use super::buffers::Buffers;
use super::job::{Job, PUNCH, ZERO, outcome, short};

/// Submissions per system call.
const ENTRIES: u32 = 256;
/// `IORING_ENTER_GETEVENTS`
const GET_EVENTS: u32 = 1;
/// The one registered file.
const FILE: Fixed = Fixed(0);

pub(super) struct Ring {
    ring: IoUring,
    file: Arc<File>,
    /// By token. A job stays here, and so its segments in place, until the kernel has reported it.
    jobs: Vec<Option<Job>>,
    /// Not yet in the submission queue.
    waiting: VecDeque<u32>,
    buffers: Buffers,
}

impl Ring {
    pub(super) fn new(file: Arc<File>, depth: u32) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_clamp()
            .setup_cqsize(depth.max(ENTRIES) * 2)
            .setup_r_disabled();
        // Whoever looks at what has ended asks the kernel for it, which need not interrupt its processor (Linux 5.19).
        let asked = builder
            .clone()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(ENTRIES);
        let ring: IoUring = match asked {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => builder.build(ENTRIES)?,
            other => other?,
        };
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_op(opcode::Fallocate::CODE),
            Restriction::sqe_flags_required(Flags::FIXED_FILE.bits()),
        ])?;
        submitter.register_enable_rings()?;
        let jobs = (0..depth).map(|_| None).collect();
        Ok(Self {
            ring,
            file,
            jobs,
            waiting: VecDeque::new(),
            buffers: Buffers::default(),
        })
    }

    pub(super) fn submit(&mut self, token: u32, mut job: Job, ended: &mut Vec<Completion>) {
        let at_once = match job.operation {
            Operation::Read { .. } | Operation::Write { .. } if job.is_empty() => Some(Outcome::Done),
            _ if job.bounce => Some(job.run(&self.file)),
            _ => None,
        };
        if let Some(outcome) = at_once {
            ended.push(Completion { token, outcome });
            return;
        }
        if let Some(place) = self.jobs.get_mut(token as usize) {
            *place = Some(job);
            self.waiting.push_back(token);
        }
    }

    pub(super) fn kick(&mut self) {
        loop {
            let stuck = !self.fill();
            match self.ring.submit() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Completions must be taken first (EBUSY), or memory is short (EAGAIN): the next round tries again.
                Err(_) => return,
                Ok(_) if stuck || self.waiting.is_empty() => return,
                Ok(_) => {}
            }
        }
    }

    /// Moves waiting jobs into the submission queue while there is room. False: the next one waits for a buffer that a running
    /// one has.
    fn fill(&mut self) -> bool {
        let mut queue = self.ring.submission();
        while let Some(token) = self.waiting.pop_front() {
            let Some(job) = self.jobs.get_mut(token as usize).and_then(Option::as_mut) else {
                continue;
            };
            if !job.prepare(&mut self.buffers) {
                self.waiting.push_front(token);
                return false;
            }
            let entry = entry(job).user_data(token.into());
            // SAFETY: the entry's segments belong to the job, which stays in `jobs`, and lead into guest memory, which the
            // job keeps mapped, until the kernel has reported the entry.
            if unsafe { queue.push(&entry) }.is_err() {
                self.waiting.push_front(token);
                break;
            }
        }
        true
    }

    /// Let the kernel report what has ended, if it waits for a system call to do so.
    fn hear(&mut self) {
        if self.ring.submission().taskrun() {
            // SAFETY: nothing is submitted and nothing waited for, and there is no argument.
            let _ = unsafe { self.ring.submitter().enter::<()>(0, 0, GET_EVENTS, None) };
        }
    }

    pub(super) fn reap(&mut self, done: &mut Vec<Completion>) {
        self.hear();
        let mut again = false;
        while let Some(entry) = { self.ring.completion().next() } {
            let Ok(token) = u32::try_from(entry.user_data()) else {
                continue;
            };
            let Some(job) = self.jobs.get_mut(token as usize).and_then(Option::as_mut) else {
                continue;
            };
            match progress(job, entry.result(), &self.file, &mut self.buffers) {
                Some(outcome) => {
                    job.release(&mut self.buffers);
                    self.jobs[token as usize] = None;
                    done.push(Completion { token, outcome });
                }
                // Before all others: it may have a buffer, for which others wait.
                None => {
                    self.waiting.push_front(token);
                    again = true;
                }
            }
        }
        if again || !self.waiting.is_empty() {
            self.kick();
        }
    }

    pub(super) fn wait(&mut self) {
        self.fill();
        // An error (EINTR, EBUSY) is seen by the caller as nothing having ended, and it waits again.
        let _ = self.ring.submit_and_wait(1);
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor is open while `self` lives, to which the borrow is bound.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for Ring {
    /// The kernel must not write into guest memory that is not mapped any more.
    fn drop(&mut self) {
        for token in std::mem::take(&mut self.waiting) {
            self.jobs[token as usize] = None;
        }
        while self.jobs.iter().any(Option::is_some) {
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.kind() != io::ErrorKind::Interrupted
            {
                break;
            }
            while let Some(entry) = { self.ring.completion().next() } {
                if let Some(job) = self.jobs.get_mut(entry.user_data() as usize) {
                    *job = None;
                }
            }
        }
        // What the kernel never reported is leaked rather than unmapped under its hands.
        self.jobs.drain(..).flatten().for_each(std::mem::forget);
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("jobs", &self.jobs.iter().flatten().count())
            .finish_non_exhaustive()
    }
}

fn entry(job: &Job) -> squeue::Entry {
    let (segments, offset) = job.rest();
    // At most 1024.
    let (pointer, count) = (segments.as_ptr(), segments.len() as u32);
    match job.operation {
        Operation::Read { .. } => opcode::Readv::new(FILE, pointer, count).offset(offset).build(),
        Operation::Write { .. } => {
            let flags = if job.durable { libc::RWF_DSYNC } else { 0 };
            opcode::Writev::new(FILE, pointer, count)
                .offset(offset)
                .rw_flags(flags)
                .build()
        }
        Operation::Flush => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
        Operation::Discard { offset, len } => allocate(offset, len, PUNCH),
        Operation::WriteZeroes { offset, len, unmap } => {
            allocate(offset, len, if unmap { PUNCH } else { ZERO })
        }
    }
}

fn allocate(offset: u64, len: u64, mode: FallocateFlags) -> squeue::Entry {
    opcode::Fallocate::new(FILE, len)
        .offset(offset)
        .mode(mode.bits() as i32)
        .build()
}

/// What a result of the kernel means for a job; `None`: it goes on.
fn progress(job: &mut Job, result: i32, file: &File, buffers: &mut Buffers) -> Option<Outcome> {
    match (job.operation, result) {
        (Operation::Read { .. } | Operation::Write { .. }, 0) => Some(outcome(Err(short()))),
        (Operation::Read { .. } | Operation::Write { .. }, n) if n > 0 => {
            (job.advance(n as usize) && job.settle(buffers)).then_some(Outcome::Done)
        }
        (_, n) if n >= 0 => Some(Outcome::Done),
        (_, error) if error == -libc::EINTR || error == -libc::EAGAIN => None,
        // The filesystem cannot do it this way: a detour that may be slow.
        (Operation::Discard { .. } | Operation::WriteZeroes { .. }, error) if error == -libc::EOPNOTSUPP => {
            Some(job.run(file))
        }
        (_, error) => Some(outcome(Err(io::Error::from_raw_os_error(-error)))),
    }
}
