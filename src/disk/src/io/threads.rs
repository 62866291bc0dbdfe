//! Requests carried out by a few threads, where io_uring is disabled.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use virtio::block::Completion;

use super::job::Job;

/// Enough to keep a disk busy, and few enough for a process per volume.
const THREADS: usize = 8;

#[derive(Debug)]
pub(super) struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    file: Arc<File>,
    state: Mutex<State>,
    work: Condvar,
    ended: Condvar,
    event: File,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(u32, Job)>,
    done: Vec<Completion>,
    stop: bool,
}

impl Threads {
    pub(super) fn new(file: Arc<File>) -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let shared = Arc::new(Shared {
            file,
            state: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
            event: File::from(OwnedFd::from(event)),
        });
        let mut threads = Self {
            shared,
            workers: Vec::with_capacity(THREADS),
        };
        for _ in 0..THREADS {
            let shared = Arc::clone(&threads.shared);
            let worker = std::thread::Builder::new()
                .name("disk-io".into())
                .spawn(move || shared.work())?;
            threads.workers.push(worker);
        }
        Ok(threads)
    }

    pub(super) fn submit(&mut self, token: u32, job: Job) {
        self.shared.lock().waiting.push_back((token, job));
        self.shared.work.notify_one();
    }

    pub(super) fn reap(&mut self, done: &mut Vec<Completion>) {
        // Empty the counter first: what ends from here on raises it again.
        let _ = (&self.shared.event).read(&mut [0; 8]);
        done.append(&mut self.shared.lock().done);
    }

    pub(super) fn wait(&mut self) {
        let state = self.shared.lock();
        let empty = |state: &mut State| state.done.is_empty();
        drop(
            self.shared
                .ended
                .wait_while(state, empty)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}

impl AsFd for Threads {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let idle = |state: &mut State| state.waiting.is_empty() && !state.stop;
        loop {
            let mut state = self
                .work
                .wait_while(self.lock(), idle)
                .unwrap_or_else(PoisonError::into_inner);
            let Some((token, mut job)) = state.waiting.pop_front() else {
                return;
            };
            drop(state);
            let outcome = job.run(&self.file);
            drop(job);
            self.lock().done.push(Completion { token, outcome });
            self.ended.notify_one();
            let _ = (&self.event).write(&1u64.to_ne_bytes());
        }
    }
}
