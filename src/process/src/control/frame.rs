//! One message as bytes and descriptors, read and written in pieces of whatever size the socket takes.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use model::control::MAX_MESSAGE;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Error, MAX_DESCRIPTORS};

/// Bytes of the length in front of each message.
const HEADER: usize = 4;
/// Memory is taken in steps of this size as bytes arrive, not as the length in front promises them.
const STEP: usize = 256 << 10;

/// A whole message as it came.
#[derive(Debug)]
pub struct Frame {
    /// The JSON text.
    pub bytes: Vec<u8>,
    /// The descriptors beside it, in order; close-on-exec is set.
    pub descriptors: Vec<OwnedFd>,
}

impl Frame {
    /// Read the message.
    pub fn parse<T: DeserializeOwned>(self) -> Result<(T, Vec<OwnedFd>), Error> {
        Ok((serde_json::from_slice(&self.bytes)?, self.descriptors))
    }
}

/// Puts messages together from what a socket has, without ever waiting for more.
///
/// Never reads beyond the message at hand: so descriptors that arrive belong to it.
#[derive(Debug, Default)]
pub struct Reader {
    header: [u8; HEADER],
    header_len: usize,
    body: Vec<u8>,
    body_len: usize,
    descriptors: Vec<OwnedFd>,
}

impl Reader {
    /// Take what the socket has. `None`: the message is not whole yet, poll the socket again.
    /// After an error the connection is of no more use.
    pub fn read(&mut self, socket: impl AsFd) -> Result<Option<Frame>, Error> {
        let socket = socket.as_fd();
        loop {
            if self.header_len < HEADER {
                let Some(n) = receive(socket, &mut self.header[self.header_len..], &mut self.descriptors)?
                else {
                    return Ok(None);
                };
                self.header_len += n;
                continue;
            }
            let expected = u32::from_le_bytes(self.header) as usize;
            if expected > MAX_MESSAGE {
                return Err(Error::TooLarge(expected));
            }
            if self.body_len == expected {
                self.header_len = 0;
                self.body_len = 0;
                return Ok(Some(Frame {
                    bytes: std::mem::take(&mut self.body),
                    descriptors: std::mem::take(&mut self.descriptors),
                }));
            }
            if self.body_len == self.body.len() {
                self.body.resize(expected.min(self.body_len + STEP), 0);
            }
            let Some(n) = receive(socket, &mut self.body[self.body_len..], &mut self.descriptors)? else {
                return Ok(None);
            };
            self.body_len += n;
        }
    }
}

/// Receive some bytes, and keep the descriptors that come with them. `None`: nothing there now.
fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<Option<usize>, Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => return Ok(None),
            other => break other?,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > MAX_DESCRIPTORS {
        return Err(Error::TooManyDescriptors);
    }
    if received.bytes == 0 {
        Err(Error::Closed)
    } else {
        Ok(Some(received.bytes))
    }
}

/// Messages that wait to be sent.
#[derive(Debug, Default)]
pub struct Writer {
    queue: VecDeque<Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<OwnedFd>,
}

impl Writer {
    /// Put a message at the end of the queue.
    pub fn push<T: Serialize>(&mut self, message: &T, descriptors: Vec<OwnedFd>) -> Result<(), Error> {
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(Error::TooManyDescriptors);
        }
        self.queue.push_back(Outgoing {
            bytes: encode(message)?,
            sent: 0,
            descriptors,
        });
        Ok(())
    }

    /// Send what the socket takes. True: all is sent. False: poll the socket for writing.
    pub fn flush(&mut self, socket: impl AsFd) -> Result<bool, Error> {
        let socket = socket.as_fd();
        while let Some(head) = self.queue.front_mut() {
            while head.sent < head.bytes.len() {
                let descriptors: Vec<BorrowedFd<'_>> = head.descriptors.iter().map(|fd| fd.as_fd()).collect();
                match send_some(socket, &head.bytes[head.sent..], &descriptors)? {
                    None => return Ok(false),
                    Some(n) => {
                        head.sent += n;
                        head.descriptors.clear();
                    }
                }
            }
            self.queue.pop_front();
        }
        Ok(true)
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// A message with its length in front.
pub(super) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - HEADER;
    if length > MAX_MESSAGE {
        return Err(Error::TooLarge(length));
    }
    let header = u32::try_from(length).map_err(|_| Error::TooLarge(length))?;
    bytes[..HEADER].copy_from_slice(&header.to_le_bytes());
    Ok(bytes)
}

/// Send some bytes with all descriptors beside them. `None`: the socket's buffer is full.
pub(super) fn send_some(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<Option<usize>, Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Error::TooManyDescriptors);
    }
    loop {
        match sendmsg(
            socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => return Ok(None),
            other => return Ok(Some(other?)),
        }
    }
}
