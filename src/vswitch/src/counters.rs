//! Why frames were dropped.

use std::collections::BTreeMap;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident => $text:literal,)*) => {
        /// Why a frame was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Drop { $($(#[doc = $doc])* $name,)* }

        impl Drop {
            const ALL: &'static [(Drop, &'static str)] = &[$((Drop::$name, $text),)*];
        }
    };
}

reasons! {
    /// Headers contradict the length or each other.
    Malformed => "malformed",
    /// An offload that was not negotiated or makes no sense.
    BadOffload => "bad_offload",
    /// A fragment without its first one, or one that would overwrite a header.
    BadFragment => "bad_fragment",
    /// The port is unknown, down or unplugged.
    PortDown => "port_down",
    /// Source MAC that is not the port's.
    SpoofedMac => "spoofed_mac",
    /// Source IP that is not the port's.
    SpoofedIp => "spoofed_ip",
    /// ARP for an address that is not the port's.
    SpoofedArp => "spoofed_arp",
    /// Neighbour discovery for an address that is not the port's.
    SpoofedNd => "spoofed_nd",
    /// A DHCP server's message from a guest.
    DhcpServer => "dhcp_server",
    /// A router advertisement from a guest.
    RouterAdvertisement => "router_advertisement",
    /// A protocol that a secured port may not speak.
    EtherType => "ethertype",
    /// No rule of the sender's groups allows it.
    Egress => "security_group_egress",
    /// No rule of the receiver's groups allows it.
    Ingress => "security_group_ingress",
    /// The port tracks as many connections as it may.
    Conntrack => "conntrack_full",
    /// No port has the destination address.
    UnknownUnicast => "unknown_unicast",
    /// Larger than the network carries.
    TooBig => "too_big",
    /// The router is down.
    RouterDown => "router_down",
    /// The packet came by a leg that leads not back to its source.
    ReversePath => "reverse_path",
    /// Time to live ran out.
    Ttl => "ttl_exceeded",
    /// No route.
    NoRoute => "no_route",
    /// Nothing of the router's own listens there.
    RouterLocal => "router_local",
    /// Nothing maps it to an inside address.
    NoMapping => "nat_no_mapping",
    /// No public port is free, or the limit of mappings is reached.
    NatFull => "nat_full",
    /// No answer to ARP.
    Neighbour => "neighbour_unresolved",
    /// IPv6 is not routed.
    Ipv6Routing => "ipv6_not_routed",
    /// A limit on requests per second.
    RateLimit => "rate_limit",
    /// Consumed by a service that had no answer.
    Service => "service_no_answer",
    /// The receiver's ring or queue was full.
    ReceiverFull => "receiver_full",
    /// Passed between routers too often.
    Loop => "loop",
}

/// Frames dropped, by reason.
#[derive(Debug, Clone)]
pub struct Drops([u64; Drop::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([0; Drop::ALL.len()])
    }
}

impl Drops {
    /// Counts one.
    pub fn count(&mut self, reason: Drop) {
        self.0[reason as usize] += 1;
    }

    /// How many for this reason.
    pub fn of(&self, reason: Drop) -> u64 {
        self.0[reason as usize]
    }

    /// All that are not zero, by name.
    pub fn named(&self) -> BTreeMap<String, u64> {
        let counted =
            |&(reason, name): &(Drop, &str)| Some((name.to_owned(), self.of(reason))).filter(|&(_, n)| n > 0);
        Drop::ALL.iter().filter_map(counted).collect()
    }
}
