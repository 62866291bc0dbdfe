//! Secrets (Barbican's rules): what only a project's members may read, encrypted in the database.
//!
//! ```text
//!   root key (a file, never a row) ──wraps──▶ project's key (a row) ──AES-256-GCM──▶ payload (a row)
//! ```
//! Each payload is bound to its secret's id, so that rows cannot be exchanged. When a project is removed its key goes
//! with it: whatever copies of its rows remain cannot be read.
//!
//! A cloud's administrators do not read the secrets of projects that they are not in.

mod acls;
mod consumers;
mod containers;
mod metadata;
mod orders;
mod quotas;
mod secrets;
#[cfg(test)]
mod tests;
mod vault;

use rusqlite::Connection;

pub use acls::{Acl, AclChange};
pub use consumers::{Consumer, ContainerConsumer};
pub use containers::{Container, NewContainer};
pub use orders::{KeyOrder, Order};
pub use quotas::{Limits, Resource};
pub use secrets::{Filter, KINDS, NewSecret, Payload, Secret, SortKey, TimeKey};

/// What is done with the access lists of secrets and containers.
pub mod acl {
    pub use super::acls::{remove, set, show};
}

/// What is done with consumers of secrets and containers.
pub mod consumer {
    pub use super::consumers::{
        add, add_to_container, list, list_of_container, remove, remove_from_container,
    };
}

/// What is done with containers.
pub mod container {
    pub use super::containers::{add_secret, create, delete, list, remove_secret, show};
}

/// What is done with the free metadata of secrets.
pub mod meta {
    pub use super::metadata::{Put, list, put, remove, replace};
}

/// What is done with orders.
pub mod order {
    pub use super::orders::{create, delete, list, show};
}

/// What is done with quotas.
pub mod quota {
    pub use super::quotas::{list, own, reset, show, update};
}

pub use secrets::{create, delete, list, payload, set_payload, show};

use crate::policy::{Rule, Who, rule};
use crate::{Error, Result};

/// Who may do what. Lists of access (ACLs) are checked beside.
pub const POLICY: &[Rule] = &[
    rule("secrets", "list", Who::Reader),
    rule("secrets", "show", Who::Reader),
    rule("secrets", "payload", Who::Member),
    rule("secrets", "create", Who::Member),
    rule("secrets", "update", Who::Member),
    rule("secrets", "delete", Who::Member),
    rule("secret_metadata", "show", Who::Reader),
    rule("secret_metadata", "update", Who::Member),
    rule("secret_consumers", "list", Who::Reader),
    rule("secret_consumers", "update", Who::Member),
    rule("secret_acls", "show", Who::Reader),
    rule("secret_acls", "update", Who::Member),
    rule("secret_containers", "list", Who::Reader),
    rule("secret_containers", "show", Who::Reader),
    rule("secret_containers", "create", Who::Member),
    rule("secret_containers", "update", Who::Member),
    rule("secret_containers", "delete", Who::Member),
    rule("secret_orders", "list", Who::Reader),
    rule("secret_orders", "show", Who::Reader),
    rule("secret_orders", "create", Who::Member),
    rule("secret_orders", "delete", Who::Member),
    rule("secret_quotas", "own", Who::Reader),
    rule("secret_quotas", "list", Who::Admin),
    rule("secret_quotas", "update", Who::Admin),
];

/// Tables.
pub const SCHEMA: &str = include_str!("schema.sql");

/// The longest name.
const MAX_NAME: usize = 255;

fn check_name(field: &str, name: Option<&str>) -> Result<()> {
    match name {
        Some(name) if name.chars().count() > MAX_NAME || name.contains(char::is_control) => {
            Err(Error::BadRequest(format!(
                "Provided object does not match schema: '{field}' has at most {MAX_NAME} printable characters."
            )))
        }
        _ => Ok(()),
    }
}

/// A part of a list: how many to leave out, and how many to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// How many to leave out.
    pub offset: usize,
    /// How many to show.
    pub limit: usize,
}

impl Part {
    fn of<T>(self, all: Vec<T>) -> (Vec<T>, usize) {
        let total = all.len();
        (
            all.into_iter().skip(self.offset).take(self.limit).collect(),
            total,
        )
    }
}

/// Removes all that a project has here, its key first of all.
pub(crate) fn remove_of_project(conn: &Connection, project: &str) -> Result<()> {
    for sql in [
        "DELETE FROM secret_keys WHERE project_id = ?1",
        "DELETE FROM secret_metadata WHERE secret_id IN (SELECT id FROM secrets WHERE project_id = ?1)",
        "DELETE FROM secret_consumers WHERE secret_id IN (SELECT id FROM secrets WHERE project_id = ?1)",
        "DELETE FROM secret_acls WHERE target_id IN (SELECT id FROM secrets WHERE project_id = ?1
             UNION ALL SELECT id FROM secret_containers WHERE project_id = ?1)",
        "DELETE FROM secret_container_refs WHERE container_id IN
             (SELECT id FROM secret_containers WHERE project_id = ?1)",
        "DELETE FROM secret_container_consumers WHERE container_id IN
             (SELECT id FROM secret_containers WHERE project_id = ?1)",
        "DELETE FROM secret_containers WHERE project_id = ?1",
        "DELETE FROM secret_orders WHERE project_id = ?1",
        "DELETE FROM secret_quotas WHERE project_id = ?1",
        "DELETE FROM secrets WHERE project_id = ?1",
    ] {
        conn.prepare_cached(sql)?.execute([project])?;
    }
    Ok(())
}
