//! A filesystem in a file: XFS with reflinks on a loop device with direct I/O.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};

use super::{PoolError, at, sync_parent};

/// Loop devices have this major number (Linux's list of devices).
const LOOP_MAJOR: u64 = 7;
/// `LO_FLAGS_AUTOCLEAR`: the device goes away with the mount.
const AUTOCLEAR: u32 = 4;
/// `LO_FLAGS_DIRECT_IO`: no second page cache below the filesystem.
const DIRECT_IO: u32 = 16;
/// How long a filesystem may be busy before unmounting it fails.
const BUSY: Duration = Duration::from_secs(5);
/// How often another process may snatch the free loop device from us.
const ATTEMPTS: usize = 64;

/// Makes the file with an empty filesystem, if there is none.
pub(super) fn create(file: &Path, size: u64, preallocate: bool) -> Result<(), PoolError> {
    if file.exists() {
        return Ok(());
    }
    let fresh = PathBuf::from(format!("{}.new", file.display()));
    let _ = fs::remove_file(&fresh);
    let made = || -> io::Result<File> {
        let handle = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        handle.set_len(size)?;
        if preallocate {
            rustix::fs::fallocate(&handle, rustix::fs::FallocateFlags::empty(), 0, size)?;
        }
        Ok(handle)
    };
    let result = made().map_err(at(&fresh)).and_then(|handle| {
        make_xfs(&fresh)?;
        handle.sync_all().map_err(at(&fresh))?;
        fs::rename(&fresh, file).map_err(at(file))?;
        sync_parent(file)
    });
    if result.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    result
}

fn make_xfs(file: &Path) -> Result<(), PoolError> {
    // Without -K, mkfs would discard the blocks that were just allocated.
    let output = Command::new("mkfs.xfs")
        .args(["-q", "-f", "-K", "-m", "reflink=1"])
        .arg(file)
        .output()
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                PoolError::Tool("mkfs.xfs is missing: install the package xfsprogs".into())
            }
            _ => PoolError::Tool(format!("cannot run mkfs.xfs: {error}")),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(PoolError::Tool(format!(
        "mkfs.xfs failed: {}",
        said.lines().next().unwrap_or_default()
    )))
}

/// Mounts the file at the directory.
pub(super) fn mount(file: &Path, dir: &Path) -> Result<(), PoolError> {
    let failed = |what| {
        move |error| PoolError::Mount {
            what,
            path: file.to_owned(),
            error,
        }
    };
    let (device, _keep) = attach(file).map_err(failed("attach a loop device to"))?;
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
    nix::mount::mount(Some(&device), dir, Some("xfs"), flags, None::<&str>)
        .map_err(|error| failed("mount")(error.into()))
    // `_keep` is closed now: the mount alone holds the loop device.
}

/// Unmounts the directory if the file is mounted there.
pub(super) fn unmount(file: &Path, dir: &Path) -> Result<(), PoolError> {
    let failed = |error: io::Error| PoolError::Mount {
        what: "unmount",
        path: dir.to_owned(),
        error,
    };
    let device = fs::metadata(dir).map_err(failed)?.dev();
    let major = rustix::fs::major(device);
    if u64::from(major) != LOOP_MAJOR || !file.exists() {
        return Ok(());
    }
    // The kernel lets go of a dead child's io_uring, and so of its volume's file, a moment after the child has ended.
    let deadline = Instant::now() + BUSY;
    loop {
        match umount2(dir, MntFlags::empty()) {
            Err(Errno::EBUSY) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            result => return result.map_err(|error| failed(error.into())),
        }
    }
}

fn attach(file: &Path) -> io::Result<(PathBuf, OwnedFd)> {
    let backing = OpenOptions::new().read(true).write(true).open(file)?;
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS {
        let number = sys::free_loop(&control)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(true).open(&path)?;
        // Direct I/O needs support below; the filesystem works without it, only with more memory.
        let configured =
            sys::configure(&device, &backing, AUTOCLEAR | DIRECT_IO).or_else(|error| {
                match error.raw_os_error() {
                    Some(libc::EINVAL) => sys::configure(&device, &backing, AUTOCLEAR),
                    _ => Err(error),
                }
            });
        match configured {
            Ok(()) => return Ok((path, device.into())),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// The two requests to the loop driver.
#[allow(unsafe_code)]
mod sys {
    use super::{AsRawFd, File, io};

    const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
    const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;

    /// `struct loop_info64`
    #[repr(C)]
    struct LoopInfo {
        numbers: [u64; 5],
        number: u32,
        encrypt_type: u32,
        encrypt_key_size: u32,
        flags: u32,
        names: [u8; 64 + 64 + 32],
        init: [u64; 2],
    }

    /// `struct loop_config`
    #[repr(C)]
    struct LoopConfig {
        fd: u32,
        block_size: u32,
        info: LoopInfo,
        reserved: [u64; 8],
    }

    pub(super) fn free_loop(control: &File) -> io::Result<i32> {
        // SAFETY: the request takes no argument and returns a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(number)
        }
    }

    pub(super) fn configure(device: &File, backing: &File, flags: u32) -> io::Result<()> {
        let config = LoopConfig {
            // Descriptors are never negative.
            fd: backing.as_raw_fd() as u32,
            block_size: 0,
            info: LoopInfo {
                numbers: [0; 5],
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags,
                names: [0; 160],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: the request reads a `loop_config`, which has the kernel's layout, and keeps no pointer to it.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}
