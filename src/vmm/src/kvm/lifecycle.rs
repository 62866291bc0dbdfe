//! What every device of a machine can be told.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// A device's state: what the guest could tell apart, and nothing of the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The layout of `state`. A device restores its own version and older ones.
    pub version: u32,
    /// The state.
    pub state: Value,
}

impl Saved {
    /// Of a state in this version of its layout.
    pub(super) fn new<T: Serialize>(version: u32, state: &T) -> Result<Self, StateError> {
        let state = serde_json::to_value(state).map_err(|error| StateError::Malformed(error.to_string()))?;
        Ok(Saved { version, state })
    }

    /// The state, if it is of this version.
    pub(super) fn read<T: for<'de> Deserialize<'de>>(&self, version: u32) -> Result<T, StateError> {
        if self.version != version {
            return Err(StateError::Version(self.version));
        }
        T::deserialize(&self.state).map_err(|error| StateError::Malformed(error.to_string()))
    }
}

/// Why a state was not saved or restored.
#[derive(Debug, Error)]
pub enum StateError {
    /// A version that this program does not know.
    #[error("version {0} of the state is not known here")]
    Version(u32),
    /// The state contradicts itself or its layout.
    #[error("the state is malformed: {0}")]
    Malformed(String),
    /// The system's answer.
    #[error("{0}")]
    Os(String),
}

/// What every device of a machine can be told, by the machine's one driver thread.
///
/// The order, relative to the vCPUs:
///
/// - `start` comes first and once, before a vCPU has run; or `restore` and then `start`.
/// - `pause` comes after all vCPUs stand still. When it returns, the device touches the guest's memory no more.
/// - `save` comes between `pause` and `resume` only, any number of times.
/// - `resume` comes before a vCPU runs on.
/// - `reset` comes while all vCPUs stand still, paused or not. Afterwards the device is as after its making, touches no
///   memory of the guest, and is started (or still paused, if it was).
/// - `halt` comes last and once, after all vCPUs are gone; from any state.
pub trait Lifecycle: Send + Sync {
    /// The device's name in this machine, and its state's key; the same at every start.
    fn name(&self) -> &str;
    /// Begin.
    fn start(&self) {}
    /// Stand still.
    fn pause(&self) {}
    /// Go on.
    fn resume(&self) {}
    /// Back to the state after the making.
    fn reset(&self);
    /// End.
    fn halt(&self) {}
    /// The state, as `restore` wants it.
    fn save(&self) -> Result<Saved, StateError>;
    /// Take on a state. Whatever it says, it is checked: it may have come over a network.
    fn restore(&self, saved: &Saved) -> Result<(), StateError>;
}
