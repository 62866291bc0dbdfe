//! Devices that serve their queues on a thread of their own.
//!
//! A [`Post`] is the place of a [`Service`]. While the driver is not ready, the service rests there; from `DRIVER_OK` on it is
//! at work: a thread owns it and the rings, and sleeps in epoll while nothing happens. Whoever wants something of the
//! service says so with [`Post::call`], wherever it is.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use process::jail::{self, Thread};
use virtio::memory::Memory;
use virtio::vring::Vring;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Alarm, Left, Session, StartError};
use crate::kvm::event::descriptor;

/// The event of the bell, by which others wake the thread.
const BELL: u64 = u64::MAX;
/// How long a thread lets others have its service, in steps.
const MOMENT: Duration = Duration::from_micros(20);
const MOMENTS: u32 = 1000;
/// Events of descriptors that the service watches; lower ones are rings.
const WATCHED: u64 = 1 << 32;

/// What serves a device's queues.
pub(in crate::kvm) trait Service: Send + 'static {
    /// It makes do with the descriptors that it has: its thread is locked further in.
    const MODEST: bool = true;
    /// The driver is ready: watch what is to be watched.
    fn begin(&mut self, _floor: &mut Floor) {}
    /// Serve a ring that was kicked, or marked. True if there is more to do at once. A ring that broke raises the alarm.
    fn serve(&mut self, floor: &mut Floor, ring: usize) -> bool;
    /// A descriptor that is watched by this token is ready.
    fn wake(&mut self, _floor: &mut Floor, _token: u32) {}
    /// Nothing is left to do. How long to sleep at most; called again then, with no time at all at once.
    fn rest(&mut self, _floor: &mut Floor) -> Option<Duration> {
        None
    }
    /// The rings stop after this. Chains that were taken and not returned, by ring.
    fn finish(&mut self, _floor: &mut Floor) -> Vec<Vec<u16>> {
        Vec::new()
    }
}

/// What a service works with.
pub(in crate::kvm) struct Floor {
    pub(in crate::kvm) memory: Arc<Memory>,
    pub(in crate::kvm) rings: Vec<Vring>,
    pub(in crate::kvm) features: u64,
    pub(in crate::kvm) alarm: Alarm,
    /// Chains that an earlier session took and did not return, by ring. For `begin`.
    pub(in crate::kvm) taken: Vec<Vec<u16>>,
    ready: Vec<bool>,
    alarmed: bool,
    epoll: Arc<Epoll>,
}

impl Floor {
    /// Look at this ring in the next round.
    pub(in crate::kvm) fn mark(&mut self, ring: usize) {
        if let Some(ready) = self.ready.get_mut(ring) {
            *ready = true;
        }
    }

    /// Wake the service with this token when the descriptor can be read (level-triggered).
    ///
    /// # Errors
    /// The system's answer.
    pub(in crate::kvm) fn watch(&self, descriptor: BorrowedFd<'_>, token: u32) -> io::Result<()> {
        self.watch_for(descriptor, token, EpollFlags::EPOLLIN)
    }

    /// The same for these events; no event is one, too: it pauses the watching.
    ///
    /// # Errors
    /// The system's answer.
    pub(in crate::kvm) fn watch_for(
        &self,
        descriptor: BorrowedFd<'_>,
        token: u32,
        events: EpollFlags,
    ) -> io::Result<()> {
        let mut event = EpollEvent::new(events, WATCHED + u64::from(token));
        match self.epoll.add(descriptor, event) {
            Err(nix::errno::Errno::EEXIST) => Ok(self.epoll.modify(descriptor, &mut event)?),
            other => Ok(other?),
        }
    }

    /// Watch it no longer.
    pub(in crate::kvm) fn unwatch(&self, descriptor: BorrowedFd<'_>) {
        // What is not watched needs not be taken away.
        let _ = self.epoll.delete(descriptor);
    }
}

struct Inner<S> {
    service: S,
    floor: Option<Floor>,
    /// How the queues were left, between the thread's end and whoever waits for it.
    left: Vec<Left>,
    stopping: bool,
}

impl<S: Service> Inner<S> {
    fn begin(&mut self) {
        if let Some(floor) = &mut self.floor {
            self.service.begin(floor);
        }
    }

    /// Do all that there is to do. How long to sleep then; `None`: the thread ends.
    fn round(&mut self) -> Option<EpollTimeout> {
        let floor = self.floor.as_mut()?;
        if std::mem::take(&mut self.stopping) {
            let mut taken = self.service.finish(floor).into_iter();
            self.left = floor
                .rings
                .iter_mut()
                .map(|ring| Left {
                    next: ring.halt(),
                    taken: taken.next().unwrap_or_default(),
                })
                .collect();
            self.floor = None;
            return None;
        }
        for index in 0..floor.rings.len() {
            if std::mem::take(&mut floor.ready[index])
                && floor.rings[index].running()
                && self.service.serve(floor, index)
            {
                floor.ready[index] = true;
            }
        }
        floor.look_for_broken_rings();
        if floor.ready.contains(&true) {
            return Some(EpollTimeout::ZERO);
        }
        let sleep = self.service.rest(floor);
        // What it did may have marked a ring, or broken one.
        floor.look_for_broken_rings();
        if floor.ready.contains(&true) {
            return Some(EpollTimeout::ZERO);
        }
        Some(sleep.map_or(EpollTimeout::NONE, |sleep| {
            // Rounded up: a service that is woken too early would only sleep again.
            let sleep = match sleep {
                Duration::ZERO => sleep,
                sleep => sleep + Duration::from_millis(1),
            };
            EpollTimeout::try_from(sleep).unwrap_or(EpollTimeout::MAX)
        }))
    }

    fn hear(&mut self, event: u64) {
        let Some(floor) = &mut self.floor else { return };
        match event.checked_sub(WATCHED) {
            None => floor.mark(event as usize),
            Some(token) => {
                if let Ok(token) = u32::try_from(token) {
                    self.service.wake(floor, token);
                }
            }
        }
    }
}

struct Worker {
    bell: EventFd,
    /// `None`: whoever fuzzes does the work, see [`inline`].
    thread: Option<JoinHandle<()>>,
}

/// Where a service is.
pub(in crate::kvm) struct Post<S> {
    name: String,
    inner: Arc<Mutex<Inner<S>>>,
    worker: Mutex<Option<Worker>>,
    /// Callers that wait for the service.
    callers: Arc<AtomicU32>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A fault of this program ends the machine; until then nobody is to wait for it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Service> Post<S> {
    /// At rest.
    pub(in crate::kvm) fn new(name: &str, service: S) -> Self {
        Post {
            name: name.into(),
            inner: Arc::new(Mutex::new(Inner {
                service,
                floor: None,
                left: Vec::new(),
                stopping: false,
            })),
            worker: Mutex::new(None),
            callers: Arc::default(),
        }
    }

    /// Its name, which is its thread's, too.
    pub(in crate::kvm) fn name(&self) -> &str {
        &self.name
    }

    /// The service, for someone else than its thread, which makes room.
    fn take(&self) -> MutexGuard<'_, Inner<S>> {
        self.callers.fetch_add(1, Ordering::SeqCst);
        let inner = lock(&self.inner);
        self.callers.fetch_sub(1, Ordering::SeqCst);
        inner
    }

    /// To work: what [`super::Device::start`] asks for.
    ///
    /// # Errors
    /// If the driver's rings cannot be, or the system refuses. The service rests then.
    pub(in crate::kvm) fn start(&self, session: Session) -> Result<(), StartError> {
        let mut worker = lock(&self.worker);
        let bell = EventFd::new(EFD_NONBLOCK)?;
        let (floor, kicks) = Floor::new(session, &bell)?;
        let epoll = floor.epoll.clone();
        lock(&self.inner).floor = Some(floor);
        let (inner, callers) = (self.inner.clone(), self.callers.clone());
        #[cfg(any(test, feature = "fuzzing"))]
        if inline::chosen() {
            inline::begin(inner, epoll, kicks);
            *worker = Some(Worker { bell, thread: None });
            return Ok(());
        }
        let thread = std::thread::Builder::new()
            .name(self.name.clone())
            .spawn(move || {
                let narrowed = if S::MODEST {
                    jail::narrow(Thread::Device)
                } else {
                    Ok(())
                };
                match narrowed {
                    Ok(()) => work(&inner, &epoll, &callers),
                    Err(error) => {
                        tracing::error!(%error, "a device's thread");
                        if let Some(floor) = &lock(&inner).floor {
                            floor.alarm.raise();
                        }
                    }
                }
                drop(kicks);
            });
        match thread {
            Ok(thread) => {
                let thread = Some(thread);
                *worker = Some(Worker { bell, thread });
                Ok(())
            }
            Err(error) => {
                lock(&self.inner).floor = None;
                Err(error.into())
            }
        }
    }

    /// To rest: what [`super::Device::stop`] asks for.
    pub(in crate::kvm) fn stop(&self) -> Vec<Left> {
        let Some(worker) = lock(&self.worker).take() else {
            return Vec::new();
        };
        self.take().stopping = true;
        // A full counter rings as well.
        let _ = worker.bell.write(1);
        match worker.thread {
            Some(thread) => drop(thread.join()),
            None => drop(lock(&self.inner).round()),
        }
        std::mem::take(&mut lock(&self.inner).left)
    }

    /// Ask something of the service, wherever it is; at work it has its floor. Afterwards it looks at what it was given.
    pub(in crate::kvm) fn call<R>(&self, ask: impl FnOnce(&mut S, Option<&mut Floor>) -> R) -> R {
        let worker = lock(&self.worker);
        let answer = {
            let mut inner = self.take();
            let Inner { service, floor, .. } = &mut *inner;
            ask(service, floor.as_mut())
        };
        if let Some(worker) = &*worker {
            let _ = worker.bell.write(1);
        }
        answer
    }
}

impl<S> Drop for Post<S> {
    fn drop(&mut self) {
        let worker = self.worker.get_mut().unwrap_or_else(PoisonError::into_inner);
        debug_assert!(
            worker.is_none() || std::thread::panicking(),
            "{} was not halted",
            self.name
        );
    }
}

impl Floor {
    /// The rings of a session, watched together with `bell`; and the kicks, which must stay open.
    fn new(session: Session, bell: &EventFd) -> Result<(Self, Vec<File>), StartError> {
        let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(io::Error::from)?);
        let watch = |descriptor: BorrowedFd<'_>, event| {
            let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, event);
            epoll.add(descriptor, event).map_err(io::Error::from)
        };
        watch(descriptor(bell), BELL)?;
        let mut rings = Vec::with_capacity(session.queues.len());
        let mut kicks = Vec::with_capacity(session.queues.len());
        let mut taken = Vec::with_capacity(session.queues.len());
        for (index, queue) in (0..).zip(session.queues) {
            rings.push(queue.ring(&session.memory)?);
            watch(queue.kick.as_fd(), index)?;
            kicks.push(queue.kick);
            taken.push(queue.taken);
        }
        let floor = Floor {
            memory: session.memory,
            // What the driver offered before is not kicked again.
            ready: vec![true; rings.len()],
            rings,
            features: session.features,
            alarm: session.alarm,
            taken,
            alarmed: false,
            epoll,
        };
        Ok((floor, kicks))
    }

    fn look_for_broken_rings(&mut self) {
        if !self.alarmed && self.rings.iter().any(Vring::broken) {
            self.alarmed = true;
            self.alarm.raise();
        }
    }
}

fn work<S: Service>(inner: &Mutex<Inner<S>>, epoll: &Epoll, callers: &AtomicU32) {
    let mut events = [EpollEvent::empty(); 16];
    lock(inner).begin();
    loop {
        let Some(timeout) = lock(inner).round() else {
            return;
        };
        // A thread that always has more to do would take its lock again before anybody else could. A caller takes a moment, so
        // that this ends; should it not, the thread goes on all the same.
        for _ in 0..MOMENTS {
            if callers.load(Ordering::SeqCst) == 0 {
                break;
            }
            std::thread::sleep(MOMENT);
        }
        let count = epoll.wait(&mut events, timeout).unwrap_or(0);
        let mut inner = lock(inner);
        for event in &events[..count] {
            inner.hear(event.data());
        }
    }
}

/// Services without threads, so that a fuzzer's bytes always lead to the same run.
#[cfg(any(test, feature = "fuzzing"))]
pub(in crate::kvm) mod inline {
    use std::cell::{Cell, RefCell};

    use super::{Arc, Epoll, EpollEvent, EpollTimeout, File, Inner, Mutex, Service, lock};

    /// Rounds after which a service that has ever more to do is left alone.
    const ROUNDS: u32 = 10_000;

    type Work = Box<dyn FnMut() -> bool>;

    thread_local! {
        static CHOSEN: Cell<bool> = const { Cell::new(false) };
        static WORK: RefCell<Vec<Work>> = const { RefCell::new(Vec::new()) };
    }

    /// From now on services that are started by this thread get no thread: [`work`] does what they have to do.
    pub(in crate::kvm) fn choose(inline: bool) {
        CHOSEN.set(inline);
        WORK.take();
    }

    pub(in crate::kvm) fn chosen() -> bool {
        CHOSEN.get()
    }

    pub(super) fn begin<S: Service>(inner: Arc<Mutex<Inner<S>>>, epoll: Arc<Epoll>, kicks: Vec<File>) {
        lock(&inner).begin();
        let mut events = [EpollEvent::empty(); 16];
        let work = move || {
            let _open = &kicks;
            for _ in 0..ROUNDS {
                let mut inner = lock(&inner);
                let Some(timeout) = inner.round() else {
                    return false;
                };
                let count = epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
                for event in &events[..count] {
                    inner.hear(event.data());
                }
                if count == 0 && timeout != EpollTimeout::ZERO {
                    return true;
                }
            }
            panic!("a service does not come to rest");
        };
        WORK.with_borrow_mut(|all| all.push(Box::new(work)));
    }

    /// Let all services do what there is to do.
    pub(in crate::kvm) fn work() {
        WORK.with_borrow_mut(|all| all.retain_mut(|work| work()));
    }
}
