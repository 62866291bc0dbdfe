//! SSH keys and options.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::run::run;

/// The user of the small guest image; `sudo` needs no password there.
pub const USER: &str = "allod";

/// A key pair of OpenSSH's.
#[derive(Debug, Clone)]
pub struct Key {
    private: PathBuf,
}

impl Key {
    /// Makes one in a folder.
    pub fn generate(folder: &Path, name: &str) -> Result<Self> {
        let private = folder.join(name);
        let path = private.to_str().context("path is not UTF-8")?;
        run(
            "ssh-keygen",
            &["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path],
        )?;
        Ok(Self { private })
    }

    /// The private key's file.
    pub fn private(&self) -> &Path {
        &self.private
    }

    /// The public key's file.
    pub fn public(&self) -> PathBuf {
        self.private.with_extension("pub")
    }

    /// What `ssh` needs in order to log in to a guest that nobody knows yet.
    pub fn options(&self) -> Vec<String> {
        let mut options = vec!["-i".to_owned(), self.private.display().to_string()];
        for option in [
            "BatchMode=yes",
            "ConnectTimeout=5",
            "IdentitiesOnly=yes",
            "LogLevel=ERROR",
            "ServerAliveInterval=5",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
        ] {
            options.extend(["-o".to_owned(), option.to_owned()]);
        }
        options
    }
}
