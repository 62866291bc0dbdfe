//! Later fragments carry no ports: they take those of their first fragment, and pass only behind it.

use std::net::IpAddr;
use std::time::Duration;

use indexmap::IndexMap;

use crate::counters::Drop;
use crate::parse::{Fragment, Ip, Transport};
use crate::{Now, RandomState};

/// How many packets in pieces a port may have under way.
const MAX_PACKETS: usize = 256;
/// How long the pieces of a packet may take (RFC 1122 §3.3.2 allows 60 to 120 s to reassemble; pieces come together).
const LIFETIME: Duration = Duration::from_secs(15);

type Key = (IpAddr, IpAddr, u8, u32);

/// The packets in pieces that came in at one place.
#[derive(Debug, Default)]
pub struct Fragments(IndexMap<Key, (Transport, Now), RandomState>);

impl Fragments {
    /// Remembers a first fragment; fills a later one in.
    pub fn follow(&mut self, ip: &mut Ip, now: Now) -> Result<(), Drop> {
        let key = (ip.src, ip.dst, ip.protocol, ip.ident);
        match ip.fragment {
            Fragment::No => {}
            Fragment::First => {
                if self.0.len() >= MAX_PACKETS && !self.0.contains_key(&key) {
                    self.0.retain(|_, (_, expires)| *expires > now);
                    if self.0.len() >= MAX_PACKETS {
                        self.0.swap_remove_index(0);
                    }
                }
                // TCP's flags count once, in the first fragment.
                let transport = match ip.transport {
                    Transport::Ports { src, dst, .. } => Transport::Ports {
                        src,
                        dst,
                        flags: crate::parse::flag::ACK,
                    },
                    Transport::Error { .. } => return Err(Drop::BadFragment),
                    other => other,
                };
                self.0.insert(key, (transport, now + LIFETIME));
            }
            Fragment::Later(_) => {
                let (transport, expires) = self.0.get(&key).ok_or(Drop::BadFragment)?;
                if *expires <= now {
                    return Err(Drop::BadFragment);
                }
                ip.transport = *transport;
            }
        }
        Ok(())
    }
}
