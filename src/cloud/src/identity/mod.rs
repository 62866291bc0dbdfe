//! Identity: domains, projects, users, roles, tokens, catalog (Keystone's rules).
//!
//! A token is validated from memory alone: [`token`] decrypts it, and the [`directory`], which follows the database,
//! says what the user may do *now*. So a role that was taken away, a disabled project or a changed password takes
//! effect with the next request, without any list of revoked tokens but that of [`tokens`] revoked by hand.

pub mod assignments;
pub mod bootstrap;
pub mod catalog;
pub mod credentials;
pub mod directory;
pub mod domains;
pub mod groups;
pub mod keys;
mod lockout;
pub mod login;
pub mod names;
pub mod password;
pub mod projects;
pub mod rights;
pub mod roles;
pub mod secret;
pub mod stored;
pub mod token;
pub mod tokens;
pub mod upkeep;
pub mod users;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use store::Event;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::context::Scope;
use crate::policy::{Rule, Who, rule};
use crate::{Context, Error, Result};
pub use bootstrap::bootstrap;
#[cfg(any(test, feature = "testing"))]
pub(crate) use bootstrap::testing_grant;
use directory::Directory;
use password::{Cost, Hasher};
pub use secret::Secret;
use token::{Claims, METHODS, Target};
pub use upkeep::spawn;

/// Who may do what. Beside the role, most actions need a scope that reaches the resource: see [`rights`].
pub const POLICY: &[Rule] = &[
    rule("domains", "list", Who::Reader),
    rule("domains", "show", Who::Reader),
    rule("domains", "create", Who::Admin),
    rule("domains", "update", Who::Admin),
    rule("domains", "delete", Who::Admin),
    rule("projects", "list", Who::Reader),
    rule("projects", "show", Who::Reader),
    rule("projects", "create", Who::Manager),
    rule("projects", "update", Who::Manager),
    rule("projects", "delete", Who::Manager),
    rule("users", "list", Who::Reader),
    rule("users", "show", Who::Reader),
    rule("users", "create", Who::Manager),
    rule("users", "update", Who::Manager),
    rule("users", "delete", Who::Manager),
    rule("users", "change_own_password", Who::Anyone),
    rule("groups", "list", Who::Reader),
    rule("groups", "show", Who::Reader),
    rule("groups", "create", Who::Manager),
    rule("groups", "update", Who::Manager),
    rule("groups", "delete", Who::Manager),
    rule("groups", "add_member", Who::Manager),
    rule("groups", "remove_member", Who::Manager),
    rule("roles", "list", Who::Reader),
    rule("roles", "show", Who::Reader),
    rule("roles", "create", Who::Admin),
    rule("roles", "update", Who::Admin),
    rule("roles", "delete", Who::Admin),
    rule("implied_roles", "list", Who::Reader),
    rule("implied_roles", "change", Who::Admin),
    rule("role_assignments", "list", Who::Reader),
    rule("role_assignments", "create", Who::Manager),
    rule("role_assignments", "delete", Who::Manager),
    rule("application_credentials", "list", Who::Anyone),
    rule("application_credentials", "show", Who::Anyone),
    rule("application_credentials", "create", Who::Anyone),
    rule("application_credentials", "delete", Who::Anyone),
    rule("credentials", "list", Who::Anyone),
    rule("credentials", "show", Who::Anyone),
    rule("credentials", "create", Who::Anyone),
    rule("credentials", "update", Who::Anyone),
    rule("credentials", "delete", Who::Anyone),
    rule("catalog", "list", Who::Anyone),
    rule("tokens", "validate", Who::Anyone),
    rule("tokens", "revoke", Who::Anyone),
];

/// Tables.
pub const SCHEMA: &str = include_str!("schema.sql");

/// How long a token lives.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// Users, roles, revocations and token keys in memory; hashes passwords, issues and validates tokens.
pub struct Identity {
    root: keys::RootKey,
    directory: RwLock<Directory>,
    hasher: Hasher,
    lockouts: lockout::Lockouts,
}

impl Default for Identity {
    /// One whose root key is nowhere else, for tests.
    fn default() -> Self {
        Identity::new(keys::RootKey::ephemeral())
    }
}

impl Identity {
    fn new(root: keys::RootKey) -> Self {
        Identity {
            root,
            directory: RwLock::default(),
            hasher: Hasher::default(),
            lockouts: Default::default(),
        }
    }

    /// Reads the root key in the folder of secrets, or makes it at first start. Give the result to the store as a
    /// projection, which fills it.
    ///
    /// # Errors
    /// If the key cannot be read or made.
    pub fn open(secrets_dir: &Path) -> Result<Identity> {
        Ok(Identity::new(keys::RootKey::open(secrets_dir)?))
    }

    /// With another cost of hashing passwords.
    pub fn with_password_cost(mut self, cost: Cost) -> Self {
        self.hasher = Hasher::new(cost);
        self
    }

    /// Encrypts another service's key for a row, under the root key.
    pub(crate) fn wrap(&self, purpose: &str, key: &[u8]) -> Result<Vec<u8>> {
        self.root.seal(purpose, key)
    }

    /// What [`Identity::wrap`] encrypted for the same purpose.
    pub(crate) fn unwrap(&self, purpose: &str, wrapped: &[u8]) -> Option<zeroize::Zeroizing<Vec<u8>>> {
        self.root.open_sealed(purpose, wrapped)
    }

    fn directory(&self) -> RwLockReadGuard<'_, Directory> {
        self.directory.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Validates a token without SQL.
    ///
    /// # Errors
    /// 401 if it is not one of ours, has ended, was revoked, or gives no right any more.
    pub fn validate(&self, token: &str) -> Result<Context> {
        let directory = self.directory();
        let claims = directory.keys.open(token).ok_or_else(unauthorized)?;
        check(&directory, &claims, now())
    }

    /// What a valid token says, for Keystone's own answers.
    ///
    /// # Errors
    /// As [`Identity::validate`].
    pub fn claims(&self, token: &str) -> Result<Claims> {
        let directory = self.directory();
        let claims = directory.keys.open(token).ok_or_else(unauthorized)?;
        check(&directory, &claims, now())?;
        Ok(claims)
    }

    /// A new token for a user that has proved by these methods who it is.
    ///
    /// # Errors
    /// 401 if the user or the scope is not enabled or the user has no role on the scope.
    pub fn issue(&self, user_id: &str, scope: Scope, methods: &[&str]) -> Result<(String, Claims)> {
        let bits = METHODS
            .iter()
            .enumerate()
            .filter(|(_, name)| methods.contains(name));
        let issued_at = now();
        self.seal(Claims {
            user_id: user_id.to_owned(),
            scope: Target::from(&scope),
            methods: bits.fold(0, |all, (bit, _)| all | (1 << bit)),
            issued_at,
            expires_at: whole_seconds(issued_at + micros(TOKEN_LIFETIME)),
            audit_id: *Uuid::new_v4().as_bytes(),
            parent_audit_id: None,
            credential: None,
        })
    }

    fn seal(&self, claims: Claims) -> Result<(String, Claims)> {
        let directory = self.directory();
        check(&directory, &claims, claims.issued_at)?;
        let token = directory.keys.seal(&claims);
        let token = token.ok_or_else(|| Error::Internal("there is no token key to seal with".into()))?;
        Ok((token, claims))
    }
}

/// The one place that decides whether claims hold, and what they allow.
fn check(directory: &Directory, claims: &Claims, now: i64) -> Result<Context> {
    if now >= claims.expires_at
        || directory.is_revoked(&claims.audit_id)
        || claims.parent_audit_id.is_some_and(|id| directory.is_revoked(&id))
    {
        return Err(unauthorized());
    }
    let user = directory.active_user(&claims.user_id).ok_or_else(unauthorized)?;
    if claims.issued_at < user.valid_from {
        return Err(unauthorized());
    }
    let scope = match &claims.scope {
        Target::Unscoped => Scope::Unscoped,
        Target::Project(id) => {
            let project = directory.active_project(id).ok_or_else(unauthorized)?;
            Scope::Project {
                id: id.clone(),
                domain_id: project.domain_id.clone(),
            }
        }
        Target::Domain(id) => {
            if !directory.domain_enabled(id) {
                return Err(unauthorized());
            }
            Scope::Domain { id: id.clone() }
        }
        Target::System => Scope::System,
    };
    let roles = role_ids(directory, claims, now)?;
    if roles.is_empty() && scope != Scope::Unscoped {
        return Err(unauthorized());
    }
    Ok(Context {
        request_id: String::new(),
        user_id: claims.user_id.clone(),
        user_name: user.name.clone(),
        user_domain_id: user.domain_id.clone(),
        scope,
        roles: roles
            .iter()
            .filter_map(|id| directory.roles.get(id))
            .cloned()
            .collect(),
        application_credential: claims.credential.clone(),
    })
}

/// The ids of all roles that claims give now: the user's own, and of these only what an application credential has.
fn role_ids(directory: &Directory, claims: &Claims, now: i64) -> Result<std::collections::BTreeSet<String>> {
    if claims.scope == Target::Unscoped {
        return Ok(Default::default());
    }
    let roles = directory.roles_on(&claims.user_id, &claims.scope);
    let Some(id) = &claims.credential else {
        return Ok(roles);
    };
    let credential = directory.credentials.get(id).ok_or_else(unauthorized)?;
    let same = credential.user_id == claims.user_id
        && claims.scope == Target::Project(credential.project_id.clone());
    if !same || credential.expires_at.is_some_and(|at| now >= at) {
        return Err(unauthorized());
    }
    let given = directory.closure(credential.roles.iter().cloned());
    Ok(roles.intersection(&given).cloned().collect())
}

impl store::Projection for Identity {
    fn load(&self, conn: &rusqlite::Connection) -> Result<(), store::Error> {
        let directory = Directory::load(conn, &self.root)?;
        *self.directory.write().unwrap_or_else(PoisonError::into_inner) = directory;
        Ok(())
    }

    fn apply(&self, conn: &rusqlite::Connection, event: &Event) -> Result<(), store::Error> {
        // Most writes are not identity's: they must not make validations wait.
        if !directory::concerns(event) {
            return Ok(());
        }
        let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
        directory.apply(conn, &self.root, event)
    }
}

fn unauthorized() -> Error {
    Error::Unauthorized("The request you have made requires authentication.".into())
}

/// Microseconds since 1970.
pub(crate) fn now() -> i64 {
    let nanos = OffsetDateTime::now_utc().unix_timestamp_nanos();
    i64::try_from(nanos / 1000).unwrap_or(i64::MAX)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn whole_seconds(micros: i64) -> i64 {
    micros - micros.rem_euclid(1_000_000)
}

fn new_id() -> String {
    Uuid::new_v4().simple().to_string()
}

/// For [`store::Options::projections`].
pub fn projection(identity: &Arc<Identity>) -> Arc<dyn store::Projection> {
    identity.clone()
}

#[cfg(test)]
mod tests;
