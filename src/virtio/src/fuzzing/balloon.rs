//! The balloon.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::ring::{memory, offer, started};
use super::{Input, plant};
use crate::balloon::{BATCH, MAX_BYTES, MAX_PAGES, PAGE, QUEUE_SIZE, Role, Work, feature, role, serve};

const TABLE: u64 = 0x1000;

/// Chains for one of the balloon's rings.
///
/// # Panics
/// If what is released is not what the ring is for, or more than one call may release.
pub fn balloon(data: &[u8]) {
    let memory = memory();
    let mut input = Input::new(data);
    let (flags, number) = (input.u8(), input.u8());
    let features = u64::from(flags) & (feature::STATS_VQ | feature::FREE_PAGE_HINT | feature::PAGE_REPORTING);
    let Some(role) = role(usize::from(number & 7), features) else {
        return;
    };
    let Some(mut ring) = started(&memory, TABLE, QUEUE_SIZE, flags & 1 != 0) else {
        return;
    };
    let mut work = Work::default();
    while !input.is_empty() {
        match input.u8() % 6 {
            0 => plant(&mut input, &memory, TABLE),
            1 => {
                // Page numbers, where chains may find them.
                let at = u64::from(input.u16());
                for index in 0..u64::from(input.u8() & 31) {
                    let page = input.number() as u32;
                    let _ = memory.write_obj(page, GuestAddress(at + index * 4));
                }
            }
            2 | 3 => {
                for _ in 0..=input.u8() & 31 {
                    offer(&memory, TABLE, QUEUE_SIZE, input.u8().into());
                }
            }
            4 => {
                // Any index.
                let _ = memory.write_obj(input.number() as u16, GuestAddress(TABLE + 0x1002));
            }
            _ => {
                // Nothing but the used ring is written to, so the driver offers no more meanwhile.
                for call in 0.. {
                    assert!(call <= QUEUE_SIZE, "a driver keeps the thread");
                    let mut pages = 0;
                    let more = serve(&mut ring, role, &memory, &mut work, |start, length| {
                        assert!(length > 0);
                        pages += length / PAGE;
                        match role {
                            Role::Inflate => assert!(start.0 % PAGE == 0 && length % PAGE == 0),
                            Role::Deflate => panic!("released while it deflates"),
                            Role::Report => assert!(memory.check_range(start, length as usize)),
                        }
                    });
                    assert!(pages <= BATCH + (MAX_PAGES as u64).max(MAX_BYTES / PAGE));
                    assert!(more.is_ok() || ring.broken());
                    if !matches!(more, Ok(true)) {
                        break;
                    }
                }
            }
        }
    }
}
