//! Which addresses are the public internet's: all that IANA's registries of special-purpose addresses do not name (RFC 6890,
//! and the registries as of 2026-11).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Networks of IPv4 that are not reached, or not to be reached, over the public internet.
const NOT_PUBLIC_V4: [([u8; 4], u8); 16] = [
    ([0, 0, 0, 0], 8),          // "this network", RFC 791
    ([10, 0, 0, 0], 8),         // private use, RFC 1918
    ([100, 64, 0, 0], 10),      // carrier-grade NAT, RFC 6598
    ([127, 0, 0, 0], 8),        // loopback, RFC 1122
    ([169, 254, 0, 0], 16),     // link-local, and so the metadata services of clouds, RFC 3927
    ([172, 16, 0, 0], 12),      // private use, RFC 1918
    ([192, 0, 0, 0], 24),       // protocol assignments, RFC 6890
    ([192, 0, 2, 0], 24),       // documentation, RFC 5737
    ([192, 88, 99, 0], 24),     // 6to4 relays, RFC 7526
    ([192, 168, 0, 0], 16),     // private use, RFC 1918
    ([198, 18, 0, 0], 15),      // benchmarks, RFC 2544
    ([198, 51, 100, 0], 24),    // documentation, RFC 5737
    ([203, 0, 113, 0], 24),     // documentation, RFC 5737
    ([224, 0, 0, 0], 4),        // multicast, RFC 1112
    ([240, 0, 0, 0], 4),        // reserved, RFC 1112
    ([255, 255, 255, 255], 32), // broadcast, RFC 919
];

/// Of IPv6 nothing is public but global unicast …
const GLOBAL_UNICAST_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// … without these.
const NOT_PUBLIC_V6: [(Ipv6Addr, u8); 4] = [
    // Protocol assignments, RFC 2928: Teredo (which carries an IPv4 address), benchmarks, ORCHIDs.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    // Documentation, RFC 3849 and RFC 9637.
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
    // 6to4, which carries an IPv4 address, RFC 3056.
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
];

/// NAT64's well-known prefix (RFC 6052 §2.1). Prefixes of networks' own (RFC 8215) are not global unicast.
const NAT64: (Ipv6Addr, u8) = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// Whom an address means: what an IPv4-mapped or a NAT64 address carries is what is spoken to in the end.
pub fn meant(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    match v6.to_ipv4_mapped() {
        Some(v4) => v4.into(),
        None if within_v6(v6, NAT64) => {
            let [.., a, b, c, d] = v6.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        None => address,
    }
}

/// It is the public internet's.
pub fn is_public(address: IpAddr) -> bool {
    match meant(address) {
        IpAddr::V4(v4) => !NOT_PUBLIC_V4
            .iter()
            .any(|(network, prefix)| within_v4(v4, Ipv4Addr::from(*network), *prefix)),
        IpAddr::V6(v6) => {
            within_v6(v6, GLOBAL_UNICAST_V6) && !NOT_PUBLIC_V6.iter().any(|network| within_v6(v6, *network))
        }
    }
}

fn within_v4(address: Ipv4Addr, network: Ipv4Addr, prefix: u8) -> bool {
    let rest = 32 - u32::from(prefix);
    (address.to_bits() ^ network.to_bits())
        .checked_shr(rest)
        .unwrap_or(0)
        == 0
}

fn within_v6(address: Ipv6Addr, (network, prefix): (Ipv6Addr, u8)) -> bool {
    let rest = 128 - u32::from(prefix);
    (address.to_bits() ^ network.to_bits())
        .checked_shr(rest)
        .unwrap_or(0)
        == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn public(text: &str) -> bool {
        is_public(text.parse().unwrap())
    }

    /// First and last address of every range that is refused, and their neighbours outside.
    const REFUSED: [(&str, &str); 30] = [
        ("0.0.0.0", "0.255.255.255"),
        ("10.0.0.0", "10.255.255.255"),
        ("100.64.0.0", "100.127.255.255"),
        ("127.0.0.0", "127.255.255.255"),
        ("169.254.0.0", "169.254.255.255"),
        ("172.16.0.0", "172.31.255.255"),
        ("192.0.0.0", "192.0.0.255"),
        ("192.0.2.0", "192.0.2.255"),
        ("192.88.99.0", "192.88.99.255"),
        ("192.168.0.0", "192.168.255.255"),
        ("198.18.0.0", "198.19.255.255"),
        ("198.51.100.0", "198.51.100.255"),
        ("203.0.113.0", "203.0.113.255"),
        ("224.0.0.0", "239.255.255.255"),
        ("240.0.0.0", "255.255.255.255"),
        ("::", "::1"),
        ("::7f00:1", "::7fff:ffff"),                    // IPv4-compatible
        ("::ffff:127.0.0.1", "::ffff:127.255.255.255"), // IPv4-mapped
        ("::ffff:10.0.0.0", "::ffff:10.255.255.255"),
        ("::ffff:169.254.0.0", "::ffff:169.254.255.255"),
        ("64:ff9b::7f00:1", "64:ff9b::7fff:ffff"), // NAT64
        ("64:ff9b::a9fe:a9fe", "64:ff9b::a9fe:ffff"),
        ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"), // local NAT64
        ("100::", "100::ffff:ffff:ffff:ffff"),                 // discarded
        ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), // segment routing
        ("fc00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), // unique local, link-local, site-local, multicast
    ];

    #[test]
    fn every_special_range_is_refused_from_its_first_to_its_last_address() {
        for (first, last) in REFUSED {
            assert!(!public(first), "{first}");
            assert!(!public(last), "{last}");
        }
    }

    #[test]
    fn what_lies_beside_the_ranges_is_public() {
        for address in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "203.0.112.255",
            "203.0.114.0",
            "223.255.255.255",
            "8.8.8.8",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2000::1",
            "2001:200::",
            "2001:db7:ffff::",
            "2001:db9::",
            "2003::",
            "2606:4700:4700::1111",
            "3ffe::",
            "2a00:1450::1",
        ] {
            assert!(public(address), "{address}");
        }
    }

    #[test]
    fn what_carries_an_ipv4_address_means_it() {
        let meant = |text: &str| meant(text.parse().unwrap()).to_string();
        assert_eq!(meant("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(meant("64:ff9b::c000:201"), "192.0.2.1");
        assert_eq!(meant("64:ff9b:0:1::c000:201"), "64:ff9b:0:1::c000:201");
        assert_eq!(meant("2606:4700::1"), "2606:4700::1");
    }

    proptest! {
        #[test]
        fn every_form_of_an_ipv4_address_is_judged_alike(bits: u32) {
            let v4 = Ipv4Addr::from_bits(bits);
            let mapped = v4.to_ipv6_mapped();
            let nat64 = Ipv6Addr::from_bits(NAT64.0.to_bits() | u128::from(bits));
            prop_assert_eq!(is_public(v4.into()), is_public(mapped.into()));
            prop_assert_eq!(is_public(v4.into()), is_public(nat64.into()));
            // The standard library's own judgement, as far as it has one.
            if v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_documentation()
                || v4.is_broadcast() || v4.is_unspecified()
            {
                prop_assert!(!is_public(v4.into()));
            }
        }

        #[test]
        fn nothing_local_of_ipv6_is_public(bits: u128) {
            let v6 = Ipv6Addr::from_bits(bits);
            if v6.is_loopback() || v6.is_multicast() || v6.is_unspecified() || v6.is_unique_local()
                || v6.is_unicast_link_local()
            {
                prop_assert!(!is_public(v6.into()));
            }
        }
    }
}
