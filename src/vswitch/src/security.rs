//! Security groups: what a port may send and receive. Stateful: a reply to what was allowed is allowed.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use model::net::{Direction, PortMatch};
use uuid::Uuid;

use crate::Now;
use crate::conntrack::{Connection, Flows, Key, MAX_CONNECTIONS, Progress, State};
use crate::counters::Drop;
use crate::parse::{Ip, Transport, flag, protocol};

/// The rules of a port, of all its groups together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RuleSet {
    ingress: Vec<Rule>,
    egress: Vec<Rule>,
}

/// A rule, with its remote group resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its id.
    pub id: Uuid,
    /// For IPv6, not IPv4.
    pub v6: bool,
    /// IP protocol.
    pub protocol: Option<u8>,
    /// Ports, or ICMP types and codes.
    pub ports: PortMatch,
    /// The other side.
    pub remote: RuleRemote,
}

/// The other side of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleRemote {
    /// Anyone.
    Any,
    /// A range.
    Prefix(IpNet),
    /// The members of a group.
    Members(Arc<HashSet<IpAddr>>),
}

/// What a rule looks at.
#[derive(Debug, Clone, Copy)]
struct Subject {
    protocol: u8,
    remote: IpAddr,
    /// Destination port, or ICMP type and code.
    ports: Option<u16>,
    icmp: Option<(u8, u8)>,
}

impl Rule {
    fn allows(&self, subject: &Subject) -> bool {
        if self.v6 != subject.remote.is_ipv6() {
            return false;
        }
        // Clients write "icmp" for IPv6 as well and mean ICMPv6.
        let wanted = self.protocol.map(|p| {
            if self.v6 && p == protocol::ICMP {
                protocol::ICMPV6
            } else {
                p
            }
        });
        if wanted.is_some_and(|wanted| wanted != subject.protocol) {
            return false;
        }
        let ports = match self.ports {
            PortMatch::Any => true,
            PortMatch::Range(low, high) => subject.ports.is_some_and(|port| (low..=high).contains(&port)),
            PortMatch::Icmp(kind, code) => subject
                .icmp
                .is_some_and(|(k, c)| k == kind && code.is_none_or(|code| code == c)),
        };
        ports
            && match &self.remote {
                RuleRemote::Any => true,
                RuleRemote::Prefix(prefix) => prefix.contains(&subject.remote),
                RuleRemote::Members(members) => members.contains(&subject.remote),
            }
    }
}

impl RuleSet {
    /// Adds a rule.
    pub fn push(&mut self, direction: Direction, rule: Rule) {
        match direction {
            Direction::Ingress => self.ingress.push(rule),
            Direction::Egress => self.egress.push(rule),
        }
    }

    fn allowing(&self, direction: Direction, subject: &Subject) -> Option<Uuid> {
        let rules = match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        };
        rules.iter().find(|rule| rule.allows(subject)).map(|rule| rule.id)
    }
}

/// What a secured port has open.
#[derive(Debug)]
pub struct Zone {
    flows: Flows<Key, Connection>,
}

impl Default for Zone {
    fn default() -> Self {
        Self {
            flows: Flows::new(MAX_CONNECTIONS),
        }
    }
}

/// Neighbour discovery and what else IPv6 needs to work at all (RFC 4890 §4.4): anti-spoofing has already judged it.
fn always(ip: &Ip, direction: Direction) -> bool {
    match ip.transport {
        Transport::Icmp { kind, .. } if ip.protocol == protocol::ICMPV6 => match direction {
            Direction::Egress => matches!(kind, 131 | 132 | 133 | 135 | 136 | 143),
            Direction::Ingress => matches!(kind, 130 | 134 | 135 | 136),
        },
        // DHCPv6 client (RFC 8415 §7.2).
        Transport::Ports {
            src: 546, dst: 547, ..
        } => ip.protocol == protocol::UDP && ip.src.is_ipv6() && direction == Direction::Egress,
        // A DHCPv4 client, where the switch does not serve itself.
        Transport::Ports { src: 68, dst: 67, .. } => {
            ip.protocol == protocol::UDP && ip.src.is_ipv4() && direction == Direction::Egress
        }
        _ => false,
    }
}

impl Zone {
    /// How many connections are tracked.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// May this packet pass in this direction (seen from the port)?
    pub fn admit(&mut self, rules: &RuleSet, ip: &Ip, direction: Direction, now: Now) -> Result<(), Drop> {
        if always(ip, direction) {
            return Ok(());
        }
        let refused = match direction {
            Direction::Ingress => Drop::Ingress,
            Direction::Egress => Drop::Egress,
        };
        let key = Key::of(ip, direction);
        let flags = match ip.transport {
            Transport::Ports { flags, .. } => flags,
            Transport::Error { ref inner, .. } => {
                let related = self
                    .flows
                    .get_mut(&Key::of_inner(inner, direction), now)
                    .is_some();
                return if related || self.matching(rules, ip, &key, direction).is_some() {
                    Ok(())
                } else {
                    Err(refused)
                };
            }
            _ => 0,
        };
        let tcp = ip.protocol == protocol::TCP;
        // No stack sends these; they only probe firewalls.
        if tcp
            && (flags & (flag::SYN | flag::FIN | flag::RST | flag::ACK) == 0
                || flags & flag::SYN != 0 && flags & (flag::FIN | flag::RST) != 0)
        {
            return Err(Drop::Malformed);
        }
        let opening = tcp && flags & (flag::SYN | flag::ACK) == flag::SYN;
        if let Some(connection) = self.flows.get_mut(&key, now) {
            let original = connection.origin == direction;
            let over = matches!(connection.progress.state, State::TimeWait | State::Reset);
            // A SYN against the direction, or after the end, begins a new connection and is judged like one.
            if !(opening && (over || !original)) {
                connection.progress.advance(ip.protocol, flags, original, now);
                return Ok(());
            }
        }
        let rule = self.matching(rules, ip, &key, direction).ok_or(refused)?;
        let tracked = match ip.transport {
            Transport::Ports { .. } => !(tcp && flags & flag::RST != 0),
            Transport::Echo { request, .. } => request,
            Transport::Icmp { .. } | Transport::Error { .. } => false,
            Transport::None => true,
        };
        if tracked {
            let progress = Progress::new(ip.protocol, flags, now);
            let connection = Connection {
                origin: direction,
                rule,
                progress,
            };
            self.flows
                .insert(key, connection, now)
                .map_err(|_| Drop::Conntrack)?;
        }
        Ok(())
    }

    fn matching(&self, rules: &RuleSet, ip: &Ip, key: &Key, direction: Direction) -> Option<Uuid> {
        let ports = match (ip.transport, direction) {
            (Transport::Ports { dst, .. }, _) => Some(dst),
            _ => None,
        };
        let v6 = ip.protocol == protocol::ICMPV6;
        let icmp = match ip.transport {
            Transport::Echo { request, .. } => Some((echo_type(v6, request), 0)),
            Transport::Icmp { kind, code } | Transport::Error { kind, code, .. } => Some((kind, code)),
            _ => None,
        };
        rules.allowing(
            direction,
            &Subject {
                protocol: ip.protocol,
                remote: key.remote,
                ports,
                icmp,
            },
        )
    }

    /// New rules: connections that no rule would let begin any more end, all others go on.
    pub fn judge_again(&mut self, rules: &RuleSet) {
        let still = |key: &Key, connection: &mut Connection| {
            let icmp = matches!(key.protocol, protocol::ICMP | protocol::ICMPV6);
            let ported = matches!(
                key.protocol,
                protocol::TCP | protocol::UDP | protocol::SCTP | protocol::DCCP | protocol::UDPLITE
            );
            let port = match connection.origin {
                Direction::Ingress => key.local_port,
                Direction::Egress => key.remote_port,
            };
            let subject = Subject {
                protocol: key.protocol,
                remote: key.remote,
                ports: ported.then_some(port),
                icmp: icmp.then(|| (echo_type(key.protocol == protocol::ICMPV6, true), 0)),
            };
            match rules.allowing(connection.origin, &subject) {
                Some(rule) => {
                    connection.rule = rule;
                    true
                }
                None => false,
            }
        };
        self.flows.retain(still, |_, _| {});
    }

    /// When `sweep` has work.
    pub fn next_sweep(&self) -> Option<Now> {
        self.flows.next_sweep()
    }

    /// Forgets what has expired.
    pub fn sweep(&mut self, now: Now) {
        self.flows.sweep(now, |_, _| {});
    }
}

fn echo_type(v6: bool, request: bool) -> u8 {
    match (v6, request) {
        (false, true) => 8,
        (false, false) => 0,
        (true, true) => 128,
        (true, false) => 129,
    }
}
