//! Routers: from leg to leg, with NAT where a leg leads out (RFC 1812).

use std::net::{IpAddr, Ipv4Addr};

use crate::counters::Drop;
use crate::frame::{ETHERNET, Frame};
use crate::icmp::{self, Complaint};
use crate::l2::{Origin, wire_size};
use crate::nat::{Inside, Outside};
use crate::neighbour::Asker;
use crate::parse::{Fragment, InnerFlow, Ip, Net, Packet, Transport, protocol};
use crate::rewrite::{self, End};
use crate::switch::Work;
use crate::tables::{LegRef, RouterLayout};

/// How many routers a frame may pass inside the switch.
const MAX_ROUTERS: u8 = 8;

/// How a packet that came from outside is changed.
#[derive(Debug, Clone, Copy)]
struct Inbound {
    dst: Ipv4Addr,
    port: Option<u16>,
    /// The same for the packet inside an ICMP error: its source was ours.
    inner: Option<(Ipv4Addr, Option<u16>)>,
}

fn routable(ip: Ipv4Addr) -> bool {
    !(ip.is_unspecified()
        || ip.is_multicast()
        || ip.is_broadcast()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.octets()[0] == 0)
}

impl Work<'_> {
    /// A packet reached a router's leg.
    pub fn route(
        &mut self,
        at: LegRef,
        mut frame: Frame,
        packet: Packet,
        mut ip: Ip,
        passed: u8,
    ) -> Result<(), Drop> {
        let layout = self.layout;
        let router = &layout.routers[at.router];
        if passed > MAX_ROUTERS {
            return Err(Drop::Loop);
        }
        if !router.up {
            return Err(Drop::RouterDown);
        }
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (ip.src, ip.dst) else {
            return Err(Drop::Ipv6Routing);
        };
        if !routable(src) || !routable(dst) {
            return Err(Drop::NoRoute);
        }
        let outside = router.gateway == Some(at.leg);
        if router.route(src).is_none_or(|back| back.leg != at.leg) {
            return Err(Drop::ReversePath);
        }
        let own = router.legs.iter().any(|leg| leg.ips.contains(&dst));
        if own && let Some(reply) = icmp::echo_reply(&frame, &packet, &ip) {
            return self.send_back(at, reply, passed);
        }
        // The public address of all may be that of a flow; from inside, too, where a floating IP answers a neighbour.
        if own && router.snat != Some(dst) {
            if ip.protocol == protocol::UDP {
                self.complain(at, &frame, &packet, &ip, Complaint::PortUnreachable, passed);
            }
            return Err(Drop::RouterLocal);
        }
        if ip.ttl <= 1 {
            self.complain(at, &frame, &packet, &ip, Complaint::TimeExceeded, passed);
            return Err(Drop::Ttl);
        }
        let inbound = if outside {
            self.inbound(router, src, dst, &ip)?
        } else {
            None
        };
        let target = inbound.map_or(dst, |inbound| inbound.dst);
        let Some(hop) = router.route(target) else {
            self.complain(at, &frame, &packet, &ip, Complaint::NetUnreachable, passed);
            return Err(Drop::NoRoute);
        };
        if outside && hop.leg == at.leg {
            return Err(Drop::Loop); // From outside to outside is not this router's business.
        }
        let out = &router.legs[hop.leg];
        let mtu = layout.networks[out.network].mtu;
        let must_not_cut = frame.offload.segments.is_some() || frame.bytes[ETHERNET + 6] & 0x40 != 0;
        if wire_size(&frame, ip.end, Some(&ip)) > usize::from(mtu) && must_not_cut {
            self.complain(at, &frame, &packet, &ip, Complaint::TooBig(mtu), passed);
            return Err(Drop::TooBig);
        }
        // From here on the frame changes.
        rewrite::hop(&mut frame, &mut ip);
        if let Some(Inbound { dst, port, inner }) = inbound {
            if let Some((address, port)) = inner {
                rewrite::inner(&mut frame, &mut ip, End::Source, address, port);
            }
            if let Some(port) = port {
                rewrite::port(&mut frame, &mut ip, End::Destination, port);
            }
            rewrite::address(&mut frame, &mut ip, End::Destination, dst);
        }
        if router.gateway == Some(hop.leg) {
            self.outbound(router, &mut frame, &mut ip)?;
        }
        let next = hop.via.unwrap_or(target);
        let from = LegRef {
            router: at.router,
            leg: hop.leg,
        };
        self.leave(from, next, frame, ip, passed)
    }

    /// Out of a leg, to a neighbour on its network.
    fn leave(
        &mut self,
        from: LegRef,
        next: Ipv4Addr,
        mut frame: Frame,
        ip: Ip,
        passed: u8,
    ) -> Result<(), Drop> {
        let leg = &self.layout.routers[from.router].legs[from.leg];
        let mtu = usize::from(self.layout.networks[leg.network].mtu);
        if frame.offload.segments.is_none() && ip.end - ETHERNET > mtu {
            frame.finish_checksum();
            for (piece, ip) in cut(&frame, &ip, mtu) {
                self.leave(from, next, piece, ip, passed)?;
            }
            return Ok(());
        }
        let asker = Asker {
            mac: leg.mac,
            ip: leg.ips.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED),
        };
        frame.set_macs(leg.mac, leg.mac);
        let Some(mac) = self.resolve(leg.network, asker, next, &mut frame)? else {
            return Ok(());
        };
        frame.set_macs(mac, leg.mac);
        let packet = Packet {
            dst: mac,
            src: leg.mac,
            ethertype: crate::parse::ethertype::IPV4,
            net: Net::Ip(ip),
        };
        self.forward(leg.network, Origin::Router(passed), frame, packet)
    }

    /// What becomes of a packet from outside: to a floating IP's port, or to the flow that it answers.
    fn inbound(
        &mut self,
        router: &RouterLayout,
        src: Ipv4Addr,
        dst: Ipv4Addr,
        ip: &Ip,
    ) -> Result<Option<Inbound>, Drop> {
        if let Some(fixed) = router.inbound.get(&dst) {
            let inner = match ip.transport {
                Transport::Error { inner, .. } if inner.src == ip.dst => Some((*fixed, None)),
                _ => None,
            };
            return Ok(Some(Inbound {
                dst: *fixed,
                port: None,
                inner,
            }));
        }
        if router.snat.is_none() {
            return Ok(None);
        }
        if router.snat != Some(dst) {
            return Err(Drop::NoMapping);
        }
        let nat = &mut self
            .state
            .routers
            .get_mut(&router.id)
            .ok_or(Drop::RouterDown)?
            .nat;
        let outside = |port, remote_port| Outside {
            protocol: ip.protocol,
            remote: src,
            remote_port,
            port,
        };
        let found = match ip.transport {
            Transport::Ports {
                src: remote,
                dst: port,
                flags,
            } => nat.answer(&outside(port, remote), flags, self.now),
            Transport::Echo { request: false, id } => nat.answer(&outside(id, 0), 0, self.now),
            Transport::None => nat.answer(&outside(0, 0), 0, self.now),
            Transport::Error { inner, .. } => {
                let IpAddr::V4(remote) = inner.dst else {
                    return Err(Drop::Malformed);
                };
                let (port, remote_port) = match inner.flow {
                    InnerFlow::Ports(src, dst) => (src, dst),
                    InnerFlow::Echo(true, id) => (id, 0),
                    InnerFlow::Echo(false, _) | InnerFlow::None => (0, 0),
                };
                if inner.src != ip.dst {
                    return Err(Drop::NoMapping);
                }
                let key = Outside {
                    protocol: inner.protocol,
                    remote,
                    remote_port,
                    port,
                };
                let inside = nat.peek_answer(&key, self.now).ok_or(Drop::NoMapping)?;
                let about = Some((inside.src, Some(inside.port)));
                return Ok(Some(Inbound {
                    dst: inside.src,
                    port: None,
                    inner: about,
                }));
            }
            Transport::Echo { .. } | Transport::Icmp { .. } => None,
        };
        let inside = found.ok_or(Drop::NoMapping)?;
        Ok(Some(Inbound {
            dst: inside.src,
            port: Some(inside.port),
            inner: None,
        }))
    }

    /// Gives a packet that leaves by the gateway a public source.
    fn outbound(&mut self, router: &RouterLayout, frame: &mut Frame, ip: &mut Ip) -> Result<(), Drop> {
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (ip.src, ip.dst) else {
            return Err(Drop::Ipv6Routing);
        };
        let flow = match ip.transport {
            Transport::Ports {
                src: port,
                dst: dst_port,
                flags,
            } => Some((port, dst_port, flags)),
            Transport::Echo { request: true, id } => Some((id, 0, 0)),
            Transport::None => Some((0, 0, 0)),
            _ => None,
        };
        let flow = flow.map(|(port, dst_port, flags)| {
            (
                Inside {
                    protocol: ip.protocol,
                    src,
                    port,
                    dst,
                    dst_port,
                },
                flags,
            )
        });
        let nat = &mut self
            .state
            .routers
            .get_mut(&router.id)
            .ok_or(Drop::RouterDown)?
            .nat;
        // A flow that began before its address got a floating IP goes on as it began.
        let known = match (flow, router.snat) {
            (Some((flow, flags)), Some(_)) if !nat.is_empty() => nat.known(&flow, flags, self.now),
            _ => None,
        };
        if let (None, Some(public)) = (known, router.outbound.get(&src)) {
            if let Transport::Error { inner, .. } = ip.transport {
                // About a packet to the floating IP, or about an answer to a translated flow.
                let mapping = about(&inner)
                    .and_then(|flow| nat.peek(&flow, self.now))
                    .zip(router.snat);
                if let Some((port, snat)) = mapping {
                    rewrite::inner(frame, ip, End::Destination, snat, Some(port));
                    rewrite::address(frame, ip, End::Source, snat);
                    return Ok(());
                }
                if inner.dst == IpAddr::V4(src) {
                    rewrite::inner(frame, ip, End::Destination, *public, None);
                }
            }
            rewrite::address(frame, ip, End::Source, *public);
            return Ok(());
        }
        let Some(snat) = router.snat else { return Ok(()) };
        if let Transport::Error { inner, .. } = ip.transport {
            let port = about(&inner)
                .and_then(|flow| nat.peek(&flow, self.now))
                .ok_or(Drop::NoMapping)?;
            rewrite::inner(frame, ip, End::Destination, snat, Some(port));
            rewrite::address(frame, ip, End::Source, snat);
            return Ok(());
        }
        let (flow, flags) = flow.ok_or(Drop::NoMapping)?;
        let port = match known {
            Some(port) => port,
            None => nat.begin(flow, flags, self.now).ok_or(Drop::NatFull)?,
        };
        if port != flow.port {
            rewrite::port(frame, ip, End::Source, port);
        }
        rewrite::address(frame, ip, End::Source, snat);
        Ok(())
    }

    /// An ICMP error about a packet, back by the leg that it came by.
    fn complain(&mut self, at: LegRef, frame: &Frame, packet: &Packet, ip: &Ip, what: Complaint, passed: u8) {
        let router = &self.layout.routers[at.router];
        let Some(from) = router.legs[at.leg].ips.first().copied() else {
            return;
        };
        let now = self.now;
        if !self
            .state
            .routers
            .get_mut(&router.id)
            .is_some_and(|state| state.icmp.take(now))
        {
            return self.state.drops.count(Drop::RateLimit);
        }
        if let Some(error) = icmp::error(frame, packet, ip, from, what)
            && let Err(reason) = self.send_back(at, error, passed)
        {
            self.state.drops.count(reason);
        }
    }

    fn send_back(&mut self, at: LegRef, reply: Frame, passed: u8) -> Result<(), Drop> {
        let network = self.layout.routers[at.router].legs[at.leg].network;
        let packet = Packet::parse(&reply.bytes)?;
        self.forward(network, Origin::Router(passed), reply, packet)
    }
}

/// The inside flow that an ICMP error from inside is about: its packet came as an answer.
fn about(inner: &crate::parse::Inner) -> Option<Inside> {
    let (IpAddr::V4(remote), IpAddr::V4(src)) = (inner.src, inner.dst) else {
        return None;
    };
    let (dst_port, port) = match inner.flow {
        InnerFlow::Ports(from, to) => (from, to),
        InnerFlow::Echo(false, id) => (0, id),
        InnerFlow::Echo(true, _) => return None,
        InnerFlow::None => (0, 0),
    };
    Some(Inside {
        protocol: inner.protocol,
        src,
        port,
        dst: remote,
        dst_port,
    })
}

/// Cuts an IPv4 packet into fragments (RFC 791 §3.2).
fn cut(frame: &Frame, ip: &Ip, mtu: usize) -> Vec<(Frame, Ip)> {
    let header = ip.l4 - ETHERNET;
    let room = (mtu.saturating_sub(header)) & !7;
    let Some(payload) = frame.bytes.get(ip.l4..ip.end).filter(|_| room >= 8) else {
        return Vec::new();
    };
    let field = u16::from_be_bytes([frame.bytes[ETHERNET + 6], frame.bytes[ETHERNET + 7]]);
    let (start, more_follow) = (usize::from(field & 0x1fff) * 8, field & 0x2000 != 0);
    let mut pieces = Vec::new();
    for (at, data) in payload.chunks(room).enumerate() {
        let offset = start + at * room;
        let last = (at + 1) * room >= payload.len();
        let mut bytes = Vec::with_capacity(ip.l4 + data.len());
        bytes.extend_from_slice(&frame.bytes[..ip.l4]);
        bytes.extend_from_slice(data);
        let length = (header + data.len()) as u16;
        let flags = if last && !more_follow { 0 } else { 0x2000 };
        let word = flags | ((offset / 8) as u16 & 0x1fff);
        bytes[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
        bytes[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&word.to_be_bytes());
        bytes[ETHERNET + 10..ETHERNET + 12].fill(0);
        let sum = crate::checksum::of(&bytes[ETHERNET..ip.l4]);
        bytes[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
        let fragment = if offset == 0 {
            Fragment::First
        } else {
            Fragment::Later(offset as u16)
        };
        let ip = Ip {
            end: bytes.len(),
            fragment,
            ..ip.clone()
        };
        pieces.push((Frame::new(bytes), ip));
    }
    pieces
}
