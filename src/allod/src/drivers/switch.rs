//! The switch of this node: one jailed child, kept alive.
//!
//! Whatever the child was told is known here, too: if it dies, the next one is told again at once, and guests
//! connect to it by themselves, because their sockets have the paths that they had.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cloud::driver::{DriverError, Switch};
use model::net::{SwitchRequest, SwitchStatus, Tables, TapTarget};
use process::child::{CgroupLimits, Launch, Launcher, Task};
use process::control::{Client, Error as ControlError};
use process::jail::{Files, Limits, Profile};
use serde_json::json;
use tracing::{error, info, warn};
use uuid::Uuid;
use vmm::End;

use super::host::{self, HostUplink};
use super::{children, failed};

const NAME: &str = "switch";
/// How long a healthy switch may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long it may take to end.
const END: Duration = Duration::from_secs(10);
/// A switch that lives shorter than this is not restarted at once.
const YOUNG: Duration = Duration::from_secs(5);
/// How long to wait then.
const BACK_OFF: Duration = Duration::from_secs(1);

type SwitchClient = Client<SwitchRequest, Option<SwitchStatus>>;

/// The switch driver.
#[derive(Clone)]
pub struct SwitchDriver {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    launcher: Arc<Launcher>,
    folder: PathBuf,
    masquerade: bool,
    live: Option<Live>,
    /// What it shall obey.
    tables: Option<Arc<Tables>>,
    /// Guests' sockets by port.
    sockets: BTreeMap<Uuid, PathBuf>,
    /// Uplinks' TAPs by name, so that they outlive a switch. Those of an earlier daemon are the switch's alone.
    taps: BTreeMap<String, OwnedFd>,
    /// What the host was last set up for.
    host: Option<Vec<HostUplink>>,
    /// Set by `tear_down`: a switch that ends is not replaced.
    closed: bool,
}

/// A running switch.
struct Live {
    task: Task,
    client: SwitchClient,
    since: Instant,
}

impl SwitchDriver {
    /// Not yet running; `folder` is for its control socket.
    pub fn new(launcher: Arc<Launcher>, folder: &Path, masquerade: bool) -> Self {
        let inner = Inner {
            launcher,
            folder: folder.to_owned(),
            masquerade,
            live: None,
            tables: None,
            sockets: BTreeMap::new(),
            taps: BTreeMap::new(),
            host: None,
            closed: false,
        };
        SwitchDriver {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// Take over the switch of an earlier daemon. If there is none, one is started when it is first needed.
    pub async fn open(&self) -> Result<(), DriverError> {
        let driver = self.clone();
        self.with(move |inner| {
            inner.live = inner.find();
            driver.watch(inner)
        })
        .await
    }

    /// Plug a guest's port in: a listening vhost-user socket is made at this path and handed over.
    pub async fn plug(&self, port: Uuid, path: PathBuf) -> Result<(), DriverError> {
        self.plug_with(port, path, true).await
    }

    /// Know a port that an earlier daemon plugged in; it is handed over again only if the switch lost it.
    pub async fn adopt_port(&self, port: Uuid, path: PathBuf) -> Result<(), DriverError> {
        self.plug_with(port, path, false).await
    }

    async fn plug_with(&self, port: Uuid, path: PathBuf, anew: bool) -> Result<(), DriverError> {
        let driver = self.clone();
        self.with(move |inner| {
            inner.sockets.insert(port, path.clone());
            driver.with_live(inner, |inner| {
                if anew || !inner.status()?.vhost_user.contains_key(&port) {
                    inner.hand_socket(port, &path)?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Unplug a port. Unknown: nothing happens.
    pub async fn unplug(&self, port: Uuid) -> Result<(), DriverError> {
        let driver = self.clone();
        self.with(move |inner| {
            if let Some(path) = inner.sockets.remove(&port) {
                driver.with_live(inner, |inner| {
                    inner
                        .ask(&SwitchRequest::RemoveVhostUser { port }, None)
                        .map(drop)
                })?;
                // Its folder goes with the machine.
                let _ = std::fs::remove_file(path);
            }
            Ok(())
        })
        .await
    }

    /// End the switch and take away what it needed of the host.
    pub async fn tear_down(&self) -> Result<(), DriverError> {
        self.with(|inner| {
            inner.closed = true;
            if let Some(mut live) = inner.live.take().or_else(|| inner.find()) {
                let stopped = live.client.call(&SwitchRequest::Stop, &[]);
                if stopped.is_err() || live.task.wait(Some(END)).map_err(failed)?.is_none() {
                    live.task.kill().map_err(failed)?;
                    live.task.wait(Some(END)).map_err(failed)?;
                }
                inner.launcher.forget(NAME).map_err(failed)?;
            }
            inner.taps.clear();
            let _ = std::fs::remove_file(inner.control());
            host::undo(&inner.memory()).map_err(failed)
        })
        .await
    }

    /// Run a closure on a thread that may block.
    async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Inner) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let inner = self.inner.clone();
        let run = move || act(&mut inner.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(run).await.map_err(failed)?
    }

    /// Do something with the switch; if it turns out to be dead or deaf, once more with its successor.
    fn with_live<T>(
        &self,
        inner: &mut Inner,
        act: impl Fn(&mut Inner) -> Result<T, ControlError>,
    ) -> Result<T, DriverError> {
        self.ensure_live(inner)?;
        match act(inner) {
            Err(error @ (ControlError::Closed | ControlError::TimedOut(_) | ControlError::Io(_))) => {
                warn!(%error, "the switch does not answer; it is replaced");
                if let Some(live) = &inner.live {
                    live.task.kill().map_err(failed)?;
                    live.task.wait(Some(END)).map_err(failed)?;
                }
                self.ensure_live(inner)?;
                act(inner).map_err(failed)
            }
            other => other.map_err(failed),
        }
    }

    /// Start a switch if none runs, and tell it all that the last one knew.
    fn ensure_live(&self, inner: &mut Inner) -> Result<(), DriverError> {
        if let Some(live) = &inner.live {
            if !live.task.has_ended().map_err(failed)? {
                return Ok(());
            }
            if let Ok(Some(exit)) = live.task.wait(Some(Duration::ZERO)) {
                error!(%exit, "the switch ended");
            }
            inner.live = None;
        }
        if inner.closed {
            return Err(DriverError::Failed("the switch is being shut down".into()));
        }
        inner.launcher.forget(NAME).map_err(failed)?;
        inner.start()?;
        self.watch(inner)?;
        inner.tell_all().map_err(failed)?;
        inner.set_up_host()
    }

    /// Replace the switch as soon as it ends.
    fn watch(&self, inner: &Inner) -> Result<(), DriverError> {
        let Some(live) = &inner.live else { return Ok(()) };
        let end = End::of(&live.task).map_err(failed)?;
        let since = live.since;
        let driver = self.clone();
        tokio::spawn(async move {
            if end.reached().await.is_err() {
                return;
            }
            if since.elapsed() < YOUNG {
                tokio::time::sleep(BACK_OFF).await;
            }
            loop {
                let again = driver.clone();
                let replaced = driver.with(move |inner| {
                    if inner.closed {
                        Ok(())
                    } else {
                        again.ensure_live(inner)
                    }
                });
                match replaced.await {
                    Ok(()) => break,
                    Err(error) => error!(%error, "the switch could not be replaced; next try in a second"),
                }
                tokio::time::sleep(BACK_OFF).await;
            }
        });
        Ok(())
    }
}

#[async_trait]
impl Switch for SwitchDriver {
    async fn apply(&self, tables: Arc<Tables>) -> Result<(), DriverError> {
        let driver = self.clone();
        self.with(move |inner| {
            inner.tables = Some(tables);
            driver.with_live(inner, Inner::tell_tables)?;
            inner.set_up_host()
        })
        .await
    }

    async fn status(&self) -> Result<SwitchStatus, DriverError> {
        let driver = self.clone();
        self.with(move |inner| driver.with_live(inner, Inner::status))
            .await
    }
}

impl Inner {
    fn control(&self) -> PathBuf {
        self.folder.join("switch.sock")
    }

    /// Where the host's former forwarding state is kept.
    fn memory(&self) -> PathBuf {
        self.folder.join("forwarding-before")
    }

    /// The switch of an earlier daemon.
    fn find(&self) -> Option<Live> {
        let record = self.launcher.runtime.list().ok()?.remove(NAME)?;
        let process = self.launcher.runtime.find(&record).ok()??;
        match SwitchClient::connect(&self.control(), ANSWER) {
            Ok(client) => {
                info!(pid = process.pid(), "switch adopted");
                Some(Live {
                    task: Task::Process(process),
                    client,
                    since: Instant::now(),
                })
            }
            Err(error) => {
                warn!(%error, pid = process.pid(), "a switch runs that nobody can talk to; it is replaced");
                let ended = process.kill().and_then(|()| process.wait(Some(END)));
                if let Err(error) = ended {
                    error!(%error, "the old switch cannot be ended");
                }
                None
            }
        }
    }

    fn start(&mut self) -> Result<(), DriverError> {
        let listener = process::control::bind(&self.control()).map_err(failed)?;
        let launched = self
            .launcher
            .launch(&Launch {
                kind: children::SWITCH,
                main: children::switch,
                name: NAME.into(),
                spec: &(),
                descriptors: vec![("control", listener.as_fd())],
                profile: Profile::Switch,
                files: Files::default(),
                limits: Limits {
                    open_files: 65_536,
                    ..Limits::default()
                },
                cgroup: CgroupLimits {
                    memory: None,
                    processes: Some(64),
                },
                oom_score_adj: 0,
                control: Some(self.control()),
                note: json!(null),
            })
            .map_err(failed)?;
        let client = SwitchClient::connect(&self.control(), ANSWER).map_err(failed)?;
        info!(pid = launched.task.pid(), "switch started");
        self.live = Some(Live {
            task: launched.task,
            client,
            since: Instant::now(),
        });
        Ok(())
    }

    fn ask(
        &mut self,
        request: &SwitchRequest,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Option<SwitchStatus>, ControlError> {
        let live = self.live.as_mut().ok_or(ControlError::Closed)?;
        live.client.call(request, descriptor.as_slice())
    }

    fn status(&mut self) -> Result<SwitchStatus, ControlError> {
        Ok(self.ask(&SwitchRequest::Status, None)?.unwrap_or_default())
    }

    fn tell_all(&mut self) -> Result<(), ControlError> {
        if self.tables.is_some() {
            self.tell_tables()
        } else {
            self.tell_sockets()
        }
    }

    /// Send the tables, and whatever descriptors the switch lacks for them.
    fn tell_tables(&mut self) -> Result<(), ControlError> {
        let Some(tables) = self.tables.clone() else {
            return Ok(());
        };
        self.ask(&SwitchRequest::Apply(Tables::clone(&tables)), None)?;
        let has = self.status()?.uplinks;
        for uplink in tables.uplinks.iter().filter(|uplink| !has.contains(&uplink.name)) {
            let tap = match self.taps.remove(&uplink.name) {
                Some(tap) => tap,
                // A new device: the host's side has to be made again, too.
                None => {
                    self.host = None;
                    vmm::tap::open(&uplink.name)
                        .map_err(|error| ControlError::Refused(tap_hint(&uplink.name, &error)))?
                }
            };
            let target = TapTarget::Uplink(uplink.name.clone());
            let told = self.ask(&SwitchRequest::AddTap { target }, Some(tap.as_fd()));
            self.taps.insert(uplink.name.clone(), tap);
            told?;
        }
        self.taps
            .retain(|name, _| tables.uplinks.iter().any(|uplink| uplink.name == *name));
        self.tell_sockets()
    }

    /// Hand over the sockets that the switch lacks.
    fn tell_sockets(&mut self) -> Result<(), ControlError> {
        if self.sockets.is_empty() {
            return Ok(());
        }
        let has = self.status()?.vhost_user;
        let lacking: Vec<_> = self
            .sockets
            .iter()
            .filter(|(port, _)| !has.contains_key(port))
            .map(|(k, v)| (*k, v.clone()))
            .collect();
        for (port, path) in lacking {
            self.hand_socket(port, &path)?;
        }
        Ok(())
    }

    fn hand_socket(&mut self, port: Uuid, path: &Path) -> Result<(), ControlError> {
        let listener = super::guest_socket(path)
            .map_err(|error| ControlError::Refused(format!("{}: {error}", path.display())))?;
        self.ask(&SwitchRequest::AddVhostUser { port }, Some(listener.as_fd()))
            .map(drop)
    }

    /// The host's side of the uplinks: the external network's gateway is the host.
    fn set_up_host(&mut self) -> Result<(), DriverError> {
        let Some(tables) = &self.tables else { return Ok(()) };
        let mut uplinks = Vec::new();
        for uplink in &tables.uplinks {
            let Some(network) = tables.networks.get(&uplink.network) else {
                continue;
            };
            for subnet in network.subnets.values() {
                let IpAddr::V4(first) = subnet.cidr.hosts().next().unwrap_or(subnet.cidr.addr()) else {
                    continue;
                };
                let address = match subnet.gateway {
                    Some(IpAddr::V4(gateway)) => gateway,
                    _ => first,
                };
                let prefix = subnet.cidr.prefix_len();
                uplinks.push(HostUplink {
                    tap: uplink.name.clone(),
                    address,
                    prefix,
                    mtu: network.mtu,
                });
            }
        }
        if self.host.as_ref() != Some(&uplinks) {
            host::set_up(&uplinks, self.masquerade, &self.memory()).map_err(failed)?;
            self.host = Some(uplinks);
        }
        Ok(())
    }
}

fn tap_hint(name: &str, error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV) => {
            format!("TAP {name}: {error}; /dev/net/tun is missing: load the kernel's module 'tun'")
        }
        Some(libc::EBUSY) => {
            format!("TAP {name}: {error}; another program has it: choose another network.external_tap")
        }
        Some(libc::EPERM | libc::EACCES) => format!("TAP {name}: {error}; the daemon needs root"),
        _ => format!("TAP {name}: {error}"),
    }
}
