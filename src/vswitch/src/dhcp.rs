//! The DHCPv4 server of every port (RFC 2131, 2132, 3442). It has no leases to keep: a port's address is in the tables.

use std::net::{IpAddr, Ipv4Addr};

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use ipnet::{IpNet, Ipv4Net};
use model::net::{MacAddr, Network, Port};

use crate::tables::METADATA;

/// How long an address may be used without asking again: a day, as Neutron says.
const LEASE_SECONDS: u32 = 86_400;
/// A client that does not say takes this much (RFC 2131 §2).
const LEAST_MESSAGE: usize = 548;
/// How many extra routes are told.
const MAX_ROUTES: usize = 32;

/// What DHCP tells a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The port's address.
    pub ip: Ipv4Addr,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// The server's address.
    pub server: Ipv4Addr,
    router: Option<Ipv4Addr>,
    dns: Vec<Ipv4Addr>,
    ntp: Vec<Ipv4Addr>,
    routes: Vec<(Ipv4Net, Ipv4Addr)>,
    mtu: u16,
    domain: Option<String>,
    hostname: Option<String>,
}

fn v4(addresses: &[IpAddr]) -> Vec<Ipv4Addr> {
    let only = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    };
    addresses.iter().filter_map(only).take(8).collect()
}

impl Lease {
    /// The lease of a port: of its first IPv4 address whose subnet has DHCP.
    pub fn of(port: &Port, network: &Network) -> Option<Lease> {
        port.fixed_ips.iter().find_map(|fixed| {
            let subnet = network.subnets.get(&fixed.subnet).filter(|subnet| subnet.dhcp)?;
            let (IpAddr::V4(ip), IpNet::V4(cidr), Some(server)) = (fixed.ip, subnet.cidr, subnet.dhcp_server)
            else {
                return None;
            };
            let router = match subnet.gateway {
                Some(IpAddr::V4(router)) => Some(router),
                _ => None,
            };
            // Behind the server, or, where the server has no address of the subnet, on the link (RFC 3442's 0.0.0.0).
            let via = if cidr.contains(&server) {
                server
            } else {
                Ipv4Addr::UNSPECIFIED
            };
            let mut routes = vec![(Ipv4Net::from(METADATA), via)];
            for route in subnet.host_routes.iter().take(MAX_ROUTES) {
                if let (IpNet::V4(to), IpAddr::V4(via)) = (route.destination, route.nexthop) {
                    routes.push((to, via));
                }
            }
            // A client that is told routes so ignores the router option (RFC 3442).
            if let Some(router) = router.filter(|_| !routes.iter().any(|(to, _)| to.prefix_len() == 0)) {
                routes.push((Ipv4Net::default(), router));
            }
            Some(Lease {
                ip,
                subnet: cidr,
                server,
                router,
                dns: v4(&subnet.dns),
                ntp: v4(&subnet.ntp),
                routes,
                mtu: network.mtu,
                domain: subnet
                    .dns_domain
                    .clone()
                    .filter(|name| !name.is_empty() && name.len() <= 253),
                hostname: port
                    .hostname
                    .clone()
                    .filter(|name| !name.is_empty() && name.len() <= 253),
            })
        })
    }

    fn describe(&self, message: &mut Message) {
        let options = message.opts_mut();
        options.insert(DhcpOption::SubnetMask(self.subnet.netmask()));
        options.insert(DhcpOption::InterfaceMtu(self.mtu));
        options.insert(DhcpOption::ClasslessStaticRoute(self.routes.clone()));
        if let Some(router) = self.router {
            options.insert(DhcpOption::Router(vec![router]));
        }
        if !self.dns.is_empty() {
            options.insert(DhcpOption::DomainNameServer(self.dns.clone()));
        }
        if !self.ntp.is_empty() {
            options.insert(DhcpOption::NtpServers(self.ntp.clone()));
        }
        if let Some(domain) = &self.domain {
            options.insert(DhcpOption::DomainName(domain.clone()));
        }
        if let Some(hostname) = &self.hostname {
            options.insert(DhcpOption::Hostname(hostname.clone()));
        }
    }
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The message.
    pub message: Vec<u8>,
    /// Where to.
    pub to: Ipv4Addr,
    /// The Ethernet address to send to.
    pub mac: MacAddr,
}

/// Answers a client's message (the payload of UDP) on the port with this lease. `None`: nothing to say.
pub fn answer(lease: &Lease, mac: MacAddr, request: &[u8]) -> Option<Answer> {
    // BOOTREQUEST over Ethernet with a six-byte address; checked before anything else reads the length.
    if !matches!(request, [1, 1, 6, ..]) {
        return None;
    }
    let request = Message::decode(&mut Decoder::new(request)).ok()?;
    if request.chaddr() != mac.0 {
        return None;
    }
    let server = match request.opts().get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => Some(*server),
        _ => None,
    };
    let requested = match request.opts().get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(ip)) => Some(*ip),
        _ => None,
    };
    let kind = match request.opts().msg_type()? {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request => {
            if server.is_some_and(|server| server != lease.server) {
                return None; // It took another server's offer.
            }
            let wanted = requested
                .or(Some(request.ciaddr()))
                .filter(|ip| !ip.is_unspecified());
            if wanted == Some(lease.ip) {
                MessageType::Ack
            } else {
                MessageType::Nak
            }
        }
        MessageType::Inform => MessageType::Ack,
        // The address stays the port's; there is nothing to answer (RFC 2131 §4.3.3, §4.3.4).
        _ => return None,
    };
    let inform = request.opts().msg_type() == Some(MessageType::Inform);
    let nak = kind == MessageType::Nak;
    let mut reply = Message::new_with_id(
        request.xid(),
        if kind == MessageType::Ack {
            request.ciaddr()
        } else {
            Ipv4Addr::UNSPECIFIED
        },
        if nak || inform {
            Ipv4Addr::UNSPECIFIED
        } else {
            lease.ip
        },
        Ipv4Addr::UNSPECIFIED,
        request.giaddr(),
        &mac.0,
    );
    reply.set_opcode(Opcode::BootReply).set_flags(request.flags());
    reply.opts_mut().insert(DhcpOption::MessageType(kind));
    reply
        .opts_mut()
        .insert(DhcpOption::ServerIdentifier(lease.server));
    if !nak {
        lease.describe(&mut reply);
        if !inform {
            reply
                .opts_mut()
                .insert(DhcpOption::AddressLeaseTime(LEASE_SECONDS));
        }
    }
    let room = match request.opts().get(OptionCode::MaxMessageSize) {
        Some(DhcpOption::MaxMessageSize(size)) => usize::from(*size).saturating_sub(28).max(LEAST_MESSAGE),
        _ => LEAST_MESSAGE,
    };
    let mut message = reply.to_vec().ok()?;
    for expendable in [
        OptionCode::DomainName,
        OptionCode::NtpServers,
        OptionCode::ClasslessStaticRoute,
    ] {
        if message.len() > room {
            reply.opts_mut().remove(expendable);
            message = reply.to_vec().ok()?;
        }
    }
    // Some old relays and clients drop what is shorter than BOOTP's 300 bytes (RFC 1542 §2.1).
    if message.len() < 300 {
        message.resize(300, 0);
    }
    let broadcast = nak || request.flags().broadcast();
    let to = match (request.ciaddr(), broadcast) {
        (_, true) => Ipv4Addr::BROADCAST,
        (ip, false) if !ip.is_unspecified() => ip,
        _ if inform => Ipv4Addr::BROADCAST,
        _ => lease.ip,
    };
    Some(Answer {
        message,
        to,
        mac: if to.is_broadcast() {
            MacAddr::BROADCAST
        } else {
            mac
        },
    })
}
