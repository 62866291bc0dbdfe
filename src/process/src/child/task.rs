//! A running child, whoever started it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this exit status.
    Status(i32),
    /// By this signal.
    Signal(i32),
    /// Another process was its parent, and knows.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Status(status) => write!(f, "exit status {status}"),
            Exit::Signal(signal) if *signal == libc::SIGSYS => {
                f.write_str("a system call that its jail forbids")
            }
            Exit::Signal(signal) => write!(f, "signal {signal}"),
            Exit::Unknown => f.write_str("an unknown cause"),
        }
    }
}

/// A process by its pidfd: the number alone could be another's by now.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    start_time: u64,
    pidfd: OwnedFd,
}

impl Process {
    /// The running process of this number, if it started at this time (clock ticks since boot, proc_pid_stat(5)).
    /// `None`: it is gone, or a zombie.
    pub fn find(pid: i32, start_time: u64) -> io::Result<Option<Self>> {
        match Process::open(pid) {
            Ok(process) if process.start_time == start_time && !process.has_ended()? => Ok(Some(process)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A process that is surely still there: a child that nobody has waited for.
    pub fn open(pid: i32) -> io::Result<Self> {
        let number = Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        let pidfd = pidfd_open(number, PidfdFlags::empty())?;
        // Read after the pidfd is open: both are of the same process, or the time does not fit.
        let start_time = start_time(pid)?;
        Ok(Process {
            pid,
            start_time,
            pidfd,
        })
    }

    /// Its number in the daemon's PID namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// When it started, in clock ticks since boot.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// It runs no more.
    pub fn has_ended(&self) -> io::Result<bool> {
        readable(self.pidfd.as_fd(), Some(Duration::ZERO))
    }

    /// Kill it (SIGKILL); its PID namespace, if it has one, goes with it.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Wait until it has ended, at most this long. `None`: it runs still.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Option<Exit>> {
        if !readable(self.pidfd.as_fd(), timeout)? {
            return Ok(None);
        }
        let exit = match waitid(
            WaitId::PidFd(self.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        ) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Status(code),
                (_, Some(signal)) => Exit::Signal(signal),
                _ => Exit::Unknown,
            },
            // Not this process's child, or waited for before.
            Ok(None) | Err(_) => Exit::Unknown,
        };
        Ok(Some(exit))
    }
}

/// The pidfd; readable when the process has ended.
impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// A running child: a process, or a thread of this one (`isolation = "thread"`).
#[derive(Debug)]
pub enum Task {
    /// A process.
    Process(Process),
    /// A thread. The pipe's end becomes readable when it ends.
    Thread(OwnedFd),
}

impl Task {
    /// The process's number; `None` for a thread.
    pub fn pid(&self) -> Option<i32> {
        match self {
            Task::Process(process) => Some(process.pid()),
            Task::Thread(_) => None,
        }
    }

    /// It runs no more.
    pub fn has_ended(&self) -> io::Result<bool> {
        readable(self.as_fd(), Some(Duration::ZERO))
    }

    /// End it by force. A thread cannot be: it ends when its control socket says so.
    pub fn kill(&self) -> io::Result<()> {
        match self {
            Task::Process(process) => process.kill(),
            Task::Thread(_) => Ok(()),
        }
    }

    /// Wait until it has ended, at most this long. `None`: it runs still.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Option<Exit>> {
        match self {
            Task::Process(process) => process.wait(timeout),
            Task::Thread(end) => Ok(readable(end.as_fd(), timeout)?.then_some(Exit::Unknown)),
        }
    }
}

/// Readable when the child has ended.
impl AsFd for Task {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Task::Process(process) => process.as_fd(),
            Task::Thread(end) => end.as_fd(),
        }
    }
}

fn readable(descriptor: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
    let deadline = timeout.map(|t| std::time::Instant::now() + t);
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(std::time::Instant::now()));
        let spec = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], spec.as_ref()) {
            Err(rustix::io::Errno::INTR) => continue,
            other => return Ok(other? > 0),
        }
    }
}

/// Field 22 of `/proc/PID/stat`; the second field, a name in parentheses, may hold anything.
fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    let unreadable = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("/proc/{pid}/stat cannot be read"),
        )
    };
    let after_name = stat.iter().rposition(|&b| b == b')').ok_or_else(unreadable)? + 1;
    let rest = std::str::from_utf8(&stat[after_name..]).map_err(|_| unreadable())?;
    rest.split_ascii_whitespace()
        .nth(19)
        .and_then(|field| field.parse().ok())
        .ok_or_else(unreadable)
}
