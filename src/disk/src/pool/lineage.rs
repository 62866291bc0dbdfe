//! Which key a file is encrypted with, and copies between what is and what is not.
//!
//! A file of a lineage says so in an extended attribute, the lineage's id; a reflink's new file gets the same. Without the
//! attribute it is not encrypted. So a file is never read with another key than its own, whatever the cloud believes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use model::disk::DiskKey;
use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;
use uuid::Uuid;

use crate::crypt::{Cipher, UNIT, is_zero};
use crate::sparse::next_data;

/// The attribute; its value is the lineage's id as 16 bytes.
const NAME: &str = "user.allod.lineage";
/// Bytes at a time.
const CHUNK: usize = 1 << 20;
/// What is all zeros becomes, or stays, a hole in pieces of this size.
const HOLE: usize = 64 << 10;

/// The file's lineage; `None`: it is not encrypted.
///
/// # Errors
/// If the attribute cannot be read, or is none of ours.
pub fn of(file: &File) -> io::Result<Option<Uuid>> {
    let mut value = [0; 17];
    match fgetxattr(file, NAME, &mut value) {
        Ok(16) => Ok(Uuid::from_slice(&value[..16]).ok()),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its lineage is not an id of 16 bytes",
        )),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The file is of this lineage from now on.
pub(crate) fn set(file: &File, lineage: Option<Uuid>) -> io::Result<()> {
    match lineage {
        Some(lineage) => Ok(fsetxattr(file, NAME, lineage.as_bytes(), XattrFlags::empty())?),
        None => Ok(()),
    }
}

/// Copies a file that is not encrypted to an empty one that is. Its last sector is made whole.
pub(super) fn seal(from: &File, to: &File, key: &DiskKey) -> io::Result<()> {
    let cipher = Cipher::new(key);
    copy(from, to, |at, bytes| {
        for (index, unit) in bytes.chunks_exact_mut(UNIT).enumerate() {
            // What was zeros reads as zeros, and takes no space.
            if !is_zero(unit) {
                cipher.seal(at + (index * UNIT) as u64, unit);
            }
        }
    })?;
    set(to, Some(key.lineage))
}

/// Copies an encrypted file to an empty one that is not.
pub(super) fn unseal(from: &File, to: &File, key: &DiskKey) -> io::Result<()> {
    let cipher = Cipher::new(key);
    copy(from, to, |at, bytes| cipher.open(at, bytes))
}

fn copy(from: &File, to: &File, change: impl Fn(u64, &mut [u8])) -> io::Result<()> {
    let size = from.metadata()?.len();
    to.set_len(size.next_multiple_of(UNIT as u64))?;
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while let Some(data) = next_data(from, at, size)? {
        let start = data - data % HOLE as u64;
        let length = usize::try_from((size - start).min(CHUNK as u64)).map_err(io::Error::other)?;
        from.read_exact_at(&mut chunk[..length], start)?;
        let whole = length.next_multiple_of(UNIT);
        chunk[length..whole].fill(0);
        change(start, &mut chunk[..whole]);
        for (index, piece) in chunk[..whole].chunks(HOLE).enumerate() {
            if !is_zero(piece) {
                to.write_all_at(piece, start + (index * HOLE) as u64)?;
            }
        }
        at = start + length as u64;
    }
    Ok(())
}
