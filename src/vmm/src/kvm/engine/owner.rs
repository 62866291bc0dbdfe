//! The task that owns one machine: the only place where its state changes.

use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::machine::StopMode;
use process::child::{Process, Task};
use process::control::{self, Client};
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use super::child::{Report, Request};
use super::{Shared, control_path};
use crate::fleet::{Answer, Command, Life, Seat};
use crate::kvm::machine::{Control, State};
use crate::{End, EngineError, Plan};

/// How long a machine may take to obey: a pause waits for what its disks have in flight.
const OBEY: Duration = Duration::from_secs(30);
/// Guests that are still booting miss the power button: it is pressed again after this long.
const PRESS_AGAIN: Duration = Duration::from_secs(3);
/// How long a machine that was told to end may take before its process is killed.
const END: Duration = Duration::from_secs(5);

/// Why devices stay as they are.
const NO_CHANGE: EngineError = EngineError::Unsupported {
    engine: "kvm",
    what: "change the devices of a running guest yet: stop the server first",
};

/// A stop under way.
struct Stopping {
    answers: Vec<Answer>,
    /// When the power button is pressed again; `None`: the plug is pulled.
    press: Option<Instant>,
    /// When the plug is pulled, or the process killed.
    limit: Instant,
}

pub(super) struct Owner {
    seat: Seat,
    stopping: Option<Stopping>,
}

impl Owner {
    pub(super) fn new(seat: Seat) -> Self {
        Owner { seat, stopping: None }
    }

    /// The life of a machine from its start.
    pub(super) async fn start(mut self, shared: Arc<Shared>, plan: Plan, started: Answer) {
        let launched = tokio::task::spawn_blocking(move || shared.launch(&plan)).await;
        let running = launched
            .unwrap_or_else(|error| Err(EngineError::EndedAtStart(error.to_string())))
            .and_then(|task| match end_of(&task) {
                Ok(end) => Ok((end, task)),
                Err(error) => {
                    // Nobody would look after it, and its disks are wanted for the next try.
                    let _ = task.kill().and_then(|()| task.wait(Some(END)));
                    Err(error)
                }
            });
        match running {
            Ok((end, task)) => {
                info!(server = %self.seat.id, pid = task.pid(), "guest started");
                self.seat.become_(Life::Running);
                let _ = started.send(Ok(()));
                self.look_after(task, end).await;
            }
            Err(error) => {
                warn!(server = %self.seat.id, %error, "guest did not start");
                self.seat.leave().await;
                let _ = started.send(Err(error));
            }
        }
    }

    /// The life of a machine from the start of a new daemon.
    pub(super) async fn adopt(self, process: Process) {
        let task = Task::Process(process);
        match end_of(&task) {
            Ok(end) => {
                let report = tell(&self.seat.folder, Request::Report, END).await;
                let paused = match report {
                    Ok(report) => report.status.state == State::Paused,
                    Err(error) => {
                        warn!(server = %self.seat.id, %error, "the machine does not answer");
                        false
                    }
                };
                self.seat
                    .become_(if paused { Life::Paused } else { Life::Running });
                self.look_after(task, end).await;
            }
            Err(error) => {
                // It runs: it stays written down, and in the list of those that do, so that nobody starts it twice.
                error!(server = %self.seat.id, %error, "a guest runs that this daemon cannot look after; restart the daemon");
                self.seat.become_(Life::Running);
                self.seat.refuse_all().await;
            }
        }
    }

    /// Obey commands until the process has ended.
    async fn look_after(mut self, task: Task, end: End) {
        loop {
            let due = self.stopping.as_ref().map(|stopping| {
                stopping
                    .press
                    .map_or(stopping.limit, |press| press.min(stopping.limit))
            });
            tokio::select! {
                _ = end.reached() => break,
                () = async { match due { Some(at) => sleep_until(at).await, None => pending().await } } => {
                    self.go_on_stopping(&task).await;
                }
                command = self.seat.commands.recv() => match command {
                    Some(command) => self.obey(command, &task).await,
                    // The engine is gone: let the guest run, the next daemon adopts it.
                    None => return,
                },
            }
        }
        // Reaps it, if it is this process's child.
        if let Err(error) = task.wait(Some(Duration::ZERO)) {
            warn!(server = %self.seat.id, %error, "waiting for an ended guest");
        }
        let answers = self.stopping.map(|stopping| stopping.answers);
        self.seat.conclude(answers.unwrap_or_default()).await;
    }

    async fn obey(&mut self, command: Command, task: &Task) {
        match command {
            Command::Stop(mode, answer) => self.stop(mode, answer, task).await,
            Command::Reset(answer) => drop(answer.send(self.control(Control::Reset).await)),
            Command::Pause(answer) => drop(answer.send(self.control(Control::Pause).await)),
            Command::Resume(answer) => drop(answer.send(self.control(Control::Resume).await)),
            Command::Resize(disk, bytes, answer) => {
                drop(answer.send(self.control(Control::Resize { disk, bytes }).await));
            }
            Command::Limit(disk, limits, answer) => {
                let limits = Box::new(limits);
                drop(answer.send(self.control(Control::Limit { disk, limits }).await));
            }
            Command::Plug(_, answer) => drop(answer.send(Err(NO_CHANGE))),
            Command::Unplug(device, answer) => {
                let told = tell(&self.seat.folder, Request::Report, OBEY).await;
                drop(answer.send(match told {
                    // It has no such device, as was wanted.
                    Ok(report) if !report.devices.contains(&device) => Ok(()),
                    Ok(_) => Err(NO_CHANGE),
                    Err(error) => Err(error),
                }));
            }
        }
    }

    /// Tell the machine something; what it is doing then is its own word.
    async fn control(&self, control: Control) -> Result<(), EngineError> {
        let patience = match control {
            // Who does not hear this is killed.
            Control::Stop(_) => END,
            _ => OBEY,
        };
        let report = tell(&self.seat.folder, Request::Control(control), patience).await?;
        match report.status.state {
            State::Running => self.seat.went(Life::Paused, Life::Running),
            State::Paused => self.seat.went(Life::Running, Life::Paused),
            State::Created | State::Ended(_) => {}
        }
        Ok(())
    }

    async fn stop(&mut self, mode: StopMode, answer: Answer, task: &Task) {
        let paused = self.seat.life() == Life::Paused;
        self.seat.become_(Life::Stopping);
        let now = Instant::now();
        let (press, limit) = match mode {
            // A guest that stands still sees no button.
            StopMode::Graceful(patience) if !paused => (Some(now), now + patience),
            _ => (None, now),
        };
        match &mut self.stopping {
            // Asked twice, the sooner end counts.
            Some(stopping) => {
                stopping.answers.push(answer);
                if stopping.press.is_some() {
                    stopping.limit = stopping.limit.min(limit);
                }
            }
            None => {
                self.stopping = Some(Stopping {
                    answers: vec![answer],
                    // What is told is told once, and the plug pulled at the limit.
                    press: press.or(Some(now)),
                    limit,
                });
            }
        }
        self.go_on_stopping(task).await;
    }

    /// Press the button (again), pull the plug, or kill the process, as it is time for.
    async fn go_on_stopping(&mut self, task: &Task) {
        let Some(stopping) = &mut self.stopping else {
            return;
        };
        let now = Instant::now();
        let over = now >= stopping.limit;
        match stopping.press {
            Some(_) if over => {
                stopping.press = None;
                stopping.limit = now + END;
                info!(server = %self.seat.id, "the guest's plug is pulled");
                if self.control(Control::Stop(StopMode::Hard)).await.is_err() {
                    self.kill(task);
                }
            }
            Some(_) => {
                stopping.press = Some(now + PRESS_AGAIN);
                let left = stopping.limit - now;
                if self
                    .control(Control::Stop(StopMode::Graceful(left)))
                    .await
                    .is_err()
                    && let Some(stopping) = &mut self.stopping
                {
                    stopping.limit = now;
                }
            }
            None if over => {
                stopping.limit = now + END;
                warn!(server = %self.seat.id, "the guest's process does not end; it is killed");
                self.kill(task);
            }
            None => {}
        }
    }

    fn kill(&self, task: &Task) {
        if let Err(error) = task.kill() {
            warn!(server = %self.seat.id, %error, "guest cannot be killed");
        }
    }
}

fn end_of(task: &Task) -> Result<End, EngineError> {
    End::of(task).map_err(|source| EngineError::Io {
        what: "watching the guest's process",
        source,
    })
}

/// Ask the machine's process. A socket that is gone is a machine that has ended.
async fn tell(folder: &Path, request: Request, patience: Duration) -> Result<Report, EngineError> {
    let path = control_path(folder);
    let asked = tokio::task::spawn_blocking(move || {
        let mut client: Client<Request, Report> = Client::connect(&path, patience)?;
        client.call(&request, &[])
    });
    match asked.await {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(control::Error::Closed)) => Err(EngineError::NotRunning),
        Ok(Err(error)) => Err(error.into()),
        Err(error) => Err(EngineError::Io {
            what: "asking the guest's process",
            source: std::io::Error::other(error),
        }),
    }
}
