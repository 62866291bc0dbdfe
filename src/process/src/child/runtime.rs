//! Runtime files: how a daemon finds the children that an earlier one started.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::Process;

/// What is written down of a child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What it is: `switch`, `disk`, `guest` and so on.
    pub kind: String,
    /// Unique among children: also the file's name and the cgroup's.
    pub name: String,
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
    /// Numbers and times mean nothing after a reboot.
    pub boot_id: String,
    /// Its user.
    pub uid: u32,
    /// Its control socket, if it has one.
    pub control: Option<PathBuf>,
    /// What its owner wants to know of it later.
    #[serde(default)]
    pub note: serde_json::Value,
}

/// The folder with one file per child.
#[derive(Debug, Clone)]
pub struct Runtime {
    folder: PathBuf,
    boot_id: String,
}

impl Runtime {
    /// Use this folder; it is made if need be.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?
            .trim()
            .to_owned();
        Ok(Runtime {
            folder: folder.to_owned(),
            boot_id,
        })
    }

    /// This boot of the machine.
    pub(super) fn boot_id(&self) -> &str {
        &self.boot_id
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    /// Write a child down; whole or not at all. Survives the daemon, not the machine: so nothing is synced.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        let path = self.path(&record.name);
        let draft = path.with_extension("draft");
        fs::write(&draft, serde_json::to_vec(record)?)?;
        fs::rename(draft, path)
    }

    /// Strike a child off.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All children that are written down, by name; files that cannot be read are named in the log and left out.
    pub fn list(&self) -> io::Result<BTreeMap<String, Record>> {
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match fs::read(&path)
                .map_err(|e| e.to_string())
                .and_then(|bytes| serde_json::from_slice::<Record>(&bytes).map_err(|e| e.to_string()))
            {
                Ok(record) => drop(records.insert(record.name.clone(), record)),
                Err(error) => warn!(path = %path.display(), %error, "runtime file cannot be read"),
            }
        }
        Ok(records)
    }

    /// The child of this record, if it still runs.
    pub fn find(&self, record: &Record) -> io::Result<Option<Process>> {
        if record.boot_id == self.boot_id {
            Process::find(record.pid, record.start_time)
        } else {
            Ok(None)
        }
    }

    /// A user from this range that no child in the list has. Records of dead children count, too, until they are removed.
    pub(super) fn free_uid(&self, first: u32, count: u32) -> io::Result<Option<u32>> {
        let used: std::collections::BTreeSet<u32> = self.list()?.values().map(|r| r.uid).collect();
        Ok((first..first.saturating_add(count)).find(|uid| !used.contains(uid)))
    }
}
