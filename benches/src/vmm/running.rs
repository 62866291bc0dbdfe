//! A monitor that runs.

use std::io::Read;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use allod_tests::host;
use allod_tests::run::line;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Killed with all that it started when dropped.
pub struct Running {
    child: Child,
    /// A monitor may end when nobody can type any more.
    _stdin: Option<ChildStdin>,
    output: Receiver<(Instant, Vec<u8>)>,
    said: Vec<u8>,
    began: Instant,
    line: String,
}

impl Running {
    /// Start it.
    pub fn start(mut command: Command) -> Result<Self> {
        let (send, output) = channel();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let line = line(&command);
        let (reader, writer) = std::io::pipe()?;
        command.stdout(writer);
        // The reader waits before the monitor is there.
        thread::spawn(move || {
            let mut reader = reader;
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if send.send((Instant::now(), buffer[..length].to_vec())).is_err() {
                    return;
                }
            }
        });
        let began = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {line}"))?;
        Ok(Running {
            _stdin: child.stdin.take(),
            child,
            output,
            said: Vec::new(),
            began,
            line,
        })
    }

    /// When it was started.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Its process' id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// What it has said.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.said).into_owned()
    }

    /// Wait until it has said this. When the last of it came.
    pub fn says(&mut self, text: &str, limit: Duration) -> Result<Instant> {
        let until = Instant::now() + limit;
        loop {
            match self
                .output
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok((when, bytes)) => {
                    self.said.extend(bytes);
                    if self.said().contains(text) {
                        return Ok(when);
                    }
                }
                Err(why) => {
                    let why = match why {
                        RecvTimeoutError::Timeout => "did not say",
                        RecvTimeoutError::Disconnected => "ended without",
                    };
                    bail!("{} {why} {text:?}, but {:?}", self.line, self.said());
                }
            }
        }
    }
}

impl Running {
    /// As if by Ctrl-C: what it made on the host it takes away. Killed if it does not end by that.
    pub fn interrupt(&mut self) -> Result<()> {
        let below = host::descendants(self.pid(), &[]);
        kill(Pid::from_raw(self.pid()), Signal::SIGINT)?;
        let asked = Instant::now();
        while self.child.try_wait()?.is_none() && asked.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(2));
        }
        // Whoever was interrupted too early may have left them behind.
        host::kill_all(&below);
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let below = host::descendants(self.pid(), &[]);
        let _ = self.child.kill();
        host::kill_all(&below);
        let _ = self.child.wait();
    }
}
