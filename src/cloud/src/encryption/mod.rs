//! Keys of disks, and which disk has which.
//!
//! ```text
//!   root key (a file, never a row)
//!     └─▶ domain's key ─▶ project's key ─▶ data key of a lineage ─▶ AES-256-XTS in the volume's owner
//! ```
//! A **lineage** is an image in a project, or a volume that began empty, with all volumes, snapshots and clones that descend from it: they
//! share blocks, and so must share a key. The first volume of an image in a project has the image copied and encrypted once; all
//! others are clones of that.
//!
//! Every level above the data keys can be exchanged without a byte of data being written again ([`rotate_domain`],
//! [`rotate_project`], and by themselves with time: [`spawn`]). When nothing of a lineage is left, its key is removed, and with a
//! project all of its keys: whatever copies of its bytes remain cannot be read.
//!
//! Which lineage a file is of, the file itself says (`disk::pool::lineage`); the rows here say which lineages are still needed.
//! Before bytes appear, their row does, and a row goes after its bytes: a crash may leave a key too many, never one too few.
//!
//! Each time a data key is decrypted an event says for what, under the target `audit`.

mod files;
mod kek;
mod keys;
#[cfg(test)]
mod tests;
mod upkeep;

pub use files::{
    back_up, create_volume, delete_backup, delete_snapshot, delete_volume, is_encrypted, restore_backup,
    revert_volume, snapshot_volume,
};
pub(crate) use files::{encrypted, transfer};
pub(crate) use kek::Kek;
pub use keys::{Keyring, rotate_domain, rotate_project};
pub use upkeep::spawn;

use rusqlite::Connection;

use crate::Result;

/// Tables.
pub const SCHEMA: &str = include_str!("schema.sql");

/// Removes all keys of a project: what it had on disk cannot be read any more.
pub(crate) fn remove_of_project(conn: &Connection, project: &str) -> Result<()> {
    for sql in [
        "DELETE FROM encryption_projects WHERE project_id = ?1",
        "DELETE FROM encryption_lineages WHERE project_id = ?1",
        "DELETE FROM encryption_files WHERE project_id = ?1",
    ] {
        conn.prepare_cached(sql)?.execute([project])?;
    }
    Ok(())
}

/// Removes a domain's key.
pub(crate) fn remove_of_domain(conn: &Connection, domain: &str) -> Result<()> {
    conn.prepare_cached("DELETE FROM encryption_domains WHERE domain_id = ?1")?
        .execute([domain])?;
    Ok(())
}
