//! Projects that an image is shared with.

use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::{Visibility, find, find_own, load};
use crate::identity::now;
use crate::{Cloud, Context, Error, Result};

/// The most members of one image.
const MAX_MEMBERS: i64 = 128;

/// What a member says to an image that was shared with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    /// Nothing yet.
    Pending,
    /// It is in its lists.
    Accepted,
    /// It is not.
    Rejected,
}

impl Consent {
    const ALL: [(Consent, &'static str); 3] = [
        (Consent::Pending, "pending"),
        (Consent::Accepted, "accepted"),
        (Consent::Rejected, "rejected"),
    ];

    /// As Glance writes it.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(consent, _)| *consent == self)
            .map_or("", |(_, name)| name)
    }

    /// The consent of this name.
    ///
    /// # Errors
    /// 400.
    pub fn parse(name: &str) -> Result<Consent> {
        let found = Self::ALL
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(consent, _)| *consent);
        found.ok_or_else(|| Error::BadRequest(format!("Invalid member status: {name}")))
    }
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The image.
    pub image_id: Uuid,
    /// The project.
    pub member_id: String,
    /// What it says.
    pub status: Consent,
    /// Microseconds since 1970.
    pub created_at: i64,
    /// Microseconds since 1970.
    pub updated_at: i64,
}

fn read(row: &Row<'_>, image_id: Uuid) -> rusqlite::Result<Member> {
    let status: String = row.get("status")?;
    Ok(Member {
        image_id,
        member_id: row.get("member_id")?,
        status: Consent::parse(&status).unwrap_or(Consent::Pending),
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

fn one(conn: &Connection, image: Uuid, member: &str) -> Result<Option<Member>> {
    let sql = "SELECT * FROM image_members WHERE image_id = ?1 AND member_id = ?2";
    let mut sql = conn.prepare_cached(sql)?;
    Ok(sql
        .query_row([&image.to_string(), member], |row| read(row, image))
        .optional()?)
}

/// The membership of the caller's project.
pub(super) fn consent_of(conn: &Connection, ctx: &Context, image: Uuid) -> Result<Option<Consent>> {
    let Ok(project) = ctx.project() else {
        return Ok(None);
    };
    Ok(one(conn, image, project)?.map(|member| member.status))
}

fn missing(member: &str) -> Error {
    Error::NotFound {
        resource: "Image member",
        id: member.to_owned(),
    }
}

/// An image's members: its owner sees all, a member itself.
///
/// # Errors
/// 404, 403.
pub async fn list(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<Vec<Member>> {
    ctx.require("image_members", "list")?;
    let ctx = ctx.clone();
    cloud
        .store
        .read(move |conn| {
            let image = find(conn, &ctx, id)?;
            let mut sql =
                conn.prepare_cached("SELECT * FROM image_members WHERE image_id = ?1 ORDER BY member_id")?;
            let rows = sql.query_map([id.to_string()], |row| read(row, id))?;
            let mut members = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            if !ctx.is_admin() && !image.is_own(&ctx) {
                members.retain(|member| ctx.project().is_ok_and(|project| project == member.member_id));
            }
            Ok(members)
        })
        .await
}

/// One member.
///
/// # Errors
/// 404, 403.
pub async fn show(cloud: &Cloud, ctx: &Context, id: Uuid, member: &str) -> Result<Member> {
    ctx.require("image_members", "show")?;
    let all = list(cloud, ctx, id).await?;
    all.into_iter()
        .find(|known| known.member_id == member)
        .ok_or_else(|| missing(member))
}

/// Shares an image with a project.
///
/// # Errors
/// 404, 403 for an image that is not `shared`, 409 if it is a member already, 413 for too many.
pub async fn add(cloud: &Cloud, ctx: &Context, id: Uuid, member: &str) -> Result<Member> {
    ctx.require("image_members", "create")?;
    if member.is_empty() || member.len() > 64 {
        return Err(Error::BadRequest("A member is named by its project's id.".into()));
    }
    let (caller, ctx, member, now) = (ctx.user_id.clone(), ctx.clone(), member.to_owned(), now());
    cloud
        .store
        .write(&caller, move |conn| {
            let image = find_own(conn, &ctx, id)?;
            if image.visibility != Visibility::Shared {
                return Err(Error::Forbidden("Only shared images have members.".into()));
            }
            if one(conn, id, &member)?.is_some() {
                return Err(Error::Conflict(format!(
                    "Member {member} is duplicated for image {id}"
                )));
            }
            let sql = "SELECT count(*) FROM image_members WHERE image_id = ?1";
            let count: i64 = conn
                .prepare_cached(sql)?
                .query_row([id.to_string()], |row| row.get(0))?;
            if count >= MAX_MEMBERS {
                return Err(Error::QuotaExceeded(format!(
                    "An image has at most {MAX_MEMBERS} members."
                )));
            }
            conn.execute(
                "INSERT INTO image_members (image_id, member_id, status, created_at, updated_at)
                 VALUES (?1, ?2, 'pending', ?3, ?3)",
                params![id.to_string(), member, now],
            )?;
            one(conn, id, &member)?.ok_or_else(|| missing(&member))
        })
        .await
}

/// A member says whether it wants the image in its lists.
///
/// # Errors
/// 404, 403 for anyone but the member.
pub async fn answer(cloud: &Cloud, ctx: &Context, id: Uuid, member: &str, status: Consent) -> Result<Member> {
    ctx.require("image_members", "update")?;
    let (caller, ctx, member, now) = (ctx.user_id.clone(), ctx.clone(), member.to_owned(), now());
    cloud
        .store
        .write(&caller, move |conn| {
            find(conn, &ctx, id)?;
            if !ctx.is_admin() && ctx.project()? != member {
                return Err(Error::Forbidden("Only the member itself answers.".into()));
            }
            one(conn, id, &member)?.ok_or_else(|| missing(&member))?;
            let sql = "UPDATE image_members SET status = ?3, updated_at = ?4 WHERE image_id = ?1 AND member_id = ?2";
            conn.execute(sql, params![id.to_string(), member, status.name(), now])?;
            one(conn, id, &member)?.ok_or_else(|| missing(&member))
        })
        .await
}

/// Shares an image with a project no more.
///
/// # Errors
/// 404, 403.
pub async fn remove(cloud: &Cloud, ctx: &Context, id: Uuid, member: &str) -> Result<()> {
    ctx.require("image_members", "delete")?;
    let (caller, ctx, member) = (ctx.user_id.clone(), ctx.clone(), member.to_owned());
    cloud
        .store
        .write(&caller, move |conn| {
            find_own(conn, &ctx, id)?;
            let sql = "DELETE FROM image_members WHERE image_id = ?1 AND member_id = ?2";
            if conn.execute(sql, [&id.to_string(), &member])? == 0 {
                return Err(missing(&member));
            }
            load(conn, id).map(|_| ())
        })
        .await
}
