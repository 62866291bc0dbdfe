//! The entropy device (virtio 1.2 §5.4): fills whatever buffers the driver offers with random bytes. It has one ring, no
//! features and no configuration.

use crate::{
    chain::Chain,
    memory::Memory,
    vring::{RingError, Vring},
};

/// The device's type (§5).
pub const DEVICE_ID: u16 = 4;
/// Its rings: `requestq`.
pub const QUEUES: u16 = 1;
/// Descriptors of the ring.
pub const QUEUE_SIZE: u16 = 64;
/// The most bytes that one chain gets; a driver that wants more asks again.
pub const MAX_CHAIN: u32 = 64 << 10;
/// Bytes after which [`serve`] returns, so that a driver cannot keep the thread.
const BATCH: u32 = 256 << 10;
/// Bytes that are drawn at once.
const PIECE: usize = 4096;

/// Fill what the ring offers, at most about 256 KiB. True if there may be more to do at once; false: wait for a kick.
///
/// `draw` fills a piece with random bytes.
///
/// # Errors
/// If the guest broke a rule; the ring has stopped then. Or if `draw` fails: the chain is returned empty (§5.4.6.2 wants
/// at least one byte, but a device that has none can but say so).
pub fn serve<E: From<RingError>>(
    ring: &mut Vring,
    memory: &Memory,
    chain: &mut Chain,
    mut draw: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<bool, E> {
    let mut left = BATCH;
    let mut result = Ok(false);
    ring.disable_kicks(memory);
    loop {
        if left == 0 {
            result = Ok(true);
            break;
        }
        match ring.pop_or_rest(memory, chain) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                result = Err(error.into());
                break;
            }
        }
        let filled = fill(chain, memory, chain.writable_len().min(MAX_CHAIN), &mut draw);
        // An empty chain costs a little, too.
        left = left.saturating_sub(chain.writable_len().clamp(64, MAX_CHAIN));
        let written = *filled.as_ref().unwrap_or(&0);
        if let Err(error) = ring.push_used(memory, chain.head(), written) {
            result = Err(error.into());
            break;
        }
        if let Err(error) = filled {
            result = Err(error);
            break;
        }
    }
    ring.notify(memory);
    result
}

/// Fill the first `wanted` writable bytes.
fn fill<E: From<RingError>>(
    chain: &Chain,
    memory: &Memory,
    wanted: u32,
    draw: &mut impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<u32, E> {
    let mut piece = [0; PIECE];
    let mut done = 0;
    while done < wanted {
        let length = PIECE.min((wanted - done) as usize);
        draw(&mut piece[..length])?;
        let written = chain
            .write(memory, done, &piece[..length])
            .map_err(RingError::from)?;
        if written == 0 {
            break;
        }
        // At most a piece.
        done += written as u32;
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use proptest::prelude::*;
    use virtio_queue::desc::split::Descriptor;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::vring::{Placement, RingAddresses};

    const MEMORY: usize = 1 << 20;

    fn eventfd() -> File {
        use std::os::fd::{FromRawFd, IntoRawFd};
        let fd = vmm_sys_util::eventfd::EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
        // SAFETY: the descriptor was just given up by its one owner.
        #[allow(unsafe_code)]
        unsafe {
            File::from_raw_fd(fd.into_raw_fd())
        }
    }

    /// Memory, and a ring whose chains are these single descriptors: address, length, flags.
    fn ring(chains: &[(u64, u32, u16)]) -> (Memory, Vring) {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        for (index, (addr, len, flags)) in (0u16..).zip(chains) {
            let descriptor = Descriptor::new(*addr, *len, *flags, 0);
            memory
                .write_obj(descriptor, GuestAddress(0x1000 + u64::from(index) * 16))
                .unwrap();
            memory
                .write_obj(index, GuestAddress(0x2004 + u64::from(index) * 2))
                .unwrap();
        }
        memory
            .write_obj(chains.len() as u16, GuestAddress(0x2002))
            .unwrap();
        let mut ring = Vring::new(QUEUE_SIZE).unwrap();
        let placement = Placement {
            size: QUEUE_SIZE,
            at: RingAddresses {
                descriptors: 0x1000,
                available: 0x2000,
                used: 0x3000,
            },
            event_idx: false,
            next: 0,
        };
        ring.start_at(&memory, placement, eventfd(), Some(eventfd()))
            .unwrap();
        (memory, ring)
    }

    fn used(memory: &Memory, index: u64) -> (u32, u32) {
        let at = 0x3004 + index * 8;
        let word = |at| memory.read_obj(GuestAddress(at)).unwrap();
        (word(at), word(at + 4))
    }

    #[test]
    fn buffers_are_filled_and_what_is_not_writable_is_left_alone() {
        let (memory, mut ring) = ring(&[(0x8000, 5000, 2), (0x9f00, 16, 0), (0x20000, 100 << 10, 2)]);
        let mut next = 0u8;
        let more = serve(&mut ring, &memory, &mut Chain::new(), |piece| {
            piece.fill_with(|| {
                next = next.wrapping_add(1) | 1;
                next
            });
            Ok::<_, RingError>(())
        });
        assert!(!more.unwrap());
        assert_eq!(
            (used(&memory, 0), used(&memory, 1), used(&memory, 2)),
            ((0, 5000), (1, 0), (2, MAX_CHAIN))
        );
        let byte = |at| memory.read_obj::<u8>(GuestAddress(at)).unwrap();
        assert!((0x8000..0x8000 + 5000).all(|at| byte(at) != 0));
        assert_eq!((byte(0x8000 + 5000), byte(0x9f00)), (0, 0));
        assert_eq!((byte(0x20000 + 0xffff) & 1, byte(0x20000 + 0x10000)), (1, 0));
    }

    #[test]
    fn a_source_that_fails_is_told_and_answered() {
        #[derive(Debug)]
        struct Dry;
        impl From<RingError> for Dry {
            fn from(_: RingError) -> Self {
                panic!("the ring is well")
            }
        }
        let (memory, mut ring) = ring(&[(0x8000, 16, 2)]);
        serve(&mut ring, &memory, &mut Chain::new(), |_| Err(Dry)).unwrap_err();
        assert_eq!(used(&memory, 0), (0, 0));
        assert!(ring.running());
    }

    proptest! {
        /// Whatever chains the driver offers: each is answered with as many bytes as it has, up to the most, or the ring breaks;
        /// and one call draws a bounded number of bytes.
        #[test]
        fn any_chain_is_answered_or_breaks_the_ring(
            chains in proptest::collection::vec((0x8000u64..0x11_0000, 0u32..200_000, 0u16..8), 0..60),
        ) {
            let (memory, mut ring) = ring(&chains);
            let mut drawn = 0;
            let mut chain = Chain::new();
            let mut calls = 0;
            while ring.running() {
                let before = drawn;
                let more = serve(&mut ring, &memory, &mut chain, |piece| {
                    drawn += piece.len() as u32;
                    Ok::<_, RingError>(())
                });
                prop_assert!(drawn - before <= BATCH + MAX_CHAIN);
                calls += 1;
                prop_assert!(calls <= 61);
                if !matches!(more, Ok(true)) {
                    break;
                }
            }
            let answered: u16 = memory.read_obj(GuestAddress(0x3002)).unwrap();
            prop_assert!(usize::from(answered) <= chains.len());
            prop_assert!(!ring.running() || usize::from(answered) == chains.len());
            for index in 0..answered {
                let (head, written) = used(&memory, index.into());
                let (_, len, flags) = chains[head as usize];
                // Links and indirect tables lead elsewhere.
                let writable = if flags & 2 != 0 { len.min(MAX_CHAIN) } else { 0 };
                prop_assert!(written <= MAX_CHAIN);
                if flags & 5 == 0 {
                    prop_assert_eq!(written, writable);
                }
            }
        }
    }
}
