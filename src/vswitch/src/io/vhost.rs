//! A guest's virtio-net device (virtio 1.2 §5.1), whose rings come over a vhost-user socket.
//!
//! A guest with several processors may use several pairs of rings. They give this side no more speed, but the guest's processors need not
//! wait for each other, and each gets back what it sends for (see [`steering`](super::steering)).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{Ordering, fence};

use virtio::chain::Chain;
use virtio::feature;
use virtio::memory::Memory;
use virtio::vhost_user::{Connection, Error, Event, Next, Offer, Vring};
use virtio::vring::RingError;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::steering::Steering;
use super::tap::header_length;
use crate::frame::{Abilities, ETHERNET, Frame, MAX_FRAME, Offload, VNET_HEADER};

/// Feature bits of virtio-net (virtio 1.2 §5.1.3).
mod net {
    pub const CSUM: u64 = 1;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const MRG_RXBUF: u64 = 1 << 15;
}

/// The most pairs of rings.
pub(super) const PAIRS: u16 = model::net::QUEUE_PAIRS;
/// Frames from one of several rings before it is another one's turn.
const TURN: u32 = 16;
/// The most buffers that one received frame may take.
const MAX_BUFFERS: usize = 64;

fn offer() -> Offer {
    Offer {
        features: net::CSUM
            | net::GUEST_CSUM
            | net::MTU
            | net::GUEST_TSO4
            | net::GUEST_TSO6
            | net::HOST_TSO4
            | net::HOST_TSO6
            | net::MRG_RXBUF,
        queues: 2 * PAIRS,
        queue_size: 1024,
        in_order: true,
        sealed_memory: true,
        ..Offer::default()
    }
}

/// The ring for what the guest receives, and the one for what it sends, of this pair.
fn receiving(pair: u16) -> u16 {
    2 * pair
}

fn sending(pair: u16) -> u16 {
    2 * pair + 1
}

/// A guest's port: its listening socket, and the connection that it has at the moment.
#[derive(Debug)]
pub(super) struct Vhost {
    listener: UnixListener,
    connection: Option<Connection>,
    chain: Chain,
    heads: Vec<(u16, u32)>,
    notify: [bool; 2 * PAIRS as usize],
    /// Pairs, from the first one on, on which the guest receives.
    pairs: u16,
    steering: Steering,
    /// The pair that is being read, and how many frames came from it in a row.
    turn: u16,
    row: u32,
}

/// What came out of the guest's ring.
#[derive(Debug)]
pub(super) enum Read {
    /// A frame.
    Frame(Frame),
    /// Something that is none.
    Nonsense,
    /// Nothing now.
    Empty,
}

impl Vhost {
    /// Takes over a listening socket.
    pub fn new(fd: OwnedFd) -> Result<Self, String> {
        let listening = nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::AcceptConn);
        if !matches!(listening, Ok(true)) {
            return Err("the descriptor is not a listening socket".into());
        }
        let listener = UnixListener::from(fd);
        listener
            .set_nonblocking(true)
            .map_err(|error| format!("the vhost-user socket: {error}"))?;
        Ok(Self {
            listener,
            connection: None,
            chain: Chain::new(),
            heads: Vec::new(),
            notify: [false; 2 * PAIRS as usize],
            pairs: 0,
            steering: Steering::default(),
            turn: 0,
            row: 0,
        })
    }

    /// The listening socket.
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// The connection's socket.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().map(AsFd::as_fd)
    }

    /// A guest is connected.
    pub fn connected(&self) -> bool {
        self.connection.is_some()
    }

    /// The descriptor by which the guest says that it has sent on this pair.
    pub fn kick(&mut self, pair: u16) -> Option<BorrowedFd<'_>> {
        self.connection.as_mut()?.ring(sending(pair)).kick_fd()
    }

    /// Accepts a connection, if one waits.
    pub fn accept(&mut self) -> Result<bool, Error> {
        let Ok((stream, _)) = self.listener.accept() else {
            return Ok(false);
        };
        self.connection = Some(Connection::new(stream, offer())?);
        Ok(true)
    }

    /// Ends the connection; the guest may connect again.
    pub fn disconnect(&mut self) {
        self.connection = None;
        self.pairs = 0;
        self.steering = Steering::default();
    }

    /// Does what the frontend asks, at most `limit` messages of it. The kick descriptors may be others afterwards.
    pub fn converse(&mut self, limit: usize) -> Result<(), Error> {
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        for _ in 0..limit {
            // Nothing of ours is in flight between batches, so rings stop without more ado.
            let Next::Request { .. } = connection.look()? else {
                break;
            };
            if let Event::Ring(index) = connection.handle()?
                && index.is_multiple_of(2)
            {
                // Frames for a full ring are dropped, so nobody waits for new buffers.
                let (memory, ring) = connection.memory_and_ring(index);
                ring.disable_kicks(memory);
            }
        }
        self.pairs = (0..PAIRS)
            .find(|pair| !connection.ring(receiving(*pair)).running())
            .unwrap_or(PAIRS);
        Ok(())
    }

    fn header(features: u64) -> usize {
        // A legacy driver without mergeable buffers knows no num_buffers (virtio 1.2 §5.1.6.1).
        if features & (feature::VERSION_1 | net::MRG_RXBUF) != 0 {
            VNET_HEADER
        } else {
            VNET_HEADER - 2
        }
    }

    /// The next frame that the guest sends.
    pub fn read(&mut self) -> Read {
        for _ in 0..=PAIRS {
            if self.row < TURN
                && let Some(read) = self.read_from(self.turn)
            {
                self.row += 1;
                return read;
            }
            self.turn = (self.turn + 1) % PAIRS;
            self.row = 0;
        }
        Read::Empty
    }

    fn read_from(&mut self, pair: u16) -> Option<Read> {
        let connection = self.connection.as_mut()?;
        let header = Self::header(connection.features());
        let (memory, ring) = connection.memory_and_ring(sending(pair));
        match ring.pop(memory, &mut self.chain) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => {
                // Not louder: one guest could fill the log that all share.
                tracing::debug!(%error, "a guest broke its sending ring");
                return None;
            }
        }
        let frame = copy_in(memory, &self.chain, header);
        self.notify[usize::from(sending(pair))] = true;
        if let Err(error) = ring.push_used(memory, self.chain.head(), 0) {
            tracing::debug!(%error, "a guest's sending ring cannot be written");
        }
        let Some(frame) = frame else {
            return Some(Read::Nonsense);
        };
        if self.pairs > 1 {
            self.steering.learn(&frame.bytes, pair);
        }
        Some(Read::Frame(frame))
    }

    /// Gives a frame to the guest. `false`: it has no room.
    pub fn write(&mut self, frame: Frame) -> bool {
        let Self {
            connection: Some(connection),
            chain,
            heads,
            notify,
            pairs,
            steering,
            ..
        } = self
        else {
            return false;
        };
        let features = connection.features();
        let has = |bit: u64| features & bit != 0;
        let abilities = Abilities {
            checksum: has(net::GUEST_CSUM),
            tcp4: has(net::GUEST_TSO4),
            tcp6: has(net::GUEST_TSO6),
        };
        let (header, mergeable) = (Self::header(features), has(net::MRG_RXBUF));
        let index = match *pairs {
            0 | 1 => receiving(0),
            pairs => receiving(steering.pair(&frame.bytes, pairs)),
        };
        let (memory, ring) = connection.memory_and_ring(index);
        let mut taken = true;
        frame.fit(abilities, |frame| {
            match copy_out(memory, ring, chain, heads, &frame, header, mergeable) {
                Ok(true) => notify[usize::from(index)] = true,
                Ok(false) => taken = false,
                Err(error) => {
                    tracing::debug!(%error, "a guest broke its receiving ring");
                    taken = false;
                }
            }
        });
        taken
    }

    /// Interrupts the guest for what was read and written since the last time.
    pub fn flush(&mut self) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        for (index, notify) in (0..).zip(&mut self.notify) {
            if std::mem::take(notify) {
                let (memory, ring) = connection.memory_and_ring(index);
                ring.notify(memory);
            }
        }
    }

    /// From now on the guest need not kick: its rings are being looked at.
    pub fn wake(&mut self) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        for pair in 0..PAIRS {
            let (memory, ring) = connection.memory_and_ring(sending(pair));
            ring.disable_kicks(memory);
        }
    }

    /// Asks for kicks again. `true`: something came in between.
    pub fn sleep(&mut self) -> bool {
        let Some(connection) = &mut self.connection else {
            return false;
        };
        let mut more = false;
        for pair in 0..PAIRS {
            let (memory, ring) = connection.memory_and_ring(sending(pair));
            more |= ring.enable_kicks(memory);
        }
        more
    }
}

fn copy_in(memory: &Memory, chain: &Chain, header: usize) -> Option<Frame> {
    let length = chain.readable_len() as usize;
    if length < header + ETHERNET || length > header + MAX_FRAME {
        return None;
    }
    let mut head = [0; VNET_HEADER];
    chain.read(memory, 0, &mut head[..header]).ok()?;
    let mut bytes = vec![0; length - header];
    chain.read(memory, header as u32, &mut bytes).ok()?;
    Some(Frame {
        bytes,
        offload: Offload::from_virtio(&head)?,
    })
}

/// Puts a frame into as many buffers as it takes; all of them become visible to the guest at once.
fn copy_out(
    memory: &Memory,
    ring: &mut Vring,
    chain: &mut Chain,
    heads: &mut Vec<(u16, u32)>,
    frame: &Frame,
    header: usize,
    mergeable: bool,
) -> Result<bool, RingError> {
    let mut head = frame.offload.to_virtio(header_length(frame));
    let total = header + frame.bytes.len();
    let mut done = 0;
    let mut first: Option<Chain> = None;
    heads.clear();
    while done < total {
        let fits = heads.len() < if mergeable { MAX_BUFFERS } else { 1 };
        if !fits || !ring.pop(memory, chain)? {
            ring.unpop(heads.len() as u16);
            return Ok(false);
        }
        let room = chain.writable_len() as usize;
        let here = room.min(total - done);
        heads.push((chain.head(), here as u32));
        if done == 0 {
            if room < header {
                ring.unpop(1);
                ring.break_ring();
                return Ok(false);
            }
            chain.write(memory, header as u32, &frame.bytes[..here - header])?;
            first = Some(chain.clone());
        } else {
            chain.write(memory, 0, &frame.bytes[done - header..done - header + here])?;
        }
        done += here;
    }
    if let Some(first) = first {
        head[10..12].copy_from_slice(&(heads.len() as u16).to_le_bytes());
        first.write(memory, 0, &head[..header])?;
    }
    publish(memory, ring, heads)?;
    Ok(true)
}

/// Returns several buffers with one step of the used ring's index, for the guest must find them all or none
/// (virtio 1.2 §5.1.6.4).
fn publish(memory: &Memory, ring: &mut Vring, heads: &[(u16, u32)]) -> Result<(), RingError> {
    let Some(((last, written), before)) = heads.split_last() else {
        return Ok(());
    };
    if !before.is_empty() {
        let size = ring.size().max(1);
        let queue = ring.queue();
        let (start, used) = (queue.next_used(), queue.used_ring());
        for (at, (head, written)) in before.iter().enumerate() {
            let index = u64::from(start.wrapping_add(at as u16) % size);
            let element = [u32::from(*head).to_le(), written.to_le()];
            memory
                .write_obj(element, GuestAddress(used + 4 + index * 8))
                .map_err(virtio_queue::Error::GuestMemory)?;
        }
        fence(Ordering::Release);
        queue.set_next_used(start.wrapping_add(before.len() as u16));
    }
    ring.push_used(memory, *last, *written)?;
    if !before.is_empty() {
        // The queue's count of what is new, which decides about interrupts, knows only the last one.
        ring.signal();
    }
    Ok(())
}
