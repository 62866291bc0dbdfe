//! The tables that the switch of this node obeys, from the rows. A pure reading: the same rows give the same tables.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};

use model::net::{self, Attachment, Metadata, PortMatch, Remote, Tables};
use rusqlite::Connection;
use uuid::Uuid;

use super::floating_ips::{self, FloatingIp};
use super::networks::{self, Network};
use super::ports::{self, PortRow};
use super::routers::{self, Router};
use super::rows::Condition;
use super::security_groups::{self, SecurityGroup};
use super::security_rules::Rule;
use super::subnets::{self, Subnet};
use crate::{Config, Result};

/// The DHCP server's address where a tenant's own port has the gateway's: the metadata service's (RFC 3927), which the
/// switch answers everywhere.
const LAST_RESORT: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// What the metadata service tells on the ports of a server. The number stands for everything of this room that the
/// documents speak of: as long as it stays the same, so do they, unless the server itself changes.
pub type MetadataOf<'a> = &'a mut dyn FnMut(&Connection, Uuid, u64) -> Result<Option<Metadata>>;

/// Compiles the tables of this node, without a generation.
pub fn compile(conn: &Connection, config: &Config, metadata: MetadataOf<'_>) -> Result<Tables> {
    let ports = ports::matching(conn, Condition::all())?;
    let floating = floating_ips::all(conn)?;
    let mut tables = Tables::default();
    let mut holders: HashMap<(Uuid, IpAddr), &PortRow> = HashMap::new();
    for port in &ports {
        holders.extend(
            port.fixed_ips
                .iter()
                .map(|address| ((address.subnet, address.ip), port)),
        );
    }
    let mut prints = Prints::default();
    for network in networks::all(conn)? {
        let id = network.meta.id;
        if !network.uplink.is_empty() {
            tables.uplinks.push(net::Uplink {
                network: id,
                name: network.uplink.clone(),
            });
        }
        let domain = network.dns_domain.trim_end_matches('.');
        let domain = (!domain.is_empty()).then(|| domain.to_owned());
        let found = subnets::of_network(conn, id)?;
        prints.add_network(&network, &found);
        let compiled = found.iter().map(|subnet| {
            let holder = subnet
                .gateway_ip
                .and_then(|ip| holders.get(&(subnet.meta.id, ip)));
            (
                subnet.meta.id,
                compile_subnet(config, subnet, holder.copied(), domain.clone()),
            )
        });
        let subnets = compiled.collect();
        tables.networks.insert(
            id,
            net::Network {
                vni: network.vni,
                mtu: network.mtu,
                subnets,
            },
        );
    }
    let groups = security_groups::all(conn)?;
    tables.security_groups = compile_groups(&groups, &ports);
    for router in routers::matching(conn, Condition::all())? {
        tables
            .routers
            .insert(router.meta.id, compile_router(&router, &ports, &floating));
    }
    prints.add_groups(&groups);
    let servers = prints.of_servers(&ports, &floating);
    let mut documents: HashMap<Uuid, Option<Metadata>> = HashMap::new();
    for (server, print) in servers {
        documents.insert(server, metadata(conn, server, print)?);
    }
    for port in ports
        .iter()
        .filter(|port| port.device_owner != ports::FLOATING_IP)
    {
        let documents = port
            .server
            .and_then(|server| documents.get(&server).cloned().flatten());
        tables
            .ports
            .insert(port.id, compile_port(config, port, documents));
    }
    Ok(tables)
}

/// Hashes of what metadata documents tell of networks.
#[derive(Default)]
struct Prints {
    networks: HashMap<Uuid, u64>,
    groups: HashMap<Uuid, u64>,
}

fn print(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Prints {
    fn add_network(&mut self, network: &Network, subnets: &[Subnet]) {
        let subnets: Vec<_> = subnets
            .iter()
            .map(|subnet| (subnet.meta.id, subnet.meta.revision))
            .collect();
        self.networks.insert(
            network.meta.id,
            print((network.meta.revision, network.mtu, subnets)),
        );
    }

    fn add_groups(&mut self, groups: &[SecurityGroup]) {
        let prints = groups
            .iter()
            .map(|group| (group.meta.id, print(&group.meta.name)));
        self.groups.extend(prints);
    }

    fn of_servers(&self, ports: &[PortRow], floating: &[FloatingIp]) -> BTreeMap<Uuid, u64> {
        let mut public: HashMap<Uuid, Vec<_>> = HashMap::new();
        for floating in floating {
            if let Some(port) = floating.port_id {
                public
                    .entry(port)
                    .or_default()
                    .push((floating.address, floating.fixed_ip));
            }
        }
        let mut servers: BTreeMap<Uuid, u64> = BTreeMap::new();
        for port in ports {
            let Some(server) = port.server else { continue };
            let groups: Vec<_> = port
                .security_groups
                .iter()
                .map(|group| (group, self.groups.get(group)))
                .collect();
            let addresses: Vec<_> = port
                .fixed_ips
                .iter()
                .map(|address| (address.subnet, address.ip))
                .collect();
            let own = print((
                (port.id, port.nic, port.meta.revision, port.mac.0),
                (self.networks.get(&port.network_id), public.get(&port.id)),
                (groups, addresses),
            ));
            let all = servers.entry(server).or_default();
            // Ports come in no order that matters.
            *all = all.wrapping_add(own);
        }
        servers
    }
}

fn compile_subnet(
    config: &Config,
    subnet: &Subnet,
    gateway_holder: Option<&PortRow>,
    dns_domain: Option<String>,
) -> net::Subnet {
    let v4 = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    };
    let gateway_is_ours = gateway_holder.is_none_or(PortRow::is_service);
    let dhcp_server = match subnet.gateway_ip.and_then(v4) {
        _ if !subnet.enable_dhcp || subnet.ip_version() != 4 => None,
        Some(gateway) if gateway_is_ours => Some(gateway),
        Some(_) => Some(LAST_RESORT),
        None => subnet.dhcp_server.and_then(v4),
    };
    let same_family = |ip: &&IpAddr| ip.is_ipv4() == subnet.cidr.network().is_ipv4();
    let dns = match subnet.dns_nameservers.as_slice() {
        [] => config.dns_servers.iter().filter(same_family).copied().collect(),
        own => own.to_vec(),
    };
    net::Subnet {
        cidr: subnet.cidr,
        gateway: subnet.gateway_ip,
        dhcp: subnet.enable_dhcp,
        dhcp_server,
        dns,
        ntp: config.ntp_servers.iter().filter(same_family).copied().collect(),
        host_routes: subnet.host_routes.iter().map(route).collect(),
        dns_domain,
    }
}

fn route(route: &subnets::HostRoute) -> net::Route {
    net::Route {
        destination: route.destination,
        nexthop: route.nexthop,
    }
}

fn addresses(addresses: &[super::FixedIp]) -> Vec<net::FixedIp> {
    addresses
        .iter()
        .map(|address| net::FixedIp {
            subnet: address.subnet,
            ip: address.ip,
        })
        .collect()
}

fn compile_port(config: &Config, port: &PortRow, metadata: Option<Metadata>) -> net::Port {
    let here = port.host.is_empty() || port.host == config.node;
    let pairs = port.address_pairs.iter().filter_map(|pair| {
        Some(net::AddressPair {
            mac: pair.mac_address.filter(|mac| *mac != port.mac),
            prefix: pair.prefix()?,
        })
    });
    net::Port {
        network: port.network_id,
        mac: port.mac,
        fixed_ips: addresses(&port.fixed_ips),
        allowed_address_pairs: pairs.collect(),
        port_security: port.port_security_enabled,
        security_groups: port.security_groups.clone(),
        admin_up: port.admin_state_up,
        hostname: (!port.dns_name.is_empty()).then(|| port.dns_name.clone()),
        attachment: if port.server.is_some() && here {
            Attachment::VhostUser
        } else {
            Attachment::None
        },
        metadata,
    }
}

/// Groups that some port is in, and those that their rules speak of.
fn compile_groups(groups: &[SecurityGroup], ports: &[PortRow]) -> BTreeMap<Uuid, net::SecurityGroup> {
    let mut members: HashMap<Uuid, BTreeSet<IpAddr>> = HashMap::new();
    for port in ports.iter().filter(|port| port.port_security_enabled) {
        let pairs = port.address_pairs.iter().filter_map(ports::AddressPair::prefix);
        let hosts = pairs
            .filter(|prefix| prefix.prefix_len() == prefix.max_prefix_len())
            .map(|p| p.addr());
        let own: Vec<IpAddr> = port
            .fixed_ips
            .iter()
            .map(|address| address.ip)
            .chain(hosts)
            .collect();
        for group in &port.security_groups {
            members.entry(*group).or_default().extend(&own);
        }
    }
    let in_use = groups.iter().filter(|group| members.contains_key(&group.meta.id));
    let remote = in_use
        .clone()
        .flat_map(|group| &group.rules)
        .filter_map(|rule| rule.remote_group_id);
    let wanted: BTreeSet<Uuid> = in_use.map(|group| group.meta.id).chain(remote).collect();
    let compiled = groups
        .iter()
        .filter(|group| wanted.contains(&group.meta.id))
        .map(|group| {
            let mut rules: Vec<net::Rule> = group.rules.iter().map(compile_rule).collect();
            rules.sort_by_key(|rule| rule.id);
            let members = members
                .get(&group.meta.id)
                .into_iter()
                .flatten()
                .copied()
                .collect();
            (group.meta.id, net::SecurityGroup { rules, members })
        });
    compiled.collect()
}

fn compile_rule(rule: &Rule) -> net::Rule {
    let protocol = rule.protocol_number();
    let byte = |value: u16| u8::try_from(value).unwrap_or(u8::MAX);
    let ports = match (rule.port_min, rule.port_max) {
        (Some(kind), code) if matches!(protocol, Some(1 | 58)) => PortMatch::Icmp(byte(kind), code.map(byte)),
        (Some(min), Some(max)) => PortMatch::Range(min, max),
        _ => PortMatch::Any,
    };
    let remote = match (rule.remote_group_id, rule.remote_prefix) {
        (Some(group), _) => Remote::Group(group),
        (None, Some(prefix)) if prefix.prefix_len() > 0 => Remote::Prefix(prefix.trunc()),
        _ => Remote::Any,
    };
    net::Rule {
        id: rule.meta.id,
        direction: rule.direction,
        ip_version: rule.ethertype.version(),
        protocol,
        ports,
        remote,
    }
}

fn compile_router(router: &Router, ports: &[PortRow], floating: &[FloatingIp]) -> net::Router {
    let id = router.meta.id.to_string();
    let own = ports.iter().filter(|port| port.device_id == id);
    let interfaces = own
        .clone()
        .filter(|port| port.device_owner == ports::ROUTER_INTERFACE);
    let gateway = own
        .clone()
        .find(|port| port.device_owner == ports::ROUTER_GATEWAY);
    let floating = floating
        .iter()
        .filter(|floating| floating.router_id == Some(router.meta.id));
    net::Router {
        admin_up: router.admin_state_up,
        interfaces: interfaces
            .map(|port| net::RouterInterface {
                port: port.id,
                network: port.network_id,
                mac: port.mac,
                fixed_ips: addresses(&port.fixed_ips),
            })
            .collect(),
        gateway: gateway.map(|port| net::RouterGateway {
            port: port.id,
            network: port.network_id,
            mac: port.mac,
            fixed_ips: addresses(&port.fixed_ips),
            snat: router.enable_snat,
        }),
        routes: router.routes.iter().map(route).collect(),
        floating_ips: floating
            .filter_map(|floating| {
                Some(net::FloatingIp {
                    id: floating.meta.id,
                    public: floating.address,
                    fixed: floating.fixed_ip?,
                    port: floating.port_id?,
                })
            })
            .collect(),
    }
}

/// What is in the switch once it obeys these tables, as the API tells it: ports and floating IPs that work.
pub(super) fn active(tables: &Tables) -> BTreeSet<Uuid> {
    let legs = tables.routers.values().flat_map(|router| {
        let interfaces = router.interfaces.iter().map(|interface| interface.port);
        interfaces.chain(router.gateway.iter().map(|gateway| gateway.port))
    });
    let running = tables.routers.values().filter(|router| router.admin_up);
    let floating = running.flat_map(|router| router.floating_ips.iter().map(|floating| floating.id));
    let plugged = tables
        .ports
        .iter()
        .filter(|(_, port)| port.admin_up && port.attachment != Attachment::None);
    plugged.map(|(id, _)| *id).chain(legs).chain(floating).collect()
}
