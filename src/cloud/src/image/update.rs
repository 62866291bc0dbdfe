//! Making, changing and removing images.

use rusqlite::params;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{Image, MAX_PER_PROJECT, Status, Visibility, find_own, load, properties, save};
use crate::identity::now;
use crate::{Cloud, Context, Error, Result};

/// One step of a change.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Sets an attribute, whether it is there or not.
    Add(String, Value),
    /// Sets an attribute that is there.
    Replace(String, Value),
    /// Removes a free property.
    Remove(String),
}

/// Makes an image without bytes. The document may name its id.
///
/// # Errors
/// 400, 403, 409 if the id is taken, 413 for too many.
pub async fn create(cloud: &Cloud, ctx: &Context, mut document: Map<String, Value>) -> Result<Image> {
    ctx.require("images", "create")?;
    let owner = match (ctx.project(), document.get("owner").and_then(Value::as_str)) {
        (_, Some(owner)) if ctx.is_admin() => owner.to_owned(),
        (Ok(project), _) => project.to_owned(),
        (Err(error), _) => return Err(error),
    };
    let id = match document.remove("id") {
        None | Some(Value::Null) => Uuid::new_v4(),
        Some(id) => {
            let id = id
                .as_str()
                .filter(|text| text.len() == 36)
                .and_then(|text| Uuid::try_parse(text).ok());
            id.ok_or_else(|| Error::BadRequest("Invalid value for 'id': a UUID is needed.".into()))?
        }
    };
    let now = now();
    let mut image = Image {
        id,
        owner,
        name: None,
        status: Status::Queued,
        visibility: Visibility::Shared,
        disk_format: None,
        container_format: None,
        size: None,
        checksum: None,
        os_hash_value: None,
        virtual_size: None,
        original: false,
        min_disk: 0,
        min_ram: 0,
        protected: false,
        hidden: false,
        tags: Default::default(),
        properties: Default::default(),
        created_at: now,
        updated_at: now,
    };
    for (key, value) in &document {
        properties::set(ctx, &mut image, key, value)?;
    }
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            let sql = "SELECT count(*) FROM images WHERE owner = ?1 AND status != 'pending_delete'";
            let count: i64 = conn.prepare_cached(sql)?.query_row([&image.owner], |row| row.get(0))?;
            if count >= MAX_PER_PROJECT {
                return Err(Error::QuotaExceeded(format!("A project has at most {MAX_PER_PROJECT} images.")));
            }
            if conn.prepare_cached("SELECT 1 FROM images WHERE id = ?1")?.exists([id.to_string()])? {
                return Err(Error::Conflict(format!("Image ID {id} already exists!")));
            }
            conn.execute(
                "INSERT INTO images (id, owner, status, visibility, original, min_disk, min_ram, protected, hidden,
                     tags, properties, created_at, updated_at)
                 VALUES (?1, ?2, 'queued', 'private', 0, 0, 0, 0, 0, '', '{}', ?3, ?3)",
                params![id.to_string(), image.owner, now],
            )?;
            save(conn, &image, now)?;
            load(conn, id)
        })
        .await
}

/// Carries out all steps, or none.
///
/// # Errors
/// 404, 403, 400, 409 for an attribute that is not there.
pub async fn update(cloud: &Cloud, ctx: &Context, id: Uuid, steps: Vec<Step>) -> Result<Image> {
    ctx.require("images", "update")?;
    let (caller, ctx, now) = (ctx.user_id.clone(), ctx.clone(), now());
    cloud
        .store
        .write(&caller, move |conn| {
            let mut image = find_own(conn, &ctx, id)?;
            for step in &steps {
                carry_out(&ctx, &mut image, step)?;
            }
            save(conn, &image, now)?;
            load(conn, id)
        })
        .await
}

fn carry_out(ctx: &Context, image: &mut Image, step: &Step) -> Result<()> {
    match step {
        Step::Add(key, value) => properties::set(ctx, image, key, value),
        Step::Replace(key, value) => {
            if !properties::has(image, key) && !properties::READ_ONLY.contains(&key.as_str()) {
                return Err(Error::Conflict(format!("Property {key} does not exist.")));
            }
            properties::set(ctx, image, key, value)
        }
        Step::Remove(key) if properties::READ_ONLY.contains(&key.as_str()) => Err(properties::read_only(key)),
        Step::Remove(key) if properties::SETTABLE.contains(&key.as_str()) => {
            Err(Error::Forbidden(format!("Property {key} may not be removed.")))
        }
        Step::Remove(key) if properties::is_reserved(key) => Err(properties::reserved(key)),
        Step::Remove(key) => match image.properties.remove(key) {
            Some(_) => Ok(()),
            None => Err(Error::Conflict(format!("Property {key} does not exist."))),
        },
    }
}

/// Adds or removes one tag.
///
/// # Errors
/// 404, also for a tag to be removed that is not there; 403, 400.
pub async fn tag(cloud: &Cloud, ctx: &Context, id: Uuid, tag: &str, there: bool) -> Result<()> {
    ctx.require("images", "update")?;
    let (caller, ctx, tag, now) = (ctx.user_id.clone(), ctx.clone(), tag.to_owned(), now());
    cloud
        .store
        .write(&caller, move |conn| {
            let mut image = find_own(conn, &ctx, id)?;
            if there {
                properties::add_tag(&mut image, &tag)?;
            } else if !image.tags.remove(&tag) {
                return Err(Error::not_found("Image tag", &tag));
            }
            save(conn, &image, now)
        })
        .await
}

/// Stops or allows the use of an image's bytes.
///
/// # Errors
/// 404, 403 also for an image that has none.
pub async fn set_active(cloud: &Cloud, ctx: &Context, id: Uuid, active: bool) -> Result<()> {
    ctx.require("images", if active { "reactivate" } else { "deactivate" })?;
    let (caller, ctx, now) = (ctx.user_id.clone(), ctx.clone(), now());
    cloud
        .store
        .write(&caller, move |conn| {
            let image = find_own(conn, &ctx, id)?;
            if !matches!(image.status, Status::Active | Status::Deactivated) {
                return Err(Error::Forbidden(format!(
                    "Not allowed for an image that is {}.",
                    image.status.name()
                )));
            }
            let status = if active {
                Status::Active
            } else {
                Status::Deactivated
            };
            let sql = "UPDATE images SET status = ?2, updated_at = ?3 WHERE id = ?1";
            conn.execute(sql, params![id.to_string(), status.name(), now])?;
            Ok(())
        })
        .await
}

/// Removes an image. Disks that were made from it stay.
///
/// # Errors
/// 404, 403, also for a protected one.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("images", "delete")?;
    let (caller, ctx) = (ctx.user_id.clone(), ctx.clone());
    let before = cloud
        .store
        .write(&caller, move |conn| {
            let image = find_own(conn, &ctx, id)?;
            if image.protected {
                return Err(Error::Forbidden(format!(
                    "Image {id} is protected and cannot be deleted."
                )));
            }
            if crate::compute::boot::needs(conn, id)? {
                return Err(Error::Conflict(format!(
                    "Image {id} could not be deleted because it is in use: a server starts with it as its kernel or \
                     initial RAM disk."
                )));
            }
            conn.execute(
                "UPDATE images SET status = 'pending_delete' WHERE id = ?1",
                [id.to_string()],
            )?;
            Ok(image.status)
        })
        .await?;
    // An upload under way sees that its image is going, and clears up after itself.
    if !matches!(before, Status::Saving | Status::Importing)
        && let Err(error) = super::data::purge(cloud, id).await
    {
        tracing::warn!(image = %id, %error, "a deleted image's bytes are still there; this is tried again");
    }
    Ok(())
}
