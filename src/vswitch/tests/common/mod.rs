//! Tables by hand, for tests of the pipeline and with real packets.
#![allow(dead_code)] // Each test binary uses a part.

pub mod driver;
pub mod pure;
pub mod world;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use model::net::{
    Attachment, Direction, Document, FixedIp, FloatingIp, MacAddr, Metadata, Network, Port, PortMatch,
    Remote, Router, RouterGateway, RouterInterface, Rule, SecurityGroup, Subnet, Tables, Uplink,
};
use uuid::Uuid;

/// A number as an id.
pub fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

/// A number as an Ethernet address.
pub fn mac(number: u8) -> MacAddr {
    MacAddr([0xfa, 0x16, 0x3e, 0, 0, number])
}

/// An IPv4 address.
pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The same, known to be one.
pub fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// A rule for IPv4.
pub fn rule(
    number: u128,
    direction: Direction,
    protocol: Option<u8>,
    ports: PortMatch,
    remote: Remote,
) -> Rule {
    Rule {
        id: id(number),
        direction,
        ip_version: 4,
        protocol,
        ports,
        remote,
    }
}

/// A subnet with DHCP at `.1`; its id is the network's plus 1.
fn subnet(cidr: &str, dhcp: bool) -> Subnet {
    let range = net(cidr);
    let first = range.hosts().next();
    let server = match first {
        Some(IpAddr::V4(server)) => Some(server),
        _ => None,
    };
    Subnet {
        cidr: range,
        gateway: first,
        dhcp,
        dhcp_server: server.filter(|_| dhcp),
        dns: vec![ip("9.9.9.9"), ip("1.1.1.1")],
        ntp: vec![ip("192.0.2.123")],
        host_routes: Vec::new(),
        dns_domain: Some("example.test".into()),
    }
}

/// A network with one subnet.
pub fn network(number: u128, cidr: &str, dhcp: bool) -> Network {
    Network {
        vni: number as u32,
        mtu: 1500,
        subnets: BTreeMap::from([(id(number + 1), subnet(cidr, dhcp))]),
    }
}

/// A port on a network that `network` made.
pub fn port(network: u128, number: u8, address: &str) -> Port {
    Port {
        network: id(network),
        mac: mac(number),
        fixed_ips: vec![FixedIp {
            subnet: id(network + 1),
            ip: ip(address),
        }],
        allowed_address_pairs: Vec::new(),
        port_security: true,
        security_groups: Vec::new(),
        admin_up: true,
        hostname: Some(format!("guest-{number}")),
        attachment: Attachment::Tap,
        metadata: Some(Metadata {
            documents: [
                (
                    "/openstack/latest/meta_data.json",
                    format!("{{\"uuid\":\"{number}\"}}"),
                ),
                ("/latest/meta-data/instance-id", format!("i-{number}")),
                ("/latest/user-data", "x".repeat(60_000)),
            ]
            .into_iter()
            .map(|(path, body)| {
                (
                    path.to_owned(),
                    Document {
                        content_type: "text/plain".into(),
                        body: body.into_bytes(),
                    },
                )
            })
            .collect(),
            ..Metadata::default()
        }),
    }
}

/// Ids of the world below.
pub const TENANT: u128 = 0x1000;
pub const OTHER: u128 = 0x2000;
pub const OUTSIDE: u128 = 0x3000;
pub const GROUP: u128 = 0x40;
pub const OTHER_GROUP: u128 = 0x41;
pub const ROUTER: u128 = 0x50;
pub const OTHER_ROUTER: u128 = 0x51;

/// Two tenants with 10.0.0.0/24 each, behind routers to the same external network 203.0.113.0/24:
///
/// ```text
///  port 1: 10.0.0.11 ┐                             ┌ 203.0.113.21 ⇄ port 1
///  port 2: 10.0.0.12 ┴ router, SNAT 203.0.113.10 ──┤
///                                                  ├── uplink "ext", host 203.0.113.1
///  port 3: 10.0.0.11 ┐                             │
///  port 4: 10.0.0.14 ┴ router, SNAT 203.0.113.11 ──┘ 203.0.113.23 ⇄ port 3
/// ```
/// Every port may send anything; receive all from its own group, ICMP echo, and TCP 8000 from anywhere.
pub fn two_tenants() -> Tables {
    let mut tables = Tables {
        generation: 1,
        ..Tables::default()
    };
    for (tenant, group, router, snat, ports, public) in [
        (
            TENANT,
            GROUP,
            ROUTER,
            "203.0.113.10",
            [(1, "10.0.0.11"), (2, "10.0.0.12")],
            ("203.0.113.21", 1),
        ),
        (
            OTHER,
            OTHER_GROUP,
            OTHER_ROUTER,
            "203.0.113.11",
            [(3, "10.0.0.11"), (4, "10.0.0.14")],
            ("203.0.113.23", 3),
        ),
    ] {
        tables
            .networks
            .insert(id(tenant), network(tenant, "10.0.0.0/24", true));
        let mut members = Vec::new();
        for (number, address) in ports {
            let mut port = port(tenant, number, address);
            port.security_groups = vec![id(group)];
            members.push(ip(address));
            tables.ports.insert(id(number.into()), port);
        }
        let n = group * 16;
        let rules = vec![
            rule(n, Direction::Egress, None, PortMatch::Any, Remote::Any),
            rule(
                n + 1,
                Direction::Ingress,
                None,
                PortMatch::Any,
                Remote::Group(id(group)),
            ),
            rule(
                n + 2,
                Direction::Ingress,
                Some(1),
                PortMatch::Icmp(8, None),
                Remote::Any,
            ),
            rule(
                n + 3,
                Direction::Ingress,
                Some(6),
                PortMatch::Range(8000, 8000),
                Remote::Prefix(net("0.0.0.0/0")),
            ),
        ];
        tables
            .security_groups
            .insert(id(group), SecurityGroup { rules, members });
        let number = router as u8;
        let fixed = tables.ports[&id(public.1)].fixed_ips[0].ip;
        tables.routers.insert(
            id(router),
            Router {
                admin_up: true,
                interfaces: vec![RouterInterface {
                    port: id(router + 0x100),
                    network: id(tenant),
                    mac: mac(number),
                    fixed_ips: vec![FixedIp {
                        subnet: id(tenant + 1),
                        ip: ip("10.0.0.1"),
                    }],
                }],
                gateway: Some(RouterGateway {
                    port: id(router + 0x200),
                    network: id(OUTSIDE),
                    mac: mac(number + 0x80),
                    fixed_ips: vec![FixedIp {
                        subnet: id(OUTSIDE + 1),
                        ip: ip(snat),
                    }],
                    snat: true,
                }),
                routes: Vec::new(),
                floating_ips: vec![FloatingIp {
                    id: id(router + 0x300),
                    public: ip(public.0),
                    fixed,
                    port: id(public.1),
                }],
            },
        );
    }
    tables
        .networks
        .insert(id(OUTSIDE), network(OUTSIDE, "203.0.113.0/24", false));
    tables.uplinks.push(Uplink {
        network: id(OUTSIDE),
        name: "ext".into(),
    });
    tables
}
