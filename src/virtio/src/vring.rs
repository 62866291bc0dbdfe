//! One virtqueue (split ring, virtio 1.2 §2.7) with its notifications.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{Ordering, fence},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::stat::{SFlag, fstat},
};
use thiserror::Error;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::{
    chain::{Chain, ChainError},
    memory::{Memory, MemoryTable},
};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`
const NO_INTERRUPT: u16 = 1;

/// Why a ring is, or must be, stopped.
#[derive(Debug, Error)]
pub enum RingError {
    /// A number of descriptors that is not a power of two, or more than was offered.
    #[error("a queue size of {0} is not a power of two within what was offered")]
    Size(u32),
    /// An index above 65535.
    #[error("a ring index of {0} is out of range")]
    Base(u32),
    /// The ring was started before its addresses were set.
    #[error("the ring has no addresses")]
    NoAddress,
    /// The ring does not lie within the guest's memory.
    #[error("the ring lies outside the guest's memory")]
    Address,
    /// The guest wrote nonsense into the ring.
    #[error("the ring is broken: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// The guest wrote nonsense into a descriptor.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A notification descriptor that is no eventfd.
    #[error("a notification descriptor is not an eventfd")]
    NotEventFd,
    /// A system call on a notification descriptor failed.
    #[error("cannot prepare a notification descriptor: {0}")]
    Os(#[from] nix::Error),
}

/// Where the ring's parts are, in the address space of whoever says it: a frontend's own, or the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

/// What a driver says of a ring in its own transport (virtio 1.2 §4.1.4.3): guest physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Descriptors.
    pub size: u16,
    /// Where its parts are.
    pub at: RingAddresses,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// The index of the next available chain: 0 for a ring that the driver has just set up, what [`Vring::halt`] told for
    /// one that is started again.
    pub next: u16,
}

impl Placement {
    /// The used ring's index, which counts the chains that were returned; for a device elsewhere.
    ///
    /// # Errors
    /// If a ring of at most `max` descriptors cannot be here, as in [`Vring::start_at`].
    pub fn used_index(self, max: u16, memory: &Memory) -> Result<u16, RingError> {
        let mut ring = Vring::new(max)?;
        ring.place(memory, self)?;
        ring.used_index(memory)
    }
}

/// A virtqueue and its notifications.
///
/// It is *running* between the moment when the frontend has set everything up and `GET_VRING_BASE`, a reset or a
/// broken rule. A ring whose guest broke a rule does nothing more until the frontend starts it anew; [`Vring::pop`] reports
/// this once and finds the ring empty from then on.
///
/// Typical use, with `kick` registered **edge-triggered** in epoll and never read (a hostile frontend could make a read
/// block, and edge-triggered eventfds wake on every write):
///
/// ```ignore
/// loop {
///     ring.disable_kicks(&memory);
///     while ring.pop(&memory, &mut chain)? {
///         let written = …;
///         ring.push_used(&memory, chain.head(), written)?;
///     }
///     ring.notify(&memory);
///     if !ring.enable_kicks(&memory) { break } // nothing came in between: go to sleep
/// }
/// ```
#[derive(Debug)]
pub struct Vring {
    queue: Queue,
    addresses: Option<RingAddresses>,
    base: u16,
    enabled: bool,
    broken: bool,
    /// Something was returned since the guest was last asked whether it wants to hear of it.
    returned: bool,
    kick: Option<File>,
    call: Option<File>,
    err: Option<File>,
}

impl Vring {
    /// A ring that is not set up, of at most `max_size` descriptors.
    ///
    /// # Errors
    /// If `max_size` is not a power of two up to 32768.
    pub fn new(max_size: u16) -> Result<Self, RingError> {
        let queue = Queue::new(max_size).map_err(|_| RingError::Size(max_size.into()))?;
        Ok(Self {
            queue,
            addresses: None,
            base: 0,
            enabled: false,
            broken: false,
            returned: false,
            kick: None,
            call: None,
            err: None,
        })
    }

    /// The frontend started and enabled the ring, and the guest broke no rule.
    pub fn running(&self) -> bool {
        self.started() && self.enabled && !self.broken
    }

    /// Set up, whether or not it is enabled: a network device must not move packets then, but does own the ring.
    pub fn started(&self) -> bool {
        self.queue.ready()
    }

    /// The eventfd on which the guest says that it added buffers. Register it edge-triggered; do not read it.
    pub fn kick_fd(&self) -> Option<BorrowedFd<'_>> {
        self.kick.as_ref().map(File::as_fd)
    }

    /// Descriptors of the ring.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The queue itself, for those who know what they do (save and restore, tests).
    pub fn queue(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// The next chain that the guest made available, in `chain`; false if there is none or the ring does not run.
    ///
    /// # Errors
    /// If the guest broke a rule. The ring has then stopped and the frontend has been told; log it and go on with others.
    pub fn pop(&mut self, memory: &Memory, chain: &mut Chain) -> Result<bool, RingError> {
        if !self.running() {
            return Ok(false);
        }
        let result = self.try_pop(memory, chain);
        if result.is_err() {
            self.break_ring();
        }
        result
    }

    /// [`Vring::pop`], and, where there is nothing, what a device does before it sleeps: ask for kicks, and look once more for what came
    /// in between. False: whatever comes now is kicked.
    ///
    /// # Errors
    /// As [`Vring::pop`].
    pub fn pop_or_rest(&mut self, memory: &Memory, chain: &mut Chain) -> Result<bool, RingError> {
        Ok(self.pop(memory, chain)? || self.enable_kicks(memory) && self.pop(memory, chain)?)
    }

    fn try_pop(&mut self, memory: &Memory, chain: &mut Chain) -> Result<bool, RingError> {
        let Some(head) = self.queue.iter(memory)?.next().map(|c| c.head_index()) else {
            return Ok(false);
        };
        self.load(memory, head, chain)?;
        Ok(true)
    }

    /// Gives back the last `count` popped chains, none of which has been used: the next [`Vring::pop`] finds them again.
    pub fn unpop(&mut self, count: u16) {
        self.queue
            .set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Reads the chain that starts at descriptor `head` (for requests that an [inflight record](crate::inflight) names).
    pub fn load(&self, memory: &Memory, head: u16, chain: &mut Chain) -> Result<(), RingError> {
        let table = GuestAddress(self.queue.desc_table());
        Ok(chain.load(memory, table, self.queue.size(), head)?)
    }

    /// How many chains wait, without taking any. More than the ring's size are a broken rule, which `pop` will report.
    pub fn waiting(&self, memory: &Memory) -> u16 {
        if !self.running() {
            return 0;
        }
        self.queue
            .avail_idx(memory, Ordering::Acquire)
            .map_or(0, |idx| idx.0.wrapping_sub(self.queue.next_avail()))
    }

    /// Returns the chain `head` to the guest, `written` bytes of whose writable part are new. Call [`Vring::notify`] after
    /// the last one of a batch. Works on a disabled ring, too, so that running requests can end.
    ///
    /// # Errors
    /// If the used ring is not in the guest's memory any more.
    pub fn push_used(&mut self, memory: &Memory, head: u16, written: u32) -> Result<(), RingError> {
        if !self.started() {
            return Ok(());
        }
        let result = self.queue.add_used(memory, head, written);
        if result.is_err() {
            self.break_ring();
        }
        self.returned = true;
        Ok(result?)
    }

    /// Interrupts the guest if it asked for it, and there is something new for it. True if it was interrupted.
    pub fn notify(&mut self, memory: &Memory) -> bool {
        let news = std::mem::take(&mut self.returned);
        if !news || !self.started() || !self.wants_interrupt(memory).unwrap_or(false) {
            return false;
        }
        self.signal();
        true
    }

    fn wants_interrupt(&mut self, memory: &Memory) -> Result<bool, RingError> {
        let wanted = self.queue.needs_notification(memory)?;
        if self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags: u16 = memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u16::from_le(flags) & NO_INTERRUPT == 0)
    }

    /// Interrupts the guest unconditionally.
    pub fn signal(&self) {
        if let Some(call) = &self.call {
            signal(call);
        }
    }

    /// Asks the guest not to kick while the ring is being worked on.
    pub fn disable_kicks(&mut self, memory: &Memory) {
        if self.running() && self.try_disable_kicks(memory).is_err() {
            self.break_ring();
        }
    }

    fn try_disable_kicks(&mut self, memory: &Memory) -> Result<(), RingError> {
        self.queue.disable_notification(memory)?;
        if self.queue.event_idx_enabled() {
            // The guest kicks when it passes this index (virtio 1.2 §2.7.10): one that it has passed, behind the used ring's
            // elements of 8 bytes (§2.7.8).
            let at = self.queue.used_ring() + 4 + 8 * u64::from(self.queue.size());
            let passed = self.queue.next_avail().wrapping_sub(1);
            memory
                .store(passed.to_le(), GuestAddress(at), Ordering::Relaxed)
                .map_err(virtio_queue::Error::GuestMemory)?;
        }
        Ok(())
    }

    /// Asks the guest to kick again. True if buffers came in since the last [`Vring::pop`]: look once more before
    /// sleeping.
    pub fn enable_kicks(&mut self, memory: &Memory) -> bool {
        if !self.running() {
            return false;
        }
        self.queue.enable_notification(memory).unwrap_or_else(|_| {
            self.break_ring();
            false
        })
    }

    /// Stops a ring whose guest broke a rule, and tells the frontend by the error eventfd.
    pub fn break_ring(&mut self) {
        self.broken = true;
        if let Some(err) = &self.err {
            signal(err);
        }
    }

    /// The guest broke a rule, and the ring waits for a new start.
    pub fn broken(&self) -> bool {
        self.broken
    }

    /// Starts a ring that the guest's driver has set up with us, without a frontend in between. Its notifications are
    /// eventfds of ours.
    ///
    /// # Errors
    /// If the size was not offered, or the ring does not lie in the guest's memory, or its parts are not aligned (§2.7).
    /// The ring does not run then.
    pub fn start_at(
        &mut self,
        memory: &Memory,
        placement: Placement,
        kick: File,
        call: Option<File>,
    ) -> Result<(), RingError> {
        self.reset();
        let result = self.try_start_at(memory, placement, kick, call);
        if result.is_err() {
            self.reset();
        }
        result
    }

    fn try_start_at(
        &mut self,
        memory: &Memory,
        placement: Placement,
        kick: File,
        call: Option<File>,
    ) -> Result<(), RingError> {
        self.set_kick(kick)?;
        self.set_call(call)?;
        self.place(memory, placement)?;
        let used = self.used_index(memory)?;
        self.enabled = true;
        self.start(memory, placement.event_idx, used, Some(placement.next))?;
        // Whoever served it before may have used buffers without saying so; a driver that just set it up hears nothing.
        if placement.next != 0 {
            self.signal();
        }
        Ok(())
    }

    /// Finds its parts where the driver says that they are.
    fn place(&mut self, memory: &Memory, placement: Placement) -> Result<(), RingError> {
        self.set_size(placement.size.into())?;
        let at = placement.at;
        self.queue
            .try_set_desc_table_address(GuestAddress(at.descriptors))?;
        self.queue
            .try_set_avail_ring_address(GuestAddress(at.available))?;
        self.queue.try_set_used_ring_address(GuestAddress(at.used))?;
        self.queue.set_ready(true);
        if self.queue.avail_ring() == 0 || !self.queue.is_valid(memory) {
            return Err(RingError::Address);
        }
        Ok(())
    }

    /// Stops a ring that [`Vring::start_at`] started: the index of the next available chain. All requests that were taken
    /// from it must be returned before, or their chains be taken again by `unpop`.
    pub fn halt(&mut self) -> u16 {
        self.stop()
    }

    pub(crate) fn set_size(&mut self, size: u32) -> Result<(), RingError> {
        let small = u16::try_from(size).map_err(|_| RingError::Size(size))?;
        self.queue.try_set_size(small).map_err(|_| RingError::Size(size))
    }

    pub(crate) fn set_base(&mut self, base: u32) -> Result<(), RingError> {
        self.base = u16::try_from(base).map_err(|_| RingError::Base(base))?;
        Ok(())
    }

    pub(crate) fn set_addresses(
        &mut self,
        addresses: RingAddresses,
        table: &MemoryTable,
    ) -> Result<(), RingError> {
        self.addresses = Some(addresses);
        if self.started() {
            self.resolve(table)
        } else {
            Ok(())
        }
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    pub(crate) fn set_kick(&mut self, fd: File) -> Result<(), RingError> {
        self.kick = Some(eventfd(fd)?);
        Ok(())
    }

    pub(crate) fn set_call(&mut self, fd: Option<File>) -> Result<(), RingError> {
        self.call = fd.map(eventfd).transpose()?;
        // A backend that died may have used buffers without saying so.
        if self.started() {
            self.signal();
        }
        Ok(())
    }

    pub(crate) fn set_err(&mut self, fd: Option<File>) -> Result<(), RingError> {
        self.err = fd.map(eventfd).transpose()?;
        Ok(())
    }

    /// Finds the ring's parts in guest memory, again after each change of the memory table.
    pub(crate) fn resolve(&mut self, table: &MemoryTable) -> Result<(), RingError> {
        let user = self.addresses.ok_or(RingError::NoAddress)?;
        let find = |address| table.translate(address).ok_or(RingError::Address);
        self.queue.try_set_desc_table_address(find(user.descriptors)?)?;
        self.queue.try_set_avail_ring_address(find(user.available)?)?;
        self.queue.try_set_used_ring_address(find(user.used)?)?;
        // The queue takes an available ring at 0 for one that is not set up, and looks at `ready` first.
        let was_ready = self.queue.ready();
        self.queue.set_ready(true);
        let valid = self.queue.avail_ring() != 0 && self.queue.is_valid(&**table.memory());
        self.queue.set_ready(was_ready);
        if valid { Ok(()) } else { Err(RingError::Address) }
    }

    /// The used ring's index, which counts what previous backends completed.
    pub(crate) fn used_index(&self, memory: &Memory) -> Result<u16, RingError> {
        Ok(self.queue.used_idx(memory, Ordering::Acquire)?.0)
    }

    /// Starts the ring. `resume` is the next available index when not the one that `SET_VRING_BASE` named.
    pub(crate) fn start(
        &mut self,
        memory: &Memory,
        event_idx: bool,
        used: u16,
        resume: Option<u16>,
    ) -> Result<(), RingError> {
        self.queue.set_event_idx(event_idx);
        self.queue.set_next_used(used);
        self.queue.set_next_avail(resume.unwrap_or(self.base));
        self.queue.set_ready(true);
        self.broken = false;
        self.returned = false;
        self.queue.enable_notification(memory)?;
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Stops the ring and returns the next available index.
    pub(crate) fn stop(&mut self) -> u16 {
        let base = if self.started() {
            self.queue.next_avail()
        } else {
            self.base
        };
        self.queue.set_ready(false);
        self.kick = None;
        self.base = base;
        base
    }

    /// Back to the state before any set-up.
    pub(crate) fn reset(&mut self) {
        self.queue.reset();
        self.addresses = None;
        self.base = 0;
        self.enabled = false;
        self.broken = false;
        (self.kick, self.call, self.err) = (None, None, None);
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

/// Checks that `fd` can be an eventfd, and that writing to it will not block.
fn eventfd(fd: File) -> Result<File, RingError> {
    // Files of the anonymous inode have no type; pipes, sockets, devices and real files do.
    let kind = fstat(&fd)?.st_mode & SFlag::S_IFMT.bits();
    if kind != 0 {
        return Err(RingError::NotEventFd);
    }
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_NONBLOCK) {
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(fd)
}

fn signal(mut fd: &File) {
    // A full counter (EAGAIN) means that a notification is pending already. Other errors concern the frontend alone.
    while let Err(error) = fd.write(&1u64.to_ne_bytes()) {
        if error.kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
}
