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
    Rule {
        resource,
        action,
        who,
    }
}

/// All tables, one per service.
pub const TABLES: &[&[Rule]] = &[
    crate::identity::POLICY,
    crate::image::POLICY,
    crate::compute::POLICY,
    crate::network::POLICY,
    crate::volume::POLICY,
    crate::secret::POLICY,
    crate::placement::POLICY,
];

impl Context {
    /// Checks the caller's role against the table. That a resource belongs to the caller's project is each rule's own
    /// matter: what a caller cannot see does not exist for it (404).
    ///
    /// # Errors
    /// 403 if the role is missing, or if no row allows the action at all.
    pub fn require(&self, resource: &str, action: &str) -> Result<()> {
        let row = TABLES
            .iter()
            .flat_map(|t| t.iter())
            .find(|r| r.resource == resource && r.action == action);
        let allowed = match row.map(|r| r.who) {
            Some(Who::Anyone) => true,
            Some(Who::Reader) => ["reader", "member", "manager", "admin"]
                .iter()
                .any(|r| self.has_role(r)),
            Some(Who::Member) => ["member", "manager", "admin"].iter().any(|r| self.has_role(r)),
            Some(Who::Manager) => ["manager", "admin"].iter().any(|r| self.has_role(r)),
            Some(Who::Admin) => self.has_role("admin"),
            None => false,
        };
        if allowed {
            Ok(())
        } else {
            Err(Error::Forbidden(format!(
                "Policy doesn't allow {resource}:{action} to be performed."
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write;
    use std::path::Path;

    use super::*;

    const SERVICES: [&str; 7] = [
        "identity",
        "image",
        "compute",
        "network",
        "volume",
        "secret",
        "placement",
    ];
    const ROLES: [&str; 4] = ["reader", "member", "manager", "admin"];

    fn context(role: Option<&str>) -> Context {
        Context {
            roles: role.into_iter().map(str::to_owned).collect(),
            ..Context::system()
        }
    }

    /// Every resource × action × role, as the golden files have it. A change of a table changes its file, so that a
    /// reviewer sees who may do what from now on: run the tests with `ALLOD_BLESS=1` to rewrite them.
    #[test]
    fn every_resource_action_and_role_is_as_the_golden_files_say() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/policy");
        let mut wrong = Vec::new();
        for (service, table) in SERVICES.iter().zip(TABLES) {
            let mut text = format!("{:<28}{:<26}{:>6}", "resource", "action", "none");
            for role in ROLES {
                let _ = write!(text, "{role:>9}");
            }
            text.push('\n');
            let mut rows: Vec<&Rule> = table.iter().collect();
            rows.sort_by_key(|row| (row.resource, row.action));
            for row in rows {
                let word = |role| {
                    if context(role).require(row.resource, row.action).is_ok() {
                        "yes"
                    } else {
                        "-"
                    }
                };
                let _ = write!(text, "{:<28}{:<26}{:>6}", row.resource, row.action, word(None));
                for role in ROLES {
                    let _ = write!(text, "{:>9}", word(Some(role)));
                }
                text.push('\n');
            }
            let file = folder.join(format!("{service}.txt"));
            if std::env::var_os("ALLOD_BLESS").is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(&file, &text).unwrap();
            } else if std::fs::read_to_string(&file).unwrap_or_default() != text {
                wrong.push(file);
            }
        }
        assert!(
            wrong.is_empty(),
            "who may do what has changed: {wrong:?}; if it shall, run with ALLOD_BLESS=1"
        );
    }

    #[test]
    fn no_action_stands_twice() {
        let mut seen = BTreeSet::new();
        for row in TABLES.iter().flat_map(|table| table.iter()) {
            assert!(
                seen.insert((row.resource, row.action)),
                "{}:{} stands twice",
                row.resource,
                row.action
            );
        }
    }

    #[test]
    fn what_no_row_allows_is_forbidden_to_everyone() {
        assert!(matches!(
            context(Some("admin")).require("servers", "no such action"),
            Err(Error::Forbidden(_))
        ));
    }
}
