//! Compute: flavors, key pairs, servers, quotas (Nova's rules), and the loop that brings servers to what they should be.
//!
//! ```text
//!   api ──▶ servers::{create, actions, …} ──▶ compute_servers row: wanted, generation, task_state
//!                                                    │ store event
//!                                                    ▼
//!                    reconciler (one task per server): state::plan(row, machine) ──▶ steps ──▶ drivers
//!                                                    │
//!                                                    ▼
//!                                          row: vm_state, power_state, fault
//! ```

pub mod actions;
pub mod aggregates;
pub mod attach;
pub(crate) mod boot;
mod certificates;
pub mod change;
pub mod disks;
pub mod flavors;
pub mod groups;
pub mod hosts;
mod images;
pub mod keypairs;
pub mod limits;
pub mod metadata;
pub mod migrations;
mod ports;
pub mod quotas;
mod reconciler;
mod scheduler;
pub mod security;
pub mod servers;
pub mod state;
mod time;
pub mod usage;
mod volumes;

pub use hosts::register;
pub use metadata::metadata_of;
pub use ports::Address;
pub use reconciler::{Settings, spawn, spawn_with};
pub use time::{Micros, now};

use crate::error::Kind;
use crate::policy::{Rule, Who, rule};

/// A column with a UUID's text, for rooms beside.
pub(crate) fn uuid_column(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<uuid::Uuid> {
    servers::uuid(row, column)
}

/// 404 with words that [`crate::Error::NotFound`] cannot form.
fn missing(message: impl Into<String>) -> crate::Error {
    crate::Error::Named {
        name: "itemNotFound",
        kind: Kind::NotFound,
        message: message.into(),
    }
}

/// Who may do what.
pub const POLICY: &[Rule] = &[
    rule("flavors", "list", Who::Reader),
    rule("flavors", "show", Who::Reader),
    rule("flavors", "create", Who::Admin),
    rule("flavors", "update", Who::Admin),
    rule("flavors", "delete", Who::Admin),
    rule("flavor_extra_specs", "list", Who::Reader),
    rule("flavor_extra_specs", "update", Who::Admin),
    rule("flavor_access", "list", Who::Admin),
    rule("flavor_access", "update", Who::Admin),
    rule("key_pairs", "list", Who::Reader),
    rule("key_pairs", "show", Who::Reader),
    rule("key_pairs", "create", Who::Member),
    rule("key_pairs", "delete", Who::Member),
    rule("key_pairs", "any_user", Who::Admin),
    rule("servers", "list", Who::Reader),
    rule("servers", "list_all_projects", Who::Admin),
    rule("servers", "show", Who::Reader),
    rule("servers", "show_host", Who::Admin),
    rule("servers", "create", Who::Member),
    rule("servers", "create_on_host", Who::Admin),
    rule("servers", "update", Who::Member),
    rule("servers", "delete", Who::Member),
    rule("servers", "action", Who::Member),
    rule("servers", "resize", Who::Member),
    rule("servers", "rebuild", Who::Member),
    rule("servers", "rescue", Who::Member),
    rule("servers", "shelve", Who::Member),
    rule("servers", "shelve_offload", Who::Admin),
    rule("servers", "unshelve_to_host", Who::Admin),
    rule("servers", "create_image", Who::Member),
    rule("servers", "attach_volume", Who::Member),
    rule("servers", "attach_interface", Who::Member),
    rule("servers", "migrate", Who::Admin),
    rule("servers", "evacuate", Who::Admin),
    rule("servers", "topology", Who::Reader),
    rule("servers", "migrations", Who::Admin),
    rule("servers", "external_events", Who::Admin),
    rule("servers", "console_log", Who::Member),
    rule("servers", "reset_state", Who::Admin),
    rule("servers", "unlock_others", Who::Admin),
    rule("servers", "diagnostics", Who::Admin),
    rule("server_actions", "list", Who::Reader),
    rule("server_actions", "show_events", Who::Admin),
    rule("server_groups", "list", Who::Reader),
    rule("server_groups", "list_all_projects", Who::Admin),
    rule("server_groups", "show", Who::Reader),
    rule("server_groups", "create", Who::Member),
    rule("server_groups", "delete", Who::Member),
    rule("availability_zones", "list", Who::Reader),
    rule("availability_zones", "detail", Who::Admin),
    rule("hypervisors", "list", Who::Admin),
    rule("services", "list", Who::Admin),
    rule("aggregates", "list", Who::Admin),
    rule("aggregates", "update", Who::Admin),
    rule("limits", "show", Who::Reader),
    rule("limits", "show_other_project", Who::Admin),
    rule("quota_sets", "show", Who::Reader),
    rule("quota_sets", "defaults", Who::Reader),
    rule("quota_sets", "update", Who::Admin),
    rule("quota_class_sets", "show", Who::Admin),
    rule("quota_class_sets", "update", Who::Admin),
    rule("usage", "show", Who::Reader),
    rule("usage", "list", Who::Admin),
];

/// Tables, and the mandatory flavors.
pub const SCHEMA: &str = include_str!("schema.sql");

/// What servers start with, since they need not start with firmware. NULL: a PC's firmware.
pub const SCHEMA_BOOT: &str = "ALTER TABLE compute_servers ADD COLUMN boot TEXT;";
