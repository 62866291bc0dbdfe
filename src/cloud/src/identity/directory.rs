//! What validating a token needs, in memory: it follows the database row by row and never asks it in a request.

use std::collections::{BTreeSet, HashMap};

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params};
use store::{Change, Event};

use super::keys::RootKey;
use super::token::{Keyring, Target};

/// Users, projects, domains, roles, assignments, application credentials, revocations and token keys.
#[derive(Default)]
pub struct Directory {
    pub(super) domains: HashMap<String, Domain>,
    pub(super) projects: HashMap<String, Project>,
    pub(super) users: HashMap<String, User>,
    /// Name and domain by group.
    pub(super) group_names: HashMap<String, (String, String)>,
    /// Groups by user.
    groups: HashMap<String, BTreeSet<String>>,
    /// Names by role.
    pub(super) roles: HashMap<String, String>,
    implied: HashMap<String, BTreeSet<String>>,
    assignments: HashMap<Actor, BTreeSet<Grant>>,
    pub(super) credentials: HashMap<String, Credential>,
    revoked: HashMap<[u8; 16], i64>,
    pub(super) keys: Keyring,
}

#[derive(Debug, Clone)]
pub(super) struct Domain {
    pub name: String,
    pub enabled: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Project {
    pub name: String,
    pub domain_id: String,
    pub parent_id: Option<String>,
    pub enabled: bool,
}

#[derive(Debug, Clone)]
pub(super) struct User {
    pub name: String,
    pub domain_id: String,
    pub enabled: bool,
    pub default_project_id: Option<String>,
    pub valid_from: i64,
}

#[derive(Debug, Clone)]
pub(super) struct Credential {
    pub name: String,
    pub user_id: String,
    pub project_id: String,
    pub expires_at: Option<i64>,
    pub unrestricted: bool,
    pub roles: BTreeSet<String>,
}

/// Who holds a role.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Actor {
    /// A user's id.
    User(String),
    /// A group's id.
    Group(String),
}

/// A role on a target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// Where.
    pub target: Target,
    /// Which.
    pub role_id: String,
    /// On the projects below the target, not on itself.
    pub inherited: bool,
}

/// Tables that the directory follows, each with the query for its keys.
const TABLES: [(&str, &str); 12] = [
    ("domains", "SELECT id FROM domains"),
    ("projects", "SELECT id FROM projects"),
    ("users", "SELECT id FROM users"),
    ("user_groups", "SELECT id FROM user_groups"),
    ("group_members", "SELECT group_id, user_id FROM group_members"),
    ("roles", "SELECT id FROM roles"),
    (
        "implied_roles",
        "SELECT prior_role_id, implied_role_id FROM implied_roles",
    ),
    (
        "role_assignments",
        "SELECT actor_kind, actor_id, target_kind, target_id, role_id, inherited FROM role_assignments",
    ),
    (
        "application_credentials",
        "SELECT id FROM application_credentials",
    ),
    (
        "application_credential_roles",
        "SELECT credential_id, role_id FROM application_credential_roles",
    ),
    ("token_keys", "SELECT id FROM token_keys"),
    ("token_revocations", "SELECT audit_id FROM token_revocations"),
];

/// Whether an event changes the directory at all.
pub(super) fn concerns(event: &Event) -> bool {
    event
        .changes
        .iter()
        .any(|change| TABLES.iter().any(|(table, _)| *table == change.table))
}

/// Projects are nested this deep at most.
pub(super) const MAX_DEPTH: usize = 5;

impl Directory {
    pub(super) fn load(conn: &Connection, root: &RootKey) -> Result<Directory, store::Error> {
        let mut directory = Directory::default();
        for (table, sql) in TABLES {
            let mut statement = conn.prepare(sql)?;
            let columns = statement.column_count();
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let key = (0..columns)
                    .map(|i| row.get(i))
                    .collect::<Result<Vec<Value>, _>>()?;
                if !directory.follow(conn, root, table, &key)? && table == "token_keys" {
                    return Err(store::Error::Other(format!(
                        "a token key of this cloud cannot be decrypted: {} in the folder of secrets is not this cloud's",
                        super::keys::ROOT_KEY_FILE
                    )));
                }
            }
        }
        Ok(directory)
    }

    pub(super) fn apply(
        &mut self,
        conn: &Connection,
        root: &RootKey,
        event: &Event,
    ) -> Result<(), store::Error> {
        for Change { table, key, .. } in &event.changes {
            if !self.follow(conn, root, table, key)? {
                tracing::error!(table, "a row that this node cannot use");
            }
        }
        Ok(())
    }

    /// Brings one key of one table up to date with its row, whatever happened to it. `false`: the row is of no use.
    fn follow(
        &mut self,
        conn: &Connection,
        root: &RootKey,
        table: &str,
        key: &[Value],
    ) -> Result<bool, store::Error> {
        let text = |i: usize| match key.get(i) {
            Some(Value::Text(text)) => text.as_str(),
            _ => "",
        };
        let id = text(0);
        match table {
            "domains" => {
                let mut sql = conn.prepare_cached("SELECT name, enabled FROM domains WHERE id = ?1")?;
                let row = sql
                    .query_row([id], |r| {
                        Ok(Domain {
                            name: r.get(0)?,
                            enabled: r.get(1)?,
                        })
                    })
                    .optional()?;
                set(&mut self.domains, id, row);
            }
            "projects" => {
                let sql = "SELECT name, domain_id, parent_id, enabled FROM projects WHERE id = ?1";
                let row = conn.prepare_cached(sql)?.query_row([id], |r| {
                    Ok(Project {
                        name: r.get(0)?,
                        domain_id: r.get(1)?,
                        parent_id: r.get(2)?,
                        enabled: r.get(3)?,
                    })
                });
                set(&mut self.projects, id, row.optional()?);
            }
            "users" => {
                let sql = "SELECT name, domain_id, enabled, default_project_id, tokens_valid_from FROM users WHERE id = ?1";
                let row = conn.prepare_cached(sql)?.query_row([id], |r| {
                    Ok(User {
                        name: r.get(0)?,
                        domain_id: r.get(1)?,
                        enabled: r.get(2)?,
                        default_project_id: r.get(3)?,
                        valid_from: r.get(4)?,
                    })
                });
                set(&mut self.users, id, row.optional()?);
            }
            "user_groups" => {
                let mut sql = conn.prepare_cached("SELECT name, domain_id FROM user_groups WHERE id = ?1")?;
                let row = sql.query_row([id], |r| Ok((r.get(0)?, r.get(1)?))).optional()?;
                set(&mut self.group_names, id, row);
            }
            "group_members" => {
                let (group, user) = (text(0), text(1));
                let sql = "SELECT 1 FROM group_members WHERE group_id = ?1 AND user_id = ?2";
                let there = conn.prepare_cached(sql)?.exists([group, user])?;
                member(&mut self.groups, user.to_owned(), group.to_owned(), there);
            }
            "roles" => {
                let mut sql = conn.prepare_cached("SELECT name FROM roles WHERE id = ?1")?;
                let row = sql.query_row([id], |r| r.get(0)).optional()?;
                set(&mut self.roles, id, row);
            }
            "implied_roles" => {
                let sql = "SELECT 1 FROM implied_roles WHERE prior_role_id = ?1 AND implied_role_id = ?2";
                let there = conn.prepare_cached(sql)?.exists([text(0), text(1)])?;
                member(&mut self.implied, text(0).to_owned(), text(1).to_owned(), there);
            }
            "role_assignments" => {
                let inherited = matches!(key.get(5), Some(Value::Integer(1)));
                let sql = "SELECT 1 FROM role_assignments WHERE actor_kind = ?1 AND actor_id = ?2 AND target_kind = ?3
                     AND target_id = ?4 AND role_id = ?5 AND inherited = ?6";
                let there = conn.prepare_cached(sql)?.exists(params![
                    text(0),
                    text(1),
                    text(2),
                    text(3),
                    text(4),
                    inherited
                ])?;
                let actor = match text(0) {
                    "group" => Actor::Group(text(1).to_owned()),
                    _ => Actor::User(text(1).to_owned()),
                };
                let target = match text(2) {
                    "project" => Target::Project(text(3).to_owned()),
                    "domain" => Target::Domain(text(3).to_owned()),
                    _ => Target::System,
                };
                member(
                    &mut self.assignments,
                    actor,
                    Grant {
                        target,
                        role_id: text(4).to_owned(),
                        inherited,
                    },
                    there,
                );
            }
            "application_credentials" => self.credential(conn, id)?,
            "application_credential_roles" => self.credential(conn, text(0))?,
            "token_keys" => {
                let Some(Value::Integer(number)) = key.first() else {
                    return Ok(false);
                };
                let Ok(number) = u32::try_from(*number) else {
                    return Ok(false);
                };
                let mut sql = conn.prepare_cached("SELECT wrapped FROM token_keys WHERE id = ?1")?;
                let row: Option<Vec<u8>> = sql.query_row([number], |r| r.get(0)).optional()?;
                match row {
                    None => self.keys.remove(number),
                    Some(wrapped) => match root.unwrap(number, &wrapped) {
                        Some(key) => self.keys.insert(number, &key),
                        None => return Ok(false),
                    },
                }
            }
            "token_revocations" => {
                let Some(Value::Blob(audit_id)) = key.first() else {
                    return Ok(false);
                };
                let Ok(audit_id) = <[u8; 16]>::try_from(audit_id.as_slice()) else {
                    return Ok(false);
                };
                let mut sql =
                    conn.prepare_cached("SELECT expires_at FROM token_revocations WHERE audit_id = ?1")?;
                match sql.query_row([&audit_id[..]], |r| r.get(0)).optional()? {
                    Some(expires_at) => self.revoked.insert(audit_id, expires_at),
                    None => self.revoked.remove(&audit_id),
                };
            }
            _ => {}
        }
        Ok(true)
    }

    fn credential(&mut self, conn: &Connection, id: &str) -> Result<(), store::Error> {
        let mut roles =
            conn.prepare_cached("SELECT role_id FROM application_credential_roles WHERE credential_id = ?1")?;
        let roles = roles
            .query_map([id], |r| r.get(0))?
            .collect::<Result<BTreeSet<String>, _>>()?;
        let sql = "SELECT name, user_id, project_id, expires_at, unrestricted FROM application_credentials WHERE id = ?1";
        let row = conn.prepare_cached(sql)?.query_row([id], |r| {
            Ok(Credential {
                name: r.get(0)?,
                user_id: r.get(1)?,
                project_id: r.get(2)?,
                expires_at: r.get(3)?,
                unrestricted: r.get(4)?,
                roles,
            })
        });
        set(&mut self.credentials, id, row.optional()?);
        Ok(())
    }

    pub(super) fn is_revoked(&self, audit_id: &[u8; 16]) -> bool {
        self.revoked.contains_key(audit_id)
    }

    pub(super) fn domain_enabled(&self, id: &str) -> bool {
        self.domains.get(id).is_some_and(|d| d.enabled)
    }

    /// The user, if it and its domain are enabled.
    pub(super) fn active_user(&self, id: &str) -> Option<&User> {
        self.users
            .get(id)
            .filter(|user| user.enabled && self.domain_enabled(&user.domain_id))
    }

    /// The project, if it and its domain are enabled.
    pub(super) fn active_project(&self, id: &str) -> Option<&Project> {
        self.projects
            .get(id)
            .filter(|project| project.enabled && self.domain_enabled(&project.domain_id))
    }

    fn actors(&self, user_id: &str) -> impl Iterator<Item = Actor> {
        let groups = self
            .groups
            .get(user_id)
            .into_iter()
            .flatten()
            .cloned()
            .map(Actor::Group);
        std::iter::once(Actor::User(user_id.to_owned())).chain(groups)
    }

    /// What a user was given, by itself or by a group of it.
    pub(super) fn grants(&self, user_id: &str) -> impl Iterator<Item = (Actor, &Grant)> {
        self.actors(user_id).flat_map(|actor| {
            let grants = self.assignments.get(&actor);
            grants
                .into_iter()
                .flatten()
                .map(move |grant| (actor.clone(), grant))
        })
    }

    pub(super) fn grants_of(&self, actor: &Actor) -> impl Iterator<Item = &Grant> {
        self.assignments.get(actor).into_iter().flatten()
    }

    pub(super) fn all_grants(&self) -> impl Iterator<Item = (&Actor, &Grant)> {
        self.assignments
            .iter()
            .flat_map(|(actor, grants)| grants.iter().map(move |grant| (actor, grant)))
    }

    pub(super) fn members(&self, group_id: &str) -> Vec<String> {
        let mut users: Vec<String> = self
            .groups
            .iter()
            .filter(|(_, groups)| groups.contains(group_id))
            .map(|(user, _)| user.clone())
            .collect();
        users.sort();
        users
    }

    pub(super) fn implied(&self, role_id: &str) -> impl Iterator<Item = &String> {
        self.implied.get(role_id).into_iter().flatten()
    }

    /// Roles with all that they imply.
    pub(super) fn closure(&self, roles: impl IntoIterator<Item = String>) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        let mut open: Vec<String> = roles.into_iter().collect();
        while let Some(role) = open.pop() {
            if self.roles.contains_key(&role) && all.insert(role.clone()) {
                open.extend(self.implied(&role).cloned());
            }
        }
        all
    }

    /// A grant reaches a target: it lies on it, or is inherited from above it.
    pub(super) fn reaches(&self, grant: &Grant, target: &Target) -> bool {
        if !grant.inherited {
            return grant.target == *target;
        }
        let Target::Project(id) = target else { return false };
        let Some(project) = self.projects.get(id) else {
            return false;
        };
        if grant.target == Target::Domain(project.domain_id.clone()) {
            return true;
        }
        let mut parent = project.parent_id.as_deref();
        for _ in 0..MAX_DEPTH {
            let Some(id) = parent else { return false };
            if matches!(&grant.target, Target::Project(at) if at == id) {
                return true;
            }
            parent = self.projects.get(id).and_then(|p| p.parent_id.as_deref());
        }
        false
    }

    /// All roles of a user on a target, implied ones included.
    pub(super) fn roles_on(&self, user_id: &str, target: &Target) -> BTreeSet<String> {
        let direct = self
            .grants(user_id)
            .filter(|(_, grant)| self.reaches(grant, target));
        self.closure(direct.map(|(_, grant)| grant.role_id.clone()).collect::<Vec<_>>())
    }

    /// The actor holds the role of this name anywhere.
    pub(super) fn holds(&self, actor: &Actor, role_name: &str) -> bool {
        let named = |role_id: &String| self.roles.get(role_id).is_some_and(|name| name == role_name);
        let held = |grants: Vec<String>| self.closure(grants).iter().any(named);
        match actor {
            Actor::User(id) => held(self.grants(id).map(|(_, grant)| grant.role_id.clone()).collect()),
            Actor::Group(_) => held(self.grants_of(actor).map(|grant| grant.role_id.clone()).collect()),
        }
    }
}

fn set<T>(map: &mut HashMap<String, T>, key: &str, value: Option<T>) {
    match value {
        Some(value) => {
            map.insert(key.to_owned(), value);
        }
        None => {
            map.remove(key);
        }
    }
}

fn member<K: Eq + std::hash::Hash, V: Ord>(map: &mut HashMap<K, BTreeSet<V>>, key: K, value: V, there: bool) {
    if there {
        map.entry(key).or_default().insert(value);
    } else if let Some(values) = map.get_mut(&key) {
        values.remove(&value);
        if values.is_empty() {
            map.remove(&key);
        }
    }
}
