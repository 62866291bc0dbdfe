//! Debian's packages on the host.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::Steps;
use crate::run::{finish, output};

/// Which of these are not installed.
pub fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut absent = Vec::new();
    for package in packages {
        let said = output(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]))?;
        if said.stdout != b"installed" {
            absent.push(*package);
        }
    }
    Ok(absent)
}

/// Installs what is missing, without what is only recommended.
pub fn install(packages: &[&str], steps: &Steps) -> Result<()> {
    let absent = missing(packages)?;
    if absent.is_empty() {
        return Ok(());
    }
    if !nix::unistd::Uid::effective().is_root() {
        bail!(
            "these Debian packages are missing, and only root can install them: {}",
            absent.join(" ")
        );
    }
    let step = steps.start(&format!("install {}", absent.join(" ")));
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            // Another apt, such as a fresh machine's own upgrade, is waited for.
            .args(["-qy", "-o", "DPkg::Lock::Timeout=300"])
            .args(arguments);
        finish(&mut command)
    };
    let mut arguments = vec!["install", "--no-install-recommends"];
    arguments.extend(&absent);
    if apt(&arguments).is_err() {
        // Lists are missing or too old.
        apt(&["update"])?;
        apt(&arguments).context("apt-get cannot install what is needed")?;
    }
    step.done("");
    Ok(())
}
