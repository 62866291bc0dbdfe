//! The catalog: which services this cloud serves, and where.

use crate::Config;

/// A service that this release serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// The service's id, the same in every cloud.
    pub id: &'static str,
    /// Its official type, by which clients find it.
    pub kind: &'static str,
    /// Its name, as operators know it.
    pub name: &'static str,
    /// What it is.
    pub description: &'static str,
    /// Its path below the public URL.
    pub path: &'static str,
    /// The ids of its public, internal and admin endpoints.
    pub endpoints: [&'static str; 3],
}

/// The interfaces of every service; all three are one address here.
pub const INTERFACES: [&str; 3] = ["public", "internal", "admin"];

/// Services that are served now; one that is not there must not be in the catalog, because clients decide by it.
pub const SERVED: &[Served] = &[
    Served {
        id: "6d1f4c3ac0a04b1c9d9f0f4b2f4c0001",
        kind: "identity",
        name: "keystone",
        description: "Identity",
        path: "/identity/v3",
        endpoints: [
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0011",
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0012",
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0013",
        ],
    },
    Served {
        id: "6d1f4c3ac0a04b1c9d9f0f4b2f4c0002",
        kind: "image",
        name: "glance",
        description: "Images",
        path: "/image",
        endpoints: [
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0021",
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0022",
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0023",
        ],
    },
    Served {
        id: "6d1f4c3ac0a04b1c9d9f0f4b2f4c0003",
        kind: "compute",
        name: "nova",
        description: "Compute",
        path: "/compute/v2.1",
        endpoints: [
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0031",
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0032",
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0033",
        ],
    },
    Served {
        id: "6d1f4c3ac0a04b1c9d9f0f4b2f4c0004",
        kind: "network",
        name: "neutron",
        description: "Networking",
        path: "/network",
        endpoints: [
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0041",
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0042",
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0043",
        ],
    },
    Served {
        id: "6d1f4c3ac0a04b1c9d9f0f4b2f4c0010",
        kind: "key-manager",
        name: "barbican",
        description: "Secrets",
        path: "/key-manager",
        endpoints: [
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0111",
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0112",
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0113",
        ],
    },
    Served {
        id: "6d1f4c3ac0a04b1c9d9f0f4b2f4c0005",
        kind: "block-storage",
        name: "cinder",
        description: "Volumes",
        path: "/volume/v3",
        endpoints: [
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0051",
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0052",
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0053",
        ],
    },
    // The same under the name that clients knew it by for long.
    Served {
        id: "6d1f4c3ac0a04b1c9d9f0f4b2f4c0006",
        kind: "volumev3",
        name: "cinderv3",
        description: "Volumes",
        path: "/volume/v3",
        endpoints: [
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0061",
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0062",
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0063",
        ],
    },
    Served {
        id: "6d1f4c3ac0a04b1c9d9f0f4b2f4c0008",
        kind: "placement",
        name: "placement",
        description: "Placement",
        path: "/placement",
        endpoints: [
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0081",
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0082",
            "6d1f4c3ac0a04b1c9d9f0f4b2f4c0083",
        ],
    },
];

/// The address of a service.
pub fn url(config: &Config, service: &Served) -> String {
    format!("{}{}", config.public_url, service.path)
}
