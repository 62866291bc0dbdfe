//! Placement: resource providers (this cloud's nodes), what they have, and who has taken what of it.
//!
//! These rows are the scheduler's: compute claims a server's share here, in the write that puts the server on its node
//! ([`allocations::claim`]), and over-commitment is what the inventories' ratios say.

pub mod allocations;
pub mod candidates;
pub mod names;
pub mod node;
pub mod providers;

use crate::error::Kind;
use crate::policy::{Rule, Who, rule};
use crate::{Error, Result};

/// Who may do what: operators alone.
pub const POLICY: &[Rule] = &[
    rule("resource_providers", "list", Who::Admin),
    rule("resource_providers", "show", Who::Admin),
    rule("resource_providers", "create", Who::Admin),
    rule("resource_providers", "update", Who::Admin),
    rule("resource_providers", "delete", Who::Admin),
    rule("resource_classes", "list", Who::Admin),
    rule("resource_classes", "update", Who::Admin),
    rule("traits", "list", Who::Admin),
    rule("traits", "update", Who::Admin),
    rule("allocations", "list", Who::Admin),
    rule("allocations", "update", Who::Admin),
    rule("allocation_candidates", "list", Who::Admin),
    rule("usages", "list", Who::Admin),
];

/// Tables.
pub const SCHEMA: &str = include_str!("schema.sql");

/// 404.
fn missing(message: impl Into<String>) -> Error {
    Error::Named {
        name: "placement.undefined_code",
        kind: Kind::NotFound,
        message: message.into(),
    }
}

/// 409 with the code that clients try again for.
fn concurrent(message: impl Into<String>) -> Error {
    Error::Named {
        name: "placement.concurrent_update",
        kind: Kind::Conflict,
        message: message.into(),
    }
}

/// 409.
fn in_use(name: &'static str, message: impl Into<String>) -> Error {
    Error::Named {
        name,
        kind: Kind::Conflict,
        message: message.into(),
    }
}

/// A number of a row as the API has it.
fn count(value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| Error::Internal("a negative amount in placement's tables".into()))
}
