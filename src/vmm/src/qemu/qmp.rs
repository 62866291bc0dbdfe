//! A small client of QEMU's machine protocol (QMP): JSON lines over a Unix socket.
//!
//! QEMU is not trusted: a guest may have broken out into it. Lines are bounded, and so is the queue of events.

use std::collections::VecDeque;
use std::io;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The longest line that is accepted.
const MAX_LINE: usize = 1 << 20;
/// Events that wait to be looked at; of more, the oldest are forgotten.
const MAX_EVENTS: usize = 256;

/// What went wrong on the monitor's socket.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU closed it.
    #[error("QEMU closed its monitor")]
    Closed,
    /// It said something that is not QMP.
    #[error("QEMU's monitor spoke nonsense: {0}")]
    Malformed(String),
    /// It refused a command.
    #[error("QEMU refused '{command}': {why}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's words.
        why: String,
    },
    /// It did not answer.
    #[error("QEMU did not answer in time")]
    TimedOut,
    /// The system's answer.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What an engine wants to know. QEMU tells more, which is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The vCPUs stand still.
    Stop,
    /// They run again.
    Resume,
    /// The machine was reset.
    Reset,
    /// The power button was pressed.
    Powerdown,
    /// The machine shut down; QEMU ends.
    Shutdown,
    /// The guest has let go of the device of this name.
    Unplugged(String),
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Failure>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    id: Option<u64>,
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
}

#[derive(Deserialize)]
struct Failure {
    desc: String,
}

/// A connection in command mode.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    unread: Vec<u8>,
    events: VecDeque<Event>,
    last_id: u64,
}

impl Qmp {
    /// Wait for the greeting and negotiate.
    pub async fn new(stream: UnixStream) -> Result<Self, QmpError> {
        let mut qmp = Qmp {
            stream,
            unread: Vec::new(),
            events: VecDeque::new(),
            last_id: 0,
        };
        if qmp.message().await?.greeting.is_none() {
            return Err(QmpError::Malformed("no greeting".into()));
        }
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Run a command and wait for its result.
    pub async fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        self.last_id += 1;
        let id = self.last_id;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes()).await?;
        loop {
            let message = self.message().await?;
            self.keep_event(&message);
            if message.id == Some(id) {
                return match (message.result, message.error) {
                    (Some(result), _) => Ok(result),
                    (_, Some(failure)) => Err(QmpError::Refused {
                        command,
                        why: clip(&failure.desc),
                    }),
                    _ => Err(QmpError::Malformed("neither result nor error".into())),
                };
            }
        }
    }

    /// The next event. May be dropped while it waits: no event is lost.
    pub async fn event(&mut self) -> Result<Event, QmpError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let message = self.message().await?;
            self.keep_event(&message);
        }
    }

    fn keep_event(&mut self, message: &Message) {
        let event = match message.event.as_deref() {
            Some("STOP") => Event::Stop,
            Some("RESUME") => Event::Resume,
            Some("RESET") => Event::Reset,
            Some("POWERDOWN") => Event::Powerdown,
            Some("SHUTDOWN") => Event::Shutdown,
            // Parts of devices have no name.
            Some("DEVICE_DELETED") => match message.data["device"].as_str() {
                Some(device) => Event::Unplugged(clip(device)),
                None => return,
            },
            _ => return,
        };
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// One line. What was read of the next one stays, also when this future is dropped.
    async fn message(&mut self) -> Result<Message, QmpError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.unread[searched..].iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=searched + end).collect();
                let line = line.trim_ascii();
                return serde_json::from_slice(line).map_err(|e| QmpError::Malformed(e.to_string()));
            }
            searched = self.unread.len();
            if searched > MAX_LINE {
                return Err(QmpError::Malformed(format!(
                    "a line of more than {MAX_LINE} bytes"
                )));
            }
            if self.stream.read_buf(&mut self.unread).await? == 0 {
                return Err(QmpError::Closed);
            }
        }
    }
}

fn clip(text: &str) -> String {
    text.chars().take(500).collect()
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

    /// A monitor that sends its greeting and answers the n-th command with the n-th script (`ID` is its number).
    fn fake(scripts: Vec<&'static str>) -> (UnixStream, impl Future<Output = Vec<Value>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serve = async move {
            let (reader, mut writer) = theirs.into_split();
            let mut lines = BufReader::new(reader).lines();
            writer
                .write_all(format!("{GREETING}\r\n").as_bytes())
                .await
                .unwrap();
            let mut commands = Vec::new();
            for script in scripts {
                let Some(line) = lines.next_line().await.unwrap() else {
                    break;
                };
                let command: Value = serde_json::from_str(&line).unwrap();
                let script = script.replace("ID", &command["id"].to_string());
                commands.push(command);
                writer.write_all(script.as_bytes()).await.unwrap();
            }
            commands
        };
        (ours, serve)
    }

    const DONE: &str = "{\"return\": {}, \"id\": ID}\r\n";

    #[tokio::test]
    async fn commands_get_their_results_and_events_in_between_are_kept() {
        let (stream, monitor) = fake(vec![
            DONE,
            "{\"event\": \"NIC_RX_FILTER_CHANGED\"}\n{\"event\": \"STOP\"}\r\n{\"return\": {\"status\": \"paused\"}, \"id\": ID}\n",
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": ID}\n{\"event\": \"SHUTDOWN\"}\n",
        ]);
        let client = async {
            let mut qmp = Qmp::new(stream).await.unwrap();
            assert_eq!(
                qmp.execute("query-status", json!({})).await.unwrap()["status"],
                "paused"
            );
            let error = qmp.execute("cont", json!({})).await.unwrap_err().to_string();
            assert_eq!(error, "QEMU refused 'cont': no");
            assert_eq!(qmp.event().await.unwrap(), Event::Stop);
            assert_eq!(qmp.event().await.unwrap(), Event::Shutdown);
            assert!(matches!(qmp.event().await, Err(QmpError::Closed)));
        };
        let ((), commands) = tokio::join!(client, monitor);
        assert_eq!(commands[1]["execute"], "query-status");
    }

    #[tokio::test]
    async fn an_event_that_comes_in_pieces_survives_a_dropped_wait() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut qmp = Qmp {
            stream: ours,
            unread: Vec::new(),
            events: VecDeque::new(),
            last_id: 0,
        };
        theirs.write_all(b"{\"event\": \"RE").await.unwrap();
        // Polled once, it takes what is there; then it is dropped.
        let taken = tokio::select! { biased; event = qmp.event() => Some(event), () = tokio::task::yield_now() => None };
        assert!(taken.is_none());
        theirs.write_all(b"SET\"}\n").await.unwrap();
        assert_eq!(qmp.event().await.unwrap(), Event::Reset);
    }

    #[tokio::test]
    async fn a_monitor_that_floods_or_babbles_is_bounded() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let flood = tokio::spawn(async move {
            let chunk = vec![b'x'; 64 << 10];
            while theirs.write_all(&chunk).await.is_ok() {}
        });
        assert!(matches!(Qmp::new(ours).await, Err(QmpError::Malformed(_))));
        flood.await.unwrap();

        let (stream, monitor) = fake(vec![DONE]);
        let client = async {
            let mut qmp = Qmp::new(stream).await.unwrap();
            for _ in 0..10 * MAX_EVENTS {
                qmp.keep_event(&serde_json::from_str(r#"{"event": "RESET"}"#).unwrap());
            }
            assert_eq!(qmp.events.len(), MAX_EVENTS);
        };
        tokio::join!(client, monitor);
    }
}
