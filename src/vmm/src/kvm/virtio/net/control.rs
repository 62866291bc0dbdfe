//! The control queue (virtio 1.2 §5.1.6.5): how many pairs of queues the driver uses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use virtio::chain::Chain;
use virtio::memory::Memory;
use virtio::vring::RingError;

use super::link::Link;
use crate::kvm::virtio::worker::{Floor, Service};

/// `VIRTIO_NET_CTRL_MQ` and its `VQ_PAIRS_SET` (§5.1.6.5.5).
const SET_PAIRS: [u8; 2] = [4, 0];
/// A request, of which its class and command are the beginning.
const REQUEST: usize = 4;
/// Answers.
const OK: u8 = 0;
const ERR: u8 = 1;
/// Requests in a round, so that others have their turn.
const BATCH: usize = 16;

/// What answers the queue.
pub(super) struct Control {
    link: Arc<Link>,
    pairs: Arc<AtomicU16>,
    most: u16,
    chain: Chain,
}

impl Control {
    /// For a device with at most so many pairs.
    pub(super) fn new(link: Arc<Link>, pairs: Arc<AtomicU16>, most: u16) -> Self {
        Control {
            link,
            pairs,
            most,
            chain: Chain::new(),
        }
    }

    fn answer(&self, memory: &Memory) -> Result<u8, RingError> {
        let mut request = [0; REQUEST];
        let length = self.chain.read(memory, 0, &mut request)?;
        let [class, command, low, high] = request;
        let pairs = u16::from_le_bytes([low, high]);
        if length < REQUEST || [class, command] != SET_PAIRS || !(1..=self.most).contains(&pairs) {
            return Ok(ERR);
        }
        if self.pairs.swap(pairs, Ordering::SeqCst) != pairs {
            // Without a backend that can do it now, the next one will.
            self.link.set_pairs(pairs);
        }
        Ok(OK)
    }
}

impl Service for Control {
    fn serve(&mut self, floor: &mut Floor, index: usize) -> bool {
        let memory = floor.memory.clone();
        let ring = &mut floor.rings[index];
        let mut more = false;
        ring.disable_kicks(&memory);
        let mut round = || -> Result<(), RingError> {
            for _ in 0..BATCH {
                while !ring.pop(&memory, &mut self.chain)? {
                    if !ring.enable_kicks(&memory) {
                        return Ok(());
                    }
                }
                let answer = self.answer(&memory)?;
                let written = self.chain.write(&memory, 0, &[answer])?;
                ring.push_used(&memory, self.chain.head(), written as u32)?;
            }
            more = true;
            Ok(())
        };
        if let Err(error) = round() {
            tracing::debug!(%error, "the guest broke its control queue");
            ring.break_ring();
        }
        ring.notify(&memory);
        more
    }
}
