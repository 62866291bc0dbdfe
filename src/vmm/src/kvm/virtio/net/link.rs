//! The way to the backend: a thread that connects, sets up what the driver has set up, watches, and connects again.
//!
//! The thread owns the connection. Whoever starts a device does not wait for it; whoever stops one does, since the
//! backend must have let go of the rings, but for no longer than [`Patience::answer`] allows twice.
//!
//! # When the backend is gone
//! The rings stay as they are; the guest's packets wait in them, and once they are full, in the guest. The next backend goes on where the used
//! ring's index says that the last one stopped (see [`virtio::vhost_user`]).
//!
//! For a while the guest still sees a link. A switch that is restarted is away for a second or less, and guests bear lost packets for so long
//! far better than a lost link: at a lost link Windows and systemd-networkd take the address away, and connections
//! break. A longer absence is shown, and so is that of a backend that was never there: at the link's return DHCP clients ask anew at once,
//! while one that asked into the void would wait a minute or give up.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use process::jail::{self, Thread};
use thiserror::Error;
use virtio::memory::Memory;
use virtio::vhost_user::frontend::{Frontend, FrontendError};
use virtio::vring::Placement;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Connect, NicStatus, feature};
use crate::kvm::event::descriptor;
#[cfg(any(test, feature = "fuzzing"))]
use crate::kvm::virtio::worker::inline;
use crate::kvm::virtio::{Alarm, SessionQueue};

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// One conversation with a backend.
    pub(super) answer: Duration,
    /// The first conversation, for which the making of the machine waits.
    pub(super) first: Duration,
    /// From one attempt to connect to the next.
    pub(super) retry: Duration,
    /// The same after [`QUICK_TRIES`], or where the backend is the wrong one.
    pub(super) slow_retry: Duration,
    /// How long a backend may be gone before the guest sees it. More than a restart of the switch takes.
    pub(super) absence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            answer: Duration::from_secs(1),
            first: Duration::from_millis(300),
            retry: Duration::from_millis(100),
            slow_retry: Duration::from_secs(1),
            absence: Duration::from_secs(30),
        }
    }
}

/// Attempts in quick succession.
const QUICK_TRIES: u32 = 50;
/// A connection that lasted so long was a good one.
const GOOD: Duration = Duration::from_secs(1);

/// A ring for packets.
pub(super) struct Ring {
    index: u16,
    max: u16,
    placement: Placement,
    kick: File,
    call: Option<File>,
}

impl Ring {
    /// The ring of this queue; `used` chains were returned so far.
    pub(super) fn new(index: u16, queue: SessionQueue, placement: Placement, used: u16) -> Self {
        Ring {
            index,
            max: queue.max,
            placement: Placement {
                // Chains that were taken and not returned are the last ones before `next`: packets are returned in order.
                next: if queue.taken.is_empty() {
                    placement.next
                } else {
                    used
                },
                ..placement
            },
            kick: queue.kick,
            call: queue.call,
        }
    }
}

/// What the driver has set up.
pub(super) struct Traffic {
    pub(super) memory: Arc<Memory>,
    pub(super) features: u64,
    pub(super) rings: Vec<Ring>,
    /// Pairs of rings in use.
    pub(super) pairs: u16,
    pub(super) alarm: Alarm,
}

/// What was served: the accepted features, and each ring's number and next index.
type Served = (u64, Vec<(u16, u16)>);

enum Order {
    Serve(Box<Traffic>),
    Pairs(u16, Sender<()>),
    Halt(Sender<Option<Served>>),
}

#[derive(Debug, Error)]
enum LinkError {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error(transparent)]
    Backend(#[from] FrontendError),
    #[error("the backend lacks features that the guest uses: {0:#x}")]
    Features(u64),
    #[error("the backend has {0} rings, and the guest uses {1}")]
    Rings(u16, u16),
}

impl LinkError {
    /// Another attempt with the same backend fails, too.
    fn lasts(&self) -> bool {
        matches!(self, LinkError::Features(_) | LinkError::Rings(..))
    }
}

#[derive(Default)]
struct Board {
    status: NicStatus,
    /// The features that the last backend offered.
    offered: Option<u64>,
}

fn lock(board: &Mutex<Board>) -> MutexGuard<'_, Board> {
    // Changed field by field, each of which is whole.
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The way to the backend. When dropped, it ends.
pub(super) struct Link {
    orders: Option<Mutex<Sender<Order>>>,
    bell: Arc<EventFd>,
    board: Arc<Mutex<Board>>,
    thread: Option<JoinHandle<()>>,
    /// What the thread would do is done with each order, see [`inline`].
    #[cfg(any(test, feature = "fuzzing"))]
    worker: Option<Mutex<Worker>>,
}

impl Link {
    /// Starts looking for a backend. If one is there, how many rings it has.
    ///
    /// # Errors
    /// The system's answer.
    pub(super) fn start(name: &str, connect: Connect, patience: Patience) -> io::Result<(Self, Option<u16>)> {
        let bell = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let (orders, receive) = channel();
        let board = Arc::<Mutex<Board>>::default();
        let mut worker = Worker {
            name: name.into(),
            connect,
            patience,
            orders: receive,
            bell: bell.clone(),
            broken: EventFd::new(EFD_NONBLOCK)?,
            board: board.clone(),
            backend: None,
            traffic: None,
            serving: false,
            alarmed: false,
            tries: 0,
            next_try: Instant::now(),
            since: Instant::now(),
            lost: None,
        };
        worker.connect(patience.first);
        worker.show();
        let rings = worker.backend.as_ref().map(Frontend::rings);
        #[cfg(any(test, feature = "fuzzing"))]
        if inline::chosen() {
            let link = Link {
                orders: Some(Mutex::new(orders)),
                bell,
                board,
                thread: None,
                worker: Some(Mutex::new(worker)),
            };
            return Ok((link, rings));
        }
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || worker.run())?;
        let link = Link {
            orders: Some(Mutex::new(orders)),
            bell,
            board,
            thread: Some(thread),
            #[cfg(any(test, feature = "fuzzing"))]
            worker: None,
        };
        Ok((link, rings))
    }

    pub(super) fn status(&self) -> NicStatus {
        lock(&self.board).status.clone()
    }

    /// The features of the backend, or of the last one.
    pub(super) fn offered(&self) -> Option<u64> {
        lock(&self.board).offered
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            let orders = orders.lock().unwrap_or_else(PoisonError::into_inner);
            // Without the thread nobody answers, which whoever waits finds out.
            let _ = orders.send(order);
        }
        // A full counter rings as well.
        let _ = self.bell.write(1);
        #[cfg(any(test, feature = "fuzzing"))]
        if let Some(worker) = &self.worker {
            worker.lock().unwrap_or_else(PoisonError::into_inner).step();
        }
    }

    /// Let a backend serve this, as soon as there is one.
    pub(super) fn serve(&self, traffic: Traffic) {
        self.order(Order::Serve(Box::new(traffic)));
    }

    /// Use so many pairs. When it returns the backend uses no others.
    pub(super) fn set_pairs(&self, pairs: u16) {
        let (done, wait) = channel();
        self.order(Order::Pairs(pairs, done));
        let _ = wait.recv();
    }

    /// Stop; when it returns no backend that hears touches the guest's memory. `None`: nothing was served.
    pub(super) fn halt(&self) -> Option<Served> {
        let (done, wait) = channel();
        self.order(Order::Halt(done));
        wait.recv().ok().flatten()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.bell.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    name: String,
    connect: Connect,
    patience: Patience,
    orders: Receiver<Order>,
    bell: Arc<EventFd>,
    /// Where the backend says that the guest broke a ring.
    broken: EventFd,
    board: Arc<Mutex<Board>>,
    backend: Option<Frontend>,
    traffic: Option<Box<Traffic>>,
    /// The backend has the rings.
    serving: bool,
    /// The driver knows that it broke a ring.
    alarmed: bool,
    tries: u32,
    next_try: Instant,
    /// When the backend was found.
    since: Instant,
    /// When it was lost.
    lost: Option<Instant>,
}

impl Worker {
    fn run(mut self) {
        if let Err(error) = jail::narrow(Thread::Vcpu) {
            // Without its wall it does not run; the guest has no network, and the log says why.
            return tracing::error!(%error, "a network interface's thread");
        }
        while self.step() {
            self.sleep();
        }
    }

    /// Do all that there is to do. False if nobody can order any more.
    fn step(&mut self) -> bool {
        if !self.obey() {
            return false;
        }
        if self.backend.is_none() && Instant::now() >= self.next_try {
            self.connect(self.patience.answer);
        }
        self.show();
        true
    }

    /// Do what was ordered. False if nobody can order any more.
    fn obey(&mut self) -> bool {
        loop {
            match self.orders.try_recv() {
                Ok(Order::Serve(traffic)) => {
                    self.alarmed = false;
                    let _ = self.broken.read();
                    if traffic.features & feature::STATUS != 0 {
                        // The link may have changed while nobody could be told.
                        traffic.alarm.changed();
                    }
                    self.traffic = Some(traffic);
                    self.tries = 0;
                    self.next_try = Instant::now();
                    self.set_up(Instant::now() + self.patience.answer);
                }
                Ok(Order::Pairs(pairs, done)) => {
                    self.set_pairs(pairs);
                    // Who asked waits.
                    let _ = done.send(());
                }
                Ok(Order::Halt(done)) => {
                    let left = self.halt();
                    self.next_try = Instant::now();
                    let _ = done.send(left);
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => {
                    self.halt();
                    return false;
                }
            }
        }
    }

    /// Look for a backend, and let it serve.
    fn connect(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let found = (self.connect)().map_err(LinkError::Connect).and_then(|stream| {
            stream.set_nonblocking(true).map_err(LinkError::Connect)?;
            Ok(Frontend::greet(stream, deadline)?)
        });
        match found {
            Ok(backend) => {
                self.since = Instant::now();
                let mut board = lock(&self.board);
                board.offered = Some(backend.features());
                board.status.connections += 1;
                drop(board);
                self.backend = Some(backend);
                self.set_up(deadline);
            }
            Err(error) => self.lose(error),
        }
    }

    /// The backend is none, or is gone: the next attempt will come.
    fn lose(&mut self, error: LinkError) {
        let now = Instant::now();
        if self.backend.take().is_some() {
            if now.duration_since(self.since) >= GOOD {
                self.tries = 0;
            }
            self.lost.get_or_insert(now);
        }
        if std::mem::take(&mut self.serving)
            && let Some(traffic) = &mut self.traffic
        {
            for ring in &mut traffic.rings {
                // What the guest writes there is its own affair.
                if let Ok(used) = ring.placement.used_index(ring.max, &traffic.memory) {
                    ring.placement.next = used;
                }
            }
        }
        self.tries = self.tries.saturating_add(1);
        let slow = error.lasts() || self.tries > QUICK_TRIES;
        self.next_try = now
            + if slow {
                self.patience.slow_retry
            } else {
                self.patience.retry
            };
        let trouble = error.to_string();
        let mut board = lock(&self.board);
        if board.status.trouble.as_ref() != Some(&trouble) {
            tracing::warn!(nic = self.name, %error, "a guest's network has no backend");
            board.status.trouble = Some(trouble);
        }
    }

    /// The backend that serves, and what it serves; with a new deadline.
    fn served(&mut self) -> Option<(&mut Frontend, &mut Traffic)> {
        let (backend, traffic) = (self.backend.as_mut()?, self.traffic.as_mut()?);
        backend.set_deadline(Instant::now() + self.patience.answer);
        self.serving.then_some((backend, traffic))
    }

    /// Let the backend, if there is one, serve what there is.
    fn set_up(&mut self, deadline: Instant) {
        if let (Some(backend), Some(traffic)) = (&mut self.backend, &self.traffic) {
            backend.set_deadline(deadline);
            let result = traffic.fits(backend).and_then(|()| {
                self.serving = true;
                Ok(traffic.hand_over(backend, &self.broken)?)
            });
            if let Err(error) = result {
                return self.lose(error);
            }
        }
        if self.backend.is_some() {
            self.lost = None;
            if lock(&self.board).status.trouble.take().is_some() {
                tracing::info!(nic = self.name, "a guest's network has its backend again");
            }
        }
    }

    fn set_pairs(&mut self, pairs: u16) {
        if let Some(traffic) = &mut self.traffic {
            traffic.pairs = pairs;
        }
        if let Some((backend, traffic)) = self.served()
            && let Err(error) = traffic.enable(backend).and_then(|()| backend.settle())
        {
            self.lose(error.into());
        }
    }

    fn halt(&mut self) -> Option<Served> {
        if let Some((backend, traffic)) = self.served() {
            match traffic.take_back(backend) {
                Ok(()) => self.serving = false,
                Err(error) => self.lose(error.into()),
            }
        }
        let traffic = self.traffic.take()?;
        let bases = traffic.rings.iter().map(|ring| (ring.index, ring.placement.next));
        Some((traffic.features, bases.collect()))
    }

    /// Show to the world, and to the guest, how things are.
    fn show(&mut self) {
        let connected = self.backend.is_some();
        let link_up = connected
            || self
                .lost
                .is_some_and(|lost| lost.elapsed() < self.patience.absence);
        let mut board = lock(&self.board);
        let changed = board.status.link_up != link_up;
        board.status.connected = connected;
        board.status.link_up = link_up;
        drop(board);
        if let Some(traffic) = self.traffic.as_ref().filter(|_| changed)
            && traffic.features & feature::STATUS != 0
        {
            traffic.alarm.changed();
        }
    }

    /// Until there is something to do.
    fn sleep(&mut self) {
        let now = Instant::now();
        let retry = self.backend.is_none().then_some(self.next_try);
        let shown = self
            .lost
            .filter(|_| lock(&self.board).status.link_up)
            .map(|lost| lost + self.patience.absence);
        let until = retry.into_iter().chain(shown).min();
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            // Rounded up, so that the time has come then.
            let millis = until.saturating_duration_since(now).as_millis() + 1;
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![
            PollFd::new(descriptor(&self.bell), PollFlags::POLLIN),
            PollFd::new(descriptor(&self.broken), PollFlags::POLLIN),
        ];
        if let Some(backend) = &self.backend {
            fds.push(PollFd::new(backend.as_fd(), PollFlags::POLLIN));
        }
        if poll(&mut fds, timeout).is_err() {
            // A signal.
            return;
        }
        let rung = |index: usize| fds.get(index).is_some_and(|fd| fd.any() == Some(true));
        let (bell, broken, socket) = (rung(0), rung(1), rung(2));
        if bell {
            let _ = self.bell.read();
        }
        if broken {
            let _ = self.broken.read();
            self.alarm();
        }
        if socket && let Some(Err(error)) = self.backend.as_mut().map(Frontend::look) {
            self.lose(error.into());
        }
    }

    /// The backend says that the guest broke a ring. Said on to the driver once, however often the backend says so.
    fn alarm(&mut self) {
        if let Some(traffic) = self.traffic.as_ref().filter(|_| !self.alarmed) {
            self.alarmed = true;
            tracing::debug!(nic = self.name, "the guest broke a ring");
            traffic.alarm.raise();
        }
    }
}

impl Traffic {
    fn fits(&self, backend: &Frontend) -> Result<(), LinkError> {
        let missing = self.features & !feature::OURS & !backend.features();
        if missing != 0 {
            return Err(LinkError::Features(missing));
        }
        let needed = self.rings.iter().map(|ring| ring.index + 1).max().unwrap_or(0);
        if needed > backend.rings() {
            return Err(LinkError::Rings(backend.rings(), needed));
        }
        Ok(())
    }

    fn hand_over(&self, backend: &mut Frontend, broken: &EventFd) -> Result<(), FrontendError> {
        backend.set_features(self.features & backend.features())?;
        backend.set_memory(&self.memory)?;
        for ring in &self.rings {
            let call = ring.call.as_ref().map(AsFd::as_fd);
            let (kick, broken) = (ring.kick.as_fd(), descriptor(broken));
            backend.start_ring(ring.index, &ring.placement, kick, call, broken)?;
        }
        self.enable(backend)?;
        backend.settle()
    }

    /// The rings of pairs that are in use, and no others.
    fn enable(&self, backend: &mut Frontend) -> Result<(), FrontendError> {
        for ring in &self.rings {
            backend.enable_ring(ring.index, ring.index / 2 < self.pairs)?;
        }
        Ok(())
    }

    fn take_back(&mut self, backend: &mut Frontend) -> Result<(), FrontendError> {
        for ring in &self.rings {
            backend.enable_ring(ring.index, false)?;
        }
        for ring in &mut self.rings {
            ring.placement.next = backend.stop_ring(ring.index)?;
        }
        Ok(())
    }
}
