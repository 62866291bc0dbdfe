//! `cargo xtask bench`: builds what is measured, and measures it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use allod_tests::paths;
use allod_tests::progress::Steps;
use allod_tests::run::line;
use anyhow::{Context, Result, bail};

use crate::{build, guest_image};

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
    build::with_progress(
        "build benches",
        &["build", "--release", "-p", "allod-benches"],
        &["-p", "allod-benches"],
        steps,
    )?;
    let step = steps.start(&format!("bench {}", arguments[0]));
    let mut command = Command::new(paths::target().join(paths::TRIPLE).join("release/bench"));
    command.args(arguments).env("ALLOD", paths::release_binary());
    command.env("ALLOD_GUEST_IMAGE", guest_image::default_path());
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", line(&command)))?;
    if !status.success() {
        bail!("{} ended with {status}", line(&command));
    }
    step.done("");
    Ok(())
}
