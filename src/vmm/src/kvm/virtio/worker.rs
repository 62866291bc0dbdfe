//! A thread that serves rings when the driver kicks them.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::thread::JoinHandle;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use virtio::memory::Memory;
use virtio::vring::Vring;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Session;
use crate::kvm::event::descriptor;

/// The event that ends the thread; others are rings.
const STOP: u64 = u64::MAX;

/// The thread. Dropping it without [`Worker::stop`] leaves it running.
pub(in crate::kvm) struct Worker {
    stop: EventFd,
    thread: JoinHandle<Vec<Vring>>,
}

impl Worker {
    /// Serve these rings: `serve` is called for a ring that was kicked, and says whether there is more to do at once. An error
    /// stops nothing; a ring that broke raises the alarm.
    ///
    /// # Errors
    /// The system's answer. The rings do not run then.
    pub(in crate::kvm) fn start<F>(name: &str, session: Session, mut serve: F) -> io::Result<Self>
    where
        F: FnMut(usize, &mut Vring, &Memory) -> bool + Send + 'static,
    {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(descriptor(&stop), EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        let (mut rings, kicks): (Vec<Vring>, Vec<File>) = session.rings.into_iter().unzip();
        for (index, kick) in (0..).zip(&kicks) {
            let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, index);
            epoll.add(kick.as_fd(), event)?;
        }
        let (memory, alarm) = (session.memory, session.alarm);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let _kicks = kicks;
            // What the driver offered before is not kicked again.
            let mut ready = vec![true; rings.len()];
            let mut alarmed = false;
            let mut events = [EpollEvent::empty(); 16];
            loop {
                for (index, ring) in rings.iter_mut().enumerate() {
                    if ready[index] {
                        ready[index] = ring.running() && serve(index, ring, &memory);
                    }
                    if ring.broken() && !std::mem::replace(&mut alarmed, true) {
                        alarm.raise();
                    }
                }
                let timeout = if ready.contains(&true) {
                    EpollTimeout::ZERO
                } else {
                    EpollTimeout::NONE
                };
                let count = epoll.wait(&mut events, timeout).unwrap_or(0);
                for event in &events[..count] {
                    match usize::try_from(event.data())
                        .ok()
                        .and_then(|index| ready.get_mut(index))
                    {
                        Some(ready) => *ready = true,
                        None => return rings,
                    }
                }
            }
        })?;
        Ok(Worker { stop, thread })
    }

    /// End the thread: the rings as they are, each with the index of its next chain.
    pub(in crate::kvm) fn stop(self) -> Vec<u16> {
        // Nobody has written to it before.
        let _ = self.stop.write(1);
        let rings = self.thread.join().unwrap_or_default();
        rings.into_iter().map(|mut ring| ring.halt()).collect()
    }
}
