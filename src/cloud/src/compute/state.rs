//! The state machine of a server. One task owns it (`reconciler`); everything here is pure.
//!
//! A request sets `wanted`, raises `generation` and names the work in `task_state`; the reconciler works out the steps
//! with [`plan`], carries them out on the node, and settles the row. Whatever happens on the way (a crash of the daemon
//! included), planning anew from the row and the machine leads to the same end, since every step may be repeated.
//!
//! ```text
//!                 create
//!                   │ scheduling ── no room ──────────────▶ ┌───────┐ ◀── a step failed (any task)
//!                   ▼                                       │ ERROR │
//!      ┌──────── BUILDING                                   └───┬───┘
//!      │            │ spawning                                  │ rebooting_hard
//!      │            ▼                                           ▼
//!      │   ┌───▶ ACTIVE ◀──── reboot_started ◀─── rebooting | rebooting_hard ◀── (ACTIVE, STOPPED, PAUSED)
//!      │   │     │  │  ▲
//!      │   │     │  │  └── unpausing ──┐
//!      │   │     │  └───── pausing ─▶ PAUSED
//!      │   │     │ powering-off, or the guest shut down by itself
//!      │   │     ▼
//!      │   └── STOPPED       (powering-on)
//!      │
//!      └─ deleting (from everywhere) ──▶ DELETED
//! ```

use std::time::Duration;

use model::machine::{PowerState, StopMode};
use serde::{Deserialize, Serialize};

/// Nova's `vm_state`: the last state that the server came to rest in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Not built yet.
    Building,
    /// Runs.
    Active,
    /// Its vCPUs stand still.
    Paused,
    /// Off.
    Stopped,
    /// Something failed; `fault` says what.
    Error,
    /// Gone; the row is for history.
    Deleted,
}

/// Nova's `task_state`: the work that is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Task {
    /// Waits for a node.
    #[serde(rename = "scheduling")]
    Scheduling,
    /// Its volume is made, its machine starts.
    #[serde(rename = "spawning")]
    Spawning,
    /// Is being stopped.
    #[serde(rename = "powering-off")]
    PoweringOff,
    /// Is being started.
    #[serde(rename = "powering-on")]
    PoweringOn,
    /// Is asked to shut down for a reboot.
    #[serde(rename = "rebooting")]
    Rebooting,
    /// Is off and starts again.
    #[serde(rename = "reboot_started")]
    RebootStarted,
    /// Has its plug pulled for a reboot.
    #[serde(rename = "rebooting_hard")]
    RebootingHard,
    /// Is off and starts again.
    #[serde(rename = "reboot_started_hard")]
    RebootStartedHard,
    /// Is being frozen.
    #[serde(rename = "pausing")]
    Pausing,
    /// Is being thawed.
    #[serde(rename = "unpausing")]
    Unpausing,
    /// Is being removed.
    #[serde(rename = "deleting")]
    Deleting,
}

/// What should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// Running.
    Active,
    /// Off.
    Stopped,
    /// Frozen.
    Paused,
    /// Gone.
    Deleted,
}

/// Nova's `power_state`: what the machine was last seen doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Power {
    /// No machine.
    NoState = 0,
    /// Runs.
    Running = 1,
    /// Frozen.
    Paused = 3,
    /// Off.
    Shutdown = 4,
    /// Its process died.
    Crashed = 6,
}

/// Enumerations as the tables and the API have them: their serde names.
macro_rules! text_form {
    ($($kind:ty),*) => {$(
        impl $kind {
            /// As the tables and the API have it.
            pub fn as_str(self) -> String {
                serde_json::to_value(self).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
            }

            /// From the same.
            pub fn parse(text: &str) -> Option<Self> {
                serde_json::from_value(serde_json::Value::String(text.to_owned())).ok()
            }
        }
    )*};
}
text_form!(VmState, Task, Wanted);

impl Power {
    /// From its number.
    pub fn of_number(number: i64) -> Power {
        match number {
            1 => Power::Running,
            3 => Power::Paused,
            4 => Power::Shutdown,
            6 => Power::Crashed,
            _ => Power::NoState,
        }
    }
}

/// Nova's `status`, which is made of the two states.
pub fn status(vm: VmState, task: Option<Task>) -> &'static str {
    match (vm, task) {
        (VmState::Active, Some(Task::Rebooting | Task::RebootStarted)) => "REBOOT",
        (
            VmState::Active | VmState::Stopped | VmState::Paused | VmState::Error,
            Some(Task::RebootingHard | Task::RebootStartedHard),
        ) => "HARD_REBOOT",
        (VmState::Building, _) => "BUILD",
        (VmState::Active, _) => "ACTIVE",
        (VmState::Paused, _) => "PAUSED",
        (VmState::Stopped, _) => "SHUTOFF",
        (VmState::Error, _) => "ERROR",
        (VmState::Deleted, _) => "DELETED",
    }
}

/// All statuses that Nova knows; a filter by another one is an error.
pub const STATUSES: &[&str] = &[
    "ACTIVE",
    "BUILD",
    "DELETED",
    "ERROR",
    "HARD_REBOOT",
    "MIGRATING",
    "PASSWORD",
    "PAUSED",
    "REBOOT",
    "REBUILD",
    "RESCUE",
    "RESIZE",
    "REVERT_RESIZE",
    "SHELVED",
    "SHELVED_OFFLOADED",
    "SHUTOFF",
    "SOFT_DELETED",
    "SUSPENDED",
    "UNKNOWN",
    "VERIFY_RESIZE",
];

/// What [`plan`] needs to know of a server's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// What should be.
    pub wanted: Wanted,
    /// Where it rests.
    pub vm: VmState,
    /// What is to be done.
    pub task: Option<Task>,
    /// It ran at least once, so its volume exists and holds the tenant's data.
    pub launched: bool,
    /// The row is history.
    pub deleted: bool,
}

/// One step. Each may be repeated, and ends the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Find a node with room.
    Place,
    /// Make the root volume from the image.
    CreateVolume,
    /// Start the machine.
    Start,
    /// Stop the machine.
    Stop(StopMode),
    /// Freeze the machine.
    Pause,
    /// Thaw the machine.
    Resume,
    /// Remove what the machine left on the node.
    Forget,
    /// Remove the root volume.
    DeleteVolume,
    /// Write down the next task.
    Proceed(Task),
    /// Write down where it came to rest.
    Settle(VmState, Power),
    /// Release the ports and make the row history.
    Bury,
}

/// The steps that lead from the row and the machine on this node (`None`: no process) to what should be. Empty: nothing
/// to do.
pub fn plan(row: Row, machine: Option<PowerState>, graceful: Duration) -> Vec<Step> {
    use Step::*;
    let off = Settle(VmState::Stopped, Power::Shutdown);
    let on = Settle(VmState::Active, Power::Running);
    let start = |settle| {
        if row.launched {
            vec![Start, settle]
        } else {
            vec![CreateVolume, Start, settle]
        }
    };
    if row.deleted {
        return if machine.is_some() {
            vec![Stop(StopMode::Hard), Forget]
        } else {
            Vec::new()
        };
    }
    match row.task {
        Some(Task::Deleting) => vec![Stop(StopMode::Hard), Forget, DeleteVolume, Bury],
        Some(Task::Scheduling) => vec![Place],
        Some(Task::Spawning | Task::PoweringOn | Task::RebootStarted | Task::RebootStartedHard) => start(on),
        Some(Task::PoweringOff) => vec![Stop(StopMode::Graceful(graceful)), off],
        Some(Task::Rebooting) => vec![Stop(StopMode::Graceful(graceful)), Proceed(Task::RebootStarted)],
        Some(Task::RebootingHard) => vec![Stop(StopMode::Hard), Proceed(Task::RebootStartedHard)],
        Some(Task::Pausing) => match machine {
            Some(PowerState::Running | PowerState::Paused) => {
                vec![Pause, Settle(VmState::Paused, Power::Paused)]
            }
            _ => vec![off],
        },
        Some(Task::Unpausing) => match machine {
            Some(PowerState::Running | PowerState::Paused) => vec![Resume, on],
            _ => vec![off],
        },
        None => drift(row, machine),
    }
}

/// Nothing was asked; but the machine may have changed by itself, or the node was restarted.
fn drift(row: Row, machine: Option<PowerState>) -> Vec<Step> {
    use Step::*;
    if !matches!(row.vm, VmState::Active | VmState::Paused | VmState::Stopped) {
        return Vec::new();
    }
    let ended = |power| vec![Stop(StopMode::Hard), Settle(VmState::Stopped, power)];
    match (row.wanted, machine) {
        (Wanted::Active | Wanted::Paused, Some(PowerState::Shutdown)) => ended(Power::Shutdown),
        (Wanted::Active | Wanted::Paused, Some(PowerState::Crashed)) => ended(Power::Crashed),
        // The node was restarted: what ran, runs again.
        (Wanted::Active, None) => vec![Start, Settle(VmState::Active, Power::Running)],
        (Wanted::Active, Some(PowerState::Paused)) => vec![Resume, Settle(VmState::Active, Power::Running)],
        (Wanted::Paused, None) => vec![Settle(VmState::Stopped, Power::Shutdown)],
        (Wanted::Paused, Some(PowerState::Running)) => vec![Pause, Settle(VmState::Paused, Power::Paused)],
        (Wanted::Stopped, Some(PowerState::Running | PowerState::Paused)) => vec![Stop(StopMode::Hard)],
        (Wanted::Active, Some(PowerState::Running))
        | (Wanted::Paused, Some(PowerState::Paused))
        | (Wanted::Stopped, None | Some(PowerState::Shutdown | PowerState::Crashed))
        | (Wanted::Deleted, _) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINES: [Option<PowerState>; 5] = [
        None,
        Some(PowerState::Running),
        Some(PowerState::Paused),
        Some(PowerState::Shutdown),
        Some(PowerState::Crashed),
    ];

    fn row(wanted: Wanted, vm: VmState, task: Option<Task>) -> Row {
        Row {
            wanted,
            vm,
            task,
            launched: vm != VmState::Building,
            deleted: false,
        }
    }

    #[test]
    fn a_server_at_rest_that_is_as_it_should_be_is_left_alone() {
        for (wanted, vm, machine) in [
            (Wanted::Active, VmState::Active, Some(PowerState::Running)),
            (Wanted::Paused, VmState::Paused, Some(PowerState::Paused)),
            (Wanted::Stopped, VmState::Stopped, None),
            (Wanted::Active, VmState::Error, None),
        ] {
            assert_eq!(plan(row(wanted, vm, None), machine, Duration::ZERO), []);
        }
    }

    #[test]
    fn a_tenants_volume_is_never_made_again() {
        for task in [
            Task::Spawning,
            Task::PoweringOn,
            Task::RebootStarted,
            Task::RebootStartedHard,
        ] {
            for machine in MACHINES {
                let steps = plan(
                    row(Wanted::Active, VmState::Active, Some(task)),
                    machine,
                    Duration::ZERO,
                );
                assert!(!steps.contains(&Step::CreateVolume), "{task:?}");
            }
        }
    }

    #[test]
    fn deletion_wins_from_every_state() {
        for vm in [
            VmState::Building,
            VmState::Active,
            VmState::Paused,
            VmState::Stopped,
            VmState::Error,
        ] {
            for machine in MACHINES {
                let steps = plan(
                    row(Wanted::Deleted, vm, Some(Task::Deleting)),
                    machine,
                    Duration::ZERO,
                );
                assert_eq!(steps.last(), Some(&Step::Bury));
                assert!(steps.contains(&Step::Stop(StopMode::Hard)));
            }
        }
    }

    #[test]
    fn every_name_is_read_back() {
        for task in [
            "scheduling",
            "spawning",
            "powering-off",
            "reboot_started_hard",
            "deleting",
        ] {
            assert_eq!(Task::parse(task).map(Task::as_str).as_deref(), Some(task));
        }
        assert_eq!(Task::parse("resize_prep"), None);
        assert_eq!(VmState::parse("active"), Some(VmState::Active));
    }
}
