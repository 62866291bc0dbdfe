//! A vhost-user network backend for tests: a thread that hands the guest's frames to a closure, and the closure's frames to the
//! guest. It can be killed at any moment, and made deaf.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use virtio::chain::Chain;
use virtio::vhost_user::{Connection, Event, Next, Offer};

/// Bytes of the header before each frame (virtio 1.2 §5.1.6).
pub const HEADER: usize = 12;
const ORDERS: u64 = 1000;
const LISTENER: u64 = 1001;
const SOCKET: u64 = 1002;

/// What a backend offers here.
pub fn offer(features: u64, queues: u16) -> Offer {
    Offer {
        features,
        queues,
        in_order: true,
        ..Offer::default()
    }
}

#[derive(Debug, Default)]
struct Told {
    ends: bool,
    deaf: bool,
    /// Frames that are taken and not returned.
    holds: bool,
    /// Frames for the guest, on the first ring.
    sends: Vec<Vec<u8>>,
}

/// What a backend has seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The connection is there.
    pub connected: bool,
    /// Rings that run.
    pub running: BTreeSet<u16>,
    /// Frames from the guest, by ring.
    pub frames: BTreeMap<u16, Vec<Vec<u8>>>,
    /// The features that were agreed upon.
    pub features: u64,
}

/// A backend. When dropped it is gone at once, as if killed.
pub struct Backend {
    told: Arc<Mutex<Told>>,
    seen: Arc<Mutex<Seen>>,
    bell: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// Listens at this path, in the place of whoever did before. `answer` says what comes back for a frame.
    pub fn start(
        path: &Path,
        offer: Offer,
        answer: impl FnMut(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap());
        let (told, seen) = <(Arc<Mutex<Told>>, Arc<Mutex<Seen>>)>::default();
        let mut server = Server {
            listener,
            offer,
            answer,
            told: told.clone(),
            seen: seen.clone(),
            bell: bell.clone(),
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap(),
            connection: None,
        };
        let thread = Some(std::thread::spawn(move || server.run()));
        Backend {
            told,
            seen,
            bell,
            thread,
        }
    }

    /// What it has seen.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.told.lock().unwrap());
        self.bell.write(1).unwrap();
    }

    /// From now on it takes frames and does not return them.
    pub fn hold(&self) {
        self.tell(|told| told.holds = true);
    }

    /// From now on it hears nothing, and does nothing.
    pub fn be_deaf(&self) {
        self.tell(|told| told.deaf = true);
    }

    /// Gives the guest a frame.
    pub fn send(&self, frame: Vec<u8>) {
        self.tell(|told| told.sends.push(frame));
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.tell(|told| told.ends = true);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(
            std::thread::panicking() || matches!(ended, Some(Ok(()))),
            "the backend failed"
        );
    }
}

struct Server<F> {
    listener: UnixListener,
    offer: Offer,
    answer: F,
    told: Arc<Mutex<Told>>,
    seen: Arc<Mutex<Seen>>,
    bell: Arc<EventFd>,
    epoll: Epoll,
    connection: Option<Connection>,
}

impl<F: FnMut(&[u8]) -> Vec<Vec<u8>>> Server<F> {
    fn run(&mut self) {
        let level = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        self.epoll.add(self.bell.as_fd(), level(ORDERS)).unwrap();
        self.epoll.add(&self.listener, level(LISTENER)).unwrap();
        loop {
            let mut events = [EpollEvent::empty(); 8];
            let count = self.epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
            for event in &events[..count] {
                match event.data() {
                    ORDERS => drop(self.bell.read()),
                    LISTENER => self.accept(),
                    SOCKET => self.converse(),
                    _ => {}
                }
            }
            let sends = {
                let mut told = self.told.lock().unwrap();
                if told.ends {
                    return;
                }
                if told.deaf {
                    drop(told);
                    while !self.told.lock().unwrap().ends {
                        std::thread::sleep(std::time::Duration::from_millis(5));
                    }
                    return;
                }
                std::mem::take(&mut told.sends)
            };
            for frame in sends {
                self.give(0, &frame);
            }
            self.work();
        }
    }

    fn accept(&mut self) {
        let (stream, _) = self.listener.accept().unwrap();
        let connection = Connection::new(stream, self.offer.clone()).unwrap();
        self.epoll.delete(&self.listener).unwrap();
        let level = EpollEvent::new(EpollFlags::EPOLLIN, SOCKET);
        self.epoll.add(connection.as_fd(), level).unwrap();
        self.connection = Some(connection);
        self.seen.lock().unwrap().connected = true;
    }

    fn watch(&mut self, on: bool) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        for index in (1..connection.ring_count()).step_by(2) {
            let Some(kick) = connection.ring(index).kick_fd() else {
                continue;
            };
            if on {
                let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
                self.epoll.add(kick, EpollEvent::new(edge, index.into())).unwrap();
            } else {
                let _ = self.epoll.delete(kick);
            }
        }
    }

    fn converse(&mut self) {
        self.watch(false);
        let Some(connection) = &mut self.connection else {
            return;
        };
        // Whoever has an answer finds here what was done for it.
        let mut seen = self.seen.lock().unwrap();
        let gone = loop {
            match connection.look() {
                Ok(Next::Request { .. }) => {}
                Ok(Next::Idle) => break false,
                Err(_) => break true,
            }
            match connection.handle() {
                Ok(Event::Ring(index)) if index % 2 == 0 => {
                    let (memory, ring) = connection.memory_and_ring(index);
                    ring.disable_kicks(memory);
                }
                Ok(_) => {}
                Err(_) => break true,
            }
        };
        if gone {
            self.epoll.delete(connection.as_fd()).unwrap();
            self.connection = None;
            *seen = Seen::default();
            let level = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
            self.epoll.add(&self.listener, level).unwrap();
            return;
        }
        seen.features = connection.features();
        seen.running = (0..connection.ring_count())
            .filter(|index| connection.ring(*index).running())
            .collect();
        drop(seen);
        self.watch(true);
    }

    /// All frames that the guest has sent.
    fn work(&mut self) {
        let holds = self.told.lock().unwrap().holds;
        let count = self.connection.as_ref().map_or(0, Connection::ring_count);
        for index in (1..count).step_by(2) {
            while let Some((head, frame)) = self.take(index) {
                let mut seen = self.seen.lock().unwrap();
                seen.frames.entry(index).or_default().push(frame.clone());
                drop(seen);
                if holds {
                    continue;
                }
                for answer in (self.answer)(&frame) {
                    self.give(index - 1, &answer);
                }
                if let Some(connection) = &mut self.connection {
                    connection.complete(index, head, 0).unwrap();
                    let (memory, ring) = connection.memory_and_ring(index);
                    ring.notify(memory);
                }
            }
        }
    }

    fn take(&mut self, index: u16) -> Option<(u16, Vec<u8>)> {
        let connection = self.connection.as_mut()?;
        let (memory, ring) = connection.memory_and_ring(index);
        let mut chain = Chain::new();
        while !ring.pop(memory, &mut chain).ok()? {
            if !ring.enable_kicks(memory) {
                return None;
            }
        }
        let mut bytes = vec![0; chain.readable_len() as usize];
        chain.read(memory, 0, &mut bytes).unwrap();
        Some((chain.head(), bytes.split_off(HEADER)))
    }

    /// Without room the frame is lost.
    fn give(&mut self, index: u16, frame: &[u8]) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let (memory, ring) = connection.memory_and_ring(index);
        let mut chain = Chain::new();
        if !ring.pop(memory, &mut chain).unwrap_or(false) {
            return;
        }
        let mut bytes = vec![0; HEADER];
        // One buffer.
        bytes[10] = 1;
        bytes.extend(frame);
        let written = chain.write(memory, 0, &bytes).unwrap();
        ring.push_used(memory, chain.head(), written as u32).unwrap();
        ring.notify(memory);
    }
}
