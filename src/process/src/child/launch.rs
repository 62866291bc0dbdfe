//! The daemon's side of a child's start.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::start::{START_TIMEOUT, StartMessage};
use super::{CgroupLimits, Exit, Process, Record, Runtime, Start, Task, cgroup};
use crate::control::{Connection, Error};
use crate::jail::{Enforcement, Files, Jail, Limits, Profile};

/// What a child does after its start, until its end.
pub type Main = fn(Start) -> Result<(), String>;

/// Where children run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// In jailed processes of their own.
    #[default]
    Process,
    /// On threads of this process, without jails; they end with it. For tests, benches and small development set-ups.
    Thread,
}

/// Starts children.
#[derive(Debug)]
pub struct Launcher {
    /// Where children run.
    pub isolation: Isolation,
    /// The binary that is executed with the child's kind as its argument.
    pub program: PathBuf,
    /// Where children are written down.
    pub runtime: Runtime,
    /// First of the users that children get.
    pub first_uid: u32,
    /// How many there are.
    pub uids: u32,
    /// What happens at a system call that a child's profile does not hold.
    pub enforcement: Enforcement,
    /// Where children's logs are kept, one file each; `None`: they share the daemon's standard error.
    pub logs: Option<PathBuf>,
    /// A user is chosen and written down under this lock.
    pub choosing: Mutex<()>,
}

/// [`Launcher::trim_logs`] cuts a log that has grown beyond this.
const MAX_LOG: u64 = 1 << 20;

/// A child to start.
#[derive(Debug)]
pub struct Launch<'a, S> {
    /// Its kind: the argument of the binary.
    pub kind: &'a str,
    /// Its function, for `isolation = "thread"`.
    pub main: Main,
    /// Unique among children.
    pub name: String,
    /// What it shall do.
    pub spec: &'a S,
    /// Descriptors, by the names under which it takes them.
    pub descriptors: Vec<(&'a str, BorrowedFd<'a>)>,
    /// System calls.
    pub profile: Profile,
    /// Files.
    pub files: Files,
    /// Resource limits.
    pub limits: Limits,
    /// Bounds on it and its own children together.
    pub cgroup: CgroupLimits,
    /// -1000 to 1000, proc_pid_oom_score_adj(5): what the kernel ends first when memory runs out.
    pub oom_score_adj: i16,
    /// Its control socket, for whoever finds it later.
    pub control: Option<PathBuf>,
    /// What its owner wants to know later.
    pub note: serde_json::Value,
}

/// A child that said that it is ready.
#[derive(Debug)]
pub struct Launched {
    /// The running child.
    pub task: Task,
    /// To it; some kinds send a result here, the others close it.
    pub connection: Connection,
    /// Its user; the daemon's own for a thread.
    pub uid: u32,
}

/// Why a child did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The process could not be made.
    #[error("starting '{kind}': {source}")]
    Spawn {
        /// The child's kind.
        kind: String,
        /// The system's answer.
        source: io::Error,
    },
    /// It said why it could not start.
    #[error("'{kind}' could not start: {why}")]
    Refused {
        /// The child's kind.
        kind: String,
        /// Its words.
        why: String,
    },
    /// It ended without a word.
    #[error("'{kind}' ended at its start by {exit}; its log says more")]
    Ended {
        /// The child's kind.
        kind: String,
        /// How.
        exit: Exit,
    },
    /// It did not answer.
    #[error("'{kind}' did not start: {source}")]
    Control {
        /// The child's kind.
        kind: String,
        /// What went wrong.
        source: Error,
    },
    /// All users of the range are taken.
    #[error(
        "all {0} user numbers for children are in use: widen the range, or run fewer guests on this node"
    )]
    NoUser(u32),
}

impl Launcher {
    /// Jailed processes of this very binary, written down in `runtime`.
    pub fn new(isolation: Isolation, runtime: Runtime) -> Self {
        Launcher {
            isolation,
            program: PathBuf::from("/proc/self/exe"),
            runtime,
            first_uid: 600_000,
            uids: 5_000,
            enforcement: Enforcement::Kill,
            logs: None,
            choosing: Mutex::new(()),
        }
    }

    /// Start a child, and wait until it says that it is ready. Blocks for some milliseconds.
    pub fn launch<S: Serialize>(&self, launch: &Launch<'_, S>) -> Result<Launched, LaunchError> {
        let spawn_error = |source| LaunchError::Spawn {
            kind: launch.kind.into(),
            source,
        };
        let (ours, theirs) = UnixStream::pair().map_err(spawn_error)?;
        let connection = Connection::new(ours, START_TIMEOUT);
        match self.isolation {
            Isolation::Thread => {
                let task = spawn_thread(launch.kind, launch.main, theirs).map_err(spawn_error)?;
                let uid = nix::unistd::geteuid().as_raw();
                self.start(
                    launch,
                    Launched {
                        task,
                        connection,
                        uid,
                    },
                    None,
                )
            }
            Isolation::Process => {
                let (process, uid) = self.spawn_process(launch, theirs.into())?;
                let jail = Jail {
                    uid,
                    files: launch.files.clone(),
                    limits: launch.limits.clone(),
                    profile: launch.profile,
                    enforcement: self.enforcement,
                };
                cgroup::confine(
                    &cgroup_name(&launch.name, process.pid()),
                    process.pid(),
                    launch.cgroup,
                );
                let path = format!("/proc/{}/oom_score_adj", process.pid());
                if let Err(error) = fs::write(path, launch.oom_score_adj.to_string()) {
                    info!(%error, "the child's place in the order of out-of-memory kills stays as it is");
                }
                self.start(
                    launch,
                    Launched {
                        task: Task::Process(process),
                        connection,
                        uid,
                    },
                    Some(jail),
                )
            }
        }
    }

    /// Send the first message and wait for the answer; clean up if it is not "ready".
    fn start<S: Serialize>(
        &self,
        launch: &Launch<'_, S>,
        mut launched: Launched,
        jail: Option<Jail>,
    ) -> Result<Launched, LaunchError> {
        let (names, descriptors): (Vec<String>, Vec<BorrowedFd<'_>>) = launch
            .descriptors
            .iter()
            .map(|(name, fd)| ((*name).to_owned(), *fd))
            .unzip();
        let message = StartMessage {
            name: launch.name.clone(),
            jail,
            spec: launch.spec,
            descriptors: names,
        };
        let answer = launched.connection.send(&message, &descriptors).and_then(|()| {
            let (answer, _): (Result<(), String>, _) = launched.connection.recv()?;
            Ok(answer)
        });
        let kind = launch.kind.to_owned();
        let error = match answer {
            Ok(Ok(())) => return Ok(launched),
            Ok(Err(why)) => LaunchError::Refused { kind, why },
            Err(Error::Closed) => match launched.task.wait(Some(START_TIMEOUT)) {
                Ok(Some(exit)) => LaunchError::Ended { kind, exit },
                _ => LaunchError::Control {
                    kind,
                    source: Error::Closed,
                },
            },
            Err(source) => LaunchError::Control { kind, source },
        };
        let ended = launched
            .task
            .kill()
            .and_then(|()| launched.task.wait(Some(START_TIMEOUT)));
        if let Err(error) = ended.and_then(|_| self.forget(&launch.name)) {
            warn!(%error, child = launch.name, "clean-up after a failed start");
        }
        Err(error)
    }

    /// Strike an ended child off and remove its cgroup.
    pub fn forget(&self, name: &str) -> io::Result<()> {
        if let Some(record) = self.runtime.list()?.get(name) {
            cgroup::remove(&cgroup_name(name, record.pid));
        }
        self.runtime.remove(name)
    }

    fn spawn_process<S>(
        &self,
        launch: &Launch<'_, S>,
        stdin: OwnedFd,
    ) -> Result<(Process, u32), LaunchError> {
        let spawn_error = |source| LaunchError::Spawn {
            kind: launch.kind.into(),
            source,
        };
        let mut command = Command::new(&self.program);
        command
            .arg(launch.kind)
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::null())
            .current_dir("/")
            .env_clear();
        if let Ok(filter) = std::env::var("RUST_LOG") {
            command.env("RUST_LOG", filter);
        }
        command.stderr(self.log(&launch.name).map_err(spawn_error)?);

        let _choosing = self.choosing.lock().unwrap_or_else(PoisonError::into_inner);
        let uid = self
            .runtime
            .free_uid(self.first_uid, self.uids)
            .map_err(spawn_error)?;
        let uid = uid.ok_or(LaunchError::NoUser(self.uids))?;
        let process = spawn_in_new_pid_namespace(command).map_err(spawn_error)?;
        let record = Record {
            kind: launch.kind.into(),
            name: launch.name.clone(),
            pid: process.pid(),
            start_time: process.start_time(),
            boot_id: self.runtime.boot_id().to_owned(),
            uid,
            control: launch.control.clone(),
            note: launch.note.clone(),
        };
        if let Err(source) = self.runtime.write(&record) {
            let _ = process.kill().and_then(|()| process.wait(Some(START_TIMEOUT)));
            return Err(spawn_error(source));
        }
        Ok((process, uid))
    }

    fn log(&self, name: &str) -> io::Result<Stdio> {
        let Some(path) = self.log_path(name) else {
            return Ok(Stdio::inherit());
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        Ok(File::options().create(true).append(true).open(path)?.into())
    }

    /// Where a child's log is; `None`: on standard error.
    pub fn log_path(&self, name: &str) -> Option<PathBuf> {
        Some(self.logs.as_ref()?.join(format!("{name}.log")))
    }

    /// Remove the log of a child that will not come back.
    pub fn remove_log(&self, name: &str) -> io::Result<()> {
        match self.log_path(name).map(fs::remove_file) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Cut logs that have grown too long; their children append, so they go on from the beginning.
    /// To be called now and then.
    pub fn trim_logs(&self) -> io::Result<()> {
        let Some(folder) = &self.logs else { return Ok(()) };
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_file() && metadata.len() > MAX_LOG {
                File::options().write(true).open(entry.path())?.set_len(0)?;
            }
        }
        Ok(())
    }
}

/// Unique on the machine, on which several daemons may run.
fn cgroup_name(child: &str, pid: i32) -> String {
    format!("{child}-{pid}")
}

/// The child becomes the first process of a PID namespace: it can see and signal no other, and when it dies, all
/// that it started dies with it. unshare(2) decides for the children of the calling thread, so a thread is made for it.
fn spawn_in_new_pid_namespace(mut command: Command) -> io::Result<Process> {
    let spawned = std::thread::Builder::new().name("spawn".into()).spawn(move || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWPID) {
            warn!(error = %errno, "no PID namespace for children");
        }
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        Process::open(pid)
    })?;
    spawned
        .join()
        .map_err(|_| io::Error::other("the spawning thread panicked"))?
}

fn spawn_thread(kind: &str, main: Main, stream: UnixStream) -> io::Result<Task> {
    let (ended, guard) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let name = kind.to_owned();
    std::thread::Builder::new().name(kind.into()).spawn(move || {
        // Closed when the thread ends, however it does.
        let _guard = guard.as_fd();
        let result = Start::receive(stream).map_err(|e| e.to_string()).and_then(main);
        if let Err(error) = result {
            error!(%error, child = name, "child ends");
        }
    })?;
    Ok(Task::Thread(ended))
}
