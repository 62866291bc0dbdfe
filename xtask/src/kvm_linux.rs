//! `cargo xtask kvm-linux`: the kernel that guests on this host's KVM boot.
//!
//! Where the processor runs guests it is Debian's, with the small guest's initramfs. Where KVM emulates their ring 0 it is
//! built from Debian's source with `tests/kvm-linux`, once per recipe and source.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use allod_tests::kvm::{self, Kvm};
use allod_tests::progress::{Step, Steps};
use allod_tests::run::{line, run};
use allod_tests::{apt, paths};
use anyhow::{Context, Result, ensure};

use crate::guest_image::{self, packages};

/// Debian's packages that building a kernel needs.
const BUILD_PACKAGES: &[&str] = &[
    "bc",
    "binutils",
    "bison",
    "flex",
    "gcc",
    "libc6-dev",
    "libelf-dev",
    "make",
    "patch",
    "xz-utils",
];
/// Debian's package with the source.
const SOURCE: &str = "linux-source-6.12";
/// Lines that make writes, about: the length of the bar.
const LINES: u64 = 1_800;
/// What is shown of a build that failed.
const TAIL: usize = 30;

/// Debian's packages that this host needs for a kernel.
pub fn host_packages() -> &'static [&'static str] {
    match Kvm::of_host() {
        Some(Kvm::Software) => BUILD_PACKAGES,
        _ => &[],
    }
}

/// Makes or takes the kernel, and says to tests by their environment what it is; nothing where there is no KVM.
pub fn prepare(steps: &Steps) -> Result<Vec<(&'static str, OsString)>> {
    let Some(host) = Kvm::of_host() else {
        steps.say("no usable /dev/kvm: tests of guests on KVM will be skipped");
        return Ok(Vec::new());
    };
    let path = paths::target().join("kvm-linux/linux");
    let mut environment = vec![
        (kvm::LINUX, path.clone().into()),
        (kvm::COMMAND_LINE, host.command_line().into()),
    ];
    match host {
        Kvm::Software => build(&path, steps)?,
        Kvm::Hardware => {
            let parts = guest_image::boot_parts(steps)?;
            publish(&parts.kernel, &path)?;
            publish(&parts.initramfs, &path.with_file_name("initrd"))?;
            environment.push((kvm::MODULES, std::env::join_paths(parts.entropy)?));
        }
    }
    Ok(environment)
}

/// Builds the kernel, or takes the one that the same recipe made from the same source.
fn build(out: &Path, steps: &Steps) -> Result<()> {
    apt::install(BUILD_PACKAGES, steps)?;
    let step = steps.start("kernel for an emulating KVM: source");
    let folder = paths::target().join("kvm-linux");
    fs::create_dir_all(&folder)?;
    let mut versions = packages::candidates(&[SOURCE]).or_else(|_| updated())?;
    let mut cached = place(&folder, &versions)?;
    if cached.exists() {
        step.done("cached");
        return publish(&cached, out);
    }
    // Aside, and removed at the end: the source is large.
    let work = tempfile::tempdir_in(&folder)?;
    let unpacked = match packages::unpack(work.path(), &versions) {
        Ok(unpacked) => unpacked,
        Err(_) => {
            // Old lists name versions that the archive has replaced.
            versions = updated()?;
            cached = place(&folder, &versions)?;
            packages::unpack(work.path(), &versions)?
        }
    };
    step.done(&versions[SOURCE]);

    let step = steps.start("kernel for an emulating KVM: build");
    let tree = work.path().join("tree");
    let part = work.path().join("linux");
    fs::create_dir(&tree)?;
    let source = unpacked.folder(SOURCE).join(format!("usr/src/{SOURCE}.tar.xz"));
    make(
        Command::new(recipe_folder().join("build.sh")).args([&source, &tree, &part]),
        &step,
    )?;
    fs::rename(&part, &cached)?;
    step.done(&format!("{} MiB", fs::metadata(&cached)?.len() >> 20));
    publish(&cached, out)
}

/// The source's version, after the lists were brought up to date.
fn updated() -> Result<BTreeMap<String, String>> {
    run("apt-get", &["-q", "update"])?;
    packages::candidates(&[SOURCE])
}

fn recipe_folder() -> PathBuf {
    paths::root().join("tests/kvm-linux")
}

/// Where the kernel of a recipe and a source lies.
fn place(folder: &Path, versions: &BTreeMap<String, String>) -> Result<PathBuf> {
    Ok(folder.join(format!("linux-{:016x}", recipe(versions)?)))
}

/// What decides the kernel's bytes.
fn recipe(versions: &BTreeMap<String, String>) -> Result<u64> {
    let mut hash = DefaultHasher::new();
    for name in ["build.sh", "kernel.config", "kernel.patch"] {
        fs::read(recipe_folder().join(name))?.hash(&mut hash);
    }
    versions.hash(&mut hash);
    Ok(hash.finish())
}

/// Runs the build and shows how far it is; what it writes shows only when it fails.
fn make(command: &mut Command, step: &Step) -> Result<()> {
    let (reader, writer) = std::io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", line(command)))?;
    // The command holds writing ends; without this the pipe never ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut done = 0;
    let mut said = VecDeque::new();
    for text in BufReader::new(reader).lines() {
        let text = text?;
        // "  CC      kernel/fork.o"
        if let Some((_, file)) = text.strip_prefix("  ").and_then(|text| text.split_once(' ')) {
            done += 1;
            step.at(done, LINES.max(done), file.trim());
        }
        said.push_back(text);
        if said.len() > TAIL {
            said.pop_front();
        }
    }
    let status = child.wait()?;
    ensure!(
        status.success(),
        "{} ended with {status}\n{}",
        line(command),
        Vec::from(said).join("\n")
    );
    Ok(())
}

/// Copies a file to a new name, then renames it: whoever reads the old one goes on reading the old one.
fn publish(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    let part = to.with_extension("part");
    fs::copy(from, &part).with_context(|| format!("cannot write {}", part.display()))?;
    fs::rename(&part, to)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_that_fails_says_what_it_said_last() {
        let steps = Steps::default();
        let script = "for i in $(seq 50); do echo \"  CC      file$i.o\"; done; echo wrong >&2; exit 2";
        let error = make(Command::new("sh").args(["-c", script]), &steps.start("x")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("exit status: 2") && text.ends_with("file50.o\nwrong"),
            "{text}"
        );
        assert!(!text.contains("file20.o"), "{text}");
        make(Command::new("sh").args(["-c", "exit 0"]), &steps.start("x")).unwrap();
    }
}
