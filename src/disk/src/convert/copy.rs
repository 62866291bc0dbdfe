//! Writing the result: sparse, whatever the source looks like.

use std::{fs::File, os::unix::fs::FileExt};

use super::{ConvertError, Limits};

/// Zeros are left out in pieces of this size.
const CLUSTER: usize = 64 << 10;
/// Bytes per system call.
const CHUNK: usize = 1 << 20;

/// The raw image that is being written.
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    /// The cluster that was counted last, so that one which is written in parts counts once.
    last: Option<u64>,
    clusters: u64,
}

impl Output {
    pub(super) fn new(file: File) -> Result<Self, ConvertError> {
        // What is not written must read as zeros.
        file.set_len(0)?;
        Ok(Self {
            file,
            last: None,
            clusters: 0,
        })
    }

    /// Writes what is not zero. Offsets rise from call to call.
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), ConvertError> {
        // Pieces end where clusters of the output end.
        let mut start = 0;
        let mut run: Option<usize> = None;
        while start < bytes.len() {
            let at = offset + start as u64;
            let n = (CLUSTER - (at % CLUSTER as u64) as usize).min(bytes.len() - start);
            if is_zero(&bytes[start..start + n]) {
                if let Some(begin) = run.take() {
                    self.file
                        .write_all_at(&bytes[begin..start], offset + begin as u64)?;
                }
            } else {
                self.count(at / CLUSTER as u64);
                run.get_or_insert(start);
            }
            start += n;
        }
        if let Some(begin) = run {
            self.file.write_all_at(&bytes[begin..], offset + begin as u64)?;
        }
        Ok(())
    }

    fn count(&mut self, cluster: u64) {
        if self.last != Some(cluster) {
            self.clusters += 1;
            self.last = Some(cluster);
        }
    }

    /// Gives the file its size, makes it durable, and returns how much of it is not zero.
    pub(super) fn finish(self, size: u64) -> Result<u64, ConvertError> {
        self.file.set_len(size)?;
        self.file.sync_all()?;
        Ok(self.clusters * CLUSTER as u64)
    }
}

/// Copies the bytes as they are; returns the size in whole sectors.
pub(super) fn plain(
    input: &File,
    len: u64,
    output: &mut Output,
    limits: &Limits,
) -> Result<u64, ConvertError> {
    let size = len
        .checked_next_multiple_of(512)
        .ok_or(ConvertError::Damaged("it has no size"))?;
    limits.check_size(size)?;
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    while offset < len {
        limits.check_time()?;
        // At most CHUNK.
        let n = (len - offset).min(CHUNK as u64) as usize;
        input.read_exact_at(&mut chunk[..n], offset)?;
        output.write(&chunk[..n], offset)?;
        offset += n as u64;
    }
    Ok(size)
}

fn is_zero(bytes: &[u8]) -> bool {
    // Compared as slices, which is as fast as memory.
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes
        .chunks(ZEROS.len())
        .all(|chunk| chunk == &ZEROS[..chunk.len()])
}
