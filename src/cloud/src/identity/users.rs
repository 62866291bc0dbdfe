//! Users and their passwords.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::directory::Actor;
use super::rights::{self, Reach};
use super::{Secret, domains, names, now, projects};
use crate::{Cloud, Context, Error, Result};

/// The longest name.
const MAX_NAME: usize = 255;

/// A user.
#[derive(Debug, Clone, PartialEq)]
pub struct User {
    /// Its id.
    pub id: String,
    /// Its domain.
    pub domain_id: String,
    /// Its name, unique in its domain.
    pub name: String,
    /// Who that is.
    pub description: Option<String>,
    /// Where to reach it.
    pub email: Option<String>,
    /// It may log in.
    pub enabled: bool,
    /// The project of a login that names none.
    pub default_project_id: Option<String>,
    /// It has a password.
    pub has_password: bool,
    /// Attributes that the cloud only keeps.
    pub extra: Map<String, Value>,
}

/// A user to be made.
#[derive(Debug, Clone, Deserialize)]
pub struct NewUser {
    /// See [`User`].
    pub name: String,
    /// Without it: the domain of the caller's scope.
    #[serde(default)]
    pub domain_id: Option<String>,
    /// Without it the user cannot log in by password.
    #[serde(default)]
    pub password: Option<Secret>,
    /// See [`User`].
    #[serde(default)]
    pub description: Option<String>,
    /// See [`User`].
    #[serde(default)]
    pub email: Option<String>,
    /// See [`User`].
    #[serde(default)]
    pub enabled: Option<bool>,
    /// See [`User`].
    #[serde(default)]
    pub default_project_id: Option<String>,
    /// See [`User`].
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A change of a user; an inner `None` removes.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct UserChange {
    /// See [`User`].
    #[serde(default)]
    pub name: Option<String>,
    /// It may be repeated, not changed.
    #[serde(default)]
    pub domain_id: Option<String>,
    /// A new password voids all tokens.
    #[serde(default, deserialize_with = "names::some")]
    pub password: Option<Option<Secret>>,
    /// See [`User`].
    #[serde(default, deserialize_with = "names::some")]
    pub description: Option<Option<String>>,
    /// See [`User`].
    #[serde(default, deserialize_with = "names::some")]
    pub email: Option<Option<String>>,
    /// To disable a user voids all of its tokens for good.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// See [`User`].
    #[serde(default, deserialize_with = "names::some")]
    pub default_project_id: Option<Option<String>>,
    /// See [`User`].
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What a list is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this name.
    pub name: Option<String>,
    /// Only of this domain.
    pub domain_id: Option<String>,
    /// Only enabled or disabled ones.
    pub enabled: Option<bool>,
    /// Only members of this group.
    pub group_id: Option<String>,
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User {
        id: row.get("id")?,
        domain_id: row.get("domain_id")?,
        name: row.get("name")?,
        description: row.get("description")?,
        email: row.get("email")?,
        enabled: row.get("enabled")?,
        default_project_id: row.get("default_project_id")?,
        has_password: row.get::<_, Option<String>>("password_hash")?.is_some(),
        extra: names::read_extra(row, "extra")?,
    })
}

pub(super) fn find(conn: &Connection, id: &str) -> Result<User> {
    let row = conn
        .prepare_cached("SELECT * FROM users WHERE id = ?1")?
        .query_row([id], from_row)
        .optional()?;
    row.ok_or_else(|| Error::not_found("user", id))
}

/// 403 unless the caller is this user, or reads its domain.
pub(super) fn reachable(cloud: &Cloud, ctx: &Context, id: &str, resource: &str, action: &str) -> Result<()> {
    if ctx.user_id == id {
        return Ok(());
    }
    let reach = rights::read(ctx, resource, action)?;
    let domain = cloud
        .identity
        .directory()
        .users
        .get(id)
        .map(|user| user.domain_id.clone());
    reach.check(
        &domain.ok_or_else(|| Error::not_found("user", id))?,
        resource,
        action,
    )
}

/// All users that the caller reaches, by name.
///
/// # Errors
/// 403 without a role that reads users.
pub async fn list(cloud: &Cloud, ctx: &Context, filter: Filter) -> Result<Vec<User>> {
    let reach = rights::read(ctx, "users", "list")?;
    cloud
        .store
        .read(move |conn| {
            let sql = "SELECT * FROM users WHERE (?1 IS NULL OR domain_id = ?1) AND (?2 IS NULL OR domain_id = ?2)
                 AND (?3 IS NULL OR name = ?3) AND (?4 IS NULL OR enabled = ?4)
                 AND (?5 IS NULL OR id IN (SELECT user_id FROM group_members WHERE group_id = ?5)) ORDER BY name, id";
            let mut sql = conn.prepare_cached(sql)?;
            let values = params![reach.domain(), filter.domain_id, filter.name, filter.enabled, filter.group_id];
            Ok(sql.query_map(values, from_row)?.collect::<rusqlite::Result<_>>()?)
        })
        .await
}

/// One user; everyone may see itself.
///
/// # Errors
/// 404, 403.
pub async fn show(cloud: &Cloud, ctx: &Context, id: &str) -> Result<User> {
    let reach = if ctx.user_id == id {
        Reach::All
    } else {
        rights::read(ctx, "users", "show")?
    };
    let id = id.to_owned();
    let user: User = cloud.store.read(move |conn| find(conn, &id)).await?;
    reach.check(&user.domain_id, "users", "show")?;
    Ok(user)
}

/// Makes a user.
///
/// # Errors
/// 403, 400, 404 for an unknown domain, 409 if the name is taken.
pub async fn create(cloud: &Cloud, ctx: &Context, new: NewUser) -> Result<User> {
    let reach = rights::write(ctx, "users", "create")?;
    let domain = new
        .domain_id
        .clone()
        .unwrap_or_else(|| projects::scope_domain(ctx));
    reach.check(&domain, "users", "create")?;
    names::name("name", &new.name, MAX_NAME)?;
    names::description(new.description.as_deref())?;
    check_email(new.email.as_deref())?;
    let hash = hash(cloud, new.password.clone()).await?;
    let (id, extra, now) = (super::new_id(), names::extra(new.extra.clone())?, now());
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            domains::find(conn, &domain)?;
            let done = conn.execute(
                "INSERT INTO users (id, domain_id, name, description, email, enabled, default_project_id,
                     password_hash, password_changed_at, tokens_valid_from, extra)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                params![
                    id,
                    domain,
                    new.name,
                    new.description,
                    new.email,
                    new.enabled.unwrap_or(true),
                    new.default_project_id,
                    hash,
                    hash.as_ref().map(|_| now),
                    now,
                    extra
                ],
            );
            names::unique(done, "user", &new.name)?;
            find(conn, &id)
        })
        .await
}

fn check_email(email: Option<&str>) -> Result<()> {
    match email {
        Some(email) if email.len() > 254 || email.chars().any(char::is_control) => {
            Err(Error::BadRequest("Invalid input for field 'email'.".into()))
        }
        _ => Ok(()),
    }
}

async fn hash(cloud: &Cloud, password: Option<Secret>) -> Result<Option<String>> {
    match password {
        None => Ok(None),
        Some(password) if password.expose().is_empty() => Err(Error::BadRequest(
            "Invalid input for field 'password': it is empty.".into(),
        )),
        Some(password) => cloud.identity.hasher.hash(password).await.map(Some),
    }
}

/// Changes a user.
///
/// # Errors
/// 403, 400, 404, 409 if the name is taken.
pub async fn update(cloud: &Cloud, ctx: &Context, id: &str, change: UserChange) -> Result<User> {
    let reach = rights::write(ctx, "users", "update")?;
    rights::spare_admins(cloud, ctx, &Actor::User(id.to_owned()))?;
    if let Some(name) = &change.name {
        names::name("name", name, MAX_NAME)?;
    }
    names::description(change.description.as_ref().and_then(|d| d.as_deref()))?;
    check_email(change.email.as_ref().and_then(|e| e.as_deref()))?;
    {
        // Before a password is hashed for someone who may not set it.
        let directory = cloud.identity.directory();
        if let Some(user) = directory.users.get(id) {
            reach.check(&user.domain_id, "users", "update")?;
        }
    }
    let hash = match change.password.clone() {
        None => None,
        Some(password) => Some(hash(cloud, password).await?),
    };
    let (id, now) = (id.to_owned(), now());
    let unique = cloud.config.accounts.unique_last_passwords;
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let old = find(conn, &id)?;
            reach.check(&old.domain_id, "users", "update")?;
            if change.domain_id.as_ref().is_some_and(|domain| *domain != old.domain_id) {
                return Err(Error::BadRequest("A user's domain cannot be changed.".into()));
            }
            let name = change.name.as_ref().unwrap_or(&old.name);
            let done = conn.execute(
                "UPDATE users SET name = ?2, description = ?3, email = ?4, enabled = ?5, default_project_id = ?6,
                     extra = ?7 WHERE id = ?1",
                params![
                    id,
                    name,
                    change.description.as_ref().unwrap_or(&old.description),
                    change.email.as_ref().unwrap_or(&old.email),
                    change.enabled.unwrap_or(old.enabled),
                    change.default_project_id.as_ref().unwrap_or(&old.default_project_id),
                    names::merged(&old.extra, change.extra.clone())?
                ],
            );
            names::unique(done, "user", name)?;
            if let Some(hash) = &hash {
                set_password(conn, &id, hash.as_deref(), now, unique)?;
            }
            if change.enabled == Some(false) {
                conn.execute("UPDATE users SET tokens_valid_from = ?2 WHERE id = ?1", params![id, now])?;
            }
            rights::keep_an_admin(conn)?;
            find(conn, &id)
        })
        .await
}

fn set_password(conn: &Connection, id: &str, hash: Option<&str>, now: i64, keep: u8) -> Result<()> {
    conn.prepare_cached(
        "INSERT OR REPLACE INTO password_history (user_id, replaced_at, password_hash)
         SELECT id, ?2, password_hash FROM users WHERE id = ?1 AND password_hash IS NOT NULL",
    )?
    .execute(params![id, now])?;
    conn.prepare_cached(
        "DELETE FROM password_history WHERE user_id = ?1 AND replaced_at NOT IN
         (SELECT replaced_at FROM password_history WHERE user_id = ?1 ORDER BY replaced_at DESC LIMIT ?2)",
    )?
    .execute(params![id, keep.saturating_sub(1)])?;
    conn.execute(
        "UPDATE users SET password_hash = ?2, password_changed_at = ?3, tokens_valid_from = ?3 WHERE id = ?1",
        params![id, hash, now],
    )?;
    Ok(())
}

/// A user changes its own password and shows the old one. All of its tokens end, this one as well.
///
/// # Errors
/// 401 if the old password is wrong, 400 if the new one is empty or one of the latest.
pub async fn change_own_password(cloud: &Cloud, id: &str, original: Secret, password: Secret) -> Result<()> {
    let unique = cloud.config.accounts.unique_last_passwords;
    let (stored, before): (Option<String>, Vec<String>) = {
        let id = id.to_owned();
        let read = cloud.store.read(move |conn| {
            let mut sql = conn.prepare_cached("SELECT password_hash FROM users WHERE id = ?1 AND enabled")?;
            let stored = sql.query_row([&id], |row| row.get::<_, Option<String>>(0)).optional()?;
            let mut sql = conn.prepare_cached(
                "SELECT password_hash FROM password_history WHERE user_id = ?1 ORDER BY replaced_at DESC LIMIT ?2",
            )?;
            let before = sql
                .query_map(params![id, unique.saturating_sub(1)], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            Ok::<_, Error>((stored.flatten(), before))
        });
        read.await?
    };
    let same = original.expose() == password.expose();
    if stored.is_none()
        || cloud.identity.is_locked(id)
        || !cloud.identity.hasher.verify(original, stored).await?
    {
        cloud.identity.count_failure(id, &cloud.config.accounts);
        return Err(super::unauthorized());
    }
    cloud.identity.forget_failures(id);
    let mut known = same && unique > 0;
    for hash in before {
        known = known || cloud.identity.hasher.verify(password.clone(), Some(hash)).await?;
    }
    if known {
        return Err(Error::BadRequest(format!(
            "The new password must be different from the latest {unique}."
        )));
    }
    let hash = hash(cloud, Some(password)).await?;
    let (id, now) = (id.to_owned(), now());
    cloud
        .store
        .write(&id.clone(), move |conn| {
            set_password(conn, &id, hash.as_deref(), now, unique)
        })
        .await
}

/// Removes a user with all that it holds.
///
/// # Errors
/// 403, 404.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: &str) -> Result<()> {
    let reach = rights::write(ctx, "users", "delete")?;
    rights::spare_admins(cloud, ctx, &Actor::User(id.to_owned()))?;
    let id = id.to_owned();
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let user = find(conn, &id)?;
            reach.check(&user.domain_id, "users", "delete")?;
            remove(conn, &id)?;
            rights::keep_an_admin(conn)
        })
        .await
}

pub(super) fn remove(conn: &Connection, id: &str) -> Result<()> {
    conn.execute(
        "DELETE FROM role_assignments WHERE actor_kind = 'user' AND actor_id = ?1",
        [id],
    )?;
    conn.execute("DELETE FROM group_members WHERE user_id = ?1", [id])?;
    conn.execute(
        "DELETE FROM application_credential_roles WHERE credential_id IN
         (SELECT id FROM application_credentials WHERE user_id = ?1)",
        [id],
    )?;
    conn.execute("DELETE FROM application_credentials WHERE user_id = ?1", [id])?;
    conn.execute("DELETE FROM password_history WHERE user_id = ?1", [id])?;
    super::stored::remove_of_user(conn, id)?;
    conn.execute("DELETE FROM users WHERE id = ?1", [id])?;
    Ok(())
}
