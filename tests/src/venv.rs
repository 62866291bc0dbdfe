//! The unmodified `openstack` client from PyPI, in a Python environment below `target/`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::paths;
use crate::progress::Steps;
use crate::run::run;

/// What is installed.
pub const CLIENT: &str = "python-openstackclient==10.5.0";

/// Debian's packages that the environment needs.
pub const HOST_PACKAGES: &[&str] = &["python3", "python3-venv"];

/// The client's program.
pub fn openstack() -> PathBuf {
    paths::venv().join("bin/openstack")
}

/// Installs the client, unless the one there was installed from the same list.
pub fn install(steps: &Steps) -> Result<()> {
    let list = paths::root().join("tests/constraints.txt");
    let wanted = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let mark = paths::venv().join("allod-installed");
    if fs::read_to_string(&mark).is_ok_and(|have| have == wanted) && openstack().exists() {
        return Ok(());
    }
    let step = steps.start(&format!("install {CLIENT} from PyPI"));
    let venv = paths::venv();
    let venv = venv.to_str().context("path is not UTF-8")?;
    // Debian's Python, whatever else is first on the path.
    run("/usr/bin/python3", &["-m", "venv", "--clear", venv])?;
    let list = list.to_str().context("path is not UTF-8")?;
    run(
        paths::venv().join("bin/pip"),
        &[
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-c",
            list,
            CLIENT,
        ],
    )?;
    fs::write(mark, wanted)?;
    step.done("");
    Ok(())
}
