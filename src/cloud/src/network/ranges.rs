//! Arithmetic of address ranges. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::net::MacAddr;
use serde::{Deserialize, Serialize};

use super::errors::{bad, conflict};
use crate::Result;

/// A range of addresses from which ports get theirs, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The first address.
    pub start: IpAddr,
    /// The last address.
    pub end: IpAddr,
}

impl Pool {
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.start.is_ipv4() && self.start <= ip && ip <= self.end
    }

    /// How many addresses it has.
    pub fn size(&self) -> u128 {
        (number(self.end) - number(self.start)).saturating_add(1)
    }

    fn show(&self) -> String {
        format!("{}-{}", self.start, self.end)
    }
}

pub(crate) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

/// The address of this number, of the family of `like`.
pub(crate) fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

/// The address as bytes that sort as the number does.
pub(crate) fn key(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The address of [`key`]'s bytes.
pub(crate) fn from_key(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes)
        .ok()
        .map(|v6| Ipv6Addr::from(v6).into())
}

/// The first and the last address that a host may have. IPv4: neither the network's nor the broadcast address, where
/// there are such (RFC 3021 has none in a /31). IPv6: not the subnet-router anycast address (RFC 4291 §2.6.1).
pub(crate) fn hosts(cidr: IpNet) -> (IpAddr, IpAddr) {
    let (network, last) = (cidr.network(), cidr.broadcast());
    let first = number(network);
    match cidr {
        IpNet::V4(net) if net.prefix_len() >= 31 => (network, last),
        IpNet::V4(_) => (address(first + 1, network), address(number(last) - 1, network)),
        IpNet::V6(net) if net.prefix_len() >= 127 => (network, last),
        IpNet::V6(_) => (address(first + 1, network), last),
    }
}

/// The address may be a host's on this subnet.
pub(crate) fn is_host(cidr: IpNet, ip: IpAddr) -> bool {
    let (first, last) = hosts(cidr);
    cidr.contains(&ip) && first <= ip && ip <= last
}

/// The pools of a subnet that names none: all hosts but the gateway.
pub(crate) fn default_pools(cidr: IpNet, gateway: Option<IpAddr>) -> Vec<Pool> {
    let (first, last) = hosts(cidr);
    let Some(gateway) = gateway.filter(|ip| first <= *ip && *ip <= last) else {
        return vec![Pool {
            start: first,
            end: last,
        }];
    };
    let mut pools = Vec::new();
    if gateway > first {
        pools.push(Pool {
            start: first,
            end: address(number(gateway) - 1, gateway),
        });
    }
    if gateway < last {
        pools.push(Pool {
            start: address(number(gateway) + 1, gateway),
            end: last,
        });
    }
    pools
}

/// Sorts pools that a tenant gave and checks them: in the subnet, apart from each other and from the gateway.
pub(crate) fn check_pools(cidr: IpNet, gateway: Option<IpAddr>, mut pools: Vec<Pool>) -> Result<Vec<Pool>> {
    for pool in &pools {
        if pool.start.is_ipv4() != pool.end.is_ipv4() || pool.start > pool.end {
            return Err(bad(
                "InvalidAllocationPool",
                format!("The allocation pool {} is not valid.", pool.show()),
            ));
        }
        if !is_host(cidr, pool.start) || !is_host(cidr, pool.end) {
            return Err(bad(
                "OutOfBoundsAllocationPool",
                format!(
                    "The allocation pool {} spans beyond the subnet cidr {cidr}.",
                    pool.show()
                ),
            ));
        }
    }
    pools.sort_by_key(|pool| pool.start);
    for pair in pools.windows(2) {
        if pair[1].start <= pair[0].end {
            return Err(conflict(
                "OverlappingAllocationPools",
                format!(
                    "Found overlapping allocation pools: {} {} for subnet {cidr}.",
                    pair[0].show(),
                    pair[1].show()
                ),
            ));
        }
    }
    check_gateway(gateway, &pools)?;
    Ok(pools)
}

/// The gateway is in no pool.
pub(crate) fn check_gateway(gateway: Option<IpAddr>, pools: &[Pool]) -> Result<()> {
    let Some(gateway) = gateway else { return Ok(()) };
    match pools.iter().find(|pool| pool.contains(gateway)) {
        None => Ok(()),
        Some(pool) => Err(conflict(
            "GatewayConflictWithAllocationPools",
            format!(
                "Gateway ip {gateway} conflicts with allocation pool {}.",
                pool.show()
            ),
        )),
    }
}

/// The two ranges have an address in common.
pub(crate) fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// The address that a host takes by itself in a /64 (RFC 4291, appendix A).
pub(crate) fn eui64(cidr: IpNet, mac: MacAddr) -> IpAddr {
    let [a, b, c, d, e, f] = mac.0;
    let host = u64::from_be_bytes([a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]);
    let network = number(cidr.network()) & !u128::from(u64::MAX);
    Ipv6Addr::from(network | u128::from(host)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn pool(start: &str, end: &str) -> Pool {
        Pool {
            start: start.parse().unwrap(),
            end: end.parse().unwrap(),
        }
    }

    #[test]
    fn default_pools_leave_out_what_is_no_hosts() {
        let gateway = |text: &str| Some(text.parse().unwrap());
        assert_eq!(
            default_pools(net("10.0.0.0/24"), gateway("10.0.0.1")),
            [pool("10.0.0.2", "10.0.0.254")]
        );
        assert_eq!(
            default_pools(net("10.0.0.0/24"), None),
            [pool("10.0.0.1", "10.0.0.254")]
        );
        assert_eq!(
            default_pools(net("10.0.0.0/29"), gateway("10.0.0.3")),
            [pool("10.0.0.1", "10.0.0.2"), pool("10.0.0.4", "10.0.0.6")]
        );
        assert_eq!(
            default_pools(net("10.0.0.0/31"), None),
            [pool("10.0.0.0", "10.0.0.1")]
        );
        assert_eq!(default_pools(net("10.0.0.1/32"), gateway("10.0.0.1")), []);
        let v6 = default_pools(net("fd00::/64"), gateway("fd00::1"));
        assert_eq!(v6, [pool("fd00::2", "fd00::ffff:ffff:ffff:ffff")]);
    }

    #[test]
    fn pools_that_make_no_sense_are_refused_by_name() {
        let refused =
            |pools: &[Pool]| match check_pools(net("10.0.0.0/24"), "10.0.0.1".parse().ok(), pools.into()) {
                Err(crate::Error::Named { name, .. }) => name,
                other => panic!("{other:?}"),
            };
        assert_eq!(refused(&[pool("10.0.0.9", "10.0.0.2")]), "InvalidAllocationPool");
        assert_eq!(refused(&[pool("10.0.0.9", "fd00::1")]), "InvalidAllocationPool");
        assert_eq!(
            refused(&[pool("10.0.0.9", "10.0.1.2")]),
            "OutOfBoundsAllocationPool"
        );
        assert_eq!(
            refused(&[pool("10.0.0.9", "10.0.0.255")]),
            "OutOfBoundsAllocationPool"
        );
        assert_eq!(
            refused(&[pool("10.0.0.9", "10.0.0.12"), pool("10.0.0.2", "10.0.0.9")]),
            "OverlappingAllocationPools"
        );
        assert_eq!(
            refused(&[pool("10.0.0.1", "10.0.0.12")]),
            "GatewayConflictWithAllocationPools"
        );
    }

    #[test]
    fn a_host_derives_its_address_as_rfc_4291_says() {
        let mac = "34:56:78:9a:bc:de".parse().unwrap();
        assert_eq!(
            eui64(net("2001:db8::/64"), mac).to_string(),
            "2001:db8::3656:78ff:fe9a:bcde"
        );
    }
}
