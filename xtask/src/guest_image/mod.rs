//! `cargo xtask guest-image`: a small bootable disk image made from Debian's packages.
//!
//! ```text
//! sector 0        MBR, syslinux' boot code
//! 1 MiB           FAT: syslinux, Debian's cloud kernel, an initramfs with busybox and the disk drivers
//! BOOT_MIB + 1    ext4, labelled allod-root: busybox, dropbear, assets/guest/files
//! ```
//!
//! Packages are downloaded and unpacked, never installed. The same packages and the same recipe give the same bytes.

mod cpio;
mod modules;
pub mod packages;
mod qcow2;

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use allod_tests::apt;
use allod_tests::paths;
use allod_tests::progress::Steps;
use allod_tests::run::{capture, run};
use anyhow::{Context, Result, ensure};

/// Debian's packages that building needs on the host.
pub const HOST_PACKAGES: &[&str] = &["dosfstools", "e2fsprogs", "mtools", "syslinux"];

/// What the guest is made of, besides the kernel; with the libraries that these need.
const GUEST_PACKAGES: &[&str] = &[
    "busybox-static",
    "dropbear-bin",
    "e2fsprogs",
    "libc6",
    "libcom-err2",
    "libcrypt1",
    "libext2fs2",
    "libtomcrypt1",
    "libtommath1",
    "libgmp10",
    "libblkid1",
    "libmount1",
    "libpcre2-8-0",
    "libselinux1",
    "libsmartcols1",
    "libudev1",
    "util-linux",
    "zlib1g",
];

/// The meta package that names the current kernel.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Modules that the initramfs loads, and those that the root filesystem's boot script loads; their dependencies are
/// found.
const EARLY_MODULES: &[&str] = &["virtio_pci", "virtio_blk"];
const LATE_MODULES: &[&str] = &[
    "virtio_net",
    "virtio_rng",
    "evdev",
    "button",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "nls_utf8",
    "isofs",
];
/// Modules without which Debian's kernel sees no entropy device.
const ENTROPY_MODULES: &[&str] = &["virtio_pci", "virtio_rng"];
/// Modules that lie there for `insmod` by hand.
const SPARE_MODULES: &[&str] = &[
    "virtio_scsi",
    "virtio_balloon",
    "virtio_console",
    "sd_mod",
    "8021q",
    "nls_iso8859_1",
];

/// Programs of the root filesystem that are not busybox: source package, source path, path in the guest.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("dropbear-bin", "usr/sbin/dropbear", "usr/sbin/dropbear"),
    ("dropbear-bin", "usr/bin/dropbearkey", "usr/bin/dropbearkey"),
    ("e2fsprogs", "sbin/resize2fs", "sbin/resize2fs"),
    ("util-linux", "bin/lsblk", "bin/lsblk"),
];

/// Shared libraries that those programs load.
const LIBRARIES: &[(&str, &str)] = &[
    ("libblkid1", "libblkid.so.1"),
    ("libc6", "libc.so.6"),
    ("libcom-err2", "libcom_err.so.2"),
    ("libcrypt1", "libcrypt.so.1"),
    ("libext2fs2", "libe2p.so.2"),
    ("libext2fs2", "libext2fs.so.2"),
    ("libgmp10", "libgmp.so.10"),
    ("libmount1", "libmount.so.1"),
    ("libpcre2-8-0", "libpcre2-8.so.0"),
    ("libselinux1", "libselinux.so.1"),
    ("libsmartcols1", "libsmartcols.so.1"),
    ("libtomcrypt1", "libtomcrypt.so.1"),
    ("libtommath1", "libtommath.so.1"),
    ("libudev1", "libudev.so.1"),
    ("zlib1g", "libz.so.1"),
];

/// Our own files: name in `assets/guest/files`, path in the guest, mode.
const FILES: &[(&str, &str, u32)] = &[
    ("inittab", "etc/inittab", 0o644),
    ("boot", "lib/allod-guest/boot", 0o755),
    ("shutdown", "lib/allod-guest/shutdown", 0o755),
    ("dhcp", "lib/allod-guest/dhcp", 0o755),
    ("json.awk", "lib/allod-guest/json.awk", 0o644),
    ("power-button", "etc/acpi/PWRF/00000080", 0o755),
    ("sudo", "usr/bin/sudo", 0o755),
];

/// `mitigations=off`: under emulation they cost most of the boot time and protect nobody from anything, for a guest
/// is one tenant. `tsc=reliable`: without the clock source's watchdog an idle guest sleeps.
const KERNEL_ARGUMENTS: &str = "console=tty0 console=ttyS0,115200 loglevel=4 mitigations=off tsc=reliable apparmor=0 \
                                net.ifnames=0 random.trust_cpu=on panic=10 cryptomgr.notests no_timer_check";

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
const BOOT_MIB: u64 = 23;
const ROOT_MIB: u64 = 40;
/// Fixed, so that a rebuild gives the same bytes.
const DISK_SIGNATURE: u32 = 0x616c_6c6f;
const ROOT_UUID: &str = "616c6c6f-6400-4000-8000-677565737400";

/// Where the image lies unless the caller says otherwise.
pub fn default_path() -> PathBuf {
    paths::target().join("guest/allod-guest.qcow2")
}

/// Makes the image, or takes the one that the same recipe made from the same packages.
pub fn build(out: &Path, steps: &Steps) -> Result<()> {
    apt::install(HOST_PACKAGES, steps)?;
    let step = steps.start("guest image: packages");
    let folder = paths::target().join("guest");
    let (kernel, versions) = current()?;
    let cached = folder.join(format!("allod-guest-{:016x}.qcow2", recipe(&versions)?));
    if cached.exists() {
        step.done("cached");
    } else {
        let (kernel, versions, unpacked) = unpack(&folder, kernel, versions)?;
        step.done(&format!("{} packages", versions.len()));
        let step = steps.start("guest image: build");
        fs::create_dir_all(&folder)?;
        let work = tempfile::tempdir_in(&folder)?;
        let image = assemble(work.path(), &unpacked, &kernel)?;
        let part = work.path().join("image.qcow2");
        qcow2::write(&image, &part)?;
        fs::rename(&part, &cached)?;
        step.done(&format!("{} MiB", fs::metadata(&cached)?.len() / MIB));
    }
    if let Some(parent) = out.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    // A new name, then a rename: whoever reads the old one goes on reading the old one.
    let part = out.with_extension("part");
    fs::copy(&cached, &part).with_context(|| format!("cannot write {}", part.display()))?;
    fs::rename(&part, out)?;
    Ok(())
}

/// What a monitor that loads kernels itself boots from the small guest's disk.
#[derive(Debug)]
pub struct BootParts {
    /// Debian's cloud kernel, a bzImage.
    pub kernel: PathBuf,
    /// The initramfs that is in the image, too.
    pub initramfs: PathBuf,
    /// The modules for the entropy device, each after those that it needs.
    pub entropy: Vec<PathBuf>,
}

/// Makes what of the image a monitor can load itself.
pub fn boot_parts(steps: &Steps) -> Result<BootParts> {
    let step = steps.start("the distribution's kernel");
    let folder = paths::target().join("guest");
    let (kernel, versions) = current()?;
    let (kernel, _, unpacked) = unpack(&folder, kernel, versions)?;
    let release = release(&kernel)?;
    let available = modules::Modules::of(&unpacked.folder(&kernel), release)?;
    let initramfs = folder.join("initramfs");
    fs::write(&initramfs, make_initramfs(&unpacked, &available)?)?;
    let entropy = available.closure(ENTROPY_MODULES)?;
    step.done(release);
    Ok(BootParts {
        kernel: unpacked.folder(&kernel).join(format!("boot/vmlinuz-{release}")),
        initramfs,
        entropy: entropy.into_iter().map(|module| module.path.clone()).collect(),
    })
}

/// The kernel's package, and all packages with their versions; on a fresh machine, which may have no lists of packages, too.
fn current() -> Result<(String, BTreeMap<String, String>)> {
    wanted().or_else(|_| {
        run("apt-get", &["-q", "update"])?;
        wanted()
    })
}

/// Those packages, unpacked; newer ones, where the archive has replaced what old lists name.
fn unpack(
    folder: &Path,
    kernel: String,
    versions: BTreeMap<String, String>,
) -> Result<(String, BTreeMap<String, String>, packages::Unpacked)> {
    let place = folder.join("packages");
    if let Ok(unpacked) = packages::unpack(&place, &versions) {
        return Ok((kernel, versions, unpacked));
    }
    run("apt-get", &["-q", "update"])?;
    let (kernel, versions) = wanted()?;
    let unpacked = packages::unpack(&place, &versions)?;
    Ok((kernel, versions, unpacked))
}

/// The release that a kernel's package is named after.
fn release(kernel: &str) -> Result<&str> {
    kernel
        .strip_prefix("linux-image-")
        .context("a kernel package has a kernel's name")
}

/// The kernel's package, and all packages with the versions that the archive has.
fn wanted() -> Result<(String, BTreeMap<String, String>)> {
    let kernel = packages::dependency(KERNEL, "linux-image-")?;
    let versions = packages::candidates(&[GUEST_PACKAGES, &[kernel.as_str()]].concat())?;
    Ok((kernel, versions))
}

/// What decides the image's bytes: recipe, our files, the packages' versions.
fn recipe(versions: &BTreeMap<String, String>) -> Result<u64> {
    let mut hash = DefaultHasher::new();
    for source in [
        include_str!("mod.rs"),
        include_str!("cpio.rs"),
        include_str!("modules.rs"),
        include_str!("packages.rs"),
        include_str!("qcow2.rs"),
    ] {
        source.hash(&mut hash);
    }
    versions.hash(&mut hash);
    fs::read(assets().join("init"))?.hash(&mut hash);
    for (name, ..) in FILES {
        fs::read(assets().join("files").join(name))?.hash(&mut hash);
    }
    Ok(hash.finish())
}

fn assets() -> PathBuf {
    paths::root().join("assets/guest")
}

/// Lays the parts out on a raw disk.
fn assemble(work: &Path, unpacked: &packages::Unpacked, kernel: &str) -> Result<PathBuf> {
    let release = release(kernel)?;
    let available = modules::Modules::of(&unpacked.folder(kernel), release)?;

    let initramfs = work.join("initrd");
    fs::write(&initramfs, make_initramfs(unpacked, &available)?)?;
    let root = work.join("root");
    make_root(&root, unpacked, &available, release)?;

    let boot_image = work.join("boot.fat");
    make_boot(
        &boot_image,
        &unpacked.folder(kernel).join(format!("boot/vmlinuz-{release}")),
        &initramfs,
        work,
    )?;
    let root_image = work.join("root.ext4");
    make_ext4(&root_image, &root)?;

    let disk = work.join("disk.raw");
    let mut file = fs::File::create(&disk)?;
    file.set_len((1 + BOOT_MIB + ROOT_MIB) * MIB)?;
    file.write_all(&master_boot_record(&fs::read("/usr/lib/SYSLINUX/mbr.bin")?)?)?;
    for (image, at) in [(&boot_image, MIB), (&root_image, (1 + BOOT_MIB) * MIB)] {
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&fs::read(image)?)?;
    }
    Ok(disk)
}

/// Boot code, disk signature, and two partitions of which the first is active.
fn master_boot_record(code: &[u8]) -> Result<[u8; 512]> {
    ensure!(
        code.len() <= 440,
        "the boot code has {} bytes, 440 fit",
        code.len()
    );
    let mut sector = [0u8; 512];
    sector[..code.len()].copy_from_slice(code);
    sector[440..444].copy_from_slice(&DISK_SIGNATURE.to_le_bytes());
    let partitions = [(0x80, 0x0e, 1, BOOT_MIB), (0x00, 0x83, 1 + BOOT_MIB, ROOT_MIB)];
    for (index, (active, kind, start, size)) in partitions.into_iter().enumerate() {
        let entry = &mut sector[446 + index * 16..462 + index * 16];
        // Cylinders, heads and sectors are beyond what they can say: everyone reads the linear fields.
        entry[..8].copy_from_slice(&[active, 0xfe, 0xff, 0xff, kind, 0xfe, 0xff, 0xff]);
        entry[8..12].copy_from_slice(&u32::try_from(start * MIB / SECTOR)?.to_le_bytes());
        entry[12..16].copy_from_slice(&u32::try_from(size * MIB / SECTOR)?.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok(sector)
}

/// busybox, the disk drivers and `init`. Not compressed: under emulation, reading is quicker than decompressing.
fn make_initramfs(unpacked: &packages::Unpacked, available: &modules::Modules) -> Result<Vec<u8>> {
    let mut archive = cpio::Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "root", "modules"] {
        archive.folder(folder);
    }
    // The kernel opens the console before it starts `init`, hence before devtmpfs is there.
    archive.character_device("dev/console", 5, 1);
    archive.file(
        "bin/busybox",
        0o755,
        &fs::read(unpacked.folder("busybox-static").join("bin/busybox"))?,
    );
    archive.file("init", 0o755, &fs::read(assets().join("init"))?);
    let mut list = String::new();
    for module in available.closure(EARLY_MODULES)? {
        archive.file(
            &format!("modules/{}.ko", module.name),
            0o644,
            &fs::read(&module.path)?,
        );
        list += &format!("{}.ko\n", module.name);
    }
    archive.file("modules/list", 0o644, list.as_bytes());
    Ok(archive.finish())
}

/// The root filesystem as a folder.
fn make_root(
    root: &Path,
    unpacked: &packages::Unpacked,
    available: &modules::Modules,
    release: &str,
) -> Result<()> {
    for folder in [
        "bin",
        "dev",
        "etc/dropbear",
        "home/allod",
        "lib/allod-guest",
        "lib/x86_64-linux-gnu",
        "lib64",
        "mnt",
        "proc",
        "root",
        "run",
        "sbin",
        "sys",
        "tmp",
        "usr/bin",
        "usr/sbin",
        "usr/share/udhcpc",
        "var/lib/allod-guest",
        "var/log",
        "var/empty",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::set_permissions(root.join("root"), fs::Permissions::from_mode(0o700))?;
    symlink("/run", root.join("var/run"))?;

    let busybox = root.join("bin/busybox");
    install(
        &unpacked.folder("busybox-static").join("bin/busybox"),
        &busybox,
        0o4755,
    )?;
    for applet in capture(&busybox, &["--list-full"])?.lines() {
        let link = root.join(applet);
        if let Some(parent) = link.parent() {
            fs::create_dir_all(parent)?;
        }
        if !link.exists() {
            symlink("/bin/busybox", link)?;
        }
    }

    for (package, from, to) in PROGRAMS {
        let to = root.join(to);
        let _ = fs::remove_file(&to);
        install(&unpacked.folder(package).join(from), &to, 0o755)?;
    }
    for (package, library) in LIBRARIES {
        install(
            &unpacked.library(package, library)?,
            &root.join("lib/x86_64-linux-gnu").join(library),
            0o755,
        )?;
    }
    install(
        &unpacked.library("libc6", "ld-linux-x86-64.so.2")?,
        &root.join("lib64/ld-linux-x86-64.so.2"),
        0o755,
    )?;

    for (name, to, mode) in FILES {
        let to = root.join(to);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        let _ = fs::remove_file(&to);
        install(&assets().join("files").join(name), &to, *mode)?;
    }
    for (path, content) in [
        // No password at all: SSH takes keys alone, and `su` and `sudo` need none in a guest that is for tests.
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nallod:x:1000:1000:Allod:/home/allod:/bin/sh\n",
        ),
        (
            "etc/shadow",
            "root::19000:0:99999:7:::\nallod:*:19000:0:99999:7:::\n",
        ),
        ("etc/group", "root:x:0:\ntty:x:5:\nallod:x:1000:\n"),
        ("etc/shells", "/bin/sh\n"),
        ("etc/hostname", "allod-guest\n"),
        ("etc/hosts", "127.0.0.1 localhost\n"),
        (
            "etc/fstab",
            "devpts /dev/pts devpts mode=620,gid=5 0 0\ntmpfs /tmp tmpfs mode=1777,nosuid,nodev 0 0\n\
             tmpfs /run tmpfs mode=755,nosuid,nodev 0 0\n",
        ),
        ("etc/resolv.conf", ""),
        (
            "etc/profile",
            "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
        ),
        (
            "etc/os-release",
            "ID=allod-guest\nNAME=\"Allod guest\"\nPRETTY_NAME=\"Allod guest (Debian 12 parts)\"\n",
        ),
    ] {
        fs::write(root.join(path), content)?;
    }
    fs::set_permissions(root.join("etc/shadow"), fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::chown(root.join("home/allod"), Some(1000), Some(1000))?;

    let folder = root.join(format!("lib/modules/{release}"));
    fs::create_dir_all(&folder)?;
    let early = available.closure(EARLY_MODULES)?;
    let late: Vec<_> = available
        .closure(LATE_MODULES)?
        .into_iter()
        .filter(|m| !early.iter().any(|e| e.name == m.name))
        .collect();
    let mut list = String::new();
    for module in &late {
        list += &format!("/lib/modules/{release}/{}.ko\n", module.name);
    }
    fs::write(root.join("lib/allod-guest/modules"), list)?;
    let mut dependencies = String::new();
    for module in available.closure(&[EARLY_MODULES, LATE_MODULES, SPARE_MODULES].concat())? {
        install(&module.path, &folder.join(format!("{}.ko", module.name)), 0o644)?;
        let needs: Vec<_> = module.depends.iter().map(|name| format!("{name}.ko")).collect();
        dependencies += &format!("{}.ko: {}\n", module.name, needs.join(" "));
    }
    fs::write(folder.join("modules.dep"), dependencies)?;
    Ok(())
}

/// A FAT filesystem with boot loader, kernel and initramfs; made without mounting anything.
fn make_boot(image: &Path, kernel: &Path, initramfs: &Path, work: &Path) -> Result<()> {
    fs::File::create(image)?.set_len(BOOT_MIB * MIB)?;
    let image = image.to_str().context("path is not UTF-8")?;
    run(
        "mkfs.vfat",
        &[
            "--invariant",
            "-F",
            "16",
            "-n",
            "ALLOD-BOOT",
            "-i",
            "616c6c6f",
            image,
        ],
    )?;
    let configuration = work.join("syslinux.cfg");
    fs::write(
        &configuration,
        format!(
            "SERIAL 0 115200\nDEFAULT linux\nPROMPT 0\nLABEL linux\n KERNEL /linux\n INITRD /initrd\n APPEND {KERNEL_ARGUMENTS}\n"
        ),
    )?;
    for (from, to) in [
        (kernel, "::/linux"),
        (initramfs, "::/initrd"),
        (&configuration, "::/syslinux.cfg"),
    ] {
        let from = from.to_str().context("path is not UTF-8")?;
        run("env", &["SOURCE_DATE_EPOCH=0", "mcopy", "-i", image, from, to])?;
    }
    run("env", &["SOURCE_DATE_EPOCH=0", "syslinux", "--install", image])
}

/// An ext4 filesystem filled from a folder; made without mounting anything.
fn make_ext4(image: &Path, folder: &Path) -> Result<()> {
    fs::File::create(image)?.set_len(ROOT_MIB * MIB)?;
    let image = image.to_str().context("path is not UTF-8")?;
    let folder = folder.to_str().context("path is not UTF-8")?;
    let options = format!("root_owner=0:0,hash_seed={ROOT_UUID},lazy_itable_init=0,resize=268435456");
    #[rustfmt::skip]
    run("env", &[
        "E2FSPROGS_FAKE_TIME=1", "mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-i", "16384", "-J", "size=4",
        "-L", "allod-root", "-U", ROOT_UUID, "-E", &options, "-d", folder, image,
    ])?;
    settle_times(image)
}

/// `mkfs.ext4 -d` takes times from the files that it copies; here all are set to the epoch's first second.
fn settle_times(image: &str) -> Result<()> {
    let summary = capture("dumpe2fs", &["-h", image])?;
    let figure = |name: &str| -> Result<u64> {
        let line = summary
            .lines()
            .find(|l| l.starts_with(name))
            .with_context(|| format!("no {name}"))?;
        line[name.len()..].trim().parse().with_context(|| line.to_owned())
    };
    let used = figure("Inode count:")? - figure("Free inodes:")?;
    let mut commands = String::new();
    for inode in (2..3).chain(11..=used) {
        for field in ["atime", "ctime", "mtime", "crtime"] {
            commands += &format!("set_inode_field <{inode}> {field} @1\n");
            commands += &format!("set_inode_field <{inode}> {field}_extra 0\n");
        }
    }
    let script = Path::new(image).with_extension("debugfs");
    fs::write(&script, commands)?;
    let script = script.to_str().context("path is not UTF-8")?;
    capture(
        "env",
        &["E2FSPROGS_FAKE_TIME=1", "debugfs", "-w", "-f", script, image],
    )?;
    Ok(())
}

/// Copies a file and gives it a mode.
fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_master_boot_record_names_both_partitions() {
        let sector = master_boot_record(&[0xfa; 440]).unwrap();
        assert_eq!(sector[446], 0x80);
        assert_eq!(u32::from_le_bytes(sector[454..458].try_into().unwrap()), 2048);
        let second = 2048 + u32::try_from(BOOT_MIB).unwrap() * 2048;
        assert_eq!(u32::from_le_bytes(sector[470..474].try_into().unwrap()), second);
        // `init` writes the second partition's size here.
        assert_eq!(
            u32::from_le_bytes(sector[474..478].try_into().unwrap()),
            u32::try_from(ROOT_MIB).unwrap() * 2048
        );
        assert_eq!(sector[510..], [0x55, 0xaa]);
        assert!(master_boot_record(&[0; 441]).is_err());
    }
}
