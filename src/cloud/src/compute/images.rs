//! What compute needs to know of an image.

use std::collections::BTreeMap;

use rusqlite::Connection;
use serde::Deserialize;
use uuid::Uuid;

use super::servers::{BlockDevice, BlockSource};
use crate::{Context, Error, Result};

/// An image that a server can be made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) id: Uuid,
    /// What the guest sees, in bytes.
    pub(super) virtual_size: u64,
    /// In GiB.
    pub(super) min_disk: u64,
    /// In MiB.
    pub(super) min_ram: u64,
    pub(super) properties: BTreeMap<String, String>,
}

/// The image of this id, if the caller may use it and it is complete.
pub(super) fn find(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Image> {
    let image = crate::image::find_for_boot(conn, ctx, id)?;
    Ok(Image {
        id: image.id,
        virtual_size: image.virtual_size.or(image.size).unwrap_or_default(),
        min_disk: image.min_disk.into(),
        min_ram: image.min_ram.into(),
        properties: image.properties,
    })
}

/// An entry of an image's `block_device_mapping`.
#[derive(Deserialize)]
struct Mapping {
    snapshot_id: Option<Uuid>,
    volume_size: Option<u32>,
    boot_index: Option<i64>,
    delete_on_termination: Option<bool>,
    tag: Option<String>,
}

/// The most disks that an image may name.
const MAX_MAPPINGS: usize = 26;

/// The disks that an image of a server with volumes names; `None`: it is one with bytes.
pub(super) fn mapping(image: &Image) -> Result<Option<Vec<BlockDevice>>> {
    let Some(text) = image.properties.get("block_device_mapping") else {
        return Ok(None);
    };
    let invalid = || {
        Error::BadRequest(format!(
            "Image {} is invalid: its block_device_mapping.",
            image.id
        ))
    };
    let list: Vec<Mapping> = serde_json::from_str(text).map_err(|_| invalid())?;
    if list.is_empty() {
        return Ok(None);
    }
    if list.len() > MAX_MAPPINGS {
        return Err(invalid());
    }
    let devices = list.into_iter().map(|mapping| {
        Ok(BlockDevice {
            source: BlockSource::Snapshot(mapping.snapshot_id.ok_or_else(invalid)?),
            volume: true,
            size_gib: mapping.volume_size,
            boot: mapping.boot_index == Some(0),
            swap: false,
            delete_on_termination: mapping.delete_on_termination.unwrap_or(false),
            tag: mapping.tag,
            volume_type: None,
        })
    });
    devices.collect::<Result<_>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(mapping: Option<&str>) -> Image {
        Image {
            id: Uuid::nil(),
            virtual_size: 0,
            min_disk: 0,
            min_ram: 0,
            properties: mapping
                .map(|text| ("block_device_mapping".to_owned(), text.to_owned()))
                .into_iter()
                .collect(),
        }
    }

    #[test]
    fn a_tenants_mapping_is_taken_or_refused() {
        assert_eq!(mapping(&image(None)).unwrap(), None);
        assert_eq!(mapping(&image(Some("[]"))).unwrap(), None);
        let good = format!(
            r#"[{{"snapshot_id": "{}", "boot_index": 0, "volume_size": 2}}]"#,
            Uuid::nil()
        );
        let devices = mapping(&image(Some(&good))).unwrap().unwrap();
        assert!(devices[0].boot && devices[0].volume && devices[0].size_gib == Some(2));
        let many = format!("[{}]", vec![good.trim_matches(['[', ']']); 27].join(","));
        for bad in ["{}", "[{}]", "[1]", "x", many.as_str()] {
            assert!(
                matches!(mapping(&image(Some(bad))), Err(Error::BadRequest(_))),
                "{bad}"
            );
        }
    }
}
