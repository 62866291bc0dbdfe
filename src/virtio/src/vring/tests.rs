//! Rings that the guest's driver places by itself.

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;

/// Bytes of guest memory.
const MEMORY: u64 = 0x10000;

fn eventfd() -> File {
    use std::os::fd::{FromRawFd, IntoRawFd};
    let descriptor = EventFd::new(EFD_NONBLOCK).unwrap().into_raw_fd();
    // SAFETY: the descriptor was just given up by its one owner.
    #[allow(unsafe_code)]
    unsafe {
        File::from_raw_fd(descriptor)
    }
}

fn placement() -> Placement {
    Placement {
        size: 8,
        at: RingAddresses {
            descriptors: 0x1000,
            available: 0x2000,
            used: 0x3000,
        },
        event_idx: false,
        next: 0,
    }
}

fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap()
}

/// Make the one-descriptor chain `head` available as number `index`.
fn offer(memory: &Memory, head: u16, index: u16) {
    let descriptor = Descriptor::new(0x4000 + u64::from(head) * 16, 16, 2, 0);
    memory
        .write_obj(descriptor, GuestAddress(0x1000 + u64::from(head) * 16))
        .unwrap();
    memory
        .write_obj(head, GuestAddress(0x2004 + u64::from(index % 8) * 2))
        .unwrap();
    memory
        .write_obj(index.wrapping_add(1), GuestAddress(0x2002))
        .unwrap();
}

#[test]
fn a_ring_goes_on_where_it_was_halted() {
    let memory = memory();
    let (kick, call) = (eventfd(), eventfd());
    let mut ring = Vring::new(256).unwrap();
    let mut chain = Chain::new();
    ring.start_at(
        &memory,
        placement(),
        kick.try_clone().unwrap(),
        Some(call.try_clone().unwrap()),
    )
    .unwrap();
    offer(&memory, 3, 0);
    assert!(ring.pop(&memory, &mut chain).unwrap());
    assert_eq!((chain.head(), chain.writable_len()), (3, 16));
    ring.push_used(&memory, 3, 16).unwrap();
    assert!(ring.notify(&memory));
    let next = ring.halt();
    assert_eq!(next, 1);
    assert!(!ring.running() && !ring.pop(&memory, &mut chain).unwrap());
    offer(&memory, 5, 1);
    ring.start_at(&memory, Placement { next, ..placement() }, kick, Some(call))
        .unwrap();
    assert!(ring.pop(&memory, &mut chain).unwrap());
    assert_eq!(chain.head(), 5);
    ring.push_used(&memory, 5, 1).unwrap();
    assert_eq!(
        memory.read_obj::<u16>(GuestAddress(0x3002)).unwrap(),
        2,
        "used goes on, too"
    );
}

#[test]
fn a_guest_is_interrupted_for_what_is_new_alone() {
    let memory = memory();
    let call = eventfd();
    let mut ring = Vring::new(16).unwrap();
    ring.start_at(&memory, placement(), eventfd(), Some(call.try_clone().unwrap()))
        .unwrap();
    let rang = || std::io::Read::read(&mut &call, &mut [0; 8]).is_ok();
    assert!(!rang(), "at its start");
    assert!(!ring.notify(&memory) && !rang(), "for nothing");
    offer(&memory, 3, 0);
    assert!(ring.pop(&memory, &mut Chain::new()).unwrap());
    assert!(!ring.notify(&memory) && !rang(), "for what was taken");
    ring.push_used(&memory, 3, 0).unwrap();
    assert!(ring.notify(&memory) && rang());
    assert!(!ring.notify(&memory) && !rang(), "again");
}

/// What a driver does with an event index (virtio 1.2 §2.7.10).
fn kicks(memory: &Memory, old: u16, new: u16) -> bool {
    let event: u16 = memory.read_obj(GuestAddress(0x3004 + 8 * 8)).unwrap();
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[test]
fn a_guest_with_event_indices_kicks_when_it_is_asked_to_and_not_before() {
    let memory = memory();
    for next in [0, 7, u16::MAX] {
        let place = Placement {
            event_idx: true,
            next,
            ..placement()
        };
        assert_eq!(place.size, 8);
        memory.write_obj(next, GuestAddress(0x2002)).unwrap();
        let mut ring = Vring::new(16).unwrap();
        ring.start_at(&memory, place, eventfd(), None).unwrap();
        for count in 1..=8 {
            let new = next.wrapping_add(count);
            assert!(kicks(&memory, next, new), "at the start");
            ring.disable_kicks(&memory);
            assert!(!kicks(&memory, next, new), "{count} while disabled");
            assert!(!ring.enable_kicks(&memory));
            assert!(kicks(&memory, next, new), "{count} while enabled");
        }
    }
}

#[test]
fn places_outside_memory_or_out_of_line_are_refused() {
    let memory = memory();
    let mut ring = Vring::new(16).unwrap();
    let good = placement();
    let at = good.at;
    for bad in [
        Placement { size: 0, ..good },
        Placement { size: 3, ..good },
        Placement { size: 32, ..good },
        Placement {
            at: RingAddresses {
                descriptors: 0x1008,
                ..at
            },
            ..good
        },
        Placement {
            at: RingAddresses {
                available: 0x2001,
                ..at
            },
            ..good
        },
        Placement {
            at: RingAddresses { used: 0x3002, ..at },
            ..good
        },
        Placement {
            at: RingAddresses {
                descriptors: MEMORY - 16,
                ..at
            },
            ..good
        },
        Placement {
            at: RingAddresses {
                available: MEMORY - 2,
                ..at
            },
            ..good
        },
        Placement {
            at: RingAddresses {
                used: u64::MAX - 3,
                ..at
            },
            ..good
        },
        Placement {
            at: RingAddresses { available: 0, ..at },
            ..good
        },
    ] {
        ring.start_at(&memory, bad, eventfd(), None).unwrap_err();
        assert!(!ring.started(), "{bad:?}");
    }
    let file = tempfile();
    assert!(matches!(
        ring.start_at(&memory, good, file, None),
        Err(RingError::NotEventFd)
    ));
    ring.start_at(&memory, good, eventfd(), None).unwrap();
    assert!(ring.running());
}

/// A file that is no eventfd.
fn tempfile() -> File {
    File::open("/proc/self/exe").unwrap()
}

proptest! {
    /// Wherever a driver places a ring and whatever lies there: it is refused, or runs, breaks and stops without harm.
    #[test]
    fn any_place_is_harmless(
        bytes in proptest::collection::vec(any::<u8>(), 2048),
        (descriptors, available, used) in (0u64..0x900, 0u64..0x900, 0u64..0x900),
        (size, next, event_idx) in (0u16..40, any::<u16>(), any::<bool>()),
    ) {
        let memory = memory();
        memory.write_slice(&bytes, GuestAddress(0)).unwrap();
        let mut ring = Vring::new(32).unwrap();
        let at = RingAddresses { descriptors: descriptors & !15, available: available & !1, used: used & !3 };
        let placement = Placement { size: size.next_power_of_two(), at, event_idx, next };
        if ring.start_at(&memory, placement, eventfd(), Some(eventfd())).is_ok() {
            let mut chain = Chain::new();
            for _ in 0..100 {
                match ring.pop(&memory, &mut chain) {
                    Ok(true) => { let _ = ring.push_used(&memory, chain.head(), 0); }
                    Ok(false) => { ring.enable_kicks(&memory); }
                    Err(_) => prop_assert!(!ring.running()),
                }
            }
            ring.notify(&memory);
            ring.halt();
            prop_assert!(!ring.started());
        }
    }
}
