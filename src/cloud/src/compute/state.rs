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
//!      │            │ spawning                                  │ rebooting_hard, rebuilding, rescuing
//!      │            ▼                                           ▼
//!      │   ┌───▶ ACTIVE ◀──── reboot_started ◀─── rebooting | rebooting_hard ◀── (ACTIVE, STOPPED, PAUSED)
//!      │   │     │  │  ▲
//!      │   │     │  │  └── unpausing ──┐
//!      │   │     │  └───── pausing ─▶ PAUSED
//!      │   │     │ powering-off, or the guest shut down by itself
//!      │   │     ▼
//!      │   └── STOPPED       (powering-on)
//!      │
//!      │   ACTIVE, STOPPED                                 ┌─ resize_confirming ──▶ ACTIVE, STOPPED (the other root goes)
//!      │      └ resize_prep ─▶ resize_finish ─▶ RESIZED ───┤
//!      │        (the other root is made; exchanged)        └─ resize_reverting ───▶ what it was   (exchanged back)
//!      │
//!      │   ACTIVE, STOPPED, ERROR ── rebuilding ─▶ rebuild_spawning ──▶ ACTIVE, or STOPPED if it was
//!      │   ACTIVE, STOPPED, ERROR ── rescuing ──▶ RESCUED ── unrescuing ──▶ ACTIVE
//!      │   ACTIVE, STOPPED, PAUSED ── shelving ──▶ SHELVED_OFFLOADED ── unshelving ──▶ ACTIVE
//!      │   ACTIVE, STOPPED, PAUSED ── image_snapshot ──▶ as before
//!      │
//!      └─ deleting (from everywhere) ──▶ DELETED
//! ```
//!
//! An unshelving that fails leads back to the shelf: until the server runs, there is the image that it was kept as.
//!
//! A resize and a rebuild make a second root volume and exchange it for the first in one write ([`Phase`]), so that at every moment
//! one of the two is the server's and the other one may go.

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
    /// Has another flavor; the old one is kept until that is confirmed.
    Resized,
    /// Runs from a rescue disk.
    Rescued,
    /// Is kept as an image; no node has it.
    #[serde(rename = "shelved_offloaded")]
    ShelvedOffloaded,
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
    /// Is stopped, and its other root disk is made.
    #[serde(rename = "resize_prep")]
    ResizePrep,
    /// Starts with its other flavor.
    #[serde(rename = "resize_finish")]
    ResizeFinish,
    /// What the resize kept for a revert goes.
    #[serde(rename = "resize_confirming")]
    ResizeConfirming,
    /// Becomes what it was before the resize.
    #[serde(rename = "resize_reverting")]
    ResizeReverting,
    /// Is stopped, and a new root disk is made.
    #[serde(rename = "rebuilding")]
    Rebuilding,
    /// Starts from its new root disk.
    #[serde(rename = "rebuild_spawning")]
    RebuildSpawning,
    /// Its root disk becomes an image.
    #[serde(rename = "image_snapshot")]
    ImageSnapshot,
    /// Starts from a rescue disk.
    #[serde(rename = "rescuing")]
    Rescuing,
    /// Starts from its own disk again.
    #[serde(rename = "unrescuing")]
    Unrescuing,
    /// Becomes an image and leaves its node.
    #[serde(rename = "shelving")]
    Shelving,
    /// Comes back from its image.
    #[serde(rename = "unshelving")]
    Unshelving,
    /// Is being removed.
    #[serde(rename = "deleting")]
    Deleting,
}

/// How far the exchange of a server's flavor and root volume for other ones has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The others wait.
    Prepared,
    /// The others are the server's; what it had is kept.
    Swapped,
    /// The server has its own again.
    Reverted,
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
        (
            VmState::Active | VmState::Stopped | VmState::Error,
            Some(Task::Rebuilding | Task::RebuildSpawning),
        ) => "REBUILD",
        (VmState::Active | VmState::Stopped, Some(Task::ResizePrep | Task::ResizeFinish)) => "RESIZE",
        (VmState::Resized, Some(Task::ResizeReverting)) => "REVERT_RESIZE",
        (VmState::Resized, _) => "VERIFY_RESIZE",
        (VmState::Rescued, _) => "RESCUE",
        (VmState::ShelvedOffloaded, _) => "SHELVED_OFFLOADED",
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
    /// A node has it.
    pub placed: bool,
    /// Flavor or root volume are being exchanged, or were.
    pub phase: Option<Phase>,
    /// Ran before the exchange.
    pub ran: bool,
    /// It has a rescue disk.
    pub rescue: bool,
}

/// One step. Each may be repeated, and ends the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Find a node with room.
    Place,
    /// Make the local disks; wait for the volumes.
    CreateDisks,
    /// Make the root volume that the server's is to be exchanged for.
    PrepareRoot,
    /// Exchange flavor and root volume for the others, and write down the next task.
    Swap(Task),
    /// Remove the root volume that the server does not use.
    DropOther,
    /// Make the rescue disk, anew if there is one.
    CreateRescue,
    /// Remove the rescue disk, and forget it.
    DropRescue,
    /// Make an image of the root volume.
    Snapshot,
    /// Remove the image that the server was kept as.
    DropShelved,
    /// Write down that no node has it.
    Offload,
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
    /// Remove the local disks.
    DeleteDisks,
    /// Write down the next task.
    Proceed(Task),
    /// Write down where it came to rest.
    Settle(VmState, Power),
    /// Write down that it rests where it was.
    Done,
    /// Release the ports and make the row history.
    Bury,
}

/// The steps that lead from the row and the machine on this node (`None`: no process) to what should be. Empty: nothing
/// to do.
pub fn plan(row: Row, machine: Option<PowerState>, graceful: Duration) -> Vec<Step> {
    let mut steps = steps(row, machine, graceful);
    // What an exchange left behind goes before it is forgotten.
    if row.phase.is_some()
        && let Some(Step::Settle(vm, _)) = steps.last()
        && *vm != VmState::Resized
        && !steps.contains(&Step::DropOther)
    {
        steps.insert(steps.len() - 1, Step::DropOther);
    }
    // So does a rescue disk, once no machine can have it any more: it was stopped, or starts without it.
    if row.rescue
        && let Some(Step::Settle(vm, _)) = steps.last()
        && *vm != VmState::Rescued
        && steps
            .iter()
            .any(|step| matches!(step, Step::Stop(_) | Step::Start))
    {
        steps.insert(steps.len() - 1, Step::DropRescue);
    }
    steps
}

fn steps(row: Row, machine: Option<PowerState>, graceful: Duration) -> Vec<Step> {
    use Step::*;
    let off = Settle(VmState::Stopped, Power::Shutdown);
    let on = Settle(VmState::Active, Power::Running);
    let start = |settle| {
        if row.launched {
            vec![Start, settle]
        } else {
            vec![CreateDisks, Start, settle]
        }
    };
    if row.deleted {
        return if machine.is_some() {
            vec![Stop(StopMode::Hard), Forget]
        } else {
            Vec::new()
        };
    }
    let Some(task) = row.task else {
        return drift(row, machine);
    };
    let swapped = row.phase == Some(Phase::Swapped);
    match task {
        Task::Deleting => vec![Stop(StopMode::Hard), Forget, DeleteDisks, Bury],
        Task::Scheduling => vec![Place],
        Task::Spawning | Task::PoweringOn | Task::RebootStarted | Task::RebootStartedHard => start(on),
        Task::PoweringOff => vec![Stop(StopMode::Graceful(graceful)), off],
        Task::Rebooting => vec![Stop(StopMode::Graceful(graceful)), Proceed(Task::RebootStarted)],
        Task::RebootingHard => vec![Stop(StopMode::Hard), Proceed(Task::RebootStartedHard)],
        Task::Pausing => match machine {
            Some(PowerState::Running | PowerState::Paused) => {
                vec![Pause, Settle(VmState::Paused, Power::Paused)]
            }
            _ => vec![off],
        },
        Task::Unpausing => match machine {
            Some(PowerState::Running | PowerState::Paused) => vec![Resume, on],
            _ => vec![off],
        },
        Task::ResizePrep => vec![
            Stop(StopMode::Graceful(graceful)),
            PrepareRoot,
            Swap(Task::ResizeFinish),
        ],
        Task::ResizeFinish if row.ran => vec![Start, Settle(VmState::Resized, Power::Running)],
        Task::ResizeFinish => vec![Settle(VmState::Resized, Power::Shutdown)],
        Task::ResizeConfirming if row.wanted == Wanted::Stopped => vec![DropOther, off],
        Task::ResizeConfirming => vec![DropOther, on],
        Task::ResizeReverting if swapped => vec![Stop(StopMode::Hard), Swap(Task::ResizeReverting)],
        Task::ResizeReverting if row.ran => vec![DropOther, Start, on],
        Task::ResizeReverting => vec![DropOther, off],
        Task::Rebuilding => vec![Stop(StopMode::Hard), PrepareRoot, Swap(Task::RebuildSpawning)],
        Task::RebuildSpawning if row.ran => start(on),
        Task::RebuildSpawning => vec![off],
        Task::ImageSnapshot => vec![Snapshot, Done],
        Task::Rescuing => vec![
            Stop(StopMode::Graceful(graceful)),
            CreateRescue,
            Start,
            Settle(VmState::Rescued, Power::Running),
        ],
        Task::Unrescuing => vec![Stop(StopMode::Hard), Start, on],
        Task::Shelving => vec![
            Stop(StopMode::Graceful(graceful)),
            Snapshot,
            Forget,
            DeleteDisks,
            Offload,
        ],
        Task::Unshelving if row.placed => vec![CreateDisks, Start, DropShelved, on],
        Task::Unshelving => vec![Place],
    }
}

/// Nothing was asked; but the machine may have changed by itself, or the node was restarted.
fn drift(row: Row, machine: Option<PowerState>) -> Vec<Step> {
    use Step::*;
    if !matches!(
        row.vm,
        VmState::Active | VmState::Paused | VmState::Stopped | VmState::Resized | VmState::Rescued
    ) {
        return Vec::new();
    }
    // A server that waits for a word on its resize, or is rescued, stays so whatever its guest does.
    let stays = matches!(row.vm, VmState::Resized | VmState::Rescued);
    let running = Settle(if stays { row.vm } else { VmState::Active }, Power::Running);
    let off = if stays { row.vm } else { VmState::Stopped };
    let ended = |power| vec![Stop(StopMode::Hard), Settle(off, power)];
    match (row.wanted, machine) {
        (Wanted::Active | Wanted::Paused, Some(PowerState::Shutdown)) => ended(Power::Shutdown),
        (Wanted::Active | Wanted::Paused, Some(PowerState::Crashed)) => ended(Power::Crashed),
        // The node was restarted: what ran, runs again.
        (Wanted::Active, None) => vec![Start, running],
        (Wanted::Active, Some(PowerState::Paused)) => vec![Resume, running],
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
            placed: true,
            phase: None,
            ran: true,
            rescue: false,
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
                assert!(!steps.contains(&Step::CreateDisks), "{task:?}");
            }
        }
    }

    #[test]
    fn a_rescue_disk_goes_before_a_server_rests_without_it() {
        for (task, dropped) in [
            (Task::Rescuing, false),
            (Task::Unrescuing, true),
            (Task::RebootStartedHard, true),
            (Task::RebuildSpawning, true),
            (Task::PoweringOff, true),
            // The machine runs on, perhaps from it.
            (Task::Pausing, false),
        ] {
            let row = Row {
                rescue: true,
                ..row(Wanted::Active, VmState::Error, Some(task))
            };
            let steps = plan(row, Some(PowerState::Running), Duration::ZERO);
            assert_eq!(steps.contains(&Step::DropRescue), dropped, "{task:?}");
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
        assert_eq!(Task::parse("migrating"), None);
        assert_eq!(VmState::parse("active"), Some(VmState::Active));
    }
}
