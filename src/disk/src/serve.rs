//! `allod disk`: one volume, served to one guest by vhost-user-blk (or, where [`DiskTransport::Nbd`] asks for it, by [`crate::nbd`]).
//!
//! One thread owns everything and sleeps in epoll while nothing happens:
//!
//! ```text
//!  vhost-user socket ──▶ Connection ─┬─ rings ──▶ Block ──▶ Limited ──▶ Engine ──▶ the volume's file
//!  control socket    ──▶ Channels    │    ▲                               │
//!  kick eventfds     ────────────────┘    └──── used ◀────────────────────┘
//! ```
//!
//! After the start nothing is opened by name: the file and the two listening sockets come from the daemon.
//!
//! **Death at any moment.** Requests that were taken but not returned are noted in a record that the frontend keeps
//! ([`virtio::inflight`]); the next process carries them out again. Before it does, it waits for what its predecessor left in the kernel:
//! a late write of the dead one must not overwrite a newer one.
//!
//! **Limits** make requests wait ([`crate::limits`]). Nothing waits for those: a ring that stops leaves them in the record, or, where a
//! frontend keeps none, in their turn.
//!
//! **A full pool** parks writes and tries them again every second; [`DiskStatus::paused`] says so.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::net::UnixListener},
    sync::Arc,
    time::{Duration, Instant},
};

use model::disk::{DiskRequest, DiskSpec, DiskStatus, DiskTransport};
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use process::control::{self, Channel};
use thiserror::Error;
use tracing::{debug, info, warn};
use virtio::{
    block::{Block, BlockBackend, Finished, Geometry, QUEUE_SIZE, SECTOR, feature},
    chain::Chain,
    vhost_user::{self, Connection, Event, Next, Offer, Stops},
};

use crate::{
    crypt::Cipher,
    io::{Engine, EngineKind},
    limits::Limited,
};

/// Rings of a device.
const MAX_QUEUES: u16 = 16;
/// Control connections at once: the daemon's, and that of its successor while it takes over.
const MAX_CONTROLS: usize = 4;
/// How long parked writes wait before they are tried again.
const RETRY: Duration = Duration::from_secs(1);

// What an epoll event is about.
const LISTENER: u64 = 0;
const CONTROL_LISTENER: u64 = 1;
const ENGINE: u64 = 2;
const CONNECTION: u64 = 3;
const TIMER: u64 = 4;
const CONTROL: u64 = 1 << 8;
const KICK: u64 = 1 << 16;

/// Why a disk could not be served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The specification asks for what there is not.
    #[error("a disk has 1 to {MAX_QUEUES} queues, and a size in whole sectors: {0:?}")]
    Spec(Box<DiskSpec>),
    /// The file is smaller than the volume.
    #[error("the volume's file has {has} bytes, not {asked}")]
    Short {
        /// Its size.
        has: u64,
        /// The volume's.
        asked: u64,
    },
    /// A system call failed.
    #[error("cannot serve the disk: {0}")]
    Io(#[from] io::Error),
    /// A system call failed.
    #[error("cannot serve the disk: {0}")]
    Os(#[from] Errno),
}

/// Serves the volume in `file` until [`DiskRequest::Stop`]: guests at the listening socket `vhost`, the daemon at the listening
/// socket `control`.
pub fn run(spec: DiskSpec, file: OwnedFd, vhost: OwnedFd, control: OwnedFd) -> Result<(), ServeError> {
    run_with(spec, file, vhost, control, EngineKind::Best)
}

/// [`run`] with a choice of engine.
pub fn run_with(
    spec: DiskSpec,
    file: OwnedFd,
    vhost: OwnedFd,
    control: OwnedFd,
    engine: EngineKind,
) -> Result<(), ServeError> {
    if spec.transport == DiskTransport::Nbd {
        return crate::nbd::run(spec, file, vhost, control);
    }
    Server::new(spec, File::from(file), vhost.into(), control.into(), engine)?.serve()
}

/// A volume's file as the backend of a device, with the device's geometry: for whoever owns the volume and serves it, here or in
/// a guest's own monitor.
///
/// # Errors
/// If the specification does not fit the file, or the file cannot be used.
pub fn open(
    spec: &DiskSpec,
    file: File,
    kind: EngineKind,
) -> Result<(Geometry, Limited<Engine>), ServeError> {
    if spec.queues == 0 || spec.queues > MAX_QUEUES || !spec.size.is_multiple_of(SECTOR) {
        return Err(ServeError::Spec(Box::new(spec.clone())));
    }
    let has = file.metadata()?.len();
    if has < spec.size {
        return Err(ServeError::Short {
            has,
            asked: spec.size,
        });
    }
    if !spec.read_only {
        await_predecessor(&file, has)?;
    }
    let geometry = Geometry {
        sectors: spec.size / SECTOR,
        read_only: spec.read_only,
        queues: spec.queues,
        serial: serial(spec),
    };
    let cipher = spec.key.as_ref().map(Cipher::new);
    let engine = Engine::new(file, geometry.depth(), spec.direct, kind, cipher)?;
    info!(volume = %spec.id, engine = engine.name(), direct = engine.is_direct(), "serving");
    Ok((geometry, Limited::new(engine, &spec.limits)?))
}

struct Server {
    epoll: Epoll,
    spec: DiskSpec,
    /// For its size, when the volume grows.
    file: File,
    block: Block<Limited<Engine>>,
    listener: UnixListener,
    connection: Option<Connection>,
    /// Rings that may have requests.
    ready: Vec<bool>,
    control_listener: UnixListener,
    controls: Vec<Option<Channel>>,
    stopping: bool,
    last_retry: Instant,
    // Kept, so that the loop allocates nothing.
    chain: Chain,
    finished: Vec<Finished>,
}

impl Server {
    fn new(
        spec: DiskSpec,
        file: File,
        listener: UnixListener,
        control_listener: UnixListener,
        engine: EngineKind,
    ) -> Result<Self, ServeError> {
        let (geometry, engine) = open(&spec, file.try_clone()?, engine)?;
        let depth = geometry.depth();
        listener.set_nonblocking(true)?;
        control_listener.set_nonblocking(true)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        epoll.add(
            &control_listener,
            EpollEvent::new(EpollFlags::EPOLLIN, CONTROL_LISTENER),
        )?;
        epoll.add(&engine, EpollEvent::new(EpollFlags::EPOLLIN, ENGINE))?;
        if let Some(timer) = engine.timer() {
            epoll.add(timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        }
        Ok(Self {
            epoll,
            ready: vec![false; usize::from(spec.queues)],
            spec,
            file,
            block: Block::new(geometry, engine, depth),
            listener,
            connection: None,
            control_listener,
            controls: (0..MAX_CONTROLS).map(|_| None).collect(),
            stopping: false,
            last_retry: Instant::now(),
            chain: Chain::new(),
            finished: Vec::new(),
        })
    }

    fn serve(mut self) -> Result<(), ServeError> {
        let mut events = [EpollEvent::empty(); 32];
        while !self.stopping {
            let more = self.work();
            let timeout = if more {
                EpollTimeout::ZERO
            } else if self.block.parked() > 0 {
                EpollTimeout::try_from(RETRY).unwrap_or(EpollTimeout::ZERO)
            } else {
                EpollTimeout::NONE
            };
            let count = match self.epoll.wait(&mut events, timeout) {
                Err(Errno::EINTR) => continue,
                result => result?,
            };
            if self.block.parked() > 0 && self.last_retry.elapsed() >= RETRY {
                self.last_retry = Instant::now();
                self.block.retry();
            }
            for event in &events[..count] {
                self.dispatch(event.data());
            }
        }
        Ok(())
    }

    fn dispatch(&mut self, source: u64) {
        match source {
            LISTENER => self.accept(),
            CONTROL_LISTENER => self.accept_control(),
            // What there is to do is done before the next sleep.
            ENGINE | TIMER => {}
            CONNECTION => self.converse(),
            source if source >= KICK => {
                if let Some(ready) = self.ready.get_mut((source - KICK) as usize) {
                    *ready = true;
                }
            }
            source => self.control((source - CONTROL) as usize),
        }
    }

    /// Takes requests, and returns what ended. True if there may be more to do at once.
    fn work(&mut self) -> bool {
        let Some(connection) = &mut self.connection else {
            // Nobody waits for an answer, but the engine must not stay readable.
            self.block.reap(&mut self.finished);
            self.finished.clear();
            return false;
        };
        let memory = Arc::clone(connection.memory());
        for index in 0..self.spec.queues {
            if !std::mem::take(&mut self.ready[usize::from(index)]) {
                continue;
            }
            connection.ring(index).disable_kicks(&memory);
            let mut taken = 0;
            loop {
                // What is answered at once needs no room: a guest could go on for ever.
                if taken == QUEUE_SIZE || !self.block.has_room() {
                    self.ready[usize::from(index)] = true;
                    break;
                }
                taken += 1;
                match connection.take(index, &mut self.chain) {
                    Ok(true) => self
                        .block
                        .start(index, &mut self.chain, &memory, &mut self.finished),
                    Ok(false) if connection.ring(index).enable_kicks(&memory) => {}
                    Ok(false) => break,
                    Err(error) => {
                        warn!(volume = %self.spec.id, ring = index, %error, "the guest broke its ring");
                        break;
                    }
                }
            }
        }
        self.block.kick();
        self.block.reap(&mut self.finished);
        let progressed = !self.finished.is_empty();
        Self::deliver(connection, &mut self.finished);
        // Rings that are still marked wait for room: look at them again when something ended.
        progressed && self.ready.contains(&true)
    }

    fn deliver(connection: &mut Connection, finished: &mut Vec<Finished>) {
        let memory = Arc::clone(connection.memory());
        let mut touched = 0u32;
        for done in finished.drain(..) {
            touched |= 1 << done.ring;
            if let Err(error) = connection.complete(done.ring, done.head, done.written) {
                warn!(ring = done.ring, %error, "cannot return a request");
            }
        }
        for index in (0..connection.ring_count()).filter(|i| touched & 1 << i != 0) {
            connection.ring(index).notify(&memory);
        }
    }

    /// Takes a frontend. While there is one, others wait in the socket's backlog.
    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, _)) => {
                let offer = Offer {
                    features: self.block.geometry().features(),
                    queues: self.spec.queues,
                    queue_size: QUEUE_SIZE,
                    config: self.block.geometry().config(),
                    inflight: true,
                    // This process serves this guest alone.
                    sealed_memory: false,
                    ..Offer::default()
                };
                match Connection::new(stream, offer) {
                    Ok(connection) => {
                        let event = EpollEvent::new(EpollFlags::EPOLLIN, CONNECTION);
                        let _ = self.epoll.delete(&self.listener);
                        if let Err(error) = self.epoll.add(&connection, event) {
                            warn!(%error, "cannot watch the frontend");
                        }
                        self.connection = Some(connection);
                        debug!(volume = %self.spec.id, "a frontend connected");
                    }
                    Err(error) => warn!(%error, "cannot serve the frontend"),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => warn!(%error, "cannot accept a frontend"),
        }
    }

    /// Answers all that the frontend has asked.
    fn converse(&mut self) {
        loop {
            match self.answer() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    debug!(volume = %self.spec.id, %error, "the frontend's connection ended");
                    self.disconnect();
                    return;
                }
            }
        }
    }

    /// Answers one request; false if there is none.
    fn answer(&mut self) -> Result<bool, vhost_user::Error> {
        let Some(connection) = &mut self.connection else {
            return Ok(false);
        };
        let Next::Request { stops } = connection.look()? else {
            return Ok(false);
        };
        if let Some(stops) = stops {
            self.finish(stops);
        }
        let Some(connection) = &mut self.connection else {
            return Ok(false);
        };
        forget_kicks(&self.epoll, connection);
        let event = connection.handle();
        watch_kicks(&self.epoll, connection);
        match event? {
            Event::Ring(index) => self.look_at(index),
            Event::Reset => self.ready.fill(false),
            Event::Stopped(_) | Event::Memory | Event::Config { .. } | Event::Other => {}
        }
        Ok(true)
    }

    /// A ring started, or is enabled now.
    fn look_at(&mut self, index: u16) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        if !connection.ring(index).running() {
            return;
        }
        self.block
            .set_write_through(connection.features() & feature::FLUSH == 0);
        self.ready[usize::from(index)] = true;
        let memory = Arc::clone(connection.memory());
        for head in connection.take_recovered(index) {
            let loaded = connection.ring(index).load(&memory, head, &mut self.chain);
            if let Err(error) = loaded {
                warn!(volume = %self.spec.id, ring = index, %error, "the guest broke its ring");
                connection.ring(index).break_ring();
                return;
            }
            if !self.block.has_room() {
                self.block.make_room(&mut self.finished);
                Self::deliver(connection, &mut self.finished);
            }
            self.block
                .start(index, &mut self.chain, &memory, &mut self.finished);
        }
    }

    /// Ends what these rings have in flight, so that they can stop.
    fn finish(&mut self, stops: Stops) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let rings = match stops {
            Stops::Ring(index) => index..index + 1,
            Stops::All => 0..self.spec.queues,
        };
        for index in rings {
            // What waits, for its turn or for space, the record keeps for the next start. Without a record it must be answered.
            if connection.tracks_inflight(index) {
                self.block.recall(Some(index));
            }
            self.block.drain(Some(index), &mut self.finished);
            let answer = (!connection.tracks_inflight(index)).then_some(&mut self.finished);
            self.block.drop_parked(Some(index), answer);
        }
        Self::deliver(connection, &mut self.finished);
    }

    fn disconnect(&mut self) {
        // What runs must end before a successor is accepted: it will ask for the same again.
        self.block.abandon();
        self.finished.clear();
        self.ready.fill(false);
        if let Some(mut connection) = self.connection.take() {
            forget_kicks(&self.epoll, &mut connection);
            let _ = self.epoll.delete(&connection);
        }
        let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
        if let Err(error) = self.epoll.add(&self.listener, event) {
            warn!(%error, "cannot wait for the next frontend");
        }
    }

    fn accept_control(&mut self) {
        let stream = match control::accept(&self.control_listener) {
            Ok(Some(stream)) => stream,
            Ok(None) => return,
            Err(error) => {
                warn!(%error, "cannot accept a control connection");
                return;
            }
        };
        let Some(index) = self.controls.iter().position(Option::is_none) else {
            warn!("too many control connections");
            return;
        };
        let channel = Channel::new(stream);
        let event = EpollEvent::new(EpollFlags::EPOLLIN, CONTROL + index as u64);
        match self.epoll.add(&channel, event) {
            Ok(()) => self.controls[index] = Some(channel),
            Err(error) => warn!(%error, "cannot watch a control connection"),
        }
    }

    /// Answers what the daemon has asked.
    fn control(&mut self, index: usize) {
        let Some(mut channel) = self.controls.get_mut(index).and_then(Option::take) else {
            return;
        };
        let alive = loop {
            match channel.read::<DiskRequest>() {
                Ok(Some((request, _))) => {
                    let answer = self.obey(request.body);
                    if let Err(error) = channel.reply(request.id, answer) {
                        debug!(%error, "a control connection ended");
                        break false;
                    }
                }
                Ok(None) => break true,
                Err(error) => {
                    debug!(%error, "a control connection ended");
                    break false;
                }
            }
        };
        if !alive {
            let _ = self.epoll.delete(&channel);
            return;
        }
        let mut flags = EpollFlags::EPOLLIN;
        if channel.wants_write() {
            flags = EpollFlags::EPOLLOUT;
        }
        let _ = self
            .epoll
            .modify(&channel, &mut EpollEvent::new(flags, CONTROL + index as u64));
        self.controls[index] = Some(channel);
    }

    fn obey(&mut self, request: DiskRequest) -> Result<DiskStatus, String> {
        match request {
            DiskRequest::Status => {}
            DiskRequest::Resize(size) => self.resize(size)?,
            DiskRequest::SetLimits(limits) => {
                self.block.backend().limit(&limits);
            }
            DiskRequest::Stop => self.stop()?,
        }
        Ok(self.status())
    }

    fn status(&mut self) -> DiskStatus {
        let queues = self.spec.queues;
        let connected = self
            .connection
            .as_mut()
            .is_some_and(|connection| (0..queues).any(|index| connection.ring(index).running()));
        let counters = self.block.counters();
        DiskStatus {
            connected,
            reads: counters.reads,
            writes: counters.writes,
            flushes: counters.flushes,
            read_bytes: counters.read_bytes,
            written_bytes: counters.written_bytes,
            errors: counters.errors,
            paused: (self.block.parked() > 0).then(|| "pool full".to_owned()),
            limits: self.block.backend().limits(),
            waiting: self.block.backend().waiting() as u64,
        }
    }

    fn resize(&mut self, size: u64) -> Result<(), String> {
        let has = self
            .file
            .metadata()
            .map_err(|error| format!("cannot read the volume's size: {error}"))?
            .len();
        if !size.is_multiple_of(SECTOR) || size < self.spec.size || size > has {
            return Err(format!(
                "a volume of {} bytes in a file of {has} cannot become {size} bytes: grow its file first",
                self.spec.size
            ));
        }
        self.spec.size = size;
        self.block.resize(size / SECTOR);
        if let Some(connection) = &mut self.connection
            && let Err(error) = connection.change_config(self.block.geometry().config())
        {
            warn!(%error, "cannot tell the guest of the new size");
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), String> {
        self.finish(Stops::All);
        self.stopping = true;
        self.file
            .sync_data()
            .map_err(|error| format!("cannot flush the volume: {error}"))
    }
}

fn forget_kicks(epoll: &Epoll, connection: &mut Connection) {
    for index in 0..connection.ring_count() {
        if let Some(kick) = connection.ring(index).kick_fd() {
            let _ = epoll.delete(kick);
        }
    }
}

fn watch_kicks(epoll: &Epoll, connection: &mut Connection) {
    for index in 0..connection.ring_count() {
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, KICK + u64::from(index));
        if let Some(kick) = connection.ring(index).kick_fd()
            && let Err(error) = epoll.add(kick, event)
        {
            warn!(%error, ring = index, "cannot watch a ring");
            connection.ring(index).break_ring();
        }
    }
}

/// Waits for direct I/O that a killed predecessor left in the kernel. Setting the size, even to what it is, waits for all direct I/O
/// on the file (`inode_dio_wait` in XFS, btrfs and ext4); its buffered I/O ended with the process.
fn await_predecessor(file: &File, size: u64) -> io::Result<()> {
    file.set_len(size)
}

/// The first 20 characters of the id (virtio 1.2 §5.2.6.1).
fn serial(spec: &DiskSpec) -> [u8; 20] {
    let text = spec.id.to_string();
    let mut serial = [0; 20];
    serial.copy_from_slice(&text.as_bytes()[..20]);
    serial
}
