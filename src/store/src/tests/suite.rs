//! openraft's own tests of a log and a state machine.

use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

use crate::log::{Directory, LogStore};
use crate::machine::database::Order;
use crate::machine::{Config, Machine};
use crate::raft::{StorageError, Types};
use std::sync::Arc;

struct Builder;

struct Guard {
    machine: Machine,
    _dir: TempDir,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.machine.tell(Order::Stop);
    }
}

impl StoreBuilder<Types, LogStore, Machine, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, LogStore, Machine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let disk = Directory::new(dir.path().join("log")).unwrap();
        let log = LogStore::open(Arc::new(disk), 64 << 10, ()).unwrap();
        log.set_durable(u64::MAX);
        let config = Config {
            id: 0,
            dir: dir.path().to_owned(),
            steps: super::STEPS,
            projections: Vec::new(),
            checkpoint_pages: 1000,
            vfs: None,
            free: crate::log::free_bytes,
        };
        let machine = Machine::open(config, None, 16, Arc::new(())).unwrap();
        Ok((
            Guard {
                machine: machine.clone(),
                _dir: dir,
            },
            log,
            machine,
        ))
    }
}

#[test]
fn openrafts_suite_passes() {
    Suite::test_all(Builder).unwrap();
}
