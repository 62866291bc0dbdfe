//! Identity: domains, projects, users, roles, tokens, catalog (Keystone's rules).

pub mod catalog;

use crate::policy::Rule;
use crate::{Context, Error, Result};

/// Who may do what.
pub const POLICY: &[Rule] = &[];
/// Tables.
pub const SCHEMA: &str = "";

/// Users, roles, revocations and token keys in memory.
#[derive(Default)]
pub struct Identity {}

impl Identity {
    /// Validates a token without SQL.
    pub fn validate(&self, token: &str) -> Result<Context> {
        let _ = token;
        Err(Error::Unauthorized(
            "The request you have made requires authentication.".into(),
        ))
    }
}
