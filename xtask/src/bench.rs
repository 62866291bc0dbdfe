//! `cargo xtask bench`: builds what is measured, and measures it.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use allod_tests::progress::Steps;
use allod_tests::run::line;
use allod_tests::{apt, paths};
use anyhow::{Context, Result, bail};

use crate::{build, guest_image, kvm_linux};

/// All figures of the API.
pub fn api(steps: &Steps) -> Result<()> {
    // First the one with the test-only engine, set aside: the release build then takes its place again.
    let simulated = simulated(steps)?;
    build::release(steps)?;
    guest_image::build(&guest_image::default_path(), steps)?;
    bench(&["api"], steps)?;
    let simulated = simulated.to_str().context("path is not UTF-8")?;
    bench(&["many-servers", simulated], steps)?;
    println!("all figures are in {}", paths::target().join("bench").display());
    Ok(())
}

/// Debian's packages that the figures of the monitor need: a peer, and what reads a disk on the host.
const VMM_PACKAGES: &[&str] = &["fio", "gcc", "qemu-system-x86"];

/// The embedded monitor beside others.
pub fn vmm(groups: &[String], steps: &Steps) -> Result<()> {
    apt::install(VMM_PACKAGES, steps)?;
    let environment = kvm_linux::prepare(steps)?;
    build::release(steps)?;
    let groups: Vec<_> = groups.iter().map(String::as_str).collect();
    bench_with(&[&["vmm"], &groups[..]].concat(), &environment, steps)
}

/// Debian's packages that the figures of volumes need: a peer, what reads a file on the host, and what makes a pool.
const DISK_PACKAGES: &[&str] = &["fio", "qemu-system-common", "xfsprogs"];

/// Volumes.
pub fn disk(steps: &Steps) -> Result<()> {
    apt::install(DISK_PACKAGES, steps)?;
    bench_with(&["disk"], &[], steps)
}

fn simulated(steps: &Steps) -> Result<PathBuf> {
    let arguments = ["build", "--release", "-p", "allod", "--features", "simulated"];
    build::with_progress(
        "build with the simulated engine",
        &arguments,
        &["-p", "allod"],
        steps,
    )?;
    let aside = paths::target().join("bench");
    fs::create_dir_all(&aside)?;
    let aside = aside.join("allod-simulated");
    fs::copy(paths::release_binary(), &aside)?;
    Ok(aside)
}

fn bench(arguments: &[&str], steps: &Steps) -> Result<()> {
    let image = ("ALLOD_GUEST_IMAGE", guest_image::default_path().into());
    bench_with(arguments, &[image], steps)
}

fn bench_with(arguments: &[&str], environment: &[(&str, OsString)], steps: &Steps) -> Result<()> {
    build::with_progress(
        "build benches",
        &["build", "--release", "-p", "allod-benches"],
        &["-p", "allod-benches"],
        steps,
    )?;
    let step = steps.start(&format!("bench {}", arguments[0]));
    let mut command = Command::new(paths::target().join(paths::TRIPLE).join("release/bench"));
    command.args(arguments).env("ALLOD", paths::release_binary());
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", line(&command)))?;
    if !status.success() {
        bail!("{} ended with {status}", line(&command));
    }
    step.done("");
    Ok(())
}
