//! The socket device: streams between the guest's ports and Unix sockets.
//!
//! A program on the host connects to the listening socket that the machine was given, says `CONNECT <port>\n`, and hears
//! `OK <port>\n` when the guest has agreed; without that word the connection ends. A guest that connects to a port of the
//! host's reaches the socket `vsock_<port>` in the folder that the machine was given, if there is one.
//!
//! This is what Firecracker's and Cloud Hypervisor's users know, but for the names. Nothing waits for either side: who is not
//! there at once is not there, and who is slow has a bounded buffer.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket};
use serde_json::Value;
use virtio::vsock::{
    self, DEVICE_ID, EVENT, Host, Interest, MAX_CONNECTIONS, MAX_GREETING, MIN_CID, QUEUE_SIZE, QUEUES,
    RECEIVE, Stream, TRANSMIT,
};

use super::worker::{Floor, Post, Service};
use super::{Device, Left, Session, StartError};
use crate::kvm::lifecycle::StateError;

/// Programs that have connected and not said what they want. One more, and the oldest is sent away.
const MAX_GREETERS: usize = 16;
/// How long to wait when a visitor cannot be let in.
const RETRY: Duration = Duration::from_secs(1);
/// Tokens from here on are greeters', lower ones connections'.
const GREETERS: u32 = MAX_CONNECTIONS as u32;
/// The listening socket's.
const LISTENER: u32 = GREETERS + MAX_GREETERS as u32;

/// A machine's socket device.
#[derive(Debug)]
pub struct Vsock {
    /// The guest's address, 3 at least, and not 2³² - 1.
    pub cid: u32,
    /// Where programs on the host ask for the guest's ports, if they may.
    pub listener: Option<UnixListener>,
    /// Where the sockets are that the guest may connect to, if there are any.
    pub folder: Option<PathBuf>,
}

impl Vsock {
    /// Its address can be a guest's.
    pub(in crate::kvm) fn is_sound(&self) -> bool {
        (MIN_CID..u32::MAX).contains(&self.cid)
    }
}

/// The device.
pub(in crate::kvm) struct VsockDevice {
    post: Post<Server>,
    cid: u32,
}

/// A program on the host.
struct Socket(UnixStream);

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Whoever runs the machine may not ignore SIGPIPE.
        Ok(send(self.0.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Socket {
    fn end(&mut self) {
        // The other end may have gone.
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

struct Dialler(Option<PathBuf>);

impl Dialler {
    fn connect(&self, port: u32) -> io::Result<Socket> {
        let folder = self.0.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let address = UnixAddr::new(&folder.join(format!("vsock_{port}")))?;
        // Of a Unix socket that does not wait, this says at once whether there is a place in the listener's queue.
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(socket.as_raw_fd(), &address)?;
        Ok(Socket(socket.into()))
    }
}

impl Host for Dialler {
    type Stream = Socket;

    fn dial(&mut self, port: u32) -> Option<Socket> {
        self.connect(port)
            .inspect_err(|error| tracing::debug!(%error, port, "the guest's connection is refused"))
            .ok()
    }
}

/// A program that has not said all of what it wants.
struct Greeter {
    token: u32,
    stream: UnixStream,
    said: Vec<u8>,
}

struct Server {
    vsock: vsock::Vsock<Dialler>,
    listener: Option<UnixListener>,
    /// The oldest first.
    greeters: VecDeque<Greeter>,
    /// For what each connection's stream is watched, with its number.
    watched: Vec<Option<(u64, Interest)>>,
    /// Since when the listening socket is not watched.
    deaf: Option<Instant>,
}

impl VsockDevice {
    /// For this guest.
    ///
    /// # Errors
    /// The system's answer.
    pub(in crate::kvm) fn new(spec: Vsock) -> io::Result<Self> {
        if let Some(listener) = &spec.listener {
            listener.set_nonblocking(true)?;
        }
        let server = Server {
            vsock: vsock::Vsock::new(spec.cid, Dialler(spec.folder)),
            listener: spec.listener,
            greeters: VecDeque::new(),
            watched: Vec::new(),
            deaf: None,
        };
        Ok(VsockDevice {
            post: Post::new("vsock", server),
            cid: spec.cid,
        })
    }
}

impl Greeter {
    /// Hear what it says, but nothing beyond the line. The port that it wants, when it has said so.
    fn hear(&mut self) -> io::Result<Option<u32>> {
        while self.said.last() != Some(&b'\n') {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if self.said.len() < MAX_GREETING => self.said.push(byte[0]),
                Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let port = vsock::greeting(&self.said);
        port.map(Some).ok_or(io::ErrorKind::InvalidData.into())
    }
}

impl Server {
    /// Somebody is at the door. One at a time: the socket says so again while there are more.
    fn welcome(&mut self, floor: &Floor) {
        let Some(listener) = &self.listener else { return };
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                tracing::debug!(%error, "a visitor of the guest's cannot be let in");
                floor.unwatch(listener.as_fd());
                self.deaf = Some(Instant::now());
                return;
            }
        };
        if self.greeters.len() >= MAX_GREETERS {
            self.greeters.pop_front();
        }
        let mut tokens = GREETERS..LISTENER;
        let free = tokens.find(|token| self.greeters.iter().all(|greeter| greeter.token != *token));
        let Some(token) = free else { return };
        let watched = stream
            .set_nonblocking(true)
            .and_then(|()| floor.watch(stream.as_fd(), token));
        if let Err(error) = watched {
            tracing::warn!(%error, "a visitor of the guest's cannot be watched");
            return;
        }
        self.greeters.push_back(Greeter {
            token,
            stream,
            said: Vec::new(),
        });
    }

    /// A visitor has said something.
    fn greet(&mut self, floor: &Floor, token: u32) {
        let Some(at) = self.greeters.iter().position(|greeter| greeter.token == token) else {
            return;
        };
        let heard = self.greeters[at].hear();
        if matches!(heard, Ok(None)) {
            return;
        }
        let Some(greeter) = self.greeters.remove(at) else {
            return;
        };
        floor.unwatch(greeter.stream.as_fd());
        match heard {
            Ok(Some(port)) => {
                self.vsock.accept(Socket(greeter.stream), port);
            }
            other => tracing::debug!(?other, "a visitor of the guest's is not understood"),
        }
    }

    /// Watch each stream for what it is waited for, and no more: one that is watched for nothing still says that it has ended.
    fn follow(&mut self, floor: &Floor) {
        for ((slot, state), token) in self.vsock.interests().enumerate().zip(0u32..) {
            if self.watched.len() <= slot {
                self.watched.push(None);
            }
            let watched = &mut self.watched[slot];
            let Some((stream, serial, interest)) = state else {
                // A stream that was closed is not watched any more.
                *watched = None;
                continue;
            };
            let before = watched.filter(|(before, _)| *before == serial);
            let before = before.map(|(_, before)| before).unwrap_or_default();
            *watched = Some((serial, interest));
            if before == interest {
                continue;
            }
            let descriptor = stream.0.as_fd();
            if interest == Interest::default() {
                floor.unwatch(descriptor);
                continue;
            }
            let mut events = EpollFlags::empty();
            events.set(EpollFlags::EPOLLIN, interest.read);
            events.set(EpollFlags::EPOLLOUT, interest.write);
            if let Err(error) = floor.watch_for(descriptor, token, events) {
                tracing::warn!(%error, "a guest's stream cannot be watched");
            }
        }
    }

    /// There was no descriptor or memory for a visitor, who is still there: look again later, not at once.
    fn listen_again(&mut self, floor: &Floor) -> Option<Duration> {
        let waited = self.deaf?.elapsed();
        if waited < RETRY {
            return Some(RETRY - waited);
        }
        self.deaf = None;
        if let Some(listener) = &self.listener
            && let Err(error) = floor.watch(listener.as_fd(), LISTENER)
        {
            tracing::warn!(%error, "the guest's door cannot be watched");
        }
        None
    }
}

impl Service for Server {
    /// It connects to sockets, and accepts connections.
    const MODEST: bool = false;

    fn begin(&mut self, floor: &mut Floor) {
        // Watched anew, since the watch is.
        self.watched.clear();
        self.deaf = None;
        let mut watched = self
            .listener
            .as_ref()
            .map_or(Ok(()), |listener| floor.watch(listener.as_fd(), LISTENER));
        for greeter in &self.greeters {
            watched = watched.and_then(|()| floor.watch(greeter.stream.as_fd(), greeter.token));
        }
        if let Err(error) = watched {
            tracing::warn!(%error, "the guest's door cannot be watched");
        }
        // No chain is ever left.
        for (ring, taken) in floor.rings.iter_mut().zip(&floor.taken) {
            if !taken.is_empty() {
                ring.break_ring();
            }
        }
    }

    fn serve(&mut self, floor: &mut Floor, index: usize) -> bool {
        let memory = floor.memory.clone();
        let ring = &mut floor.rings[index];
        let more = match index {
            TRANSMIT => self.vsock.transmit(ring, &memory),
            RECEIVE => {
                let choked = self.vsock.is_choked();
                let more = self.vsock.receive(ring, &memory);
                if choked && !self.vsock.is_choked() {
                    floor.mark(TRANSMIT);
                }
                more
            }
            EVENT => self.vsock.tell_events(ring, &memory).map(|()| false),
            _ => Ok(false),
        };
        // What the guest sent may have an answer.
        if index == TRANSMIT && self.vsock.has_something() {
            floor.mark(RECEIVE);
        }
        more.unwrap_or_else(|error| {
            tracing::debug!(%error, "the guest's sockets");
            false
        })
    }

    fn wake(&mut self, floor: &mut Floor, token: u32) {
        match token {
            LISTENER => self.welcome(floor),
            GREETERS.. => self.greet(floor, token),
            // Which of both it is, the stream will tell; its end is either.
            slot => {
                let watched = self.watched.get(slot as usize).copied().flatten();
                if let Some((_, watched)) = watched {
                    self.vsock.ready(slot as usize, watched);
                }
            }
        }
        if self.vsock.has_something() {
            floor.mark(RECEIVE);
        }
    }

    fn rest(&mut self, floor: &mut Floor) -> Option<Duration> {
        self.follow(floor);
        self.listen_again(floor)
    }
}

impl Device for VsockDevice {
    fn name(&self) -> &str {
        self.post.name()
    }

    fn id(&self) -> u16 {
        DEVICE_ID
    }

    /// Simple communication controllers, others.
    fn class(&self) -> u32 {
        0x07_8000
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES.into()]
    }

    /// `guest_cid` (§5.10.4).
    fn config(&self) -> Vec<u8> {
        u64::from(self.cid).to_le_bytes().to_vec()
    }

    fn start(&self, session: Session) -> Result<(), StartError> {
        self.post.start(session)
    }

    fn stop(&self) -> Vec<Left> {
        self.post.stop()
    }

    fn reset(&self) {
        self.post.call(|server, _| server.vsock.reset());
    }

    /// Connections are this host's, and so is the address: nothing of them can be saved.
    fn restore(&self, state: &Value) -> Result<(), StateError> {
        if !state.is_null() {
            return Err(StateError::Malformed("sockets have no state".into()));
        }
        self.post.call(|server, _| server.vsock.lose());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(folder: Option<PathBuf>) -> VsockDevice {
        let spec = Vsock {
            cid: 3,
            listener: None,
            folder,
        };
        assert!(spec.is_sound());
        VsockDevice::new(spec).unwrap()
    }

    #[test]
    fn a_socket_is_dialled_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let dialler = Dialler(Some(folder.path().into()));
        assert!(Dialler(None).connect(5).is_err() && dialler.connect(5).is_err());
        let listener = UnixListener::bind(folder.path().join("vsock_5")).unwrap();
        let mut sockets = Vec::new();
        // Nobody accepts: at some time the queue is full, and that is known at once.
        let error = loop {
            match dialler.connect(5) {
                Ok(socket) => sockets.push(socket),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let (mut there, _) = listener.accept().unwrap();
        let first = &mut sockets[0];
        assert_eq!(
            first.read(&mut [0]).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        first.write_all(b"hello").unwrap();
        first.end();
        let mut said = String::new();
        there.read_to_string(&mut said).unwrap();
        assert_eq!(said, "hello");
        drop(there);
        assert!(first.write(b"x").is_err(), "and no signal");
        std::fs::remove_file(folder.path().join("vsock_5")).unwrap();
        assert!(dialler.connect(5).is_err());
        // Longer than a socket's address can be.
        let far = Dialler(Some(folder.path().join("x".repeat(200))));
        assert!(far.connect(5).is_err());
    }

    #[test]
    fn a_greeting_is_read_up_to_its_end() {
        let greet = |text: &[u8]| {
            let (mut here, there) = UnixStream::pair().unwrap();
            there.set_nonblocking(true).unwrap();
            here.write_all(text).unwrap();
            drop(here);
            let mut greeter = Greeter {
                token: 0,
                stream: there,
                said: Vec::new(),
            };
            let port = greeter.hear();
            let mut rest = Vec::new();
            let _ = greeter.stream.read_to_end(&mut rest);
            (port.ok().flatten(), rest)
        };
        assert_eq!(greet(b"CONNECT 22\nSSH"), (Some(22), b"SSH".to_vec()));
        assert_eq!(greet(b"CONNECT 22").0, None);
        assert_eq!(greet(&[b'x'; 1000]).0, None);
        assert_eq!(greet(b"\n").0, None);
    }

    #[test]
    fn connections_are_not_saved_and_their_loss_is() {
        let device = device(None);
        assert_eq!(device.config(), [3, 0, 0, 0, 0, 0, 0, 0]);
        assert!(device.save().is_null());
        device.restore(&device.save()).unwrap();
        device.restore(&serde_json::json!({})).unwrap_err();
        device.reset();
    }
}
