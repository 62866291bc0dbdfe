//! Files with holes.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, seek};

/// Where the next data begin at or after `at` in a file of this size; none: only a hole follows.
pub(crate) fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<u64>> {
    if at >= size {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(at)) {
        Ok(found) => Ok(Some(found.max(at)).filter(|found| *found < size)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        // A filesystem without holes.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some(at)),
        Err(error) => Err(error.into()),
    }
}
