use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use proptest::prelude::*;
use vm_memory::{Bytes, FileOffset, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::vhost_user::{Connection, Error, Event, Next, Offer};
use crate::vring::RingAddresses;

const SOON: Duration = Duration::from_secs(20);
const SIZE: u64 = 1 << 20;

fn soon() -> Instant {
    Instant::now() + SOON
}

fn eventfd() -> File {
    let fd = EventFd::new(EFD_NONBLOCK).unwrap().into_raw_fd();
    // SAFETY: the descriptor was just given up by its one owner.
    #[allow(unsafe_code)]
    unsafe {
        File::from_raw_fd(fd)
    }
}

/// In two parts, with a hole.
fn memory() -> Memory {
    let file = File::from(memfd_create(c"guest", MFdFlags::MFD_ALLOW_SEALING).unwrap());
    file.set_len(2 * SIZE).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
    let part = |start, offset| {
        let share = FileOffset::new(file.try_clone().unwrap(), offset);
        (GuestAddress(start), SIZE as usize, Some(share))
    };
    Memory::from_ranges_with_files([part(0, 0), part(4 * SIZE, SIZE)]).unwrap()
}

/// A backend that does what it is asked until the frontend goes away: the events, and the connection.
fn backend(offer: Offer) -> (UnixStream, JoinHandle<(Vec<Event>, Connection)>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut connection = Connection::new(theirs, offer).unwrap();
        let mut events = Vec::new();
        loop {
            poll(
                &mut [PollFd::new(connection.as_fd(), PollFlags::POLLIN)],
                PollTimeout::NONE,
            )
            .unwrap();
            match connection.look() {
                Ok(Next::Request { .. }) => events.push(connection.handle().unwrap()),
                Ok(Next::Idle) => {}
                Err(Error::Closed) => return (events, connection),
                Err(error) => panic!("{error}"),
            }
        }
    });
    (ours, thread)
}

fn placement(at: u64, next: u16) -> Placement {
    Placement {
        size: 16,
        at: RingAddresses {
            descriptors: at + 0x1000,
            available: at + 0x2000,
            used: at + 0x3000,
        },
        event_idx: true,
        next,
    }
}

#[test]
fn rings_start_where_the_driver_put_them_and_stop_with_their_index() {
    let offer = Offer {
        features: 5,
        queues: 4,
        ..Offer::default()
    };
    let (stream, thread) = backend(offer);
    let mut frontend = Frontend::greet(stream, soon()).unwrap();
    assert_eq!((frontend.features() & 7, frontend.rings()), (5, 4));
    let memory = memory();
    // Twice, as over a pause.
    for features in [feature::VERSION_1 | 1, feature::VERSION_1 | 4] {
        frontend.set_features(features).unwrap();
        frontend.set_memory(&memory).unwrap();
        let (kick, call, broken) = (eventfd(), eventfd(), eventfd());
        for (index, at, next) in [(0, 0, 7), (3, 4 * SIZE, 0xffff)] {
            let call = (index == 0).then(|| call.as_fd());
            let place = placement(at, next);
            frontend
                .start_ring(index, &place, kick.as_fd(), call, broken.as_fd())
                .unwrap();
            frontend.enable_ring(index, true).unwrap();
        }
        frontend.settle().unwrap();
        frontend.look().unwrap();
        assert_eq!(
            (&call).read(&mut [0; 8]).unwrap(),
            8,
            "a start interrupts the guest"
        );
        // The backend has asked for kicks where the ring is.
        assert_eq!(memory.read_obj::<u16>(GuestAddress(0x3004 + 16 * 8)).unwrap(), 0);
        for (index, next) in [(0, 7), (3, 0xffff)] {
            frontend.enable_ring(index, false).unwrap();
            assert_eq!(frontend.stop_ring(index).unwrap(), next);
        }
    }
    drop(frontend);
    let (events, connection) = thread.join().unwrap();
    assert!(events.contains(&Event::Ring(3)) && events.contains(&Event::Stopped(3)));
    assert_eq!(connection.features() & 7, 4);
}

#[test]
fn what_a_backend_refuses_is_known() {
    let (stream, thread) = backend(Offer::default());
    let mut frontend = Frontend::greet(stream, soon()).unwrap();
    let memory = Memory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
    assert!(matches!(frontend.set_memory(&memory), Err(FrontendError::Memory)));
    assert!(matches!(
        frontend.set_features(2),
        Err(FrontendError::Refused("SET_FEATURES"))
    ));
    assert!(thread.join().is_err(), "it gave up");
    frontend.look().unwrap_err();
}

#[test]
fn a_deaf_backend_and_one_that_drips_cost_no_more_than_the_deadline() {
    for drips in [false, true] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            // A good answer to GET_FEATURES, which would take four seconds.
            let mut reply = [1u32, VERSION | REPLY, 8].map(u32::to_ne_bytes).concat();
            reply.extend(feature::PROTOCOL_FEATURES.to_ne_bytes());
            for byte in reply.into_iter().filter(|_| drips) {
                if theirs.write_all(&[byte]).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(200));
            }
            let _ = theirs.read_to_end(&mut Vec::new());
        });
        let start = Instant::now();
        let error = Frontend::greet(ours, start + Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, FrontendError::Deaf), "{error}");
        assert!(
            start.elapsed() < Duration::from_millis(700),
            "{:?}",
            start.elapsed()
        );
        thread.join().unwrap();
    }
}

#[test]
fn a_backend_whose_socket_is_full_or_closed_is_given_up() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    while (&ours).write(&[0; 4096]).is_ok() {}
    let start = Instant::now();
    let error = Frontend::greet(ours, start + Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, FrontendError::Deaf), "{error}");
    drop(theirs);
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let error = Frontend::greet(ours, soon()).unwrap_err();
    assert!(matches!(error, FrontendError::Closed), "{error}");
}

#[test]
fn nobody_at_the_path_is_known_at_once() {
    let folder = std::env::temp_dir().join(format!("frontend-{}", std::process::id()));
    assert_eq!(connect(&folder.join("none")).unwrap_err(), Errno::ENOENT);
    let listener = std::os::unix::net::UnixListener::bind(&folder).unwrap();
    connect(&folder).unwrap();
    drop(listener);
    assert_eq!(connect(&folder).unwrap_err(), Errno::ECONNREFUSED);
    std::fs::remove_file(&folder).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever a backend says in whichever order: an answer or an error, in time.
    #[test]
    fn any_reply_is_taken_or_refused(replies in prop::collection::vec(
        (prop_oneof![0u32..40, Just(1), Just(15), Just(17), Just(11), any::<u32>()], prop_oneof![0u32..16, Just(5), any::<u32>()],
         prop_oneof![Just(8u32), any::<u32>()], prop_oneof![any::<u64>(), Just(u64::MAX), Just(0)]), 0..12
    ), closes in any::<bool>()) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        for (code, flags, length, payload) in replies {
            theirs.write_all([code, flags, length].map(u32::to_ne_bytes).as_flattened()).unwrap();
            theirs.write_all(&payload.to_ne_bytes()).unwrap();
        }
        if closes {
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let start = Instant::now();
        if let Ok(mut frontend) = Frontend::greet(ours, start + Duration::from_millis(5)) {
            prop_assert!(frontend.rings() <= 256);
            prop_assert!(frontend.features() & feature::PROTOCOL_FEATURES != 0);
            let fd = eventfd();
            let _ = frontend.set_features(1);
            let _ = frontend.set_memory(&memory());
            let _ = frontend.start_ring(0, &placement(0, 0), fd.as_fd(), None, fd.as_fd());
            let _ = frontend.stop_ring(0);
            let _ = frontend.look();
        }
        prop_assert!(start.elapsed() < Duration::from_secs(2));
    }
}
