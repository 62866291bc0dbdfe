//! Answers' shapes that several endpoints share.

use cloud::Context;
use cloud::compute::Address;
use cloud::compute::disks::Disk;
use cloud::compute::flavors::Flavor;
use cloud::compute::servers::{Details, Server};
use cloud::compute::state::{Power, Task};
use model::machine::Boot;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::microversion::Microversion;
use crate::AppState;
use crate::body::Pairs;
use crate::page::next_link;

/// Makes links.
pub(super) struct Links {
    public_url: String,
}

impl Links {
    pub(super) fn new(app: &AppState) -> Self {
        Links {
            public_url: app.cloud.config.public_url.clone(),
        }
    }

    /// `self` of a thing.
    pub(super) fn own(&self, collection: &str, id: &str) -> String {
        format!("{}/compute/v2.1/{collection}/{id}", self.public_url)
    }

    fn bookmark(&self, collection: &str, id: &str) -> Value {
        json!({"rel": "bookmark", "href": format!("{}/compute/{collection}/{id}", self.public_url)})
    }

    /// Those of an image: the image service has it, too.
    pub(super) fn of_image(&self, id: &str) -> Value {
        let mut links = self.both("images", id);
        if let Some(links) = links.as_array_mut() {
            let href = format!("{}/image/v2/images/{id}", self.public_url);
            links.push(json!({"rel": "alternate", "type": "application/vnd.openstack.image", "href": href}));
        }
        links
    }

    /// `self` and `bookmark`.
    pub(super) fn both(&self, collection: &str, id: &str) -> Value {
        json!([{"rel": "self", "href": self.own(collection, id)}, self.bookmark(collection, id)])
    }

    /// Adds the link to the next page, after `last`.
    pub(super) fn next(
        &self,
        body: &mut Value,
        key: &str,
        collection: &str,
        pairs: &Pairs,
        last: Option<&str>,
    ) {
        if let Some(last) = last {
            let path = format!("{}/compute/v2.1/{collection}", self.public_url);
            body[key] = json!([{"rel": "next", "href": next_link(&path, pairs, last)}]);
        }
    }
}

/// A flavor; `detail`: all of it.
pub(super) fn flavor_view(links: &Links, version: Microversion, flavor: &Flavor, detail: bool) -> Value {
    let mut view = json!({
        "id": flavor.id,
        "name": flavor.name,
        "links": links.both("flavors", &flavor.id),
    });
    if version >= Microversion::FLAVOR_DESCRIPTION {
        view["description"] = json!(flavor.description);
    }
    if !detail {
        return view;
    }
    let swap = if flavor.swap == 0 && version < Microversion::STRICT_QUERIES {
        json!("")
    } else {
        json!(flavor.swap)
    };
    view["ram"] = json!(flavor.ram);
    view["disk"] = json!(flavor.disk);
    view["vcpus"] = json!(flavor.vcpus);
    view["swap"] = swap;
    view["OS-FLV-EXT-DATA:ephemeral"] = json!(flavor.ephemeral);
    view["OS-FLV-DISABLED:disabled"] = json!(false);
    view["os-flavor-access:is_public"] = json!(flavor.is_public);
    view["rxtx_factor"] = json!(flavor.rxtx_factor);
    if version >= Microversion::FLAVOR_EXTRA_SPECS {
        view["extra_specs"] = json!(flavor.extra_specs);
    }
    view
}

/// A server in the short list.
pub(super) fn server_brief(links: &Links, server: &Server) -> Value {
    let id = server.id.to_string();
    json!({"id": id, "name": server.name, "links": links.both("servers", &id)})
}

/// The addresses by network; with types and MACs if `extended`.
pub(super) fn addresses_view(addresses: &[Address], extended: bool) -> Value {
    let mut networks: Map<String, Value> = Map::new();
    for address in addresses {
        let version = if address.ip.is_ipv4() { 4 } else { 6 };
        let mut view = json!({"version": version, "addr": address.ip});
        if extended {
            view["OS-EXT-IPS:type"] = json!(if address.floating { "floating" } else { "fixed" });
            view["OS-EXT-IPS-MAC:mac_addr"] = json!(address.mac);
        }
        let list = networks
            .entry(address.network.clone())
            .or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(view);
        }
    }
    Value::Object(networks)
}

fn embedded_flavor(links: &Links, version: Microversion, flavor: &Flavor) -> Value {
    if version < Microversion::FLAVOR_EMBEDDED {
        return json!({"id": flavor.id, "links": [links.bookmark("flavors", &flavor.id)]});
    }
    json!({
        "original_name": flavor.name,
        "vcpus": flavor.vcpus,
        "ram": flavor.ram,
        "disk": flavor.disk,
        "ephemeral": flavor.ephemeral,
        "swap": flavor.swap,
        "extra_specs": flavor.extra_specs,
    })
}

fn volumes(version: Microversion, details: &Details) -> Vec<Value> {
    let view = |disk: &Disk| {
        let mut view = json!({"id": disk.volume});
        if version >= Microversion::MORE_ADMIN_ATTRIBUTES {
            view["delete_on_termination"] = json!(disk.delete_on_termination);
        }
        view
    };
    details.volumes.iter().map(view).collect()
}

/// All attributes of a server. `groups`: its server groups, which only `show` tells (2.71).
pub(super) fn server_view(
    links: &Links,
    version: Microversion,
    ctx: &Context,
    details: &Details,
    groups: Option<Vec<uuid::Uuid>>,
) -> Value {
    let server = &details.server;
    let id = server.id.to_string();
    let status = server.status();
    // Nova hides addresses while a server is built.
    let addresses = if status == "BUILD" {
        &[][..]
    } else {
        &details.addresses
    };
    let mut view = json!({
        "id": id,
        "name": server.name,
        "status": status,
        "tenant_id": server.project_id,
        "user_id": server.user_id,
        "metadata": server.metadata,
        "hostId": server.host_id(),
        "flavor": embedded_flavor(links, version, &server.flavor),
        "created": server.created_at.iso(),
        "updated": server.updated_at.iso(),
        "addresses": addresses_view(addresses, true),
        "accessIPv4": server.access_ip_v4.as_deref().unwrap_or_default(),
        "accessIPv6": server.access_ip_v6.as_deref().unwrap_or_default(),
        "links": links.both("servers", &id),
        "OS-DCF:diskConfig": server.disk_config,
        "OS-EXT-AZ:availability_zone": server.zone().unwrap_or_default(),
        "config_drive": if server.config_drive { "True" } else { "" },
        "key_name": server.key.as_ref().map(|k| &k.name),
        "OS-SRV-USG:launched_at": server.launched_at.map(|t| t.naive()),
        "OS-SRV-USG:terminated_at": server.terminated_at.map(|t| t.naive()),
        "OS-EXT-STS:task_state": server.task_state.map(Task::as_str),
        "OS-EXT-STS:vm_state": server.vm_state.as_str(),
        "OS-EXT-STS:power_state": server.power_state as u8,
        "os-extended-volumes:volumes_attached": volumes(version, details),
    });
    view["image"] = match server.image_id {
        Some(image) => {
            let image = image.to_string();
            json!({"id": image, "links": [links.bookmark("images", &image)]})
        }
        None => json!(""),
    };
    if !details.security_groups.is_empty() {
        let names: Vec<Value> = details
            .security_groups
            .iter()
            .map(|name| json!({"name": name}))
            .collect();
        view["security_groups"] = json!(names);
    }
    if matches!(status, "ERROR" | "DELETED")
        && let Some(fault) = &server.fault
    {
        let mut shown = json!({"code": fault.code, "created": fault.created.iso(), "message": fault.message});
        if let (Some(text), true) = (&fault.details, ctx.is_admin()) {
            shown["details"] = json!(text);
        }
        view["fault"] = shown;
    }
    if matches!(
        status,
        "ACTIVE" | "BUILD" | "REBUILD" | "RESIZE" | "VERIFY_RESIZE" | "REVERT_RESIZE"
    ) {
        view["progress"] = json!(if server.power_state == Power::Running {
            100
        } else {
            0
        });
    }
    if ctx.is_admin() {
        admin_attributes(&mut view, version, details);
    } else if version >= Microversion::HOSTNAME {
        view["OS-EXT-SRV-ATTR:hostname"] = json!(server.hostname);
    }
    if version >= Microversion::LOCKED {
        view["locked"] = json!(server.locked_by.is_some());
    }
    if version >= Microversion::DESCRIPTION {
        view["description"] = json!(server.description);
    }
    if version >= Microversion::TAGS {
        view["tags"] = json!(server.tags);
    }
    if version >= Microversion::TRUSTED_CERTIFICATES {
        view["trusted_image_certificates"] = Value::Null;
    }
    if let (Some(groups), true) = (groups, version >= Microversion::SERVER_GROUPS) {
        view["server_groups"] = json!(groups);
    }
    if version >= Microversion::LOCKED_REASON {
        view["locked_reason"] = json!(server.locked_reason);
    }
    if version >= Microversion::PINNED_ZONE {
        view["pinned_availability_zone"] = json!(server.availability_zone);
    }
    view
}

fn admin_attributes(view: &mut Value, version: Microversion, details: &Details) {
    let server = &details.server;
    view["OS-EXT-SRV-ATTR:host"] = json!(server.host);
    view["OS-EXT-SRV-ATTR:hypervisor_hostname"] = json!(server.host);
    view["OS-EXT-SRV-ATTR:instance_name"] = json!(server.instance_name());
    if version >= Microversion::MORE_ADMIN_ATTRIBUTES {
        view["OS-EXT-SRV-ATTR:hostname"] = json!(server.hostname);
        view["OS-EXT-SRV-ATTR:reservation_id"] = json!(server.reservation_id);
        view["OS-EXT-SRV-ATTR:launch_index"] = json!(server.launch_index);
        view["OS-EXT-SRV-ATTR:root_device_name"] = json!("/dev/vda");
        let (kernel, ramdisk) = match &server.boot {
            Boot::Kernel { kernel, ramdisk, .. } => (Some(*kernel), *ramdisk),
            Boot::Bios | Boot::Uefi => (None, None),
        };
        let text = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
        view["OS-EXT-SRV-ATTR:kernel_id"] = json!(text(kernel));
        view["OS-EXT-SRV-ATTR:ramdisk_id"] = json!(text(ramdisk));
        view["OS-EXT-SRV-ATTR:user_data"] = json!(details.user_data);
    }
    if version >= Microversion::HOST_STATUS {
        view["host_status"] = json!(if server.host.is_some() { "UP" } else { "" });
    }
}
