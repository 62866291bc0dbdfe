//! Building the program, and looking at what was built.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use allod_tests::paths;
use allod_tests::progress::Steps;
use allod_tests::run::{finish, line};
use anyhow::{Context, Result, bail, ensure};

/// Debian's packages that a build needs: a C compiler and, for SQLite's session bindings, libclang.
pub const HOST_PACKAGES: &[&str] = &[
    "ca-certificates",
    "gcc",
    "libc6-dev",
    "libclang-common-14-dev",
    "libclang1-14",
];

/// Debian's packages that a one-node cloud needs.
pub const RUN_PACKAGES: &[&str] = &[
    "iproute2",
    "iputils-ping",
    "nftables",
    "openssh-client",
    "qemu-system-x86",
    "util-linux",
    "xfsprogs",
];

/// Cargo, as a command of its own and not as a child of the cargo that runs us.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let inherited = std::env::vars_os().map(|(name, _)| name).filter(|name| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_MANIFEST_")
            || name.starts_with("CARGO_BIN_")
    });
    for name in inherited {
        command.env_remove(name);
    }
    command.current_dir(paths::root()).stdin(Stdio::null());
    command
}

/// Builds the release binary and shows how far it is.
pub fn release(steps: &Steps) -> Result<()> {
    with_progress(
        "build the release binary",
        &["build", "--release", "-p", "allod"],
        &["-p", "allod"],
        steps,
    )?;
    let binary = paths::release_binary();
    ensure!(binary.exists(), "cargo left no {}", binary.display());
    Ok(())
}

/// Runs a cargo command that builds. `scope` says to `cargo tree` what is built, for the bar's length.
pub fn with_progress(name: &str, arguments: &[&str], scope: &[&str], steps: &Steps) -> Result<()> {
    let step = steps.start(name);
    let mut tree = cargo();
    tree.args([
        "tree",
        "--prefix",
        "none",
        "--format",
        "{p}",
        "--edges",
        "normal,build",
    ])
    .args(scope);
    let tree = finish(&mut tree)?;
    let total = tree
        .lines()
        .filter_map(|l| l.split(" (").next())
        .collect::<BTreeSet<_>>()
        .len() as u64;

    let mut command = cargo();
    command
        .args(arguments)
        .args(["--quiet", "--message-format=json-render-diagnostics"])
        .stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", line(&command)))?;
    let mut built = BTreeSet::new();
    for message in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let message: serde_json::Value = serde_json::from_str(&message?)?;
        if message["reason"] == "compiler-artifact"
            && let Some(package) = message["package_id"].as_str()
        {
            built.insert(package.to_owned());
            step.at(
                built.len() as u64,
                total.max(built.len() as u64),
                message["target"]["name"].as_str().unwrap_or(""),
            );
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{} ended with {status}", line(&command));
    }
    step.done("");
    Ok(())
}

/// Fails unless a program is a 64-bit ELF file that asks for no interpreter and no shared library.
pub fn check_static(path: &Path) -> Result<()> {
    const PT_INTERP: u32 = 3;
    const PT_DYNAMIC: u32 = 2;
    const DT_NEEDED: u64 = 1;
    let file = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        file.starts_with(b"\x7fELF\x02\x01"),
        "{} is no 64-bit little-endian ELF file",
        path.display()
    );
    let short = |at: u64| number(&file, at, 2);
    let long = |at: u64| number(&file, at, 8);
    let (headers, size, count) = (long(32)?, short(54)?, short(56)?);
    for index in 0..count {
        let header = headers + index * size;
        let kind = u32::try_from(number(&file, header, 4)?)?;
        ensure!(
            kind != PT_INTERP,
            "{} is not static: it asks for an interpreter",
            path.display()
        );
        if kind == PT_DYNAMIC {
            let (start, length) = (long(header + 8)?, long(header + 32)?);
            for entry in (start..start + length).step_by(16) {
                ensure!(
                    long(entry)? != DT_NEEDED,
                    "{} is not static: it asks for a library",
                    path.display()
                );
            }
        }
    }
    Ok(())
}

/// A little-endian number somewhere in a file.
fn number(file: &[u8], at: u64, bytes: usize) -> Result<u64> {
    let at = usize::try_from(at)?;
    let slice = at
        .checked_add(bytes)
        .and_then(|end| file.get(at..end))
        .context("the ELF file ends too early")?;
    Ok(slice
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        // This test itself is built as the binary is; Debian's shell is not.
        check_static(&std::env::current_exe().unwrap()).unwrap();
        let error = check_static(Path::new("/bin/sh")).unwrap_err().to_string();
        assert!(error.contains("not static"), "{error}");
        assert!(check_static(Path::new("/etc/passwd")).is_err());
    }
}
