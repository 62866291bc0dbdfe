//! Debian's packages as parts: downloaded and unpacked, never installed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use allod_tests::run::{capture, run_in};
use anyhow::{Context, Result, bail, ensure};

/// Packages unpacked into a folder each.
#[derive(Debug)]
pub struct Unpacked {
    folders: BTreeMap<String, PathBuf>,
}

impl Unpacked {
    /// Where a package lies.
    pub fn folder(&self, package: &str) -> PathBuf {
        self.folders.get(package).cloned().unwrap_or_default()
    }

    /// A shared library of a package, symbolic links followed.
    pub fn library(&self, package: &str, name: &str) -> Result<PathBuf> {
        let folder = self.folder(package);
        for place in ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"] {
            let path = folder.join(place).join(name);
            if path.exists() {
                return Ok(path);
            }
        }
        bail!("package {package} has no library {name}")
    }
}

/// The package on which a meta package depends and whose name starts so.
pub fn dependency(package: &str, prefix: &str) -> Result<String> {
    let depends = capture("apt-cache", &["depends", package])?;
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
        .with_context(|| format!("{package} depends on no package {prefix}*: run apt-get update"))
}

/// The versions that would be downloaded.
pub fn candidates(packages: &[&str]) -> Result<BTreeMap<String, String>> {
    let policy = capture("apt-cache", &[&["policy"], packages].concat())?;
    let mut versions = BTreeMap::new();
    let mut package = "";
    for line in policy.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|n| !n.starts_with(' ')) {
            package = name;
        } else if let Some(version) = line.trim().strip_prefix("Candidate: ") {
            versions.insert(package.to_owned(), version.to_owned());
        }
    }
    for name in packages {
        ensure!(
            versions.get(*name).is_some_and(|v| v != "(none)"),
            "Debian's package {name} is not known here: is its archive in apt's sources?"
        );
    }
    Ok(versions)
}

/// Downloads and unpacks these packages in these versions; what is there already is taken.
pub fn unpack(folder: &Path, versions: &BTreeMap<String, String>) -> Result<Unpacked> {
    fs::create_dir_all(folder)?;
    let place =
        |name: &str, version: &str| folder.join(format!("{name}_{}", version.replace([':', '/'], "_")));
    let missing: Vec<String> = versions
        .iter()
        .filter(|(name, version)| !place(name, version).exists())
        .map(|(name, version)| format!("{name}={version}"))
        .collect();
    if !missing.is_empty() {
        // Its own folder, open to the user `_apt` that apt downloads as.
        let download = tempfile::Builder::new().prefix("allod-packages").tempdir()?;
        fs::set_permissions(
            download.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o777),
        )?;
        let mut arguments = vec!["-q", "download"];
        arguments.extend(missing.iter().map(String::as_str));
        run_in("apt-get", &arguments, download.path())?;
        for entry in fs::read_dir(download.path())? {
            let archive = entry?.path();
            let path = archive.to_str().context("path is not UTF-8")?;
            let name = capture("dpkg-deb", &["--field", path, "Package"])?;
            let version = capture("dpkg-deb", &["--field", path, "Version"])?;
            // Unpacked aside, then renamed: an interrupted run leaves nothing that looks whole.
            let aside = tempfile::tempdir_in(folder)?;
            let inside = aside.path().join("package");
            run_in(
                "dpkg-deb",
                &["-x", path, inside.to_str().context("path is not UTF-8")?],
                folder,
            )?;
            fs::rename(&inside, place(name.trim(), version.trim()))?;
        }
    }
    let mut folders = BTreeMap::new();
    for (name, version) in versions {
        let path = place(name, version);
        ensure!(path.exists(), "{name} {version} was not downloaded");
        folders.insert(name.clone(), path);
    }
    Ok(Unpacked { folders })
}
