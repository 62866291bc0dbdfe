//! Packets (virtio 1.2 §5.10.6).

/// Bytes of a header.
pub const HEADER: usize = 44;
/// `VIRTIO_VSOCK_TYPE_STREAM`
pub const STREAM: u16 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_RCV`: the sender receives no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_SEND`: the sender sends no more.
pub const SHUTDOWN_SEND: u32 = 2;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Let there be a connection.
    Request,
    /// There is one.
    Response,
    /// There is none, or no longer.
    Reset,
    /// One direction, or both, are over.
    Shutdown,
    /// Bytes.
    Data,
    /// How much room the sender has.
    Credit,
    /// The sender would like to know how much room the receiver has.
    AskCredit,
    /// Something that the standard does not know.
    Unknown(u16),
}

impl From<u16> for Operation {
    fn from(op: u16) -> Self {
        match op {
            1 => Operation::Request,
            2 => Operation::Response,
            3 => Operation::Reset,
            4 => Operation::Shutdown,
            5 => Operation::Data,
            6 => Operation::Credit,
            7 => Operation::AskCredit,
            other => Operation::Unknown(other),
        }
    }
}

impl From<Operation> for u16 {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Request => 1,
            Operation::Response => 2,
            Operation::Reset => 3,
            Operation::Shutdown => 4,
            Operation::Data => 5,
            Operation::Credit => 6,
            Operation::AskCredit => 7,
            Operation::Unknown(other) => other,
        }
    }
}

/// A packet's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Who sends it.
    pub src_cid: u64,
    /// Who is to get it.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// Bytes that follow.
    pub len: u32,
    /// The kind of socket.
    pub kind: u16,
    /// What it is for.
    pub operation: Operation,
    /// Which directions a shutdown ends.
    pub flags: u32,
    /// Bytes that the sender has room for.
    pub buf_alloc: u32,
    /// Bytes that it has taken out of there, ever.
    pub fwd_cnt: u32,
}

impl Header {
    /// From its bytes. Any bytes are one.
    pub fn parse(bytes: &[u8; HEADER]) -> Self {
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Header {
            src_cid: long(0),
            dst_cid: long(8),
            src_port: word(16),
            dst_port: word(20),
            len: word(24),
            kind: short(28),
            operation: short(30).into(),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        }
    }

    /// To its bytes.
    pub fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, from: &[u8]| bytes[at..at + from.len()].copy_from_slice(from);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &u16::from(self.operation).to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_header_and_none_is_lost(bytes in prop::collection::vec(any::<u8>(), HEADER)) {
            let bytes: [u8; HEADER] = bytes.try_into().unwrap();
            prop_assert_eq!(Header::parse(&bytes).bytes(), bytes);
        }
    }
}
