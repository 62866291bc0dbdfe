//! The conversion of an uploaded file to a raw, sparse image, in a jailed child.
//!
//! The file is as hostile as its sender. Only the two given descriptors are used: nothing that a file names is ever opened.
//! Its bytes must show the format that the sender named, so that no later reader can take the result for something else. Work is
//! bounded by the virtual size, by what the file can hold, and by time; memory by a few clusters and tables.

mod copy;
mod detect;
#[cfg(any(test, feature = "fuzzing"))]
mod mend;
mod qcow2;
mod source;
mod vhd;
mod vhdx;
mod vmdk;

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use model::disk::{ConvertSpec, Converted, ImageFormat};
use thiserror::Error;

use copy::Output;
pub use detect::{Shown, detect};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use mend::mend;
use qcow2::Qcow2;
use vhd::Vhd;
use vhdx::Vhdx;
use vmdk::Vmdk;

/// No disk is larger, whatever the limit: sums of a few offsets stay far below the end of their type.
const MAX_SIZE: u64 = 1 << 60;

/// Why a file was not converted.
#[derive(Debug, Error)]
pub enum ConvertError {
    /// The bytes are of another format than the sender named.
    #[error("the file is not what it is said to be: its bytes show {shown}, not {named}")]
    Mismatch {
        /// What they show.
        shown: Shown,
        /// What the sender said.
        named: &'static str,
    },
    /// The file asks for another file.
    #[error(
        "the image refers to another file ({0}), which is not allowed: flatten it with 'qemu-img convert' first"
    )]
    Reference(&'static str),
    /// A feature that is not supported.
    #[error("the image uses {0}, which is not supported: convert it to plain qcow2 or raw first")]
    Unsupported(String),
    /// The file breaks its format's rules.
    #[error("the image is damaged: {0}")]
    Damaged(&'static str),
    /// It was copied while it was in use, or its program crashed.
    #[error(
        "the image was not closed ({0}): open and close it with the program that made it, and upload it again"
    )]
    Unclosed(&'static str),
    /// No bytes.
    #[error("the image is empty")]
    Empty,
    /// The virtual size is above the limit.
    #[error("the image's virtual size of {size} bytes is larger than the {limit} that are allowed")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// It took too long.
    #[error("the conversion took longer than {0} seconds")]
    TooSlow(u64),
    /// No space.
    #[error("there is no space for the image")]
    Full,
    /// The node is at fault.
    #[error("cannot convert the image: {0}")]
    Io(io::Error),
}

impl ConvertError {
    /// The sender can do something about it, rather than the operator.
    pub fn is_senders_fault(&self) -> bool {
        !matches!(self, Self::Full | Self::Io(_))
    }
}

impl From<io::Error> for ConvertError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Io(error),
        }
    }
}

/// Converts `input` to the raw bytes in `output`, an empty file. On an error, `output` holds something or other.
pub fn run(spec: &ConvertSpec, input: OwnedFd, output: OwnedFd) -> Result<Converted, ConvertError> {
    let input = File::from(input);
    let len = input.metadata()?.len();
    if len == 0 {
        return Err(ConvertError::Empty);
    }
    let shown = detect(&input, len)?;
    let (fits, named) = match spec.format {
        ImageFormat::Raw => (shown == Shown::Raw, "raw"),
        ImageFormat::Qcow2 => (shown == Shown::Qcow2, "qcow2"),
        ImageFormat::Iso => (shown == Shown::Iso, "iso"),
        ImageFormat::Vmdk => (shown == Shown::Vmdk, "vmdk"),
        ImageFormat::Vhd => (shown == Shown::Vhd, "vhd"),
        ImageFormat::Vhdx => (shown == Shown::Vhdx, "vhdx"),
    };
    if !fits {
        return Err(ConvertError::Mismatch { shown, named });
    }
    let limits = Limits {
        size: spec.max_virtual_size.min(MAX_SIZE),
        seconds: spec.max_seconds,
        end: Instant::now() + Duration::from_secs(spec.max_seconds),
    };
    let mut output = Output::new(File::from(output))?;
    let virtual_size = match spec.format {
        ImageFormat::Qcow2 => Qcow2::open(&input, len, &limits)?.copy(&mut output, &limits)?,
        ImageFormat::Vmdk => Vmdk::open(&input, len, &limits)?.copy(&mut output, &limits)?,
        ImageFormat::Vhd => Vhd::open(&input, len, &limits)?.copy(&mut output, &limits)?,
        ImageFormat::Vhdx => Vhdx::open(&input, len, &limits)?.copy(&mut output, &limits)?,
        ImageFormat::Raw | ImageFormat::Iso => copy::plain(&input, len, &mut output, &limits)?,
    };
    let allocated = output.finish(virtual_size)?;
    Ok(Converted {
        format: spec.format,
        virtual_size,
        allocated,
    })
}

/// How much a conversion may cost.
#[derive(Debug)]
struct Limits {
    size: u64,
    seconds: u64,
    end: Instant,
}

impl Limits {
    fn check_size(&self, size: u64) -> Result<(), ConvertError> {
        if size > self.size {
            Err(ConvertError::TooLarge {
                size,
                limit: self.size,
            })
        } else {
            Ok(())
        }
    }

    /// Wall time: a single thread's processor time is never more.
    fn check_time(&self) -> Result<(), ConvertError> {
        if Instant::now() > self.end {
            Err(ConvertError::TooSlow(self.seconds))
        } else {
            Ok(())
        }
    }
}
