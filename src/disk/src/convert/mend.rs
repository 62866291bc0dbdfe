//! Right checksums for a file that a fuzzer or a test has changed, so that they do not keep its changes from the readers.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::{vhd, vhdx};

/// Sets the checksums of VHD footers and headers, and of VHDX headers and tables of regions, wherever the file has some.
pub(crate) fn mend(file: &File, len: u64) -> io::Result<()> {
    let mut places = vec![0];
    places.extend(vhd::FOOTERS.iter().filter_map(|bytes| len.checked_sub(*bytes)));
    for place in places {
        let mut footer = [0; 512];
        let n = footer
            .len()
            .min(usize::try_from(len - place).unwrap_or(usize::MAX));
        file.read_exact_at(&mut footer[..n], place)?;
        if !footer.starts_with(vhd::COOKIE) || n < 511 {
            continue;
        }
        let sum = vhd::checksum(&footer, 64);
        file.write_all_at(&sum.to_be_bytes(), place + 64)?;
        let at = u64::from_be_bytes(std::array::from_fn(|i| footer[16 + i]));
        let mut header = [0; 1024];
        if at.checked_add(1024).is_some_and(|end| end <= len) {
            file.read_exact_at(&mut header, at)?;
            if header.starts_with(b"cxsparse") {
                let sum = vhd::checksum(&header, 36);
                file.write_all_at(&sum.to_be_bytes(), at + 36)?;
            }
        }
    }
    for (place, bytes, signature) in [
        (64 << 10, 4 << 10, b"head"),
        (128 << 10, 4 << 10, b"head"),
        (192 << 10, 64 << 10, b"regi"),
        (256 << 10, 64 << 10, b"regi"),
    ] {
        let mut part = vec![0; bytes];
        if place + bytes as u64 > len {
            continue;
        }
        file.read_exact_at(&mut part, place)?;
        if part.starts_with(signature) {
            part[4..8].fill(0);
            file.write_all_at(&vhdx::crc32c(&part).to_le_bytes(), place + 4)?;
        }
    }
    Ok(())
}
