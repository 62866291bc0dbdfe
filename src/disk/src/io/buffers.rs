//! Buffers through which encrypted transfers go, of three sizes, so that they are used again. What is in use at once is bounded.

/// Sizes in bytes. A transfer that needs more goes piece by piece.
const SIZES: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];
/// The most bytes in use at once.
const MOST: usize = 32 << 20;
/// The most bytes that are kept for later.
const KEPT: usize = 4 << 20;
/// What `O_DIRECT` demands of addresses at most.
const ALIGNMENT: usize = 4096;

/// A buffer on the heap, aligned for `O_DIRECT`.
#[derive(Debug)]
pub(super) struct Buffer {
    space: Vec<u8>,
    start: usize,
    length: usize,
    size: usize,
}

impl Buffer {
    fn new(size: usize) -> Self {
        let space = vec![0; SIZES[size] + ALIGNMENT];
        Buffer {
            start: space.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT),
            space,
            length: SIZES[size],
            size,
        }
    }

    /// As many bytes as were asked for, or as a buffer has.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.space[self.start..self.start + self.length]
    }
}

/// The buffers of an engine.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: [Vec<Buffer>; SIZES.len()],
    kept: usize,
    used: usize,
}

impl Buffers {
    /// A buffer of so many bytes, or of as many as the largest has. `None`: too many are in use.
    pub(super) fn take(&mut self, length: usize) -> Option<Buffer> {
        let size = SIZES
            .iter()
            .position(|size| length <= *size)
            .unwrap_or(SIZES.len() - 1);
        if self.used + SIZES[size] > MOST {
            return None;
        }
        self.used += SIZES[size];
        let mut buffer = match self.free[size].pop() {
            Some(buffer) => {
                self.kept -= SIZES[size];
                buffer
            }
            None => Buffer::new(size),
        };
        buffer.length = length.min(SIZES[size]);
        Some(buffer)
    }

    /// It is not needed any more.
    pub(super) fn give(&mut self, buffer: Buffer) {
        let size = SIZES[buffer.size];
        self.used -= size;
        if self.kept + size <= KEPT {
            self.kept += size;
            self.free[buffer.size].push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_large_enough_and_bounded() {
        let mut buffers = Buffers::default();
        for length in [1, 512, 4096, 4097, 65536, 65537, 1 << 20, 5 << 20] {
            let mut buffer = buffers.take(length).unwrap();
            assert_eq!(buffer.bytes().len(), length.min(1 << 20));
            assert!(buffer.bytes().as_ptr().addr().is_multiple_of(ALIGNMENT));
            buffers.give(buffer);
        }
        assert_eq!(buffers.used, 0);
        let all: Vec<_> = std::iter::from_fn(|| buffers.take(1 << 20)).collect();
        assert_eq!(all.len(), 32);
        assert!(buffers.take(512).is_none());
        all.into_iter().for_each(|buffer| buffers.give(buffer));
        assert!(buffers.kept <= KEPT && buffers.used == 0);
        assert!(buffers.take(512).is_some());
    }
}
