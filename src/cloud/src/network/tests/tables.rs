//! The tables of a small topology, as a golden file.

use std::collections::BTreeMap;

use model::net::{Attachment, Document, Metadata, PortMatch, Remote, Tables};

use super::*;
use crate::network::ports::NetRequest;
use crate::network::security_rules::{self, Direction};
use crate::network::{compile, floating_ips, security_groups};

fn tables(bench: &Bench) -> Tables {
    compile::compile(&bench.conn, &bench.config, &mut |_, server, _| {
        let body = server.to_string().into_bytes();
        let document = Document {
            content_type: "text/plain".into(),
            body,
        };
        Ok(Some(Metadata {
            documents: BTreeMap::from([("/id".to_owned(), document)]),
            ..Default::default()
        }))
    })
    .unwrap()
}

/// Ids and addresses that chance made, by names.
fn named(mut text: String, names: &[(String, &str)]) -> String {
    for (value, name) in names {
        text = text.replace(value, name);
    }
    text
}

#[test]
fn a_small_topology_compiles_to_the_golden_tables() {
    let bench = Bench::new();
    let ctx = member("a");
    let network = bench.network(&ctx, "net");
    let subnet = subnets::Fields {
        host_routes: Some(vec![subnets::HostRoute {
            destination: "192.168.0.0/16".parse().unwrap(),
            nexthop: ip("10.0.0.9"),
        }]),
        ..subnet_fields(&network, "10.0.0.0/24")
    };
    let subnet = bench.try_subnet(&ctx, subnet).unwrap();
    let router = bench.router(&ctx, true);
    let leg = bench.plug(&ctx, &router, &subnet).port;
    let group = security_groups::Fields {
        name: Some("web".into()),
        ..Default::default()
    };
    let group = security_groups::create(&bench.conn, &ctx, &group).unwrap();
    for (old, _) in group.rules.iter().zip(0..) {
        security_rules::delete(&bench.conn, &ctx, old.meta.id).unwrap();
    }
    let ssh = security_rules::Fields {
        group_id: Some(group.meta.id),
        direction: Some(Direction::Ingress),
        protocol: Some("tcp".into()),
        port_min: Some(22),
        port_max: Some(22),
        remote_prefix: "198.51.100.7/24".parse().ok(),
        ..Default::default()
    };
    let ssh = security_rules::create(&bench.conn, &ctx, &ssh).unwrap();
    let server = Uuid::new_v4();
    let request = NetRequest {
        network: Some(network.meta.id),
        ..Default::default()
    };
    let port = ports::create_for_server(&bench.conn, &ctx, server, &request, &[group.meta.id]).unwrap();
    ports::bind(&bench.conn, server, "node1", "web-1").unwrap();
    let pair = ports::AddressPair {
        ip_address: "10.0.0.200".into(),
        mac_address: None,
    };
    let pairs = ports::Fields {
        address_pairs: Some(vec![pair]),
        ..Default::default()
    };
    ports::update(&bench.conn, &ctx, port.id, &pairs).unwrap();
    let floating = floating_ips::Fields {
        network_id: Some(bench.external),
        port_id: Some(Some(port.id)),
        ..Default::default()
    };
    let floating = floating_ips::create(&bench.conn, &ctx, &floating).unwrap();

    let tables = tables(&bench);
    let external = subnets::of_network(&bench.conn, bench.external)
        .unwrap()
        .pop()
        .unwrap();
    let gateway = router.gateway.clone().unwrap().port;
    let mac = |port: Uuid| ports::fetch(&bench.conn, port).unwrap().mac.to_string();
    let names = [
        (network.meta.id.to_string(), "NET"),
        (subnet.meta.id.to_string(), "SUBNET"),
        (bench.external.to_string(), "EXT-NET"),
        (external.meta.id.to_string(), "EXT-SUBNET"),
        (router.meta.id.to_string(), "ROUTER"),
        (leg.to_string(), "LEG"),
        (gateway.to_string(), "GATEWAY"),
        (group.meta.id.to_string(), "GROUP"),
        (ssh.meta.id.to_string(), "SSH"),
        (server.to_string(), "SERVER"),
        (port.id.to_string(), "PORT"),
        (floating.meta.id.to_string(), "FLOATING"),
        (mac(leg), "MAC-LEG"),
        (mac(gateway), "MAC-GATEWAY"),
        (mac(port.id), "MAC-PORT"),
    ];
    // By way of a value: its keys are sorted by name, not by chance.
    let text = named(serde_json::to_string(&tables).unwrap(), &names);
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    let golden: serde_json::Value = serde_json::from_str(include_str!("topology.json")).unwrap();
    assert_eq!(found, golden, "{}", serde_json::to_string_pretty(&found).unwrap());

    let active = compile::active(&tables);
    for id in [leg, gateway, port.id, floating.meta.id] {
        assert!(active.contains(&id));
    }
    assert_eq!(active.len(), 4);
}

#[test]
fn dhcp_answers_from_the_gateways_address_unless_a_tenants_port_has_it() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, subnet) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let server = || {
        let tables = tables(&bench);
        tables.networks[&network.meta.id].subnets[&subnet.meta.id]
            .dhcp_server
            .map(|ip| ip.to_string())
    };
    assert_eq!(server().as_deref(), Some("10.0.0.1"));
    let own = ports::Fields {
        fixed_ips: Some(vec![at("10.0.0.1")]),
        ..port_fields(&network)
    };
    let own = bench.try_port(&ctx, own).unwrap();
    assert_eq!(server().as_deref(), Some("169.254.169.254"));
    ports::delete(&bench.conn, &ctx, own.id).unwrap();
    let router = bench.router(&ctx, false);
    bench.plug(&ctx, &router, &subnet);
    assert_eq!(server().as_deref(), Some("10.0.0.1"));
    let off = subnets::Fields {
        enable_dhcp: Some(false),
        ..Default::default()
    };
    subnets::update(&bench.conn, &ctx, subnet.meta.id, &off).unwrap();
    assert_eq!(server(), None);
}

#[test]
fn members_of_a_group_are_known_wherever_they_are() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, _) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let first = bench.port(&ctx, &network);
    let second = bench.port(&ctx, &network);
    let default = security_groups::default_of(&bench.conn, "a").unwrap().unwrap();
    let compiled = tables(&bench);
    let group = &compiled.security_groups[&default];
    assert_eq!(group.members, [first.fixed_ips[0].ip, second.fixed_ips[0].ip]);
    assert!(
        group
            .rules
            .iter()
            .any(|rule| rule.remote == Remote::Group(default))
    );
    assert_eq!(
        compiled.ports[&first.id].attachment,
        Attachment::None,
        "no server, no socket"
    );
    ports::delete(&bench.conn, &ctx, first.id).unwrap();
    assert_eq!(
        tables(&bench).security_groups[&default].members,
        [second.fixed_ips[0].ip]
    );
}

#[test]
fn icmp_rules_have_types_and_codes() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, _) = bench.plain(&ctx, "n", "10.0.0.0/24");
    bench.port(&ctx, &network);
    let default = security_groups::default_of(&bench.conn, "a").unwrap().unwrap();
    let rule = |ethertype, protocol: &str, min, max| security_rules::Fields {
        group_id: Some(default),
        direction: Some(Direction::Ingress),
        ethertype: Some(ethertype),
        protocol: Some(protocol.into()),
        port_min: min,
        port_max: max,
        ..Default::default()
    };
    use security_rules::Ethertype::{V4, V6};
    let cases = [
        (rule(V4, "icmp", Some(8), None), Some(1), PortMatch::Icmp(8, None)),
        (
            rule(V6, "icmp", Some(128), Some(0)),
            Some(58),
            PortMatch::Icmp(128, Some(0)),
        ),
        (
            rule(V4, "udp", Some(53), Some(54)),
            Some(17),
            PortMatch::Range(53, 54),
        ),
        (rule(V4, "0", None, None), None, PortMatch::Any),
        (rule(V4, "112", None, None), Some(112), PortMatch::Any),
    ];
    for (fields, protocol, ports) in cases {
        let made = security_rules::create(&bench.conn, &ctx, &fields).unwrap();
        let compiled = tables(&bench);
        let found = compiled.security_groups[&default]
            .rules
            .iter()
            .find(|r| r.id == made.meta.id)
            .unwrap();
        assert_eq!((found.protocol, found.ports), (protocol, ports), "{fields:?}");
    }
}
