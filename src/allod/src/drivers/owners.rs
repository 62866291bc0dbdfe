//! `allod disk` processes: one owner for each disk of a running guest, kept alive.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cloud::driver::{DiskKeys, DriverError};
use disk::pool::lineage;
use model::disk::{DiskLimits, DiskRequest, DiskSpec, DiskStatus};
use process::child::{CgroupLimits, Launch, Launcher, Task};
use process::control::Client;
use process::jail::{Files, Limits, Profile};
use serde_json::json;
use tokio::sync::watch;
use tracing::{error, info, warn};
use uuid::Uuid;
use vmm::End;

use super::{children, failed};

/// How long an owner may take to answer, and to end.
const ANSWER: Duration = Duration::from_secs(10);
/// An owner that lives shorter than this is not restarted at once.
const YOUNG: Duration = Duration::from_secs(5);
/// How long to wait then.
const BACK_OFF: Duration = Duration::from_secs(1);

/// The name of the owner of a volume.
pub fn disk_name(volume: Uuid) -> String {
    format!("disk-{volume}")
}

/// Opens the disk's file; again for each successor of an owner.
pub type Opener = Arc<dyn Fn() -> Result<File, DriverError> + Send + Sync>;

/// All that an owner is started with.
#[derive(Clone)]
pub struct Disk {
    /// The child's name.
    pub name: String,
    /// What it serves.
    pub spec: DiskSpec,
    /// How much it may be used by now: what a successor is told.
    pub limits: Arc<Mutex<DiskLimits>>,
    /// Where the bytes are.
    pub open: Opener,
    /// The vhost-user socket, for the guest.
    pub socket: PathBuf,
    /// The control socket.
    pub control: PathBuf,
    /// Where the key is had from, if it has one.
    pub keys: Arc<dyn DiskKeys>,
}

impl Disk {
    /// Its file, and what is to be served of it: it may have grown since it was written down. With its key, which is written down
    /// nowhere.
    pub async fn opened(&self) -> Result<(DiskSpec, File), DriverError> {
        let open = self.open.clone();
        let (file, has, lineage) = blocking(move || {
            let file = open()?;
            let has = file.metadata().map_err(failed)?.len();
            let lineage = lineage::of(&file).map_err(failed)?;
            Ok((file, has, lineage))
        })
        .await?;
        let mut spec = self.spec.clone();
        spec.size = spec.size.max(has - has % 512);
        if let Some(lineage) = lineage {
            let purpose = format!("opening of volume {}", spec.id);
            spec.key = Some(self.keys.disk_key(lineage, &purpose).await?);
        }
        spec.limits = *self.limits();
        Ok((spec, file))
    }

    fn limits(&self) -> MutexGuard<'_, DiskLimits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hold on an owner that is kept alive until [`Owner::stop`].
pub struct Owner {
    disk: Disk,
    stopping: Arc<AtomicBool>,
    /// True when it has ended for good.
    ended: watch::Receiver<bool>,
}

impl Owner {
    /// Take over the owner of an earlier daemon, or start one, and keep it alive.
    pub async fn keep(launcher: Arc<Launcher>, disk: Disk) -> Result<Self, DriverError> {
        let (first, name) = (launcher.clone(), disk.name.clone());
        let task = match blocking(move || find(&first, &name)).await? {
            Some(task) => task,
            None => start(launcher.clone(), disk.clone()).await?,
        };
        let end = End::of(&task).map_err(failed)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let (ended, receiver) = watch::channel(false);
        tokio::spawn(keep_alive(
            launcher,
            disk.clone(),
            Watched { task, end },
            stopping.clone(),
            ended,
        ));
        Ok(Owner {
            disk,
            stopping,
            ended: receiver,
        })
    }

    /// The file has grown to this many bytes: it serves them from now on.
    pub async fn resize(&self, bytes: u64) -> Result<(), DriverError> {
        self.ask(DiskRequest::Resize(bytes)).await
    }

    /// The volume may be used this much from now on.
    pub async fn limit(&self, limits: DiskLimits) -> Result<(), DriverError> {
        // Its successor's first, should it end before it hears this.
        *self.disk.limits() = limits;
        self.ask(DiskRequest::SetLimits(limits)).await
    }

    async fn ask(&self, request: DiskRequest) -> Result<(), DriverError> {
        let disk = self.disk.clone();
        blocking(move || ask(&disk, &request)).await
    }

    /// End it: what is in flight is completed and flushed.
    pub async fn stop(mut self, launcher: Arc<Launcher>) -> Result<(), DriverError> {
        self.stopping.store(true, Ordering::Release);
        let disk = self.disk.clone();
        let asked = blocking(move || ask(&disk, &DiskRequest::Stop)).await;
        let in_time = tokio::time::timeout(ANSWER, self.ended.wait_for(|ended| *ended))
            .await
            .is_ok();
        if !in_time {
            warn!(child = self.disk.name, error = ?asked.err(), "a disk's owner does not end; it is killed");
            let name = self.disk.name.clone();
            blocking(move || kill(&launcher, &name)).await?;
            let _ = self.ended.wait_for(|ended| *ended).await;
        }
        let _ = std::fs::remove_file(&self.disk.control);
        let _ = std::fs::remove_file(&self.disk.socket);
        Ok(())
    }
}

struct Watched {
    task: Task,
    end: End,
}

/// Start a successor whenever the owner ends, until it is stopped. The guest's engine connects again by itself, and
/// hands over what was in flight (`VHOST_USER_SET_INFLIGHT_FD`).
async fn keep_alive(
    launcher: Arc<Launcher>,
    disk: Disk,
    mut owner: Watched,
    stopping: Arc<AtomicBool>,
    ended: watch::Sender<bool>,
) {
    loop {
        let since = Instant::now();
        let _ = owner.end.reached().await;
        let exit = owner.task.wait(Some(Duration::ZERO)).ok().flatten();
        if stopping.load(Ordering::Acquire) {
            break;
        }
        error!(
            child = disk.name,
            exit = exit.map(|e| e.to_string()),
            "a disk's owner ended; it is replaced"
        );
        if since.elapsed() < YOUNG {
            tokio::time::sleep(BACK_OFF).await;
        }
        owner = loop {
            if stopping.load(Ordering::Acquire) {
                ended.send_replace(true);
                return;
            }
            let (first, name) = (launcher.clone(), disk.name.clone());
            let started = async {
                blocking(move || first.forget(&name).map_err(failed)).await?;
                start(launcher.clone(), disk.clone()).await
            };
            match started.await.and_then(|task| {
                Ok(Watched {
                    end: End::of(&task).map_err(failed)?,
                    task,
                })
            }) {
                Ok(watched) => break watched,
                Err(error) => {
                    error!(child = disk.name, %error, "the disk waits for an owner; next try in a second")
                }
            }
            tokio::time::sleep(BACK_OFF).await;
        };
    }
    let name = disk.name.clone();
    let forgotten = blocking(move || launcher.forget(&name).map_err(failed)).await;
    if let Err(error) = forgotten {
        warn!(child = disk.name, %error, "runtime file of an ended disk owner");
    }
    ended.send_replace(true);
}

/// The owner that is written down, if it runs.
fn find(launcher: &Launcher, name: &str) -> Result<Option<Task>, DriverError> {
    let Some(record) = launcher.runtime.list().map_err(failed)?.remove(name) else {
        return Ok(None);
    };
    match launcher.runtime.find(&record).map_err(failed)? {
        Some(process) => {
            info!(child = name, pid = process.pid(), "disk's owner adopted");
            Ok(Some(Task::Process(process)))
        }
        None => {
            launcher.forget(name).map_err(failed)?;
            Ok(None)
        }
    }
}

async fn start(launcher: Arc<Launcher>, disk: Disk) -> Result<Task, DriverError> {
    let (spec, file) = disk.opened().await?;
    blocking(move || launch(&launcher, &disk, &spec, &file)).await
}

fn launch(launcher: &Launcher, disk: &Disk, spec: &DiskSpec, file: &File) -> Result<Task, DriverError> {
    let control = process::control::bind(&disk.control).map_err(failed)?;
    let socket = super::guest_socket(&disk.socket).map_err(failed)?;
    let launched = launcher
        .launch(&Launch {
            kind: children::DISK,
            main: children::disk,
            name: disk.name.clone(),
            spec,
            descriptors: vec![
                ("control", control.as_fd()),
                ("vhost", socket.as_fd()),
                ("file", file.as_fd()),
            ],
            profile: Profile::Disk,
            files: Files::default(),
            limits: Limits {
                open_files: 1024,
                ..Limits::default()
            },
            // No bound on memory: pages of the guest's that it touches first would count as its own.
            cgroup: CgroupLimits {
                memory: None,
                processes: Some(128),
            },
            oom_score_adj: 100,
            control: Some(disk.control.clone()),
            note: json!(null),
        })
        .map_err(failed)?;
    info!(
        child = disk.name,
        pid = launched.task.pid(),
        "disk's owner started"
    );
    Ok(launched.task)
}

fn ask(disk: &Disk, request: &DiskRequest) -> Result<(), DriverError> {
    let mut client: Client<DiskRequest, DiskStatus> =
        Client::connect(&disk.control, ANSWER).map_err(failed)?;
    client.call(request, &[]).map(drop).map_err(failed)
}

/// Kill a child by its runtime file, and strike it off.
pub fn kill(launcher: &Launcher, name: &str) -> Result<(), DriverError> {
    if let Some(task) = find(launcher, name)? {
        task.kill().map_err(failed)?;
        task.wait(Some(ANSWER)).map_err(failed)?;
    }
    launcher.forget(name).map_err(failed)
}

async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
) -> Result<T, DriverError> {
    tokio::task::spawn_blocking(act).await.map_err(failed)?
}
