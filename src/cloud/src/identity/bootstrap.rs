//! What a new cloud begins with.

use rusqlite::params;

use super::roles::BUILT_IN;
use super::{Secret, domains, new_id, now, upkeep};
use crate::{Cloud, Error, Result};

/// Makes, where they are missing: the domain `Default`, the built-in roles, the projects `admin` and `service`, the user
/// `admin` with this password and the role `admin` on its project and the system, and a first token key. A cloud
/// that has them is left as it is; a password that was changed since stays.
///
/// # Errors
/// If the store cannot be written.
pub async fn bootstrap(cloud: &Cloud, admin_password: &str) -> Result<()> {
    let known = cloud.store.read(|conn| {
        let user = "SELECT count(*) FROM users WHERE domain_id = 'default' AND name = 'admin'";
        let keys = "SELECT count(*) FROM token_keys";
        let count = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, i64>(0));
        Ok::<_, Error>((count(user)? > 0, count(keys)? > 0))
    });
    let (has_admin, has_key) = known.await?;
    if !has_key {
        upkeep::rotate(cloud).await?;
    }
    if has_admin {
        return Ok(());
    }
    let hash = cloud.identity.hasher.hash(Secret::new(admin_password)).await?;
    let roles = BUILT_IN.map(|_| new_id());
    let (user, projects, now) = (new_id(), [new_id(), new_id()], now());
    cloud
        .store
        .write("bootstrap", move |conn| {
            conn.execute(
                "INSERT OR IGNORE INTO domains (id, name, description, enabled, extra)
                 VALUES (?1, 'Default', 'The default domain', 1, '{}')",
                [domains::DEFAULT],
            )?;
            for (id, name) in roles.iter().zip(BUILT_IN) {
                conn.execute("INSERT OR IGNORE INTO roles (id, name) VALUES (?1, ?2)", [id.as_str(), name])?;
            }
            for pair in BUILT_IN.windows(2) {
                conn.execute(
                    "INSERT OR IGNORE INTO implied_roles (prior_role_id, implied_role_id)
                     SELECT p.id, i.id FROM roles p, roles i WHERE p.name = ?1 AND i.name = ?2",
                    [pair[0], pair[1]],
                )?;
            }
            for (id, (name, description)) in
                projects.iter().zip([("admin", "For the cloud's operators"), ("service", "For the cloud's services")])
            {
                conn.execute(
                    "INSERT OR IGNORE INTO projects (id, domain_id, name, description, enabled, tags, extra)
                     VALUES (?1, 'default', ?2, ?3, 1, '', '{}')",
                    [id.as_str(), name, description],
                )?;
            }
            conn.execute(
                "INSERT OR IGNORE INTO users (id, domain_id, name, enabled, password_hash, password_changed_at,
                     tokens_valid_from, extra) VALUES (?1, 'default', 'admin', 1, ?2, ?3, ?3, '{}')",
                params![user, hash, now],
            )?;
            conn.execute(
                "INSERT OR IGNORE INTO role_assignments
                     (actor_kind, actor_id, target_kind, target_id, role_id, inherited)
                 SELECT 'user', u.id, 'project', p.id, r.id, 0 FROM users u, projects p, roles r
                     WHERE u.domain_id = 'default' AND u.name = 'admin' AND r.name = 'admin'
                     AND p.domain_id = 'default' AND p.name = 'admin'
                 UNION ALL
                 SELECT 'user', u.id, 'system', 'all', r.id, 0 FROM users u, roles r
                     WHERE u.domain_id = 'default' AND u.name = 'admin' AND r.name = 'admin'",
                [],
            )?;
            Ok(())
        })
        .await
}

/// Makes a user, a project and an assignment in the domain `Default` where they are missing, and returns the ids of user
/// and project.
#[cfg(any(test, feature = "testing"))]
pub(crate) async fn testing_grant(
    cloud: &Cloud,
    user: &str,
    project: &str,
    role: &str,
) -> Result<(String, String)> {
    let names = [user, project, role].map(str::to_owned);
    let ids = [new_id(), new_id()];
    let now = now();
    cloud
        .store
        .write("test", move |conn| {
            let [user, project, role] = &names;
            let domain = domains::DEFAULT;
            conn.execute(
                "INSERT OR IGNORE INTO users (id, domain_id, name, enabled, tokens_valid_from, extra)
                 VALUES (?1, ?2, ?3, 1, ?4, '{}')",
                params![ids[0], domain, user, now],
            )?;
            conn.execute(
                "INSERT OR IGNORE INTO projects (id, domain_id, name, description, enabled, tags, extra)
                 VALUES (?1, ?2, ?3, '', 1, '', '{}')",
                params![ids[1], domain, project],
            )?;
            let id = |sql: &str, name: &str| conn.query_row(sql, [name], |row| row.get::<_, String>(0));
            let user = id(
                "SELECT id FROM users WHERE domain_id = 'default' AND name = ?1",
                user,
            )?;
            let project = id(
                "SELECT id FROM projects WHERE domain_id = 'default' AND name = ?1",
                project,
            )?;
            let role = id("SELECT id FROM roles WHERE name = ?1", role)?;
            conn.execute(
                "INSERT OR IGNORE INTO role_assignments
                     (actor_kind, actor_id, target_kind, target_id, role_id, inherited)
                 VALUES ('user', ?1, 'project', ?2, ?3, 0)",
                [&user, &project, &role],
            )?;
            Ok((user, project))
        })
        .await
}
