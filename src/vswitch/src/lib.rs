//! The virtual switch of a node: packets between guests, routers, security groups and the host.
//!
//! ```text
//!  vhost-user ─┐                ┌───────────── Switch: no I/O, no clock ──────────────┐
//!  TAP ────────┼─▶ io::Worker ─▶│ parse ▶ spoof ▶ services ▶ security ▶ l2 ⇄ router   │─▶ io::Worker ─▶ ports
//!  uplink TAP ─┘                │             (arp, dhcp, metadata)      (nat, icmp)  │
//!                               └─────────────────────────────────────────────────────┘
//! ```
//! [`Switch`] is a pure state machine: `apply(tables)`, `input(place, frame, now)` and `tick(now)` are all that ever
//! happens to it, and frames out are all that it does. [`run`] moves the frames: it owns the descriptors, sleeps when
//! there is nothing to do, and obeys the control socket.
//!
//! Invariants: everything is keyed by network or router, so that tenants with the same addresses never meet; a guest's
//! identity is the port that its frame came from; whatever a guest can make grow has a bound.

mod arp;
mod bucket;
mod build;
mod checksum;
mod conntrack;
mod counters;
mod dhcp;
mod fragment;
mod frame;
mod icmp;
mod io;
mod l2;
mod metadata;
mod nat;
mod neighbour;
mod parse;
mod rewrite;
mod router;
mod security;
mod spoof;
mod switch;
mod tables;

pub use frame::{Abilities, Checksum, Frame, Offload, Segments};
pub use io::{Error, run};
pub use switch::{Effects, Switch};
pub use tables::Place;

/// Time since some moment that stays the same while the switch runs.
pub type Now = std::time::Duration;

type RandomState = foldhash::fast::RandomState;
type Map<K, V> = std::collections::HashMap<K, V, RandomState>;
