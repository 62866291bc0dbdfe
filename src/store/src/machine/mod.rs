//! Raft's state machine: the SQLite database.
//!
//! [`Machine`] is what openraft sees; the work is done by one thread ([`database`]).

pub(crate) mod apply;
pub(crate) mod database;
pub(crate) mod files;
pub(crate) mod state;

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak, mpsc};

use openraft::storage::RaftStateMachine;
use openraft::{AnyError, RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageIOError};
use tokio::sync::{broadcast, oneshot};

use self::database::{Database, Order};
use crate::command::Response;
use crate::error::Error;
use crate::event::{Event, Projection};
use crate::log::LogStore;
use crate::raft::{Entry, LogId, Membership, Node, NodeId, StorageError, Types};
use crate::reader::{Pool, Readers};
use crate::schema::Step;
use crate::snapshot;

/// How the state is held.
pub(crate) struct Config {
    pub id: NodeId,
    pub dir: PathBuf,
    pub steps: &'static [Step],
    pub projections: Vec<Arc<dyn Projection>>,
    /// Pages of SQLite's write-ahead log that start a checkpoint.
    pub checkpoint_pages: u32,
    /// SQLite's file layer; another one in tests.
    pub vfs: Option<&'static str>,
    /// Free bytes of the directory's file system.
    pub free: fn(&Path) -> std::io::Result<u64>,
}

/// What this node is to the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// Not known yet: writes wait.
    Unknown,
    Leader {
        term: u64,
    },
    Follower {
        leader: Option<NodeId>,
    },
    /// Raft has stopped.
    Stopped(String),
}

/// What the database's thread shares with everybody.
pub(crate) struct Shared {
    pub readers: Pool,
    pub events: broadcast::Sender<Arc<Event>>,
    pub applied: AtomicU64,
}

/// Held by whatever writes into the directory: the directory's lock.
pub(crate) type Keep = Arc<dyn Any + Send + Sync>;

/// Raft's state machine. The database's thread ends when the last clone is gone, or when it is told to stop.
#[derive(Clone)]
pub(crate) struct Machine {
    config: Arc<Config>,
    shared: Arc<Shared>,
    orders: mpsc::Sender<Order>,
    keep: Weak<dyn Any + Send + Sync>,
}

impl Machine {
    /// Opens the database and starts its thread. `keep` is held until the thread ends.
    pub(crate) fn open(
        config: Config,
        log: Option<LogStore>,
        events: usize,
        keep: Keep,
    ) -> Result<Machine, Error> {
        let config = Arc::new(config);
        let (orders, receiver) = mpsc::channel();
        let shared = Arc::new(Shared {
            readers: Pool::new(Readers::new(PathBuf::new(), config.vfs)),
            events: broadcast::channel(events).0,
            applied: AtomicU64::new(0),
        });
        let database = Database::open(config.clone(), shared.clone(), log)?;
        let generation = files::current(&config.dir)?.unwrap_or(1);
        shared
            .readers
            .swap(Readers::new(files::path(&config.dir, generation), config.vfs));
        let held = Arc::downgrade(&keep);
        std::thread::Builder::new()
            .name("store-database".to_owned())
            .spawn(move || {
                let _keep = keep;
                database.run(&receiver);
            })
            .map_err(Error::io("start the database's thread"))?;
        Ok(Machine {
            config,
            shared,
            orders,
            keep: held,
        })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.config.dir
    }

    pub(crate) fn steps(&self) -> &'static [Step] {
        self.config.steps
    }

    /// Sends an order.
    pub(crate) fn tell(&self, order: Order) -> Result<(), Error> {
        self.orders
            .send(order)
            .map_err(|_| Error::Stopped("the database's thread has ended".to_owned()))
    }

    pub(crate) fn orders(&self) -> mpsc::Sender<Order> {
        self.orders.clone()
    }

    /// Sends an order and waits for its answer.
    pub(crate) async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.tell(order(reply))?;
        answer
            .await
            .map_err(|_| Error::Stopped("the database's thread has ended".to_owned()))
    }
}

fn storage(error: &Error) -> StorageError {
    StorageIOError::write_state_machine(AnyError::new(error)).into()
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        self.ask(Order::Applied).await.map_err(|e| storage(&e))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Response>, StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries = entries.into_iter().collect();
        self.ask(|reply| Order::Apply(entries, reply))
            .await
            .and_then(|r| r)
            .map_err(|e| storage(&e))
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<tokio::fs::File>, StorageError> {
        let file = snapshot::receive(&self.config.dir)
            .await
            .map_err(|e| storage(&e))?;
        Ok(Box::new(file))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<NodeId, Node>,
        file: Box<tokio::fs::File>,
    ) -> Result<(), StorageError> {
        self.install(meta, *file).await.map_err(|e| storage(&e))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        snapshot::current(&self.config.dir).await.map_err(|e| storage(&e))
    }
}

impl Machine {
    async fn install(&self, meta: &SnapshotMeta<NodeId, Node>, file: tokio::fs::File) -> Result<(), Error> {
        let generation = self.ask(Order::Generation).await? + 1;
        let closed = || Error::Stopped("it was closed".to_owned());
        let keep = self.keep.upgrade().ok_or_else(closed)?;
        snapshot::unpack(&self.config.dir, meta, file, generation, keep).await?;
        let expected = meta.last_log_id;
        self.ask(|reply| Order::Install {
            generation,
            expected,
            reply,
        })
        .await?
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let pause = std::time::Duration::from_secs(5);
        // Raft does not wait for a snapshot when it stops. The next to open this directory does.
        let closed = || storage(&Error::Stopped("it was closed".to_owned()));
        let keep = self.keep.upgrade().ok_or_else(closed)?;
        let built = loop {
            let readers = self.shared.readers.get();
            match snapshot::build(&self.config.dir, readers, keep.clone()).await {
                // openraft stops for good at an error; a full disk is no reason for that.
                Err(error) if error.is_full() => {
                    tracing::warn!(%error, "the disk is full: the snapshot waits");
                    tokio::time::sleep(pause).await;
                }
                built => break built.map_err(|e| storage(&e))?,
            }
        };
        // What the snapshot holds is durable in the database, too, before the log forgets it.
        for _ in 0..100 {
            match self.ask(Order::Checkpoint).await {
                Ok(Ok(true)) | Err(_) => break,
                Ok(Ok(false)) | Ok(Err(_)) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
        Ok(built)
    }
}
