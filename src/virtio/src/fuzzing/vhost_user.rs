//! A vhost-user frontend that sends what it likes.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use nix::unistd::ftruncate;
use vm_memory::{Bytes, GuestAddress};

use super::ring::{check, eventfd};
use super::{Input, plant};
use crate::chain::Chain;
use crate::vhost_user::{Connection, Event, Next, Offer};

/// A file of the kinds that frontends send, and of others.
fn descriptor(kind: u8) -> Option<OwnedFd> {
    match kind & 7 {
        0..4 => Some(eventfd().into()),
        4 | 5 => {
            let file = memfd_create(c"fuzz", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC).ok()?;
            ftruncate(&file, i64::from(kind >> 3) * 4096).ok()?;
            if kind & 1 == 0 {
                fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).ok()?;
            }
            Some(file)
        }
        6 => Some(nix::unistd::pipe().ok()?.0),
        _ => Some(UnixStream::pair().ok()?.0.into()),
    }
}

/// A payload: for messages with a known layout one that could be meant so.
fn payload(input: &mut Input<'_>, code: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let mut words = |words: &[u64]| words.iter().for_each(|word| out.extend(word.to_ne_bytes()));
    match code {
        // Memory: one region each, of pages.
        5 | 37 | 38 => {
            let regions = if code == 5 { input.u8() % 9 } else { 1 };
            words(&[u64::from(regions)]);
            for _ in 0..regions {
                let mut page = || u64::from(input.u8()) * 4096;
                words(&[page(), page(), page() + 0x1_0000_0000, page()]);
            }
        }
        // A ring's addresses.
        9 => {
            words(&[u64::from(input.u8() & 1) | u64::from(input.u8() & 1) << 32]);
            for _ in 0..3 {
                words(&[0x1_0000_0000 + u64::from(input.u8()) * 1024]);
            }
            words(&[0]);
        }
        // A ring and a number.
        8 | 10 | 11 | 18 => {
            let (ring, number) = (input.u8() & 1, input.number() as u32);
            words(&[u64::from(ring) | u64::from(number) << 32]);
        }
        // A ring with a descriptor.
        12..=14 => words(&[u64::from(input.u8() & 1)]),
        2 | 16 => words(&[input.number() | u64::from(input.u8()) << 24]),
        _ => {}
    }
    let more = usize::from(input.u8() & 63);
    out.extend(input.bytes(more));
    out
}

/// Messages with descriptors; and rings in the memory that they share, which are served.
///
/// # Panics
/// If a chain is not as its documentation says.
pub fn vhost_user(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.u8();
    let offer = Offer {
        queues: 2,
        queue_size: 16,
        config: vec![1, 2, 3, 4, 5, 6, 7, 8],
        writable_config: (flags & 1 != 0).then_some((4, 4)),
        inflight: flags & 2 != 0,
        in_order: flags & 4 != 0,
        sealed_memory: flags & 8 == 0,
        max_memory: 4 << 20,
        ..Offer::default()
    };
    let Ok((frontend, backend)) = UnixStream::pair() else {
        return;
    };
    let Ok(mut connection) = Connection::new(backend, offer) else {
        return;
    };
    let mut chain = Chain::new();
    let mut answer = vec![0; 8192];
    while !input.is_empty() {
        let kind = input.u8();
        let code = u32::from(kind & 63);
        if code >= 48 {
            // No message, but what a guest writes to the memory that it shares.
            let memory = connection.memory().clone();
            let page = u64::from(input.u8()) * 1024;
            plant(&mut input, &memory, page);
            let _ = memory.write_obj(input.u16(), GuestAddress(page + 2));
            continue;
        }
        let attached = input.u8();
        let body = payload(&mut input, code);
        let size = if attached & 0x80 != 0 {
            input.u32()
        } else {
            body.len() as u32
        };
        let version = if kind & 0x40 != 0 { 1 | 8 } else { 1 };
        let mut message: Vec<u8> = [code, version, size]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        message.extend(&body);
        // A file that cannot shrink and one that can, of sizes that the input chooses.
        let files: Vec<OwnedFd> = (0..attached & 15)
            .filter_map(|_| descriptor(input.u8()))
            .collect();
        let raw: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights };
        let sent = sendmsg::<()>(
            frontend.as_raw_fd(),
            &[IoSlice::new(&message)],
            control,
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            None,
        );
        if sent.is_err() {
            return;
        }
        loop {
            match connection.look() {
                Ok(Next::Idle) => break,
                Ok(Next::Request { .. }) => {}
                Err(_) => return,
            }
            let Ok(event) = connection.handle() else { return };
            if let Event::Ring(ring) = event {
                serve(&mut connection, ring, &mut chain);
            }
            // What is answered is not waited for.
            let _ = recv(frontend.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT);
        }
    }
}

fn serve(connection: &mut Connection, ring: u16, chain: &mut Chain) {
    for head in connection.take_recovered(ring) {
        let memory = connection.memory().clone();
        if connection.ring(ring).load(&memory, head, chain).is_ok() {
            check(chain, &memory);
            let _ = connection.complete(ring, head, 0);
        }
    }
    for _ in 0..32 {
        if !matches!(connection.take(ring, chain), Ok(true)) {
            break;
        }
        let memory = connection.memory().clone();
        check(chain, &memory);
        let _ = connection.complete(ring, chain.head(), chain.writable_len());
    }
}
