//! The state directory: its lock, its folders, the first administrator's password, and `clouds.yaml`.
//!
//! ```text
//! <dir>/lock            held by the daemon that serves this directory
//! <dir>/clouds.yaml     the administrator's way in (0600)
//! <dir>/ca.pem          what clients verify the cloud with
//! <dir>/tls, secrets/   keys (0700)
//! <dir>/store/          database and log
//! <dir>/staging/        uploads until they are converted
//! <dir>/log/            what children say
//! <dir>/pool/           images and volumes
//! <dir>/run/            sockets and pids of children
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;
use rand::RngExt;

use crate::config::Config;
use crate::tls;

/// The state directory, locked for as long as this value lives.
pub struct StateDir {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl StateDir {
    /// Makes what is missing and takes the lock.
    ///
    /// # Errors
    /// Another daemon serves this directory, or it cannot be made.
    pub fn open(config: &Config) -> Result<StateDir> {
        let dir = config.storage.dir.clone();
        private_dir(&dir, 0o711)?;
        for name in ["secrets", "tls", "store", "staging", "log"] {
            private_dir(&dir.join(name), 0o700)?;
        }
        private_dir(&dir.join("run"), 0o711)?;
        let path = dir.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            bail!(
                "another allod serves {}; stop it first, or set storage.dir to another directory",
                dir.display()
            );
        };
        lock.set_len(0)
            .and_then(|()| (&*lock).write_all(std::process::id().to_string().as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(StateDir { dir, _lock: lock })
    }

    /// A folder or file below.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The first administrator's password: made once, kept in `secrets/` for its owner alone.
    pub fn admin_password(&self) -> Result<String> {
        let path = self.path("secrets/admin-password");
        match fs::read_to_string(&path) {
            Ok(password) => Ok(password.trim().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let password = random_password();
                tls::write_private(&path, password.as_bytes())?;
                Ok(password)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes `clouds.yaml` for the administrator, once: later changes by its owner stay.
    pub fn write_clouds_yaml(&self, config: &Config, password: &str) -> Result<PathBuf> {
        let path = self.path("clouds.yaml");
        if !path.exists() {
            let text = format!(
                "# The administrator's way in: openstack --os-cloud allod ...\n\
                 clouds:\n  allod:\n    region_name: {region}\n    auth:\n      auth_url: {url}/identity/v3\n      \
                 username: admin\n      password: {password}\n      project_name: admin\n      \
                 user_domain_id: default\n      project_domain_id: default\n    cacert: {ca}\n    \
                 identity_api_version: 3\n",
                region = yaml_string(&config.server.region),
                url = tls::public_url(config),
                password = yaml_string(password),
                ca = yaml_string(&self.path("ca.pem").display().to_string()),
            );
            tls::write_private(&path, text.as_bytes())?;
        }
        Ok(path)
    }
}

/// The process that holds the state directory's lock, as it wrote down itself.
pub fn holder(config: &Config) -> Option<Pid> {
    let text = fs::read_to_string(config.storage.dir.join("lock")).ok()?;
    text.trim().parse().ok().filter(|pid| *pid > 1).map(Pid::from_raw)
}

/// A quoted YAML string; JSON's strings are YAML's.
fn yaml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// 24 letters and digits: 142 bits.
fn random_password() -> String {
    const LETTERS: &[u8] = b"ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789";
    let mut rng = rand::rng();
    (0..24)
        .map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())]))
        .collect()
}

fn private_dir(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("cannot make {}; run as root, or set storage.dir", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> Config {
        let mut config = Config::default();
        config.storage.dir = dir.join("state");
        config
    }

    #[test]
    fn one_daemon_serves_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(&config(dir.path())).unwrap();
        let error = StateDir::open(&config(dir.path())).err().unwrap().to_string();
        assert!(error.contains("another allod serves"), "{error}");
        assert_eq!(holder(&config(dir.path())), Some(Pid::this()));
        drop(first);
        StateDir::open(&config(dir.path())).unwrap();
    }

    #[test]
    fn secrets_are_made_once_and_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let state = StateDir::open(&config).unwrap();
        let password = state.admin_password().unwrap();
        assert_eq!(password.len(), 24);
        assert_eq!(password, state.admin_password().unwrap());
        let clouds = state.write_clouds_yaml(&config, &password).unwrap();
        for path in [clouds, state.path("secrets/admin-password")] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(
            fs::metadata(state.path("secrets")).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }
}
