//! The entropy device.

use vm_memory::{Bytes, GuestAddress};

use super::ring::{eventfd, memory};
use super::{Input, plant};
use crate::chain::Chain;
use crate::entropy::{MAX_CHAIN, QUEUE_SIZE, serve};
use crate::vring::{Placement, RingAddresses, RingError, Vring};

/// Chains for the entropy device, whose source fails now and then.
///
/// # Panics
/// If one call draws more than it may.
pub fn entropy(data: &[u8]) {
    let memory = memory();
    let mut input = Input::new(data);
    let flags = input.u8();
    let Ok(mut ring) = Vring::new(QUEUE_SIZE) else {
        return;
    };
    let placement = Placement {
        size: QUEUE_SIZE,
        at: RingAddresses {
            descriptors: 0x1000,
            available: 0x2000,
            used: 0x3000,
        },
        event_idx: flags & 1 != 0,
        next: 0,
    };
    if ring
        .start_at(&memory, placement, eventfd(), Some(eventfd()))
        .is_err()
    {
        return;
    }
    let mut chain = Chain::new();
    let mut offered = 0u16;
    while !input.is_empty() {
        plant(&mut input, &memory, 0x1000);
        for _ in 0..input.u8() % 32 {
            let slot = 0x2004 + u64::from(offered % QUEUE_SIZE) * 2;
            let _ = memory.write_obj(u16::from(input.u8()), GuestAddress(slot));
            offered = offered.wrapping_add(1);
        }
        let _ = memory.write_obj(offered, GuestAddress(0x2002));
        let mut fails = flags >> 1;
        let mut calls = 0;
        while ring.running() {
            let mut drawn = 0;
            let more = serve(&mut ring, &memory, &mut chain, |piece| {
                drawn += piece.len() as u32;
                piece.fill(0xa5);
                fails = fails.wrapping_sub(1);
                if fails == 0 {
                    return Err(RingError::NoAddress);
                }
                Ok(())
            });
            assert!(drawn <= (256 << 10) + MAX_CHAIN);
            calls += 1;
            assert!(calls <= QUEUE_SIZE, "a driver keeps the thread");
            if !matches!(more, Ok(true)) {
                break;
            }
        }
    }
}
