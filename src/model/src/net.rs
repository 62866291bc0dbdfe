//! The switch's tables: what `cloud` compiles from the database and `allod switch` obeys.
//!
//! The tables of a node are sent whole, with a rising generation; the switch works out what changed and leaves
//! connections that no change concerns alone.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The most pairs of rings that the switch has for a guest's network interface.
pub const QUEUE_PAIRS: u16 = 4;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// The group bit is set (IEEE 802.3 §3.2.3).
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six two-digit hexadecimal numbers with colons or dashes between them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a MAC address: six hexadecimal numbers with colons between them are")]
pub struct BadMac(pub String);

impl FromStr for MacAddr {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.chars().take(64).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            Err(bad())
        } else {
            Ok(MacAddr(bytes))
        }
    }
}

impl Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// All tables of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tables {
    /// Rises with every change; the switch ignores tables older than those that it has.
    pub generation: u64,
    /// Layer-2 networks by id.
    pub networks: BTreeMap<Uuid, Network>,
    /// Ports by id: guests' and the routers' own.
    pub ports: BTreeMap<Uuid, Port>,
    /// Routers by id.
    pub routers: BTreeMap<Uuid, Router>,
    /// Security groups by id.
    pub security_groups: BTreeMap<Uuid, SecurityGroup>,
    /// Where external networks leave the node.
    pub uplinks: Vec<Uplink>,
}

/// A layer-2 network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Virtual network identifier, 1 to 16,777,215 (Geneve's VNI).
    pub vni: u32,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Subnets by id.
    pub subnets: BTreeMap<Uuid, Subnet>,
}

/// An address range on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The range.
    pub cidr: IpNet,
    /// The default gateway that DHCP tells.
    pub gateway: Option<IpAddr>,
    /// DHCP answers here.
    pub dhcp: bool,
    /// The DHCP server's own address, which also answers ARP: the gateway's (".1") where there is one.
    pub dhcp_server: Option<Ipv4Addr>,
    /// Name servers that DHCP tells (RFC 2132 §3.8).
    pub dns: Vec<IpAddr>,
    /// Time servers that DHCP tells (RFC 2132 §8.3).
    pub ntp: Vec<IpAddr>,
    /// More routes that DHCP tells (RFC 3442).
    pub host_routes: Vec<Route>,
    /// Tell the domain name, if any.
    pub dns_domain: Option<String>,
}

/// A static route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// By way of.
    pub nexthop: IpAddr,
}

/// A port of the switch that a guest (or a network namespace) is plugged into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The network that it belongs to.
    pub network: Uuid,
    /// Its own address.
    pub mac: MacAddr,
    /// Its IP addresses.
    pub fixed_ips: Vec<FixedIp>,
    /// More (MAC, prefix) pairs that it may send from; a missing MAC is the port's own.
    pub allowed_address_pairs: Vec<AddressPair>,
    /// Anti-spoofing and security groups apply.
    pub port_security: bool,
    /// The groups whose rules apply; none with port security on: nothing but DHCP, ARP and metadata passes.
    pub security_groups: Vec<Uuid>,
    /// Frames pass at all.
    pub admin_up: bool,
    /// The name that DHCP tells (RFC 2132 §3.14).
    pub hostname: Option<String>,
    /// How the port is attached.
    pub attachment: Attachment,
    /// What 169.254.169.254 answers on this port; `None`: connection refused.
    pub metadata: Option<Metadata>,
}

/// How a port is attached to the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attachment {
    /// A guest on this node, by a vhost-user socket that the daemon hands over with `SwitchRequest::AddVhostUser`.
    VhostUser,
    /// A TAP device that the daemon hands over with `SwitchRequest::AddTap`.
    Tap,
    /// Not on this node, or unplugged: the port is known (its address counts in security groups), but has no frames.
    None,
}

/// An address of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FixedIp {
    /// The subnet that the address is from.
    pub subnet: Uuid,
    /// The address.
    pub ip: IpAddr,
}

/// An address pair that anti-spoofing lets pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPair {
    /// `None`: the port's own.
    pub mac: Option<MacAddr>,
    /// A range of addresses.
    pub prefix: IpNet,
}

/// The documents that the metadata service answers on one port: URL path (no query, no trailing slash) → document.
/// Listings of folders are made from the paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// For example `/openstack/latest/meta_data.json` or `/2009-04-04/meta-data/instance-id`.
    pub documents: BTreeMap<String, Document>,
    /// Folders that are others under another name (`/2009-04-04` → `/latest`): versions with the same documents are
    /// sent once. The other name is never an alias itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<String, String>,
}

impl Metadata {
    /// The path with an alias at its beginning replaced.
    pub fn resolve<'a>(&self, path: &'a str) -> std::borrow::Cow<'a, str> {
        let ends = path
            .match_indices('/')
            .map(|(at, _)| at)
            .filter(|at| *at > 0)
            .chain([path.len()]);
        for end in ends {
            if let Some(folder) = self.aliases.get(&path[..end]) {
                return format!("{folder}{}", &path[end..]).into();
            }
        }
        path.into()
    }
}

/// One document of the metadata service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Such as `application/json`.
    pub content_type: String,
    /// The bytes.
    #[serde(with = "text_or_bytes")]
    pub body: Vec<u8>,
}

/// Bytes in JSON: as text where they are UTF-8 (nearly always), else as a list of numbers.
mod text_or_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Body {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => Body::Bytes(bytes.to_vec()).serialize(serializer),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        Ok(match Body::deserialize(deserializer)? {
            Body::Text(text) => text.into_bytes(),
            Body::Bytes(bytes) => bytes,
        })
    }
}

/// A security group as the switch needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// What is allowed; all else is dropped.
    pub rules: Vec<Rule>,
    /// The addresses of all ports that are in the group, wherever they are.
    pub members: Vec<IpAddr>,
}

/// A rule of a security group. Every rule allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The rule's id, so that a removed rule can end its own connections.
    pub id: Uuid,
    /// Seen from the port.
    pub direction: Direction,
    /// 4 or 6.
    pub ip_version: u8,
    /// IP protocol number; `None`: any.
    pub protocol: Option<u8>,
    /// TCP, UDP, SCTP and so on: destination ports (both ends included). ICMP: (type, code), where `None` is any code.
    pub ports: PortMatch,
    /// The other side.
    pub remote: Remote,
}

/// Which ports, or ICMP types and codes, a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortMatch {
    /// Any.
    Any,
    /// Destination ports from the first to the second, both included.
    Range(u16, u16),
    /// ICMP or ICMPv6 type, and code if given.
    Icmp(u8, Option<u8>),
}

/// The direction of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the port.
    Ingress,
    /// From the port.
    Egress,
}

/// The other side of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remote {
    /// Anyone.
    Any,
    /// A range of addresses.
    Prefix(IpNet),
    /// The members of a group.
    Group(Uuid),
}

/// A router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Router {
    /// Packets pass at all.
    pub admin_up: bool,
    /// Its interfaces on tenants' networks.
    pub interfaces: Vec<RouterInterface>,
    /// Its way out, if it has one.
    pub gateway: Option<RouterGateway>,
    /// Static routes.
    pub routes: Vec<Route>,
    /// One-to-one NAT from the external network.
    pub floating_ips: Vec<FloatingIp>,
}

/// An interface of a router on a tenant's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterInterface {
    /// The Neutron port.
    pub port: Uuid,
    /// The network.
    pub network: Uuid,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its addresses, each with its subnet.
    pub fixed_ips: Vec<FixedIp>,
}

/// A router's leg on an external network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterGateway {
    /// The Neutron port.
    pub port: Uuid,
    /// The external network.
    pub network: Uuid,
    /// The leg's Ethernet address.
    pub mac: MacAddr,
    /// Its addresses; the first IPv4 one is the source of SNAT.
    pub fixed_ips: Vec<FixedIp>,
    /// Rewrite the source of what leaves without a floating IP.
    pub snat: bool,
}

/// A floating IP with its port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatingIp {
    /// The floating IP's id.
    pub id: Uuid,
    /// The public address, answered by ARP on the external network with the gateway's MAC.
    pub public: IpAddr,
    /// The private address that it stands for.
    pub fixed: IpAddr,
    /// The port that has the private address.
    pub port: Uuid,
}

/// Where an external network leaves the node: a TAP to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// The external network.
    pub network: Uuid,
    /// The TAP's name; its descriptor comes with `SwitchRequest::AddTap` under the key `uplink:<name>`.
    pub name: String,
}

/// Requests on the switch's control socket. A request that hands over a descriptor has exactly one beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum SwitchRequest {
    /// Obey these tables from now on.
    Apply(Tables),
    /// A listening vhost-user socket for this port; QEMU and `allod vmm` connect to it.
    /// The switch keeps it, and lets a guest connect again, until `RemoveVhostUser` or until the port leaves the tables.
    AddVhostUser {
        /// The port.
        port: Uuid,
    },
    /// Close the port's vhost-user socket.
    RemoveVhostUser {
        /// The port.
        port: Uuid,
    },
    /// A TAP device (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`) for an uplink (by name) or a port.
    AddTap {
        /// What it is for.
        target: TapTarget,
    },
    /// Report state and counters.
    Status,
    /// End.
    Stop,
}

/// What a TAP is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TapTarget {
    /// The uplink of this name.
    Uplink(String),
    /// This port (tests: a network namespace in the place of a guest).
    Port(Uuid),
}

/// The switch's answer to `Status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchStatus {
    /// The generation of the tables that it obeys.
    pub generation: u64,
    /// Vhost-user ports that it holds sockets for, with whether a guest is connected.
    pub vhost_user: BTreeMap<Uuid, bool>,
    /// Uplinks that it holds TAPs for.
    pub uplinks: Vec<String>,
    /// Counters by port.
    pub counters: BTreeMap<Uuid, PortCounters>,
    /// Tracked connections.
    pub connections: u64,
    /// Frames dropped, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// Counters of a port since the switch started. Seen from the guest: rx is what it received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortCounters {
    /// Frames that the guest received.
    pub rx_packets: u64,
    /// Bytes that the guest received.
    pub rx_bytes: u64,
    /// Frames that the guest sent.
    pub tx_packets: u64,
    /// Bytes that the guest sent.
    pub tx_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_reads_what_it_prints_and_refuses_the_rest() {
        let mac: MacAddr = "fa:16:3e:00:0A:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "fa:16:3e:00:0a:ff");
        for bad in [
            "",
            "fa:16:3e:00:0a",
            "fa:16:3e:00:0a:ff:00",
            "fa:16:3e:00:0a:+f",
            "fa16.3e00.0aff",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_document_of_any_bytes_survives_the_wire() {
        for body in [b"#!/bin/sh\n".to_vec(), vec![0xff, 0x00, 0x80], Vec::new()] {
            let document = Document {
                content_type: "text/plain".into(),
                body,
            };
            let text = serde_json::to_string(&document).unwrap();
            assert_eq!(serde_json::from_str::<Document>(&text).unwrap(), document);
        }
    }
}
