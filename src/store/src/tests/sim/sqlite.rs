//! SQLite's files on the simulated disk: contents, locks, and the memory that connections share.

use std::collections::HashMap;
use std::ffi::c_int;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use rusqlite::ffi as vars;

use super::{Folder, Inode, Machine, Op, vfs, world};

/// What SQLite's file layer answers: a value, or one of SQLite's codes.
type Answer<T> = Result<T, c_int>;

/// The simulated machine that a directory's database files are on.
static MACHINES: LazyLock<Mutex<HashMap<String, Machine>>> = LazyLock::new(Mutex::default);

/// SQLite finds the files of this directory on this machine.
pub(crate) fn mount(dir: &Path, machine: &Machine) {
    vfs::register();
    let mut machines = MACHINES.lock().unwrap_or_else(PoisonError::into_inner);
    machines.insert(dir.display().to_string(), machine.clone());
}

fn locate(path: &str) -> Answer<(Machine, String)> {
    let (dir, name) = path.rsplit_once('/').ok_or(vars::SQLITE_CANTOPEN)?;
    let machines = MACHINES.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((
        machines.get(dir).cloned().ok_or(vars::SQLITE_CANTOPEN)?,
        name.to_owned(),
    ))
}

/// Who holds the locks of a file.
#[derive(Default)]
pub(super) struct Locks {
    shared: usize,
    reserved: bool,
    pending: bool,
    exclusive: bool,
}

/// The memory that connections to a database share, and its eight locks: −1 exclusive, else the number of readers.
#[derive(Default)]
pub(super) struct Shared {
    regions: Vec<&'static [AtomicU64]>,
    locks: [i32; 8],
    users: usize,
}

/// Regions that nobody uses. They are never freed, since SQLite holds plain pointers to them; so they are used again.
static REGIONS: Mutex<Vec<&'static [AtomicU64]>> = Mutex::new(Vec::new());

fn region(size: usize) -> &'static [AtomicU64] {
    let mut free = REGIONS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = free.iter().position(|region| region.len() * 8 == size) {
        let region = free.swap_remove(found);
        region.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        return region;
    }
    Box::leak(
        (0..size / 8)
            .map(|_| AtomicU64::new(0))
            .collect::<Vec<_>>()
            .into_boxed_slice(),
    )
}

/// One connection's hold on a file.
pub(crate) struct Handle {
    machine: Machine,
    inode: Inode,
    /// One of `SQLITE_LOCK_…`, which ascend.
    level: c_int,
    /// Which of the eight shared-memory locks this handle holds.
    held: [i32; 8],
    mapped: bool,
}

/// Opens a file; makes it if it may.
pub(crate) fn open(path: &str, create: bool) -> Answer<Handle> {
    let (machine, name) = locate(path)?;
    let inode = {
        let mut world = world(&machine);
        match world.inode(Folder::Database, &name) {
            Some(inode) => inode,
            None if create => world.create(Folder::Database, &name),
            None => return Err(vars::SQLITE_CANTOPEN),
        }
    };
    Ok(Handle {
        machine,
        inode,
        level: vars::SQLITE_LOCK_NONE,
        held: [0; 8],
        mapped: false,
    })
}

/// Removes a file's name.
pub(crate) fn delete(path: &str) -> Answer<()> {
    let (machine, name) = locate(path)?;
    let mut world = world(&machine);
    if world.inode(Folder::Database, &name).is_none() {
        return Err(vars::SQLITE_IOERR_DELETE_NOENT);
    }
    world.happen(Op::Unlink {
        folder: Folder::Database,
        name,
    });
    Ok(())
}

/// There is such a file.
pub(crate) fn exists(path: &str) -> Answer<bool> {
    let (machine, name) = locate(path)?;
    Ok(world(&machine).inode(Folder::Database, &name).is_some())
}

impl Handle {
    pub(crate) fn file_size(&mut self) -> Answer<usize> {
        Ok(world(&self.machine)
            .image
            .files
            .get(&self.inode)
            .map_or(0, Vec::len))
    }

    pub(crate) fn truncate(&mut self, length: usize) -> Answer<()> {
        world(&self.machine).happen(Op::Truncate {
            inode: self.inode,
            length,
        });
        Ok(())
    }

    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) -> Answer<usize> {
        world(&self.machine).happen(Op::Write {
            inode: self.inode,
            offset,
            bytes: data.to_vec(),
        });
        Ok(data.len())
    }

    pub(crate) fn read(&mut self, offset: usize, data: &mut [u8]) -> Answer<usize> {
        let world = world(&self.machine);
        let Some(file) = world.image.files.get(&self.inode) else {
            return Ok(0);
        };
        let end = file.len().min(offset + data.len());
        let Some(bytes) = file.get(offset..end) else {
            return Ok(0);
        };
        data[..bytes.len()].copy_from_slice(bytes);
        Ok(bytes.len())
    }

    pub(crate) fn sync(&mut self) -> Answer<()> {
        world(&self.machine).happen(Op::Sync { inode: self.inode });
        Ok(())
    }

    pub(crate) fn close(mut self) -> Answer<()> {
        self.unlock(vars::SQLITE_LOCK_NONE)
    }

    pub(crate) fn lock(&mut self, level: c_int) -> Answer<()> {
        let mut world = world(&self.machine);
        let locks = world.locks.entry(self.inode).or_default();
        if level <= self.level {
            return Ok(());
        }
        let mine = usize::from(self.level >= vars::SQLITE_LOCK_SHARED);
        let reserved = self.level >= vars::SQLITE_LOCK_RESERVED;
        match level {
            vars::SQLITE_LOCK_SHARED => {
                if locks.pending || locks.exclusive {
                    return Err(vars::SQLITE_BUSY);
                }
                locks.shared += 1;
            }
            vars::SQLITE_LOCK_RESERVED => {
                if locks.reserved {
                    return Err(vars::SQLITE_BUSY);
                }
                locks.reserved = true;
            }
            _ => {
                if locks.reserved && !reserved {
                    return Err(vars::SQLITE_BUSY);
                }
                (locks.reserved, locks.pending) = (true, true);
                if locks.shared > mine {
                    self.level = vars::SQLITE_LOCK_PENDING;
                    return Err(vars::SQLITE_BUSY);
                }
                locks.exclusive = true;
            }
        }
        self.level = level;
        Ok(())
    }

    pub(crate) fn unlock(&mut self, level: c_int) -> Answer<()> {
        let mut world = world(&self.machine);
        let locks = world.locks.entry(self.inode).or_default();
        if level >= self.level {
            return Ok(());
        }
        if self.level >= vars::SQLITE_LOCK_RESERVED {
            (locks.reserved, locks.pending, locks.exclusive) = (false, false, false);
        }
        if level == vars::SQLITE_LOCK_NONE {
            locks.shared -= 1;
        }
        self.level = level;
        Ok(())
    }

    pub(crate) fn check_reserved_lock(&mut self) -> Answer<bool> {
        Ok(world(&self.machine).locks.entry(self.inode).or_default().reserved)
    }

    pub(crate) fn shm_map(&mut self, index: usize, size: usize, extend: bool) -> Answer<Option<NonNull<u8>>> {
        let mut world = world(&self.machine);
        let shared = world.shared.entry(self.inode).or_default();
        if !self.mapped {
            self.mapped = true;
            shared.users += 1;
        }
        while shared.regions.len() <= index {
            if !extend {
                return Ok(None);
            }
            shared.regions.push(region(size));
        }
        Ok(Some(NonNull::from(&shared.regions[index][0]).cast()))
    }

    pub(crate) fn shm_lock(&mut self, offset: u32, count: u32, flags: c_int) -> Answer<()> {
        let mut world = world(&self.machine);
        let shared = world.shared.entry(self.inode).or_default();
        let (lock, exclusive) = (
            flags & vars::SQLITE_SHM_LOCK != 0,
            flags & vars::SQLITE_SHM_EXCLUSIVE != 0,
        );
        let range = offset as usize..(offset + count) as usize;
        for slot in range.clone() {
            let (all, mine) = (shared.locks[slot], self.held[slot]);
            let free = match (lock, exclusive) {
                (true, false) => all >= 0,
                (true, true) => all == mine.max(0) && all >= 0,
                (false, _) => true,
            };
            if !free {
                return Err(vars::SQLITE_BUSY);
            }
        }
        for slot in range {
            let (all, mine) = (&mut shared.locks[slot], &mut self.held[slot]);
            match (lock, exclusive) {
                (true, false) => {
                    if *mine == 0 {
                        *all += 1;
                        *mine = 1;
                    }
                }
                (true, true) => {
                    *all = -1;
                    *mine = -1;
                }
                (false, _) => {
                    match *mine {
                        1 => *all -= 1,
                        -1 => *all = 0,
                        _ => {}
                    }
                    *mine = 0;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn shm_unmap(&mut self) -> Answer<()> {
        if !std::mem::take(&mut self.mapped) {
            return Ok(());
        }
        let mut world = world(&self.machine);
        if let Some(shared) = world.shared.get_mut(&self.inode) {
            shared.users -= 1;
            if shared.users == 0 {
                let regions = world
                    .shared
                    .remove(&self.inode)
                    .map(|shared| shared.regions)
                    .unwrap_or_default();
                REGIONS
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend(regions);
            }
        }
        Ok(())
    }
}
