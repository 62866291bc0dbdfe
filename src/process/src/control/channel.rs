//! The answering side of one connection inside someone else's event loop.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use model::control::{Reply, Request};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Error, Reader, Writer};

/// A connection that never blocks. Register its descriptor for reading; while [`Channel::wants_write`], for writing.
///
/// Read the next request only when the reply to the last one is gone: then a client that does not
/// read holds one reply in memory and no more.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    reader: Reader,
    writer: Writer,
}

impl Channel {
    /// Answer over this stream.
    pub fn new(stream: UnixStream) -> Self {
        Channel {
            stream,
            reader: Reader::default(),
            writer: Writer::default(),
        }
    }

    /// The next request, if it is whole and no reply waits to be sent.
    pub fn read<Q: DeserializeOwned>(&mut self) -> Result<Option<(Request<Q>, Vec<OwnedFd>)>, Error> {
        if !self.flush()? {
            return Ok(None);
        }
        self.reader
            .read(&self.stream)?
            .map(|frame| frame.parse())
            .transpose()
    }

    /// Answer the request of this number. True: the answer is sent whole.
    pub fn reply<A: Serialize>(&mut self, id: u64, answer: Result<A, String>) -> Result<bool, Error> {
        self.writer.push(&Reply { id, body: answer }, Vec::new())?;
        self.flush()
    }

    /// Send what waits. True: nothing waits any more.
    pub fn flush(&mut self) -> Result<bool, Error> {
        self.writer.flush(&self.stream)
    }

    /// A reply waits until the client reads.
    pub fn wants_write(&self) -> bool {
        !self.writer.is_empty()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
