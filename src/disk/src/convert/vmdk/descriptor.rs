//! The text in which a VMDK image says what it consists of (VMware, "Virtual Disk Format 5.0", "The Disk Descriptor File").
//!
//! It may name any file of the host as an extent, or as a parent. None is opened: it must say that the disk is this file alone.

use super::super::ConvertError;

/// Descriptors have some hundred bytes.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// The text names no other file.
pub(super) fn check(text: &[u8]) -> Result<(), ConvertError> {
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let (mut kind, mut extents) = (None, 0);
    for line in String::from_utf8_lossy(text).split(['\n', '\r']) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(sparse) = extent(line) {
            extents += 1;
            if !sparse {
                return Err(ConvertError::Reference("an extent in a file of its own"));
            }
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let value = value.trim().trim_matches('"');
        match key.trim().to_ascii_lowercase().as_str() {
            "createtype" => {
                let alone = ["monolithicSparse", "streamOptimized"];
                if !alone.iter().any(|name| name.eq_ignore_ascii_case(value)) {
                    return Err(ConvertError::Reference(
                        "a disk of several files, or of flat ones: it is neither monolithicSparse nor streamOptimized",
                    ));
                }
                kind = Some(());
            }
            // All bits are set where there is no parent.
            "parentcid" if !value.eq_ignore_ascii_case("ffffffff") => {
                return Err(ConvertError::Reference("a parent disk"));
            }
            "parentfilenamehint" => return Err(ConvertError::Reference("a parent disk")),
            _ => {}
        }
    }
    match (kind, extents) {
        (Some(()), 1) => Ok(()),
        (Some(()), 2..) => Err(ConvertError::Reference("extents in files of their own")),
        _ => Err(ConvertError::Damaged("its descriptor is not whole")),
    }
}

/// `RW 4192256 SPARSE "name.vmdk"`: an extent, and whether it is a sparse one.
fn extent(line: &str) -> Option<bool> {
    let mut words = line.split_ascii_whitespace();
    let access = words.next()?;
    if !["RW", "RDONLY", "NOACCESS"]
        .iter()
        .any(|word| word.eq_ignore_ascii_case(access))
    {
        return None;
    }
    words.next()?.parse::<u64>().ok()?;
    Some(words.next()?.eq_ignore_ascii_case("SPARSE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# Disk DescriptorFile\nversion=1\nCID=1234abcd\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\n\
                        # Extent description\nRW 6147 SPARSE \"disk.vmdk\"\nddb.adapterType = \"ide\"\n";

    #[test]
    fn a_disk_in_one_file_passes_whatever_its_line_ends() {
        check(GOOD.as_bytes()).unwrap();
        check(GOOD.replace('\n', "\r\n").as_bytes()).unwrap();
        check(&[GOOD.as_bytes(), &[0; 100], b"RW 1 FLAT \"/etc/shadow\" 0"].concat()).unwrap();
        check(GOOD.replace("monolithicSparse", "streamOptimized").as_bytes()).unwrap();
        check(GOOD.replace("createType=", "CREATETYPE = ").as_bytes()).unwrap();
    }

    #[test]
    fn whatever_names_another_file_is_refused() {
        for (from, to) in [
            ("monolithicSparse", "monolithicFlat"),
            ("monolithicSparse", "twoGbMaxExtentSparse"),
            ("monolithicSparse", "vmfs"),
            ("parentCID=ffffffff", "parentCID=00000001"),
            ("version=1", "parentFileNameHint=\"/etc/passwd\""),
            ("RW 6147 SPARSE \"disk.vmdk\"", "RW 6147 FLAT \"/etc/shadow\" 0"),
            ("RW 6147 SPARSE \"disk.vmdk\"", "rdonly\t1 VMFS \"/dev/sda\""),
            ("RW 6147 SPARSE", "RW 3 SPARSE \"other.vmdk\"\nRW 6144 SPARSE"),
            ("# Extent description", "createType=\"custom\""),
        ] {
            let result = check(GOOD.replace(from, to).as_bytes());
            assert!(
                matches!(result, Err(ConvertError::Reference(_))),
                "{to}: {result:?}"
            );
        }
        for (from, to) in [
            ("createType=\"monolithicSparse\"", ""),
            ("RW 6147 SPARSE \"disk.vmdk\"", ""),
        ] {
            let result = check(GOOD.replace(from, to).as_bytes());
            assert!(
                matches!(result, Err(ConvertError::Damaged(_))),
                "{to}: {result:?}"
            );
        }
    }
}
