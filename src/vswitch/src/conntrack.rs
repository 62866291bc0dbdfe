//! Connection tracking, one bounded zone for each port, seen from the port: *local* is the port's side.

use std::net::IpAddr;
use std::time::Duration;

use indexmap::IndexMap;
use indexmap::map::Entry;
use model::net::Direction;
use uuid::Uuid;

use crate::parse::{Inner, InnerFlow, Ip, Transport, flag, protocol};
use crate::{Now, RandomState};

/// How many connections a port may have.
pub const MAX_CONNECTIONS: usize = 32_768;

/// A connection's name within a port's zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// IP protocol.
    pub protocol: u8,
    /// For echo: the port's side asks.
    pub local_asks: bool,
    /// The port's port or echo identifier.
    pub local_port: u16,
    /// The other side's port.
    pub remote_port: u16,
    /// The port's address.
    pub local: IpAddr,
    /// The other side's.
    pub remote: IpAddr,
}

impl Key {
    /// The connection that a packet belongs to.
    pub fn of(ip: &Ip, direction: Direction) -> Key {
        let (src, dst, local_asks) = match ip.transport {
            Transport::Ports { src, dst, .. } => (src, dst, false),
            Transport::Echo { request, id } => (id, id, request == (direction == Direction::Egress)),
            _ => (0, 0, false),
        };
        let (local, remote, local_port, remote_port) = match direction {
            Direction::Egress => (ip.src, ip.dst, src, dst),
            Direction::Ingress => (ip.dst, ip.src, dst, src),
        };
        Key {
            protocol: ip.protocol,
            local_asks,
            local_port,
            remote_port,
            local,
            remote,
        }
    }

    /// The connection that an ICMP error is about. The error comes to the port about what the port sent, or goes from
    /// the port about what it received.
    pub fn of_inner(inner: &Inner, direction: Direction) -> Key {
        let sent = direction == Direction::Ingress;
        let (src, dst, local_asks) = match inner.flow {
            InnerFlow::Ports(src, dst) => (src, dst, false),
            InnerFlow::Echo(request, id) => (id, id, request == sent),
            InnerFlow::None => (0, 0, false),
        };
        let (local, remote, local_port, remote_port) = if sent {
            (inner.src, inner.dst, src, dst)
        } else {
            (inner.dst, inner.src, dst, src)
        };
        Key {
            protocol: inner.protocol,
            local_asks,
            local_port,
            remote_port,
            local,
            remote,
        }
    }
}

/// How far a connection is. What is not TCP is `Open` from its first packet on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// SYN seen.
    SynSent,
    /// SYN and ACK seen.
    SynReceived,
    /// Data flows.
    Open,
    /// One side has finished.
    Closing,
    /// Both sides have finished.
    TimeWait,
    /// Reset.
    Reset,
}

/// A tracked flow's progress; NAT uses it as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// How far the connection is.
    pub state: State,
    /// Both sides have spoken.
    pub replied: bool,
    fins: u8,
    /// When it is forgotten.
    pub expires: Now,
}

impl Progress {
    /// The first packet of a connection.
    pub fn new(protocol: u8, flags: u8, now: Now) -> Self {
        let state = if protocol == protocol::TCP && flags & flag::SYN != 0 {
            State::SynSent
        } else {
            State::Open
        };
        let mut progress = Self {
            state,
            replied: false,
            fins: 0,
            expires: now,
        };
        progress.expires = now + progress.lifetime(protocol);
        progress
    }

    /// A further packet; `original`: in the direction of the first.
    pub fn advance(&mut self, protocol: u8, flags: u8, original: bool, now: Now) {
        self.replied |= !original;
        if protocol == protocol::TCP {
            if flags & flag::RST != 0 {
                self.state = State::Reset;
            } else {
                if flags & flag::FIN != 0 {
                    self.fins |= if original { 1 } else { 2 };
                }
                self.state = match (self.state, self.fins) {
                    (_, 3) => State::TimeWait,
                    (_, 1 | 2) => State::Closing,
                    (State::SynSent, _) if !original && flags & flag::SYN != 0 => State::SynReceived,
                    (State::SynReceived, _) if original && flags & flag::ACK != 0 => State::Open,
                    // A repeated SYN changes nothing, data after a reset was blind chance.
                    (State::SynSent, _) if original => State::SynSent,
                    (State::SynReceived, _) => State::SynReceived,
                    _ => State::Open,
                };
            }
        }
        self.expires = now + self.lifetime(protocol);
    }

    /// How long silence may last (RFC 5382 REQ-5, RFC 4787 REQ-5, RFC 5508 REQ-2; else Linux's values).
    fn lifetime(&self, protocol: u8) -> Duration {
        Duration::from_secs(match (protocol, self.state, self.replied) {
            (protocol::TCP, State::SynSent | State::SynReceived, _) => 60,
            (protocol::TCP, State::Open, true) => 7440,
            (protocol::TCP, State::Open, false) => 300,
            (protocol::TCP, State::Closing, _) => 240,
            (protocol::TCP, State::TimeWait, _) => 60,
            (protocol::TCP, State::Reset, _) => 10,
            (protocol::UDP | protocol::UDPLITE, _, true) => 300,
            (protocol::UDP | protocol::UDPLITE, _, false) => 30,
            (protocol::ICMP | protocol::ICMPV6, ..) => 60,
            _ => 600,
        })
    }

    /// May it go, so that a new one fits?
    fn expendable(&self, now: Now) -> bool {
        self.expires <= now
            || !self.replied
            || matches!(self.state, State::TimeWait | State::Reset | State::Closing)
    }
}

/// A connection of a port.
#[derive(Debug, Clone, Copy)]
pub struct Connection {
    /// The direction of its first packet, seen from the port.
    pub origin: Direction,
    /// The rule that let it begin.
    pub rule: Uuid,
    /// How far it is.
    pub progress: Progress,
}

/// A bounded map of flows that forgets what has expired.
#[derive(Debug)]
pub struct Flows<K, V> {
    map: IndexMap<K, V, RandomState>,
    limit: usize,
    cursor: usize,
    next_sweep: Option<Now>,
}

/// A flow that can expire.
pub trait Flow {
    /// How far it is.
    fn progress(&self) -> &Progress;
}

impl Flow for Connection {
    fn progress(&self) -> &Progress {
        &self.progress
    }
}

/// The soonest that a sweep follows another.
const SWEEP: Duration = Duration::from_secs(10);
/// How many flows are looked at to find one that may go.
const PROBES: usize = 64;

impl<K: std::hash::Hash + Eq + Copy, V: Flow> Flows<K, V> {
    /// An empty map.
    pub fn new(limit: usize) -> Self {
        Self {
            map: IndexMap::default(),
            limit,
            cursor: 0,
            next_sweep: None,
        }
    }

    /// How many flows are kept.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// A living flow.
    pub fn get_mut(&mut self, key: &K, now: Now) -> Option<&mut V> {
        self.map.get_mut(key).filter(|flow| flow.progress().expires > now)
    }

    /// Keeps a flow. When the map is full one that has ended, or never got an answer, makes room: its key is
    /// returned with it. `Err`: all flows are alive.
    pub fn insert(&mut self, key: K, flow: V, now: Now) -> Result<Option<(K, V)>, V> {
        let due = flow.progress().expires.max(now + SWEEP);
        let mut evicted = None;
        if self.map.len() >= self.limit && !self.map.contains_key(&key) {
            evicted = self.evict(now);
            if evicted.is_none() {
                return Err(flow);
            }
        }
        match self.map.entry(key) {
            Entry::Occupied(mut entry) => {
                entry.insert(flow);
            }
            Entry::Vacant(entry) => {
                entry.insert(flow);
            }
        }
        self.next_sweep = Some(self.next_sweep.map_or(due, |next| next.min(due)));
        Ok(evicted)
    }

    fn evict(&mut self, now: Now) -> Option<(K, V)> {
        for _ in 0..PROBES.min(self.map.len()) {
            self.cursor = (self.cursor + 1) % self.map.len();
            if self
                .map
                .get_index(self.cursor)
                .is_some_and(|(_, flow)| flow.progress().expendable(now))
            {
                return self.map.swap_remove_index(self.cursor);
            }
        }
        None
    }

    /// Forgets a flow.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.map.swap_remove(key)
    }

    /// When `sweep` has work.
    pub fn next_sweep(&self) -> Option<Now> {
        self.next_sweep
    }

    /// Forgets what has expired by now.
    pub fn sweep(&mut self, now: Now, gone: impl FnMut(&K, &V)) {
        if self.next_sweep.is_none_or(|due| due > now) {
            return;
        }
        self.retain(|_, flow| flow.progress().expires > now, gone);
        let soonest = self.map.values().map(|flow| flow.progress().expires).min();
        self.next_sweep = soonest.map(|expires| expires.max(now + SWEEP));
    }

    /// Keeps those that `keep` says, and tells of the others.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool, mut gone: impl FnMut(&K, &V)) {
        self.map.retain(|key, flow| {
            let kept = keep(key, flow);
            if !kept {
                gone(key, flow);
            }
            kept
        });
        if self.map.len() * 4 < self.map.capacity() {
            self.map.shrink_to(self.map.len() * 2);
        }
    }
}
