//! The switch as a pure state machine.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use model::net::{MacAddr, PortCounters, SwitchStatus, Tables};
use uuid::Uuid;

use crate::bucket::Bucket;
use crate::counters::{Drop, Drops};
use crate::fragment::Fragments;
use crate::frame::Frame;
use crate::metadata::Endpoint;
use crate::nat::Nat;
use crate::neighbour::Neighbours;
use crate::security::Zone;
use crate::tables::{Layout, Place, PortLayout, Slot};
use crate::{Map, Now};

/// What the switch wants done: frames to send, in this order.
#[derive(Debug, Default)]
pub struct Effects {
    /// Each with where it leaves.
    pub frames: Vec<(Place, Frame)>,
}

/// A node's switch.
#[derive(Debug, Default)]
pub struct Switch {
    layout: Layout,
    state: State,
}

/// What changes from frame to frame.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub ports: Vec<PortState>,
    pub uplinks: Vec<Fragments>,
    pub routers: Map<Uuid, RouterState>,
    pub neighbours: Neighbours,
    /// Addresses whose Ethernet address is new, to be told to their networks.
    pub announce: Vec<Announcement>,
    pub drops: Drops,
    pub seed: u64,
}

/// What the switch remembers of a port.
#[derive(Debug)]
pub(crate) struct PortState {
    pub id: Uuid,
    pub counters: PortCounters,
    pub zone: Zone,
    pub fragments: Fragments,
    pub metadata: Option<Box<Endpoint>>,
    pub dhcp: Bucket,
    pub metadata_packets: Bucket,
}

impl PortState {
    fn new(id: Uuid) -> Self {
        Self {
            id,
            counters: PortCounters::default(),
            zone: Zone::default(),
            fragments: Fragments::default(),
            metadata: None,
            dhcp: Bucket::new(20, 40),
            metadata_packets: Bucket::new(4_000, 8_000),
        }
    }
}

/// What the switch remembers of a router.
#[derive(Debug)]
pub(crate) struct RouterState {
    pub nat: Nat,
    pub icmp: Bucket,
}

impl Default for RouterState {
    fn default() -> Self {
        // RFC 1812 §4.3.2.8 asks for a limit.
        Self {
            nat: Nat::default(),
            icmp: Bucket::new(200, 400),
        }
    }
}

/// One step of the switch: fixed tables, changing state, effects, a moment.
pub(crate) struct Work<'a> {
    pub layout: &'a Layout,
    pub state: &'a mut State,
    pub out: &'a mut Effects,
    pub now: Now,
}

impl Switch {
    /// A switch without tables. The seed makes its TCP's first sequence numbers unpredictable.
    pub fn new(seed: u64) -> Self {
        Self {
            layout: Layout::default(),
            state: State {
                seed,
                ..State::default()
            },
        }
    }

    /// Obeys new tables. Older ones than those in force are ignored: `false`.
    ///
    /// Connections that the change does not concern go on; those that no rule allows any more end.
    pub fn apply(&mut self, tables: &Tables, now: Now) -> bool {
        if tables.generation < self.layout.generation {
            return false;
        }
        let before = std::mem::take(&mut self.layout);
        let layout = Layout::compile(tables, &before);
        let mut ports: Map<Uuid, PortState> =
            self.state.ports.drain(..).map(|port| (port.id, port)).collect();
        for (slot, new) in layout.ports.iter().enumerate() {
            let Some(new) = new else {
                self.state.ports.push(PortState::new(Uuid::nil()));
                continue;
            };
            let mut state = ports.remove(&new.id).unwrap_or_else(|| PortState::new(new.id));
            if let Some(Some(old)) = before
                .ports
                .get(slot)
                .filter(|old| old.as_ref().is_some_and(|o| o.id == new.id))
            {
                settle(&mut state, old, new);
            }
            state.zone.sweep(now);
            self.state.ports.push(state);
        }
        self.state
            .uplinks
            .resize_with(layout.uplinks.len(), Fragments::default);
        let mut routers: Map<Uuid, RouterState> = std::mem::take(&mut self.state.routers);
        for router in &layout.routers {
            let old = before.routers.iter().find(|old| old.id == router.id);
            let same = old.is_some_and(|old| old.snat == router.snat);
            let kept = routers.remove(&router.id).filter(|_| same).unwrap_or_default();
            self.state.routers.insert(router.id, kept);
        }
        self.state
            .neighbours
            .retain(|key| layout.networks.iter().any(|network| network.id == key.network));
        self.state.announce = announcements(&before, &layout);
        self.layout = layout;
        true
    }

    /// A frame came in.
    pub fn input(&mut self, from: Place, frame: Frame, now: Now, out: &mut Effects) {
        let mut work = Work {
            layout: &self.layout,
            state: &mut self.state,
            out,
            now,
        };
        let done = match from {
            Place::Port(slot) => work.port_input(slot, frame),
            Place::Uplink(slot) => work.uplink_input(slot, frame),
        };
        if let Err(reason) = done {
            self.state.drops.count(reason);
        }
    }

    /// When `tick` has work, if ever.
    pub fn next_tick(&self) -> Option<Now> {
        let ports = self.state.ports.iter().flat_map(|port| {
            [
                port.zone.next_sweep(),
                port.metadata.as_ref().map(|endpoint| endpoint.next_tick()),
            ]
        });
        let routers = self.state.routers.values().map(|router| router.nat.next_sweep());
        ports
            .chain(routers)
            .flatten()
            .chain(self.state.neighbours.next_tick())
            .chain((!self.state.announce.is_empty()).then_some(Now::ZERO))
            .min()
    }

    /// Time has passed: repeats what got no answer and forgets what has expired.
    pub fn tick(&mut self, now: Now, out: &mut Effects) {
        for port in &mut self.state.ports {
            port.zone.sweep(now);
        }
        for router in self.state.routers.values_mut() {
            router.nat.sweep(now);
        }
        let mut work = Work {
            layout: &self.layout,
            state: &mut self.state,
            out,
            now,
        };
        work.tick_announcements();
        work.tick_metadata();
        work.tick_neighbours();
    }

    /// The slot of a port.
    pub fn port(&self, id: Uuid) -> Option<Place> {
        self.layout.port_slots.get(&id).map(|slot| Place::Port(*slot))
    }

    /// The slot of an uplink.
    pub fn uplink(&self, name: &str) -> Option<Place> {
        self.layout
            .uplink_slots
            .get(name)
            .map(|slot| Place::Uplink(*slot))
    }

    /// The receiver of a frame had no room for it.
    pub fn not_received(&mut self, place: Place, bytes: usize) {
        self.state.drops.count(Drop::ReceiverFull);
        if let Place::Port(slot) = place
            && let Some(port) = self.state.ports.get_mut(slot as usize)
        {
            port.counters.rx_packets = port.counters.rx_packets.saturating_sub(1);
            port.counters.rx_bytes = port.counters.rx_bytes.saturating_sub(bytes as u64);
        }
    }

    /// A frame whose virtio header or length made no sense.
    pub fn not_understood(&mut self) {
        self.state.drops.count(Drop::BadOffload);
    }

    /// Counters and state, without what only I/O knows.
    pub fn status(&self) -> SwitchStatus {
        let counters: BTreeMap<Uuid, PortCounters> = self
            .state
            .ports
            .iter()
            .filter(|port| !port.id.is_nil())
            .map(|port| (port.id, port.counters))
            .collect();
        let tracked: usize = self.state.ports.iter().map(|port| port.zone.len()).sum();
        SwitchStatus {
            generation: self.layout.generation,
            counters,
            connections: tracked as u64,
            drops: self.state.drops.named(),
            ..SwitchStatus::default()
        }
    }
}

/// An address with its Ethernet address on a network (by index).
pub(crate) type Announcement = (usize, Ipv4Addr, MacAddr);

/// What neighbours may remember wrongly: addresses that moved, and on external networks, new ones.
fn announcements(before: &Layout, now: &Layout) -> Vec<Announcement> {
    let mut all = Vec::new();
    for (at, network) in now.networks.iter().enumerate() {
        let old = before.networks.iter().find(|old| old.id == network.id);
        let external = network
            .members
            .iter()
            .any(|place| matches!(place, Place::Uplink(_)));
        for (ip, mac) in &network.hosts {
            let known = old.and_then(|old| old.hosts.get(ip));
            if known.is_some_and(|known| known != mac) || known.is_none() && external {
                all.push((at, *ip, *mac));
            }
        }
    }
    all
}

/// Brings a port's state in line with its new tables.
fn settle(state: &mut PortState, old: &PortLayout, new: &PortLayout) {
    if !new.secure {
        state.zone = Zone::default();
    } else if !Arc::ptr_eq(&old.rules, &new.rules) && old.rules != new.rules {
        state.zone.judge_again(&new.rules);
    }
    if old.metadata.is_some() != new.metadata.is_some() || old.network != new.network {
        state.metadata = None;
    }
}

impl Work<'_> {
    /// The state of a port; slots of the layout always have one.
    pub fn port_state(&mut self, slot: Slot) -> Result<&mut PortState, Drop> {
        self.state.ports.get_mut(slot as usize).ok_or(Drop::PortDown)
    }
}
