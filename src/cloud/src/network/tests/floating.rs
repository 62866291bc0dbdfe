//! Floating IPs.

use super::*;
use crate::network::floating_ips::{self, Fields, FloatingIp};

fn fields(bench: &Bench) -> Fields {
    Fields {
        network_id: Some(bench.external),
        ..Default::default()
    }
}

fn attach(bench: &Bench, ctx: &Context, floating: &FloatingIp, port: Option<Uuid>) -> Result<FloatingIp> {
    let fields = Fields {
        port_id: Some(port),
        ..Default::default()
    };
    floating_ips::update(&bench.conn, ctx, floating.meta.id, &fields)
}

#[test]
fn a_floating_ip_needs_a_router_that_leads_there() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, subnet) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let port = bench.port(&ctx, &network);
    let floating = floating_ips::create(&bench.conn, &ctx, &fields(&bench)).unwrap();
    assert_eq!((floating.address, floating.status()), (ip("203.0.113.2"), "DOWN"));
    let name = refused(attach(&bench, &ctx, &floating, Some(port.id)));
    assert_eq!(name, "ExternalGatewayForFloatingIPNotFound");
    let router = bench.router(&ctx, true);
    bench.plug(&ctx, &router, &subnet);
    let attached = attach(&bench, &ctx, &floating, Some(port.id)).unwrap();
    assert_eq!(attached.router_id, Some(router.meta.id));
    assert_eq!(attached.fixed_ip, Some(port.fixed_ips[0].ip));
    assert_eq!(
        attach(&bench, &ctx, &floating, Some(port.id)).unwrap(),
        attached,
        "again: nothing"
    );

    let second = floating_ips::create(&bench.conn, &ctx, &fields(&bench)).unwrap();
    assert_eq!(
        refused(attach(&bench, &ctx, &second, Some(port.id))),
        "FloatingIPPortAlreadyAssociated"
    );
    let remove = InterfaceRequest::Subnet(subnet.meta.id);
    assert_eq!(
        refused(routers::remove_interface(
            &bench.conn,
            &ctx,
            router.meta.id,
            remove
        )),
        "RouterInterfaceInUseByFloatingIP"
    );
    let clear = routers::Fields {
        gateway: Some(None),
        ..Default::default()
    };
    assert_eq!(
        refused(routers::update(
            &bench.conn,
            &bench.config,
            &ctx,
            router.meta.id,
            &clear
        )),
        "RouterExternalGatewayInUseByFloatingIp"
    );
    let other = ports::Fields {
        fixed_ips: Some(vec![at("10.0.0.77")]),
        ..Default::default()
    };
    assert_eq!(
        refused(ports::update(&bench.conn, &ctx, port.id, &other)),
        "FipAssociated"
    );

    let detached = attach(&bench, &ctx, &floating, None).unwrap();
    assert_eq!(
        (detached.router_id, detached.port_id, detached.fixed_ip),
        (None, None, None)
    );
    routers::remove_interface(&bench.conn, &ctx, router.meta.id, remove).unwrap();
    floating_ips::delete(&bench.conn, &ctx, floating.meta.id).unwrap();
    assert_eq!(
        refused(floating_ips::get(&bench.conn, &ctx, floating.meta.id)),
        "FloatingIPNotFound"
    );
}

#[test]
fn a_port_that_goes_leaves_its_floating_ip() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, subnet) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let port = bench.port(&ctx, &network);
    let router = bench.router(&ctx, true);
    bench.plug(&ctx, &router, &subnet);
    let with_port = Fields {
        port_id: Some(Some(port.id)),
        ..fields(&bench)
    };
    let floating = floating_ips::create(&bench.conn, &ctx, &with_port).unwrap();
    assert_eq!(floating.port_id, Some(port.id));
    ports::delete(&bench.conn, &ctx, port.id).unwrap();
    let floating = floating_ips::get(&bench.conn, &ctx, floating.meta.id).unwrap();
    assert_eq!((floating.port_id, floating.status()), (None, "DOWN"));
}

#[test]
fn what_a_floating_ip_cannot_be_is_refused_by_name() {
    let bench = Bench::new();
    let (ctx, other) = (member("a"), member("b"));
    let (network, subnet) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let create = |ctx: &Context, fields: Fields| floating_ips::create(&bench.conn, ctx, &fields);
    assert_eq!(refused(create(&ctx, Fields::default())), "HTTPBadRequest");
    assert_eq!(
        refused(create(
            &ctx,
            Fields {
                network_id: Some(network.meta.id),
                ..Default::default()
            }
        )),
        "BadRequest"
    );
    assert_eq!(
        refused(create(
            &ctx,
            Fields {
                subnet_id: Some(subnet.meta.id),
                ..fields(&bench)
            }
        )),
        "InvalidInput"
    );
    let certain = Fields {
        address: Some(ip("203.0.113.50")),
        ..fields(&bench)
    };
    assert_eq!(refused(create(&ctx, certain.clone())), "PolicyNotAuthorized");
    assert_eq!(
        create(&admin(), certain.clone()).unwrap().address,
        ip("203.0.113.50")
    );
    assert_eq!(refused(create(&admin(), certain)), "IpAddressInUse");
    let fixed = Fields {
        fixed_ip: Some(Some(ip("10.0.0.2"))),
        ..fields(&bench)
    };
    assert_eq!(refused(create(&ctx, fixed)), "BadRequest");

    let port = bench.port(&ctx, &network);
    let router = bench.router(&ctx, true);
    bench.plug(&ctx, &router, &subnet);
    let theirs = create(&other, fields(&bench)).unwrap();
    assert_eq!(
        refused(attach(&bench, &other, &theirs, Some(port.id))),
        "PortNotFound"
    );
    assert_eq!(
        refused(floating_ips::get(&bench.conn, &ctx, theirs.meta.id)),
        "FloatingIPNotFound"
    );

    let two = ports::Fields {
        fixed_ips: Some(vec![at("10.0.0.8"), at("10.0.0.9")]),
        ..port_fields(&network)
    };
    let two = bench.try_port(&ctx, two).unwrap();
    let mine = create(&ctx, fields(&bench)).unwrap();
    assert_eq!(refused(attach(&bench, &ctx, &mine, Some(two.id))), "BadRequest");
    let which = Fields {
        port_id: Some(Some(two.id)),
        fixed_ip: Some(Some(ip("10.0.0.9"))),
        ..Default::default()
    };
    let mine = floating_ips::update(&bench.conn, &ctx, mine.meta.id, &which).unwrap();
    assert_eq!(mine.fixed_ip, Some(ip("10.0.0.9")));
}

#[test]
fn of_two_routers_the_subnets_gateway_translates() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, subnet) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let (side, main) = (bench.router(&ctx, true), bench.router(&ctx, true));
    let leg = bench.port(&ctx, &network);
    routers::add_interface(&bench.conn, &ctx, side.meta.id, InterfaceRequest::Port(leg.id)).unwrap();
    bench.plug(&ctx, &main, &subnet);
    let port = bench.port(&ctx, &network);
    let with_port = Fields {
        port_id: Some(Some(port.id)),
        ..fields(&bench)
    };
    assert_eq!(
        floating_ips::create(&bench.conn, &ctx, &with_port)
            .unwrap()
            .router_id,
        Some(main.meta.id)
    );
}

#[test]
fn an_external_network_goes_with_floating_ips_that_stand_for_nothing() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, subnet) = bench.plain(&ctx, "n", "10.0.0.0/24");
    floating_ips::create(&bench.conn, &ctx, &fields(&bench)).unwrap();
    networks::delete(&bench.conn, &admin(), bench.external).unwrap();
    assert_eq!(bench.count("floating_ips") + bench.count("ports"), 0);

    let external = networks::Fields {
        external: Some(true),
        ..Default::default()
    };
    let external = networks::create(&bench.conn, &bench.config, &admin(), &external).unwrap();
    bench.subnet(&admin(), &external, "198.51.100.0/24");
    let bench = Bench {
        external: external.meta.id,
        ..bench
    };
    let router = bench.router(&ctx, true);
    bench.plug(&ctx, &router, &subnet);
    let port = bench.port(&ctx, &network);
    let used = Fields {
        port_id: Some(Some(port.id)),
        ..fields(&bench)
    };
    floating_ips::create(&bench.conn, &ctx, &used).unwrap();
    assert_eq!(
        refused(networks::delete(&bench.conn, &admin(), bench.external)),
        "NetworkInUse"
    );
}
