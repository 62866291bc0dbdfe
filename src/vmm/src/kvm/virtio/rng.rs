//! The entropy device: the host's random numbers.

use std::sync::{Mutex, PoisonError};

use rustix::rand::{GetRandomFlags, getrandom};
use virtio::chain::Chain;
use virtio::entropy;
use virtio::vring::RingError;

use super::worker::Worker;
use super::{Device, Session};

/// The device.
#[derive(Default)]
pub(in crate::kvm) struct Rng(Mutex<Option<Worker>>);

/// Fill it all.
fn draw(mut piece: &mut [u8]) -> Result<(), RingError> {
    while !piece.is_empty() {
        // At this size and after boot it neither waits nor fails.
        let done = getrandom(&mut *piece, GetRandomFlags::empty())
            .map_err(|error| RingError::Os(nix::Error::from_raw(error.raw_os_error())))?;
        piece = &mut piece[done..];
    }
    Ok(())
}

impl Device for Rng {
    fn name(&self) -> &str {
        "rng"
    }

    fn id(&self) -> u16 {
        entropy::DEVICE_ID
    }

    /// Others.
    fn class(&self) -> u32 {
        0xff_0000
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> Vec<u16> {
        vec![entropy::QUEUE_SIZE; entropy::QUEUES.into()]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn start(&self, session: Session) {
        let mut chain = Chain::new();
        let worker = Worker::start("rng", session, move |_, ring, memory| {
            entropy::serve(ring, memory, &mut chain, draw).unwrap_or_else(|error| {
                tracing::debug!(%error, "the guest's entropy device");
                false
            })
        });
        match worker {
            Ok(worker) => *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker),
            Err(error) => tracing::warn!(%error, "the guest gets no entropy"),
        }
    }

    fn stop(&self) -> Vec<u16> {
        let worker = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        worker.map(Worker::stop).unwrap_or_default()
    }
}
