//! `block_device_mapping_v2`, and its older form.

use cloud::Error;
use cloud::compute::servers::{BlockDevice, BlockSource};
use serde_json::Value;
use uuid::Uuid;

use super::check::{Object, boolean_of, integer_of, invalid, uuid_of};
use super::create::{tag_of, takes_tags};
use super::microversion::Microversion;

/// What the mappings of a request amount to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mapping {
    /// The image of a local root disk.
    pub(super) image: Option<Uuid>,
    /// All other disks.
    pub(super) devices: Vec<BlockDevice>,
}

/// Reads both forms, of which one may be there.
pub(super) fn parse(server: &Object<'_>, version: Microversion) -> Result<Mapping, Error> {
    let mut mapping = Mapping::default();
    let (new, old) = ("block_device_mapping_v2", "block_device_mapping");
    let given = |key: &str| {
        server
            .get(key)
            .is_some_and(|v| v.as_array().is_none_or(|a| !a.is_empty()))
    };
    if given(new) && given(old) {
        return Err(Error::BadRequest(
            "Using different block_device_mapping syntaxes is not allowed in the same request.".into(),
        ));
    }
    for (index, value) in server.array(new)?.into_iter().flatten().enumerate() {
        let entry = Object::of(server.path(&format!("{new}[{index}]")), value)?;
        add(&mut mapping, &entry, version)?;
    }
    for (index, value) in server.array(old)?.into_iter().flatten().enumerate() {
        let entry = Object::of(server.path(&format!("{old}[{index}]")), value)?;
        add_old(&mut mapping, &entry, index == 0)?;
    }
    Ok(mapping)
}

fn wrong(why: &str) -> Error {
    Error::BadRequest(format!("Block Device Mapping is Invalid: {why}"))
}

fn size(entry: &Object<'_>) -> Result<Option<u32>, Error> {
    match entry.get("volume_size") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(value) => {
            let number = integer_of(&entry.path("volume_size"), value, 1, i64::from(i32::MAX))?;
            Ok(u32::try_from(number).ok())
        }
    }
}

fn flag(entry: &Object<'_>, key: &str) -> Result<bool, Error> {
    match entry.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(value) => boolean_of(&entry.path(key), value),
    }
}

fn id(entry: &Object<'_>, key: &str) -> Result<Option<Uuid>, Error> {
    match entry.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(value) => uuid_of(&entry.path(key), value).map(Some),
    }
}

/// The entry takes a device away that no one added.
fn is_nothing(entry: &Object<'_>) -> bool {
    entry
        .get("no_device")
        .is_some_and(|v| v.as_str().map_or(v == &Value::Bool(true), |t| !t.is_empty()))
}

const KNOWN: &[&str] = &[
    "boot_index",
    "delete_on_termination",
    "destination_type",
    "device_name",
    "device_type",
    "disk_bus",
    "guest_format",
    "no_device",
    "source_type",
    "uuid",
    "virtual_name",
    "volume_id",
    "snapshot_id",
    "image_id",
    "volume_size",
];

fn add(mapping: &mut Mapping, entry: &Object<'_>, version: Microversion) -> Result<(), Error> {
    let mut known = KNOWN.to_vec();
    if takes_tags(version) {
        known.push("tag");
    }
    if version >= Microversion::VOLUME_TYPE {
        known.push("volume_type");
    }
    entry.allow(&known)?;
    if is_nothing(entry) {
        return Ok(());
    }
    if let Some(value) = entry.get("device_name").filter(|v| !v.is_null()) {
        let field = entry.path("device_name");
        let name = super::check::string_of(&field, value, 1, 255)?;
        let right = name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
        if !right {
            return Err(invalid(&field, value, "It does not match '^[a-zA-Z0-9._-r/]*$'"));
        }
    }
    for key in ["disk_bus", "device_type", "guest_format"] {
        entry.string(key, 0, 255)?;
    }
    let boot_index = match entry.get("boot_index") {
        None | Some(Value::Null) => None,
        Some(value) => Some(integer_of(
            &entry.path("boot_index"),
            value,
            -1,
            i64::from(i32::MAX),
        )?),
    };
    let word = |key: &str, words: &[&str]| -> Result<Option<String>, Error> {
        let Some(text) = entry.string(key, 0, 255)? else {
            return Ok(None);
        };
        if words.contains(&text) {
            return Ok(Some(text.to_owned()));
        }
        let value = Value::String(text.to_owned());
        Err(invalid(
            &entry.path(key),
            &value,
            &format!("'{text}' is not one of {words:?}"),
        ))
    };
    let source = word("source_type", &["volume", "image", "snapshot", "blank"])?;
    let source = source.ok_or_else(|| wrong("Missing source_type"))?;
    let destination = word("destination_type", &["local", "volume"])?;
    let uuid = id(entry, "uuid")?;
    let needed = || uuid.ok_or_else(|| wrong("Missing device UUID."));
    let boot = boot_index == Some(0);
    let size_gib = size(entry)?;
    let volume = match (source.as_str(), destination.as_deref()) {
        ("image", Some("local") | None) => {
            let image = needed()?;
            if !(boot || boot_index.is_none()) || mapping.image.is_some() {
                return Err(wrong("Mapping image to local is not supported."));
            }
            mapping.image = Some(image);
            return Ok(());
        }
        ("blank", None | Some("local")) => false,
        ("volume" | "snapshot", Some("local")) => {
            return Err(wrong(&format!("Mapping {source} to local is not supported.")));
        }
        _ => true,
    };
    if volume && size_gib.is_none() && matches!(source.as_str(), "image" | "blank") {
        return Err(wrong(&format!(
            "Images with destination_type 'volume' need to have a non-zero size specified: {source}"
        )));
    }
    let tag = entry.get("tag").filter(|v| !v.is_null());
    mapping.devices.push(BlockDevice {
        source: match source.as_str() {
            "image" => BlockSource::Image(needed()?),
            "snapshot" => BlockSource::Snapshot(needed()?),
            "volume" => BlockSource::Volume(needed()?),
            _ if uuid.is_some() => return Err(wrong("Invalid device UUID.")),
            _ => BlockSource::Blank,
        },
        volume,
        size_gib,
        boot,
        swap: !volume && entry.string("guest_format", 0, 255)? == Some("swap"),
        delete_on_termination: flag(entry, "delete_on_termination")?,
        tag: tag.map(|tag| tag_of(&entry.path("tag"), tag)).transpose()?,
        volume_type: entry.string("volume_type", 0, 255)?.map(str::to_owned),
    });
    Ok(())
}

/// The form of Nova's first days: volumes and snapshots, the first of which is booted from.
fn add_old(mapping: &mut Mapping, entry: &Object<'_>, first: bool) -> Result<(), Error> {
    if is_nothing(entry) {
        return Ok(());
    }
    let (volume, snapshot) = (id(entry, "volume_id")?, id(entry, "snapshot_id")?);
    let source = match (volume, snapshot) {
        (Some(volume), None) => BlockSource::Volume(volume),
        (_, Some(snapshot)) => BlockSource::Snapshot(snapshot),
        (None, None) => return Err(wrong("it names neither a volume nor a snapshot.")),
    };
    mapping.devices.push(BlockDevice {
        source,
        volume: true,
        size_gib: size(entry)?,
        boot: first,
        swap: false,
        delete_on_termination: flag(entry, "delete_on_termination")?,
        tag: None,
        volume_type: None,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ID: &str = "70a599e0-31e7-49b7-b260-868f441e862b";

    fn of(version: u16, entries: Value) -> Result<Mapping, Error> {
        let body = json!({"block_device_mapping_v2": entries});
        parse(&Object::of("server", &body)?, Microversion(version))
    }

    #[test]
    fn every_source_is_read() {
        let image = of(
            1,
            json!([{"source_type": "image", "destination_type": "local", "uuid": ID, "boot_index": 0}]),
        );
        assert_eq!(image.unwrap().image.unwrap().to_string(), ID);
        for (entry, volume, boot) in [
            (
                json!({"source_type": "image", "destination_type": "volume", "uuid": ID, "volume_size": 1, "boot_index": 0}),
                true,
                true,
            ),
            (
                json!({"source_type": "volume", "uuid": ID, "boot_index": "0"}),
                true,
                true,
            ),
            (
                json!({"source_type": "snapshot", "destination_type": "volume", "uuid": ID}),
                true,
                false,
            ),
            (
                json!({"source_type": "blank", "destination_type": "volume", "volume_size": "2"}),
                true,
                false,
            ),
            (json!({"source_type": "blank", "boot_index": -1}), false, false),
        ] {
            let mapping = of(1, json!([entry])).unwrap();
            assert_eq!(
                (mapping.devices[0].volume, mapping.devices[0].boot),
                (volume, boot),
                "{entry}"
            );
        }
        let swap = of(
            1,
            json!([{"source_type": "blank", "destination_type": "local", "guest_format": "swap"}]),
        );
        assert!(swap.unwrap().devices[0].swap);
        assert_eq!(of(1, json!([{"no_device": true}])).unwrap(), Mapping::default());
    }

    #[test]
    fn what_makes_no_disk_is_refused() {
        for entry in [
            json!({}),
            json!({"source_type": "image", "destination_type": "volume", "uuid": ID}),
            json!({"source_type": "blank", "destination_type": "volume"}),
            json!({"source_type": "volume"}),
            json!({"source_type": "volume", "uuid": "x"}),
            json!({"source_type": "snapshot", "destination_type": "local", "uuid": ID}),
            json!({"source_type": "blank", "uuid": ID}),
            json!({"source_type": "image", "uuid": ID, "boot_index": 1}),
            json!({"source_type": "volume", "uuid": ID, "volume_size": 0}),
            json!({"source_type": "volume", "uuid": ID, "bogus": 1}),
            json!(7),
        ] {
            assert!(
                matches!(of(67, json!([entry])), Err(Error::BadRequest(_))),
                "{entry}"
            );
        }
        let volume = |key: &str| json!([{"source_type": "volume", "uuid": ID, key: "x"}]);
        for (key, from) in [("tag", 42), ("volume_type", 67)] {
            assert!(of(from - 1, volume(key)).is_err(), "{key}");
            assert!(of(from, volume(key)).is_ok(), "{key}");
        }
    }
}
