//! The entropy device: the host's random numbers.

use rustix::rand::{GetRandomFlags, getrandom};
use virtio::chain::Chain;
use virtio::entropy;
use virtio::vring::RingError;

use super::worker::{Floor, Post, Service};
use super::{Device, Left, Session, StartError};

/// The device.
pub(in crate::kvm) struct Rng(Post<Source>);

struct Source(Chain);

impl Default for Rng {
    fn default() -> Self {
        Rng(Post::new("rng", Source(Chain::new())))
    }
}

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

impl Service for Source {
    fn serve(&mut self, floor: &mut Floor, ring: usize) -> bool {
        let memory = floor.memory.clone();
        entropy::serve(&mut floor.rings[ring], &memory, &mut self.0, draw).unwrap_or_else(|error| {
            tracing::debug!(%error, "the guest's entropy device");
            false
        })
    }
}

impl Device for Rng {
    fn name(&self) -> &str {
        self.0.name()
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

    fn start(&self, session: Session) -> Result<(), StartError> {
        self.0.start(session)
    }

    fn stop(&self) -> Vec<Left> {
        self.0.stop()
    }
}
