//! Lists of images: what a caller sees, filtered and sorted.

use std::cmp::Ordering;

use uuid::Uuid;

use super::members::Consent;
use super::{Image, Visibility, format_name, from_row};
use crate::{Cloud, Context, Error, Result};

/// What a list is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only of this visibility; `None` leaves out others' community images.
    pub visibility: Option<Visibility>,
    /// With others' community images.
    pub all_visibilities: bool,
    /// Only these ids.
    pub ids: Option<Vec<Uuid>>,
    /// Only with all of these tags.
    pub tags: Vec<String>,
    /// Only hidden ones, or (as without it) only others.
    pub hidden: bool,
    /// Shared images that the caller's project has answered so; without it: that it has accepted.
    pub member_status: Option<Option<Consent>>,
    /// Uploaded bytes, from and to.
    pub size: (Option<u64>, Option<u64>),
    /// Attributes and the values that they may have.
    pub attributes: Vec<(String, Vec<String>)>,
    /// Times: `created_at` or `updated_at`, how they compare, and with what.
    pub times: Vec<(TimeKey, Comparison, i64)>,
}

/// A time of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeKey {
    /// When it was made.
    Created,
    /// When it was changed.
    Updated,
}

/// Glance's comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `gt`
    Greater,
    /// `gte`
    GreaterOrEqual,
    /// `lt`
    Less,
    /// `lte`
    LessOrEqual,
    /// `eq`
    Equal,
    /// `neq`
    NotEqual,
}

impl Comparison {
    pub(crate) fn holds(self, ordering: Ordering) -> bool {
        match self {
            Comparison::Greater => ordering.is_gt(),
            Comparison::GreaterOrEqual => ordering.is_ge(),
            Comparison::Less => ordering.is_lt(),
            Comparison::LessOrEqual => ordering.is_le(),
            Comparison::Equal => ordering.is_eq(),
            Comparison::NotEqual => ordering.is_ne(),
        }
    }
}

/// A key to sort by, and whether upwards.
pub type SortKey = (String, bool);

/// Keys that images are sorted by.
const SORT_KEYS: [&str; 9] = [
    "name",
    "status",
    "container_format",
    "disk_format",
    "size",
    "id",
    "created_at",
    "updated_at",
    "owner",
];

/// All images that the caller sees and wants, sorted; the last resorts are the time of creation and the id.
///
/// # Errors
/// 403, 400 for a key that cannot be sorted by.
pub async fn list(cloud: &Cloud, ctx: &Context, filter: Filter, sort: Vec<SortKey>) -> Result<Vec<Image>> {
    ctx.require("images", "list")?;
    if let Some((key, _)) = sort.iter().find(|(key, _)| !SORT_KEYS.contains(&key.as_str())) {
        return Err(Error::BadRequest(format!(
            "Invalid sort key: {key}. It must be one of {SORT_KEYS:?}."
        )));
    }
    let ctx = ctx.clone();
    cloud
        .store
        .read(move |conn| {
            let project = ctx.project().unwrap_or("").to_owned();
            // A tenant's list does not read other tenants' private images at all.
            let sql = "SELECT i.*, m.status AS consent FROM images i
                 LEFT JOIN image_members m ON m.image_id = i.id AND m.member_id = ?1
                 WHERE i.status != 'pending_delete' AND i.hidden = ?2
                 AND (?3 OR i.owner = ?1 OR i.visibility IN ('public', 'community') OR m.status IS NOT NULL)";
            let mut sql = conn.prepare_cached(sql)?;
            let values = rusqlite::params![project, filter.hidden, ctx.is_admin()];
            let rows = sql.query_map(values, |row| {
                Ok((from_row(row)?, row.get::<_, Option<String>>("consent")?))
            })?;
            let mut images = Vec::new();
            for row in rows {
                let (image, consent) = row?;
                let consent = consent.and_then(|name| Consent::parse(&name).ok());
                if listed(&ctx, &filter, &image, consent) && wanted(&filter, &image) {
                    images.push(image);
                }
            }
            images.sort_by(|a, b| {
                let by_keys = sort.iter().map(|(key, up)| direct(compare(a, b, key), *up));
                let created = direct(a.created_at.cmp(&b.created_at), false);
                by_keys
                    .fold(Ordering::Equal, Ordering::then)
                    .then(created)
                    .then(b.id.cmp(&a.id))
            });
            Ok(images)
        })
        .await
}

fn direct(ordering: Ordering, up: bool) -> Ordering {
    if up { ordering } else { ordering.reverse() }
}

fn compare(a: &Image, b: &Image, key: &str) -> Ordering {
    let format = |image: &Image| image.disk_format.map(format_name);
    match key {
        "name" => a.name.cmp(&b.name),
        "status" => a.status.name().cmp(b.status.name()),
        "container_format" => a.container_format.cmp(&b.container_format),
        "disk_format" => format(a).cmp(&format(b)),
        "size" => a.size.cmp(&b.size),
        "id" => a.id.cmp(&b.id),
        "created_at" => a.created_at.cmp(&b.created_at),
        "updated_at" => a.updated_at.cmp(&b.updated_at),
        "owner" => a.owner.cmp(&b.owner),
        _ => Ordering::Equal,
    }
}

/// The caller sees it in lists.
fn listed(ctx: &Context, filter: &Filter, image: &Image, consent: Option<Consent>) -> bool {
    let own = image.is_own(ctx);
    let asked = filter.visibility == Some(image.visibility);
    if filter.visibility.is_some() && !asked {
        return false;
    }
    match image.visibility {
        Visibility::Public => true,
        Visibility::Community => own || asked || filter.all_visibilities,
        Visibility::Private => own || ctx.is_admin(),
        Visibility::Shared if own => true,
        Visibility::Shared => match (consent, filter.member_status) {
            (Some(consent), None) => consent == Consent::Accepted,
            (Some(consent), Some(wanted)) => wanted.is_none_or(|wanted| wanted == consent),
            (None, _) => ctx.is_admin(),
        },
    }
}

fn wanted(filter: &Filter, image: &Image) -> bool {
    let (min, max) = filter.size;
    filter.ids.as_ref().is_none_or(|ids| ids.contains(&image.id))
        && filter.tags.iter().all(|tag| image.tags.contains(tag))
        && min.is_none_or(|min| image.size.is_some_and(|size| size >= min))
        && max.is_none_or(|max| image.size.is_some_and(|size| size <= max))
        && filter.times.iter().all(|(key, comparison, at)| {
            let time = if *key == TimeKey::Created {
                image.created_at
            } else {
                image.updated_at
            };
            // Clients know whole seconds.
            comparison.holds((time / 1_000_000).cmp(&(at / 1_000_000)))
        })
        && filter.attributes.iter().all(|(key, values)| {
            let value = attribute(image, key);
            value.is_some_and(|value| values.contains(&value))
        })
}

/// An attribute as a text, as a query has it.
fn attribute(image: &Image, key: &str) -> Option<String> {
    match key {
        "name" => image.name.clone(),
        "status" => Some(image.status.name().into()),
        "owner" => Some(image.owner.clone()),
        "disk_format" => image.disk_format.map(|format| format_name(format).into()),
        "container_format" => image.container_format.clone(),
        "min_disk" => Some(image.min_disk.to_string()),
        "min_ram" => Some(image.min_ram.to_string()),
        "protected" => Some(image.protected.to_string()),
        "checksum" => image.checksum.clone(),
        "os_hash_value" => image.os_hash_value.clone(),
        "size" => image.size.map(|size| size.to_string()),
        _ => image.properties.get(key).cloned(),
    }
}
