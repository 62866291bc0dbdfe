//! What a guest is told about itself: the documents of the metadata service at 169.254.169.254 and, with a config
//! drive, the same documents as files.
//!
//! OpenStack's form (`/openstack/<version>/…`) and Amazon's of 2009-04-04 and before (`/<version>/meta-data/…`), as Nova
//! serves them. `random_seed` is left out: a document that changes with every reading cannot be compiled into tables,
//! and guests have a virtio random number generator.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use model::machine::ConfigDriveFile;
use model::net::{Document, Metadata};
use rusqlite::Connection;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::ports::{self, Address, Interface};
use super::servers::{self, Server};
use crate::Result;

/// The versions of OpenStack's form that Nova lists.
const OPENSTACK_VERSIONS: [&str; 9] = [
    "2012-08-10",
    "2013-04-04",
    "2013-10-17",
    "2015-10-15",
    "2016-06-30",
    "2016-10-06",
    "2017-02-22",
    "2018-08-27",
    "2020-10-14",
];

/// The versions of Amazon's form that Nova lists.
const EC2_VERSIONS: [&str; 9] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
];

/// All that the documents are made of.
#[derive(Debug, Clone)]
pub struct Sources<'a> {
    /// The server.
    pub server: &'a Server,
    /// Its user data, as bytes.
    pub user_data: Option<Vec<u8>>,
    /// Its interfaces.
    pub interfaces: &'a [Interface],
    /// Their subnets.
    pub subnets: &'a BTreeMap<Uuid, SubnetFacts>,
    /// Its addresses.
    pub addresses: &'a [Address],
    /// The names of its security groups.
    pub security_groups: &'a [String],
    /// Where it runs.
    pub availability_zone: &'a str,
}

/// What `network_data.json` tells of a subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetFacts {
    /// Its range.
    pub cidr: IpNet,
    /// Its gateway.
    pub gateway: Option<IpAddr>,
    /// Its name servers.
    pub dns: Vec<IpAddr>,
    /// Addresses come by DHCP.
    pub dhcp: bool,
}

/// The documents of a server, or `None` if there is no such server. Called when the switch's tables are compiled.
pub fn metadata_of(conn: &Connection, server: Uuid) -> Result<Option<Metadata>> {
    let Some(server) = servers::get(conn, server)?.filter(|s| !s.deleted) else {
        return Ok(None);
    };
    with_sources(conn, &server, documents).map(Some)
}

/// The files of a server's config drive; none if it has no config drive.
pub(super) fn config_drive(conn: &Connection, server: &Server) -> Result<Vec<ConfigDriveFile>> {
    if !server.config_drive {
        return Ok(Vec::new());
    }
    with_sources(conn, server, |sources| {
        let mut files: Vec<_> = openstack_documents(sources)
            .into_iter()
            .map(|(name, document)| ConfigDriveFile {
                path: format!("openstack/latest/{name}"),
                content: document.body,
            })
            .collect();
        let text = Value::Object(ec2_tree(sources)).to_string();
        files.push(ConfigDriveFile {
            path: "ec2/latest/meta-data.json".into(),
            content: text.into_bytes(),
        });
        if let Some(data) = &sources.user_data {
            files.push(ConfigDriveFile {
                path: "ec2/latest/user-data".into(),
                content: data.clone(),
            });
        }
        files
    })
}

fn with_sources<T>(conn: &Connection, server: &Server, make: impl FnOnce(&Sources<'_>) -> T) -> Result<T> {
    let interfaces = ports::of_server(conn, server.id)?;
    let addresses = ports::addresses(conn, server.id)?;
    let security_groups = ports::security_group_names(conn, server.id)?;
    let subnets = ports::subnets(conn, &interfaces)?;
    let user_data = servers::user_data(conn, server.id)?.and_then(|text| STANDARD.decode(text).ok());
    Ok(make(&Sources {
        server,
        user_data,
        interfaces: &interfaces,
        subnets: &subnets,
        addresses: &addresses,
        security_groups: &security_groups,
        availability_zone: server.zone().unwrap_or_default(),
    }))
}

fn json_document(value: &Value) -> Document {
    Document {
        content_type: "application/json".into(),
        body: value.to_string().into_bytes(),
    }
}

fn text_document(text: impl Into<String>) -> Document {
    Document {
        content_type: "text/plain; charset=UTF-8".into(),
        body: text.into().into_bytes(),
    }
}

/// All documents, by path. Older versions are other names of `latest`: it has all that they have, and more is no harm.
pub fn documents(sources: &Sources<'_>) -> Metadata {
    let mut metadata = Metadata::default();
    for (name, document) in openstack_documents(sources) {
        metadata
            .documents
            .insert(format!("/openstack/latest/{name}"), document);
    }
    flatten(
        "/latest/meta-data",
        &Value::Object(ec2_tree(sources)),
        &mut metadata.documents,
    );
    if let Some(data) = &sources.user_data {
        let document = Document {
            content_type: "application/octet-stream".into(),
            body: data.clone(),
        };
        metadata.documents.insert("/latest/user-data".into(), document);
    }
    for version in OPENSTACK_VERSIONS {
        metadata
            .aliases
            .insert(format!("/openstack/{version}"), "/openstack/latest".into());
    }
    for version in EC2_VERSIONS {
        metadata.aliases.insert(format!("/{version}"), "/latest".into());
    }
    metadata
}

fn openstack_documents(sources: &Sources<'_>) -> Vec<(&'static str, Document)> {
    let mut documents = vec![
        ("meta_data.json", json_document(&meta_data(sources))),
        ("network_data.json", json_document(&network_data(sources))),
        ("vendor_data.json", json_document(&json!({}))),
        ("vendor_data2.json", json_document(&json!({}))),
    ];
    if let Some(data) = &sources.user_data {
        let content_type = "application/octet-stream".into();
        documents.push((
            "user_data",
            Document {
                content_type,
                body: data.clone(),
            },
        ));
    }
    documents
}

fn meta_data(sources: &Sources<'_>) -> Value {
    let server = sources.server;
    let mut data = json!({
        "uuid": server.id,
        "name": server.name,
        "hostname": server.hostname,
        "launch_index": server.launch_index,
        "availability_zone": sources.availability_zone,
        "project_id": server.project_id,
        "devices": [],
        "dedicated_cpus": [],
    });
    if let Value::Object(data) = &mut data {
        if !server.metadata.is_empty() {
            data.insert("meta".into(), json!(server.metadata));
        }
        if let Some(key) = &server.key {
            data.insert("public_keys".into(), json!({ key.name.as_str(): key.public_key }));
            data.insert(
                "keys".into(),
                json!([{"name": key.name, "type": key.kind, "data": key.public_key}]),
            );
        }
    }
    data
}

/// Links, networks and services, in the form that cloud-init reads.
fn network_data(sources: &Sources<'_>) -> Value {
    let mut links = Vec::new();
    let mut networks = Vec::new();
    let mut services = Vec::new();
    for interface in sources.interfaces {
        let link = format!("tap{}", &interface.port.to_string()[..11]);
        links.push(json!({
            "id": link,
            "vif_id": interface.port,
            "type": "ovs",
            "mtu": interface.mtu,
            "ethernet_mac_address": interface.mac,
        }));
        for (subnet, ip) in &interface.fixed_ips {
            let Some(facts) = sources.subnets.get(subnet) else {
                continue;
            };
            let version = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
            let id = format!("network{}", networks.len());
            let mut network = json!({
                "id": id,
                "link": link,
                "network_id": interface.network,
                "type": if facts.dhcp { format!("{version}_dhcp") } else { version.to_owned() },
            });
            if let (Value::Object(network), false) = (&mut network, facts.dhcp) {
                let mut routes = Vec::new();
                if let Some(gateway) = facts.gateway {
                    let any = if ip.is_ipv4() { "0.0.0.0" } else { "::" };
                    routes.push(json!({"network": any, "netmask": any, "gateway": gateway}));
                }
                network.insert("ip_address".into(), json!(ip));
                network.insert("netmask".into(), json!(facts.cidr.netmask()));
                network.insert("routes".into(), json!(routes));
                let dns: Vec<Value> = facts
                    .dns
                    .iter()
                    .map(|ip| json!({"type": "dns", "address": ip}))
                    .collect();
                network.insert("services".into(), json!(dns));
            }
            networks.push(network);
            for ip in &facts.dns {
                let service = json!({"type": "dns", "address": ip});
                if !services.contains(&service) {
                    services.push(service);
                }
            }
        }
    }
    json!({"links": links, "networks": networks, "services": services})
}

/// Amazon's tree: an object is a folder.
fn ec2_tree(sources: &Sources<'_>) -> Map<String, Value> {
    let server = sources.server;
    let first = |floating: bool| {
        let found = sources
            .addresses
            .iter()
            .find(|a| a.floating == floating && a.ip.is_ipv4());
        found.map(|a| a.ip.to_string()).unwrap_or_default()
    };
    // Amazon's ids are `i-` and eight hexadecimal digits; the UUID's beginning serves.
    let short = |id: Uuid| id.simple().to_string()[..8].to_owned();
    let mut tree = Map::new();
    let mut put = |name: &str, value: Value| tree.insert(name.to_owned(), value);
    put(
        "ami-id",
        json!(
            server
                .image_id
                .map(|id| format!("ami-{}", short(id)))
                .unwrap_or_default()
        ),
    );
    put("ami-launch-index", json!(server.launch_index.to_string()));
    put("ami-manifest-path", json!("FIXME"));
    put("block-device-mapping", json!({"ami": "vda", "root": "/dev/vda"}));
    put("hostname", json!(server.hostname));
    put("instance-action", json!("none"));
    put("instance-id", json!(format!("i-{}", short(server.id))));
    put("instance-type", json!(server.flavor.name));
    put("local-hostname", json!(server.hostname));
    put("local-ipv4", json!(first(false)));
    put(
        "placement",
        json!({"availability-zone": sources.availability_zone}),
    );
    put("public-hostname", json!(server.hostname));
    put("public-ipv4", json!(first(true)));
    put("reservation-id", json!(server.reservation_id));
    put("security-groups", json!(sources.security_groups.join("\n")));
    if let Some(key) = &server.key {
        let name = format!("0={}", key.name);
        put(
            "public-keys",
            json!({"0": {"_name": name, "openssh-key": key.public_key}}),
        );
    }
    tree
}

fn flatten(path: &str, value: &Value, documents: &mut BTreeMap<String, Document>) {
    match value {
        Value::Object(folder) => {
            for (name, value) in folder.iter().filter(|(name, _)| *name != "_name") {
                // A folder with a name of its own (`public-keys/0`) is listed by it, which its path does not tell.
                if let Some(Value::String(listed)) = value.get("_name") {
                    documents.insert(path.to_owned(), text_document(listed.as_str()));
                }
                flatten(&format!("{path}/{name}"), value, documents);
            }
        }
        Value::String(text) => {
            documents.insert(path.to_owned(), text_document(text.as_str()));
        }
        other => {
            documents.insert(path.to_owned(), text_document(other.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::keypairs::ServerKey;
    use crate::compute::servers::sample;

    fn text(metadata: &Metadata, path: &str) -> String {
        let path = metadata.resolve(path);
        let document = metadata
            .documents
            .get(path.as_ref())
            .unwrap_or_else(|| panic!("no {path}"));
        String::from_utf8(document.body.clone()).unwrap()
    }

    fn everything() -> Metadata {
        let mut server = sample("web");
        server.metadata.insert("role".into(), "front".into());
        server.key = Some(ServerKey {
            name: "k".into(),
            kind: "ssh".into(),
            public_key: "ssh-ed25519 A b".into(),
        });
        let (port, network, subnet) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let mac = "fa:16:3e:00:00:01".parse().unwrap();
        let interface = Interface {
            port,
            network,
            mac,
            mtu: 1442,
            status: "ACTIVE".into(),
            fixed_ips: vec![(subnet, "10.0.0.5".parse().unwrap())],
        };
        let facts = SubnetFacts {
            cidr: "10.0.0.0/24".parse().unwrap(),
            gateway: Some("10.0.0.1".parse().unwrap()),
            dns: vec!["10.0.0.1".parse().unwrap()],
            dhcp: true,
        };
        let address = |ip: &str, floating| Address {
            network: "net".into(),
            mac,
            ip: ip.parse().unwrap(),
            floating,
        };
        documents(&Sources {
            server: &server,
            user_data: Some(b"#!/bin/sh\n".to_vec()),
            interfaces: &[interface],
            subnets: &BTreeMap::from([(subnet, facts)]),
            addresses: &[address("10.0.0.5", false), address("203.0.113.9", true)],
            security_groups: &["default".into(), "web".into()],
            availability_zone: "nova",
        })
    }

    #[test]
    fn both_forms_tell_of_keys_names_and_addresses_in_every_version() {
        let metadata = everything();
        for version in OPENSTACK_VERSIONS.iter().chain(&["latest"]) {
            let data: Value =
                serde_json::from_str(&text(&metadata, &format!("/openstack/{version}/meta_data.json")))
                    .unwrap();
            assert_eq!(data["public_keys"]["k"], "ssh-ed25519 A b");
            assert_eq!(
                (&data["hostname"], &data["meta"]["role"]),
                (&json!("web"), &json!("front"))
            );
            assert_eq!(
                text(&metadata, &format!("/openstack/{version}/user_data")),
                "#!/bin/sh\n"
            );
        }
        for version in EC2_VERSIONS.iter().chain(&["latest"]) {
            let get = |name: &str| text(&metadata, &format!("/{version}/meta-data/{name}"));
            assert_eq!(get("public-keys"), "0=k");
            assert_eq!(get("public-keys/0/openssh-key"), "ssh-ed25519 A b");
            assert_eq!(
                (get("local-ipv4"), get("public-ipv4")),
                ("10.0.0.5".into(), "203.0.113.9".into())
            );
            assert_eq!(get("placement/availability-zone"), "nova");
            assert_eq!(get("security-groups"), "default\nweb");
            assert!(get("instance-id").starts_with("i-"));
            assert_eq!(text(&metadata, &format!("/{version}/user-data")), "#!/bin/sh\n");
        }
        let network: Value =
            serde_json::from_str(&text(&metadata, "/openstack/2018-08-27/network_data.json")).unwrap();
        assert_eq!(network["networks"][0]["type"], "ipv4_dhcp");
        assert_eq!(network["links"][0]["ethernet_mac_address"], "fa:16:3e:00:00:01");
        assert_eq!(network["services"][0]["address"], "10.0.0.1");
    }
}
