//! Uploaded images, in every format.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use model::disk::{ConvertSpec, Converted, ImageFormat};
use nix::sys::memfd::{MFdFlags, memfd_create};
use virtio::fuzzing::Input;

use crate::convert::{ConvertError, mend, run};

const FORMATS: [ImageFormat; 6] = [
    ImageFormat::Raw,
    ImageFormat::Qcow2,
    ImageFormat::Iso,
    ImageFormat::Vmdk,
    ImageFormat::Vhd,
    ImageFormat::Vhdx,
];
/// Files are no longer than this, and mostly holes.
const MAX_FILE: u32 = 16 << 20;
const LIMIT: u64 = 16 << 20;
/// So long an input does not take, even with a sanitizer on a busy machine.
const SECONDS: u64 = 20;

/// The first byte chooses the format (lowest three bits), and whether checksums are made right (the fourth). Then come pieces of the
/// file: place (four bytes, little-endian), length (two), bytes. The last piece's end is the file's.
///
/// # Panics
/// If a conversion fails by the node's fault, takes long, or leaves more or less than it says.
pub fn image(data: &[u8]) {
    let Ok((result, bytes)) = convert(data) else {
        return;
    };
    assert!(bytes <= LIMIT, "{bytes} bytes of output");
    match result {
        Ok(converted) => {
            assert_eq!(converted.virtual_size, bytes);
            assert!(bytes.is_multiple_of(512) && bytes > 0);
            assert!(converted.allocated <= bytes.next_multiple_of(64 << 10));
        }
        Err(error) => assert!(
            error.is_senders_fault() && !matches!(error, ConvertError::TooSlow(_)),
            "{error}"
        ),
    }
}

/// What became of it, and the output's length.
fn convert(data: &[u8]) -> io::Result<(Result<Converted, ConvertError>, u64)> {
    let mut input = Input::new(data);
    let choice = input.u8();
    let format = FORMATS[usize::from(choice & 7) % FORMATS.len()];
    let file = file(&mut input)?;
    if choice & 8 != 0 {
        mend(&file, file.metadata()?.len())?;
    }
    let output = memory()?;
    let spec = ConvertSpec {
        format,
        max_virtual_size: LIMIT,
        max_seconds: SECONDS,
    };
    let result = run(&spec, file.into(), output.try_clone()?.into());
    Ok((result, output.metadata()?.len()))
}

fn file(input: &mut Input<'_>) -> io::Result<File> {
    let file = memory()?;
    while !input.is_empty() {
        let place = input.u32() % MAX_FILE;
        let length = input.u16();
        let bytes = input.bytes(length.into());
        file.write_all_at(bytes, place.into())?;
        if input.is_empty() {
            file.set_len(u64::from(place) + bytes.len() as u64)?;
        }
    }
    Ok(file)
}

fn memory() -> io::Result<File> {
    let file: OwnedFd = memfd_create(c"image", MFdFlags::MFD_CLOEXEC)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `src/disk/tests/convert/corpus.rs` made of whole images is whole; what fuzzers found has a hash for a name.
    #[test]
    fn the_corpus_has_whole_images_of_every_format() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/image");
        let mut seen = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name.len() == 40 {
                continue;
            }
            let data = std::fs::read(entry.path()).unwrap();
            let converted = convert(&data).unwrap().0;
            let converted = converted.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(converted.allocated > 0, "{name}");
            seen.push(converted.format);
        }
        for format in FORMATS {
            assert!(seen.contains(&format), "{format:?}");
        }
    }
}
