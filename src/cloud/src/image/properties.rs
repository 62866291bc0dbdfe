//! Attributes of an image as Glance's documents have them: known ones with their types, all others free texts.

use serde_json::Value;

use super::{Image, Status, Visibility, parse_format};
use crate::{Context, Error, Result};

/// The most free properties.
const MAX_PROPERTIES: usize = 128;
/// The most tags.
const MAX_TAGS: usize = 128;
/// The longest free property.
const MAX_VALUE: usize = 64 * 1024;
/// The longest names.
const MAX_NAME: usize = 255;

/// Attributes that the cloud sets alone.
pub const READ_ONLY: [&str; 14] = [
    "status",
    "size",
    "checksum",
    "os_hash_algo",
    "os_hash_value",
    "virtual_size",
    "created_at",
    "updated_at",
    "self",
    "file",
    "schema",
    "direct_url",
    "stores",
    "id",
];

/// Properties that begin so are the image service's own.
const RESERVED: &str = "os_glance";

/// Attributes that are known and can be set.
pub const SETTABLE: [&str; 10] = [
    "name",
    "visibility",
    "disk_format",
    "container_format",
    "min_disk",
    "min_ram",
    "protected",
    "os_hidden",
    "owner",
    "tags",
];

fn invalid(key: &str, why: &str) -> Error {
    Error::BadRequest(format!("Invalid value for '{key}': {why}."))
}

/// Sets one attribute.
///
/// # Errors
/// 400 for a wrong type or value, 403 for what the caller may not set, or not any more.
pub(super) fn set(ctx: &Context, image: &mut Image, key: &str, value: &Value) -> Result<()> {
    let text = || match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        _ => Err(invalid(key, "a text is needed")),
    };
    let flag = || {
        value
            .as_bool()
            .ok_or_else(|| invalid(key, "true or false is needed"))
    };
    let number = || {
        let number = value.as_u64().and_then(|number| i32::try_from(number).ok());
        number
            .map(i32::unsigned_abs)
            .ok_or_else(|| invalid(key, "a number from 0 to 2147483647 is needed"))
    };
    match key {
        "name" => {
            let name = text()?;
            if name
                .as_ref()
                .is_some_and(|name| name.chars().count() > MAX_NAME || name.chars().any(char::is_control))
            {
                return Err(invalid(
                    key,
                    "at most 255 characters, none of them control characters",
                ));
            }
            image.name = name;
        }
        "visibility" => {
            let visibility = Visibility::parse(&text()?.unwrap_or_default())?;
            if visibility == Visibility::Public && image.visibility != Visibility::Public {
                ctx.require("images", "publicize")?;
            }
            image.visibility = visibility;
        }
        "disk_format" | "container_format" => {
            let format = text()?;
            let disk_format = match format.as_deref() {
                Some(name) if key == "disk_format" => Some(parse_format(name)?),
                Some("bare") | None => None,
                Some(_) => return Err(invalid(key, "this cloud takes bare")),
            };
            let same = match key {
                "disk_format" => image.disk_format == disk_format,
                _ => image.container_format == format,
            };
            if image.status != Status::Queued && !same {
                return Err(Error::Forbidden(format!(
                    "Attribute {key} can be only replaced for a queued image."
                )));
            }
            match key {
                "disk_format" => image.disk_format = disk_format,
                _ => image.container_format = format,
            }
        }
        "min_disk" => image.min_disk = number()?,
        "min_ram" => image.min_ram = number()?,
        "protected" => image.protected = flag()?,
        "os_hidden" => image.hidden = flag()?,
        "owner" => {
            let owner = text()?.filter(|owner| !owner.is_empty() && owner.len() <= MAX_NAME);
            let owner = owner.ok_or_else(|| invalid(key, "a project's id is needed"))?;
            if owner != image.owner {
                ctx.require("images", "change_owner")?;
            }
            image.owner = owner;
        }
        "tags" => {
            let tags = value.as_array().ok_or_else(|| invalid(key, "a list is needed"))?;
            image.tags.clear();
            for tag in tags {
                add_tag(
                    image,
                    tag.as_str().ok_or_else(|| invalid(key, "its items are texts"))?,
                )?;
            }
        }
        "locations" => return Err(Error::Forbidden("Locations are the cloud's own matter.".into())),
        key if is_reserved(key) => return Err(reserved(key)),
        key if READ_ONLY.contains(&key) => return Err(read_only(key)),
        _ => {
            let value = text()?.ok_or_else(|| invalid(key, "a text is needed"))?;
            let fits = !key.is_empty() && key.chars().count() <= MAX_NAME && value.len() <= MAX_VALUE;
            if !fits || key.chars().any(char::is_control) {
                return Err(invalid(key, "the name or the value is too long"));
            }
            image.properties.insert(key.to_owned(), value);
            if image.properties.len() > MAX_PROPERTIES {
                return Err(Error::QuotaExceeded(format!(
                    "An image has at most {MAX_PROPERTIES} properties."
                )));
            }
        }
    }
    Ok(())
}

/// The image service's own.
pub(super) fn is_reserved(key: &str) -> bool {
    key.starts_with(RESERVED)
}

pub(super) fn reserved(key: &str) -> Error {
    Error::Forbidden(format!("Attribute '{key}' is reserved."))
}

pub(super) fn read_only(key: &str) -> Error {
    Error::Forbidden(format!("Attribute '{key}' is read-only."))
}

pub(super) fn add_tag(image: &mut Image, tag: &str) -> Result<()> {
    if tag.is_empty() || tag.chars().count() > MAX_NAME || tag.chars().any(char::is_control) {
        return Err(invalid(
            "tags",
            "a tag has 1 to 255 characters, none of them control characters",
        ));
    }
    image.tags.insert(tag.to_owned());
    if image.tags.len() > MAX_TAGS {
        return Err(Error::QuotaExceeded(format!(
            "An image has at most {MAX_TAGS} tags."
        )));
    }
    Ok(())
}

/// Whether an attribute is there, for changes that need it to be or not to be.
pub(super) fn has(image: &Image, key: &str) -> bool {
    SETTABLE.contains(&key) || image.properties.contains_key(key)
}
