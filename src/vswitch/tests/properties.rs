//! What holds for every frame.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::pure::*;
use common::{id, mac, two_tenants};
use model::net::MacAddr;
use proptest::prelude::*;
use vswitch::{Checksum, Effects, Frame, Offload, Place, Segments, Switch};

/// Addresses that a frame may carry: the tenants' and their routers', inside and out, and strangers'.
const IPS: &[&str] = &[
    "10.0.0.1",
    "10.0.0.11",
    "10.0.0.12",
    "10.0.0.14",
    "10.0.0.99",
    "203.0.113.1",
    "203.0.113.10",
    "203.0.113.21",
    "169.254.169.254",
    "255.255.255.255",
    "0.0.0.0",
    "224.0.0.1",
    "127.0.0.1",
    "8.8.8.8",
];

fn any_mac() -> impl Strategy<Value = MacAddr> {
    prop_oneof![
        (1u8..6).prop_map(mac),
        Just(INSIDE),
        Just(mac(0x51)),
        Just(OUTSIDE_LEG),
        Just(HOST),
        Just(MacAddr::BROADCAST),
        any::<[u8; 6]>().prop_map(MacAddr),
    ]
}

fn any_ip() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(IPS)
}

fn any_port() -> impl Strategy<Value = u16> {
    prop_oneof![Just(67), Just(68), Just(80), Just(8000), any::<u16>()]
}

fn flags() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(&["S", "SA", "A", "FA", "R", "", "SF"][..])
}

/// Frames as stacks make them.
fn well_formed() -> impl Strategy<Value = Vec<u8>> {
    let ips = (any_ip(), any_ip());
    (
        (any_mac(), any_mac()),
        ips,
        (any_port(), any_port()),
        flags(),
        0u8..7,
        0usize..200,
    )
        .prop_map(|(macs, ips, ports, flags, kind, length)| match kind {
            0 => udp(macs, ips, ports, &vec![1; length]),
            1 | 2 => tcp(macs, ips, ports, flags),
            3 => echo(macs, ips, true, ports.0, length),
            4 => echo(macs, ips, false, ports.0, length),
            5 => {
                let quoted = udp(macs, (ips.1, ips.0), (ports.1, ports.0), b"quoted");
                icmp_error(macs, ips, (3, 3), &quoted[14..])
            }
            _ => arp(1 + (length % 2) as u8, (macs.1, ips.0), ips.1, macs.0),
        })
}

/// The same, sometimes with a few other bytes or cut off; and noise.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let spoiled = (
        well_formed(),
        proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        any::<prop::sample::Index>(),
        any::<bool>(),
    )
        .prop_map(|(mut frame, changes, cut, whole)| {
            for (at, byte) in changes {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            if !whole {
                frame.truncate(cut.index(frame.len() + 1));
            }
            frame
        });
    prop_oneof![3 => well_formed(), 3 => spoiled, 1 => proptest::collection::vec(any::<u8>(), 0..120)]
}

fn any_offload() -> impl Strategy<Value = Offload> {
    let checksum = proptest::option::weighted(
        0.3,
        (0u16..60, 0u16..20).prop_map(|(start, offset)| Checksum { start, offset }),
    );
    let likely = proptest::option::weighted(
        0.3,
        Just(Checksum {
            start: 34,
            offset: 16,
        }),
    );
    let segments = proptest::option::weighted(
        0.2,
        (any::<bool>(), 0u16..40).prop_map(|(v6, size)| Segments { v6, size }),
    );
    (prop_oneof![checksum, likely], segments).prop_map(|(checksum, segments)| Offload { checksum, segments })
}

struct World {
    switch: Switch,
    ports: BTreeMap<Place, u8>,
    uplink: Place,
}

fn world() -> World {
    let tables = two_tenants();
    let mut switch = Switch::new(1);
    switch.apply(&tables, Duration::from_secs(1));
    let ports = (1u8..5)
        .map(|n| (switch.port(id(n.into())).unwrap(), n))
        .collect();
    let uplink = switch.uplink("ext").unwrap();
    World {
        switch,
        ports,
        uplink,
    }
}

/// The tenant of a port: 1 and 2 are one's, 3 and 4 the other's.
fn tenant(port: u8) -> u8 {
    (port - 1) / 2
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    /// Whatever comes, nothing panics; a guest's frame leaves by its own network or outside, with its own addresses or
    /// its router's; and what the switch finishes is finished right.
    #[test]
    fn no_frame_panics_crosses_tenants_or_lies(frames in proptest::collection::vec((0usize..5, any_frame(), any_offload(), 0u64..3000), 1..60)) {
        let mut world = world();
        let places: Vec<Place> = world.ports.keys().copied().chain([world.uplink]).collect();
        let mut now = Duration::from_secs(1);
        // Nobody outside hands the frame of one tenant to the other in this test: the host answers no ARP for them.
        for (from, bytes, offload, millis) in frames {
            let from = places[from];
            now += Duration::from_millis(millis);
            let mut out = Effects::default();
            world.switch.input(from, Frame { bytes, offload }, now, &mut out);
            if let Some(port) = world.ports.get(&from) {
                for (to, frame) in &out.frames {
                    let b = &frame.bytes;
                    prop_assert!(b.len() >= 14);
                    let src = MacAddr(b[6..12].try_into().unwrap());
                    if let Some(other) = world.ports.get(to) {
                        // The other tenant's public addresses are not among those that frames go to here.
                        prop_assert_eq!(tenant(*port), tenant(*other), "from {} to {}: {:x?}", port, other, b);
                    } else {
                        // Outside only routers and, for ARP, nobody else is seen.
                        prop_assert!(src == OUTSIDE_LEG || src == mac(0xd1), "{:?} leaves", src);
                        if b[12..14] == [8, 0] {
                            let ip = &b[26..30];
                            prop_assert!([[203, 0, 113, 10], [203, 0, 113, 11], [203, 0, 113, 21], [203, 0, 113, 23]].iter().any(|public| public == ip), "{:?} leaves", ip);
                        }
                    }
                    // Another guest sees this guest's own addresses, or its router's, or the switch's.
                    if *to != from && world.ports.contains_key(to) {
                        let own = [mac(*port), mac(if tenant(*port) == 0 { 0x50 } else { 0x51 })];
                        prop_assert!(own.contains(&src), "{:?} pretends to be {:?}", port, src);
                    }
                }
            }
            for (_, frame) in out.frames {
                // Every receiver can be served, whatever it can do by itself.
                frame.fit(Default::default(), |frame| assert!(frame.offload == Offload::default()));
            }
            let mut out = Effects::default();
            if world.switch.next_tick().is_some_and(|due| due <= now) {
                world.switch.tick(now, &mut out);
            }
        }
    }

    /// A checksum that was right stays right through NAT and back.
    #[test]
    fn checksums_survive_translation(length in 0usize..300, ports in (any::<u16>(), any::<u16>()), kind in 0u8..3, number in 1u8..3) {
        let mut pure = Pure::two_tenants();
        pure.introduce_host();
        let (address, from) = (if number == 1 { "10.0.0.11" } else { "10.0.0.12" }, pure.port(number.into()));
        let (macs, ips) = ((INSIDE, mac(number)), (address, "203.0.113.1"));
        prop_assume!(ports != (68, 67));
        let frame = match kind {
            0 => udp(macs, ips, ports, &vec![3; length]),
            1 => tcp(macs, ips, ports, "S"),
            _ => echo(macs, ips, true, ports.0, length),
        };
        let uplink = pure.uplink();
        let out = read(&pure.one(from, frame, uplink));
        let public = if number == 1 { "203.0.113.21" } else { "203.0.113.10" };
        prop_assert_eq!(out.ips.0.as_str(), public);
        let (macs, ips) = ((OUTSIDE_LEG, HOST), ("203.0.113.1", out.ips.0.as_str()));
        let answer = match kind {
            0 => udp(macs, ips, (out.ports.1, out.ports.0), &vec![5; length]),
            1 => tcp(macs, ips, (out.ports.1, out.ports.0), "SA"),
            _ => echo(macs, ips, false, out.ports.1, length),
        };
        let back = read(&pure.one(uplink, answer, from));
        prop_assert_eq!(back.ips.1, address);
        if kind < 2 {
            prop_assert_eq!(back.ports, (ports.1, ports.0));
        } else {
            prop_assert_eq!(back.ports.1, ports.0);
        }
    }

    /// Cutting a long segment loses and changes no byte, and every piece stands by itself.
    #[test]
    fn pieces_of_a_long_segment_make_the_whole(length in 1usize..20_000, size in 8u16..3000) {
        let (macs, ips) = ((mac(2), mac(1)), ("10.0.0.11", "10.0.0.12"));
        let mut whole = tcp(macs, ips, (1, 2), "FA");
        let payload: Vec<u8> = (0..length).map(|n| (n * 7) as u8).collect();
        whole.extend(&payload);
        whole[16..18].copy_from_slice(&((40 + length) as u16).to_be_bytes());
        let offload = Offload { checksum: Some(Checksum { start: 34, offset: 16 }), segments: Some(Segments { v6: false, size }) };
        let mut got = Vec::new();
        let mut fins = 0;
        Frame { bytes: whole, offload }.fit(Default::default(), |piece| {
            let seen = read(&piece.bytes);
            assert_eq!(seen.ports, (1, 2));
            let sequence = u32::from_be_bytes(piece.bytes[38..42].try_into().unwrap());
            assert_eq!(sequence as usize, 1 + got.len());
            fins += u32::from(piece.bytes[47] & 1);
            got.extend_from_slice(&piece.bytes[54..]);
        });
        prop_assert_eq!(got, payload);
        prop_assert_eq!(fins, 1);
    }
}
