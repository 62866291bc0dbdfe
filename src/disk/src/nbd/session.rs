//! One client after the other: negotiation, then requests.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use tracing::{debug, warn};

use super::Shared;
use crate::limits::Cost;

use super::protocol::{self, Request, command, command_flag, error, flag, info, option, reply};

/// How long a write that finds the pool full waits before it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Takes clients, one at a time, until the end; others wait in the socket's backlog.
pub(super) fn accept(listener: &UnixListener, shared: &Shared) {
    loop {
        let accepted = listener.accept();
        // After the listener was shut down, every accept fails.
        match accepted.and_then(|(stream, _)| Ok((stream.try_clone()?, stream))) {
            Ok((copy, stream)) => {
                *shared.client() = Some(copy);
                if shared.stopping.load(Ordering::SeqCst) {
                    return;
                }
                shared.connected.store(true, Ordering::Relaxed);
                if let Err(error) = serve(&stream, shared) {
                    debug!(volume = %shared.spec.id, %error, "the client's connection ended");
                }
                shared.connected.store(false, Ordering::Relaxed);
                shared.client().take();
            }
            Err(_) if shared.stopping.load(Ordering::SeqCst) => return,
            Err(error) => {
                warn!(%error, "cannot accept a client");
                std::thread::sleep(RETRY);
            }
        }
    }
}

/// A client's whole life.
fn serve(stream: &UnixStream, shared: &Shared) -> io::Result<()> {
    let mut writer = stream;
    let mut reader = BufReader::with_capacity(64 << 10, stream);
    if !negotiate(&mut reader, &mut writer, shared)? {
        return Ok(());
    }
    let mut data = Vec::new();
    loop {
        let request = Request::read(&mut reader)?;
        if request.kind == command::DISC {
            return Ok(());
        }
        data.clear();
        if request.kind == command::WRITE {
            // Its data would have to be read, however much it is, to find the next request.
            if request.length > protocol::MAX_TRANSFER {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a write of more than 32 MiB",
                ));
            }
            data.resize(request.length as usize, 0);
            reader.read_exact(&mut data)?;
        }
        let code = match carry_out(&request, &mut data, shared) {
            Ok(()) => 0,
            // A request that waited, for space or for its turn: without an answer the client sends it to the next owner.
            Err(_) if shared.stopping.load(Ordering::SeqCst) => return Ok(()),
            Err(code) => {
                shared.counters.errors.fetch_add(1, Ordering::Relaxed);
                code
            }
        };
        writer.write_all(&protocol::reply_header(code, request.cookie))?;
        if request.kind == command::READ && code == 0 {
            writer.write_all(&data)?;
        }
        data.shrink_to(1 << 20);
    }
}

/// Fixed newstyle negotiation; true if transmission begins.
fn negotiate(reader: &mut impl Read, writer: &mut impl Write, shared: &Shared) -> io::Result<bool> {
    let mut greeting = Vec::new();
    greeting.extend(protocol::INIT_MAGIC.to_be_bytes());
    greeting.extend(protocol::OPTION_MAGIC.to_be_bytes());
    greeting.extend(protocol::HANDSHAKE_FLAGS.to_be_bytes());
    writer.write_all(&greeting)?;
    let no_zeroes = protocol::read_u32(reader)? & 2 != 0;
    loop {
        if protocol::read_u64(reader)? != protocol::OPTION_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not an NBD option"));
        }
        let kind = protocol::read_u32(reader)?;
        let length = protocol::read_u32(reader)?;
        if length > protocol::MAX_OPTION {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "an NBD option of more than 8 KiB",
            ));
        }
        let mut data = vec![0; length as usize];
        reader.read_exact(&mut data)?;
        match kind {
            option::EXPORT_NAME => {
                let mut answer = export(shared);
                if !no_zeroes {
                    answer.resize(answer.len() + 124, 0);
                }
                writer.write_all(&answer)?;
                return Ok(true);
            }
            option::ABORT => {
                protocol::reply_option(writer, kind, reply::ACK, &[])?;
                return Ok(false);
            }
            option::INFO | option::GO => {
                // Name (any: there is one volume), then the list of wanted information.
                let name = data.first_chunk().map(|n| u32::from_be_bytes(*n) as usize);
                let wanted = name.and_then(|n| data.get(n.checked_add(4)?..));
                if wanted.is_none_or(|list| list.len() < 2) {
                    protocol::reply_option(writer, kind, reply::ERR_INVALID, b"the option is too short")?;
                    continue;
                }
                let mut size = info::EXPORT.to_be_bytes().to_vec();
                size.extend(export(shared));
                protocol::reply_option(writer, kind, reply::INFO, &size)?;
                let mut blocks = info::BLOCK_SIZE.to_be_bytes().to_vec();
                for bytes in [shared.granularity(), 4096, protocol::MAX_TRANSFER] {
                    blocks.extend(bytes.to_be_bytes());
                }
                protocol::reply_option(writer, kind, reply::INFO, &blocks)?;
                protocol::reply_option(writer, kind, reply::ACK, &[])?;
                if kind == option::GO {
                    return Ok(true);
                }
            }
            _ => protocol::reply_option(writer, kind, reply::ERR_UNSUPPORTED, &[])?,
        }
    }
}

/// Size and transmission flags.
fn export(shared: &Shared) -> Vec<u8> {
    use flag::{HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES};
    let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA;
    flags |= if shared.spec.read_only {
        READ_ONLY
    } else {
        SEND_TRIM | SEND_WRITE_ZEROES
    };
    let mut answer = shared.size.load(Ordering::SeqCst).to_be_bytes().to_vec();
    answer.extend(flags.to_be_bytes());
    answer
}

/// Carries a request out; `data` is what a write brings, and becomes what a read finds.
fn carry_out(request: &Request, data: &mut Vec<u8>, shared: &Shared) -> Result<(), u32> {
    let Request {
        flags,
        kind,
        offset,
        length,
        ..
    } = *request;
    let Shared {
        spec,
        file,
        cipher,
        counters,
        ..
    } = shared;
    let add = |counter: &AtomicU64, n: u64| counter.fetch_add(n, Ordering::Relaxed);
    let end = offset.checked_add(u64::from(length)).ok_or(error::EINVAL)?;
    match kind {
        command::READ | command::WRITE | command::TRIM | command::WRITE_ZEROES => {
            if end > shared.size.load(Ordering::SeqCst) {
                return Err(if kind == command::READ {
                    error::EINVAL
                } else {
                    error::ENOSPC
                });
            }
            if spec.read_only && kind != command::READ {
                return Err(error::EPERM);
            }
            // A client was told so, and one that did not ask finds out.
            let granularity = shared.granularity();
            if !offset.is_multiple_of(granularity.into()) || !length.is_multiple_of(granularity) {
                return Err(error::EINVAL);
            }
        }
        command::FLUSH => {}
        _ => return Err(error::EINVAL),
    }
    if kind == command::READ && length > protocol::MAX_TRANSFER {
        return Err(error::EINVAL);
    }
    let moves = matches!(kind, command::READ | command::WRITE);
    let cost = Cost {
        reads: kind == command::READ,
        bytes: if moves { length.into() } else { 0 },
    };
    if kind != command::FLUSH && !shared.limits.pass(cost) {
        return Err(error::EIO);
    }
    match kind {
        command::READ => {
            data.resize(length as usize, 0);
            file.read_exact_at(data, offset)
                .map_err(|e| failed(spec.id, &e))?;
            if let Some(cipher) = cipher {
                cipher.open(offset, data);
            }
            add(&counters.reads, 1);
            add(&counters.read_bytes, u64::from(length));
            return Ok(());
        }
        command::WRITE => {
            if let Some(cipher) = cipher {
                cipher.seal(offset, data);
            }
            patiently(shared, || file.write_all_at(data, offset))?;
            add(&counters.writes, 1);
            add(&counters.written_bytes, u64::from(length));
        }
        command::TRIM => patiently(shared, || punch(file, offset, length))?,
        command::WRITE_ZEROES if flags & command_flag::NO_HOLE != 0 => {
            patiently(shared, || zero(file, offset, length))?;
        }
        command::WRITE_ZEROES => patiently(shared, || punch(file, offset, length))?,
        _ => {
            add(&counters.flushes, 1);
        }
    }
    if kind == command::FLUSH || flags & command_flag::FUA != 0 {
        fdatasync(file).map_err(|e| failed(spec.id, &e.into()))?;
    }
    Ok(())
}

/// Tries again for as long as the pool is full. At the end it gives up: the request is not acknowledged.
fn patiently(shared: &Shared, mut write: impl FnMut() -> io::Result<()>) -> Result<(), u32> {
    loop {
        let result = write();
        let full = matches!(&result, Err(e) if e.kind() == io::ErrorKind::StorageFull
            || e.kind() == io::ErrorKind::QuotaExceeded);
        shared.full.store(full, Ordering::Relaxed);
        match result {
            Ok(()) => return Ok(()),
            Err(_) if full && !shared.stopping.load(Ordering::SeqCst) => std::thread::sleep(RETRY),
            Err(e) => return Err(failed(shared.spec.id, &e)),
        }
    }
}

fn punch(file: &File, offset: u64, length: u32) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, hole, offset, length.into())?)
}

fn zero(file: &File, offset: u64, length: u32) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    let zeros = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, zeros, offset, length.into())?)
}

fn failed(volume: uuid::Uuid, failure: &io::Error) -> u32 {
    warn!(%volume, error = %failure, "the volume's file failed");
    error::EIO
}
