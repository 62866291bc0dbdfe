//! The wire format of the Network Block Device protocol (NetworkBlockDevice/nbd, doc/proto.md): fixed newstyle
//! negotiation and simple replies. Numbers are big-endian.

use std::io::{self, Read, Write};

/// "NBDMAGIC", the server's first word.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT", before every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before every simple reply.
pub const REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake flags: fixed newstyle, and no padding after `NBD_OPT_EXPORT_NAME`.
pub const HANDSHAKE_FLAGS: u16 = 1 | 2;

/// Options that a client sends before transmission.
pub mod option {
    /// The old way into transmission; its reply has no header.
    pub const EXPORT_NAME: u32 = 1;
    /// Ends the negotiation.
    pub const ABORT: u32 = 2;
    /// Asks about an export.
    pub const INFO: u32 = 6;
    /// The way into transmission.
    pub const GO: u32 = 7;
}

/// Replies to options.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// A piece of information.
    pub const INFO: u32 = 3;
    /// This server does not know the option.
    pub const ERR_UNSUPPORTED: u32 = 1 << 31 | 1;
    /// The option's data make no sense.
    pub const ERR_INVALID: u32 = 1 << 31 | 3;
}

/// Kinds of information.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub mod flag {
    /// Set in every answer.
    pub const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// Writes may ask for durability.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `TRIM` is understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` is understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
}

/// Commands.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; the data follow the header.
    pub const WRITE: u16 = 1;
    /// The client leaves.
    pub const DISC: u16 = 2;
    /// Everything written is to be on stable storage.
    pub const FLUSH: u16 = 3;
    /// The range is not needed any more.
    pub const TRIM: u16 = 4;
    /// The range becomes zeros.
    pub const WRITE_ZEROES: u16 = 6;
}

/// Command flags.
pub mod command_flag {
    /// On stable storage before the reply.
    pub const FUA: u16 = 1;
    /// Zeros that keep their space.
    pub const NO_HOLE: u16 = 1 << 1;
}

/// Error numbers of the protocol, which are Linux's.
pub mod error {
    /// Writing to a read-only export.
    pub const EPERM: u32 = 1;
    /// The disk failed.
    pub const EIO: u32 = 5;
    /// The request makes no sense.
    pub const EINVAL: u32 = 22;
    /// Beyond the end.
    pub const ENOSPC: u32 = 28;
}

/// The longest option that is read; longer ones end the connection.
pub const MAX_OPTION: u32 = 8192;
/// The most bytes that one command reads or writes.
pub const MAX_TRANSFER: u32 = 32 << 20;

/// A request's header (28 bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// [`command_flag`]s.
    pub flags: u16,
    /// A [`command`].
    pub kind: u16,
    /// Repeated in the reply.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub length: u32,
}

impl Request {
    /// Reads a header.
    ///
    /// # Errors
    /// The stream ended, or does not hold a request.
    pub fn read(stream: &mut impl Read) -> io::Result<Request> {
        if read_u32(stream)? != REQUEST_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not an NBD request"));
        }
        Ok(Request {
            flags: read_u16(stream)?,
            kind: read_u16(stream)?,
            cookie: read_u64(stream)?,
            offset: read_u64(stream)?,
            length: read_u32(stream)?,
        })
    }
}

/// The header of a simple reply (16 bytes).
pub fn reply_header(error: u32, cookie: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
    header[4..8].copy_from_slice(&error.to_be_bytes());
    header[8..].copy_from_slice(&cookie.to_be_bytes());
    header
}

/// Sends a reply to an option.
pub fn reply_option(stream: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(20 + data.len());
    message.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    message.extend(option.to_be_bytes());
    message.extend(kind.to_be_bytes());
    message.extend((data.len() as u32).to_be_bytes());
    message.extend(data);
    stream.write_all(&message)
}

/// Reads a number.
pub fn read_u16(stream: &mut impl Read) -> io::Result<u16> {
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}

/// Reads a number.
pub fn read_u32(stream: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

/// Reads a number.
pub fn read_u64(stream: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}
