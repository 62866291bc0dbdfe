//! The body of `POST /servers`.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cloud::Error;
use cloud::compute::servers::{BlockDevice, Create, NetRequest, Networks, TaggedNetwork};
use serde_json::Value;
use uuid::Uuid;

use super::check::{Object, boolean_of, invalid, metadata_of, name_of, uuid_of};
use super::devices;
use super::microversion::Microversion;

/// The longest user data, as base64.
const MAX_USER_DATA: usize = 65_535;
/// The longest tag.
const MAX_TAG: usize = 60;

/// What a body asks for.
pub(super) struct Request {
    pub(super) create: Create,
    pub(super) admin_pass: String,
    pub(super) return_reservation_id: bool,
}

/// `accessIPv4` or `accessIPv6`: an address of that family, or an empty text for none.
pub(super) fn access_ip(server: &Object<'_>, key: &str) -> Result<Option<Option<String>>, Error> {
    let Some(value) = server.get(key) else {
        return Ok(None);
    };
    let family = key.trim_start_matches("accessIP");
    match value.as_str() {
        Some("") => Ok(Some(None)),
        Some(text) => match text.parse::<IpAddr>() {
            Ok(ip) if ip.is_ipv4() == (family == "v4") => Ok(Some(Some(ip.to_string()))),
            _ => Err(invalid(
                &server.path(key),
                value,
                &format!("'{text}' is not a 'ip{family}'"),
            )),
        },
        None => Err(invalid(
            &server.path(key),
            value,
            &format!("{value} is not of type 'string'"),
        )),
    }
}

/// `OS-DCF:diskConfig`.
pub(super) fn disk_config(server: &Object<'_>) -> Result<Option<String>, Error> {
    let key = "OS-DCF:diskConfig";
    match server.get(key) {
        None => Ok(None),
        Some(Value::String(text)) if text == "AUTO" || text == "MANUAL" => Ok(Some(text.clone())),
        Some(value) => Err(invalid(
            &server.path(key),
            value,
            "It is not one of ['AUTO', 'MANUAL']",
        )),
    }
}

/// `hostname` (2.90): one label, or from 2.94 a whole name.
pub(super) fn hostname(server: &Object<'_>, version: Microversion) -> Result<Option<String>, Error> {
    let Some(text) = server.string("hostname", 1, 255)? else {
        return Ok(None);
    };
    let fqdn = version >= Microversion::FQDN;
    let right = if fqdn {
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    } else {
        let inner = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        (2..=63).contains(&text.len()) && inner && !text.starts_with('-') && !text.ends_with('-')
    };
    if right {
        return Ok(Some(text.to_owned()));
    }
    let value = Value::String(text.to_owned());
    let pattern = if fqdn {
        "^[a-zA-Z0-9-._]*$"
    } else {
        "^[a-zA-Z0-9]+[a-zA-Z0-9-]*[a-zA-Z0-9]+$"
    };
    Err(invalid(
        &server.path("hostname"),
        &value,
        &format!("'{text}' does not match '{pattern}'"),
    ))
}

/// A tag: 1 to 60 characters without `/` and `,`.
pub(super) fn tag_of(field: &str, value: &Value) -> Result<String, Error> {
    let tag = super::check::string_of(field, value, 1, MAX_TAG)?;
    if tag.contains(['/', ',']) {
        return Err(invalid(
            field,
            value,
            &format!("'{tag}' does not match '^[^,/]*$'"),
        ));
    }
    Ok(tag.to_owned())
}

/// Reads and checks the whole body.
pub(super) fn parse(body: &Value, version: Microversion) -> Result<Request, Error> {
    let request = Object::body(body)?;
    request.allow(&["server", "os:scheduler_hints", "OS-SCH-HNT:scheduler_hints"])?;
    let server = Object::of("server", request.required("server")?)?;
    server.allow(&known(version))?;
    server.required("name")?;
    let flavor_ref = server.required("flavorRef")?;
    let flavor = match flavor_ref {
        Value::Number(number) => number.to_string(),
        Value::String(text) if !text.is_empty() => last_segment(text),
        _ => {
            return Err(invalid(
                "server.flavorRef",
                flavor_ref,
                "It is not the id of a flavor",
            ));
        }
    };
    let (min_count, max_count) = counts(&server)?;
    let networks = networks(&server, version)?;
    let metadata = match server.get("metadata") {
        Some(value) => metadata_of("server.metadata", value)?,
        None => Default::default(),
    };
    let description = server.nullable("description", 255)?.flatten().map(str::to_owned);
    let name = server.name("name")?.unwrap_or_default();
    let tags = match server.array("tags")? {
        Some(tags) => tags
            .iter()
            .map(|tag| tag_of("server.tags", tag))
            .collect::<Result<_, _>>()?,
        None => Vec::new(),
    };
    let config_drive = match server.get("config_drive") {
        // The CLI of old days sends an empty text for "no".
        None | Some(Value::Null) => false,
        Some(Value::String(text)) if text.is_empty() => false,
        Some(value) => boolean_of("server.config_drive", value)?,
    };
    let host = match server.string("host", 1, 255)? {
        Some(host) => Some(host),
        None => server.string("hypervisor_hostname", 1, 255)?,
    };
    let (image, devices) = disks(&server, version)?;
    let create = Create {
        image,
        devices,
        flavor,
        networks,
        security_groups: security_groups(&server)?,
        key_name: server.name("key_name")?,
        user_data: user_data(&server)?,
        config_drive,
        metadata,
        tags,
        min_count,
        max_count,
        availability_zone: server.name("availability_zone")?,
        host: host.map(str::to_owned),
        access_ip_v4: access_ip(&server, "accessIPv4")?.flatten(),
        access_ip_v6: access_ip(&server, "accessIPv6")?.flatten(),
        disk_config: disk_config(&server)?.unwrap_or_else(|| "MANUAL".into()),
        server_group: server_group(&request)?,
        hostname: hostname(&server, version)?,
        // Before 2.19 the description is the name.
        description: if version < Microversion::DESCRIPTION {
            Some(name.clone())
        } else {
            description
        },
        name,
    };
    let admin_pass = match server.string("adminPass", 0, 255)? {
        Some(password) => password.to_owned(),
        None => password(),
    };
    let return_reservation_id = server.boolean("return_reservation_id")?.unwrap_or(false);
    Ok(Request {
        create,
        admin_pass,
        return_reservation_id,
    })
}

fn known(version: Microversion) -> Vec<&'static str> {
    let mut known = vec![
        "name",
        "imageRef",
        "flavorRef",
        "adminPass",
        "metadata",
        "networks",
        "OS-DCF:diskConfig",
        "accessIPv4",
        "accessIPv6",
        "availability_zone",
        "block_device_mapping",
        "block_device_mapping_v2",
        "config_drive",
        "key_name",
        "min_count",
        "max_count",
        "return_reservation_id",
        "security_groups",
        "user_data",
    ];
    let since = |keys: &[&'static str], from: Microversion, known: &mut Vec<&'static str>| {
        if version >= from {
            known.extend(keys);
        }
    };
    since(&["description"], Microversion::DESCRIPTION, &mut known);
    since(&["tags"], Microversion::TAGS_AT_CREATION, &mut known);
    since(
        &["trusted_image_certificates"],
        Microversion::TRUSTED_CERTIFICATES,
        &mut known,
    );
    since(
        &["host", "hypervisor_hostname"],
        Microversion::HOST_AT_CREATION,
        &mut known,
    );
    since(&["hostname"], Microversion::HOSTNAME, &mut known);
    if version < Microversion::NO_PERSONALITY {
        known.push("personality");
    }
    known
}

/// Some clients send a whole link where an id is meant.
pub(super) fn last_segment(text: &str) -> String {
    text.rsplit('/').next().unwrap_or(text).to_owned()
}

/// 12 characters that no one confuses.
pub(super) fn password() -> String {
    const LETTERS: &[u8] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let bytes: [u8; 12] = rand::random();
    bytes
        .iter()
        .map(|b| char::from(LETTERS[usize::from(*b) % LETTERS.len()]))
        .collect()
}

fn counts(server: &Object<'_>) -> Result<(u32, u32), Error> {
    let count = |key: &str| -> Result<Option<u32>, Error> {
        Ok(server
            .integer(key, 1, i64::from(u32::MAX))?
            .and_then(|n| u32::try_from(n).ok()))
    };
    let min = count("min_count")?.unwrap_or(1);
    let max = count("max_count")?.unwrap_or(min);
    if min > max {
        return Err(Error::BadRequest("min_count must be <= max_count".into()));
    }
    Ok((min, max))
}

/// The image of a local root disk, and the disks beside it: `imageRef` and `block_device_mapping_v2`.
fn disks(server: &Object<'_>, version: Microversion) -> Result<(Option<Uuid>, Vec<BlockDevice>), Error> {
    if let Some(value) = server.get("personality")
        && !value.as_array().is_some_and(Vec::is_empty)
    {
        let why = "Files are not injected: use user_data or a config drive";
        return Err(invalid(&server.path("personality"), value, why));
    }
    if let Some(value) = server.get("trusted_image_certificates")
        && !value.is_null()
    {
        let why = "Image signatures are not verified here";
        return Err(invalid(&server.path("trusted_image_certificates"), value, why));
    }
    let mapping = devices::parse(server, version)?;
    let image_ref = server.get("imageRef");
    let of_ref = match image_ref {
        None => None,
        Some(Value::String(text)) if text.is_empty() => None,
        Some(value) => Some(image_of(value)?),
    };
    let boots = mapping.devices.iter().any(|device| device.boot);
    match (of_ref, mapping.image) {
        (Some(image), Some(mapped)) if image != mapped => Err(Error::BadRequest(
            "Block Device Mapping is Invalid: its image is another than imageRef.".into(),
        )),
        // An image beside a volume to boot from is what the volume is made of, to some clients.
        (Some(_), None) if boots => Ok((None, mapping.devices)),
        (Some(image), _) | (None, Some(image)) => Ok((Some(image), mapping.devices)),
        (None, None) if boots => Ok((None, mapping.devices)),
        (None, None) if !mapping.devices.is_empty() => Err(Error::BadRequest(
            "Block Device Mapping is Invalid: Boot sequence for the instance and image/block device mapping \
             combination is not valid."
                .into(),
        )),
        (None, None) if image_ref.is_some() => Err(Error::BadRequest("Invalid imageRef provided.".into())),
        (None, None) => Err(Error::BadRequest("Missing imageRef attribute".into())),
    }
}

/// The id in an `imageRef`, which may be a whole link.
pub(super) fn image_of(value: &Value) -> Result<Uuid, Error> {
    let id = value
        .as_str()
        .map(last_segment)
        .and_then(|text| text.parse().ok());
    id.ok_or_else(|| invalid("imageRef", value, &format!("{value} is not a 'uuid'")))
}

/// Networks and disks take a tag.
pub(super) fn takes_tags(version: Microversion) -> bool {
    version >= Microversion::DEVICE_TAGS
        || (Microversion::DEVICE_TAGS_ONCE..=Microversion::NO_NETWORK_PROXIES).contains(&version)
}

fn networks(server: &Object<'_>, version: Microversion) -> Result<Networks, Error> {
    let named = version >= Microversion::NETWORKS_NEEDED;
    let Some(value) = server.get("networks") else {
        if named {
            server.required("networks")?;
        }
        return Ok(Networks::Unsaid);
    };
    match value {
        Value::String(word) if named && word == "auto" => return Ok(Networks::Auto),
        Value::String(word) if named && word == "none" => return Ok(Networks::None),
        Value::Array(_) => {}
        _ => {
            return Err(invalid(
                "server.networks",
                value,
                &format!("{value} is not of type 'array'"),
            ));
        }
    }
    let tags = takes_tags(version);
    let mut list = Vec::new();
    for (index, item) in server.array("networks")?.into_iter().flatten().enumerate() {
        let network = Object::of(format!("server.networks[{index}]"), item)?;
        network.allow(if tags {
            &["uuid", "port", "fixed_ip", "tag"]
        } else {
            &["uuid", "port", "fixed_ip"]
        })?;
        let fixed_ip = match network.get("fixed_ip") {
            None | Some(Value::Null) => None,
            Some(value) => {
                let ip = value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
                let why = || invalid(&network.path("fixed_ip"), value, "It is not an IP address");
                Some(ip.ok_or_else(why)?)
            }
        };
        let id = |key: &str| match network.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => uuid_of(&network.path(key), value).map(Some),
        };
        let request = NetRequest {
            network: id("uuid")?,
            port: id("port")?,
            fixed_ip,
        };
        if request.port.is_some() && request.fixed_ip.is_some() {
            return Err(Error::BadRequest(
                "Specified Fixed IP cannot be used with a port: set the port's own address.".into(),
            ));
        }
        if request.port.is_none() && request.network.is_none() {
            return Err(Error::BadRequest("Bad network format: missing 'uuid'".into()));
        }
        let twice = list
            .iter()
            .any(|n: &TaggedNetwork| n.request.port.is_some() && n.request.port == request.port);
        if twice {
            return Err(Error::BadRequest("The same port cannot be given twice.".into()));
        }
        let tag = network.get("tag").filter(|v| !v.is_null());
        let tag = tag.map(|tag| tag_of(&network.path("tag"), tag)).transpose()?;
        list.push(TaggedNetwork { request, tag });
    }
    Ok(Networks::List(list))
}

fn security_groups(server: &Object<'_>) -> Result<Vec<String>, Error> {
    let mut names: Vec<String> = Vec::new();
    for (index, item) in server.array("security_groups")?.into_iter().flatten().enumerate() {
        let group = Object::of(format!("server.security_groups[{index}]"), item)?;
        group.allow(&["name"])?;
        let name = name_of(&group.path("name"), group.required("name")?)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

pub(super) fn user_data(server: &Object<'_>) -> Result<Option<String>, Error> {
    let Some(value) = server.get("user_data").filter(|v| !v.is_null()) else {
        return Ok(None);
    };
    let text = super::check::string_of("server.user_data", value, 0, MAX_USER_DATA)?;
    let joined: String = text.split_ascii_whitespace().collect();
    let bytes = STANDARD
        .decode(&joined)
        .map_err(|_| invalid("server.user_data", value, "It is not a 'base64'"))?;
    Ok(Some(STANDARD.encode(bytes)))
}

fn server_group(request: &Object<'_>) -> Result<Option<Uuid>, Error> {
    let key = "os:scheduler_hints";
    let other = "OS-SCH-HNT:scheduler_hints";
    let Some((key, value)) = request
        .get(key)
        .map(|v| (key, v))
        .or(request.get(other).map(|v| (other, v)))
    else {
        return Ok(None);
    };
    let hints = Object::of(key, value)?;
    match hints.get("group") {
        None => Ok(None),
        Some(Value::Array(list)) => match list.as_slice() {
            [] => Ok(None),
            [one] => uuid_of(&hints.path("group"), one).map(Some),
            _ => Err(Error::BadRequest(
                "A server is in one server group at most.".into(),
            )),
        },
        Some(value) => uuid_of(&hints.path("group"), value).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const IMAGE: &str = "70a599e0-31e7-49b7-b260-868f441e862b";

    fn with(version: u16, extra: Value) -> Result<Request, Error> {
        let mut body = json!({"server": {"name": "vm", "imageRef": IMAGE, "flavorRef": "1"}});
        if version >= 37 {
            body["server"]["networks"] = json!("auto");
        }
        for (key, value) in extra.as_object().unwrap() {
            body["server"][key] = value.clone();
        }
        parse(&body, Microversion(version))
    }

    #[test]
    fn every_versions_fields_are_taken_from_it_on() {
        for (field, value, from) in [
            ("description", json!("x"), 19),
            ("tags", json!(["a"]), 52),
            ("host", json!("n1"), 74),
            ("hostname", json!("abc"), 90),
        ] {
            assert!(with(from - 1, json!({field: value})).is_err(), "{field}");
            assert!(with(from, json!({field: value})).is_ok(), "{field}");
        }
        assert!(with(56, json!({"personality": []})).is_ok());
        assert!(with(57, json!({"personality": []})).is_err());
        assert!(with(36, json!({"networks": "auto"})).is_err());
        assert_eq!(
            with(37, json!({"networks": "none"}))
                .ok()
                .unwrap()
                .create
                .networks,
            Networks::None
        );
        assert!(with(93, json!({"hostname": "a.b"})).is_err());
        assert!(with(94, json!({"hostname": "a.b"})).is_ok());
        for (version, taken) in [
            (31, false),
            (32, true),
            (36, true),
            (37, false),
            (41, false),
            (42, true),
        ] {
            let networks = json!([{"uuid": IMAGE, "tag": "t"}]);
            assert_eq!(
                with(version, json!({"networks": networks})).is_ok(),
                taken,
                "{version}"
            );
        }
    }

    #[test]
    fn what_the_cli_sends_is_taken() {
        let mapping = json!([{"uuid": IMAGE, "boot_index": 0, "source_type": "image", "destination_type": "local",
            "delete_on_termination": true}]);
        let request = with(
            96,
            json!({"block_device_mapping_v2": mapping, "min_count": 1, "max_count": 3,
            "security_groups": [{"name": "a"}], "user_data": "IyEvYmluL3NoCg==", "config_drive": "True",
            "networks": [{"uuid": IMAGE}], "key_name": "k"}),
        )
        .ok()
        .unwrap();
        assert_eq!(request.create.image.unwrap().to_string(), IMAGE);
        assert_eq!((request.create.min_count, request.create.max_count), (1, 3));
        assert!(request.create.config_drive);
        assert_eq!(request.admin_pass.len(), 12);
    }

    #[test]
    fn what_cannot_be_done_is_a_400_that_says_so() {
        let local =
            json!([{"boot_index": 1, "source_type": "image", "destination_type": "local", "uuid": IMAGE}]);
        for (extra, word) in [
            (
                json!({"block_device_mapping_v2": local}),
                "Mapping image to local is not supported",
            ),
            (json!({"imageRef": ""}), "imageRef"),
            (json!({"imageRef": "x"}), "uuid"),
            (json!({"name": ""}), "too short"),
            (json!({"name": "x".repeat(256)}), "too long"),
            (json!({"name": 12345}), "string"),
            (json!({"min_count": 0}), "minimum"),
            (
                json!({"min_count": 3, "max_count": 2}),
                "min_count must be <= max_count",
            ),
            (json!({"user_data": "!"}), "base64"),
            (json!({"user_data": "A".repeat(65_536)}), "too long"),
            (json!({"accessIPv4": "::1"}), "ipv4"),
            (json!({"accessIPv6": "notanip"}), "ipv6"),
            (json!({"metadata": {"k": "v".repeat(256)}}), "too long"),
            (json!({"metadata": []}), "object"),
            (json!({"networks": [{}]}), "missing 'uuid'"),
            (json!({"networks": [{"uuid": "a-b-c"}]}), "uuid"),
            (json!({"bogus": 1}), "'bogus' was unexpected"),
        ] {
            let error = with(52, extra.clone()).err().unwrap();
            assert!(matches!(error, Error::BadRequest(_)), "{extra}");
            assert!(error.to_string().contains(word), "{extra}: {error}");
        }
        assert!(parse(&json!({"server": {}}), Microversion(1)).is_err());
        assert!(parse(&json!([]), Microversion(1)).is_err());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::hash_map("[a-z_]{1,8}", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_value_in_any_field_is_taken_or_a_400(field in 0usize..19, value in any_json(), minor in 1u16..=96) {
            let version = Microversion(minor);
            let key = known(version)[field];
            let mut body = json!({"server": {"name": "vm", "imageRef": IMAGE, "flavorRef": "1", "networks": []}});
            body["server"][key] = value;
            if let Err(error) = parse(&body, version) {
                prop_assert!(matches!(error, Error::BadRequest(_)), "{error}");
            }
        }
    }
}
