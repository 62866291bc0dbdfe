//! Config drives: a FAT volume labelled `config-2` that cloud-init looks for ("config drive (version 2)" of OpenStack).
//!
//! The same files give the same bytes, so that a restarted machine finds its drive unchanged: the volume's number is derived
//! from the content, and all times are those of the format's epoch.

use std::{
    collections::BTreeMap,
    io::{self, Cursor, Write},
};

use fatfs::{Date, DateTime, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider, format_volume};
use model::machine::ConfigDriveFile;
use thiserror::Error;

/// OpenStack's config drives have 64 MiB; more would not be metadata.
pub const MAX_CONTENT: u64 = 64 << 20;
/// The most files of a drive.
pub const MAX_FILES: usize = 1024;

const SECTOR: u64 = 512;
/// Blank-padded, as the format wants it.
const LABEL: [u8; 11] = *b"config-2   ";
/// The largest cluster that the size below can come with.
const CLUSTER: u64 = 4096;
/// Boot sector, FATs of an empty volume, root directory.
const OVERHEAD: u64 = 64 << 10;
/// Sizes are multiples of this, so that small changes of metadata leave the size alone.
const STEP: u64 = 256 << 10;

/// Why a config drive could not be built.
#[derive(Debug, Error)]
pub enum ConfigDriveError {
    /// More than [`MAX_CONTENT`] bytes or [`MAX_FILES`] files.
    #[error("the config drive has too much in it (at most {MAX_FILES} files and {MAX_CONTENT} bytes)")]
    TooLarge,
    /// A path that is empty, absolute, or has odd parts.
    #[error("'{0}' is not a path for a config drive")]
    Path(String),
    /// The filesystem refused.
    #[error("cannot write the config drive: {0}")]
    Io(#[from] io::Error),
}

/// The bytes of a volume with these files.
pub fn build(files: &[ConfigDriveFile]) -> Result<Vec<u8>, ConfigDriveError> {
    // Sorted, and the last of equal paths wins.
    let files: BTreeMap<&str, &[u8]> = files.iter().map(|f| (f.path.as_str(), &f.content[..])).collect();
    let content: u64 = files.values().map(|bytes| bytes.len() as u64).sum();
    if content > MAX_CONTENT || files.len() > MAX_FILES {
        return Err(ConfigDriveError::TooLarge);
    }
    for path in files.keys() {
        check(path)?;
    }
    let mut bytes = vec![0; usize::try_from(size(&files)).map_err(|_| ConfigDriveError::TooLarge)?];
    let options = FormatVolumeOptions::new()
        .volume_label(LABEL)
        .volume_id(fingerprint(&files));
    format_volume(Cursor::new(&mut bytes[..]), options)?;
    let volume = open(&mut bytes)?;
    for path in files.keys() {
        let mut dir = volume.root_dir();
        for name in path
            .rsplit_once('/')
            .map_or("", |(dirs, _)| dirs)
            .split_terminator('/')
        {
            dir = dir.create_dir(name)?;
        }
    }
    volume.unmount()?;
    mend_dots(&mut bytes);
    let volume = open(&mut bytes)?;
    for (path, content) in files {
        volume.root_dir().create_file(path)?.write_all(content)?;
    }
    volume.unmount()?;
    Ok(bytes)
}

fn open(bytes: &mut [u8]) -> io::Result<FileSystem<Cursor<&mut [u8]>>> {
    FileSystem::new(Cursor::new(bytes), FsOptions::new().time_provider(&Epoch))
}

/// `fatfs` gives the entries `.` and `..` of a new directory long names, which other implementations call a fault. Takes
/// these away, while there is nothing on the volume but directories.
fn mend_dots(bytes: &mut [u8]) {
    const ENTRY: usize = 32;
    const LONG_NAME: u8 = 0x0f;
    const DELETED: u8 = 0xe5;
    for sector in bytes.chunks_exact_mut(SECTOR as usize) {
        let is = |entry: usize, name: &[u8; 11]| sector[entry * ENTRY..].starts_with(name);
        let long = |entry: usize| sector[entry * ENTRY + 11] == LONG_NAME;
        if long(0) && is(1, b".          ") && long(2) && is(3, b"..         ") {
            sector.copy_within(ENTRY..2 * ENTRY, 0);
            sector.copy_within(3 * ENTRY..4 * ENTRY, ENTRY);
            sector[2 * ENTRY] = DELETED;
            sector[3 * ENTRY] = DELETED;
        }
    }
}

/// Each file and each directory on its way takes whole clusters; names of 255 characters take 21 directory entries of 32 bytes.
fn size(files: &BTreeMap<&str, &[u8]>) -> u64 {
    let clusters: u64 = files
        .iter()
        .map(|(path, content)| {
            let names = path.len() as u64 * 4 + path.split('/').count() as u64 * (64 + CLUSTER);
            (content.len() as u64).next_multiple_of(CLUSTER) + names
        })
        .sum();
    // Two tables with at most 2 bytes for each cluster of 512.
    (clusters + clusters / 64 + OVERHEAD).next_multiple_of(STEP)
}

fn check(path: &str) -> Result<(), ConfigDriveError> {
    let good = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.len() <= 255
            && !part.contains(|c: char| c.is_control() || c == '\\')
    };
    if path.split('/').count() <= 16 && path.split('/').all(good) {
        Ok(())
    } else {
        Err(ConfigDriveError::Path(path.to_owned()))
    }
}

/// FNV-1a: told apart by chance is enough.
fn fingerprint(files: &BTreeMap<&str, &[u8]>) -> u32 {
    files
        .iter()
        .flat_map(|(path, content)| path.bytes().chain([0]).chain(content.iter().copied()))
        .fold(0x811c_9dc5, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        })
}

#[derive(Debug)]
struct Epoch;

impl TimeProvider for Epoch {
    fn get_current_date(&self) -> Date {
        Date {
            year: 1980,
            month: 1,
            day: 1,
        }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime {
            date: self.get_current_date(),
            time: Time {
                hour: 0,
                min: 0,
                sec: 0,
                millis: 0,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, process::Command};

    use super::*;

    fn file(path: &str, content: &[u8]) -> ConfigDriveFile {
        ConfigDriveFile {
            path: path.into(),
            content: content.into(),
        }
    }

    fn read(bytes: &mut [u8], path: &str) -> Vec<u8> {
        let volume = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
        let mut content = Vec::new();
        volume
            .root_dir()
            .open_file(path)
            .unwrap()
            .read_to_end(&mut content)
            .unwrap();
        content
    }

    #[test]
    fn holds_its_files_and_is_the_same_each_time() {
        let files = [
            file("openstack/latest/user_data", &vec![7; 70_000]),
            file("openstack/latest/meta_data.json", b"{\"uuid\": \"x\"}"),
            file("ec2/latest/meta-data.json", b"{}"),
        ];
        let mut bytes = build(&files).unwrap();
        assert_eq!(bytes, build(&files).unwrap());
        assert_eq!(bytes.len() as u64 % SECTOR, 0);
        assert_eq!(
            read(&mut bytes, "openstack/latest/meta_data.json"),
            b"{\"uuid\": \"x\"}"
        );
        assert_eq!(read(&mut bytes, "openstack/latest/user_data"), vec![7; 70_000]);
        assert!(bytes.len() <= 512 << 10, "{}", bytes.len());
    }

    #[test]
    fn other_tools_find_label_and_no_fault() {
        let files: Vec<_> = (0..200)
            .map(|i| {
                file(
                    &format!("openstack/content/{i:04}-{}", "n".repeat(60)),
                    &[i as u8; 700],
                )
            })
            .collect();
        let bytes = build(&files).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drive");
        std::fs::write(&path, &bytes).unwrap();
        let label = Command::new("blkid")
            .args(["-p", "-o", "value", "-s", "LABEL"])
            .arg(&path)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&label.stdout).trim(), "config-2");
        let check = Command::new("fsck.fat").arg("-n").arg(&path).output().unwrap();
        assert!(
            check.status.success(),
            "{}",
            String::from_utf8_lossy(&check.stdout)
        );
    }

    #[test]
    fn sizes_from_empty_to_large_fit() {
        for size in [0, 1, 511, 4096, 1 << 20, 5 << 20, 40 << 20] {
            let content = vec![0xa5; size];
            let mut bytes = build(&[file("a/b", &content)]).unwrap();
            assert!(read(&mut bytes, "a/b") == content, "{size}");
        }
        build(&[]).unwrap();
    }

    #[test]
    fn odd_paths_and_floods_are_refused() {
        for path in [
            "",
            "/etc/passwd",
            "a//b",
            "../x",
            "a/./b",
            "a\\b",
            "a\n",
            &"x".repeat(300),
        ] {
            assert!(
                matches!(build(&[file(path, b"")]), Err(ConfigDriveError::Path(_))),
                "{path}"
            );
        }
        let many: Vec<_> = (0..=MAX_FILES).map(|i| file(&i.to_string(), b"")).collect();
        assert!(matches!(build(&many), Err(ConfigDriveError::TooLarge)));
        let large = vec![0; MAX_CONTENT as usize + 1];
        assert!(matches!(
            build(&[file("a", &large)]),
            Err(ConfigDriveError::TooLarge)
        ));
    }
}
