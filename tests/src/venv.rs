//! Python environments below `target/`: the unmodified `openstack` client, and the judges, from PyPI.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::paths;
use crate::progress::Steps;
use crate::run::run;

/// Debian's packages that environments need.
pub const HOST_PACKAGES: &[&str] = &["python3", "python3-venv"];

/// A Python environment.
#[derive(Debug, Clone, Copy)]
pub struct Venv {
    /// Its folder's name below `target/`.
    pub folder: &'static str,
    /// What is installed, as `pip` takes it.
    pub packages: &'static [&'static str],
    /// Every package's version: a file of the checkout.
    pub constraints: &'static str,
}

/// The client.
pub const CLIENT: Venv = Venv {
    folder: "venv",
    packages: &["python-openstackclient==10.5.0"],
    constraints: "tests/constraints.txt",
};

/// OpenStack's own integration tests, in an environment of their own: they want other versions of what both need.
pub const TEMPEST: Venv = Venv {
    folder: "tempest",
    packages: &["tempest==47.0.0"],
    constraints: "tests/conformance/constraints.txt",
};

/// What the runner of the SCS standards needs.
pub const STANDARDS: Venv = Venv {
    folder: "standards",
    packages: &["openstacksdk==4.22.0", "boto3", "pyyaml"],
    constraints: "tests/conformance/standards-constraints.txt",
};

/// The client's program.
pub fn openstack() -> PathBuf {
    CLIENT.program("openstack")
}

impl Venv {
    /// Where it lies.
    pub fn path(&self) -> PathBuf {
        paths::target().join(self.folder)
    }

    /// One of its programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.path().join("bin").join(name)
    }

    /// What it will install, and where.
    pub fn describe(&self) -> String {
        format!(
            "from PyPI, into {}: {}",
            self.path().display(),
            self.packages.join(" ")
        )
    }

    /// Installs it, unless the one there was installed from the same list.
    pub fn install(&self, steps: &Steps) -> Result<()> {
        let list = paths::root().join(self.constraints);
        let constraints =
            fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        // An environment cannot be moved: its programs name its path.
        let wanted = format!(
            "# {}
{constraints}",
            self.path().display()
        );
        let mark = self.path().join("allod-installed");
        if fs::read_to_string(&mark).is_ok_and(|have| have == wanted) {
            return Ok(());
        }
        let step = steps.start(&format!("install {} from PyPI", self.packages.join(" ")));
        let path = self.path();
        let path = path.to_str().context("path is not UTF-8")?;
        // Debian's Python, whatever else is first on the path.
        run("/usr/bin/python3", &["-m", "venv", "--clear", path])?;
        let list = list.to_str().context("path is not UTF-8")?;
        let mut arguments = vec!["install", "--quiet", "--disable-pip-version-check", "-c", list];
        arguments.extend(self.packages);
        run(self.program("pip"), &arguments)?;
        fs::write(mark, wanted)?;
        step.done("");
        Ok(())
    }
}
