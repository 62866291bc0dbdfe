//! ARP: answered from the tables, asked for the rest (RFC 826, RFC 5227).

use std::net::IpAddr;

use model::net::MacAddr;

use crate::build::{self, ARP_REPLY, ARP_REQUEST};
use crate::counters::Drop;
use crate::frame::Frame;
use crate::l2::Origin;
use crate::neighbour::{Asker, Key, Verdict};
use crate::parse::{Arp, Packet};
use crate::switch::Work;
use crate::tables::{METADATA, Place};

impl Work<'_> {
    /// Reads an ARP packet on a network and answers it if the tables can. `true`: it is answered.
    pub fn arp(&mut self, network: usize, origin: Origin, packet: &Packet, arp: &Arp) -> bool {
        let layout = self.layout;
        let net = &layout.networks[network];
        let Origin::Place(place) = origin else {
            return false;
        };
        if !arp.sender.is_unspecified() && !arp.sender_mac.is_multicast() {
            let key = Key {
                network: net.id,
                ip: arp.sender,
            };
            for mut waiting in self.state.neighbours.learn(key, arp.sender_mac, self.now) {
                let Some(mac) = waiting.bytes.get(6..12).and_then(|b| <[u8; 6]>::try_from(b).ok()) else {
                    continue;
                };
                waiting.set_macs(arp.sender_mac, MacAddr(mac));
                if let Err(reason) = self.resend(network, waiting) {
                    self.state.drops.count(reason);
                }
            }
        }
        if arp.operation != ARP_REQUEST {
            return false;
        }
        let known = if arp.target == METADATA && matches!(place, Place::Port(_)) {
            Some(net.service_mac)
        } else {
            net.hosts.get(&arp.target).copied()
        };
        // An owner that asks for its own address looks for a conflict, or announces itself.
        let Some(mac) = known.filter(|mac| *mac != packet.src && arp.sender != arp.target) else {
            return false;
        };
        let reply = build::arp(
            ARP_REPLY,
            (mac, arp.target),
            (arp.sender_mac, arp.sender),
            packet.src,
        );
        self.emit(place, reply);
        true
    }

    fn resend(&mut self, network: usize, frame: Frame) -> Result<(), Drop> {
        let packet = Packet::parse(&frame.bytes)?;
        self.forward(network, Origin::Router(0), frame, packet)
    }

    /// The Ethernet address of a neighbour of a router's leg. `None`: the frame waits for an answer to ARP.
    pub fn resolve(
        &mut self,
        network: usize,
        asker: Asker,
        ip: std::net::Ipv4Addr,
        frame: &mut Frame,
    ) -> Result<Option<MacAddr>, Drop> {
        let net = &self.layout.networks[network];
        if let Some(mac) = net.hosts.get(&ip) {
            return Ok(Some(*mac));
        }
        let key = Key { network: net.id, ip };
        match self.state.neighbours.resolve(key, asker, frame, self.now) {
            Verdict::Send(mac, again) => {
                if again {
                    self.ask(network, asker, ip);
                }
                Ok(Some(mac))
            }
            Verdict::Wait(ask) => {
                if ask {
                    self.ask(network, asker, ip);
                }
                Ok(None)
            }
            Verdict::Unreachable => Err(Drop::Neighbour),
        }
    }

    /// Asks those who could have the address: the uplinks, and ports that may use it.
    fn ask(&mut self, network: usize, asker: Asker, ip: std::net::Ipv4Addr) {
        let layout = self.layout;
        let request = build::arp(
            ARP_REQUEST,
            (asker.mac, asker.ip),
            (MacAddr([0; 6]), ip),
            MacAddr::BROADCAST,
        );
        for place in &layout.networks[network].members {
            let may_have = match place {
                Place::Uplink(_) => true,
                Place::Port(slot) => layout
                    .ports
                    .get(*slot as usize)
                    .and_then(Option::as_ref)
                    .is_some_and(|port| {
                        !port.secure
                            || port.ips.contains(&IpAddr::V4(ip))
                            || port
                                .pairs
                                .iter()
                                .any(|(_, prefix)| prefix.contains(&IpAddr::V4(ip)))
                    }),
            };
            if may_have {
                self.emit(*place, request.clone());
            }
        }
    }

    /// Tells networks of addresses that have another Ethernet address than before (RFC 5227 §3).
    pub fn tick_announcements(&mut self) {
        let layout = self.layout;
        for (network, ip, mac) in std::mem::take(&mut self.state.announce) {
            let told = build::arp(ARP_REQUEST, (mac, ip), (MacAddr([0; 6]), ip), MacAddr::BROADCAST);
            for place in &layout.networks[network].members {
                self.emit(*place, told.clone());
            }
        }
    }

    /// Repeats requests that nobody has answered.
    pub fn tick_neighbours(&mut self) {
        let (ask, lost) = self.state.neighbours.tick(self.now);
        for (key, asker) in ask {
            if let Some(network) = self
                .layout
                .networks
                .iter()
                .position(|network| network.id == key.network)
            {
                self.ask(network, asker, key.ip);
            }
        }
        for _ in 0..lost {
            self.state.drops.count(Drop::Neighbour);
        }
    }
}
