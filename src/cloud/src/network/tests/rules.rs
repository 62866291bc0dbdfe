//! Networks, subnets, ports and routers.

use super::*;
use crate::network::quotas::{self, Limits, Resource};
use crate::network::ranges::Pool;
use crate::network::subnets::{HostRoute, Ipv6Mode};
use crate::network::tags::{self, Change, Tagged};
use crate::network::{Where, ipam};

#[test]
fn a_subnet_has_its_gateway_first_and_the_rest_to_give_away() {
    let bench = Bench::new();
    let ctx = member("a");
    let network = bench.network(&ctx, "n");
    let subnet = bench.subnet(&ctx, &network, "10.0.0.77/24");
    assert_eq!(subnet.cidr.to_string(), "10.0.0.0/24");
    assert_eq!(subnet.gateway_ip, Some(ip("10.0.0.1")));
    assert_eq!(
        subnet.pools,
        [Pool {
            start: ip("10.0.0.2"),
            end: ip("10.0.0.254")
        }]
    );
    assert!(subnet.enable_dhcp && subnet.dhcp_server.is_none());
    let v6 = bench.subnet(&ctx, &network, "fd00::/64");
    assert_eq!(v6.gateway_ip, Some(ip("fd00::1")));

    let overlapping = bench.try_subnet(&ctx, subnet_fields(&network, "10.0.0.128/25"));
    assert_eq!(refused(overlapping), "InvalidInput");
    let elsewhere = bench.network(&ctx, "m");
    bench.subnet(&ctx, &elsewhere, "10.0.0.0/24");
}

#[test]
fn a_subnet_without_gateway_keeps_an_address_for_dhcp() {
    let bench = Bench::new();
    let ctx = member("a");
    let network = bench.network(&ctx, "n");
    let fields = subnets::Fields {
        gateway_ip: Some(None),
        ..subnet_fields(&network, "10.0.0.0/29")
    };
    let subnet = bench.try_subnet(&ctx, fields).unwrap();
    assert_eq!(
        (subnet.gateway_ip, subnet.dhcp_server),
        (None, Some(ip("10.0.0.1")))
    );
    assert_eq!(bench.port(&ctx, &network).fixed_ips[0].ip, ip("10.0.0.2"));
    assert_eq!(
        refused(bench.try_port(
            &ctx,
            ports::Fields {
                fixed_ips: Some(vec![at("10.0.0.1")]),
                ..port_fields(&network)
            }
        )),
        "IpAddressInUse"
    );

    let off = subnets::Fields {
        enable_dhcp: Some(false),
        ..Default::default()
    };
    let subnet = subnets::update(&bench.conn, &ctx, subnet.meta.id, &off).unwrap();
    assert_eq!(subnet.dhcp_server, None);
    assert_eq!(
        ipam::holder(&bench.conn, subnet.meta.id, ip("10.0.0.1")).unwrap(),
        None
    );
}

#[test]
fn what_a_subnet_cannot_be_is_refused_by_name() {
    let bench = Bench::new();
    let ctx = member("a");
    let network = bench.network(&ctx, "n");
    let base = || subnet_fields(&network, "10.0.0.0/24");
    let name = |fields| refused(bench.try_subnet(&ctx, fields));
    let route = |to: &str, via: &str| HostRoute {
        destination: to.parse().unwrap(),
        nexthop: ip(via),
    };
    assert_eq!(name(subnets::Fields { cidr: None, ..base() }), "BadRequest");
    assert_eq!(
        name(subnets::Fields {
            ip_version: Some(6),
            ..base()
        }),
        "InvalidInput"
    );
    assert_eq!(
        name(subnets::Fields {
            gateway_ip: Some(Some(ip("10.0.1.1"))),
            ..base()
        }),
        "InvalidInput"
    );
    assert_eq!(
        name(subnets::Fields {
            gateway_ip: Some(Some(ip("10.0.0.0"))),
            ..base()
        }),
        "InvalidInput"
    );
    assert_eq!(
        name(subnets::Fields {
            gateway_ip: Some(Some(ip("fd00::1"))),
            ..base()
        }),
        "InvalidInput"
    );
    assert_eq!(
        name(subnets::Fields {
            dns_nameservers: Some(vec![ip("fd00::1")]),
            ..base()
        }),
        "InvalidInput"
    );
    assert_eq!(
        name(subnets::Fields {
            dns_nameservers: Some(vec![ip("8.8.8.8"); 6]),
            ..base()
        }),
        "DNSNameServersExhausted"
    );
    let routes = Some(vec![route("fd00::/64", "10.0.0.1")]);
    assert_eq!(
        name(subnets::Fields {
            host_routes: routes,
            ..base()
        }),
        "InvalidInput"
    );
    assert_eq!(
        name(subnets::Fields {
            ipv6_ra_mode: Some(Ipv6Mode::Slaac),
            ..base()
        }),
        "InvalidInput"
    );
    assert_eq!(
        name(subnets::Fields {
            subnet_pool_id: Some(Uuid::nil()),
            ..base()
        }),
        "SubnetPoolNotFound"
    );
    assert_eq!(
        name(subnets::Fields {
            network_id: Some(Uuid::nil()),
            ..base()
        }),
        "NetworkNotFound"
    );
    for cidr in ["0.0.0.0/0", "127.0.0.0/8", "224.0.0.0/24"] {
        assert_eq!(name(subnet_fields(&network, cidr)), "InvalidInput");
    }
    assert_eq!(bench.count("subnets"), 1, "the external network's alone");
}

#[test]
fn ports_get_addresses_and_addresses_are_given_once() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, _) = bench.plain(&ctx, "n", "10.0.0.0/29");
    let first = bench.port(&ctx, &network);
    assert!(first.mac.to_string().starts_with("fa:16:3e:"));
    assert_eq!(first.fixed_ips[0].ip, ip("10.0.0.2"));
    assert_eq!(first.security_groups.len(), 1, "the default group");
    let certain = |text| ports::Fields {
        fixed_ips: Some(vec![at(text)]),
        ..port_fields(&network)
    };
    assert_eq!(
        bench.try_port(&ctx, certain("10.0.0.5")).unwrap().fixed_ips[0].ip,
        ip("10.0.0.5")
    );
    assert_eq!(
        refused(bench.try_port(&ctx, certain("10.0.0.5"))),
        "IpAddressInUse"
    );
    assert_eq!(
        refused(bench.try_port(&ctx, certain("10.0.0.7"))),
        "InvalidIpForSubnet"
    );
    assert_eq!(
        refused(bench.try_port(&ctx, certain("10.9.0.7"))),
        "InvalidIpForNetwork"
    );
    assert_eq!(bench.port(&ctx, &network).fixed_ips[0].ip, ip("10.0.0.6"));
    let got: Vec<IpAddr> = (0..2)
        .map(|_| bench.port(&ctx, &network).fixed_ips[0].ip)
        .collect();
    assert_eq!(got, [ip("10.0.0.3"), ip("10.0.0.4")]);
    assert_eq!(
        refused(bench.try_port(&ctx, port_fields(&network))),
        "IpAddressGenerationFailure"
    );
    ports::delete(&bench.conn, &ctx, first.id).unwrap();
    assert_eq!(bench.port(&ctx, &network).fixed_ips[0].ip, ip("10.0.0.2"));

    let mac = ports::Fields {
        mac: Some(first.mac),
        fixed_ips: Some(vec![]),
        ..port_fields(&network)
    };
    let with_mac = bench.try_port(&ctx, mac.clone()).unwrap();
    assert_eq!((with_mac.fixed_ips.len(), with_mac.security_groups.len()), (0, 1));
    assert_eq!(refused(bench.try_port(&ctx, mac)), "MacAddressInUse");
}

#[test]
fn ipv6_hosts_number_themselves_where_the_subnet_says_so() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, _) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let before = bench.port(&ctx, &network);
    let slaac = subnets::Fields {
        ipv6_ra_mode: Some(Ipv6Mode::Slaac),
        ipv6_address_mode: Some(Ipv6Mode::Slaac),
        ..subnet_fields(&network, "2001:db8::/64")
    };
    let subnet = bench.try_subnet(&ctx, slaac).unwrap();
    let expected = |port: &PortRow| crate::network::ranges::eui64(subnet.cidr, port.mac);
    let before = ports::get(&bench.conn, &ctx, before.id).unwrap();
    assert_eq!(before.fixed_ips[1].ip, expected(&before));
    let after = bench.port(&ctx, &network);
    assert_eq!(after.fixed_ips[1].ip, expected(&after));

    let router = bench.router(&ctx, false);
    bench.plug(&ctx, &router, &subnet);
    assert_eq!(
        refused(subnets::delete(&bench.conn, &ctx, subnet.meta.id)),
        "SubnetInUse"
    );
    let request = InterfaceRequest::Subnet(subnet.meta.id);
    routers::remove_interface(&bench.conn, &ctx, router.meta.id, request).unwrap();
    subnets::delete(&bench.conn, &ctx, subnet.meta.id).unwrap();
    let after = ports::get(&bench.conn, &ctx, after.id).unwrap();
    assert_eq!(
        (after.fixed_ips.len(), after.fixed_ips[0].ip),
        (1, ip("10.0.0.3"))
    );
}

#[test]
fn projects_see_their_own_the_shared_and_the_external() {
    let bench = Bench::new();
    let (a, b) = (member("a"), member("b"));
    let (private, subnet) = bench.plain(&a, "private", "10.0.0.0/24");
    let port = bench.port(&a, &private);
    let all = Where::default();
    let names = |ctx: &Context| -> Vec<String> {
        let networks = networks::list(&bench.conn, ctx, &all).unwrap();
        let mut names: Vec<String> = networks.into_iter().map(|n| n.meta.name).collect();
        names.sort();
        names
    };
    assert_eq!(names(&b), ["ext-net"]);
    assert_eq!(
        refused(networks::get(&bench.conn, &b, private.meta.id)),
        "NetworkNotFound"
    );
    assert_eq!(
        refused(subnets::get(&bench.conn, &b, subnet.meta.id)),
        "SubnetNotFound"
    );
    assert_eq!(refused(ports::get(&bench.conn, &b, port.id)), "PortNotFound");
    assert_eq!(
        refused(bench.try_port(&b, port_fields(&private))),
        "NetworkNotFound"
    );

    let share = |shared| networks::Fields {
        shared: Some(shared),
        ..Default::default()
    };
    let set = |ctx: &Context, shared| {
        networks::update(&bench.conn, &bench.config, ctx, private.meta.id, &share(shared))
    };
    assert_eq!(refused(set(&a, true)), "PolicyNotAuthorized");
    set(&admin(), true).unwrap();
    assert_eq!(names(&b), ["ext-net", "private"]);
    let theirs = bench.port(&b, &private);
    assert_eq!(refused(set(&b, false)), "PolicyNotAuthorized");
    assert_eq!(refused(set(&admin(), false)), "InvalidSharedSetting");
    assert_eq!(
        refused(networks::delete(&bench.conn, &b, private.meta.id)),
        "PolicyNotAuthorized"
    );
    let certain = ports::Fields {
        fixed_ips: Some(vec![at("10.0.0.99")]),
        ..port_fields(&private)
    };
    assert_eq!(refused(bench.try_port(&b, certain)), "PolicyNotAuthorized");
    assert!(
        ports::get(&bench.conn, &a, theirs.id).is_ok(),
        "owners see all ports of their networks"
    );

    let external = networks::fetch(&bench.conn, bench.external).unwrap();
    assert_eq!(
        refused(bench.try_port(&b, port_fields(&external))),
        "PolicyNotAuthorized"
    );
    assert_eq!(
        refused(bench.try_subnet(&b, subnet_fields(&external, "10.0.0.0/24"))),
        "PolicyNotAuthorized"
    );
    let reader = context("a", &["reader"]);
    assert!(networks::get(&bench.conn, &reader, private.meta.id).is_ok());
    assert_eq!(
        refused(networks::create(
            &bench.conn,
            &bench.config,
            &reader,
            &networks::Fields::default()
        )),
        "PolicyNotAuthorized"
    );
}

#[test]
fn saying_what_is_so_already_changes_nothing() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, subnet) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let port = bench.port(&ctx, &network);
    let router = bench.router(&ctx, true);
    bench.plug(&ctx, &router, &subnet);
    let route = HostRoute {
        destination: "10.8.0.0/16".parse().unwrap(),
        nexthop: port.fixed_ips[0].ip,
    };
    let routed = routers::Fields {
        routes: Some(vec![route]),
        ..Default::default()
    };
    routers::update(&bench.conn, &bench.config, &ctx, router.meta.id, &routed).unwrap();
    let router = routers::get(&bench.conn, &ctx, router.meta.id).unwrap();
    let changes = || {
        bench
            .conn
            .query_row("SELECT total_changes()", [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    let before = changes();

    let same = networks::Fields {
        name: Some("n".into()),
        admin_state_up: Some(true),
        mtu: Some(1442),
        shared: Some(false),
        ..Default::default()
    };
    let again = networks::update(&bench.conn, &bench.config, &ctx, network.meta.id, &same).unwrap();
    let network = networks::get(&bench.conn, &ctx, network.meta.id).unwrap();
    assert_eq!(again, network);
    let same = subnets::Fields {
        gateway_ip: Some(subnet.gateway_ip),
        pools: Some(subnet.pools.clone()),
        dns_nameservers: Some(vec![]),
        ..Default::default()
    };
    assert_eq!(
        subnets::update(&bench.conn, &ctx, subnet.meta.id, &same).unwrap(),
        subnet
    );
    let address = port.fixed_ips[0];
    let same = ports::Fields {
        fixed_ips: Some(vec![FixedIpRequest {
            subnet: Some(address.subnet),
            ip: Some(address.ip),
        }]),
        mac: Some(port.mac),
        security_groups: Some(port.security_groups.clone()),
        address_pairs: Some(vec![]),
        port_security_enabled: Some(true),
        ..Default::default()
    };
    assert_eq!(ports::update(&bench.conn, &ctx, port.id, &same).unwrap(), port);
    let gateway = router.gateway.clone().unwrap();
    let same = routers::Fields {
        gateway: Some(Some(GatewayRequest {
            network: bench.external,
            enable_snat: Some(true),
            fixed_ips: Some(vec![FixedIpRequest {
                subnet: Some(gateway.fixed_ips[0].subnet),
                ip: Some(gateway.fixed_ips[0].ip),
            }]),
        })),
        routes: Some(vec![route]),
        ..Default::default()
    };
    assert_eq!(
        routers::update(&bench.conn, &bench.config, &ctx, router.meta.id, &same).unwrap(),
        router
    );
    assert_eq!(changes(), before);

    let other = networks::Fields {
        name: Some("m".into()),
        ..Default::default()
    };
    let renamed = networks::update(&bench.conn, &bench.config, &ctx, network.meta.id, &other).unwrap();
    assert_eq!(renamed.meta.revision, network.meta.revision + 1);
}

#[test]
fn what_is_in_use_stays() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, subnet) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let router = bench.router(&ctx, true);
    let interface = bench.plug(&ctx, &router, &subnet);
    assert_eq!(
        refused(networks::delete(&bench.conn, &ctx, network.meta.id)),
        "NetworkInUse"
    );
    assert_eq!(
        refused(subnets::delete(&bench.conn, &ctx, subnet.meta.id)),
        "SubnetInUse"
    );
    assert_eq!(
        refused(routers::delete(&bench.conn, &ctx, router.meta.id)),
        "RouterInUse"
    );
    assert_eq!(
        refused(ports::delete(&bench.conn, &ctx, interface.port)),
        "ServicePortInUse"
    );
    assert_eq!(
        refused(networks::delete(&bench.conn, &admin(), bench.external)),
        "NetworkInUse"
    );
    let moved = subnets::Fields {
        gateway_ip: Some(None),
        ..Default::default()
    };
    assert_eq!(
        refused(subnets::update(&bench.conn, &ctx, subnet.meta.id, &moved)),
        "GatewayIpInUse"
    );

    let by_subnet = InterfaceRequest::Subnet(subnet.meta.id);
    routers::remove_interface(&bench.conn, &ctx, router.meta.id, by_subnet).unwrap();
    assert_eq!(
        refused(routers::remove_interface(
            &bench.conn,
            &ctx,
            router.meta.id,
            by_subnet
        )),
        "RouterInterfaceNotFoundForSubnet"
    );
    routers::delete(&bench.conn, &ctx, router.meta.id).unwrap();
    networks::delete(&bench.conn, &ctx, network.meta.id).unwrap();
    assert_eq!(
        (
            bench.count("ports"),
            bench.count("network_allocations"),
            bench.count("subnets")
        ),
        (0, 0, 1)
    );
}

#[test]
fn router_interfaces_by_subnet_and_by_port() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, subnet) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let router = bench.router(&ctx, false);
    let add = |request| routers::add_interface(&bench.conn, &ctx, router.meta.id, request);
    let interface = add(InterfaceRequest::Subnet(subnet.meta.id)).unwrap();
    let port = ports::fetch(&bench.conn, interface.port).unwrap();
    assert_eq!(port.fixed_ips[0].ip, ip("10.0.0.1"));
    let fixed = |ip| {
        let request = FixedIpRequest {
            subnet: Some(subnet.meta.id),
            ip,
        };
        let fields = ports::Fields {
            fixed_ips: Some(vec![request]),
            ..Default::default()
        };
        ports::update(&bench.conn, &ctx, port.id, &fields)
    };
    assert_eq!(
        fixed(None).unwrap(),
        port,
        "any address of its subnet: it has one"
    );
    assert_eq!(refused(fixed(Some(ip("10.0.0.9")))), "UnsupportedPortDeviceOwner");
    assert!(!port.port_security_enabled && port.security_groups.is_empty());
    assert_eq!(
        refused(add(InterfaceRequest::Subnet(subnet.meta.id))),
        "BadRequest"
    );

    let (_, overlapping) = bench.plain(&ctx, "m", "10.0.0.128/25");
    assert_eq!(
        refused(add(InterfaceRequest::Subnet(overlapping.meta.id))),
        "BadRequest"
    );
    let bare = bench.network(&ctx, "bare");
    let no_gateway = subnets::Fields {
        gateway_ip: Some(None),
        ..subnet_fields(&bare, "10.3.0.0/24")
    };
    let no_gateway = bench.try_subnet(&ctx, no_gateway).unwrap();
    assert_eq!(
        refused(add(InterfaceRequest::Subnet(no_gateway.meta.id))),
        "BadRequest"
    );

    let (other, _) = bench.plain(&ctx, "o", "10.2.0.0/24");
    let theirs = bench.port(&ctx, &other);
    add(InterfaceRequest::Port(theirs.id)).unwrap();
    let adopted = ports::fetch(&bench.conn, theirs.id).unwrap();
    assert_eq!(adopted.device_owner, ports::ROUTER_INTERFACE);
    assert!(adopted.security_groups.is_empty());
    // It cannot be made one's own again: it would be a port without guards. Nor another router's.
    let freed = ports::Fields {
        device_owner: Some(String::new()),
        device_id: Some(String::new()),
        ..ports::Fields::default()
    };
    let moved = ports::Fields {
        device_id: Some(Uuid::new_v4().to_string()),
        ..ports::Fields::default()
    };
    for change in [freed, moved] {
        let changed = ports::update(&bench.conn, &ctx, theirs.id, &change);
        assert_eq!(refused(changed), "UnsupportedPortDeviceOwner");
    }
    assert_eq!(refused(add(InterfaceRequest::Port(theirs.id))), "PortInUse");
    let both = InterfaceRequest::Both(theirs.id, subnet.meta.id);
    let remove = |request| routers::remove_interface(&bench.conn, &ctx, router.meta.id, request);
    assert_eq!(refused(remove(both)), "SubnetMismatchForPort");
    assert_eq!(
        remove(InterfaceRequest::Port(theirs.id)).unwrap().network,
        other.meta.id
    );
    assert_eq!(
        refused(remove(InterfaceRequest::Port(theirs.id))),
        "RouterInterfaceNotFound"
    );

    let mine = bench.port(&ctx, &network);
    let routes = |nexthop: &str| routers::Fields {
        routes: Some(vec![HostRoute {
            destination: "10.8.0.0/16".parse().unwrap(),
            nexthop: ip(nexthop),
        }]),
        ..Default::default()
    };
    let set = |fields| routers::update(&bench.conn, &bench.config, &ctx, router.meta.id, &fields);
    assert_eq!(refused(set(routes("10.0.0.1"))), "InvalidRoutes");
    assert_eq!(refused(set(routes("10.77.0.1"))), "InvalidRoutes");
    set(routes(&mine.fixed_ips[0].ip.to_string())).unwrap();
    assert_eq!(
        refused(remove(InterfaceRequest::Subnet(subnet.meta.id))),
        "RouterInterfaceInUseByRoute"
    );
}

#[test]
fn a_router_gets_an_outside_address_and_gives_it_back() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, _) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let router = bench.router(&ctx, true);
    let gateway = router.gateway.clone().unwrap();
    assert_eq!(gateway.fixed_ips[0].ip, ip("203.0.113.2"));
    let set = |gateway| {
        let fields = routers::Fields {
            gateway: Some(gateway),
            ..Default::default()
        };
        routers::update(&bench.conn, &bench.config, &ctx, router.meta.id, &fields)
    };
    let request = |network, enable_snat| {
        Some(GatewayRequest {
            network,
            enable_snat,
            fixed_ips: None,
        })
    };
    assert_eq!(refused(set(request(network.meta.id, None))), "BadRequest");
    assert_eq!(
        refused(set(request(bench.external, Some(false)))),
        "PolicyNotAuthorized"
    );
    assert_eq!(set(None).unwrap().gateway, None);
    assert_eq!(bench.count("ports"), 0);
    assert!(
        set(request(bench.external, Some(true)))
            .unwrap()
            .gateway
            .is_some()
    );
    routers::delete(&bench.conn, &ctx, router.meta.id).unwrap();
    assert_eq!((bench.count("ports"), bench.count("network_allocations")), (0, 0));
}

#[test]
fn changing_a_ports_addresses_keeps_those_that_stay() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, subnet) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let port = bench.port(&ctx, &network);
    let set = |requests: Vec<FixedIpRequest>| {
        let fields = ports::Fields {
            fixed_ips: Some(requests),
            ..Default::default()
        };
        let port = ports::update(&bench.conn, &ctx, port.id, &fields)?;
        let stored = ports::get(&bench.conn, &ctx, port.id)?;
        assert_eq!(stored.fixed_ips, port.fixed_ips);
        Ok::<Vec<String>, Error>(port.fixed_ips.iter().map(|a| a.ip.to_string()).collect())
    };
    let any = FixedIpRequest {
        subnet: Some(subnet.meta.id),
        ip: None,
    };
    assert_eq!(set(vec![at("10.0.0.9"), any]).unwrap(), ["10.0.0.9", "10.0.0.2"]);
    assert_eq!(set(vec![any, at("10.0.0.9")]).unwrap(), ["10.0.0.2", "10.0.0.9"]);
    assert_eq!(set(vec![any]).unwrap(), ["10.0.0.2"]);
    assert_eq!(
        refused(set(vec![at("10.0.0.2"), at("10.0.0.2")])),
        "IpAddressInUse"
    );
    assert!(set(vec![]).unwrap().is_empty());
}

#[test]
fn a_project_has_no_more_than_its_quota() {
    let bench = Bench::new();
    let ctx = member("a");
    let limits = Limits::from([(Resource::Network, 1)]);
    assert_eq!(
        refused(quotas::update(&bench.conn, &ctx, "a", &limits)),
        "PolicyNotAuthorized"
    );
    quotas::update(&bench.conn, &admin(), "a", &limits).unwrap();
    bench.network(&ctx, "one");
    let create = || networks::create(&bench.conn, &bench.config, &ctx, &networks::Fields::default());
    assert_eq!(refused(create()), "OverQuota");
    quotas::reset(&bench.conn, &admin(), "a").unwrap();
    create().unwrap();
    assert_eq!(
        refused(quotas::show(&bench.conn, &ctx, "b")),
        "PolicyNotAuthorized"
    );
    let wrong = Limits::from([(Resource::Port, -2)]);
    assert_eq!(
        refused(quotas::update(&bench.conn, &admin(), "a", &wrong)),
        "InvalidInput"
    );
}

#[test]
fn tags_are_a_set() {
    let bench = Bench::new();
    let ctx = member("a");
    let network = bench.network(&ctx, "n");
    let change = |change| tags::change(&bench.conn, &ctx, Tagged::Networks, network.meta.id, &change);
    assert_eq!(
        change(Change::Set(vec!["b".into(), "a".into(), "b".into()])).unwrap(),
        ["a", "b"]
    );
    assert_eq!(change(Change::Add(vec!["c".into()])).unwrap(), ["a", "b", "c"]);
    assert_eq!(change(Change::Remove("b".into())).unwrap(), ["a", "c"]);
    assert_eq!(refused(change(Change::Remove("b".into()))), "TagNotFound");
    assert_eq!(refused(change(Change::Set(vec![String::new()]))), "InvalidInput");
    let stored = networks::get(&bench.conn, &ctx, network.meta.id).unwrap();
    assert_eq!(
        (stored.meta.tags, stored.meta.revision),
        (vec!["a".into(), "c".into()], network.meta.revision + 3)
    );
    assert_eq!(
        refused(tags::change(
            &bench.conn,
            &member("b"),
            Tagged::Networks,
            bench.external,
            &Change::Set(vec![])
        )),
        "PolicyNotAuthorized"
    );
}

#[test]
fn segment_numbers_are_unique_and_gaps_are_found() {
    let bench = Bench::new();
    let with = |vni| networks::Fields {
        segmentation_id: Some(vni),
        ..Default::default()
    };
    let create = |fields: &networks::Fields| networks::create(&bench.conn, &bench.config, &admin(), fields);
    assert_eq!(create(&with((1 << 24) - 1)).unwrap().vni, (1 << 24) - 1);
    assert_eq!(refused(create(&with((1 << 24) - 1))), "TunnelIdInUse");
    assert_eq!(refused(create(&with(1 << 24))), "InvalidInput");
    // The external network has 1: the largest is taken, so the gap is 2.
    assert_eq!(create(&networks::Fields::default()).unwrap().vni, 2);
    let by_member = networks::create(&bench.conn, &bench.config, &member("a"), &with(7));
    assert_eq!(refused(by_member), "PolicyNotAuthorized");
}

#[test]
fn the_external_network_is_made_once() {
    let bench = Bench::new();
    let mut external = bench.config.external.clone().unwrap();
    super::super::bootstrap::make_external(&bench.conn, &bench.config, &external).unwrap();
    assert_eq!((bench.count("networks"), bench.count("subnets")), (1, 1));
    external.tap = "allod9".into();
    super::super::bootstrap::make_external(&bench.conn, &bench.config, &external).unwrap();
    let network = networks::fetch(&bench.conn, bench.external).unwrap();
    assert_eq!(
        (network.uplink.as_str(), network.external, network.is_default),
        ("allod9", true, true)
    );
    let subnet = subnets::of_network(&bench.conn, bench.external)
        .unwrap()
        .pop()
        .unwrap();
    assert_eq!(
        (subnet.gateway_ip, subnet.enable_dhcp),
        (Some(ip("203.0.113.1")), false)
    );
}
