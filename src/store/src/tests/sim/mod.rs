//! A disk in memory that remembers every write and every sync, so that a test can cut the power after any of them.
//!
//! What a crash leaves: everything that was synced, and any subset of the 512-byte sectors that were written since.
//! (Where two such writes overlap, keeping the older one alone is what reordering would leave, so subsets cover it.)
//! Names in a directory are kept up to some point in time, unless the directory was synced after it. Both the log's
//! files and SQLite's go through one history.

mod sqlite;
mod vfs;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::RngExt;
use rand::rngs::SmallRng;

pub(crate) use self::sqlite::mount;
use self::sqlite::{Locks, Shared};
pub(crate) use self::vfs::VFS;
use crate::log::{Disk, File};

const SECTOR: usize = 512;

type Inode = u64;

/// One thing that happened.
pub(crate) enum Op {
    Write {
        inode: Inode,
        offset: usize,
        bytes: Vec<u8>,
    },
    Truncate {
        inode: Inode,
        length: usize,
    },
    Sync {
        inode: Inode,
    },
    /// A file that is whole and synced from the start; only its name is not.
    Whole {
        inode: Inode,
        length: usize,
    },
    Link {
        folder: Folder,
        name: String,
        inode: Inode,
    },
    Rename {
        folder: Folder,
        from: String,
        to: String,
    },
    Unlink {
        folder: Folder,
        name: String,
    },
    SyncFolder {
        folder: Folder,
    },
    /// A client was told that its counter stands at this value.
    Acknowledged {
        client: usize,
        value: i64,
    },
}

/// The two directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Folder {
    Log,
    Database,
}

/// Files and names.
#[derive(Clone, Default)]
pub(crate) struct Image {
    pub names: HashMap<(Folder, String), Inode>,
    pub files: HashMap<Inode, Vec<u8>>,
}

impl Image {
    fn write(&mut self, inode: Inode, offset: usize, bytes: &[u8]) {
        let file = self.files.entry(inode).or_default();
        if file.len() < offset + bytes.len() {
            file.resize(offset + bytes.len(), 0);
        }
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Does it as if it were durable at once.
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Write { inode, offset, bytes } => self.write(*inode, *offset, bytes),
            Op::Truncate { inode, length } => self.files.entry(*inode).or_default().resize(*length, 0),
            Op::Whole { inode, length } => {
                self.files.insert(*inode, vec![0; *length]);
            }
            Op::Link { folder, name, inode } => {
                self.files.entry(*inode).or_default();
                self.names.insert((*folder, name.clone()), *inode);
            }
            Op::Rename { folder, from, to } => {
                if let Some(inode) = self.names.remove(&(*folder, from.clone())) {
                    self.names.insert((*folder, to.clone()), inode);
                }
            }
            Op::Unlink { folder, name } => {
                self.names.remove(&(*folder, name.clone()));
            }
            Op::Sync { .. } | Op::SyncFolder { .. } | Op::Acknowledged { .. } => {}
        }
    }
}

/// A machine's disk.
#[derive(Default)]
pub(crate) struct World {
    image: Image,
    next: Inode,
    /// Set while the history is kept.
    pub history: Option<Vec<Op>>,
    /// The machine lies: a sync does nothing. The test must find that out.
    pub lying: bool,
    locks: HashMap<Inode, Locks>,
    shared: HashMap<Inode, Shared>,
}

pub(crate) type Machine = Arc<Mutex<World>>;

fn world(machine: &Machine) -> MutexGuard<'_, World> {
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(crate) fn from(image: Image) -> Machine {
        let next = image.files.keys().max().copied().unwrap_or(0) + 1;
        Arc::new(Mutex::new(World {
            image,
            next,
            ..World::default()
        }))
    }

    fn happen(&mut self, op: Op) {
        self.image.apply(&op);
        let forgotten = self.lying && matches!(op, Op::Sync { .. } | Op::SyncFolder { .. });
        if let Some(history) = &mut self.history
            && !forgotten
        {
            history.push(op);
        }
    }

    fn create(&mut self, folder: Folder, name: &str) -> Inode {
        self.next += 1;
        let inode = self.next;
        self.happen(Op::Link {
            folder,
            name: name.to_owned(),
            inode,
        });
        inode
    }

    fn inode(&self, folder: Folder, name: &str) -> Option<Inode> {
        self.image.names.get(&(folder, name.to_owned())).copied()
    }
}

pub(crate) fn acknowledge(machine: &Machine, client: usize, value: i64) {
    world(machine).happen(Op::Acknowledged { client, value });
}

/// Somebody removes a file.
pub(crate) fn remove(machine: &Machine, folder: Folder, name: &str) -> bool {
    world(machine)
        .image
        .names
        .remove(&(folder, name.to_owned()))
        .is_some()
}

pub(crate) fn sync_database_folder(machine: &Machine) {
    world(machine).happen(Op::SyncFolder {
        folder: Folder::Database,
    });
}

/// Follows a history and knows what a crash at this moment may leave.
pub(crate) struct Follower<'a> {
    history: &'a [Op],
    pub at: usize,
    durable: Image,
    /// Not synced, per file, in order.
    pending: HashMap<Inode, Vec<&'a Op>>,
    names: Vec<&'a Op>,
    /// The highest acknowledged value of every client.
    pub acknowledged: HashMap<usize, i64>,
}

impl<'a> Follower<'a> {
    pub(crate) fn new(history: &'a [Op]) -> Follower<'a> {
        Follower {
            history,
            at: 0,
            durable: Image::default(),
            pending: HashMap::new(),
            names: Vec::new(),
            acknowledged: HashMap::new(),
        }
    }

    /// One step further.
    pub(crate) fn step(&mut self) {
        let op = &self.history[self.at];
        self.at += 1;
        match op {
            Op::Write { inode, .. } | Op::Truncate { inode, .. } => {
                self.pending.entry(*inode).or_default().push(op)
            }
            Op::Whole { .. } => self.durable.apply(op),
            Op::Sync { inode } => {
                for op in self.pending.remove(inode).unwrap_or_default() {
                    self.durable.apply(op);
                }
                // SQLite's own file layer syncs the directory when it first syncs a new file.
                let made = self.names.iter().find_map(|op| match op {
                    Op::Link {
                        inode: made,
                        folder: Folder::Database,
                        ..
                    } if made == inode => Some(Folder::Database),
                    _ => None,
                });
                if let Some(folder) = made {
                    self.sync_folder(folder);
                }
            }
            Op::Link { .. } | Op::Rename { .. } | Op::Unlink { .. } => self.names.push(op),
            Op::SyncFolder { folder } => self.sync_folder(*folder),
            Op::Acknowledged { client, value } => {
                self.acknowledged.insert(*client, *value);
            }
        }
    }

    fn sync_folder(&mut self, synced: Folder) {
        for op in std::mem::take(&mut self.names) {
            match op {
                Op::Link { folder, .. } | Op::Rename { folder, .. } | Op::Unlink { folder, .. }
                    if *folder == synced =>
                {
                    self.durable.apply(op);
                }
                _ => self.names.push(op),
            }
        }
    }

    /// What is left after a crash now.
    pub(crate) fn crash(&self, random: &mut SmallRng) -> Image {
        let mut image = self.durable.clone();
        // Each crash has its own luck: from "nothing made it" to "everything did".
        let luck: f64 = match random.random_range(0..4) {
            0 => 0.0,
            1 => 1.0,
            _ => random.random_range(0.0..1.0),
        };
        for (&inode, ops) in &self.pending {
            for op in ops {
                match op {
                    Op::Write { offset, bytes, .. } => {
                        let mut from = 0;
                        while from < bytes.len() {
                            let to = bytes
                                .len()
                                .min((offset + from) / SECTOR * SECTOR + SECTOR - offset);
                            if random.random_bool(luck) {
                                image.write(inode, offset + from, &bytes[from..to]);
                            }
                            from = to;
                        }
                    }
                    op => {
                        if random.random_bool(luck) {
                            image.apply(op);
                        }
                    }
                }
            }
        }
        let kept = random.random_range(0..=self.names.len());
        for op in &self.names[..kept] {
            image.apply(op);
        }
        image
    }
}

// The log's files.

/// The log's directory on a simulated disk.
pub(crate) struct SimDisk(pub Machine);

struct SimFile {
    machine: Machine,
    inode: Inode,
}

fn missing() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let world = world(&self.0);
        Ok(world
            .image
            .names
            .keys()
            .filter(|(f, _)| *f == Folder::Log)
            .map(|(_, name)| name.clone())
            .collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let inode = world(&self.0).inode(Folder::Log, name).ok_or_else(missing)?;
        Ok(Arc::new(SimFile {
            machine: self.0.clone(),
            inode,
        }))
    }

    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn File>> {
        let mut world = world(&self.0);
        let inode = world.create(Folder::Log, name);
        world.happen(Op::Whole {
            inode,
            length: size as usize,
        });
        Ok(Arc::new(SimFile {
            machine: self.0.clone(),
            inode,
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = world(&self.0);
        world.inode(Folder::Log, from).ok_or_else(missing)?;
        world.happen(Op::Rename {
            folder: Folder::Log,
            from: from.to_owned(),
            to: to.to_owned(),
        });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = world(&self.0);
        world.inode(Folder::Log, name).ok_or_else(missing)?;
        world.happen(Op::Unlink {
            folder: Folder::Log,
            name: name.to_owned(),
        });
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        world(&self.0).happen(Op::SyncFolder { folder: Folder::Log });
        Ok(())
    }

    fn place(&self) -> String {
        "simulated".to_owned()
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(world(&self.machine)
            .image
            .files
            .get(&self.inode)
            .map_or(0, Vec::len) as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let world = world(&self.machine);
        let file = world.image.files.get(&self.inode).ok_or_else(missing)?;
        let offset = offset as usize;
        let bytes = file
            .get(offset..offset + buffer.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let op = Op::Write {
            inode: self.inode,
            offset: offset as usize,
            bytes: bytes.to_vec(),
        };
        world(&self.machine).happen(op);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        world(&self.machine).happen(Op::Sync { inode: self.inode });
        Ok(())
    }
}
