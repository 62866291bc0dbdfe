//! The catalogue of vendors' images that this release knows: `assets/catalogue.toml`.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use cloud::config::{Algorithm, CatalogueEntry};
use serde::Deserialize;

use crate::config::Catalogue;

/// The file, whose text the tests below have read.
static ENTRIES: LazyLock<Vec<CatalogueEntry>> =
    LazyLock::new(|| read(include_str!("../../../assets/catalogue.toml")).unwrap_or_default());

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    image: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    url: String,
    checksums: String,
    algorithm: String,
    disk_format: String,
    min_disk: u32,
    min_ram: u32,
    until: Option<String>,
    properties: BTreeMap<String, String>,
}

fn read(text: &str) -> anyhow::Result<Vec<CatalogueEntry>> {
    let file: File = toml::from_str(text)?;
    let entries = file.image.into_iter().map(|entry| {
        let until = |text: String| {
            let form = time::macros::format_description!("[year]-[month]-[day]");
            time::Date::parse(&text, form)
        };
        Ok(CatalogueEntry {
            algorithm: match entry.algorithm.as_str() {
                "sha256" => Algorithm::Sha256,
                "sha512" => Algorithm::Sha512,
                other => anyhow::bail!("{}: algorithm {other}", entry.name),
            },
            disk_format: cloud::image::parse_format(&entry.disk_format)?,
            until: entry.until.map(until).transpose()?,
            name: entry.name,
            url: entry.url,
            checksums: entry.checksums,
            min_disk: entry.min_disk,
            min_ram: entry.min_ram,
            properties: entry.properties,
        })
    });
    entries.collect()
}

/// Whether there is an image of this name.
pub fn has(name: &str) -> bool {
    ENTRIES.iter().any(|entry| entry.name == name)
}

/// All names.
pub fn names() -> Vec<&'static str> {
    ENTRIES.iter().map(|entry| entry.name.as_str()).collect()
}

/// What the rules need of the operator's choice.
pub fn settings(chosen: &Catalogue) -> cloud::config::Catalogue {
    let wanted = |entry: &&CatalogueEntry| chosen.images.is_empty() || chosen.images.contains(&entry.name);
    cloud::config::Catalogue {
        entries: match chosen.enabled {
            true => ENTRIES.iter().filter(wanted).cloned().collect(),
            false => Vec::new(),
        },
        refresh: Duration::from_secs(chosen.refresh_hours * 60 * 60),
        retention: Duration::from_secs(chosen.retention_days * 24 * 60 * 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_whole_and_says_what_scs_0102_and_0104_ask_for() {
        let entries = read(include_str!("../../../assets/catalogue.toml")).unwrap();
        let find = |name: &str| entries.iter().find(|entry| entry.name == name).unwrap();
        for entry in &entries {
            let name = &entry.name;
            let url = url::Url::parse(&entry.url).unwrap();
            let list = url::Url::parse(&entry.checksums).unwrap();
            assert_eq!((url.scheme(), list.scheme()), ("https", "https"), "{name}");
            assert_eq!(
                url.host_str(),
                list.host_str(),
                "{name}: the vendor vouches for its own"
            );
            assert!(!entry.file_name().is_empty(), "{name}");
            assert!(entry.min_disk > 0 && entry.min_ram >= 64, "{name}");
            let property = |key: &str| entry.properties.get(key).map(String::as_str).unwrap_or_default();
            assert_eq!(property("architecture"), "x86_64", "{name}");
            for key in [
                "os_version",
                "os_distro",
                "image_original_user",
                "image_description",
            ] {
                assert!(!property(key).is_empty(), "{name}: {key}");
            }
            assert!(["generic", "minimal"].contains(&property("os_purpose")), "{name}");
            assert_eq!(property("hw_disk_bus"), "virtio", "{name}");
            assert!(
                ["daily", "weekly", "monthly", "quarterly"].contains(&property("replace_frequency")),
                "{name}"
            );
            assert_eq!(
                property("uuid_validity"),
                "none",
                "{name}: a new version is a new image"
            );
            // These the cloud sets itself.
            for key in [
                "image_source",
                "image_build_date",
                "provided_until",
                "hash_algo",
                "hash_value",
            ] {
                assert!(!entry.properties.contains_key(key), "{name}: {key}");
            }
            let same = |other: &&CatalogueEntry| {
                let key = |entry: &CatalogueEntry| {
                    ["os_distro", "os_version", "os_purpose", "architecture"]
                        .map(|key| entry.properties.get(key).cloned())
                };
                key(other) == key(entry)
            };
            assert_eq!(
                entries.iter().filter(same).count(),
                1,
                "{name}: os_purpose is unique (SCS-0102-v2)"
            );
        }
        for (name, source) in [
            ("Ubuntu 24.04", "https://cloud-images.ubuntu.com/noble/"),
            ("Ubuntu 22.04", "https://cloud-images.ubuntu.com/jammy/"),
            ("Debian 12", "https://cloud.debian.org/images/cloud/bookworm/"),
            ("Debian 13", "https://cloud.debian.org/images/cloud/trixie/"),
        ] {
            assert!(find(name).url.starts_with(source), "{name}");
        }
        assert!(has("Ubuntu 24.04") && !has("Ubuntu 4.10"));
        assert_eq!(names().len(), entries.len());
    }

    #[test]
    fn the_operator_chooses() {
        let mut chosen = Catalogue::default();
        assert!(settings(&chosen).entries.is_empty(), "off, as it comes");
        chosen.enabled = true;
        assert_eq!(settings(&chosen).entries.len(), names().len());
        chosen.images = vec!["Debian 12".into()];
        assert_eq!(settings(&chosen).entries.len(), 1);
    }
}
