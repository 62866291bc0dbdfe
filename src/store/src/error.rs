//! What can go wrong. The doc comment of a variant says when it happens and what to do.

use std::sync::Arc;

/// Every failure of the store. `Clone`, because one failed batch answers many waiting writers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// SQLite refused a statement, or a closure returned SQLite's error.
    #[error("database: {0}")]
    Sqlite(#[source] Arc<rusqlite::Error>),
    /// Reading or writing the log, a snapshot or the state's directory failed.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted, with the path.
        what: String,
        /// The operating system's answer.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The file system that holds the state is full. Nothing was lost; writes work again once there is room.
    #[error(
        "the state's file system is full ({free} bytes free, {needed} needed): make room in {dir}; nothing was lost"
    )]
    DiskFull {
        /// Bytes that are free now.
        free: u64,
        /// Bytes that a write needs.
        needed: u64,
        /// The state's directory.
        dir: String,
    },
    /// One write changes more than fits into one entry: delete or insert in chunks.
    #[error("this write changes {size} bytes and an entry holds at most {limit}: split it into chunks")]
    TooLarge {
        /// Bytes of the entry, or where counting stopped.
        size: usize,
        /// The bound.
        limit: usize,
    },
    /// Another node leads: the request belongs there.
    #[error("this node does not lead the state; the leader is {}", leader.map_or("not known".to_owned(), |id| format!("node {id}")))]
    NotLeader {
        /// The leader's node id, if known.
        leader: Option<u64>,
    },
    /// The write was proposed and its fate is not known: retry under the same request id.
    #[error("the outcome of this write is not known: {0}")]
    Unknown(String),
    /// A request of this id was applied before; its answer is gone.
    #[error("request {0} was applied before")]
    AlreadyApplied(uuid::Uuid),
    /// This node's state is not what the leader's is. It stops rather than spread the difference.
    #[error(
        "this node's state diverged at entry {index}: {reason}; the node has stopped: remove it from the cluster and join it again, or restore a backup"
    )]
    Diverged {
        /// The log index of the entry that could not be applied.
        index: u64,
        /// What did not fit.
        reason: String,
    },
    /// The binary's schema and the database's do not go together.
    #[error("schema: {0}")]
    Schema(String),
    /// The log on disk is damaged where it had been synced: this is no crash's doing.
    #[error("the log is damaged: {0}")]
    Corrupt(String),
    /// Another process holds this directory.
    #[error("{0} is in use by another process")]
    InUse(String),
    /// The store has stopped; the text says why.
    #[error("the store has stopped: {0}")]
    Stopped(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Error::Sqlite(Arc::new(error))
    }
}

impl Error {
    /// Wraps an I/O error with what was attempted.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io {
            what: what.into(),
            source: Arc::new(source),
        }
    }

    /// The error says that the disk has no room: waiting may heal it.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Error::DiskFull { .. } => true,
            Error::Io { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            Error::Sqlite(error) => error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull),
            _ => false,
        }
    }
}
