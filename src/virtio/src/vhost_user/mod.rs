//! The backend's side of vhost-user: a device that lives in a child process, used by QEMU or another monitor. (The other
//! side, a monitor's, is [`frontend`].)
//!
//! One [`Connection`] per accepted stream. The owner drives it from its own event loop; nothing here blocks or makes
//! threads, so one worker can own many connections, and a frontend that falls silent in the middle of a message or does not read its
//! replies is dropped, not waited for.
//!
//! ```ignore
//! let offer = Offer { features: VIRTIO_NET_F_MRG_RXBUF | …, queues: 2, queue_size: 1024, in_order: true, sealed_memory: true, ..Offer::default() };
//! let mut connection = Connection::new(listener.accept()?.0, offer)?;
//! epoll.add(connection.as_fd(), level_triggered)?;
//! // When it is readable:
//! while let Next::Request { stops } = connection.look()? {
//!     if let Some(stops) = stops { /* finish what is in flight on these rings: see below */ }
//!     /* take the rings' kick descriptors out of epoll */
//!     match connection.handle()? {
//!         Event::Ring(i) => { /* look at the ring at once */ }
//!         Event::Stopped(i) => { /* its kick descriptor is closed */ }
//!         Event::Reset => { /* all rings are stopped */ }
//!         Event::Memory | Event::Config { .. } | Event::Other => {}
//!     }
//! }
//! /* put the kick descriptors that there are now into epoll, edge-triggered */
//! // When a ring's kick descriptor fires, or after Event::Ring:
//! let (memory, ring) = connection.memory_and_ring(0);
//! // … as in the documentation of `Vring`.
//! ```
//! Any error of [`Connection::look`] or [`Connection::handle`] ends the connection: drop it and accept the next one (the
//! frontend reconnects). Take the kick descriptors out of epoll before [`Connection::handle`] and before dropping the connection: the
//! frontend holds the same eventfds, so closing ours would leave them in epoll for ever. Dropping it unmaps the guest's memory and closes all of the frontend's descriptors.
//!
//! # Starting and stopping rings
//! A ring starts with `SET_VRING_KICK` and stops with `GET_VRING_BASE`, whose answer is the index at which the next backend goes on.
//! - **Requests that complete out of order** (block): before `GET_VRING_BASE` is answered everything in flight must be in the used
//!   ring. [`Next::Request`] therefore says so *before* [`Connection::handle`] carries it out. With
//!   [`Offer::inflight`], requests that cannot complete may stay in the [inflight record](crate::inflight): they come back through
//!   [`Connection::take_recovered`] when the ring starts again, here or in the next process.
//! - **Devices that use buffers in order** (net): set [`Offer::in_order`]. A ring then always starts at the used ring's index, so that
//!   after the death of a backend, buffers that it had taken but not returned are taken again. Before a ring stops,
//!   buffers that were popped and not used should be given back with [`Vring::unpop`].
//!
//! When a backend dies, QEMU takes the used ring's index for the base, so both kinds resume without loss. After each start
//! the guest is interrupted once, because the previous backend may have died between using a buffer and saying so.
//!
//! # What the frontend can and cannot do
//! It is as hostile as the guest: all indices, lengths and addresses are checked; the number of regions, descriptors and messages is bounded.
//! A backend for several guests must set [`Offer::sealed_memory`], since access to a truncated file is fatal.
//! Kick descriptors must be eventfds and are never read. Call descriptors are made non-blocking; a frontend that turns this off again
//! while filling its own eventfd's counter could block the writer, which needs a monitor that was broken out of *and* a race.

mod connection;
mod device;
pub mod frontend;

pub use connection::{Connection, Next, Stops};
pub use device::{Event, Offer};

use thiserror::Error;

pub use crate::vring::Vring;

/// Why a connection is to be dropped.
#[derive(Debug, Error)]
pub enum Error {
    /// The frontend went away.
    #[error("the frontend closed the connection")]
    Closed,
    /// A message did not arrive whole, or is longer than the protocol has.
    #[error("the frontend sent a truncated or oversized message")]
    Message,
    /// The frontend does not read its replies.
    #[error("the frontend does not read its replies")]
    Stalled,
    /// The request was malformed or not allowed.
    #[error("vhost-user: {0}")]
    Protocol(#[from] vhost::vhost_user::Error),
    /// The request was about a ring, and could not be.
    #[error(transparent)]
    Ring(#[from] crate::vring::RingError),
    /// An offer that cannot be made.
    #[error("a device needs 1 to 256 rings")]
    Offer,
    /// A system call failed.
    #[error("vhost-user socket: {0}")]
    Os(#[from] nix::Error),
}
