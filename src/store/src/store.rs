//! The store: what the rest of the cloud calls.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use openraft::{ServerState, SnapshotPolicy};
use rusqlite::Connection;
use tokio::sync::{Semaphore, broadcast, oneshot};
use uuid::Uuid;

use crate::command::{Hash, parse_hex};
use crate::error::Error;
use crate::event::{Event, Projection};
use crate::log::{self, Directory, Disk, LogStore};
use crate::machine::database::{CHECKPOINT_PAGES, Order, Proposer};
use crate::machine::{Config, Machine, Role};
use crate::raft::{Network, Node, NodeId, Raft, Solo, Transport};
use crate::reader::READERS;
use crate::schema::{self, Step};
use crate::writer::{Call, Waiting, Work};

/// Writes that wait at once; further callers wait for their turn to wait.
const WAITING: usize = 4096;
/// Events that a slow subscriber may lag behind before it must read the database anew.
const EVENTS: usize = 4096;
/// How long a write waits for a leader or for its answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long `open` waits for another process to let go of the directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// How a store is opened.
pub struct Options {
    /// The directory of the state; made if need be.
    pub dir: PathBuf,
    /// Every step of the schema, in order.
    pub steps: &'static [Step],
    /// State in memory that follows the database.
    pub projections: Vec<Arc<dyn Projection>>,
}

/// A node among those that hold state.
pub struct Member {
    /// Its id; never reused.
    pub id: NodeId,
    /// Where the others reach it.
    pub node: Node,
    /// How it reaches the others.
    pub transport: Arc<dyn Transport>,
    /// The first node of a new cloud starts alone. Later nodes are added by the leader (see [`Store::raft`]).
    pub first: bool,
}

impl Default for Member {
    fn default() -> Self {
        Member {
            id: 1,
            node: Node::default(),
            transport: Arc::new(Solo),
            first: true,
        }
    }
}

/// The cloud's state on this node. Clones share it; it closes when the last is dropped.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    machine: Machine,
    log: LogStore,
    raft: Raft,
    runtime: tokio::runtime::Handle,
    reading: Arc<Semaphore>,
    waiting: Semaphore,
}

/// Figures for metrics and `doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This node's id.
    pub id: NodeId,
    /// The leader, if known.
    pub leader: Option<NodeId>,
    /// Raft's term.
    pub term: u64,
    /// The last applied entry.
    pub applied: u64,
    /// Entries in the log, and their bytes.
    pub log_entries: usize,
    /// Bytes of entries in the log.
    pub log_bytes: u64,
    /// Bytes of the log's files.
    pub log_file_bytes: u64,
    /// Writes that wait.
    pub waiting: usize,
}

/// What differs in tests: the file layers.
pub(crate) struct Layers {
    pub disk: Arc<dyn Disk>,
    pub segment: usize,
    /// Entries that stay in the log behind a snapshot, for followers that lag.
    pub keep_entries: u64,
    pub checkpoint_pages: u32,
    pub vfs: Option<&'static str>,
    pub free: fn(&Path) -> std::io::Result<u64>,
}

impl Layers {
    pub(crate) fn system(dir: &Path) -> Result<Layers, Error> {
        let path = dir.join("log");
        let disk = Directory::new(&path).map_err(Error::io(format!("make {}", path.display())))?;
        Ok(Layers {
            disk: Arc::new(disk),
            segment: log::SEGMENT,
            keep_entries: 256,
            checkpoint_pages: CHECKPOINT_PAGES,
            vfs: None,
            free: log::free_bytes,
        })
    }
}

/// The directory's lock; the last thread that writes there lets go of it.
fn lock(dir: &Path) -> Result<Arc<File>, Error> {
    fs::create_dir_all(dir).map_err(Error::io(format!("make {}", dir.display())))?;
    let path = dir.join("lock");
    let file = File::create(&path).map_err(Error::io(format!("open {}", path.display())))?;
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Arc::new(file)),
            // A store that was just dropped needs a moment to end.
            Err(fs::TryLockError::WouldBlock) if since.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(fs::TryLockError::WouldBlock) => return Err(Error::InUse(dir.display().to_string())),
            Err(fs::TryLockError::Error(error)) => {
                return Err(Error::io(format!("lock {}", path.display()))(error));
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(f)
        .await
        .map_err(|e| Error::Other(format!("a task ended early: {e}")))?
}

/// Raft's times. A node on its own sends nothing, waits for nobody and so needs no ticks at all.
fn raft_config(keep_entries: u64) -> Result<openraft::Config, Error> {
    let config = openraft::Config {
        cluster_name: "allod".to_owned(),
        heartbeat_interval: 500,
        election_timeout_min: 1500,
        election_timeout_max: 3000,
        install_snapshot_timeout: 10_000,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: keep_entries,
        enable_tick: false,
        ..openraft::Config::default()
    };
    config
        .validate()
        .map_err(|e| Error::Other(format!("Raft's configuration: {e}")))
}

impl Store {
    /// Opens the state of a node on its own.
    pub async fn open(options: Options) -> Result<Store, Error> {
        Store::open_member(options, Member::default()).await
    }

    /// Opens the state of a node among others. Unless it is on its own, it does not wait for them: hand their messages
    /// to [`Store::raft`], then wait for [`Store::ready`].
    pub async fn open_member(options: Options, member: Member) -> Result<Store, Error> {
        let layers = Layers::system(&options.dir)?;
        Store::open_on(options, member, layers).await
    }

    pub(crate) async fn open_on(options: Options, member: Member, layers: Layers) -> Result<Store, Error> {
        let raft_config = Arc::new(raft_config(layers.keep_entries)?);
        let Member {
            id,
            node,
            transport,
            first,
        } = member;
        let (machine, log) = blocking(move || {
            let keep = lock(&options.dir)?;
            let log = LogStore::open(layers.disk, layers.segment, keep.clone())?;
            let config = Config {
                id,
                dir: options.dir,
                steps: options.steps,
                projections: options.projections,
                checkpoint_pages: layers.checkpoint_pages,
                vfs: layers.vfs,
                free: layers.free,
            };
            let machine = Machine::open(config, Some(log.clone()), EVENTS, keep)?;
            Ok((machine, log))
        })
        .await?;
        machine.ask(Order::Compare).await??;

        let fatal = |error: openraft::error::Fatal<NodeId>| Error::Stopped(error.to_string());
        let raft = Raft::new(id, raft_config, Network(transport), log.clone(), machine.clone())
            .await
            .map_err(fatal)?;
        let runtime = tokio::runtime::Handle::current();
        let store = Store(Arc::new(Inner {
            machine,
            log,
            raft: raft.clone(),
            runtime: runtime.clone(),
            reading: Arc::new(Semaphore::new(READERS)),
            waiting: Semaphore::new(WAITING),
        }));
        if store.start(id, node, first).await? {
            store.ready().await?;
        }
        store.0.machine.ask(Order::Load).await??;
        Ok(store)
    }

    /// Waits until this node leads, or follows a leader. If it leads, the schema is then this release's.
    pub async fn ready(&self) -> Result<(), Error> {
        match tokio::time::timeout(PATIENCE, self.0.machine.ask(Order::Ready)).await {
            Ok(answer) => answer??,
            Err(_) => return Err(Error::NotLeader { leader: None }),
        }
        self.migrate().await
    }

    /// Starts Raft; this node is on its own.
    async fn start(&self, id: NodeId, node: Node, first: bool) -> Result<bool, Error> {
        let Inner {
            machine,
            raft,
            runtime,
            ..
        } = &*self.0;
        let proposer = Proposer {
            raft: raft.clone(),
            runtime: runtime.clone(),
            orders: machine.orders(),
        };
        machine.tell(Order::Start(proposer))?;
        runtime.spawn(watch(raft.clone(), machine.orders(), id));
        let fatal = |error: openraft::error::Fatal<NodeId>| Error::Stopped(error.to_string());
        if raft.is_initialized().await.map_err(fatal)? {
            let metrics = raft.metrics().borrow().clone();
            let alone = metrics
                .membership_config
                .membership()
                .voter_ids()
                .all(|voter| voter == id);
            if alone {
                raft.trigger().elect().await.map_err(fatal)?;
            }
            Ok(alone)
        } else if first {
            raft.initialize(BTreeMap::from([(id, node)]))
                .await
                .map_err(|error| Error::Stopped(format!("Raft cannot be initialised: {error}")))?;
            Ok(true)
        } else {
            // It waits to be added by the leader.
            Ok(false)
        }
    }

    /// Proposes the schema's steps that were not applied yet, if this node leads.
    async fn migrate(&self) -> Result<(), Error> {
        if !self.leads() {
            return Ok(());
        }
        let steps = self.0.machine.ask(Order::Compare).await??;
        for step in self.0.machine.steps().iter().filter(|step| step.number > steps) {
            let (reply, answer) = oneshot::channel();
            let waiting = Waiting {
                id: Uuid::new_v4(),
                actor: "schema".to_owned(),
                work: Work::Step(*step, reply),
                named: false,
                proposed: false,
            };
            self.0.machine.tell(Order::Write(waiting))?;
            answer
                .await
                .map_err(|_| Error::Stopped("the database's thread has ended".to_owned()))??;
            tracing::info!(step = step.number, name = step.name, "schema step applied");
        }
        Ok(())
    }

    /// A snapshot read: the closure sees one state, with everything that was acknowledged on this node.
    pub async fn read<T, E, F>(&self, f: F) -> Result<T, E>
    where
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let permit = self.0.reading.clone().acquire_owned().await;
        let permit = permit.map_err(|_| E::from(Error::Stopped("it was closed".to_owned())))?;
        let readers = self.0.machine.shared().readers.get();
        let read = move || {
            let _permit = permit;
            readers.read(f)
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(result) => result,
            Err(error) => Err(E::from(Error::Other(format!("the read ended early: {error}")))),
        }
    }

    /// A transaction. The closure may run more than once (hence `Fn`), does no I/O and ends in < 2 ms; an `Err` undoes it.
    /// Returns when the write is durable and every projection has followed it.
    pub async fn write<T, E, F>(&self, actor: &str, f: F) -> Result<T, E>
    where
        F: Fn(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.submit(Uuid::new_v4(), false, actor, f).await
    }

    /// A write under an id that the caller keeps: after [`Error::Unknown`] it is safe to call this again with the same
    /// id. If the first did come through, the answer is [`Error::AlreadyApplied`].
    pub async fn write_once<T, E, F>(&self, id: Uuid, actor: &str, f: F) -> Result<T, E>
    where
        F: Fn(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.submit(id, true, actor, f).await
    }

    async fn submit<T, E, F>(&self, id: Uuid, named: bool, actor: &str, f: F) -> Result<T, E>
    where
        F: Fn(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let closed = || E::from(Error::Stopped("it was closed".to_owned()));
        let _permit = self.0.waiting.acquire().await.map_err(|_| closed())?;
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Call {
            f,
            value: None,
            reply,
        });
        let waiting = Waiting {
            id,
            actor: actor.to_owned(),
            work: Work::Write(job),
            named,
            proposed: false,
        };
        self.0.machine.tell(Order::Write(waiting)).map_err(E::from)?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(E::from(Error::Unknown(format!(
                "no answer within {} s",
                PATIENCE.as_secs()
            )))),
        }
    }

    /// Every write from now on. A receiver that lags is told so and reads the database anew.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.machine.shared().events.subscribe()
    }

    /// This node leads.
    pub fn leads(&self) -> bool {
        self.0.raft.server_metrics().borrow().state == ServerState::Leader
    }

    /// Raft, for `cluster`: it hands incoming messages to it and adds and removes nodes.
    pub fn raft(&self) -> &Raft {
        &self.0.raft
    }

    /// Figures for metrics and `doctor`.
    pub fn status(&self) -> Status {
        let metrics = self.0.raft.server_metrics().borrow().clone();
        let (log_bytes, log_entries) = self.0.log.held();
        Status {
            id: metrics.id,
            leader: metrics.current_leader,
            term: metrics.vote.leader_id().term,
            applied: self.0.machine.shared().applied.load(Ordering::Acquire),
            log_entries,
            log_bytes,
            log_file_bytes: self.0.log.size(),
            waiting: WAITING - self.0.waiting.available_permits(),
        }
    }

    /// The rolling hash of all entries that changed the state, with the index of the last of them, and the hash of every
    /// table: what nodes compare.
    pub async fn hashes(&self) -> Result<(u64, Hash, Vec<(String, Hash)>), Error> {
        self.read(|conn| {
            let (index, text): (i64, String) =
                conn.query_row("SELECT store_index, entries_hash FROM _allod_state", [], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?;
            let hash = parse_hex(&text).ok_or_else(|| Error::Corrupt("the rolling hash".to_owned()))?;
            Ok((index.unsigned_abs(), hash, schema::table_hashes(conn)?))
        })
        .await
    }

    /// Makes a snapshot now, so that the log can be purged up to it.
    pub async fn snapshot(&self) -> Result<(), Error> {
        self.0
            .raft
            .trigger()
            .snapshot()
            .await
            .map_err(|e| Error::Stopped(e.to_string()))
    }

    /// Closes the store and waits until its threads have let go of the files. Other clones stop working.
    pub async fn close(self) -> Result<(), Error> {
        let dir = self.0.machine.dir().to_owned();
        let _ = self.0.raft.shutdown().await;
        self.0.machine.tell(Order::Stop)?;
        drop(self);
        blocking(move || lock(&dir).map(drop)).await
    }
}

/// Stops the database's thread when dropped.
struct StopDatabase(Machine);

impl Drop for StopDatabase {
    fn drop(&mut self) {
        // If it has ended already, so much the better.
        let _ = self.0.tell(Order::Stop);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let (raft, stop) = (self.raft.clone(), StopDatabase(self.machine.clone()));
        // Raft first: it must not find its state machine gone. Without a runtime Raft's tasks are gone already, and
        // dropping the future stops the thread.
        self.runtime.spawn(async move {
            let _ = raft.shutdown().await;
            drop(stop);
        });
    }
}

/// Tells the database's thread what this node is, whenever that changes.
async fn watch(raft: Raft, orders: std::sync::mpsc::Sender<Order>, id: NodeId) {
    let mut metrics = raft.server_metrics();
    let full: tokio::sync::watch::Receiver<openraft::RaftMetrics<NodeId, Node>> = raft.metrics();
    let mut ticking = None;
    loop {
        let role = {
            let now = metrics.borrow_and_update();
            // A node on its own needs no heartbeats; as soon as there are two, they watch each other.
            let tick = now
                .membership_config
                .membership()
                .nodes()
                .any(|(node, _)| *node != id);
            if ticking != Some(tick) {
                ticking = Some(tick);
                raft.runtime_config().tick(tick);
            }
            match (now.state, now.current_leader) {
                (ServerState::Leader, _) => Role::Leader {
                    term: now.vote.leader_id().term,
                },
                (_, Some(leader)) if leader != id => Role::Follower { leader: Some(leader) },
                (ServerState::Shutdown, _) => Role::Stopped("it was closed".to_owned()),
                _ => Role::Unknown,
            }
        };
        if orders.send(Order::Role(role)).is_err() {
            return;
        }
        if metrics.changed().await.is_err() {
            let reason = match &full.borrow().running_state {
                Ok(()) => "it was closed".to_owned(),
                Err(fatal) => fatal.to_string(),
            };
            let _ = orders.send(Order::Role(Role::Stopped(reason)));
            return;
        }
    }
}
