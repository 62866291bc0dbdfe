//! `cargo xtask torture`: faults under load, and what must have survived them.

mod daemon;
mod load;

use std::process::Command;

use allod_tests::paths;
use allod_tests::progress::Steps;
use allod_tests::run::line;
use anyhow::{Context, Result, bail};

use crate::build;

pub use daemon::run as daemon;

/// Kills `allod disk` at queue depth 32 under verified writes. The work is done by an example of room `disk`, which
/// knows its protocol; it prints its own line of totals.
pub fn disk(kills: Option<u32>, steps: &Steps) -> Result<()> {
    let example = paths::target()
        .join(paths::TRIPLE)
        .join("debug/examples/torture_disk");
    build::with_progress(
        "build torture_disk",
        &["build", "-p", "allod-disk", "--example", "torture_disk"],
        &["-p", "allod-disk"],
        steps,
    )?;
    for kind in [&[][..], &["--encrypted"]] {
        let step = steps.start("torture disk");
        let mut command = Command::new(&example);
        command.args(kind);
        if let Some(kills) = kills {
            command.args(["--kills", &kills.to_string()]);
        }
        let status = command
            .status()
            .with_context(|| format!("cannot start {}", line(&command)))?;
        if !status.success() {
            bail!("torture disk ended with {status}");
        }
        step.done("");
    }
    Ok(())
}
