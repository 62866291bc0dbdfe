//! Bytes, taken one after the other.

/// What is left of a fuzzer's bytes. Where nothing is left, zeroes come.
#[derive(Debug, Clone)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// These bytes.
    pub fn new(data: &'a [u8]) -> Self {
        Input(data)
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// At most so many bytes.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        head
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let bytes = self.bytes(N);
        out[..bytes.len()].copy_from_slice(bytes);
        out
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number that is small, or near a border, or anything: what makes a bug more likely than eight random bytes do.
    pub fn number(&mut self) -> u64 {
        match self.u8() {
            small @ 0..0x80 => small.into(),
            kind @ 0x80..0xa0 => 1u64 << ((kind & 31) * 2),
            kind @ 0xa0..0xc0 => (1u64 << ((kind & 31) * 2)).wrapping_sub(1),
            0xc0..0xd8 => self.u16().into(),
            0xd8..0xe8 => u64::from(self.u16()) << 4,
            0xe8..0xf4 => self.u32().into(),
            0xf4..0xf8 => u64::MAX - u64::from(self.u8()),
            _ => self.u64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_zero() {
        let mut input = Input::new(&[1, 2, 3]);
        assert_eq!((input.u8(), input.u32(), input.u64()), (1, 0x302, 0));
        assert!(input.is_empty());
        assert_eq!(Input::new(&[0x8a]).number(), 1 << 20);
    }
}
