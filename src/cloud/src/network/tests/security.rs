//! Security groups and their rules.

use super::*;
use crate::network::Where;
use crate::network::security_groups::{self, SecurityGroup};
use crate::network::security_rules::{self, Direction, Ethertype, Fields, Rule};

fn group(bench: &Bench, ctx: &Context, name: &str) -> SecurityGroup {
    let fields = security_groups::Fields {
        name: Some(name.into()),
        ..Default::default()
    };
    security_groups::create(&bench.conn, ctx, &fields).unwrap()
}

fn rule(group: &SecurityGroup, protocol: &str, ports: (Option<u16>, Option<u16>)) -> Fields {
    Fields {
        group_id: Some(group.meta.id),
        direction: Some(Direction::Ingress),
        protocol: Some(protocol.into()).filter(|p: &String| !p.is_empty()),
        port_min: ports.0,
        port_max: ports.1,
        ..Default::default()
    }
}

#[test]
fn every_project_has_a_default_group_that_trusts_itself() {
    let bench = Bench::new();
    let ctx = member("a");
    bench.network(&ctx, "n");
    let groups = security_groups::list(&bench.conn, &ctx, &Where::default()).unwrap();
    let [default] = groups.as_slice() else {
        panic!("{groups:?}")
    };
    assert_eq!(
        (default.meta.name.as_str(), default.is_default),
        ("default", true)
    );
    let of = |direction: Direction| -> Vec<&Rule> {
        default
            .rules
            .iter()
            .filter(|rule| rule.direction == direction)
            .collect()
    };
    assert_eq!(of(Direction::Egress).len(), 2);
    assert!(
        of(Direction::Egress)
            .iter()
            .all(|rule| rule.remote_group_id.is_none())
    );
    assert_eq!(of(Direction::Ingress).len(), 2);
    assert!(
        of(Direction::Ingress)
            .iter()
            .all(|rule| rule.remote_group_id == Some(default.meta.id))
    );
    let own = group(&bench, &ctx, "web");
    assert!(own.rules.len() == 2 && own.rules.iter().all(|rule| rule.direction == Direction::Egress));

    let named = |name: &str| security_groups::Fields {
        name: Some(name.into()),
        ..Default::default()
    };
    let id = default.meta.id;
    assert_eq!(
        refused(security_groups::create(&bench.conn, &ctx, &named("Default"))),
        "SecurityGroupDefaultAlreadyExists"
    );
    assert_eq!(
        refused(security_groups::update(&bench.conn, &ctx, id, &named("x"))),
        "SecurityGroupCannotUpdateDefault"
    );
    assert_eq!(
        refused(security_groups::delete(&bench.conn, &ctx, id)),
        "SecurityGroupCannotRemoveDefault"
    );
    let stateless = security_groups::Fields {
        stateful: Some(false),
        ..Default::default()
    };
    assert_eq!(
        refused(security_groups::create(&bench.conn, &ctx, &stateless)),
        "InvalidInput"
    );
}

#[test]
fn rules_that_make_no_sense_are_refused_by_name() {
    let bench = Bench::new();
    let ctx = member("a");
    let group = group(&bench, &ctx, "web");
    let name = |fields: Fields| refused(security_rules::create(&bench.conn, &ctx, &fields));
    let v6 = |fields| Fields {
        ethertype: Some(Ethertype::V6),
        ..fields
    };
    let none = (None, None);
    assert_eq!(
        name(rule(&group, "tcpp", none)),
        "SecurityGroupRuleInvalidProtocol"
    );
    assert_eq!(
        name(rule(&group, "256", none)),
        "SecurityGroupRuleInvalidProtocol"
    );
    assert_eq!(
        name(rule(&group, "icmpv6", none)),
        "SecurityGroupEthertypeConflictWithProtocol"
    );
    assert_eq!(
        name(rule(&group, "58", none)),
        "SecurityGroupEthertypeConflictWithProtocol"
    );
    assert_eq!(
        name(rule(&group, "", (Some(1), Some(2)))),
        "SecurityGroupProtocolRequiredWithPorts"
    );
    assert_eq!(
        name(rule(&group, "tcp", (Some(2), Some(1)))),
        "SecurityGroupInvalidPortRange"
    );
    assert_eq!(
        name(rule(&group, "tcp", (Some(2), None))),
        "SecurityGroupInvalidPortRange"
    );
    assert_eq!(
        name(rule(&group, "udp", (Some(0), Some(1)))),
        "SecurityGroupInvalidPortValue"
    );
    assert_eq!(
        name(rule(&group, "vrrp", (Some(1), Some(2)))),
        "SecurityGroupInvalidProtocolForPort"
    );
    assert_eq!(
        name(rule(&group, "icmp", (Some(256), None))),
        "SecurityGroupInvalidIcmpValue"
    );
    assert_eq!(
        name(rule(&group, "icmp", (None, Some(0)))),
        "SecurityGroupMissingIcmpType"
    );
    let prefix = "10.0.0.0/8".parse().ok();
    let base = || rule(&group, "tcp", none);
    assert_eq!(
        name(v6(Fields {
            remote_prefix: prefix,
            ..base()
        })),
        "SecurityGroupRuleParameterConflict"
    );
    let remote = Some(group.meta.id);
    assert_eq!(
        name(Fields {
            remote_prefix: prefix,
            remote_group_id: remote,
            ..base()
        }),
        "SecurityGroupMultipleRemoteEntites"
    );
    assert_eq!(
        name(Fields {
            remote_group_id: Some(Uuid::nil()),
            ..base()
        }),
        "SecurityGroupNotFound"
    );
    assert_eq!(
        name(Fields {
            group_id: Some(Uuid::nil()),
            ..base()
        }),
        "SecurityGroupNotFound"
    );
    assert_eq!(
        name(Fields {
            direction: None,
            ..base()
        }),
        "HTTPBadRequest"
    );
    assert_eq!(
        security_groups::get(&bench.conn, &ctx, group.meta.id)
            .unwrap()
            .rules
            .len(),
        2
    );
}

#[test]
fn the_same_rule_twice_is_a_conflict_however_it_is_written() {
    let bench = Bench::new();
    let ctx = member("a");
    let group = group(&bench, &ctx, "web");
    let create = |fields: Fields| security_rules::create(&bench.conn, &ctx, &fields);
    let ssh = || rule(&group, "tcp", (Some(22), Some(22)));
    let from = |prefix: &str| Fields {
        remote_prefix: prefix.parse().ok(),
        ..ssh()
    };
    let first = create(ssh()).unwrap();
    assert_eq!(refused(create(ssh())), "SecurityGroupRuleExists");
    assert_eq!(
        refused(create(Fields {
            protocol: Some("6".into()),
            ..ssh()
        })),
        "SecurityGroupRuleExists"
    );
    assert_eq!(
        refused(create(Fields {
            protocol: Some("TCP".into()),
            ..ssh()
        })),
        "SecurityGroupRuleExists"
    );
    assert_eq!(refused(create(from("0.0.0.0/0"))), "SecurityGroupRuleExists");
    create(from("10.0.0.5/8")).unwrap();
    assert_eq!(refused(create(from("10.0.0.0/8"))), "SecurityGroupRuleExists");
    create(Fields {
        ethertype: Some(Ethertype::V6),
        ..ssh()
    })
    .unwrap();
    let before = security_groups::get(&bench.conn, &ctx, group.meta.id).unwrap();
    security_rules::delete(&bench.conn, &ctx, first.meta.id).unwrap();
    let after = security_groups::get(&bench.conn, &ctx, group.meta.id).unwrap();
    assert_eq!(after.meta.revision, before.meta.revision + 1);
    create(ssh()).unwrap();
    assert_eq!(
        refused(security_rules::get(&bench.conn, &member("b"), first.meta.id)),
        "SecurityGroupRuleNotFound"
    );
}

#[test]
fn a_group_goes_with_all_rules_that_speak_of_it_but_not_while_ports_are_in_it() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, _) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let (web, db) = (group(&bench, &ctx, "web"), group(&bench, &ctx, "db"));
    let from_web = Fields {
        remote_group_id: Some(web.meta.id),
        ..rule(&db, "tcp", (Some(5432), Some(5432)))
    };
    security_rules::create(&bench.conn, &ctx, &from_web).unwrap();
    let groups = Some(vec![web.meta.id, db.meta.id]);
    let port = bench
        .try_port(
            &ctx,
            ports::Fields {
                security_groups: groups,
                ..port_fields(&network)
            },
        )
        .unwrap();
    assert_eq!(port.security_groups.len(), 2);
    let twice = ports::Fields {
        security_groups: Some(vec![web.meta.id, web.meta.id]),
        ..Default::default()
    };
    assert_eq!(
        refused(ports::update(&bench.conn, &ctx, port.id, &twice)),
        "InvalidInput"
    );
    assert_eq!(
        refused(security_groups::delete(&bench.conn, &ctx, web.meta.id)),
        "SecurityGroupInUse"
    );
    let only_db = ports::Fields {
        security_groups: Some(vec![db.meta.id]),
        ..Default::default()
    };
    ports::update(&bench.conn, &ctx, port.id, &only_db).unwrap();
    security_groups::delete(&bench.conn, &ctx, web.meta.id).unwrap();
    assert_eq!(
        security_groups::get(&bench.conn, &ctx, db.meta.id)
            .unwrap()
            .rules
            .len(),
        2
    );
}

#[test]
fn groups_and_port_security_go_together() {
    let bench = Bench::new();
    let ctx = member("a");
    let (network, _) = bench.plain(&ctx, "n", "10.0.0.0/24");
    let web = group(&bench, &ctx, "web");
    let open = ports::Fields {
        port_security_enabled: Some(false),
        ..port_fields(&network)
    };
    let port = bench.try_port(&ctx, open.clone()).unwrap();
    assert!(port.security_groups.is_empty());
    let with_group = ports::Fields {
        security_groups: Some(vec![web.meta.id]),
        ..open.clone()
    };
    assert_eq!(
        refused(bench.try_port(&ctx, with_group)),
        "PortSecurityPortHasSecurityGroup"
    );
    let pair = ports::AddressPair {
        ip_address: "10.0.0.200".into(),
        mac_address: None,
    };
    let with_pair = ports::Fields {
        address_pairs: Some(vec![pair.clone()]),
        ..open
    };
    assert_eq!(
        refused(bench.try_port(&ctx, with_pair)),
        "AddressPairAndPortSecurityRequired"
    );
    let no_address = ports::Fields {
        fixed_ips: Some(vec![]),
        security_groups: Some(vec![web.meta.id]),
        ..port_fields(&network)
    };
    let port = bench.try_port(&ctx, no_address).unwrap();
    assert_eq!(port.security_groups, [web.meta.id], "an address may come later");
    let twice = ports::Fields {
        address_pairs: Some(vec![pair.clone(), pair]),
        ..port_fields(&network)
    };
    assert_eq!(
        refused(bench.try_port(&ctx, twice)),
        "DuplicateAddressPairInRequest"
    );
    let theirs = group(&bench, &member("b"), "theirs");
    let stolen = ports::Fields {
        security_groups: Some(vec![theirs.meta.id]),
        ..port_fields(&network)
    };
    assert_eq!(refused(bench.try_port(&ctx, stolen)), "SecurityGroupNotFound");
}

#[test]
fn names_mean_groups_of_the_project() {
    let bench = Bench::new();
    let ctx = member("a");
    let web = group(&bench, &ctx, "web");
    let resolve = |names: &[&str]| security_groups::resolve(&bench.conn, &ctx, names);
    let default = security_groups::default_of(&bench.conn, "a").unwrap().unwrap();
    let id = web.meta.id.to_string();
    assert_eq!(resolve(&["web", "default", &id]).unwrap(), [web.meta.id, default]);
    assert_eq!(refused(resolve(&["nobody"])), "SecurityGroupNotFound");
    group(&bench, &ctx, "web");
    assert_eq!(refused(resolve(&["web"])), "NoUniqueMatch");
    assert_eq!(resolve(&[&id]).unwrap(), [web.meta.id]);
}
