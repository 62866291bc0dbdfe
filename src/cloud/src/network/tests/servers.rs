//! Ports of servers.

use super::*;
use crate::network::floating_ips;
use crate::network::ports::{NetRequest, create_for_server, of_server, release_for_server};
use crate::network::security_groups;

fn on(network: Option<&Network>) -> NetRequest {
    NetRequest {
        network: network.map(|network| network.meta.id),
        ..Default::default()
    }
}

#[test]
fn a_made_port_goes_with_its_server_and_a_given_one_stays() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, _) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let given = bench.port(&ctx, &network);
    let server = Uuid::new_v4();
    let by_port = NetRequest {
        port: Some(given.id),
        ..Default::default()
    };
    let first = create_for_server(&bench.conn, &ctx, server, &by_port, &[]).unwrap();
    let second = create_for_server(&bench.conn, &ctx, server, &on(Some(&network)), &[]).unwrap();
    assert_eq!(first.id, given.id);
    assert_eq!((second.mtu, second.device_owner.as_str()), (1442, "compute:nova"));
    let own: Vec<Uuid> = of_server(&bench.conn, server)
        .unwrap()
        .into_iter()
        .map(|port| port.id)
        .collect();
    assert_eq!(own, [first.id, second.id], "in the order of plugging");
    assert_eq!(
        refused(create_for_server(
            &bench.conn,
            &ctx,
            Uuid::new_v4(),
            &by_port,
            &[]
        )),
        "PortInUse"
    );

    release_for_server(&bench.conn, server).unwrap();
    release_for_server(&bench.conn, server).unwrap();
    let given = ports::get(&bench.conn, &ctx, given.id).unwrap();
    assert_eq!((given.device_id.as_str(), given.server), ("", None));
    assert_eq!(refused(ports::get(&bench.conn, &ctx, second.id)), "PortNotFound");
}

#[test]
fn without_a_name_the_only_network_is_meant() {
    let bench = Bench::new();
    let ctx = member("a");
    let create = |request: NetRequest| create_for_server(&bench.conn, &ctx, Uuid::new_v4(), &request, &[]);
    assert_eq!(refused(create(on(None))), "NetworkNotFound");
    let (network, _) = bench.plain(&ctx, "n", "10.0.0.0/24");
    assert_eq!(create(on(None)).unwrap().network_id, network.meta.id);
    let certain = NetRequest {
        fixed_ip: Some(ip("10.0.0.99")),
        ..on(Some(&network))
    };
    assert_eq!(create(certain).unwrap().fixed_ips[0].ip, ip("10.0.0.99"));
    bench.network(&ctx, "m");
    assert_eq!(refused(create(on(None))), "NetworkAmbiguous");
    let external = NetRequest {
        network: Some(bench.external),
        ..Default::default()
    };
    assert_eq!(refused(create(external)), "ExternalNetworkAttachForbidden");
}

#[test]
fn nobody_takes_another_servers_identity() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, _) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let victim = Uuid::new_v4();
    create_for_server(&bench.conn, &ctx, victim, &on(Some(&network)), &[]).unwrap();
    let pretend = ports::Fields {
        device_id: Some(victim.to_string()),
        device_owner: Some("compute:nova".into()),
        ..port_fields(&network)
    };
    let fake = bench.try_port(&ctx, pretend).unwrap();
    assert_eq!(
        of_server(&bench.conn, victim).unwrap().len(),
        1,
        "words are no plugs"
    );
    let mine = create_for_server(&bench.conn, &ctx, Uuid::new_v4(), &on(Some(&network)), &[]).unwrap();
    let other = ports::Fields {
        device_id: Some(victim.to_string()),
        ..Default::default()
    };
    assert_eq!(
        refused(ports::update(&bench.conn, &ctx, mine.id, &other)),
        "PortInUse"
    );
    for owner in [
        ports::ROUTER_INTERFACE,
        ports::ROUTER_GATEWAY,
        ports::FLOATING_IP,
        "network:dhcp",
    ] {
        let spoofed = ports::Fields {
            device_owner: Some(owner.into()),
            ..Default::default()
        };
        assert_eq!(
            refused(ports::update(&bench.conn, &ctx, fake.id, &spoofed)),
            "PolicyNotAuthorized"
        );
    }
    let by_admin = ports::Fields {
        device_owner: Some(ports::ROUTER_INTERFACE.into()),
        ..Default::default()
    };
    assert_eq!(
        refused(ports::update(&bench.conn, &admin(), fake.id, &by_admin)),
        "PolicyNotAuthorized"
    );
}

#[test]
fn a_servers_addresses_are_told_with_its_floating_ones() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, subnet) = bench.plain(&ctx, "net", "10.0.0.0/24");
    let router = bench.router(&ctx, true);
    bench.plug(&ctx, &router, &subnet);
    let server = Uuid::new_v4();
    let port = create_for_server(&bench.conn, &ctx, server, &on(Some(&network)), &[]).unwrap();
    let fields = floating_ips::Fields {
        network_id: Some(bench.external),
        port_id: Some(Some(port.id)),
        ..Default::default()
    };
    let floating = floating_ips::create(&bench.conn, &ctx, &fields).unwrap();
    let addresses = ports::addresses(&bench.conn, server).unwrap();
    let all = ports::addresses_of_all(&bench.conn, &[server, Uuid::nil()].into()).unwrap();
    assert_eq!(all, [(server, addresses.clone())].into());
    let told: Vec<(IpAddr, bool)> = addresses["net"].iter().map(|a| (a.addr, a.floating)).collect();
    assert_eq!(told, [(ip("10.0.0.2"), false), (floating.address, true)]);
    assert!(
        addresses["net"]
            .iter()
            .all(|a| a.mac == port.mac && a.version == 4)
    );
}

#[test]
fn groups_of_a_server_are_those_of_its_ports() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, _) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let named = |name: &str| security_groups::Fields {
        name: Some(name.into()),
        ..Default::default()
    };
    let web = security_groups::create(&bench.conn, &ctx, &named("web"))
        .unwrap()
        .meta
        .id;
    let server = Uuid::new_v4();
    create_for_server(&bench.conn, &ctx, server, &on(Some(&network)), &[]).unwrap();
    let names = || -> Vec<String> {
        let groups = ports::security_groups_of(&bench.conn, server).unwrap();
        groups.into_iter().map(|(_, name)| name).collect()
    };
    assert_eq!(names(), ["default"]);
    ports::change_group(&bench.conn, server, web, true).unwrap();
    assert_eq!(names(), ["default", "web"]);
    let all = ports::security_groups_of_all(&bench.conn, &[server, Uuid::nil()].into()).unwrap();
    assert_eq!((all.len(), &all[&server]), (1, &names()));
    ports::change_group(&bench.conn, server, web, false).unwrap();
    assert_eq!(
        refused(ports::change_group(&bench.conn, server, web, false)),
        "SecurityGroupNotFound"
    );
    ports::bind(&bench.conn, server, "node1", "web-1").unwrap();
    let port = of_server(&bench.conn, server).unwrap().pop().unwrap();
    assert_eq!((port.host.as_str(), port.dns_name.as_str()), ("node1", "web-1"));
}
