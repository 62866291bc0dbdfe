//! The metadata service: 169.254.169.254 port 80 on every port, by TCP inside the switch.
//!
//! A port's endpoint is made when the first packet comes and taken away when all is quiet. Who asks is decided by the
//! port alone; nothing in a request can say otherwise.

mod http;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use model::net::{MacAddr, Metadata};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};

use crate::Now;
use crate::bucket::Bucket;
use crate::counters::Drop;
use crate::frame::{ETHERNET, Frame};
use crate::metadata::http::Parsed;
use crate::parse::{Fragment, Ip, Packet, ethertype, protocol};
use crate::switch::Work;
use crate::tables::{METADATA, Place, PortLayout, Slot};

/// Connections of a port at a time.
const SOCKETS: usize = 8;
const RECEIVE: usize = 4096;
const SEND: usize = 16_384;
/// Addresses of a port that are answered at a time.
const MAX_PEERS: usize = 16;
/// A connection that takes longer than this to ask or to read is closed.
const PATIENCE: Duration = Duration::from_secs(15);
/// An endpoint that nobody uses is kept for so long.
const LINGER: Duration = Duration::from_secs(10);

/// The TCP end of a port's metadata service.
pub(crate) struct Endpoint {
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    device: Queue,
    /// Who asked: IP address, Ethernet address, and the Ethernet address that was asked.
    peers: VecDeque<(Ipv4Addr, MacAddr, MacAddr)>,
    requests: Bucket,
    due: Now,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("peers", &self.peers)
            .finish_non_exhaustive()
    }
}

struct Connection {
    handle: SocketHandle,
    request: Vec<u8>,
    response: Vec<u8>,
    sent: usize,
    close: bool,
    since: Option<Now>,
}

/// IP packets in and out of smoltcp.
struct Queue {
    incoming: Option<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
    mtu: usize,
}

struct Incoming(Vec<u8>);
struct Outgoing<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Queue {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        self.incoming
            .take()
            .map(|packet| (Incoming(packet), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

fn instant(now: Now) -> Instant {
    Instant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}

fn listening() -> tcp::Socket<'static> {
    let mut socket = tcp::Socket::new(
        tcp::SocketBuffer::new(vec![0; RECEIVE]),
        tcp::SocketBuffer::new(vec![0; SEND]),
    );
    socket.set_timeout(Some(smoltcp::time::Duration::from_secs(10)));
    socket.set_nagle_enabled(false);
    socket
}

impl Endpoint {
    fn new(mtu: u16, seed: u64, now: Now) -> Self {
        let mut device = Queue {
            incoming: None,
            outgoing: Vec::new(),
            mtu: usize::from(mtu).max(576),
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, instant(now));
        interface.update_ip_addrs(|addresses| {
            // Room for one address is there: the vector starts empty.
            let _ = addresses.push(IpCidr::new(METADATA.into(), 32));
        });
        let _ = interface.routes_mut().add_default_ipv4_route(METADATA);
        let mut sockets = SocketSet::new(Vec::new());
        let connections = (0..SOCKETS)
            .map(|_| Connection {
                handle: sockets.add(listening()),
                request: Vec::new(),
                response: Vec::new(),
                sent: 0,
                close: false,
                since: None,
            })
            .collect();
        let requests = Bucket::new(200, 400);
        Self {
            interface,
            sockets,
            connections,
            device,
            peers: VecDeque::new(),
            requests,
            due: now,
        }
    }

    fn remember(&mut self, ip: Ipv4Addr, guest: MacAddr, ours: MacAddr) {
        self.peers.retain(|peer| peer.0 != ip);
        if self.peers.len() >= MAX_PEERS {
            self.peers.pop_back();
        }
        self.peers.push_front((ip, guest, ours));
    }

    /// Goes on with everything; a packet may have come in. The frames for the guest are returned.
    fn advance(&mut self, packet: Option<Vec<u8>>, metadata: Option<&Metadata>, now: Now) -> Vec<Frame> {
        self.device.incoming = packet;
        let time = instant(now);
        if metadata.is_some() {
            self.listen();
        }
        self.interface.poll(time, &mut self.device, &mut self.sockets);
        for connection in &mut self.connections {
            connection.advance(&mut self.sockets, metadata, &mut self.requests, now);
        }
        self.interface.poll(time, &mut self.device, &mut self.sockets);
        let patience = self
            .connections
            .iter()
            .filter_map(|connection| connection.since)
            .map(|since| since + PATIENCE)
            .min();
        let protocol = self
            .interface
            .poll_at(time, &self.sockets)
            .map(|at| Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0)).max(now));
        self.due = patience.into_iter().chain(protocol).min().unwrap_or(now + LINGER);
        let outgoing = std::mem::take(&mut self.device.outgoing);
        outgoing
            .into_iter()
            .filter_map(|packet| self.frame(&packet))
            .collect()
    }

    /// Every socket that is free listens. One in TIME-WAIT counts as free: its peer has said all that it will say.
    fn listen(&mut self) {
        for connection in &mut self.connections {
            let socket = self.sockets.get::<tcp::Socket>(connection.handle);
            if matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait) {
                self.sockets.remove(connection.handle);
                connection.reset(self.sockets.add(listening()));
                // A new socket may listen, and the port is not zero.
                let _ = self
                    .sockets
                    .get_mut::<tcp::Socket>(connection.handle)
                    .listen((METADATA, 80));
            }
        }
    }

    fn frame(&self, packet: &[u8]) -> Option<Frame> {
        let dst: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
        let (_, guest, ours) = self.peers.iter().find(|peer| peer.0.octets() == dst)?;
        let mut bytes = Vec::with_capacity(ETHERNET + packet.len());
        bytes.extend_from_slice(&guest.0);
        bytes.extend_from_slice(&ours.0);
        bytes.extend_from_slice(&ethertype::IPV4.to_be_bytes());
        bytes.extend_from_slice(packet);
        Some(Frame::new(bytes))
    }

    /// When time alone has work for it.
    pub(crate) fn next_tick(&self) -> Now {
        self.due
    }

    /// Nobody is connected.
    fn quiet(&self) -> bool {
        self.connections.iter().all(|connection| {
            let state = self.sockets.get::<tcp::Socket>(connection.handle).state();
            matches!(
                state,
                tcp::State::Closed | tcp::State::Listen | tcp::State::TimeWait
            )
        })
    }
}

impl Connection {
    fn reset(&mut self, handle: SocketHandle) {
        *self = Connection {
            handle,
            request: Vec::new(),
            response: Vec::new(),
            sent: 0,
            close: false,
            since: None,
        };
    }

    fn advance(
        &mut self,
        sockets: &mut SocketSet<'static>,
        metadata: Option<&Metadata>,
        requests: &mut Bucket,
        now: Now,
    ) {
        let socket = sockets.get_mut::<tcp::Socket>(self.handle);
        if matches!(
            socket.state(),
            tcp::State::Closed | tcp::State::Listen | tcp::State::TimeWait
        ) {
            self.since = None;
            return;
        }
        let since = *self.since.get_or_insert(now);
        if now >= since + PATIENCE {
            socket.abort();
            return;
        }
        loop {
            if self.sent < self.response.len() {
                let Ok(sent) = socket.send_slice(&self.response[self.sent..]) else {
                    break;
                };
                self.sent += sent;
                if self.sent < self.response.len() {
                    if sent > 0 {
                        self.since = Some(now);
                    }
                    break;
                }
                self.response = Vec::new();
                self.sent = 0;
                self.since = Some(now);
            }
            if self.close {
                socket.close();
                break;
            }
            while socket.can_recv() && self.request.len() < http::MAX_HEAD {
                let room = http::MAX_HEAD - self.request.len();
                let taken = socket.recv(|data| {
                    let taken = data.len().min(room);
                    self.request.extend_from_slice(&data[..taken]);
                    (taken, taken)
                });
                if !matches!(taken, Ok(1..)) {
                    break;
                }
            }
            self.response = match http::parse(&self.request) {
                Parsed::Incomplete => {
                    self.close = socket.state() == tcp::State::CloseWait;
                    if self.close {
                        continue;
                    }
                    break;
                }
                Parsed::Bad(status) => {
                    self.close = true;
                    http::plain(status, false, false)
                }
                Parsed::Request(request) => {
                    self.request.drain(..request.length);
                    self.close = !request.keep_alive;
                    if requests.take(now) {
                        http::respond(&request, metadata)
                    } else {
                        http::plain(429, request.keep_alive, false)
                    }
                }
            };
        }
    }
}

impl Work<'_> {
    /// A packet for 169.254.169.254 came from a port.
    pub fn metadata(
        &mut self,
        slot: Slot,
        port: &PortLayout,
        frame: &Frame,
        packet: &Packet,
        ip: &Ip,
    ) -> Result<(), Drop> {
        let now = self.now;
        let seed = self.state.seed;
        let mtu = self.layout.networks[port.network].mtu;
        let state = self.port_state(slot)?;
        if !state.metadata_packets.take(now) {
            return Err(Drop::RateLimit);
        }
        let IpAddr::V4(src) = ip.src else {
            return Err(Drop::Service);
        };
        if ip.protocol != protocol::TCP || ip.fragment != Fragment::No {
            return Err(Drop::Service);
        }
        let endpoint = state.metadata.get_or_insert_with(|| {
            let mixed = seed ^ (u64::from(slot) << 32) ^ now.as_nanos() as u64;
            Box::new(Endpoint::new(mtu, mixed, now))
        });
        endpoint.remember(src, packet.src, packet.dst);
        let mut whole = frame.clone();
        if whole.offload.segments.take().is_some() {
            return Err(Drop::TooBig);
        }
        whole.finish_checksum();
        let datagram = whole.bytes.get(ETHERNET..ip.end).ok_or(Drop::Malformed)?.to_vec();
        let frames = endpoint.advance(Some(datagram), port.metadata.as_deref(), now);
        for frame in frames {
            self.emit(Place::Port(slot), frame);
        }
        Ok(())
    }

    /// Time has passed for the endpoints.
    pub fn tick_metadata(&mut self) {
        let (layout, now) = (self.layout, self.now);
        for slot in 0..self.state.ports.len() {
            let (Some(port), Some(endpoint)) = (
                layout.ports.get(slot).and_then(Option::as_ref),
                &mut self.state.ports[slot].metadata,
            ) else {
                continue;
            };
            if endpoint.due > now {
                continue;
            }
            let frames = endpoint.advance(None, port.metadata.as_deref(), now);
            if endpoint.quiet() {
                self.state.ports[slot].metadata = None;
            }
            for frame in frames {
                self.emit(Place::Port(slot as Slot), frame);
            }
        }
    }
}
