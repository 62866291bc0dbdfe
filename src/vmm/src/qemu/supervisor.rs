//! The guest's supervisor: a small jailed child that is QEMU's parent and the first process of its PID namespace.
//!
//! It outlives the daemon, so it is what keeps the serial console's log (bounded in size and rate), and what writes
//! down how QEMU ended, for a daemon that was not there to see it. It opens nothing: all files are handed to it.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use process::child::Start;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::command::QMP_DESCRIPTOR;
use crate::console::{Bucket, Log};
use crate::fleet::ExitRecord;

/// The supervisor's kind: its argument on the command line.
pub const KIND: &str = "guest";

/// What the supervisor is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Spec {
    pub program: PathBuf,
    pub arguments: Vec<String>,
}

/// Names of the descriptors that it is given: QMP's listening socket, the two files of the console log, the exit record.
pub(super) const DESCRIPTORS: [&str; 4] = ["qmp", "console0", "console1", "exit"];

/// So much of QEMU's standard error is kept.
const MAX_MESSAGE: usize = 4096;

/// The supervisor's whole life.
pub fn run(mut start: Start) -> Result<(), String> {
    let spawned = prepare(&mut start);
    match spawned {
        Ok((child, log, exit)) => {
            let pid = child.id();
            let daemon = start.ready().map_err(|e| e.to_string())?;
            // The daemon may be gone already; the guest runs on.
            let _ = daemon.send(&pid, &[]);
            drop(daemon);
            supervise(child, log, exit).map_err(|e| format!("supervising QEMU: {e}"))
        }
        Err(why) => {
            start.fail(&why);
            Err(why)
        }
    }
}

fn prepare(start: &mut Start) -> Result<(Child, Log, File), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let spec: Spec = start.spec().map_err(|e| text(&e))?;
    let [qmp, console0, console1, exit] = DESCRIPTORS;
    let qmp: OwnedFd = start.take(qmp).map_err(|e| text(&e))?;
    let files = [
        start.take(console0).map_err(|e| text(&e))?,
        start.take(console1).map_err(|e| text(&e))?,
    ];
    let log = Log::new(files).map_err(|e| format!("console log: {e}"))?;
    let exit: File = start.take(exit).map_err(|e| text(&e))?;
    // QEMU inherits this one descriptor.
    rustix::io::fcntl_setfd(&qmp, FdFlags::empty()).map_err(|e| text(&e))?;
    let number = qmp.as_raw_fd().to_string();
    let child = Command::new(&spec.program)
        .args(
            spec.arguments
                .iter()
                .map(|argument| argument.replace(QMP_DESCRIPTOR, &number)),
        )
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| {
            format!(
                "{}: {e}; install QEMU (Debian: qemu-system-x86)",
                spec.program.display()
            )
        })?;
    Ok((child, log, exit))
}

fn supervise(mut child: Child, mut log: Log, mut exit: File) -> io::Result<()> {
    let mut console = child.stdout.take();
    let mut errors = child.stderr.take();
    for pipe in [
        console.as_ref().map(AsFd::as_fd),
        errors.as_ref().map(AsFd::as_fd),
    ]
    .into_iter()
    .flatten()
    {
        rustix::io::ioctl_fionbio(pipe, true)?;
    }
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("no process number"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let mut message = Vec::new();
    let mut bucket = Bucket::new(Instant::now());
    loop {
        let allowance = bucket.allowance(Instant::now());
        let ended = wait(
            &pidfd,
            console.as_ref().filter(|_| allowance.is_ok()),
            errors.as_ref(),
            allowance.err(),
        )?;
        if let Ok(bytes) = allowance {
            bucket.take(copy_console(&mut console, &mut log, bytes)?);
        }
        keep_errors(&mut errors, &mut message);
        if ended {
            break;
        }
    }
    // What it said last.
    copy_console(&mut console, &mut log, crate::console::BURST)?;
    keep_errors(&mut errors, &mut message);
    let status = child.wait()?;
    let record = ExitRecord {
        status: status.code(),
        signal: status.signal(),
        message: String::from_utf8_lossy(&message).trim().to_owned(),
    };
    exit.set_len(0)?;
    exit.rewind()?;
    exit.write_all(&serde_json::to_vec(&record)?)
}

/// Wait until QEMU has ended (true), or there is something to read, or the time is over.
fn wait(
    pidfd: &OwnedFd,
    console: Option<&ChildStdout>,
    errors: Option<&ChildStderr>,
    timeout: Option<Duration>,
) -> io::Result<bool> {
    let mut waiting = vec![PollFd::new(pidfd, PollFlags::IN)];
    waiting.extend(console.map(|c| PollFd::new(c, PollFlags::IN)));
    waiting.extend(errors.map(|e| PollFd::new(e, PollFlags::IN)));
    let timeout = timeout.map(|t| Timespec {
        tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: t.subsec_nanos().into(),
    });
    match poll(&mut waiting, timeout.as_ref()) {
        Err(rustix::io::Errno::INTR) => Ok(false),
        other => other
            .map(|_| !waiting[0].revents().is_empty())
            .map_err(Into::into),
    }
}

/// Move at most this many bytes from the console's pipe to the log. A pipe that is closed is forgotten.
fn copy_console(console: &mut Option<ChildStdout>, log: &mut Log, bytes: u64) -> io::Result<u64> {
    let mut buffer = [0; 16 << 10];
    let mut copied = 0;
    while copied < bytes
        && let Some(pipe) = console
    {
        let room = buffer
            .len()
            .min(usize::try_from(bytes - copied).unwrap_or(usize::MAX));
        match pipe.read(&mut buffer[..room]) {
            Ok(0) => *console = None,
            Ok(n) => {
                // A full disk costs the log, not the guest.
                let _ = log.write(&buffer[..n]);
                copied += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(copied)
}

fn keep_errors(errors: &mut Option<ChildStderr>, message: &mut Vec<u8>) {
    let mut buffer = [0; 1024];
    // A few reads per round: the pipe's own size bounds the rest.
    for _ in 0..16 {
        let Some(pipe) = errors else { return };
        match pipe.read(&mut buffer) {
            Ok(0) => *errors = None,
            Ok(n) => {
                message.extend_from_slice(&buffer[..n]);
                message.drain(..message.len().saturating_sub(MAX_MESSAGE));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
