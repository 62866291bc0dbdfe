//! Requests (virtio 1.2 §5.2.6).

use super::{Geometry, SECTOR};
use crate::{
    chain::{Buffer, Chain, ChainError},
    memory::Memory,
};

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

pub(super) const S_OK: u8 = 0;
pub(super) const S_IOERR: u8 = 1;
pub(super) const S_UNSUPP: u8 = 2;

const HEADER: u32 = 16;
const RANGE: usize = 16;
const FLAG_UNMAP: u32 = 1;

/// What a backend does. Offsets and lengths are multiples of 512 and within the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Read into the buffers.
    Read {
        /// First byte.
        offset: u64,
    },
    /// Write from the buffers.
    Write {
        /// First byte.
        offset: u64,
    },
    /// Make everything that was reported as written durable.
    Flush,
    /// The guest does not need these bytes any more; they read as zeros afterwards, or as they were.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// These bytes read as zeros afterwards.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Their space may be freed.
        unmap: bool,
    },
}

/// What is to be done with a chain.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Hand it to the backend. `buffers` go with a read or a write.
    Run {
        operation: Operation,
        buffers: Vec<Buffer>,
        bytes: u32,
    },
    /// Answer with the serial number.
    Id,
    /// Answer with this status.
    Refuse(u8),
    /// There is no room for a status: nothing can be answered.
    Unanswerable,
}

/// Reads a chain as a request. Whatever the guest wrote, the operation lies within the device.
pub(super) fn parse(
    chain: &Chain,
    memory: &Memory,
    geometry: &Geometry,
    buffers: Vec<Buffer>,
) -> Result<Request, ChainError> {
    if chain.writable_len() == 0 {
        return Ok(Request::Unanswerable);
    }
    let mut header = [0u8; HEADER as usize];
    if chain.read(memory, 0, &mut header)? < header.len() {
        return Ok(Request::Refuse(S_IOERR));
    }
    let sector = u64::from_le_bytes(std::array::from_fn(|i| header[8 + i]));
    let kind = u32::from_le_bytes(std::array::from_fn(|i| header[i]));
    let request = match kind {
        // A read's data is followed by the status byte.
        T_IN => transfer(
            sector,
            chain.writable_len() - 1,
            geometry,
            |offset| Operation::Read { offset },
            |bytes| slice(chain.writable(), 0, bytes, buffers),
        ),
        T_OUT | T_DISCARD | T_WRITE_ZEROES if geometry.read_only => Request::Refuse(S_IOERR),
        T_OUT => transfer(
            sector,
            chain.readable_len() - HEADER,
            geometry,
            |offset| Operation::Write { offset },
            |bytes| slice(chain.readable(), HEADER, bytes, buffers),
        ),
        T_FLUSH => Request::Run {
            operation: Operation::Flush,
            buffers,
            bytes: 0,
        },
        T_GET_ID => Request::Id,
        T_DISCARD | T_WRITE_ZEROES => zero(chain, memory, geometry, kind == T_DISCARD, buffers)?,
        _ => Request::Refuse(S_UNSUPP),
    };
    Ok(request)
}

fn transfer(
    sector: u64,
    bytes: u32,
    geometry: &Geometry,
    operation: impl FnOnce(u64) -> Operation,
    buffers: impl FnOnce(u32) -> Vec<Buffer>,
) -> Request {
    let sectors = u64::from(bytes) / SECTOR;
    if !u64::from(bytes).is_multiple_of(SECTOR) || !within(sector, sectors, geometry) {
        return Request::Refuse(S_IOERR);
    }
    Request::Run {
        operation: operation(sector * SECTOR),
        buffers: buffers(bytes),
        bytes,
    }
}

/// Discard and write-zeroes: one range, as many as the configuration space allows.
fn zero(
    chain: &Chain,
    memory: &Memory,
    geometry: &Geometry,
    discard: bool,
    buffers: Vec<Buffer>,
) -> Result<Request, ChainError> {
    let mut range = [0u8; RANGE];
    if chain.readable_len() != HEADER + RANGE as u32 || chain.read(memory, HEADER, &mut range)? < RANGE {
        return Ok(Request::Refuse(S_IOERR));
    }
    let sector = u64::from_le_bytes(std::array::from_fn(|i| range[i]));
    let sectors = u32::from_le_bytes(std::array::from_fn(|i| range[8 + i]));
    let flags = u32::from_le_bytes(std::array::from_fn(|i| range[12 + i]));
    // §5.2.6.2: a discard with the unmap flag, and unknown flags, are unsupported.
    if flags & !FLAG_UNMAP != 0 || discard && flags != 0 {
        return Ok(Request::Refuse(S_UNSUPP));
    }
    if sectors == 0 || sectors > geometry.max_zero_sectors() || !within(sector, sectors.into(), geometry) {
        return Ok(Request::Refuse(S_IOERR));
    }
    let (offset, len) = (sector * SECTOR, u64::from(sectors) * SECTOR);
    let operation = if discard {
        Operation::Discard { offset, len }
    } else {
        Operation::WriteZeroes {
            offset,
            len,
            unmap: flags & FLAG_UNMAP != 0,
        }
    };
    Ok(Request::Run {
        operation,
        buffers,
        bytes: 0,
    })
}

fn within(sector: u64, sectors: u64, geometry: &Geometry) -> bool {
    sector
        .checked_add(sectors)
        .is_some_and(|end| end <= geometry.sectors)
}

/// The buffers that hold `len` bytes from `skip` on.
fn slice(from: &[Buffer], mut skip: u32, mut len: u32, mut into: Vec<Buffer>) -> Vec<Buffer> {
    for buffer in from {
        if len == 0 {
            break;
        }
        if skip >= buffer.len {
            skip -= buffer.len;
            continue;
        }
        let n = (buffer.len - skip).min(len);
        into.push(Buffer {
            addr: vm_memory::GuestAddress(buffer.addr.0 + u64::from(skip)),
            len: n,
        });
        (skip, len) = (0, len - n);
    }
    into
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_queue::desc::split::Descriptor;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const SECTORS: u64 = 64;

    fn geometry(read_only: bool) -> Geometry {
        Geometry {
            sectors: SECTORS,
            read_only,
            queues: 1,
            serial: [0; 20],
        }
    }

    /// A chain with these readable bytes and a writable buffer of this size.
    fn request(readable: &[u8], writable: u32, read_only: bool) -> Request {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x40000)]).unwrap();
        let mut chain = Chain::new();
        // Split in an awkward place, so that the header spans buffers.
        let cut = readable.len().min(7);
        memory.write_slice(readable, GuestAddress(0x1000)).unwrap();
        let descriptors = [
            Descriptor::new(0x1000, cut as u32, 1, 1),
            Descriptor::new(0x1000 + cut as u64, (readable.len() - cut) as u32, 1, 2),
            Descriptor::new(0x10000, writable, 2, 0),
        ];
        for (i, descriptor) in descriptors.iter().enumerate() {
            memory
                .write_obj(*descriptor, GuestAddress(i as u64 * 16))
                .unwrap();
        }
        chain.load(&memory, GuestAddress(0), 8, 0).unwrap();
        parse(&chain, &memory, &geometry(read_only), Vec::new()).unwrap()
    }

    fn header(kind: u32, sector: u64) -> Vec<u8> {
        [kind.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat()
    }

    fn range(kind: u32, sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
        [
            &header(kind, 0)[..],
            &sector.to_le_bytes(),
            &sectors.to_le_bytes(),
            &flags.to_le_bytes(),
        ]
        .concat()
    }

    #[test]
    fn reads_and_writes_name_their_buffers() {
        let Request::Run {
            operation,
            buffers,
            bytes,
        } = request(&header(T_IN, 2), 1025, false)
        else {
            panic!("a read is run")
        };
        assert_eq!((operation, bytes), (Operation::Read { offset: 1024 }, 1024));
        assert_eq!(
            buffers,
            [Buffer {
                addr: GuestAddress(0x10000),
                len: 1024
            }]
        );

        let write = [header(T_OUT, 63), vec![7; 512]].concat();
        let Request::Run {
            operation, buffers, ..
        } = request(&write, 1, false)
        else {
            panic!("a write is run")
        };
        assert_eq!(operation, Operation::Write { offset: 63 * 512 });
        assert_eq!(
            buffers,
            [Buffer {
                addr: GuestAddress(0x1010),
                len: 512
            }]
        );
    }

    #[test]
    fn what_is_outside_or_malformed_is_refused() {
        let io = Request::Refuse(S_IOERR);
        let unsupported = Request::Refuse(S_UNSUPP);
        assert_eq!(request(&header(T_IN, 63), 1025, false), io, "beyond the end");
        assert_eq!(request(&header(T_IN, u64::MAX), 513, false), io, "overflow");
        assert_eq!(request(&header(T_IN, 0), 500, false), io, "half a sector");
        assert_eq!(request(&header(T_IN, 0)[..9], 513, false), io, "half a header");
        assert_eq!(
            request(&[header(T_OUT, 0), vec![0; 512]].concat(), 1, true),
            io,
            "read-only"
        );
        assert_eq!(request(&header(T_IN, 0), 0, false), Request::Unanswerable);
        assert_eq!(request(&header(99, 0), 1, false), unsupported);
        assert_eq!(
            request(&range(T_DISCARD, 0, 8, FLAG_UNMAP), 1, false),
            unsupported
        );
        assert_eq!(request(&range(T_WRITE_ZEROES, 0, 8, 2), 1, false), unsupported);
        assert_eq!(request(&range(T_WRITE_ZEROES, 60, 5, 0), 1, false), io);
        assert_eq!(request(&range(T_DISCARD, 0, 0, 0), 1, false), io);
        assert_eq!(request(&range(T_DISCARD, 0, 8, 0)[..24], 1, false), io);
    }

    #[test]
    fn zeroing_keeps_its_flags() {
        let Request::Run { operation, .. } = request(&range(T_WRITE_ZEROES, 8, 8, FLAG_UNMAP), 1, false)
        else {
            panic!("write-zeroes is run")
        };
        assert_eq!(
            operation,
            Operation::WriteZeroes {
                offset: 4096,
                len: 4096,
                unmap: true
            }
        );
        let Request::Run { operation, .. } = request(&range(T_DISCARD, 8, 56, 0), 1, false) else {
            panic!("discard is run")
        };
        assert_eq!(
            operation,
            Operation::Discard {
                offset: 4096,
                len: 56 * 512
            }
        );
    }

    proptest! {
        /// Whatever the guest asks, what reaches the backend lies within the device.
        #[test]
        fn nothing_reaches_beyond_the_device(
            kind in prop_oneof![0u32..16, any::<u32>()],
            sector in prop_oneof![0u64..80, any::<u64>()],
            sectors in prop_oneof![0u32..80, any::<u32>()],
            flags in 0u32..4,
            data in 0usize..2048,
            writable in prop_oneof![0u32..4, 0u32..0x20000],
        ) {
            let mut bytes = [
                &kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(),
                &sector.to_le_bytes(), &sectors.to_le_bytes(), &flags.to_le_bytes(),
            ].concat();
            bytes.resize(bytes.len().max(16) + data, 0);
            if let Request::Run { operation, buffers, bytes } = request(&bytes, writable, false) {
                let total: u64 = buffers.iter().map(|b| u64::from(b.len)).sum();
                prop_assert_eq!(total, u64::from(bytes));
                let (offset, len) = match operation {
                    Operation::Read { offset } | Operation::Write { offset } => (offset, total),
                    Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. } => (offset, len),
                    Operation::Flush => (0, 0),
                };
                prop_assert!(offset % 512 == 0 && len % 512 == 0);
                prop_assert!(offset + len <= SECTORS * 512);
            }
        }
    }
}
