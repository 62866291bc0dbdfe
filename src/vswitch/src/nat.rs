//! Source NAT of a router: many inside flows behind one public address (RFC 4787, 5382, 5508).

use std::net::Ipv4Addr;

use crate::conntrack::{Flow, Flows, Progress};
use crate::parse::protocol;
use crate::{Map, Now};

/// How many flows a router translates at a time.
pub const MAX_MAPPINGS: usize = 262_144;
/// How many of these one inside address may have.
pub const MAX_PER_SOURCE: u32 = 32_768;
/// How many ports are tried for a new flow.
const TRIES: u16 = 128;

/// A flow as its packets look inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inside {
    /// IP protocol.
    pub protocol: u8,
    /// The inside address.
    pub src: Ipv4Addr,
    /// Its port or echo identifier.
    pub port: u16,
    /// The other side.
    pub dst: Ipv4Addr,
    /// Its port.
    pub dst_port: u16,
}

/// A flow as its answers look outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outside {
    /// IP protocol.
    pub protocol: u8,
    /// The other side.
    pub remote: Ipv4Addr,
    /// Its port.
    pub remote_port: u16,
    /// The public port or echo identifier.
    pub port: u16,
}

#[derive(Debug)]
struct Mapping {
    outside: u16,
    progress: Progress,
}

impl Flow for Mapping {
    fn progress(&self) -> &Progress {
        &self.progress
    }
}

/// The translations of a router.
#[derive(Debug)]
pub struct Nat {
    flows: Flows<Inside, Mapping>,
    answers: Map<Outside, Inside>,
    per_source: Map<Ipv4Addr, u32>,
}

impl Default for Nat {
    fn default() -> Self {
        Self {
            flows: Flows::new(MAX_MAPPINGS),
            answers: Map::default(),
            per_source: Map::default(),
        }
    }
}

impl Inside {
    fn outside(&self, port: u16) -> Outside {
        Outside {
            protocol: self.protocol,
            remote: self.dst,
            remote_port: self.dst_port,
            port,
        }
    }

    /// Has the protocol a port that can be changed?
    fn ported(&self) -> bool {
        matches!(self.protocol, protocol::TCP | protocol::UDP | protocol::ICMP)
    }
}

impl Nat {
    /// Nothing is translated.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// The public port of a flow that is translated already.
    pub fn known(&mut self, flow: &Inside, flags: u8, now: Now) -> Option<u16> {
        let mapping = self.flows.get_mut(flow, now)?;
        mapping.progress.advance(flow.protocol, flags, true, now);
        Some(mapping.outside)
    }

    /// The public port of a flow's other packets, without a step of its state: for what an ICMP error is about.
    pub fn peek(&mut self, flow: &Inside, now: Now) -> Option<u16> {
        self.flows.get_mut(flow, now).map(|mapping| mapping.outside)
    }

    /// Begins to translate a flow. `None`: no port is free, or a limit is reached.
    pub fn begin(&mut self, flow: Inside, flags: u8, now: Now) -> Option<u16> {
        // What has expired, and only waits to be swept, does not count.
        if let Some(old) = self.flows.remove(&flow) {
            self.forget(&flow, old.outside);
        }
        if self
            .per_source
            .get(&flow.src)
            .is_some_and(|count| *count >= MAX_PER_SOURCE)
        {
            return None;
        }
        let port = self.free_port(&flow, now)?;
        let progress = Progress::new(flow.protocol, flags, now);
        match self.flows.insert(
            flow,
            Mapping {
                outside: port,
                progress,
            },
            now,
        ) {
            Err(_) => return None,
            Ok(Some((key, mapping))) => self.forget(&key, mapping.outside),
            Ok(None) => {}
        }
        self.answers.insert(flow.outside(port), flow);
        *self.per_source.entry(flow.src).or_default() += 1;
        Some(port)
    }

    fn free_port(&mut self, flow: &Inside, now: Now) -> Option<u16> {
        if !flow.ported() {
            return (!self.taken(&flow.outside(flow.port), now)).then_some(flow.port);
        }
        // Ports are kept where they can be, well-known ones among themselves (RFC 4787 REQ-3).
        let low = if flow.port < 1024 && flow.protocol != protocol::ICMP {
            1
        } else {
            1024
        };
        let range = if low == 1 { 1023 } else { 64_512 };
        let first = flow.port.max(low);
        (0..TRIES).find_map(|step| {
            // Steps of a prime walk over the range without falling into a neighbour's run of ports.
            let offset = (u32::from(first - low) + u32::from(step) * 7919) % range;
            let port = low + offset as u16;
            (!self.taken(&flow.outside(port), now)).then_some(port)
        })
    }

    fn taken(&mut self, outside: &Outside, now: Now) -> bool {
        let Some(inside) = self.answers.get(outside).copied() else {
            return false;
        };
        if self.flows.get_mut(&inside, now).is_some() {
            return true;
        }
        if let Some(old) = self.flows.remove(&inside) {
            self.forget(&inside, old.outside);
        }
        false
    }

    fn forget(&mut self, flow: &Inside, port: u16) {
        forget(&mut self.answers, &mut self.per_source, flow, port);
    }

    /// The inside flow that an answer from outside belongs to.
    pub fn answer(&mut self, outside: &Outside, flags: u8, now: Now) -> Option<Inside> {
        let inside = *self.answers.get(outside)?;
        self.flows
            .get_mut(&inside, now)?
            .progress
            .advance(outside.protocol, flags, false, now);
        Some(inside)
    }

    /// The same without a step of its state.
    pub fn peek_answer(&mut self, outside: &Outside, now: Now) -> Option<Inside> {
        let inside = *self.answers.get(outside)?;
        self.flows.get_mut(&inside, now).map(|_| inside)
    }

    /// When `sweep` has work.
    pub fn next_sweep(&self) -> Option<Now> {
        self.flows.next_sweep()
    }

    /// Forgets what has expired.
    pub fn sweep(&mut self, now: Now) {
        let Self {
            flows,
            answers,
            per_source,
        } = self;
        flows.sweep(now, |flow, mapping| {
            forget(answers, per_source, flow, mapping.outside)
        });
    }
}

fn forget(answers: &mut Map<Outside, Inside>, per_source: &mut Map<Ipv4Addr, u32>, flow: &Inside, port: u16) {
    answers.remove(&flow.outside(port));
    if let Some(count) = per_source.get_mut(&flow.src) {
        *count -= 1;
        if *count == 0 {
            per_source.remove(&flow.src);
        }
    }
}
