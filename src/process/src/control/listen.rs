//! Listening sockets, who may connect to them, and a small server.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

use super::{Channel, Error};

/// Connections that [`serve`] holds at a time; a daemon needs one, its successor another.
const MAX_CONNECTIONS: usize = 8;

/// Make a listening socket at this path, in the place of whatever socket was there. Only its owner may connect.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = in_parent(path, UnixListener::bind)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Connect to the socket at this path. Never waits: a child that accepts no more is an error.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    in_parent(path, |address| {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(address)?)?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(stream)
    })
}

/// Socket addresses hold 107 bytes (unix(7)), paths may be longer: go by way of the parent folder's descriptor.
fn in_parent<T>(path: &Path, act: impl Fn(PathBuf) -> io::Result<T>) -> io::Result<T> {
    let invalid = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} names no file", path.display()),
        )
    };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(invalid());
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let folder = openat(
        CWD,
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    act(PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name))
}

/// The peer runs as this process's user or as root.
pub fn check_peer(stream: impl AsFd) -> Result<(), Error> {
    let uid = getsockopt(&stream, PeerCredentials)
        .map_err(io::Error::from)?
        .uid();
    if uid == 0 || uid == nix::unistd::geteuid().as_raw() {
        Ok(())
    } else {
        Err(Error::Stranger(uid))
    }
}

/// Accept a connection and check its peer. `None`: nobody is there (any more) on a listener that does not block.
pub fn accept(listener: &UnixListener) -> Result<Option<UnixStream>, Error> {
    match listener.accept() {
        Ok((stream, _)) => check_peer(&stream).map(|()| Some(stream)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// What a server does after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Wait for the next one.
    Continue,
    /// Answer, then end.
    End,
}

/// Answer requests, one at a time, until a handler says [`Next::End`]. A broken connection is closed; the others go on.
pub fn serve<Q: DeserializeOwned, A: Serialize>(
    listener: &UnixListener,
    handle: impl FnMut(Q, Vec<OwnedFd>) -> (Result<A, String>, Next),
) -> Result<(), Error> {
    serve_until(listener, None, handle)
}

/// The same, but no longer than until `end` can be read.
pub fn serve_until<Q: DeserializeOwned, A: Serialize>(
    listener: &UnixListener,
    end: Option<BorrowedFd<'_>>,
    mut handle: impl FnMut(Q, Vec<OwnedFd>) -> (Result<A, String>, Next),
) -> Result<(), Error> {
    listener.set_nonblocking(true)?;
    let mut channels: Vec<Channel> = Vec::new();
    loop {
        let mut waiting: Vec<PollFd<'_>> = channels
            .iter()
            .map(|c| {
                PollFd::new(
                    c,
                    if c.wants_write() {
                        PollFlags::OUT
                    } else {
                        PollFlags::IN
                    },
                )
            })
            .collect();
        waiting.push(PollFd::new(listener, PollFlags::IN));
        if let Some(end) = &end {
            waiting.push(PollFd::new(end, PollFlags::IN));
        }
        match poll(&mut waiting, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let ready: Vec<bool> = waiting.iter().map(|w| !w.revents().is_empty()).collect();
        if end.is_some() && ready.last() == Some(&true) {
            return Ok(());
        }
        let mut index = 0;
        let mut ends = false;
        channels.retain_mut(|channel| {
            let is_ready = ready[index];
            index += 1;
            if ends || !is_ready {
                return true;
            }
            let step = channel.read::<Q>().and_then(|request| {
                if let Some((request, descriptors)) = request {
                    let (answer, next) = handle(request.body, descriptors);
                    ends = next == Next::End;
                    channel.reply(request.id, answer)?;
                }
                Ok(())
            });
            match step {
                Ok(()) => true,
                Err(Error::Closed) => false,
                Err(error) => {
                    warn!(%error, "control connection closed");
                    false
                }
            }
        });
        if ends {
            return Ok(());
        }
        if ready[index] {
            match accept(listener) {
                Ok(Some(stream)) => {
                    if channels.len() == MAX_CONNECTIONS {
                        channels.remove(0);
                    }
                    channels.push(Channel::new(stream));
                }
                Ok(None) => {}
                Err(error) => warn!(%error, "control connection refused"),
            }
        }
    }
}
