//! What uploads may take: places, bytes of a project, and the disk's last bytes never.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::sys::statvfs::statvfs;
use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::{Error, Result};

/// Uploads at once; more are told to come again. Each holds a file of up to the largest image's size.
const UPLOADS: usize = 16;
/// Of one project: whoever sends slowly keeps nobody else from sending.
pub(super) const UPLOADS_PER_PROJECT: usize = 4;
/// What uploads leave free on their disk, for the database may lie there too: a twentieth, at most this many bytes.
const RESERVE: u64 = 10 << 30;

static TAKEN: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

/// A place among the uploads; dropped, it is free again.
#[derive(Debug)]
pub(super) struct Place {
    project: String,
}

/// A place for this project, if there is one left.
pub(super) fn place(project: &str) -> Result<Place> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let all: usize = taken.values().sum();
    let own = taken.get(project).copied().unwrap_or(0);
    if all >= UPLOADS || own >= UPLOADS_PER_PROJECT {
        return Err(Error::Unavailable(
            "Too many uploads at once; try again in a moment.".into(),
        ));
    }
    taken.insert(project.to_owned(), own + 1);
    Ok(Place {
        project: project.to_owned(),
    })
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.project) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.project)),
        }
    }
}

/// Refuses an image of so many bytes if its project's images, staged ones included, would have more than `limit` with it.
pub(super) fn check_bytes(conn: &Connection, limit: u64, owner: &str, image: Uuid, bytes: u64) -> Result<()> {
    let used: i64 = conn
        .prepare_cached("SELECT coalesce(sum(size), 0) FROM images WHERE owner = ?1 AND id <> ?2")?
        .query_row(params![owner, image.to_string()], |row| row.get(0))?;
    let total = u64::try_from(used).unwrap_or(0).saturating_add(bytes);
    if total <= limit {
        return Ok(());
    }
    Err(Error::TooLarge(format!(
        "Request exceeded quota: project {owner} is over its limit for image_size_total: its images would have {total} \
         bytes, {limit} are allowed."
    )))
}

/// Refuses to go on when only the reserve is left on the disk of this path.
pub(super) fn check_space(path: &Path) -> Result<()> {
    // What cannot be asked shows when it is written.
    let Ok(disk) = statvfs(path) else { return Ok(()) };
    let unit = disk.fragment_size();
    let reserve = (disk.blocks().saturating_mul(unit) / 20).min(RESERVE);
    if disk.blocks_available().saturating_mul(unit) >= reserve {
        return Ok(());
    }
    tracing::error!(path = %path.display(), reserve, "uploads are refused: free some space on this disk");
    Err(Error::Unavailable(
        "There is not enough disk space on the image storage media.".into(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_project_leaves_places_to_others() {
        let places: Vec<Place> = (0..UPLOADS_PER_PROJECT).map(|_| place("slow").unwrap()).collect();
        assert!(place("slow").is_err());
        let other = place("other").unwrap();
        drop(places);
        drop(place("slow").unwrap());
        drop(other);
        let taken = TAKEN.lock().unwrap();
        assert!(!taken.contains_key("slow") && !taken.contains_key("other"));
    }
}
