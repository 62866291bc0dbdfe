//! The node's tables (`model::net::Tables`) in the shape in which frames are looked up.
//!
//! Ports and uplinks have *slots*, small numbers that stay the same from one generation to the next.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use model::net::{Attachment, MacAddr, Metadata, Port, Remote, Tables};
use uuid::Uuid;

use crate::Map;
use crate::dhcp::Lease;
use crate::security::{Rule, RuleRemote, RuleSet};

/// Number of a port or an uplink.
pub type Slot = u32;

/// Where a frame enters or leaves the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A guest's port.
    Port(Slot),
    /// The TAP of an external network.
    Uplink(Slot),
}

/// 169.254.169.254.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// A router's leg: index of the router, index of the leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LegRef {
    /// Index into `Layout::routers`.
    pub router: usize,
    /// Index into `RouterLayout::legs`.
    pub leg: usize,
}

/// Who has an Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Station {
    /// Guests' ports; several may share a virtual address by allowed address pairs.
    Ports(Vec<Slot>),
    /// A router.
    Leg(LegRef),
    /// The switch itself, as DHCP and metadata server.
    Service,
}

/// Everything of one generation.
#[derive(Debug, Default)]
pub struct Layout {
    /// The tables' generation.
    pub generation: u64,
    /// Networks.
    pub networks: Vec<NetworkLayout>,
    /// Ports by slot.
    pub ports: Vec<Option<PortLayout>>,
    /// Uplinks by slot.
    pub uplinks: Vec<Option<UplinkLayout>>,
    /// Routers.
    pub routers: Vec<RouterLayout>,
    /// Slots of ports by id.
    pub port_slots: BTreeMap<Uuid, Slot>,
    /// Slots of uplinks by name.
    pub uplink_slots: BTreeMap<String, Slot>,
}

/// A layer-2 network.
#[derive(Debug)]
pub struct NetworkLayout {
    /// Its id.
    pub id: Uuid,
    /// Largest IP packet.
    pub mtu: u16,
    /// Ethernet addresses.
    pub stations: Map<MacAddr, Station>,
    /// Who receives broadcasts.
    pub members: Vec<Place>,
    /// Who receives frames to unknown addresses.
    pub open: Vec<Place>,
    /// Addresses whose Ethernet address the tables know: answered by ARP, used by routers.
    pub hosts: Map<Ipv4Addr, MacAddr>,
    /// DHCP servers' addresses that no router has.
    pub servers: HashSet<Ipv4Addr>,
    /// The switch's own Ethernet address on this network.
    pub service_mac: MacAddr,
}

/// A port.
#[derive(Debug)]
pub struct PortLayout {
    /// Its id.
    pub id: Uuid,
    /// Index of its network.
    pub network: usize,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Further (MAC, prefix) pairs that it may send from.
    pub pairs: Vec<(MacAddr, IpNet)>,
    /// Anti-spoofing and security groups apply.
    pub secure: bool,
    /// Frames pass.
    pub up: bool,
    /// The rules of its groups.
    pub rules: Arc<RuleSet>,
    /// What DHCP tells it.
    pub lease: Option<Lease>,
    /// DHCP serves some subnet of the network, so that no guest's request leaves the port.
    pub dhcp_network: bool,
    /// What the metadata service tells it.
    pub metadata: Option<Arc<Metadata>>,
}

/// An uplink.
#[derive(Debug)]
pub struct UplinkLayout {
    /// Index of its network.
    pub network: usize,
}

/// A router.
#[derive(Debug)]
pub struct RouterLayout {
    /// Its id.
    pub id: Uuid,
    /// Packets pass.
    pub up: bool,
    /// Its legs.
    pub legs: Vec<Leg>,
    /// The leg to the external network.
    pub gateway: Option<usize>,
    /// The address that SNAT uses.
    pub snat: Option<Ipv4Addr>,
    /// Routes, the longest prefix first.
    pub routes: Vec<Hop>,
    /// Private addresses by floating IP.
    pub inbound: Map<Ipv4Addr, Ipv4Addr>,
    /// Floating IPs by private address.
    pub outbound: Map<Ipv4Addr, Ipv4Addr>,
}

/// A leg of a router.
#[derive(Debug)]
pub struct Leg {
    /// Index of its network.
    pub network: usize,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its IPv4 addresses.
    pub ips: Vec<Ipv4Addr>,
}

/// A route.
#[derive(Debug, PartialEq, Eq)]
pub struct Hop {
    /// Where to.
    pub prefix: Ipv4Net,
    /// By which leg.
    pub leg: usize,
    /// By way of; `None`: the destination is on the leg's network.
    pub via: Option<Ipv4Addr>,
}

impl RouterLayout {
    /// The longest matching route.
    pub fn route(&self, to: Ipv4Addr) -> Option<&Hop> {
        self.routes.iter().find(|hop| hop.prefix.contains(&to))
    }
}

impl PortLayout {
    /// May the port send from this Ethernet address?
    pub fn owns_mac(&self, mac: MacAddr) -> bool {
        mac == self.mac || self.pairs.iter().any(|pair| pair.0 == mac)
    }

    /// May the port send from this IP address with this Ethernet address?
    pub fn owns(&self, mac: MacAddr, ip: IpAddr) -> bool {
        mac == self.mac && self.ips.contains(&ip)
            || self
                .pairs
                .iter()
                .any(|pair| pair.0 == mac && pair.1.contains(&ip))
    }
}

/// A stable Ethernet address of the switch's own for a network: locally administered, so that it meets no guest's.
fn service_mac(network: Uuid) -> MacAddr {
    let mut hasher = DefaultHasher::new();
    network.hash(&mut hasher);
    let [a, b, c, d, ..] = hasher.finish().to_be_bytes();
    MacAddr([0x02, 0xa1, a, b, c, d])
}

/// Gives every key its old slot, or the lowest free one.
fn assign<K: Ord + Clone>(old: &BTreeMap<K, Slot>, keys: impl Iterator<Item = K>) -> BTreeMap<K, Slot> {
    let keys: Vec<K> = keys.collect();
    let mut slots: BTreeMap<K, Slot> = keys
        .iter()
        .filter_map(|key| Some((key.clone(), *old.get(key)?)))
        .collect();
    // A slot that was in use a moment ago is not given away at once: frames of its old owner may be under way.
    let taken: HashSet<Slot> = old.values().copied().collect();
    let mut free = (0..).filter(|slot| !taken.contains(slot));
    for key in keys {
        if let std::collections::btree_map::Entry::Vacant(entry) = slots.entry(key)
            && let Some(slot) = free.next()
        {
            entry.insert(slot);
        }
    }
    slots
}

impl Layout {
    /// Compiles tables; slots follow the layout before.
    pub fn compile(tables: &Tables, before: &Layout) -> Layout {
        let port_slots = assign(&before.port_slots, tables.ports.keys().copied());
        let uplink_slots = assign(
            &before.uplink_slots,
            tables.uplinks.iter().map(|uplink| uplink.name.clone()),
        );
        let index: BTreeMap<Uuid, usize> = tables
            .networks
            .keys()
            .enumerate()
            .map(|(at, id)| (*id, at))
            .collect();
        let mut layout = Layout {
            generation: tables.generation,
            networks: tables
                .networks
                .iter()
                .map(|(id, network)| NetworkLayout {
                    id: *id,
                    mtu: network.mtu.max(68), // RFC 791's least.
                    stations: Map::default(),
                    members: Vec::new(),
                    open: Vec::new(),
                    hosts: Map::default(),
                    servers: HashSet::new(),
                    service_mac: service_mac(*id),
                })
                .collect(),
            ports: empty(port_slots.values()),
            uplinks: empty(uplink_slots.values()),
            routers: Vec::new(),
            port_slots,
            uplink_slots,
        };
        layout.add_ports(tables, &index);
        layout.add_services(tables, &index);
        layout.add_uplinks(tables, &index);
        for (id, router) in &tables.routers {
            let at = layout.routers.len();
            let compiled = compile_router(*id, router, tables, &index);
            for (leg_at, leg) in compiled.legs.iter().enumerate() {
                let network = &mut layout.networks[leg.network];
                network.stations.insert(
                    leg.mac,
                    Station::Leg(LegRef {
                        router: at,
                        leg: leg_at,
                    }),
                );
                for ip in &leg.ips {
                    network.hosts.insert(*ip, leg.mac);
                    network.servers.remove(ip);
                }
                if compiled.gateway == Some(leg_at) {
                    network
                        .hosts
                        .extend(compiled.inbound.keys().map(|public| (*public, leg.mac)));
                }
            }
            layout.routers.push(compiled);
        }
        layout
    }

    fn add_ports(&mut self, tables: &Tables, index: &BTreeMap<Uuid, usize>) {
        let members = group_members(tables);
        for (id, port) in &tables.ports {
            let (Some(&network), Some(&slot)) = (index.get(&port.network), self.port_slots.get(id)) else {
                continue;
            };
            let compiled = compile_port(*id, port, network, tables, &members);
            let net = &mut self.networks[network];
            for mac in std::iter::once(port.mac).chain(compiled.pairs.iter().map(|pair| pair.0)) {
                match net
                    .stations
                    .entry(mac)
                    .or_insert_with(|| Station::Ports(Vec::new()))
                {
                    Station::Ports(slots) if !slots.contains(&slot) => slots.push(slot),
                    _ => {}
                }
            }
            if port.admin_up && port.attachment != Attachment::None {
                net.members.push(Place::Port(slot));
                if !port.port_security {
                    net.open.push(Place::Port(slot));
                }
                for ip in &compiled.ips {
                    if let IpAddr::V4(ip) = ip {
                        net.hosts.insert(*ip, port.mac);
                    }
                }
            }
            self.ports[slot as usize] = Some(compiled);
        }
        // An address that is given to other ports by name (a virtual IP that wanders) is theirs to answer for.
        for port in self.ports.iter().flatten() {
            let hosts = &mut self.networks[port.network].hosts;
            for (_, prefix) in port
                .pairs
                .iter()
                .filter(|(_, prefix)| prefix.prefix_len() == prefix.max_prefix_len())
            {
                hosts.retain(|ip, mac| *mac == port.mac || prefix.addr() != IpAddr::V4(*ip));
            }
        }
    }

    fn add_services(&mut self, tables: &Tables, index: &BTreeMap<Uuid, usize>) {
        for (id, network) in &tables.networks {
            let Some(net) = index.get(id).and_then(|at| self.networks.get_mut(*at)) else {
                continue;
            };
            net.stations.insert(net.service_mac, Station::Service);
            for subnet in network.subnets.values().filter(|subnet| subnet.dhcp) {
                if let Some(server) = subnet.dhcp_server {
                    net.hosts.insert(server, net.service_mac);
                    net.servers.insert(server);
                }
            }
        }
    }

    fn add_uplinks(&mut self, tables: &Tables, index: &BTreeMap<Uuid, usize>) {
        for uplink in &tables.uplinks {
            let (Some(&network), Some(&slot)) =
                (index.get(&uplink.network), self.uplink_slots.get(&uplink.name))
            else {
                continue;
            };
            self.networks[network].members.push(Place::Uplink(slot));
            self.networks[network].open.push(Place::Uplink(slot));
            self.uplinks[slot as usize] = Some(UplinkLayout { network });
        }
    }
}

fn empty<'a, T>(slots: impl Iterator<Item = &'a Slot>) -> Vec<Option<T>> {
    let size = slots.max().map_or(0, |last| *last as usize + 1);
    std::iter::repeat_with(|| None).take(size).collect()
}

fn group_members(tables: &Tables) -> BTreeMap<Uuid, Arc<HashSet<IpAddr>>> {
    let members = |(id, group): (&Uuid, &model::net::SecurityGroup)| {
        (*id, Arc::new(group.members.iter().copied().collect()))
    };
    tables.security_groups.iter().map(members).collect()
}

fn compile_port(
    id: Uuid,
    port: &Port,
    network: usize,
    tables: &Tables,
    members: &BTreeMap<Uuid, Arc<HashSet<IpAddr>>>,
) -> PortLayout {
    let mut rules = RuleSet::default();
    for rule in port
        .security_groups
        .iter()
        .filter_map(|group| tables.security_groups.get(group))
        .flat_map(|g| &g.rules)
    {
        let remote = match &rule.remote {
            Remote::Any => RuleRemote::Any,
            Remote::Prefix(prefix) => RuleRemote::Prefix(*prefix),
            Remote::Group(group) => RuleRemote::Members(members.get(group).cloned().unwrap_or_default()),
        };
        rules.push(
            rule.direction,
            Rule {
                id: rule.id,
                v6: rule.ip_version == 6,
                protocol: rule.protocol,
                ports: rule.ports,
                remote,
            },
        );
    }
    let subnets = tables.networks.get(&port.network).map(|network| &network.subnets);
    PortLayout {
        id,
        network,
        mac: port.mac,
        ips: port.fixed_ips.iter().map(|fixed| fixed.ip).collect(),
        pairs: port
            .allowed_address_pairs
            .iter()
            .map(|pair| (pair.mac.unwrap_or(port.mac), pair.prefix))
            .collect(),
        secure: port.port_security,
        up: port.admin_up && port.attachment != Attachment::None,
        rules: Arc::new(rules),
        lease: tables
            .networks
            .get(&port.network)
            .and_then(|network| Lease::of(port, network)),
        dhcp_network: subnets
            .is_some_and(|subnets| subnets.values().any(|s| s.dhcp && s.dhcp_server.is_some())),
        metadata: port.metadata.clone().map(Arc::new),
    }
}

fn compile_router(
    id: Uuid,
    router: &model::net::Router,
    tables: &Tables,
    index: &BTreeMap<Uuid, usize>,
) -> RouterLayout {
    let mut legs = Vec::new();
    let mut routes = Vec::new();
    let mut gateway = None;
    let mut add = |network: &Uuid, mac, fixed: &[model::net::FixedIp], routes: &mut Vec<Hop>| {
        let at = *index.get(network)?;
        let leg = legs.len();
        let mut ips = Vec::new();
        for address in fixed {
            if let IpAddr::V4(ip) = address.ip {
                ips.push(ip);
                let subnet = tables
                    .networks
                    .get(network)
                    .and_then(|n| n.subnets.get(&address.subnet));
                if let Some(IpNet::V4(prefix)) = subnet.map(|subnet| subnet.cidr) {
                    routes.push(Hop {
                        prefix: prefix.trunc(),
                        leg,
                        via: None,
                    });
                }
            }
        }
        legs.push(Leg {
            network: at,
            mac,
            ips,
        });
        Some(leg)
    };
    for interface in &router.interfaces {
        add(
            &interface.network,
            interface.mac,
            &interface.fixed_ips,
            &mut routes,
        );
    }
    if let Some(out) = &router.gateway {
        gateway = add(&out.network, out.mac, &out.fixed_ips, &mut routes);
    }
    // Static routes go out by the leg whose subnet has the next hop.
    let connected = |to: Ipv4Addr, routes: &[Hop]| {
        routes
            .iter()
            .find(|hop| hop.via.is_none() && hop.prefix.contains(&to))
            .map(|hop| hop.leg)
    };
    let mut further = Vec::new();
    for route in &router.routes {
        if let (IpNet::V4(prefix), IpAddr::V4(via)) = (route.destination, route.nexthop)
            && let Some(leg) = connected(via, &routes)
        {
            further.push(Hop {
                prefix: prefix.trunc(),
                leg,
                via: Some(via),
            });
        }
    }
    if let (Some(leg), Some(out)) = (gateway, &router.gateway) {
        for fixed in &out.fixed_ips {
            let subnet = tables
                .networks
                .get(&out.network)
                .and_then(|n| n.subnets.get(&fixed.subnet));
            if let Some(IpAddr::V4(via)) = subnet.and_then(|subnet| subnet.gateway) {
                further.push(Hop {
                    prefix: Ipv4Net::default(),
                    leg,
                    via: Some(via),
                });
            }
        }
    }
    routes.append(&mut further);
    // A stable sort: connected before static before default among prefixes of the same length.
    routes.sort_by_key(|hop| std::cmp::Reverse(hop.prefix.prefix_len()));
    let pairs = || {
        router
            .floating_ips
            .iter()
            .filter_map(|floating| match (floating.public, floating.fixed) {
                (IpAddr::V4(public), IpAddr::V4(fixed)) if gateway.is_some() => Some((public, fixed)),
                _ => None,
            })
    };
    let snat = router
        .gateway
        .as_ref()
        .filter(|out| out.snat && gateway.is_some())
        .and_then(|out| {
            out.fixed_ips.iter().find_map(|fixed| match fixed.ip {
                IpAddr::V4(ip) => Some(ip),
                IpAddr::V6(_) => None,
            })
        });
    RouterLayout {
        id,
        up: router.admin_up,
        legs,
        gateway,
        snat,
        routes,
        inbound: pairs().collect(),
        outbound: pairs().map(|(public, fixed)| (fixed, public)).collect(),
    }
}
