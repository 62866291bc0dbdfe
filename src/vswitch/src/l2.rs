//! Layer 2: from port to port by table. Nothing is learned from frames.

use std::net::IpAddr;

use model::net::{Direction, MacAddr};

use crate::build;
use crate::counters::Drop;
use crate::dhcp;
use crate::frame::{ETHERNET, Frame, MAX_FRAME};
use crate::icmp;
use crate::parse::{Fragment, Ip, Net, Packet, Transport, protocol};
use crate::spoof;
use crate::switch::Work;
use crate::tables::{LegRef, METADATA, Place, PortLayout, Slot, Station};

/// Where a frame on a network comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// From outside the switch.
    Place(Place),
    /// A router. The count of routers passed so far keeps loops short.
    Router(u8),
}

/// Checks the work that a sender left over against what the frame is; does what nobody later could.
fn settle_offload(frame: &mut Frame, packet: &Packet) -> Result<(), Drop> {
    let Some(checksum) = frame.offload.checksum else {
        return if frame.offload.segments.is_some() {
            Err(Drop::BadOffload)
        } else {
            Ok(())
        };
    };
    let (start, offset) = (usize::from(checksum.start), usize::from(checksum.offset));
    if start < ETHERNET || start + offset + 2 > frame.bytes.len() {
        return Err(Drop::BadOffload);
    }
    let own = match &packet.net {
        Net::Ip(ip) if ip.fragment == Fragment::No && ip.l4 == start => match ip.protocol {
            protocol::TCP => offset == 16,
            protocol::UDP => offset == 6,
            _ => false,
        },
        _ => false,
    };
    if let Some(segments) = frame.offload.segments {
        return match &packet.net {
            // At least eight bytes a piece: a frame becomes 8,192 pieces at most.
            Net::Ip(ip)
                if own
                    && ip.protocol == protocol::TCP
                    && ip.src.is_ipv6() == segments.v6
                    && segments.size >= 8 =>
            {
                Ok(())
            }
            _ => Err(Drop::BadOffload),
        };
    }
    if !own {
        // A checksum deep inside (a tunnel of the guest's): nobody behind could tell where it is after a rewrite.
        frame.finish_checksum();
    }
    Ok(())
}

/// The largest IP packet that this frame becomes on the wire.
pub(crate) fn wire_size(frame: &Frame, packet_end: usize, ip: Option<&Ip>) -> usize {
    match (frame.offload.segments, ip) {
        (Some(segments), Some(ip)) => {
            let header = frame
                .bytes
                .get(ip.l4 + 12)
                .map_or(20, |byte| usize::from(byte >> 4) * 4);
            (ip.l4 - ETHERNET + header + usize::from(segments.size)).min(packet_end - ETHERNET)
        }
        _ => packet_end - ETHERNET,
    }
}

/// Addresses that bridges keep to themselves (IEEE 802.1D §7.12.6).
fn reserved(mac: MacAddr) -> bool {
    mac.0[..5] == [0x01, 0x80, 0xc2, 0, 0] && mac.0[5] < 0x10
}

impl Work<'_> {
    /// A guest sent a frame.
    pub fn port_input(&mut self, slot: Slot, mut frame: Frame) -> Result<(), Drop> {
        let layout = self.layout;
        let port = layout
            .ports
            .get(slot as usize)
            .and_then(Option::as_ref)
            .filter(|port| port.up)
            .ok_or(Drop::PortDown)?;
        let now = self.now;
        let state = self.port_state(slot)?;
        state.counters.tx_packets += 1;
        state.counters.tx_bytes += frame.bytes.len() as u64;
        let mut packet = parse(&mut frame)?;
        if port.secure {
            spoof::check(port, &frame, &packet)?;
        }
        if let Net::Ip(ip) = &mut packet.net {
            state.fragments.follow(ip, now)?;
            if self.serve(slot, port, &frame, &packet)? {
                return Ok(());
            }
        }
        let network = &layout.networks[port.network];
        let (end, ip) = match &packet.net {
            Net::Ip(ip) => (ip.end, Some(ip)),
            _ => (frame.bytes.len(), None),
        };
        if wire_size(&frame, end, ip) > usize::from(network.mtu) && !matches!(packet.net, Net::Arp(_)) {
            return Err(Drop::TooBig);
        }
        if let (true, Net::Ip(ip)) = (port.secure, &packet.net) {
            self.port_state(slot)?
                .zone
                .admit(&port.rules, ip, Direction::Egress, now)?;
        }
        self.forward(port.network, Origin::Place(Place::Port(slot)), frame, packet)
    }

    /// A frame came from an external network.
    pub fn uplink_input(&mut self, slot: Slot, mut frame: Frame) -> Result<(), Drop> {
        let layout = self.layout;
        let uplink = layout
            .uplinks
            .get(slot as usize)
            .and_then(Option::as_ref)
            .ok_or(Drop::PortDown)?;
        let mut packet = parse(&mut frame)?;
        if layout.networks[uplink.network].stations.contains_key(&packet.src) {
            return Err(Drop::SpoofedMac); // Our own frame came back.
        }
        if let Net::Ip(ip) = &mut packet.net {
            let fragments = self.state.uplinks.get_mut(slot as usize).ok_or(Drop::PortDown)?;
            fragments.follow(ip, self.now)?;
        }
        self.forward(uplink.network, Origin::Place(Place::Uplink(slot)), frame, packet)
    }

    /// What the switch itself answers on a port: DHCP and metadata. `true`: the frame was for it.
    fn serve(&mut self, slot: Slot, port: &PortLayout, frame: &Frame, packet: &Packet) -> Result<bool, Drop> {
        let Net::Ip(ip) = &packet.net else {
            return Ok(false);
        };
        match ip.transport {
            Transport::Ports { src: 68, dst: 67, .. }
                if ip.protocol == protocol::UDP && ip.src.is_ipv4() && port.dhcp_network =>
            {
                self.dhcp(slot, port, frame, packet, ip)?;
                Ok(true)
            }
            _ if ip.dst == IpAddr::V4(METADATA) && !packet.dst.is_multicast() => {
                self.metadata(slot, port, frame, packet, ip)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn dhcp(
        &mut self,
        slot: Slot,
        port: &PortLayout,
        frame: &Frame,
        packet: &Packet,
        ip: &Ip,
    ) -> Result<(), Drop> {
        let now = self.now;
        if !self.port_state(slot)?.dhcp.take(now) {
            return Err(Drop::RateLimit);
        }
        let network = &self.layout.networks[port.network];
        let lease = port.lease.as_ref().ok_or(Drop::Service)?;
        if packet.src != port.mac || ip.fragment != Fragment::No {
            return Err(Drop::Service);
        }
        let request = frame.bytes.get(ip.l4 + 8..ip.end).ok_or(Drop::Malformed)?;
        let answer = dhcp::answer(lease, port.mac, request).ok_or(Drop::Service)?;
        let mac = network
            .hosts
            .get(&lease.server)
            .copied()
            .unwrap_or(network.service_mac);
        let reply = build::udp(
            (answer.mac, mac),
            (lease.server, answer.to),
            (67, 68),
            &answer.message,
        );
        self.emit(Place::Port(slot), reply);
        Ok(())
    }

    /// A frame is on a network: on to whoever has its destination address.
    pub fn forward(
        &mut self,
        network: usize,
        origin: Origin,
        frame: Frame,
        packet: Packet,
    ) -> Result<(), Drop> {
        if reserved(packet.dst) {
            return Err(Drop::EtherType);
        }
        if let Net::Arp(arp) = packet.net
            && self.arp(network, origin, &packet, &arp)
        {
            return Ok(());
        }
        let layout = self.layout;
        let net = &layout.networks[network];
        if packet.dst.is_multicast() {
            self.flood(&net.members, origin, &frame, &packet);
            return Ok(());
        }
        match net.stations.get(&packet.dst) {
            Some(Station::Ports(slots)) => match slots.as_slice() {
                [slot] => self.deliver(*slot, frame, &packet),
                slots => {
                    let places: Vec<Place> = slots.iter().map(|slot| Place::Port(*slot)).collect();
                    self.flood(&places, origin, &frame, &packet);
                    Ok(())
                }
            },
            Some(Station::Leg(leg)) => self.enter_router(*leg, origin, frame, packet),
            Some(Station::Service) => self.enter_service(network, origin, &frame, &packet),
            None if net.open.iter().any(|place| origin != Origin::Place(*place)) => {
                self.flood(&net.open, origin, &frame, &packet);
                Ok(())
            }
            None => Err(Drop::UnknownUnicast),
        }
    }

    fn enter_router(
        &mut self,
        leg: LegRef,
        origin: Origin,
        frame: Frame,
        packet: Packet,
    ) -> Result<(), Drop> {
        let passed = match origin {
            Origin::Router(passed) => passed + 1,
            Origin::Place(_) => 0,
        };
        match packet.net.clone() {
            Net::Ip(ip) => self.route(leg, frame, packet, ip, passed),
            Net::Arp(_) => Ok(()), // A reply; it was read on the way.
            Net::Other => Err(Drop::EtherType),
        }
    }

    /// A DHCP server's address answers pings and nothing else.
    fn enter_service(
        &mut self,
        network: usize,
        origin: Origin,
        frame: &Frame,
        packet: &Packet,
    ) -> Result<(), Drop> {
        let Net::Ip(ip) = &packet.net else { return Ok(()) };
        let own = matches!(ip.dst, IpAddr::V4(dst) if self.layout.networks[network].servers.contains(&dst));
        match (origin, icmp::echo_reply(frame, packet, ip)) {
            (Origin::Place(place), Some(reply)) if own => self.answer(place, reply),
            _ => Err(Drop::Service),
        }
    }

    /// A frame of the switch's own to where a frame came from; a port's security groups judge it like any other.
    pub fn answer(&mut self, place: Place, reply: Frame) -> Result<(), Drop> {
        match place {
            Place::Port(slot) => {
                let packet = Packet::parse(&reply.bytes)?;
                self.deliver(slot, reply, &packet)
            }
            Place::Uplink(_) => {
                self.emit(place, reply);
                Ok(())
            }
        }
    }

    fn flood(&mut self, places: &[Place], origin: Origin, frame: &Frame, packet: &Packet) {
        for place in places.iter().filter(|place| origin != Origin::Place(**place)) {
            match place {
                // What one receiver's groups refuse is no loss of the sender's.
                Place::Port(slot) => drop(self.deliver(*slot, frame.clone(), packet)),
                Place::Uplink(_) => self.emit(*place, frame.clone()),
            }
        }
    }

    /// To a guest, if its security groups let it.
    pub fn deliver(&mut self, slot: Slot, frame: Frame, packet: &Packet) -> Result<(), Drop> {
        let layout = self.layout;
        let port = layout
            .ports
            .get(slot as usize)
            .and_then(Option::as_ref)
            .filter(|port| port.up)
            .ok_or(Drop::PortDown)?;
        let now = self.now;
        if port.secure {
            match &packet.net {
                Net::Ip(ip) => self
                    .port_state(slot)?
                    .zone
                    .admit(&port.rules, ip, Direction::Ingress, now)?,
                Net::Arp(_) => {}
                Net::Other => return Err(Drop::EtherType),
            }
        }
        self.emit(Place::Port(slot), frame);
        Ok(())
    }

    /// Out of the switch.
    pub fn emit(&mut self, place: Place, frame: Frame) {
        if let Place::Port(slot) = place
            && let Some(state) = self.state.ports.get_mut(slot as usize)
        {
            state.counters.rx_packets += 1;
            state.counters.rx_bytes += frame.bytes.len() as u64;
        }
        self.out.frames.push((place, frame));
    }
}

fn parse(frame: &mut Frame) -> Result<Packet, Drop> {
    if frame.bytes.len() < ETHERNET || frame.bytes.len() > MAX_FRAME {
        return Err(Drop::Malformed);
    }
    let packet = Packet::parse(&frame.bytes)?;
    if packet.src.is_multicast() {
        return Err(Drop::SpoofedMac);
    }
    settle_offload(frame, &packet)?;
    Ok(packet)
}
