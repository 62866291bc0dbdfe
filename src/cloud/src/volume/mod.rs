//! Volumes, snapshots and backups (Cinder's rules), and the loop that makes their bytes.
//!
//! ```text
//!   api ──▶ volume::{create, actions, snapshots, backups, …} ──▶ rows with the state that says what has to be done
//!                                                                   │ store event
//!                                                                   ▼
//!                                    reconciler (one task per row): the step that its state asks for ──▶ drivers
//!                                                                   │
//!                                                                   ▼
//!                                                   row: the state after it; a message if it failed
//! ```
//! What may be asked when, and what follows from it, is drawn in [`status`]; servers' side of it in [`attachments`].

pub mod actions;
pub mod attach;
pub mod attachments;
pub mod backups;
mod create;
pub(crate) mod limits;
pub mod list;
pub mod messages;
pub mod pool;
pub mod qos;
pub mod quotas;
mod reconciler;
pub mod row;
pub mod services;
pub mod snapshots;
pub mod status;
pub mod transfers;
pub mod type_encryption;
pub mod types;
pub mod volumes;

pub use create::{MAX_SIZE, NewVolume, Place, create, create_for_server, reimaged};
pub use reconciler::spawn;
pub use row::{Origin, Pairs, Volume, find, get};
pub use volumes::delete_with_server;

use crate::policy::{Rule, Who, rule};

/// Who may do what. That a resource belongs to the caller's project each function checks beside.
pub const POLICY: &[Rule] = &[
    rule("volumes", "list", Who::Reader),
    rule("volumes", "list_all_projects", Who::Admin),
    rule("volumes", "show", Who::Reader),
    rule("volumes", "show_host", Who::Admin),
    rule("volumes", "create", Who::Member),
    rule("volumes", "update", Who::Member),
    rule("volumes", "delete", Who::Member),
    rule("volumes", "force_delete", Who::Admin),
    rule("volumes", "reset_status", Who::Admin),
    rule("volumes", "extend", Who::Member),
    rule("volumes", "retype", Who::Member),
    rule("volumes", "upload", Who::Member),
    rule("volumes", "attach", Who::Member),
    rule("volumes", "force_detach", Who::Admin),
    rule("volumes", "revert", Who::Member),
    rule("snapshots", "list", Who::Reader),
    rule("snapshots", "show", Who::Reader),
    rule("snapshots", "create", Who::Member),
    rule("snapshots", "update", Who::Member),
    rule("snapshots", "delete", Who::Member),
    rule("snapshots", "force_delete", Who::Admin),
    rule("snapshots", "reset_status", Who::Admin),
    rule("snapshots", "update_status", Who::Member),
    rule("backups", "list", Who::Reader),
    rule("backups", "show", Who::Reader),
    rule("backups", "create", Who::Member),
    rule("backups", "update", Who::Member),
    rule("backups", "restore", Who::Member),
    rule("backups", "delete", Who::Member),
    rule("backups", "force_delete", Who::Admin),
    rule("backups", "reset_status", Who::Admin),
    rule("backups", "export", Who::Admin),
    rule("backups", "import", Who::Admin),
    rule("volume_attachments", "list", Who::Reader),
    rule("volume_attachments", "show", Who::Reader),
    rule("volume_attachments", "create", Who::Member),
    rule("volume_attachments", "update", Who::Member),
    rule("volume_attachments", "delete", Who::Member),
    rule("volume_types", "list", Who::Reader),
    rule("volume_types", "show", Who::Reader),
    rule("volume_types", "create", Who::Admin),
    rule("volume_types", "update", Who::Admin),
    rule("volume_types", "delete", Who::Admin),
    rule("volume_type_extra_specs", "list", Who::Reader),
    rule("volume_type_extra_specs", "update", Who::Admin),
    rule("volume_type_access", "list", Who::Admin),
    rule("volume_type_access", "update", Who::Admin),
    rule("volume_default_types", "show", Who::Admin),
    rule("volume_default_types", "update", Who::Admin),
    rule("volume_qos_specs", "list", Who::Admin),
    rule("volume_qos_specs", "update", Who::Admin),
    rule("volume_transfers", "list", Who::Reader),
    rule("volume_transfers", "show", Who::Reader),
    rule("volume_transfers", "create", Who::Member),
    rule("volume_transfers", "accept", Who::Member),
    rule("volume_transfers", "delete", Who::Member),
    rule("volume_messages", "list", Who::Reader),
    rule("volume_messages", "show", Who::Reader),
    rule("volume_messages", "delete", Who::Member),
    rule("volume_quota_sets", "show", Who::Reader),
    rule("volume_quota_sets", "update", Who::Admin),
    rule("volume_limits", "show", Who::Reader),
    rule("volume_services", "list", Who::Admin),
    rule("volume_services", "update", Who::Admin),
    rule("volume_hosts", "list", Who::Admin),
    rule("volume_pools", "list", Who::Admin),
];

/// Tables, and the default type.
pub const SCHEMA: &str = include_str!("schema.sql");

/// Types that limit what volumes may be used.
pub const SCHEMA_CLASSES: &str = include_str!("classes.sql");
