//! The pipeline, feature by feature, without I/O.

mod common;

use std::time::Duration;

use common::pure::*;
use common::{GROUP, OUTSIDE, ROUTER, TENANT, id, ip, mac, port, two_tenants, v4};
use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use model::net::{AddressPair, Attachment, Direction, FixedIp, MacAddr, Route, Uplink};

const BROADCAST: MacAddr = MacAddr::BROADCAST;

#[test]
fn arp_is_answered_from_the_tables_and_never_for_the_asker_itself() {
    let mut pure = Pure::two_tenants();
    let service = |pure: &mut Pure| {
        let out = pure.guest_sends(1, arp(1, (mac(1), "10.0.0.11"), "169.254.169.254", BROADCAST));
        <[u8; 6]>::try_from(&out[0].1[22..28]).map(MacAddr).unwrap()
    };
    let service = service(&mut pure);
    for (target, expected) in [
        ("10.0.0.12", Some(mac(2))),
        ("10.0.0.1", Some(INSIDE)),
        ("169.254.169.254", Some(service)),
        ("10.0.0.11", None),
        ("10.0.0.14", None), // The other tenant's.
        ("203.0.113.21", None),
    ] {
        let out = pure.guest_sends(1, arp(1, (mac(1), "10.0.0.11"), target, BROADCAST));
        let answers: Vec<_> = out.iter().filter(|(place, _)| *place == pure.port(1)).collect();
        match expected {
            Some(expected) => {
                assert_eq!((out.len(), answers.len()), (1, 1), "{target}");
                assert_eq!(
                    (&answers[0].1[20..22], &answers[0].1[22..28]),
                    (&[0, 2][..], &expected.0[..])
                );
            }
            // Asked around in its own network, and nowhere else.
            None => assert_eq!(
                out.iter().map(|(place, _)| *place).collect::<Vec<_>>(),
                [pure.port(2)],
                "{target}"
            ),
        }
    }
    // Outside: routers answer for themselves and their floating IPs.
    for (target, expected) in [
        ("203.0.113.10", OUTSIDE_LEG),
        ("203.0.113.21", OUTSIDE_LEG),
        ("203.0.113.23", mac(0xd1)),
    ] {
        let out = pure.host_sends(arp(1, (HOST, "203.0.113.1"), target, BROADCAST));
        assert_eq!(
            (out.len(), out[0].0, &out[0].1[22..28]),
            (1, pure.uplink(), &expected.0[..])
        );
    }
}

fn dhcp(kind: MessageType, chaddr: MacAddr, change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let zero = v4("0.0.0.0");
    let mut message = Message::new_with_id(77, zero, zero, zero, zero, &chaddr.0);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    change(&mut message);
    udp(
        (BROADCAST, mac(1)),
        ("0.0.0.0", "255.255.255.255"),
        (68, 67),
        &message.to_vec().unwrap(),
    )
}

fn answer(pure: &mut Pure, request: Vec<u8>) -> Option<(Message, Seen)> {
    let (place, frame) = pure.guest_sends(1, request).pop()?;
    assert_eq!(place, pure.port(1));
    let message = Message::decode(&mut Decoder::new(&frame[42..])).unwrap();
    assert_eq!(message.xid(), 77);
    Some((message, read(&frame)))
}

#[test]
fn dhcp_says_what_rfc_2131_says() {
    let mut pure = Pure::two_tenants();
    let ask = |address: &'static str| {
        move |message: &mut Message| {
            drop(
                message
                    .opts_mut()
                    .insert(DhcpOption::RequestedIpAddress(v4(address))),
            )
        }
    };
    let kind =
        |got: &Option<(Message, Seen)>| got.as_ref().and_then(|(message, _)| message.opts().msg_type());
    let offer = answer(&mut pure, dhcp(MessageType::Discover, mac(1), |_| {}));
    assert_eq!(kind(&offer), Some(MessageType::Offer));
    let (message, seen) = offer.unwrap();
    assert_eq!(message.yiaddr(), v4("10.0.0.11"));
    assert_eq!(
        (seen.macs, seen.flow().as_str()),
        ((mac(1), INSIDE), "10.0.0.1:67 > 10.0.0.11:68")
    );
    assert_eq!(
        message.opts().get(OptionCode::InterfaceMtu),
        Some(&DhcpOption::InterfaceMtu(1500))
    );
    assert_eq!(
        message.opts().get(OptionCode::AddressLeaseTime),
        Some(&DhcpOption::AddressLeaseTime(86_400))
    );

    assert_eq!(
        kind(&answer(
            &mut pure,
            dhcp(MessageType::Request, mac(1), ask("10.0.0.11"))
        )),
        Some(MessageType::Ack)
    );
    let refused = answer(&mut pure, dhcp(MessageType::Request, mac(1), ask("10.0.0.99")));
    assert_eq!(kind(&refused), Some(MessageType::Nak));
    assert_eq!(refused.unwrap().1.ips.1, "255.255.255.255");
    let renewed = answer(
        &mut pure,
        dhcp(MessageType::Request, mac(1), |message| {
            message.set_ciaddr(v4("10.0.0.11"));
        }),
    );
    assert_eq!(kind(&renewed), Some(MessageType::Ack));
    let informed = answer(
        &mut pure,
        dhcp(MessageType::Inform, mac(1), |message| {
            message.set_ciaddr(v4("10.0.0.11"));
        }),
    );
    assert_eq!(kind(&informed), Some(MessageType::Ack));
    let informed = informed.unwrap().0;
    assert!(
        informed.yiaddr().is_unspecified() && informed.opts().get(OptionCode::AddressLeaseTime).is_none()
    );

    let silent: Vec<Vec<u8>> = vec![
        dhcp(MessageType::Release, mac(1), |_| {}),
        dhcp(MessageType::Decline, mac(1), ask("10.0.0.11")),
        dhcp(MessageType::Discover, mac(2), |_| {}),
        dhcp(MessageType::Request, mac(1), |message| {
            message
                .opts_mut()
                .insert(DhcpOption::ServerIdentifier(v4("10.0.0.2")));
        }),
        udp(
            (BROADCAST, mac(1)),
            ("0.0.0.0", "255.255.255.255"),
            (68, 67),
            &[1, 1, 6, 0],
        ),
        udp(
            (BROADCAST, mac(1)),
            ("0.0.0.0", "255.255.255.255"),
            (68, 67),
            &[1; 500],
        ),
    ];
    for request in silent {
        let from = pure.port(1);
        pure.dropped(from, request, "service_no_answer");
    }
    for _ in 0..100 {
        pure.guest_sends(1, dhcp(MessageType::Discover, mac(1), |_| {}));
    }
    assert!(pure.drops("rate_limit") > 50);
}

#[test]
fn spoofed_frames_are_dropped_by_reason() {
    let mut tables = two_tenants();
    let pair = |address: &str, mac| AddressPair {
        mac,
        prefix: address.parse().unwrap(),
    };
    tables.ports.get_mut(&id(1)).unwrap().allowed_address_pairs = vec![
        pair("10.0.0.200/32", None),
        pair("10.0.0.201/32", Some(mac(0x99))),
    ];
    let mut pure = Pure::new(&tables);
    let from = pure.port(1);
    let to = (mac(2), mac(1));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (
            udp((mac(2), mac(3)), ("10.0.0.11", "10.0.0.12"), (1, 2), b""),
            "spoofed_mac",
        ),
        (
            udp((mac(2), BROADCAST), ("10.0.0.11", "10.0.0.12"), (1, 2), b""),
            "spoofed_mac",
        ),
        (udp(to, ("10.0.0.13", "10.0.0.12"), (1, 2), b""), "spoofed_ip"),
        (udp(to, ("0.0.0.0", "10.0.0.12"), (1, 2), b""), "spoofed_ip"),
        (udp(to, ("169.254.1.1", "10.0.0.12"), (1, 2), b""), "spoofed_ip"),
        (udp(to, ("10.0.0.201", "10.0.0.12"), (1, 2), b""), "spoofed_ip"),
        (
            udp((mac(2), mac(0x99)), ("10.0.0.11", "10.0.0.12"), (1, 2), b""),
            "spoofed_ip",
        ),
        (
            udp(
                (BROADCAST, mac(1)),
                ("10.0.0.11", "255.255.255.255"),
                (67, 68),
                b"",
            ),
            "dhcp_server",
        ),
        (
            arp(1, (mac(1), "10.0.0.12"), "10.0.0.1", BROADCAST),
            "spoofed_arp",
        ),
        (arp(2, (mac(1), "10.0.0.1"), "10.0.0.12", mac(2)), "spoofed_arp"),
        (
            [&mac(2).0[..], &mac(1).0, &[0x88, 0xcc, 1, 2, 3, 4]].concat(),
            "ethertype",
        ),
        (
            [&mac(2).0[..], &mac(1).0, &[0x81, 0x00, 0, 1, 8, 0]].concat(),
            "ethertype",
        ),
        (vec![0; 13], "malformed"),
        ([&mac(2).0[..], &mac(1).0, &[8, 0, 0x45]].concat(), "malformed"),
    ];
    for (frame, reason) in cases {
        pure.dropped(from, frame, reason);
    }
    let second = pure.port(2);
    pure.one(from, echo(to, ("10.0.0.200", "10.0.0.12"), true, 1, 8), second);
    pure.one(
        from,
        echo((mac(2), mac(0x99)), ("10.0.0.201", "10.0.0.12"), true, 1, 8),
        second,
    );
}

fn nd(kind: u8, src: &str, target: &str, option: MacAddr) -> Vec<u8> {
    let src: std::net::Ipv6Addr = src.parse().unwrap();
    let target: std::net::Ipv6Addr = target.parse().unwrap();
    let option_kind = if kind == 136 { 2 } else { 1 };
    let mut body = target.octets().to_vec();
    if kind == 134 {
        body.truncate(8);
    } else {
        body.extend([option_kind, 1]);
        body.extend(option.0);
    }
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(1).0, [0x33, 0x33, 0, 0, 0, 1])
        .ipv6(
            src.octets(),
            "ff02::1".parse::<std::net::Ipv6Addr>().unwrap().octets(),
            255,
        )
        .icmpv6_raw(kind, 0, [0; 4])
        .write(&mut frame, &body)
        .unwrap();
    frame
}

#[test]
fn ipv6_neighbours_are_who_they_say() {
    let mut tables = two_tenants();
    tables.ports.get_mut(&id(1)).unwrap().fixed_ips.push(FixedIp {
        subnet: id(9),
        ip: ip("2001:db8::1"),
    });
    let mut pure = Pure::new(&tables);
    let from = pure.port(1);
    let own = "fe80::f816:3eff:fe00:1";
    for (frame, reason) in [
        (nd(134, own, "::", mac(1)), "router_advertisement"),
        (nd(136, own, "2001:db8::2", mac(1)), "spoofed_nd"),
        (nd(136, own, "2001:db8::1", mac(2)), "spoofed_nd"),
        (nd(135, own, "2001:db8::2", mac(2)), "spoofed_nd"),
        (nd(135, "fe80::1", "2001:db8::2", mac(1)), "spoofed_ip"),
        (nd(135, "::", "2001:db8::2", mac(1)), "spoofed_nd"),
    ] {
        pure.dropped(from, frame, reason);
    }
    let second = pure.port(2);
    for frame in [
        nd(135, own, "2001:db8::2", mac(1)),
        nd(136, "2001:db8::1", "2001:db8::1", mac(1)),
        nd(136, own, own, mac(1)),
    ] {
        pure.one(from, frame, second);
    }
    // No rule of the group is for IPv6.
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(1).0, mac(2).0)
        .ipv6(ip6("2001:db8::1"), ip6("2001:db8::2"), 64)
        .udp(1, 2)
        .write(&mut frame, b"")
        .unwrap();
    pure.dropped(from, frame, "security_group_egress");
}

fn ip6(text: &str) -> [u8; 16] {
    text.parse::<std::net::Ipv6Addr>().unwrap().octets()
}

#[test]
fn snat_keeps_ports_apart_and_floating_ips_keep_them() {
    let mut tables = two_tenants();
    tables.ports.insert(id(5), {
        let mut third = port(TENANT, 5, "10.0.0.15");
        third.security_groups = vec![id(GROUP)];
        third
    });
    let mut pure = Pure::new(&tables);
    pure.introduce_host();
    let uplink = pure.uplink();
    let out = pure.one(
        pure.port(2),
        udp((INSIDE, mac(2)), ("10.0.0.12", "203.0.113.1"), (4000, 53), b"q"),
        uplink,
    );
    let seen = read(&out);
    assert_eq!(seen.flow(), "203.0.113.10:4000 > 203.0.113.1:53");
    assert_eq!((seen.macs, seen.ttl), ((HOST, OUTSIDE_LEG), 63));
    // The same port of another guest gets another one.
    let out = pure.one(
        pure.port(5),
        udp((INSIDE, mac(5)), ("10.0.0.15", "203.0.113.1"), (4000, 53), b"q"),
        uplink,
    );
    let other = read(&out).ports.0;
    assert_ne!(other, 4000);
    // Answers find their guests.
    for (public, number, address, port) in [(4000, 2, "10.0.0.12", 4000), (other, 5, "10.0.0.15", 4000)] {
        let answer = udp(
            (OUTSIDE_LEG, HOST),
            ("203.0.113.1", "203.0.113.10"),
            (53, public),
            b"a",
        );
        let back = pure.one(uplink, answer, pure.port(number));
        assert_eq!(read(&back).flow(), format!("203.0.113.1:53 > {address}:{port}"));
    }
    // A stranger's packets, and another port's, do not.
    pure.dropped(
        uplink,
        udp(
            (OUTSIDE_LEG, HOST),
            ("203.0.113.1", "203.0.113.10"),
            (54, 4000),
            b"a",
        ),
        "nat_no_mapping",
    );
    pure.dropped(
        uplink,
        udp(
            (OUTSIDE_LEG, HOST),
            ("203.0.113.1", "10.0.0.12"),
            (53, 4000),
            b"a",
        ),
        "nat_no_mapping",
    );
    // One to one.
    let out = pure.one(
        pure.port(1),
        udp((INSIDE, mac(1)), ("10.0.0.11", "203.0.113.1"), (4000, 53), b"q"),
        uplink,
    );
    assert_eq!(read(&out).flow(), "203.0.113.21:4000 > 203.0.113.1:53");
    let call = echo((OUTSIDE_LEG, HOST), ("203.0.113.1", "203.0.113.21"), true, 9, 10);
    assert_eq!(read(&pure.one(uplink, call, pure.port(1))).ips.1, "10.0.0.11");
    // Mappings end: after silence the answer is nobody's.
    pure.pass(Duration::from_secs(400));
    let late = udp(
        (OUTSIDE_LEG, HOST),
        ("203.0.113.1", "203.0.113.10"),
        (53, 4000),
        b"a",
    );
    pure.dropped(uplink, late, "nat_no_mapping");
}

#[test]
fn icmp_errors_are_translated_with_what_they_quote() {
    let mut pure = Pure::two_tenants();
    pure.introduce_host();
    let uplink = pure.uplink();
    for (number, address, public) in [(2, "10.0.0.12", "203.0.113.10"), (1, "10.0.0.11", "203.0.113.21")] {
        let macs = (INSIDE, mac(number));
        let from = pure.port(number.into());
        let sent = pure.one(
            from,
            udp(macs, (address, "203.0.113.1"), (4000, 9), b"payload"),
            uplink,
        );
        let error = icmp_error((OUTSIDE_LEG, HOST), ("203.0.113.1", public), (3, 3), &sent[14..]);
        let got = pure.one(uplink, error, from);
        assert_eq!(read(&got).ips.1, address);
        let mut quoted = [0; 14].to_vec();
        quoted.extend(&got[42..]);
        quoted[12..14].copy_from_slice(&[8, 0]);
        assert_eq!(read(&quoted).flow(), format!("{address}:4000 > 203.0.113.1:9"));
        // An error about something that was never sent is not let in.
        let forged = udp(
            (HOST, OUTSIDE_LEG),
            (public, "203.0.113.1"),
            (4001, 9),
            b"payload",
        );
        let error = icmp_error(
            (OUTSIDE_LEG, HOST),
            ("203.0.113.1", public),
            (3, 3),
            &forged[14..],
        );
        assert_eq!(pure.input(uplink, error), []);
    }
    // From inside: a guest with a floating IP refuses a packet; the caller learns it under the public address.
    let call = udp(
        (OUTSIDE_LEG, HOST),
        ("203.0.113.1", "203.0.113.21"),
        (7, 8000),
        b"x",
    );
    pure.dropped(uplink, call, "security_group_ingress"); // TCP alone is allowed there.
    let call = tcp(
        (OUTSIDE_LEG, HOST),
        ("203.0.113.1", "203.0.113.21"),
        (7, 8000),
        "S",
    );
    let got = pure.one(uplink, call, pure.port(1));
    let error = icmp_error(
        (INSIDE, mac(1)),
        ("10.0.0.11", "203.0.113.1"),
        (3, 10),
        &got[14..],
    );
    let told = pure.one(pure.port(1), error, uplink);
    assert_eq!(read(&told).ips.0, "203.0.113.21");
    assert_eq!(&told[42 + 16..42 + 20], &[203, 0, 113, 21]);
}

#[test]
fn connections_are_judged_once_and_replies_pass() {
    let mut pure = Pure::two_tenants();
    let (a, b) = (pure.port(1), pure.port(2));
    let there = |flags: &str| tcp((mac(2), mac(1)), ("10.0.0.11", "10.0.0.12"), (1000, 22), flags);
    let back = |flags: &str| tcp((mac(1), mac(2)), ("10.0.0.12", "10.0.0.11"), (22, 1000), flags);
    for (from, to, frame) in [
        (a, b, there("S")),
        (b, a, back("SA")),
        (a, b, there("A")),
        (b, a, back("FA")),
        (a, b, there("FA")),
        (b, a, back("A")),
    ] {
        pure.one(from, frame, to);
    }
    assert_eq!(pure.status().connections, 2);
    // Flags that no stack sends.
    pure.dropped(a, there("SF"), "malformed");
    pure.dropped(a, there(""), "malformed");
    // What ended is forgotten.
    pure.pass(Duration::from_secs(90));
    assert_eq!(pure.status().connections, 0);
    assert_eq!(pure.switch.next_tick(), None, "nothing to wake up for");

    // A caller from outside may begin TCP to 8000 alone; the guest may not use the reply's way for a new connection.
    pure.introduce_host();
    let uplink = pure.uplink();
    let open = tcp(
        (OUTSIDE_LEG, HOST),
        ("203.0.113.1", "203.0.113.21"),
        (5000, 8000),
        "S",
    );
    pure.one(uplink, open, a);
    pure.dropped(
        uplink,
        tcp(
            (OUTSIDE_LEG, HOST),
            ("203.0.113.1", "203.0.113.21"),
            (5000, 8001),
            "S",
        ),
        "security_group_ingress",
    );
    pure.dropped(
        uplink,
        echo((OUTSIDE_LEG, HOST), ("203.0.113.1", "203.0.113.21"), false, 3, 8),
        "security_group_ingress",
    );
    let ping = echo((INSIDE, mac(1)), ("10.0.0.11", "203.0.113.1"), true, 3, 8);
    pure.one(a, ping, uplink);
    pure.one(
        uplink,
        echo((OUTSIDE_LEG, HOST), ("203.0.113.1", "203.0.113.21"), false, 3, 8),
        a,
    );
}

#[test]
fn a_port_tracks_a_bounded_number_of_connections() {
    let mut pure = Pure::two_tenants();
    let to = pure.port(2);
    for n in 0..40_000u32 {
        let ports = ((n & 0xffff) as u16, (n >> 8) as u16);
        pure.guest_sends(1, udp((mac(2), mac(1)), ("10.0.0.11", "10.0.0.12"), ports, b""));
    }
    assert_eq!(pure.status().connections, 2 * 32_768);
    // A new connection still finds room: those without an answer make way.
    pure.one(
        pure.port(1),
        udp((mac(2), mac(1)), ("10.0.0.11", "10.0.0.12"), (7, 7), b""),
        to,
    );
    pure.pass(Duration::from_secs(60));
    assert_eq!(pure.status().connections, 0);
}

#[test]
fn a_removed_rule_ends_its_connections_and_no_others() {
    let mut tables = two_tenants();
    let mut pure = Pure::new(&tables);
    let (a, b) = (pure.port(1), pure.port(2));
    let syn = |port| tcp((mac(1), mac(2)), ("10.0.0.12", "10.0.0.11"), (1000, port), "S");
    let answer = |port| tcp((mac(2), mac(1)), ("10.0.0.11", "10.0.0.12"), (port, 1000), "SA");
    let data = |port| tcp((mac(1), mac(2)), ("10.0.0.12", "10.0.0.11"), (1000, port), "A");
    for port in [22, 8000] {
        pure.one(b, syn(port), a);
        pure.one(a, answer(port), b);
    }
    // Without the rule for the group's own members port 22 has no rule any more; 8000 has one of its own.
    tables.generation = 2;
    tables
        .security_groups
        .get_mut(&id(GROUP))
        .unwrap()
        .rules
        .retain(|rule| rule.id != id(GROUP * 16 + 1));
    assert!(pure.switch.apply(&tables, pure.now));
    pure.one(b, data(8000), a);
    pure.dropped(b, data(22), "security_group_ingress");
    // Old tables are not obeyed.
    tables.generation = 1;
    assert!(!pure.switch.apply(&tables, pure.now));
    // A member that leaves loses what its membership allowed.
    let mut tables = two_tenants();
    tables.generation = 3;
    tables
        .security_groups
        .get_mut(&id(GROUP))
        .unwrap()
        .rules
        .retain(|rule| rule.direction == Direction::Egress || rule.id == id(GROUP * 16 + 1));
    assert!(pure.switch.apply(&tables, pure.now));
    pure.one(b, syn(23), a);
    tables.generation = 4;
    tables
        .security_groups
        .get_mut(&id(GROUP))
        .unwrap()
        .members
        .retain(|member| *member != ip("10.0.0.12"));
    assert!(pure.switch.apply(&tables, pure.now));
    pure.dropped(b, data(23), "security_group_ingress");
}

fn fragment(mut frame: Vec<u8>, offset: u16, more: bool) -> Vec<u8> {
    let word = (offset / 8) | if more { 0x2000 } else { 0 };
    frame[20..22].copy_from_slice(&word.to_be_bytes());
    frame[24..26].fill(0);
    let mut sum: u32 = frame[14..34]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    frame
}

#[test]
fn fragments_follow_their_first_one() {
    let mut pure = Pure::two_tenants();
    let (a, b) = (pure.port(1), pure.port(2));
    let piece = |offset, more| {
        fragment(
            udp(
                (mac(2), mac(1)),
                ("10.0.0.11", "10.0.0.12"),
                (1000, 2000),
                &[0; 64],
            ),
            offset,
            more,
        )
    };
    pure.dropped(a, piece(64, false), "bad_fragment");
    pure.one(a, piece(0, true), b);
    pure.one(a, piece(64, true), b);
    pure.one(a, piece(128, false), b);
    let overwriting = |offset| {
        fragment(
            tcp((mac(2), mac(1)), ("10.0.0.11", "10.0.0.12"), (1000, 2000), "S"),
            offset,
            false,
        )
    };
    pure.dropped(a, overwriting(8), "bad_fragment");
    pure.pass(Duration::from_secs(20));
    pure.dropped(a, piece(192, false), "bad_fragment");
}

#[test]
fn a_smaller_network_behind_a_router_is_told_of_or_cut_for() {
    let mut tables = two_tenants();
    tables.networks.get_mut(&id(OUTSIDE)).unwrap().mtu = 1000;
    let mut pure = Pure::new(&tables);
    pure.introduce_host();
    let uplink = pure.uplink();
    let big = udp((INSIDE, mac(1)), ("10.0.0.11", "203.0.113.1"), (1, 2), &[7; 1400]);
    let mut whole = big.clone();
    whole[20] = 0x40; // Don't fragment.
    let whole = {
        let mut frame = fragment(big.clone(), 0, false);
        frame[20] = 0x40;
        let sum = u16::from_be_bytes([frame[24], frame[25]]);
        let less = sum
            .checked_sub(0x4000)
            .unwrap_or_else(|| sum.wrapping_sub(0x4001));
        frame[24..26].copy_from_slice(&less.to_be_bytes());
        drop(whole);
        frame
    };
    let error = pure.one(pure.port(1), whole, pure.port(1));
    let seen = read(&error);
    assert_eq!(
        (seen.ips.0.as_str(), seen.ports.0, &error[40..42]),
        ("10.0.0.1", 0x0304, &1000u16.to_be_bytes()[..])
    );
    let pieces = pure.guest_sends(1, fragment(big, 0, false));
    assert_eq!(pieces.len(), 2);
    let mut payload: Vec<u8> = Vec::new();
    for (place, piece) in &pieces {
        assert_eq!((*place, read(piece).ips.0.as_str()), (uplink, "203.0.113.21"));
        assert!(piece.len() <= 1014);
        payload.extend(&piece[34..]);
    }
    assert_eq!(payload[8..], [7; 1400]);
}

#[test]
fn next_hops_are_asked_for_with_a_bounded_queue() {
    let mut pure = Pure::two_tenants();
    let uplink = pure.uplink();
    let frame = |n: u16| udp((INSIDE, mac(1)), ("10.0.0.11", "198.51.100.7"), (n, 9), b"");
    let asked = pure.one(pure.port(1), frame(0), uplink);
    assert_eq!(
        (&asked[12..14], &asked[38..42]),
        (&[8, 6][..], &[203, 0, 113, 1][..]),
        "the gateway is asked for"
    );
    for n in 1..100 {
        assert_eq!(pure.guest_sends(1, frame(n)), []);
    }
    let out = pure.host_sends(arp(2, (HOST, "203.0.113.1"), "203.0.113.10", OUTSIDE_LEG));
    assert_eq!(out.len(), 16);
    assert_eq!(read(&out[15].1).ports.0, 99, "the newest are kept");
    assert_eq!(read(&out[0].1).macs, (HOST, OUTSIDE_LEG));

    // Nobody answers: three requests in all, then the frames are lost, and nothing more is to be done.
    let lost = |n: u16| udp((INSIDE, mac(1)), ("10.0.0.11", "203.0.113.77"), (n, 9), b"");
    pure.one(pure.port(1), lost(0), uplink);
    let repeated = pure.pass(Duration::from_secs(10));
    assert_eq!(repeated.len(), 2);
    assert_eq!(pure.drops("neighbour_unresolved"), 1);
    pure.pass(Duration::from_secs(700));
    assert_eq!(pure.switch.next_tick(), None);
}

#[test]
fn routes_and_unreachable_networks() {
    let mut tables = two_tenants();
    let router = tables.routers.get_mut(&id(ROUTER)).unwrap();
    router.routes.push(Route {
        destination: "192.168.7.0/24".parse().unwrap(),
        nexthop: ip("10.0.0.12"),
    });
    router.gateway = None;
    router.floating_ips.clear();
    let mut pure = Pure::new(&tables);
    let out = pure.one(
        pure.port(1),
        udp((INSIDE, mac(1)), ("10.0.0.11", "192.168.7.9"), (1, 2), b""),
        pure.port(2),
    );
    assert_eq!(read(&out).macs, (mac(2), INSIDE));
    let error = pure.one(
        pure.port(1),
        udp((INSIDE, mac(1)), ("10.0.0.11", "8.8.8.8"), (1, 2), b""),
        pure.port(1),
    );
    assert_eq!(
        (read(&error).ips.0.as_str(), read(&error).ports.0),
        ("10.0.0.1", 0x0300)
    );
    // An error about an error is not made.
    let about = icmp_error((INSIDE, mac(1)), ("10.0.0.11", "8.8.8.8"), (3, 3), &error[14..]);
    pure.dropped(pure.port(1), about, "no_route");
}

#[test]
fn unknown_addresses_are_flooded_only_to_ports_without_security() {
    let mut tables = two_tenants();
    let mut pure = Pure::new(&tables);
    let unknown = udp((mac(0x42), mac(1)), ("10.0.0.11", "10.0.0.66"), (1, 2), b"");
    pure.dropped(pure.port(1), unknown.clone(), "unknown_unicast");
    tables.generation = 2;
    let mut open = port(TENANT, 6, "10.0.0.16");
    open.port_security = false;
    tables.ports.insert(id(6), open);
    tables.ports.insert(
        id(7),
        model::net::Port {
            attachment: Attachment::None,
            ..port(TENANT, 7, "10.0.0.17")
        },
    );
    assert!(pure.switch.apply(&tables, pure.now));
    pure.one(pure.port(1), unknown, pure.port(6));
    pure.dropped(
        pure.port(1),
        udp((mac(7), mac(1)), ("10.0.0.11", "10.0.0.17"), (1, 2), b""),
        "port_down",
    );
    // Slots stay when others go.
    let (kept, gone) = (pure.port(6), pure.port(1));
    tables.generation = 3;
    tables.ports.remove(&id(1));
    tables.uplinks = vec![Uplink {
        network: id(OUTSIDE),
        name: "other".into(),
    }];
    assert!(pure.switch.apply(&tables, pure.now));
    assert_eq!(
        (pure.port(6), pure.switch.port(id(1)), pure.switch.uplink("ext")),
        (kept, None, None)
    );
    pure.dropped(
        gone,
        udp((mac(2), mac(1)), ("10.0.0.11", "10.0.0.12"), (1, 2), b""),
        "port_down",
    );
}

#[test]
fn metadata_is_a_matter_of_the_port() {
    let mut pure = Pure::two_tenants();
    // TCP to another port is refused; UDP is nothing.
    let from = pure.port(1);
    let refused = pure.one(
        from,
        tcp(
            (INSIDE, mac(1)),
            ("10.0.0.11", "169.254.169.254"),
            (1000, 81),
            "S",
        ),
        from,
    );
    assert_eq!(
        (read(&refused).flow().as_str(), refused[47] & 4),
        ("169.254.169.254:81 > 10.0.0.11:1000", 4)
    );
    pure.dropped(
        from,
        udp((INSIDE, mac(1)), ("10.0.0.11", "169.254.169.254"), (1, 80), b""),
        "service_no_answer",
    );
    // A half-open connection is given up, and the endpoint goes: nothing is left to wake up for.
    let answer = pure.one(
        from,
        tcp(
            (INSIDE, mac(1)),
            ("10.0.0.11", "169.254.169.254"),
            (1000, 80),
            "S",
        ),
        from,
    );
    assert_eq!(answer[47] & 0x12, 0x12);
    pure.pass(Duration::from_secs(120));
    assert_eq!(pure.switch.next_tick(), None);
    // From the uplink nobody reaches it.
    pure.dropped(
        pure.uplink(),
        tcp(
            (OUTSIDE_LEG, HOST),
            ("203.0.113.1", "169.254.169.254"),
            (1, 80),
            "S",
        ),
        "no_route",
    );
    // A port without metadata refuses.
    let mut tables = two_tenants();
    tables.generation = 2;
    tables.ports.get_mut(&id(1)).unwrap().metadata = None;
    assert!(pure.switch.apply(&tables, pure.now));
    let refused = pure.one(
        from,
        tcp(
            (INSIDE, mac(1)),
            ("10.0.0.11", "169.254.169.254"),
            (1001, 80),
            "S",
        ),
        from,
    );
    assert_eq!(refused[47] & 4, 4);
}

#[test]
fn dhcp_works_where_a_guest_has_the_gateways_address() {
    let mut tables = two_tenants();
    tables.routers.clear();
    let subnet = tables
        .networks
        .get_mut(&id(TENANT))
        .unwrap()
        .subnets
        .get_mut(&id(TENANT + 1))
        .unwrap();
    subnet.dhcp_server = Some(v4("169.254.169.254"));
    tables.ports.get_mut(&id(2)).unwrap().fixed_ips[0].ip = ip("10.0.0.1");
    let mut pure = Pure::new(&tables);
    let (offer, seen) = answer(&mut pure, dhcp(MessageType::Discover, mac(1), |_| {})).unwrap();
    assert_eq!(seen.flow(), "169.254.169.254:67 > 10.0.0.11:68");
    let Some(DhcpOption::ClasslessStaticRoute(routes)) = offer.opts().get(OptionCode::ClasslessStaticRoute)
    else {
        panic!("no routes");
    };
    assert_eq!(routes[0], ("169.254.169.254/32".parse().unwrap(), v4("0.0.0.0")));
    let service = seen.macs.1;
    let mut renewal = Message::new_with_id(
        77,
        v4("10.0.0.11"),
        v4("0.0.0.0"),
        v4("0.0.0.0"),
        v4("0.0.0.0"),
        &mac(1).0,
    );
    renewal
        .opts_mut()
        .insert(DhcpOption::MessageType(MessageType::Request));
    let unicast = udp(
        (service, mac(1)),
        ("10.0.0.11", "169.254.169.254"),
        (68, 67),
        &renewal.to_vec().unwrap(),
    );
    assert_eq!(
        answer(&mut pure, unicast).unwrap().0.opts().msg_type(),
        Some(MessageType::Ack)
    );
    // The guest with the gateway's address answers for itself.
    let out = pure.guest_sends(1, arp(1, (mac(1), "10.0.0.11"), "10.0.0.1", BROADCAST));
    assert_eq!((out.len(), &out[0].1[22..28]), (1, &mac(2).0[..]));
}

#[test]
fn an_address_that_moves_is_announced() {
    let mut tables = two_tenants();
    let mut pure = Pure::new(&tables);
    tables.generation = 2;
    assert!(pure.switch.apply(&tables, pure.now));
    assert_eq!(pure.pass(Duration::ZERO), [], "nothing moved");
    tables.generation = 3;
    let floating = tables
        .routers
        .get_mut(&id(ROUTER))
        .unwrap()
        .floating_ips
        .remove(0);
    tables
        .routers
        .get_mut(&id(0x51))
        .unwrap()
        .floating_ips
        .push(floating);
    assert!(pure.switch.apply(&tables, pure.now));
    let told = pure.pass(Duration::ZERO);
    assert_eq!(told.len(), 1);
    let (place, frame) = &told[0];
    let announcement = arp(1, (mac(0xd1), "203.0.113.21"), "203.0.113.21", BROADCAST);
    assert_eq!((*place, frame), (pure.uplink(), &announcement));
}
