//! One connection of a frontend.

use std::{
    io::IoSliceMut,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessageOwned, MsgFlags, recv, recvmsg, send},
};
use vhost::vhost_user::{
    BackendReqHandler, Error as Fault, VhostUserProtocolFeatures as Protocol,
    message::{FrontendReq, MAX_MSG_SIZE},
};

use super::{Error, Event, Offer, device::Device};
use crate::{
    chain::Chain,
    inflight::InflightQueue,
    memory::Memory,
    vring::{RingError, Vring},
};

const HEADER: usize = 12;

/// What the frontend wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing: wait until the socket is readable.
    Idle,
    /// A request is there: call [`Connection::handle`].
    Request {
        /// It stops these rings: finish what they have in flight first.
        stops: Option<Stops>,
    },
}

/// Rings that a request is about to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stops {
    /// One ring. The index has been checked.
    Ring(u16),
    /// All rings.
    All,
}

/// A frontend's connection, with everything that it set up. See the [module](super).
pub struct Connection {
    stream: UnixStream,
    handler: BackendReqHandler<Mutex<Device>>,
    /// Where `handler` looks for the device; it holds a placeholder except within [`Connection::handle`].
    slot: Arc<Mutex<Device>>,
    device: Device,
    /// The frontend's socket for requests of the backend.
    requests: Option<OwnedFd>,
}

impl Connection {
    /// Takes over an accepted stream.
    pub fn new(stream: UnixStream, offer: Offer) -> Result<Self, Error> {
        stream.set_nonblocking(false).map_err(io_error)?;
        let slot = Arc::new(Mutex::new(Device::placeholder()));
        let own = stream.try_clone().map_err(io_error)?;
        Ok(Self {
            stream: own,
            handler: BackendReqHandler::from_stream(stream, Arc::clone(&slot)),
            slot,
            device: Device::new(offer)?,
            requests: None,
        })
    }

    /// Looks at what the frontend wants, without taking it.
    ///
    /// # Errors
    /// Any error ends the connection.
    pub fn look(&mut self) -> Result<Next, Error> {
        let Some((code, index)) = self.peek()? else {
            return Ok(Next::Idle);
        };
        // A reply always fits when this holds, since the kernel calls a socket writable while three quarters of its buffer are free.
        if !self.ready(PollFlags::POLLOUT)? {
            return Err(Error::Stalled);
        }
        let stops = match FrontendReq::try_from(code) {
            Ok(FrontendReq::GET_VRING_BASE) => index
                .filter(|i| *i < u32::from(self.device.offer.queues))
                .map(|i| Stops::Ring(i as u16)),
            Ok(FrontendReq::RESET_OWNER | FrontendReq::RESET_DEVICE) => Some(Stops::All),
            _ => None,
        };
        Ok(Next::Request { stops })
    }

    /// Carries out the request that [`Connection::look`] announced.
    ///
    /// # Errors
    /// Any error ends the connection.
    pub fn handle(&mut self) -> Result<Event, Error> {
        self.device.event = Event::Other;
        if let Some(event) = self.early_enable()? {
            return Ok(event);
        }
        std::mem::swap(&mut self.device, &mut *lock(&self.slot));
        let result = self.handler.handle_request();
        std::mem::swap(&mut self.device, &mut *lock(&self.slot));
        match result {
            Ok(()) => Ok(self.device.event),
            Err(Fault::Disconnected) => Err(Error::Closed),
            Err(error) => Err(error.into()),
        }
    }

    /// The virtio features that the guest's driver and the device agreed on.
    pub fn features(&self) -> u64 {
        self.device.features
    }

    /// The guest's memory as it is now.
    pub fn memory(&self) -> &Arc<Memory> {
        self.device.memory.memory()
    }

    /// Rings of the device.
    pub fn ring_count(&self) -> u16 {
        self.device.offer.queues
    }

    /// A ring.
    ///
    /// # Panics
    /// If the device has no such ring. Indices that this connection reported are always valid.
    pub fn ring(&mut self, index: u16) -> &mut Vring {
        &mut self.device.rings[usize::from(index)]
    }

    /// Memory and ring together.
    ///
    /// # Panics
    /// If the device has no such ring.
    pub fn memory_and_ring(&mut self, index: u16) -> (&Arc<Memory>, &mut Vring) {
        (
            self.device.memory.memory(),
            &mut self.device.rings[usize::from(index)],
        )
    }

    /// The requests that a predecessor took from a ring and did not complete, in their order; empties the list. Read each
    /// with [`Vring::load`], carry it out, and return it with [`Connection::complete`].
    pub fn take_recovered(&mut self, index: u16) -> Vec<u16> {
        self.device
            .recovered
            .get_mut(usize::from(index))
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// [`Vring::pop`], noted in the inflight record if there is one.
    pub fn take(&mut self, index: u16, chain: &mut Chain) -> Result<bool, RingError> {
        let i = usize::from(index);
        let found = self.device.rings[i].pop(self.device.memory.memory(), chain)?;
        if found && let Some(inflight) = &mut self.device.inflight[i] {
            inflight.begin(chain.head());
        }
        Ok(found)
    }

    /// [`Vring::push_used`], noted in the inflight record if there is one.
    pub fn complete(&mut self, index: u16, head: u16, written: u32) -> Result<(), RingError> {
        let i = usize::from(index);
        let ring = &mut self.device.rings[i];
        if !ring.started() {
            return Ok(());
        }
        let inflight: &mut Option<InflightQueue> = &mut self.device.inflight[i];
        if let Some(inflight) = inflight {
            inflight.before_used(head);
        }
        ring.push_used(self.device.memory.memory(), head, written)?;
        if let Some(inflight) = inflight {
            let used = virtio_queue::QueueT::next_used(ring.queue());
            inflight.after_used(head, used);
        }
        Ok(())
    }

    /// An inflight record is kept for this ring, so requests that cannot complete may be left in it.
    pub fn tracks_inflight(&self, index: u16) -> bool {
        self.device
            .inflight
            .get(usize::from(index))
            .is_some_and(Option::is_some)
    }

    /// The configuration space.
    pub fn config(&self) -> &[u8] {
        &self.device.offer.config
    }

    /// Replaces the configuration space and tells the guest, if the frontend listens.
    pub fn change_config(&mut self, config: Vec<u8>) -> Result<(), Error> {
        self.device.offer.config = config;
        let Some(socket) = &self.requests else {
            return Ok(());
        };
        // CONFIG_CHANGE_MSG, protocol version 1, no reply wanted, no payload.
        let message: Vec<u8> = [2u32, 1, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(socket.as_raw_fd(), &message, flags) {
            Ok(_) => Ok(()),
            Err(Errno::EAGAIN) => Err(Error::Stalled),
            Err(error) => Err(error.into()),
        }
    }

    /// Carries out `SET_VRING_ENABLE` if it comes before `SET_FEATURES`, as it does from QEMU for a network device when the
    /// guest's driver has set its features. The protocol allows it once protocol features are agreed on; the `vhost` crate refuses it.
    fn early_enable(&mut self) -> Result<Option<Event>, Error> {
        const SIZE: usize = HEADER + 8;
        const NEED_REPLY: u32 = 8;
        const REPLY: u32 = 4;
        if self.device.features & crate::feature::PROTOCOL_FEATURES != 0 {
            return Ok(None);
        }
        let mut message = [0u8; SIZE];
        let fd = self.stream.as_raw_fd();
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let n = match recv(fd, &mut message, flags) {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            other => other?,
        };
        let word =
            |at: usize| u32::from_ne_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
        let (code, flags, size, index, enable) = (word(0), word(4), word(8), word(12), word(16));
        if n < SIZE || code != FrontendReq::SET_VRING_ENABLE as u32 || size as usize != SIZE - HEADER {
            return Ok(None);
        }
        recv(fd, &mut message, MsgFlags::MSG_DONTWAIT)?;
        let ring = self.device.rings.get_mut(index as usize);
        let valid = ring.is_some() && enable <= 1;
        if let Some(ring) = ring {
            ring.set_enabled(enable == 1);
        }
        if flags & NEED_REPLY != 0 && self.device.protocol.contains(Protocol::REPLY_ACK) {
            let header = [code, (flags & 3) | REPLY, 8].map(u32::to_ne_bytes).concat();
            let reply = [header, u64::from(!valid).to_ne_bytes().to_vec()].concat();
            match send(fd, &reply, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => {}
                Err(Errno::EAGAIN) => return Err(Error::Stalled),
                Err(error) => return Err(error.into()),
            }
        }
        if !valid {
            return Err(Error::Message);
        }
        Ok(Some(Event::Ring(index as u16)))
    }

    /// The code of the next message and the first word of its payload, if the message is there, whole.
    ///
    /// Frontends send each message with one system call, and the kernel keeps these together; a message that is there in part is
    /// somebody's attempt to make us wait.
    fn peek(&mut self) -> Result<Option<(u32, Option<u32>)>, Error> {
        let mut buffer = [0u8; HEADER + MAX_MSG_SIZE];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let fd = self.stream.as_raw_fd();
        let n = loop {
            match recv(fd, &mut buffer[..HEADER], flags) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::ECONNRESET) => return Err(Error::Closed),
                other => break other?,
            }
        };
        if n == 0 {
            return Err(Error::Closed);
        }
        if n < HEADER {
            return Err(Error::Message);
        }
        let word =
            |at: usize| u32::from_ne_bytes([buffer[at], buffer[at + 1], buffer[at + 2], buffer[at + 3]]);
        let (code, size) = (word(0), word(8) as usize);
        if size > MAX_MSG_SIZE {
            return Err(Error::Message);
        }
        if recv(fd, &mut buffer[..HEADER + size], flags)? < HEADER + size {
            return Err(Error::Message);
        }
        if code == FrontendReq::SET_BACKEND_REQ_FD as u32 {
            self.requests = self.peek_descriptor()?;
        }
        let index = (size >= 4).then(|| {
            u32::from_ne_bytes([
                buffer[HEADER],
                buffer[HEADER + 1],
                buffer[HEADER + 2],
                buffer[HEADER + 3],
            ])
        });
        Ok(Some((code, index)))
    }

    /// A duplicate of the descriptor that the next message carries.
    #[allow(unsafe_code)]
    fn peek_descriptor(&self) -> Result<Option<OwnedFd>, Error> {
        let mut byte = [0u8; 1];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 8]);
        let mut iov = [IoSliceMut::new(&mut byte)];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.stream.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
        let mut found = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
                found.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        Ok(found.pop())
    }

    fn ready(&self, flags: PollFlags) -> Result<bool, Error> {
        let mut fds = [PollFd::new(self.stream.as_fd(), flags)];
        loop {
            match poll(&mut fds, PollTimeout::ZERO) {
                Err(Errno::EINTR) => {}
                result => return Ok(result? > 0 && fds[0].revents().is_some_and(|r| r.contains(flags))),
            }
        }
    }

    /// The protocol features that frontend and backend agreed on.
    pub fn protocol(&self) -> Protocol {
        self.device.protocol
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("fd", &self.stream.as_raw_fd())
            .finish_non_exhaustive()
    }
}

fn lock(slot: &Mutex<Device>) -> MutexGuard<'_, Device> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

fn io_error(error: std::io::Error) -> Error {
    Error::Os(Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}
