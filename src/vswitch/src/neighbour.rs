//! Ethernet addresses that the tables do not know: hosts on the uplink, and virtual addresses that wander.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use model::net::MacAddr;
use uuid::Uuid;

use crate::frame::Frame;
use crate::{Map, Now};

/// How many neighbours are remembered.
const MAX_NEIGHBOURS: usize = 4096;
/// How many frames wait for one neighbour's answer (RFC 1122 §2.3.2.2 asks for one at least).
const MAX_QUEUE: usize = 16;
/// An answer is good for so long; when it is used after half the time it is asked for again.
const FRESH: Duration = Duration::from_secs(60);
/// Between requests.
const RETRY: Duration = Duration::from_secs(1);
/// How often is asked.
const TRIES: u8 = 3;
/// After so many unanswered requests nothing is asked for so long.
const GIVEN_UP: Duration = Duration::from_secs(3);

/// Which neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its network.
    pub network: Uuid,
    /// Its address.
    pub ip: Ipv4Addr,
}

/// Who asks: the leg's addresses, for requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// The leg's Ethernet address.
    pub mac: MacAddr,
    /// The leg's address.
    pub ip: Ipv4Addr,
}

#[derive(Debug)]
struct Entry {
    mac: Option<MacAddr>,
    fresh_until: Now,
    asker: Asker,
    asked: Now,
    tries: u8,
    queue: VecDeque<Frame>,
}

/// What to do with a frame for a neighbour.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it there; if `true`, ask again as well.
    Send(MacAddr, bool),
    /// It waits; if `true`, ask.
    Wait(bool),
    /// It does not answer.
    Unreachable,
}

/// All neighbours.
#[derive(Debug, Default)]
pub struct Neighbours {
    entries: Map<Key, Entry>,
    /// How many entries wait for an answer.
    pending: usize,
}

impl Neighbours {
    /// Looks a neighbour up for a frame, which is taken from `frame` if it has to wait.
    pub fn resolve(&mut self, key: Key, asker: Asker, frame: &mut Frame, now: Now) -> Verdict {
        if !self.entries.contains_key(&key) {
            if self.entries.len() >= MAX_NEIGHBOURS {
                self.entries.retain(|_, entry| {
                    entry.mac.is_none() && entry.tries <= TRIES || entry.fresh_until > now
                });
                self.pending = self.entries.values().filter(|entry| entry.waits()).count();
                if self.entries.len() >= MAX_NEIGHBOURS {
                    return Verdict::Unreachable;
                }
            }
            let queue = VecDeque::from([std::mem::take(frame)]);
            self.entries.insert(
                key,
                Entry {
                    mac: None,
                    fresh_until: now,
                    asker,
                    asked: now,
                    tries: 1,
                    queue,
                },
            );
            self.pending += 1;
            return Verdict::Wait(true);
        }
        let Some(entry) = self.entries.get_mut(&key) else {
            return Verdict::Unreachable;
        };
        match entry.mac {
            Some(mac) if now < entry.fresh_until => {
                let again = entry.fresh_until - now < FRESH / 2 && now >= entry.asked + RETRY;
                if again {
                    entry.asked = now;
                }
                Verdict::Send(mac, again)
            }
            None if entry.waits() => {
                if entry.queue.len() >= MAX_QUEUE {
                    entry.queue.pop_front();
                }
                entry.queue.push_back(std::mem::take(frame));
                Verdict::Wait(false)
            }
            None if now < entry.asked + GIVEN_UP => Verdict::Unreachable,
            _ => {
                // Stale, or long given up: from the beginning.
                *entry = Entry {
                    mac: None,
                    fresh_until: now,
                    asker,
                    asked: now,
                    tries: 1,
                    queue: VecDeque::from([std::mem::take(frame)]),
                };
                self.pending += 1;
                Verdict::Wait(true)
            }
        }
    }

    /// An ARP packet told an address. Only neighbours that were asked for are remembered. The frames that waited go.
    pub fn learn(&mut self, key: Key, mac: MacAddr, now: Now) -> VecDeque<Frame> {
        let Some(entry) = self.entries.get_mut(&key) else {
            return VecDeque::new();
        };
        if entry.waits() {
            self.pending -= 1;
        }
        entry.mac = Some(mac);
        entry.fresh_until = now + FRESH;
        entry.tries = 0;
        std::mem::take(&mut entry.queue)
    }

    /// When `tick` has work.
    pub fn next_tick(&self) -> Option<Now> {
        if self.pending == 0 {
            return None;
        }
        self.entries
            .values()
            .filter(|entry| entry.waits())
            .map(|entry| entry.asked + RETRY)
            .min()
    }

    /// Whom to ask again, and how many frames nobody answered for.
    pub fn tick(&mut self, now: Now) -> (Vec<(Key, Asker)>, usize) {
        let (mut ask, mut lost) = (Vec::new(), 0);
        if self.pending == 0 {
            return (ask, lost);
        }
        for (key, entry) in &mut self.entries {
            if !entry.waits() || now < entry.asked + RETRY {
                continue;
            }
            entry.asked = now;
            entry.tries += 1;
            if entry.tries > TRIES {
                self.pending -= 1;
                lost += entry.queue.drain(..).count();
            } else {
                ask.push((*key, entry.asker));
            }
        }
        (ask, lost)
    }

    /// Forgets networks that are gone.
    pub fn retain(&mut self, keep: impl Fn(&Key) -> bool) {
        self.entries.retain(|key, _| keep(key));
        self.pending = self.entries.values().filter(|entry| entry.waits()).count();
    }
}

impl Entry {
    fn waits(&self) -> bool {
        self.mac.is_none() && (1..=TRIES).contains(&self.tries)
    }
}
