//! A node's id: made once, kept in a file, never that of another node.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// The id of a node: a random UUID, whose low 64 bits are its number in Raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(pub Uuid);

/// Why the node's id could not be had.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The file could not be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file holds something else.
    #[error(
        "{0} does not hold a UUID; restore it from a backup: a node that changes its id is a stranger to its cloud"
    )]
    Damaged(PathBuf),
}

impl NodeId {
    /// Reads the id, or makes it if there is no file yet.
    pub fn load_or_create(path: &Path) -> Result<NodeId, NodeError> {
        let failed = |error| NodeError::Io {
            path: path.to_owned(),
            error,
        };
        match fs::read_to_string(path) {
            Ok(text) => text
                .trim()
                .parse()
                .map(NodeId)
                .map_err(|_| NodeError::Damaged(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let id = Uuid::new_v4();
                let part = path.with_extension("part");
                let mut file = fs::File::create(&part).map_err(failed)?;
                writeln!(file, "{id}")
                    .and_then(|()| file.sync_all())
                    .map_err(failed)?;
                fs::rename(&part, path).map_err(failed)?;
                Ok(NodeId(id))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// The node's number in Raft; never 0.
    pub fn raft(self) -> u64 {
        (self.0.as_u64_pair().1).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_made_once_and_a_damaged_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node-id");
        let id = NodeId::load_or_create(&path).unwrap();
        assert_eq!(id, NodeId::load_or_create(&path).unwrap());
        assert_ne!(id.raft(), 0);
        fs::write(&path, "x").unwrap();
        assert!(matches!(
            NodeId::load_or_create(&path),
            Err(NodeError::Damaged(_))
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "x");
    }
}
