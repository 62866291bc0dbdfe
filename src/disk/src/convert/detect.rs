//! What a file's bytes show it to be.

use std::{fmt, fs::File, io, os::unix::fs::FileExt};

/// A format that bytes can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// None of the others.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
    /// ISO 9660.
    Iso,
    /// A format that is not accepted, or two formats at once.
    Foreign(&'static str),
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Iso => "iso",
            Self::Foreign(name) => name,
        })
    }
}

/// Signatures, where they stand, and what they mean. The formats are those of OpenStack's format inspector (`oslo.utils`).
const SIGNATURES: [(u64, &[u8], Shown); 13] = [
    (0, b"QFI\xfb", Shown::Qcow2),
    (0x8001, b"CD001", Shown::Iso),
    (0x8801, b"CD001", Shown::Iso),
    (0x9001, b"CD001", Shown::Iso),
    (0, b"KDMV", Shown::Foreign("vmdk")),
    (0, b"COWD", Shown::Foreign("vmdk")),
    (0, b"# Disk DescriptorFile", Shown::Foreign("vmdk")),
    (0, b"vhdxfile", Shown::Foreign("vhdx")),
    (0, b"conectix", Shown::Foreign("vhd")),
    (0x40, b"\x7f\x10\xda\xbe", Shown::Foreign("vdi")),
    (0, b"QED\0", Shown::Foreign("qed")),
    (0, b"LUKS\xba\xbe", Shown::Foreign("luks")),
    (0, b"WithoutFreeSpace", Shown::Foreign("parallels")),
];

/// Looks for every known signature. A file that shows two formats is neither.
pub fn detect(file: &File, len: u64) -> io::Result<Shown> {
    let mut shown = Shown::Raw;
    for (offset, signature, means) in SIGNATURES {
        let mut bytes = [0u8; 32];
        let bytes = &mut bytes[..signature.len()];
        if offset + signature.len() as u64 > len {
            continue;
        }
        file.read_exact_at(bytes, offset)?;
        if bytes != signature || shown == means {
            continue;
        }
        shown = if shown == Shown::Raw {
            means
        } else {
            Shown::Foreign("two formats at once")
        };
    }
    Ok(shown)
}
