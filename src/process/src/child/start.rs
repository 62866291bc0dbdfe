//! The child's side of its start.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::error;

use super::Main;
use crate::control::{Connection, Error};
use crate::jail::{Jail, JailError};

/// How long either side waits for the other during a start.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(20);

/// The first message to a child.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StartMessage<S> {
    /// For logs.
    pub name: String,
    /// `None`: no jail (thread, or development).
    pub jail: Option<Jail>,
    /// What it shall do; its kind knows the type.
    pub spec: S,
    /// Names of the descriptors beside the message.
    pub descriptors: Vec<String>,
}

/// Why a child could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The daemon went away or spoke nonsense.
    #[error("start message: {0}")]
    Control(#[from] Error),
    /// The specification is not one of this kind.
    #[error("specification: {0}")]
    Spec(#[from] serde_json::Error),
    /// A descriptor that the kind needs did not come.
    #[error("the descriptor '{0}' was not handed over")]
    MissingDescriptor(String),
    /// No jail, no work.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The system's answer.
    #[error("start: {0}")]
    Io(#[from] std::io::Error),
}

/// What a child was given. In its jail already, if it has one.
#[derive(Debug)]
pub struct Start {
    name: String,
    spec: serde_json::Value,
    descriptors: Vec<(String, OwnedFd)>,
    daemon: Connection,
}

impl Start {
    /// Wait for the first message and enter the jail that it describes.
    pub(super) fn receive(stream: UnixStream) -> Result<Self, StartError> {
        let mut daemon = Connection::new(stream, START_TIMEOUT);
        let (message, descriptors): (StartMessage<serde_json::Value>, _) = daemon.recv()?;
        let jailed = message.jail.as_ref().map_or(Ok(()), Jail::enter);
        if let Err(error) = jailed {
            // Best effort: the daemon learns more from this than from the exit status.
            let _ = daemon.send(&Err::<(), _>(error.to_string()), &[]);
            return Err(error.into());
        }
        let descriptors = message.descriptors.into_iter().zip(descriptors).collect();
        Ok(Start {
            name: message.name,
            spec: message.spec,
            descriptors,
            daemon,
        })
    }

    /// The child's name, for logs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What to do.
    pub fn spec<T: DeserializeOwned>(&self) -> Result<T, StartError> {
        Ok(T::deserialize(&self.spec)?)
    }

    /// Take the descriptor of this name.
    pub fn take<T: From<OwnedFd>>(&mut self, name: &str) -> Result<T, StartError> {
        let index = self.descriptors.iter().position(|(n, _)| n == name);
        let index = index.ok_or_else(|| StartError::MissingDescriptor(name.into()))?;
        Ok(T::from(self.descriptors.swap_remove(index).1))
    }

    /// Tell the daemon that the start succeeded. The connection can carry a result; most children drop it.
    pub fn ready(self) -> Result<Connection, StartError> {
        self.daemon.send(&Ok::<(), String>(()), &[])?;
        Ok(self.daemon)
    }

    /// Tell the daemon why the start failed.
    pub fn fail(&self, why: &str) {
        let _ = self.daemon.send(&Err::<(), _>(why), &[]);
    }
}

/// The whole life of a child process: wait for the start on standard input, enter the jail, run `main`.
/// To be called first thing in the process, while it has one thread.
pub fn run(main: Main) -> ExitCode {
    let outcome = standard_input()
        .map_err(StartError::from)
        .and_then(Start::receive);
    let result = match outcome {
        Ok(start) => main(start),
        Err(error) => Err(error.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(%error, "child ends");
            ExitCode::FAILURE
        }
    }
}

/// Take the socket from standard input; close every descriptor that leaked through exec.
fn standard_input() -> std::io::Result<UnixStream> {
    let leaked: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&number| number > 2)
        .collect();
    for number in leaked {
        // The folder's own descriptor is in the list and closed already.
        let _ = nix::unistd::close(number);
    }
    let stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    debug_assert!(stream.as_raw_fd() > 2);
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(stream)
}
