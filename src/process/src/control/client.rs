//! The asking side: blocking, every operation with a deadline.

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use model::control::{Reply, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frame::{encode, send_some};
use super::{Error, Frame, MAX_DESCRIPTORS, Reader, check_peer, listen};

/// A blocking connection that carries messages both ways.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    reader: Reader,
    timeout: Duration,
}

impl Connection {
    /// Talk over this stream; every message has to be through within the time-out.
    pub fn new(stream: UnixStream, timeout: Duration) -> Self {
        Connection {
            stream,
            reader: Reader::default(),
            timeout,
        }
    }

    /// Connect to a socket by its path and check who listens there.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, Error> {
        let stream = listen::connect(path)?;
        check_peer(&stream)?;
        Ok(Connection::new(stream, timeout))
    }

    /// From now on every message has to be through within this time.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Send one message with these descriptors beside it.
    pub fn send<T: Serialize>(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(Error::TooManyDescriptors);
        }
        let bytes = encode(message)?;
        let deadline = Instant::now() + self.timeout;
        let mut sent = 0;
        while sent < bytes.len() {
            let beside = if sent == 0 { descriptors } else { &[] };
            match send_some(self.stream.as_fd(), &bytes[sent..], beside)? {
                Some(n) => sent += n,
                None => self.wait(PollFlags::OUT, deadline)?,
            }
        }
        Ok(())
    }

    /// Wait for one message.
    pub fn recv<T: DeserializeOwned>(&mut self) -> Result<(T, Vec<OwnedFd>), Error> {
        self.recv_frame()?.parse()
    }

    /// Wait for one message, as it is.
    pub fn recv_frame(&mut self) -> Result<Frame, Error> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match self.reader.read(&self.stream)? {
                Some(frame) => return Ok(frame),
                None => self.wait(PollFlags::IN, deadline)?,
            }
        }
    }

    fn wait(&self, events: PollFlags, deadline: Instant) -> Result<(), Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&self.stream, events)], Some(&timeout)) {
            Ok(0) => Err(Error::TimedOut(self.timeout)),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Asks questions of type `Q` and gets answers of type `A`.
#[derive(Debug)]
pub struct Client<Q, A> {
    connection: Connection,
    last_id: u64,
    types: PhantomData<fn(Q) -> A>,
}

impl<Q: Serialize, A: DeserializeOwned> Client<Q, A> {
    /// Ask over this connection.
    pub fn new(connection: Connection) -> Self {
        Client {
            connection,
            last_id: 0,
            types: PhantomData,
        }
    }

    /// Connect to a child's control socket.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, Error> {
        Ok(Client::new(Connection::connect(path, timeout)?))
    }

    /// From now on every answer has to come within this time.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.connection.set_timeout(timeout);
    }

    /// Ask, hand over descriptors, and wait for the answer. Replies to earlier questions that timed out are skipped.
    pub fn call(&mut self, question: &Q, descriptors: &[BorrowedFd<'_>]) -> Result<A, Error> {
        self.last_id += 1;
        let id = self.last_id;
        self.connection
            .send(&Request { id, body: question }, descriptors)?;
        loop {
            let (reply, _): (Reply<A>, _) = self.connection.recv()?;
            if reply.id == id {
                return reply.body.map_err(Error::Refused);
            }
            if reply.id > id {
                return Err(Error::OutOfStep {
                    expected: id,
                    got: reply.id,
                });
            }
        }
    }
}
