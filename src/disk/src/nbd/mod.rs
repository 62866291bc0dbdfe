//! A volume served by NBD over a Unix socket, for frontends that must copy into the guest's memory themselves.
//!
//! QEMU's software CPU (TCG) keeps translations of the guest's code and drops them when it sees a write to that memory. What a
//! vhost-user backend writes there it does not see: a page of code that is read from such a disk may run as what it held before.
//! So TCG guests get their disks by NBD, and QEMU does the copying.
//!
//! ```text
//!  main thread     control socket: status, stop
//!  one thread      accepts a client, negotiates, and carries its requests out one after the other
//! ```
//!
//! **Limits** hold a request back before it is carried out ([`crate::limits`]), and so all that come after it.
//!
//! **Death at any moment.** A request that was not answered is sent again by the client to the next process (QEMU's
//! `reconnect-delay`); carrying it out twice is the same as once, for the client holds back what overlaps.

mod protocol;
mod session;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::disk::{DiskRequest, DiskSpec, DiskStatus};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use process::control::{self, Channel};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{Shutdown, shutdown};
use std::os::fd::AsFd;
use tracing::{debug, info, warn};

use crate::crypt::{Cipher, UNIT};
use crate::limits::Turnstile;
use crate::serve::ServeError;

/// Control connections at once: the daemon's, and that of its successor while it takes over.
const MAX_CONTROLS: usize = 4;

/// What both threads see.
#[derive(Debug)]
struct Shared {
    spec: DiskSpec,
    /// The volume's size by now.
    size: AtomicU64,
    file: File,
    cipher: Option<Cipher>,
    limits: Turnstile,
    counters: Counters,
    /// A write waits for space in the pool.
    full: AtomicBool,
    connected: AtomicBool,
    /// Set before the end: no more clients, no more waiting.
    stopping: AtomicBool,
    /// The client that is being served.
    client: Mutex<Option<UnixStream>>,
}

#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    errors: AtomicU64,
}

/// Serves the volume in `file` until [`DiskRequest::Stop`]: a client at the listening socket `socket`, the daemon at the listening
/// socket `control`.
pub fn run(spec: DiskSpec, file: OwnedFd, socket: OwnedFd, control: OwnedFd) -> Result<(), ServeError> {
    let file = File::from(file);
    let has = file.metadata()?.len();
    if has < spec.size {
        return Err(ServeError::Short {
            has,
            asked: spec.size,
        });
    }
    // Buffers are of any alignment here.
    fcntl_setfl(
        &file,
        fcntl_getfl(&file).map_err(std::io::Error::from)? - OFlags::DIRECT,
    )
    .map_err(std::io::Error::from)?;
    info!(volume = %spec.id, engine = "nbd", "serving");
    let shared = Arc::new(Shared {
        size: AtomicU64::new(spec.size),
        cipher: spec.key.as_ref().map(Cipher::new),
        limits: Turnstile::new(&spec.limits),
        spec,
        file,
        counters: Counters::default(),
        full: AtomicBool::new(false),
        connected: AtomicBool::new(false),
        stopping: AtomicBool::new(false),
        client: Mutex::new(None),
    });
    let listener = Arc::new(UnixListener::from(socket));
    let (clients, ours) = (Arc::clone(&shared), Arc::clone(&listener));
    let thread = std::thread::Builder::new()
        .name("nbd".into())
        .spawn(move || session::accept(&ours, &clients))?;
    let obeyed = obey(&shared, &UnixListener::from(control));
    // As a thread of the daemon, too, nothing may hold the volume after this.
    shared.stopping.store(true, Ordering::SeqCst);
    shared.limits.close();
    shutdown(&*listener, Shutdown::Both).map_err(std::io::Error::from)?;
    if let Some(client) = shared.client().take() {
        // It may be gone already.
        let _ = client.shutdown(std::net::Shutdown::Both);
    }
    if thread.join().is_err() {
        warn!(volume = %shared.spec.id, "the thread that served it panicked");
    }
    obeyed?;
    Ok(shared.file.sync_data()?)
}

/// Answers the daemon until it says stop.
fn obey(shared: &Shared, listener: &UnixListener) -> Result<(), ServeError> {
    listener.set_nonblocking(true)?;
    let mut controls: Vec<Channel> = Vec::new();
    loop {
        let ready = {
            let mut fds = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            fds.extend(controls.iter().map(|channel| {
                let wanted = if channel.wants_write() {
                    PollFlags::POLLOUT
                } else {
                    PollFlags::POLLIN
                };
                PollFd::new(channel.as_fd(), wanted)
            }));
            match poll(&mut fds, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                result => result?,
            };
            fds.iter().map(|fd| fd.any().unwrap_or(false)).collect::<Vec<_>>()
        };
        let mut ready = ready.into_iter();
        let knocked = ready.next() == Some(true);
        let mut stop = false;
        controls.retain_mut(|channel| ready.next() != Some(true) || converse(shared, channel, &mut stop));
        if stop {
            return Ok(());
        }
        if knocked {
            match control::accept(listener) {
                Ok(Some(stream)) if controls.len() < MAX_CONTROLS => controls.push(Channel::new(stream)),
                Ok(Some(_)) => warn!("too many control connections"),
                Ok(None) => {}
                Err(error) => warn!(%error, "cannot accept a control connection"),
            }
        }
    }
}

/// Answers what is there; false if the connection ended.
fn converse(shared: &Shared, channel: &mut Channel, stop: &mut bool) -> bool {
    loop {
        match channel.read::<DiskRequest>() {
            Ok(Some((request, _))) => {
                let answer = match request.body {
                    DiskRequest::Status => Ok(shared.status()),
                    DiskRequest::Stop => {
                        *stop = true;
                        Ok(shared.status())
                    }
                    DiskRequest::Resize(size) => shared.resize(size).map(|()| shared.status()),
                    DiskRequest::SetLimits(limits) => {
                        shared.limits.limit(&limits);
                        Ok(shared.status())
                    }
                };
                if let Err(error) = channel.reply(request.id, answer) {
                    debug!(%error, "a control connection ended");
                    return false;
                }
            }
            Ok(None) => return true,
            Err(error) => {
                debug!(%error, "a control connection ended");
                return false;
            }
        }
    }
}

impl Shared {
    /// The least that can be read or written, in bytes, which all is a multiple of.
    fn granularity(&self) -> u32 {
        if self.cipher.is_some() { UNIT as u32 } else { 1 }
    }

    fn client(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file has grown. The protocol has no word for it: the client is sent away, and learns the new size when it comes
    /// again. What it had asked for meanwhile it asks for again.
    fn resize(&self, size: u64) -> Result<(), String> {
        let has = self.file.metadata().map_err(|error| error.to_string())?.len();
        let old = self.size.load(Ordering::SeqCst);
        if !size.is_multiple_of(512) || size < old || size > has {
            return Err(format!(
                "a volume of {old} bytes in a file of {has} cannot become {size} bytes: grow its file first"
            ));
        }
        self.size.store(size, Ordering::SeqCst);
        if size != old
            && let Some(client) = self.client().as_ref()
        {
            // It may be gone already.
            let _ = client.shutdown(std::net::Shutdown::Both);
        }
        Ok(())
    }

    fn status(&self) -> DiskStatus {
        let Counters {
            reads,
            writes,
            flushes,
            read_bytes,
            written_bytes,
            errors,
        } = &self.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (limits, waiting) = self.limits.look();
        DiskStatus {
            connected: self.connected.load(Ordering::Relaxed),
            reads: load(reads),
            writes: load(writes),
            flushes: load(flushes),
            read_bytes: load(read_bytes),
            written_bytes: load(written_bytes),
            errors: load(errors),
            paused: self.full.load(Ordering::Relaxed).then(|| "pool full".to_owned()),
            limits,
            waiting,
        }
    }
}
