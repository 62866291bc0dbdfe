//! Authorisation: one table, resource × action × role. A test enumerates all of it.

use crate::{Context, Error, Result};

/// Who may do something. A stronger role includes the weaker ones (`admin` > `manager` > `member` > `reader`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Any valid token.
    Anyone,
    /// `reader` on the scope.
    Reader,
    /// `member` on the scope.
    Member,
    /// `manager` on the scope (a domain, for identity).
    Manager,
    /// `admin`.
    Admin,
}

/// One row: on this resource, this action needs that role.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// As the API calls it, such as `servers`.
    pub resource: &'static str,
    /// Such as `create`, `show`, `list`, `update`, `delete`, or a named action.
    pub action: &'static str,
    /// The weakest role that suffices.
    pub who: Who,
}

/// Shorthand for a row.
pub const fn rule(resource: &'static str, action: &'static str, who: Who) -> Rule {
    Rule { resource, action, who }
}

/// All tables, one per service.
pub const TABLES: &[&[Rule]] = &[
    crate::identity::POLICY,
    crate::image::POLICY,
    crate::compute::POLICY,
    crate::network::POLICY,
];

impl Context {
    /// Checks the caller's role against the table. That a resource belongs to the caller's project is each rule's own
    /// matter: what a caller cannot see does not exist for it (404).
    ///
    /// # Errors
    /// 403 if the role is missing, or if no row allows the action at all.
    pub fn require(&self, resource: &str, action: &str) -> Result<()> {
        let row = TABLES.iter().flat_map(|t| t.iter()).find(|r| r.resource == resource && r.action == action);
        let allowed = match row.map(|r| r.who) {
            Some(Who::Anyone) => true,
            Some(Who::Reader) => ["reader", "member", "manager", "admin"].iter().any(|r| self.has_role(r)),
            Some(Who::Member) => ["member", "manager", "admin"].iter().any(|r| self.has_role(r)),
            Some(Who::Manager) => ["manager", "admin"].iter().any(|r| self.has_role(r)),
            Some(Who::Admin) => self.has_role("admin"),
            None => false,
        };
        if allowed {
            Ok(())
        } else {
            Err(Error::Forbidden(format!("Policy doesn't allow {resource}:{action} to be performed.")))
        }
    }
}
