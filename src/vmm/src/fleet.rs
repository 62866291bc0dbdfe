//! The machines of an engine. One task owns each machine; this is the way to it, the same for all engines.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::disk::DiskLimits;
use model::machine::{MachineEvent, PowerState, StopMode};
use process::child::{Launcher, Process};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tracing::{info, warn};
use uuid::Uuid;

use crate::{EngineError, PlannedDevice};

/// Where a caller waits.
pub(crate) type Answer = oneshot::Sender<Result<(), EngineError>>;

/// What callers ask of an owner.
pub(crate) enum Command {
    Stop(StopMode, Answer),
    Reset(Answer),
    Pause(Answer),
    Resume(Answer),
    Plug(PlannedDevice, Answer),
    Unplug(String, Answer),
    Resize(String, u64, Answer),
    Limit(String, DiskLimits, Answer),
}

/// A machine's state, as its owner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Starting,
    Running,
    Paused,
    Stopping,
    Ended,
}

/// How a machine's process ended, in `exit.json` of its folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    /// Its exit status; 0: the guest shut down, or was stopped.
    pub status: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it said last.
    pub message: String,
}

/// What is written down of a guest, for the next daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) id: Uuid,
    pub(crate) folder: PathBuf,
}

/// The way to a machine's owner.
#[derive(Clone)]
struct Handle {
    commands: mpsc::Sender<Command>,
    life: watch::Receiver<Life>,
}

/// The machines of an engine.
pub(crate) struct Fleet {
    /// Starts their processes.
    pub(crate) launcher: Arc<Launcher>,
    machines: Mutex<HashMap<Uuid, Handle>>,
    events: broadcast::Sender<MachineEvent>,
}

/// An owner's end.
pub(crate) struct Seat {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) id: Uuid,
    /// The machine's folder.
    pub(crate) folder: PathBuf,
    pub(crate) commands: mpsc::Receiver<Command>,
    life: watch::Sender<Life>,
}

impl Fleet {
    /// Without machines.
    pub(crate) fn new(launcher: Arc<Launcher>) -> Arc<Self> {
        let (events, _) = broadcast::channel(1024);
        Arc::new(Fleet {
            launcher,
            machines: Mutex::default(),
            events,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Handle>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seat(self: &Arc<Self>, id: Uuid, folder: PathBuf) -> (Seat, Handle) {
        let (sender, commands) = mpsc::channel(16);
        let (life, watcher) = watch::channel(Life::Starting);
        let seat = Seat {
            fleet: self.clone(),
            id,
            folder,
            commands,
            life,
        };
        let handle = Handle {
            commands: sender,
            life: watcher,
        };
        (seat, handle)
    }

    /// The owners let go of their machines, which run on.
    pub(crate) fn let_go(&self) {
        self.lock().clear();
    }

    /// Give a machine an owner, which `own` starts as a task, and wait for its word. One that has an owner keeps it.
    pub(crate) async fn start(
        self: &Arc<Self>,
        id: Uuid,
        folder: &Path,
        own: impl FnOnce(Seat, Answer),
    ) -> Result<(), EngineError> {
        let (started, result) = oneshot::channel();
        let other = {
            let mut machines = self.lock();
            match machines.get(&id) {
                Some(handle) => Some(handle.life.clone()),
                None => {
                    let (seat, handle) = self.seat(id, folder.to_owned());
                    machines.insert(id, handle);
                    own(seat, started);
                    None
                }
            }
        };
        if let Some(mut life) = other {
            // Someone else is starting it, or has.
            let life = life
                .wait_for(|life| *life != Life::Starting)
                .await
                .map(|life| *life);
            return if matches!(life, Ok(Life::Running | Life::Paused | Life::Stopping)) {
                Ok(())
            } else {
                Err(EngineError::NotRunning)
            };
        }
        result.await.map_err(|_| EngineError::NotRunning)?
    }

    /// Ask a machine's owner something.
    pub(crate) async fn ask(
        &self,
        id: Uuid,
        command: impl FnOnce(Answer) -> Command,
    ) -> Result<(), EngineError> {
        let handle = self.lock().get(&id).cloned().ok_or(EngineError::NotRunning)?;
        let (answer, result) = oneshot::channel();
        handle
            .commands
            .send(command(answer))
            .await
            .map_err(|_| EngineError::NotRunning)?;
        result.await.map_err(|_| EngineError::NotRunning)?
    }

    /// The same, where it is all right if there is no such machine (any more).
    pub(crate) async fn ask_if_there(
        &self,
        id: Uuid,
        command: impl FnOnce(Answer) -> Command,
    ) -> Result<(), EngineError> {
        match self.ask(id, command).await {
            Err(EngineError::NotRunning) => Ok(()),
            other => other,
        }
    }

    /// Find the machines that an earlier daemon started as children of this kind, and give each an owner, which `own` starts
    /// as a task. What has ended meanwhile is told.
    pub(crate) async fn adopt(
        self: &Arc<Self>,
        kind: &str,
        own: impl Fn(Seat, Process),
    ) -> Result<(), EngineError> {
        let io = |what| move |source| EngineError::Io { what, source };
        let launcher = &self.launcher;
        let mut adopted = Vec::new();
        for (name, record) in launcher.runtime.list().map_err(io("runtime files"))? {
            if record.kind != kind {
                continue;
            }
            let Ok(note) = Note::deserialize(&record.note) else {
                warn!(child = name, "a guest's runtime file does not say whose it is");
                continue;
            };
            match launcher.runtime.find(&record).map_err(io("a guest's process"))? {
                Some(process) => {
                    info!(server = %note.id, pid = process.pid(), "guest adopted");
                    let (seat, handle) = self.seat(note.id, note.folder);
                    adopted.push(handle.life.clone());
                    self.lock().insert(note.id, handle);
                    own(seat, process);
                }
                None => {
                    launcher.forget(&name).map_err(io("a guest's runtime file"))?;
                    let state = how_it_ended(&note.folder, false);
                    info!(server = %note.id, ?state, "guest ended while no daemon ran");
                    self.tell(note.id, state);
                }
            }
        }
        // Known from now on, in whatever state: one that does not answer keeps the others from nothing.
        for mut life in adopted {
            let _ = life.wait_for(|life| *life != Life::Starting).await;
        }
        Ok(())
    }

    /// Machines that have a process.
    pub(crate) fn list(&self) -> Vec<(Uuid, PowerState)> {
        self.lock()
            .iter()
            .filter_map(|(id, handle)| {
                let state = match *handle.life.borrow() {
                    Life::Starting | Life::Running | Life::Stopping => PowerState::Running,
                    Life::Paused => PowerState::Paused,
                    Life::Ended => return None,
                };
                Some((*id, state))
            })
            .collect()
    }

    /// What machines do by themselves.
    pub(crate) fn events(&self) -> broadcast::Receiver<MachineEvent> {
        self.events.subscribe()
    }

    fn tell(&self, id: Uuid, state: PowerState) {
        // Nobody may be listening.
        let _ = self.events.send(MachineEvent { id, state });
    }
}

impl Seat {
    /// The machine's state.
    pub(crate) fn life(&self) -> Life {
        *self.life.borrow()
    }

    /// It is in this state now.
    pub(crate) fn become_(&self, life: Life) {
        self.life.send_replace(life);
    }

    /// It went from one state to another; if it was in a third one, that stays.
    pub(crate) fn went(&self, from: Life, to: Life) {
        self.life.send_if_modified(|life| {
            let is = *life == from;
            if is {
                *life = to;
            }
            is
        });
    }

    /// The machine has ended: strike it off, answer all who wait, and, unless somebody asked for the end, tell it.
    pub(crate) async fn conclude(mut self, stopping: Vec<Answer>) {
        let asked = !stopping.is_empty();
        let state = how_it_ended(&self.folder, asked);
        info!(server = %self.id, ?state, asked, "guest ended");
        self.leave().await;
        for answer in stopping {
            let _ = answer.send(Ok(()));
        }
        if !asked {
            self.fleet.tell(self.id, state);
        }
    }

    /// Obey nobody: for a machine that runs, and cannot be looked after.
    pub(crate) async fn refuse_all(mut self) {
        while let Some(command) = self.commands.recv().await {
            let (Command::Stop(_, answer)
            | Command::Unplug(_, answer)
            | Command::Reset(answer)
            | Command::Pause(answer)
            | Command::Resume(answer)
            | Command::Plug(_, answer)
            | Command::Resize(_, _, answer)
            | Command::Limit(_, _, answer)) = command;
            let _ = answer.send(Err(EngineError::Unattended));
        }
    }

    /// Strike the machine off.
    pub(crate) async fn leave(&mut self) {
        let fleet = self.fleet.clone();
        let name = child_name(self.id);
        let forgotten = tokio::task::spawn_blocking(move || fleet.launcher.forget(&name)).await;
        if let Ok(Err(error)) = forgotten {
            warn!(server = %self.id, %error, "runtime file of an ended guest");
        }
        self.fleet.lock().remove(&self.id);
        self.become_(Life::Ended);
        // Whoever asked for a stop after the end has what he wanted; all else is refused.
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Stop(_, answer) | Command::Unplug(_, answer) => drop(answer.send(Ok(()))),
                Command::Reset(answer)
                | Command::Pause(answer)
                | Command::Resume(answer)
                | Command::Plug(_, answer)
                | Command::Resize(_, _, answer)
                | Command::Limit(_, _, answer) => {
                    drop(answer.send(Err(EngineError::NotRunning)));
                }
            }
        }
    }
}

/// The name of a guest's process among the children.
pub fn child_name(id: Uuid) -> String {
    format!("guest-{id}")
}

/// What is written down of a machine.
pub(crate) fn note(id: Uuid, folder: &Path) -> serde_json::Value {
    let folder = folder.to_owned();
    serde_json::to_value(Note { id, folder }).unwrap_or_default()
}

pub(crate) fn exit_path(folder: &Path) -> PathBuf {
    folder.join("exit.json")
}

/// From the exit record; without one the process was killed.
pub(crate) fn exit_record(folder: &Path) -> Option<ExitRecord> {
    serde_json::from_slice(&fs::read(exit_path(folder)).ok()?).ok()
}

/// Why a machine's process ended, for people.
pub(crate) fn last_words(folder: &Path) -> String {
    let record = exit_record(folder).unwrap_or_default();
    let how = match (record.status, record.signal) {
        (Some(status), _) => format!("exit status {status}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => "killed".into(),
    };
    format!("{how}: {}", record.message)
}

/// What the end means. `asked`: somebody asked for it.
fn how_it_ended(folder: &Path, asked: bool) -> PowerState {
    let clean = exit_record(folder).is_some_and(|record| record.status == Some(0));
    if clean || asked {
        PowerState::Shutdown
    } else {
        PowerState::Crashed
    }
}

/// A file of the machine's folder that its process is given open: made if it is not there.
pub(crate) fn console_file(path: PathBuf) -> io::Result<fs::File> {
    fs::File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
}
