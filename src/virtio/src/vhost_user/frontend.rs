//! The frontend's side of vhost-user: a monitor, which has the guest's memory and knows its rings, asks a backend to serve
//! them.
//!
//! The codec is our own, since the `vhost` crate's waits for a reply as long as the backend likes. Here a deadline is set
//! before each conversation, and whatever is asked after that must be answered by then: a backend that is deaf, or that answers one
//! byte at a time, costs no more. After an error the connection is good for nothing; drop it.
//!
//! A backend is told no address of this process: the protocol's "user addresses" are but names by which the ring's parts
//! are found in the memory table, and these here are the guest's physical ones, moved.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect as connect_socket, recv,
    sendmsg, socket,
};
use thiserror::Error;
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;
use vhost::vhost_user::message::FrontendReq as Request;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::feature;
use crate::memory::{MAX_REGIONS, Memory};
use crate::vring::Placement;

/// Code, flags and length of the payload.
const HEADER: usize = 12;
/// Flags: the protocol's version, "this is a reply", "a reply is wanted".
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;
/// All replies that are asked for here have this many bytes.
const PAYLOAD: usize = 8;
/// In the number of a ring: no descriptor comes with it.
const NO_DESCRIPTOR: u64 = 0x100;
/// How user addresses are made of the guest's; above all of these, so that none is 0.
const USER: u64 = 1 << 46;

/// Why a backend does not serve.
#[derive(Debug, Error)]
pub enum FrontendError {
    /// It went away.
    #[error("the backend closed the connection")]
    Closed,
    /// It does not answer, or not in time.
    #[error("the backend does not answer")]
    Deaf,
    /// It said what is no reply to what it was asked.
    #[error("the backend's reply to {0} is none")]
    Reply(&'static str),
    /// It does not do what it was asked.
    #[error("the backend refuses {0}")]
    Refused(&'static str),
    /// It knows no protocol features: rings cannot be enabled one by one.
    #[error("the backend lacks VHOST_USER_F_PROTOCOL_FEATURES")]
    TooOld,
    /// The guest's memory has parts without a file, or too many parts.
    #[error("the guest's memory cannot be shared")]
    Memory,
    /// A system call failed.
    #[error("vhost-user socket: {0}")]
    Os(#[from] Errno),
}

/// A stream to the backend that listens at this path. Does not wait: a backend whose backlog is full has no time.
///
/// # Errors
/// If nobody listens there.
pub fn connect(path: &Path) -> Result<UnixStream, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect_socket(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// A connection to a backend.
#[derive(Debug)]
pub struct Frontend {
    stream: UnixStream,
    deadline: Instant,
    features: u64,
    rings: u16,
    acknowledged: bool,
}

impl Frontend {
    /// Asks the backend at the other end what it offers.
    ///
    /// # Errors
    /// If it is none, or has not answered by `deadline`.
    pub fn greet(stream: UnixStream, deadline: Instant) -> Result<Self, FrontendError> {
        let mut frontend = Frontend {
            stream,
            deadline,
            features: 0,
            rings: 0,
            acknowledged: false,
        };
        frontend.tell(Request::SET_OWNER, "SET_OWNER", &[], &[])?;
        frontend.features = frontend.ask(Request::GET_FEATURES, "GET_FEATURES", &[])?;
        if frontend.features & feature::PROTOCOL_FEATURES == 0 {
            return Err(FrontendError::TooOld);
        }
        let offered = frontend.ask(Request::GET_PROTOCOL_FEATURES, "GET_PROTOCOL_FEATURES", &[])?;
        let wanted = Protocol::MQ | Protocol::REPLY_ACK;
        let protocol = Protocol::from_bits_truncate(offered) & wanted;
        let bits = protocol.bits().to_ne_bytes();
        frontend.tell(
            Request::SET_PROTOCOL_FEATURES,
            "SET_PROTOCOL_FEATURES",
            &bits,
            &[],
        )?;
        frontend.acknowledged = protocol.contains(Protocol::REPLY_ACK);
        frontend.rings = if protocol.contains(Protocol::MQ) {
            let rings = frontend.ask(Request::GET_QUEUE_NUM, "GET_QUEUE_NUM", &[])?;
            // A ring's number is one byte where a descriptor comes with it.
            u16::try_from(rings.min(256)).unwrap_or(256)
        } else {
            2
        };
        Ok(frontend)
    }

    /// What is asked from now on must be answered by then.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// The features that the backend offers.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The most rings that it serves.
    pub fn rings(&self) -> u16 {
        self.rings
    }

    /// The features that the guest's driver accepted of those.
    ///
    /// # Errors
    /// If the backend refuses or fails.
    pub fn set_features(&mut self, features: u64) -> Result<(), FrontendError> {
        let features = features | feature::PROTOCOL_FEATURES;
        self.tell(
            Request::SET_FEATURES,
            "SET_FEATURES",
            &features.to_ne_bytes(),
            &[],
        )
    }

    /// The guest's memory, whole.
    ///
    /// # Errors
    /// If it cannot be shared, or the backend refuses or fails.
    pub fn set_memory(&mut self, memory: &Memory) -> Result<(), FrontendError> {
        let mut payload = vec![0; 8];
        let mut files = Vec::new();
        for region in memory.iter() {
            let file = region.file_offset().ok_or(FrontendError::Memory)?;
            let start = region.start_addr().0;
            for word in [start, region.len(), USER + start, file.start()] {
                payload.extend(word.to_ne_bytes());
            }
            files.push(file.file().as_fd());
        }
        if files.len() > MAX_REGIONS {
            return Err(FrontendError::Memory);
        }
        payload[..4].copy_from_slice(&(files.len() as u32).to_ne_bytes());
        self.tell(Request::SET_MEM_TABLE, "SET_MEM_TABLE", &payload, &files)
    }

    /// Starts a ring, which serves only when it is enabled, too. `placement` is known to lie in memory.
    ///
    /// # Errors
    /// If the backend refuses or fails.
    pub fn start_ring(
        &mut self,
        index: u16,
        placement: &Placement,
        kick: BorrowedFd<'_>,
        call: Option<BorrowedFd<'_>>,
        broken: BorrowedFd<'_>,
    ) -> Result<(), FrontendError> {
        let index = u32::from(index);
        let number = state(index, placement.size.into());
        self.tell(Request::SET_VRING_NUM, "SET_VRING_NUM", &number, &[])?;
        let mut addresses = Vec::from(state(index, 0));
        let at = placement.at;
        for address in [at.descriptors, at.used, at.available].map(|address| USER.wrapping_add(address)) {
            addresses.extend(address.to_ne_bytes());
        }
        addresses.extend(0u64.to_ne_bytes());
        self.tell(Request::SET_VRING_ADDR, "SET_VRING_ADDR", &addresses, &[])?;
        let base = state(index, placement.next.into());
        self.tell(Request::SET_VRING_BASE, "SET_VRING_BASE", &base, &[])?;
        let ring = u64::from(index).to_ne_bytes();
        self.tell(Request::SET_VRING_ERR, "SET_VRING_ERR", &ring, &[broken])?;
        match call {
            Some(call) => self.tell(Request::SET_VRING_CALL, "SET_VRING_CALL", &ring, &[call])?,
            None => {
                let none = (u64::from(index) | NO_DESCRIPTOR).to_ne_bytes();
                self.tell(Request::SET_VRING_CALL, "SET_VRING_CALL", &none, &[])?;
            }
        }
        self.tell(Request::SET_VRING_KICK, "SET_VRING_KICK", &ring, &[kick])
    }

    /// Lets a ring serve, or not.
    ///
    /// # Errors
    /// If the backend refuses or fails.
    pub fn enable_ring(&mut self, index: u16, enable: bool) -> Result<(), FrontendError> {
        let state = state(index.into(), enable.into());
        self.tell(Request::SET_VRING_ENABLE, "SET_VRING_ENABLE", &state, &[])
    }

    /// Stops a ring: the index of the next available chain.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn stop_ring(&mut self, index: u16) -> Result<u16, FrontendError> {
        let index = u32::from(index);
        let answer = self
            .ask(Request::GET_VRING_BASE, "GET_VRING_BASE", &state(index, 0))?
            .to_ne_bytes();
        let [i0, i1, i2, i3, n0, n1, n2, n3] = answer;
        let (ring, next) = (
            u32::from_ne_bytes([i0, i1, i2, i3]),
            u32::from_ne_bytes([n0, n1, n2, n3]),
        );
        match u16::try_from(next) {
            Ok(next) if ring == index => Ok(next),
            _ => Err(FrontendError::Reply("GET_VRING_BASE")),
        }
    }

    /// Waits until the backend has carried out all that it was told.
    ///
    /// # Errors
    /// If it fails.
    pub fn settle(&mut self) -> Result<(), FrontendError> {
        if self.acknowledged {
            return Ok(());
        }
        self.ask(Request::GET_FEATURES, "GET_FEATURES", &[]).map(drop)
    }

    /// The socket became readable while nothing was asked: is the backend still there?
    ///
    /// # Errors
    /// If it is not, or speaks unasked.
    pub fn look(&mut self) -> Result<(), FrontendError> {
        match recv(
            self.stream.as_raw_fd(),
            &mut [0],
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK,
        ) {
            Ok(0) => Err(FrontendError::Closed),
            Ok(_) => Err(FrontendError::Reply("nothing")),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(error) => Err(gone(error)),
        }
    }

    /// Sends a request that has no answer but, where that was agreed on, whether it succeeded.
    fn tell(
        &mut self,
        request: Request,
        name: &'static str,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), FrontendError> {
        let wanted = if self.acknowledged { NEED_REPLY } else { 0 };
        self.send(request, wanted, payload, descriptors)?;
        match self.acknowledged && self.receive(request, name)? != 0 {
            true => Err(FrontendError::Refused(name)),
            false => Ok(()),
        }
    }

    fn ask(&mut self, request: Request, name: &'static str, payload: &[u8]) -> Result<u64, FrontendError> {
        self.send(request, 0, payload, &[])?;
        self.receive(request, name)
    }

    /// The whole message with one call, if the socket has room, as backends expect.
    fn send(
        &mut self,
        request: Request,
        flags: u32,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), FrontendError> {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let head = [request as u32, VERSION | flags, length].map(u32::to_ne_bytes);
        let message = [head.as_flattened(), payload].concat();
        let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let mut done = 0;
        while done < message.len() {
            let control = [ControlMessage::ScmRights(&raw)];
            // Descriptors go with the first byte.
            let control = if done == 0 && !raw.is_empty() {
                &control[..]
            } else {
                &[]
            };
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let rest = [IoSlice::new(&message[done..])];
            match sendmsg::<()>(self.stream.as_raw_fd(), &rest, control, flags, None) {
                Ok(sent) => done += sent,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT)?,
                Err(error) => return Err(gone(error)),
            }
        }
        Ok(())
    }

    fn receive(&mut self, request: Request, name: &'static str) -> Result<u64, FrontendError> {
        let mut reply = [0; HEADER + PAYLOAD];
        let mut done = 0;
        while done < reply.len() {
            match recv(
                self.stream.as_raw_fd(),
                &mut reply[done..],
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(0) => return Err(FrontendError::Closed),
                Ok(received) => done += received,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLIN)?,
                Err(error) => return Err(gone(error)),
            }
        }
        read(&reply, request).ok_or(FrontendError::Reply(name))
    }

    fn wait(&self, flags: PollFlags) -> Result<(), FrontendError> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(FrontendError::Deaf);
            }
            // Rounded up: the end is looked at above.
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.stream.as_fd(), flags)], timeout) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Frontend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The payload of a reply to this request.
fn read(reply: &[u8; HEADER + PAYLOAD], request: Request) -> Option<u64> {
    let word = |at: usize| u32::from_ne_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]]);
    let expected = (request as u32, VERSION | REPLY, PAYLOAD as u32);
    let (_, payload) = reply.split_last_chunk::<PAYLOAD>()?;
    // Of the flags only these three bits mean something in a reply.
    ((word(0), word(4) & 7, word(8)) == expected).then(|| u64::from_ne_bytes(*payload))
}

/// A ring's number, and a number that belongs to it.
fn state(index: u32, number: u32) -> [u8; 8] {
    let [a, b, c, d] = index.to_ne_bytes();
    let [e, f, g, h] = number.to_ne_bytes();
    [a, b, c, d, e, f, g, h]
}

fn gone(error: Errno) -> FrontendError {
    match error {
        Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN => FrontendError::Closed,
        error => error.into(),
    }
}

#[cfg(test)]
mod tests;
