//! The task that owns one machine: the only place where its state changes.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use model::machine::StopMode;
use process::child::{Process, Task};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::hotplug::{self, Unplugging};
use super::{Event, Qmp, QmpError, Shared, qmp_path};
use crate::fleet::{self, Answer, Command, Life, Seat};
use crate::{End, EngineError, Plan};

/// How long QEMU may take until its monitor answers: it waits for the switch meanwhile.
const START: Duration = Duration::from_secs(60);
/// How long it may take to end by itself when it cannot start.
const GIVE_UP: Duration = Duration::from_secs(5);
/// How long it may take to obey a command.
const OBEY: Duration = Duration::from_secs(10);
/// Guests that are still booting miss the power button: it is pressed again after this long.
const PRESS_AGAIN: Duration = Duration::from_secs(3);
/// A lost monitor is looked for again after this long.
const RECONNECT: Duration = Duration::from_secs(1);
/// The kernel's time to take a killed process apart.
const DIE: Duration = Duration::from_secs(30);

pub(super) struct Owner {
    shared: Arc<Shared>,
    seat: Seat,
    /// Callers of `stop`, who wait for the end.
    stopping: Vec<Answer>,
    /// Devices that guests were asked to let go of.
    unplugging: Vec<Unplugging>,
}

/// The processes of a machine.
pub(super) struct Running {
    /// The supervisor: its end is the machine's.
    pub task: Task,
    /// QEMU, where killing the supervisor does not kill it, because that is a thread.
    pub qemu: Option<Process>,
}

impl Running {
    fn kill(&self) -> io::Result<()> {
        match &self.qemu {
            Some(process) => process.kill(),
            None => self.task.kill(),
        }
    }

    fn pid(&self) -> Option<i32> {
        self.qemu.as_ref().map(Process::pid).or(self.task.pid())
    }
}

/// A graceful stop under way.
struct Press {
    again: Instant,
    plug: Instant,
}

impl Owner {
    pub(super) fn new(shared: Arc<Shared>, seat: Seat) -> Self {
        Owner {
            shared,
            seat,
            stopping: Vec::new(),
            unplugging: Vec::new(),
        }
    }

    /// The life of a machine from its start.
    pub(super) async fn start(mut self, plan: Plan, started: Answer) {
        match self.bring_up(plan).await {
            Ok((task, end, qmp)) => {
                info!(server = %self.seat.id, pid = task.pid(), "guest started");
                self.seat.become_(Life::Running);
                let _ = started.send(Ok(()));
                self.look_after(task, end, Some(qmp)).await;
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
        let task = Running {
            task: Task::Process(process),
            qemu: None,
        };
        match End::of(&task.task) {
            Ok(end) => {
                let qmp = self
                    .connect(OBEY)
                    .await
                    .inspect_err(|error| warn!(server = %self.seat.id, %error, "no monitor"));
                let mut qmp = qmp.ok();
                let paused = match &mut qmp {
                    Some(qmp) => is_paused(qmp).await.unwrap_or(false),
                    None => false,
                };
                self.seat
                    .become_(if paused { Life::Paused } else { Life::Running });
                self.look_after(task, end, qmp).await;
            }
            Err(error) => {
                // It runs: it stays written down, and in the list of those that do, so that nobody starts it twice.
                warn!(server = %self.seat.id, %error, "a guest runs that this daemon cannot look after; restart the daemon");
                self.seat.become_(Life::Running);
                self.seat.refuse_all().await;
            }
        }
    }

    async fn bring_up(&mut self, plan: Plan) -> Result<(Running, End, Qmp), EngineError> {
        let shared = self.shared.clone();
        let launched = tokio::task::spawn_blocking(move || shared.launch(&plan)).await;
        let task = launched.map_err(|e| EngineError::EndedAtStart(e.to_string()))??;
        let end = End::of(&task.task).map_err(|source| EngineError::Io {
            what: "watching QEMU",
            source,
        })?;
        let outcome = tokio::select! {
            qmp = self.connect(START) => match qmp {
                Ok(qmp) => Ok(qmp),
                // A QEMU that gives up closes its monitor before it ends, and then says why.
                Err(_) if timeout(GIVE_UP, end.reached()).await.is_ok() => Err(EngineError::EndedAtStart(fleet::last_words(&self.seat.folder))),
                Err(error) => Err(error.into()),
            },
            _ = end.reached() => Err(EngineError::EndedAtStart(fleet::last_words(&self.seat.folder))),
        };
        match outcome {
            Ok(qmp) => Ok((task, end, qmp)),
            Err(error) => {
                self.kill(&task, &end).await?;
                Err(error)
            }
        }
    }

    async fn connect(&self, within: Duration) -> Result<Qmp, QmpError> {
        let stream = process::control::connect(&qmp_path(&self.seat.folder))?;
        stream.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(stream)?;
        timeout(within, Qmp::new(stream))
            .await
            .map_err(|_| QmpError::TimedOut)?
    }

    /// Obey commands and follow events until QEMU has ended.
    async fn look_after(mut self, task: Running, end: End, mut qmp: Option<Qmp>) {
        let mut press: Option<Press> = None;
        let mut reconnect = Instant::now() + RECONNECT;
        loop {
            let button = press.as_ref().map(|p| p.again.min(p.plug));
            let due = self.unplugging.iter().map(Unplugging::due).min();
            tokio::select! {
                _ = end.reached() => break,
                event = next_event(&mut qmp) => match event {
                    Ok(Event::Unplugged(device)) => hotplug::gone(&mut self.unplugging, &mut qmp, &device).await,
                    Ok(event) => self.follow(event),
                    Err(error) => {
                        // At its end QEMU closes the monitor first; then `end` comes next.
                        info!(server = %self.seat.id, %error, "monitor lost");
                        qmp = None;
                        reconnect = Instant::now() + RECONNECT;
                    }
                },
                () = sleep_until(reconnect), if qmp.is_none() => {
                    qmp = self.connect(RECONNECT).await.ok();
                    reconnect = Instant::now() + RECONNECT;
                }
                () = async { match button { Some(at) => sleep_until(at).await, None => pending().await } } => {
                    if press.as_ref().is_some_and(|p| p.plug <= Instant::now()) {
                        info!(server = %self.seat.id, "guest ignored its power button; the plug is pulled");
                        press = None;
                        self.pull_plug(&task);
                    } else if let Some(p) = &mut press {
                        p.again = Instant::now() + PRESS_AGAIN;
                        let _ = obey(&mut qmp, "system_powerdown").await;
                    }
                }
                () = async { match due { Some(at) => sleep_until(at).await, None => pending().await } } => {
                    hotplug::ask_again(&mut self.unplugging, &mut qmp).await;
                }
                command = self.seat.commands.recv() => match command {
                    Some(command) => self.obey(command, &task, &mut qmp, &mut press).await,
                    // The engine is gone: let the guest run, the next daemon adopts it.
                    None => return,
                },
            }
        }
        drop(qmp);
        self.conclude(task).await;
    }

    fn follow(&self, event: Event) {
        match event {
            Event::Stop => self.seat.went(Life::Running, Life::Paused),
            Event::Resume => self.seat.went(Life::Paused, Life::Running),
            _ => {}
        }
    }

    async fn obey(
        &mut self,
        command: Command,
        task: &Running,
        qmp: &mut Option<Qmp>,
        press: &mut Option<Press>,
    ) {
        match command {
            Command::Stop(mode, answer) => {
                self.stopping.push(answer);
                let paused = self.seat.life() == Life::Paused;
                self.seat.become_(Life::Stopping);
                match mode {
                    // A guest that stands still sees no button.
                    StopMode::Graceful(patience) if !paused => {
                        let now = Instant::now();
                        let plug = now + patience;
                        let plug = press.as_ref().map_or(plug, |p| p.plug.min(plug));
                        *press = Some(Press {
                            again: now + PRESS_AGAIN,
                            plug,
                        });
                        if obey(qmp, "system_powerdown").await.is_err() {
                            *press = None;
                            self.pull_plug(task);
                        }
                    }
                    _ => {
                        *press = None;
                        self.pull_plug(task);
                    }
                }
            }
            Command::Reset(answer) => drop(answer.send(obey(qmp, "system_reset").await)),
            Command::Pause(answer) => {
                let result = obey(qmp, "stop").await;
                if result.is_ok() {
                    self.seat.went(Life::Running, Life::Paused);
                }
                drop(answer.send(result));
            }
            Command::Plug(device, answer) => {
                let seen = self.shared.sockets_seen(&self.seat.folder);
                let result = hotplug::plug(qmp, self.shared.accelerator, &seen, &device).await;
                drop(answer.send(result));
            }
            Command::Unplug(socket, answer) => {
                hotplug::unplug(&mut self.unplugging, qmp, socket, answer).await;
            }
            Command::Resize(socket, bytes, answer) => {
                let result = hotplug::resize(qmp, self.shared.accelerator, &socket, bytes).await;
                drop(answer.send(result));
            }
            Command::Limit(_, _, answer) => drop(answer.send(Err(super::NO_OWNER))),
            Command::Resume(answer) => {
                let result = obey(qmp, "cont").await;
                if result.is_ok() {
                    self.seat.went(Life::Paused, Life::Running);
                }
                drop(answer.send(result));
            }
        }
    }

    fn pull_plug(&self, task: &Running) {
        if let Err(error) = task.kill() {
            warn!(server = %self.seat.id, %error, "guest cannot be killed");
        }
    }

    async fn kill(&self, task: &Running, end: &End) -> Result<(), EngineError> {
        self.pull_plug(task);
        timeout(DIE, end.reached())
            .await
            .map(drop)
            .map_err(|_| EngineError::Immortal(DIE))
    }

    /// QEMU has ended: tell everyone who needs to know.
    async fn conclude(mut self, task: Running) {
        // Reaps it, if it is this process's child.
        if let Err(error) = task.task.wait(Some(Duration::ZERO)) {
            warn!(server = %self.seat.id, %error, "waiting for an ended guest");
        }
        // What does not run has no devices.
        for unplugging in self.unplugging.drain(..) {
            unplugging.done();
        }
        self.seat.conclude(self.stopping).await;
    }
}

async fn next_event(qmp: &mut Option<Qmp>) -> Result<Event, QmpError> {
    match qmp {
        Some(qmp) => qmp.event().await,
        None => pending().await,
    }
}

/// Run a command without arguments. A monitor that does not answer in time is given up, since its answers are out of step.
async fn obey(qmp: &mut Option<Qmp>, command: &'static str) -> Result<(), EngineError> {
    ask(qmp, command, json!({})).await.map(drop)
}

/// Run a command and wait for its answer.
pub(super) async fn ask(
    qmp: &mut Option<Qmp>,
    command: &'static str,
    arguments: Value,
) -> Result<Value, EngineError> {
    let Some(connection) = qmp else {
        return Err(QmpError::Closed.into());
    };
    match timeout(OBEY, connection.execute(command, arguments)).await {
        Ok(result) => Ok(result?),
        Err(_) => {
            warn!(command, "a monitor does not answer and is given up");
            *qmp = None;
            Err(QmpError::TimedOut.into())
        }
    }
}

async fn is_paused(qmp: &mut Qmp) -> Result<bool, QmpError> {
    let status = timeout(OBEY, qmp.execute("query-status", json!({})))
        .await
        .map_err(|_| QmpError::TimedOut)??;
    Ok(status["status"] == "paused")
}
