//! What a file's bytes show it to be.

use std::{fmt, fs::File, io, os::unix::fs::FileExt};

use super::{vhd, vhdx};

/// A format that bytes can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// None of the others.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
    /// ISO 9660.
    Iso,
    /// VMware's format: an extent, or a descriptor alone.
    Vmdk,
    /// Microsoft's first format.
    Vhd,
    /// Microsoft's second format.
    Vhdx,
    /// A format that is not accepted, or two formats at once.
    Foreign(&'static str),
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Iso => "iso",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Foreign(name) => name,
        })
    }
}

/// Signatures, where they stand, and what they mean. The formats are those of OpenStack's format inspector (`oslo.utils`).
const SIGNATURES: [(u64, &[u8], Shown); 12] = [
    (0, b"QFI\xfb", Shown::Qcow2),
    (0x8001, b"CD001", Shown::Iso),
    (0x8801, b"CD001", Shown::Iso),
    (0x9001, b"CD001", Shown::Iso),
    (0, b"KDMV", Shown::Vmdk),
    (0, b"COWD", Shown::Vmdk),
    (0, vhdx::SIGNATURE, Shown::Vhdx),
    (0, vhd::COOKIE, Shown::Vhd),
    (0x40, b"\x7f\x10\xda\xbe", Shown::Foreign("vdi")),
    (0, b"QED\0", Shown::Foreign("qed")),
    (0, b"LUKS\xba\xbe", Shown::Foreign("luks")),
    (0, b"WithoutFreeSpace", Shown::Foreign("parallels")),
];
/// Where comments before a descriptor's first line end: readers of VMDK look no further.
const DESCRIPTOR_BYTES: usize = 2048;

/// Looks for every known signature. A file that shows two formats is neither.
pub fn detect(file: &File, len: u64) -> io::Result<Shown> {
    let mut shown = Shown::Raw;
    let mut see = |means: Shown| {
        if shown == Shown::Raw {
            shown = means;
        } else if shown != means {
            shown = Shown::Foreign("two formats at once");
        }
    };
    let stands = |offset: u64, signature: &[u8]| -> io::Result<bool> {
        let mut bytes = [0u8; 32];
        let bytes = &mut bytes[..signature.len()];
        if offset.saturating_add(signature.len() as u64) > len {
            return Ok(false);
        }
        file.read_exact_at(bytes, offset)?;
        Ok(bytes == signature)
    };
    for (offset, signature, means) in SIGNATURES {
        if stands(offset, signature)? {
            see(means);
        }
    }
    // A fixed VHD is a disk with a footer: its beginning shows what the guest has there.
    for bytes in vhd::FOOTERS {
        if len >= bytes && stands(len - bytes, vhd::COOKIE)? {
            see(Shown::Vhd);
        }
    }
    let mut start = [0; DESCRIPTOR_BYTES];
    let n = start.len().min(usize::try_from(len).unwrap_or(usize::MAX));
    file.read_exact_at(&mut start[..n], 0)?;
    if is_descriptor(&start[..n]) {
        see(Shown::Vmdk);
    }
    Ok(shown)
}

/// The text that names a VMDK disk's extents: says so in its first line, or begins, after comments, with its version, which QEMU
/// takes for one, too.
fn is_descriptor(start: &[u8]) -> bool {
    if start.starts_with(b"# Disk DescriptorFile") {
        return true;
    }
    let lines = start.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let mut lines = lines.skip_while(|line| line.is_empty() || line.starts_with(b"#"));
    lines.next().is_some_and(|line| line.starts_with(b"version="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_begin_with_their_version() {
        for text in [
            "# Disk DescriptorFile\n",
            "version=1\n",
            "\r\n# x\r\n  \r\n version=3\r\n",
        ] {
            assert!(is_descriptor(text.as_bytes()), "{text}");
        }
        for text in ["", "\n\n", "#!/bin/sh\nset -e\nversion=1\n", "# version=1"] {
            assert!(!is_descriptor(text.as_bytes()), "{text}");
        }
    }
}
