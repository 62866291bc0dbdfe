//! Namespaces, and a root with nothing in it but what is named.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::{chdir, pivot_root};
use rustix::fs::OFlags;

use super::{Files, JailError, Step};

/// Where the new root is put together; only inside the new mount namespace.
const STAGE: &str = "/tmp";

/// Something of the host that the new root shows.
enum Shown {
    Link {
        at: PathBuf,
        target: PathBuf,
    },
    Bind {
        at: PathBuf,
        source: OwnedFd,
        folder: bool,
    },
    Device {
        at: PathBuf,
        number: u64,
    },
}

/// Leave the host's namespaces, and move into a root that shows `files` alone.
pub(super) fn enter(files: &Files) -> Result<(), JailError> {
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .step("new namespaces")?;
    let nothing = None::<&str>;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )
    .step("private mounts")?;
    // Sources are opened before the stage covers /tmp, under which they may lie.
    let shown = open(files).step("opening what the jail shows")?;
    let options = "mode=0755,size=1m,nr_inodes=256";
    mount(
        Some("tmpfs"),
        STAGE,
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some(options),
    )
    .step("the jail's tmpfs")?;
    for item in &shown {
        show(item).step("showing a path in the jail")?;
    }
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
    if files.devices.is_empty() {
        flags |= MsFlags::MS_NODEV;
    }
    if files.is_empty() {
        flags |= MsFlags::MS_NOEXEC;
    }
    mount(nothing, STAGE, nothing, flags, nothing).step("the jail's read-only root")?;
    chdir(STAGE).step("entering the jail's root")?;
    // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one, and is taken away.
    pivot_root(".", ".").step("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).step("leaving the host's root")?;
    chdir("/").step("the jail's root")
}

fn open(files: &Files) -> io::Result<Vec<Shown>> {
    let mut shown = Vec::new();
    for path in &files.read_only {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(metadata) if metadata.is_symlink() => {
                shown.push(Shown::Link {
                    at: staged(path),
                    target: fs::read_link(path)?,
                });
            }
            Ok(metadata) => {
                shown.push(Shown::Bind {
                    at: staged(path),
                    source: open_path(path)?,
                    folder: metadata.is_dir(),
                });
            }
        }
    }
    if let Some((host, child)) = &files.folder {
        shown.push(Shown::Bind {
            at: staged(child),
            source: open_path(host)?,
            folder: true,
        });
    }
    for path in &files.devices {
        let number = std::os::unix::fs::MetadataExt::rdev(&fs::metadata(path)?);
        shown.push(Shown::Device {
            at: staged(path),
            number,
        });
    }
    Ok(shown)
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?)
}

fn staged(path: &Path) -> PathBuf {
    Path::new(STAGE).join(path.strip_prefix("/").unwrap_or(path))
}

fn show(item: &Shown) -> io::Result<()> {
    let (Shown::Link { at, .. } | Shown::Bind { at, .. } | Shown::Device { at, .. }) = item;
    if let Some(parent) = at.parent() {
        fs::create_dir_all(parent)?;
    }
    match item {
        Shown::Link { at, target } => std::os::unix::fs::symlink(target, at),
        Shown::Bind { at, source, folder } => {
            if *folder {
                fs::create_dir_all(at)?;
            } else {
                fs::File::create(at)?;
            }
            let nothing = None::<&str>;
            let source = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
            mount(Some(&source), at, nothing, MsFlags::MS_BIND, nothing)?;
            let read_only = MsFlags::MS_REMOUNT
                | MsFlags::MS_BIND
                | MsFlags::MS_RDONLY
                | MsFlags::MS_NOSUID
                | MsFlags::MS_NODEV;
            Ok(mount(nothing, at, nothing, read_only, nothing)?)
        }
        Shown::Device { at, number } => {
            mknod(at, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), *number)?;
            // The umask took bits away; the jail's only user is the child.
            fs::set_permissions(at, std::os::unix::fs::PermissionsExt::from_mode(0o666))
        }
    }
}
