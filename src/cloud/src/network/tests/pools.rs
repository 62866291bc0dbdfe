//! Subnet pools, address scopes, and rules that new groups begin with.

use ipnet::IpNet;

use super::*;
use crate::network::address_scopes::{self, AddressScope};
use crate::network::default_rules::{self, Remote};
use crate::network::security_groups;
use crate::network::security_rules::Direction;
use crate::network::subnet_pools::{self, SubnetPool};

fn nets(text: &str) -> Vec<IpNet> {
    text.split_whitespace().map(|net| net.parse().unwrap()).collect()
}

fn pool_fields(prefixes: &str) -> subnet_pools::Fields {
    subnet_pools::Fields {
        prefixes: Some(nets(prefixes)),
        ..Default::default()
    }
}

fn pool(bench: &Bench, ctx: &Context, prefixes: &str) -> SubnetPool {
    subnet_pools::create(&bench.conn, ctx, &pool_fields(prefixes)).unwrap()
}

fn from_pool(network: &Network, pool: &SubnetPool, length: u8) -> subnets::Fields {
    subnets::Fields {
        network_id: Some(network.meta.id),
        subnet_pool_id: Some(pool.meta.id),
        prefixlen: Some(length),
        ..Default::default()
    }
}

fn scope(bench: &Bench, ctx: &Context, ip_version: u8, shared: bool) -> AddressScope {
    let fields = address_scopes::Fields {
        ip_version: Some(ip_version),
        shared: Some(shared),
        ..Default::default()
    };
    address_scopes::create(&bench.conn, ctx, &fields).unwrap()
}

#[test]
fn subnets_of_a_pool_never_overlap() {
    let bench = Bench::new();
    let ctx = member("a");
    let pool = pool(&bench, &ctx, "10.1.0.0/24 10.1.1.0/24");
    assert_eq!(pool.prefixes, nets("10.1.0.0/23"));
    assert_eq!(
        (pool.min_prefixlen, pool.default_prefixlen, pool.max_prefixlen),
        (8, 8, 32)
    );
    let network = bench.network(&ctx, "n");
    let get = |length| bench.try_subnet(&ctx, from_pool(&network, &pool, length));
    assert_eq!(get(25).unwrap().cidr, nets("10.1.0.0/25")[0]);
    assert_eq!(get(24).unwrap().cidr, nets("10.1.1.0/24")[0]);
    assert_eq!(get(26).unwrap().cidr, nets("10.1.0.128/26")[0]);
    assert_eq!(refused(get(25)), "SubnetAllocationError");
    assert_eq!(refused(get(7)), "MinPrefixSubnetAllocationError");
    let certain = |cidr: &str| subnets::Fields {
        subnet_pool_id: Some(pool.meta.id),
        ..subnet_fields(&network, cidr)
    };
    assert_eq!(
        refused(bench.try_subnet(&ctx, certain("10.1.0.0/26"))),
        "SubnetAllocationError"
    );
    let last = bench.try_subnet(&ctx, certain("10.1.0.192/26")).unwrap();
    assert_eq!(last.subnet_pool_id, Some(pool.meta.id));
    assert_eq!(
        refused(subnet_pools::delete(&bench.conn, &ctx, pool.meta.id)),
        "SubnetPoolDeleteError"
    );
    subnets::delete(&bench.conn, &ctx, last.meta.id).unwrap();
    assert_eq!(get(26).unwrap().cidr, nets("10.1.0.192/26")[0]);
}

#[test]
fn requests_that_contradict_themselves_are_refused() {
    let bench = Bench::new();
    let ctx = member("a");
    let pool = pool(&bench, &ctx, "10.1.0.0/16");
    let network = bench.network(&ctx, "n");
    let base = || from_pool(&network, &pool, 24);
    let name = |fields: subnets::Fields| refused(bench.try_subnet(&ctx, fields));
    for fields in [
        subnets::Fields {
            cidr: Some(nets("10.1.0.0/24")[0]),
            ..base()
        },
        subnets::Fields {
            use_default_pool: Some(true),
            ..base()
        },
        subnets::Fields {
            subnet_pool_id: None,
            ..base()
        },
        subnets::Fields {
            subnet_pool_id: None,
            prefixlen: None,
            use_default_pool: Some(true),
            ..base()
        },
        subnets::Fields {
            ip_version: Some(6),
            ..base()
        },
        subnets::Fields {
            gateway_ip: Some(Some(ip("10.1.0.1"))),
            ..base()
        },
    ] {
        assert_eq!(name(fields), "BadRequest");
    }
    let other = member("b");
    let theirs = bench.network(&other, "n");
    assert_eq!(
        refused(bench.try_subnet(&other, from_pool(&theirs, &pool, 24))),
        "SubnetPoolNotFound"
    );
}

#[test]
fn a_pool_has_rules_of_its_own() {
    let bench = Bench::new();
    let ctx = member("a");
    let name = |fields: subnet_pools::Fields| refused(subnet_pools::create(&bench.conn, &ctx, &fields));
    assert_eq!(name(pool_fields("")), "SubnetPoolMinPrefix");
    assert_eq!(name(pool_fields("10.0.0.0/8 fd00::/48")), "PrefixVersionMismatch");
    let bounds = subnet_pools::Fields {
        min_prefixlen: Some(24),
        default_prefixlen: Some(20),
        ..pool_fields("10.0.0.0/8")
    };
    assert_eq!(name(bounds), "IllegalSubnetPoolPrefixBounds");
    let long = subnet_pools::Fields {
        max_prefixlen: Some(33),
        ..pool_fields("10.0.0.0/8")
    };
    assert_eq!(name(long), "IllegalSubnetPoolPrefixBounds");
    for fields in [
        subnet_pools::Fields {
            shared: Some(true),
            ..pool_fields("10.0.0.0/8")
        },
        subnet_pools::Fields {
            is_default: Some(true),
            ..pool_fields("10.0.0.0/8")
        },
    ] {
        assert_eq!(name(fields), "PolicyNotAuthorized");
    }
    let pool = pool(&bench, &ctx, "10.1.0.0/16");
    let id = pool.meta.id;
    let update = |prefixes: &str| subnet_pools::update(&bench.conn, &ctx, id, &pool_fields(prefixes));
    assert_eq!(refused(update("10.2.0.0/16")), "IllegalSubnetPoolUpdate");
    assert_eq!(update("10.0.0.0/15").unwrap().prefixes, nets("10.0.0.0/15"));
    let same = update("10.0.0.0/15").unwrap();
    assert_eq!(same.meta.revision, 1, "saying what is so changes nothing");
    let more = subnet_pools::add_prefixes(&bench.conn, &ctx, id, &nets("10.8.0.0/16")).unwrap();
    assert_eq!(more.prefixes, nets("10.0.0.0/15 10.8.0.0/16"));
    let network = bench.network(&ctx, "n");
    bench.try_subnet(&ctx, from_pool(&network, &more, 16)).unwrap();
    let remove = |text: &str| subnet_pools::remove_prefixes(&bench.conn, &ctx, id, &nets(text));
    assert_eq!(refused(remove("10.8.0.0/16")), "IllegalSubnetPoolPrefixUpdate");
    assert_eq!(
        remove("10.0.0.0/16").unwrap().prefixes,
        nets("10.1.0.0/16 10.8.0.0/16")
    );
    assert_eq!(
        refused(subnet_pools::get(&bench.conn, &member("b"), id)),
        "SubnetPoolNotFound"
    );
}

#[test]
fn quotas_of_a_pool_count_a_projects_own_addresses() {
    let bench = Bench::new();
    let fields = subnet_pools::Fields {
        shared: Some(true),
        is_default: Some(true),
        default_quota: Some(Some(256)),
        default_prefixlen: Some(25),
        ..pool_fields("10.1.0.0/16")
    };
    let pool = subnet_pools::create(&bench.conn, &admin(), &fields).unwrap();
    assert_eq!(
        refused(subnet_pools::create(&bench.conn, &admin(), &fields)),
        "InvalidInput",
        "one default for each version"
    );
    for project in ["a", "b"] {
        let ctx = member(project);
        let network = bench.network(&ctx, "n");
        let default = || subnets::Fields {
            network_id: Some(network.meta.id),
            use_default_pool: Some(true),
            ip_version: Some(4),
            ..Default::default()
        };
        for _ in 0..2 {
            let subnet = bench.try_subnet(&ctx, default()).unwrap();
            assert_eq!(
                (subnet.cidr.prefix_len(), subnet.subnet_pool_id),
                (25, Some(pool.meta.id))
            );
        }
        assert_eq!(
            refused(bench.try_subnet(&ctx, default())),
            "SubnetPoolQuotaExceeded"
        );
    }
}

#[test]
fn networks_are_onboarded_with_their_subnets() {
    let bench = Bench::new();
    let ctx = member("a");
    let pool = pool(&bench, &ctx, "10.1.0.0/16");
    let (network, subnet) = bench.plain(&ctx, "n", "10.9.0.0/24");
    let grown = subnet_pools::onboard(&bench.conn, &ctx, pool.meta.id, network.meta.id).unwrap();
    assert_eq!(grown.prefixes, nets("10.1.0.0/16 10.9.0.0/24"));
    let subnet = subnets::get(&bench.conn, &ctx, subnet.meta.id).unwrap();
    assert_eq!(subnet.subnet_pool_id, Some(pool.meta.id));
    let (twin, _) = bench.plain(&ctx, "twin", "10.9.0.0/25");
    assert_eq!(
        refused(subnet_pools::onboard(
            &bench.conn,
            &ctx,
            pool.meta.id,
            twin.meta.id
        )),
        "IllegalSubnetPoolUpdate"
    );
}

#[test]
fn pools_of_a_scope_share_one_plan() {
    let bench = Bench::new();
    let ctx = member("a");
    let mine = scope(&bench, &ctx, 4, false);
    let within = |prefixes: &str, scope: &AddressScope| subnet_pools::Fields {
        address_scope_id: Some(Some(scope.meta.id)),
        ..pool_fields(prefixes)
    };
    let create =
        |ctx: &Context, fields: &subnet_pools::Fields| subnet_pools::create(&bench.conn, ctx, fields);
    let pool = create(&ctx, &within("10.1.0.0/16", &mine)).unwrap();
    assert_eq!(
        refused(create(&ctx, &within("10.1.2.0/24", &mine))),
        "AddressScopePrefixConflict"
    );
    assert_eq!(
        refused(create(&ctx, &within("fd00::/48", &mine))),
        "IllegalSubnetPoolIpVersionAssociationToAddressScope"
    );
    assert_eq!(
        refused(create(&member("b"), &within("10.2.0.0/16", &mine))),
        "AddressScopeNotFound"
    );
    assert_eq!(
        refused(address_scopes::delete(&bench.conn, &ctx, mine.meta.id)),
        "AddressScopeInUse"
    );
    let network = bench.network(&ctx, "n");
    bench.try_subnet(&ctx, from_pool(&network, &pool, 24)).unwrap();
    let scopes = subnet_pools::scopes(&bench.conn).unwrap();
    assert_eq!(scopes.get(&(network.meta.id, 4)), Some(&mine.meta.id));
    assert_eq!(
        refused(bench.try_subnet(&ctx, subnet_fields(&network, "10.7.0.0/24"))),
        "NetworkAddressScopeAffinityError"
    );
    let shared = scope(&bench, &admin(), 4, true);
    assert_eq!(
        refused(create(&member("b"), &within("10.2.0.0/16", &shared))),
        "IllegalSubnetPoolAssociationToAddressScope",
        "only its owner decides what is in it"
    );
    create(&admin(), &within("10.2.0.0/16", &shared)).unwrap();
    let unshare = address_scopes::Fields {
        shared: Some(false),
        ..Default::default()
    };
    assert_eq!(
        refused(address_scopes::update(
            &bench.conn,
            &admin(),
            shared.meta.id,
            &unshare
        )),
        "AddressScopeUpdateError"
    );
}

#[test]
fn new_groups_begin_with_the_default_rules() {
    let bench = Bench::new();
    let root = admin();
    let rules = default_rules::list(&bench.conn, &member("a"), &Default::default()).unwrap();
    assert_eq!(rules.len(), 4);
    for rule in &rules {
        match rule.direction {
            Direction::Egress => assert!(rule.in_default && rule.in_custom && rule.remote.is_none()),
            Direction::Ingress => {
                assert!(rule.in_default && !rule.in_custom);
                assert_eq!(rule.remote, Some(Remote::Parent));
            }
        }
    }
    let ssh = default_rules::Fields {
        direction: Some(Direction::Ingress),
        protocol: Some("tcp".into()),
        port_min: Some(22),
        port_max: Some(22),
        ..Default::default()
    };
    assert_eq!(
        refused(default_rules::create(&bench.conn, &member("a"), &ssh).map(|_| ())),
        "PolicyNotAuthorized"
    );
    let made = default_rules::create(&bench.conn, &root, &ssh).unwrap();
    assert_eq!(
        refused(default_rules::create(&bench.conn, &root, &ssh)),
        "DefaultSecurityGroupRuleExists"
    );
    let wrong = default_rules::Fields {
        protocol: None,
        ..ssh.clone()
    };
    assert_eq!(
        refused(default_rules::create(&bench.conn, &root, &wrong)),
        "SecurityGroupProtocolRequiredWithPorts"
    );
    let group = |project: &str| {
        let fields = security_groups::Fields {
            name: Some("g".into()),
            ..Default::default()
        };
        security_groups::create(&bench.conn, &member(project), &fields).unwrap()
    };
    let with = group("a");
    assert_eq!(with.rules.len(), 3);
    assert!(with.rules.iter().any(|rule| rule.port_min == Some(22)));
    default_rules::delete(&bench.conn, &root, made.meta.id).unwrap();
    assert_eq!(group("b").rules.len(), 2);
    let stays = security_groups::get(&bench.conn, &member("a"), with.meta.id).unwrap();
    assert_eq!(stays.rules.len(), 3, "groups that are there do not change");
}
